"""A store in ClickHouse, for any number of receivers.

The data goes down the list: ``store`` (appends, reads), ``rows`` (a batch as rows) and
``reading`` (queries), ``schema`` (tables), ``client`` (SQL over HTTP).
"""

from trimaran.receiver.clickhouse.client import is_clickhouse
from trimaran.receiver.clickhouse.store import ClickHouseStore, open_clickhouse

__all__ = ["ClickHouseStore", "is_clickhouse", "open_clickhouse"]
