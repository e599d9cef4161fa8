"""The tables of a store in ClickHouse.

In: a database. Out: tables of the newest version in it, or a StoreError.
Does not know: what is written and read.

``batches`` has a row for each batch, whole, so that one is stored whole or not at all. It is
sorted by session, and so are the pages of one: what reads a session reads little else. A row of
the same session and key takes the place of one that was there; until ClickHouse has found the
two, which it does in its own time, whoever reads has to leave one out. ``arrivals`` are the
sessions by when they came, ``children`` by whom they work for. ``events`` has a row for each
event without its text, sorted by type, day and what it is about, to add up over all sessions.

Parts are of a month by the receivers' clocks: an old month can be dropped as a whole.
"""

import msgspec

from trimaran.receiver.clickhouse.client import ClickHouse, literal
from trimaran.receiver.store import StoreError

__all__ = ["VERSIONS", "prepare"]

_MONTH = "toYYYYMM(toDateTime(intDiv(number, 1000000)))"

VERSIONS: tuple[tuple[str, ...], ...] = (
    (
        f"""
        CREATE TABLE IF NOT EXISTS batches (
            session_id String,
            batch_key String,
            number UInt64,
            seniority UInt64 MATERIALIZED 9223372036854775807 - number,
            received UInt64,
            accepted UInt32,
            rejected String,
            parent String,
            project String,
            app_version String,
            user String,
            started_project String,
            started_agent String,
            started_model String,
            started_provider String,
            agent String,
            model String,
            provider String,
            first_time UInt64,
            last_time UInt64,
            outcome UInt8,
            ended UInt64,
            duration_ms Nullable(Float64),
            types Array(String),
            counts Array(UInt64),
            input UInt64,
            output UInt64,
            reasoning UInt64,
            cache_read UInt64,
            cache_write UInt64,
            cost Float64,
            errors UInt64,
            size UInt64,
            texts Array(String)
        )
        ENGINE = ReplacingMergeTree(seniority)
        PARTITION BY {_MONTH}
        ORDER BY (session_id, batch_key)
        """,
        f"""
        CREATE TABLE IF NOT EXISTS arrivals (number UInt64, session_id String)
        ENGINE = ReplacingMergeTree
        PARTITION BY {_MONTH}
        ORDER BY (number, session_id)
        """,
        """
        CREATE TABLE IF NOT EXISTS children (parent String, session_id String)
        ENGINE = ReplacingMergeTree
        ORDER BY (parent, session_id)
        """,
        f"""
        CREATE TABLE IF NOT EXISTS events (
            type String,
            day Date MATERIALIZED toDate(toDateTime(intDiv(timestamp, 1000))),
            subject String,
            session_id String,
            batch_key String,
            place UInt32,
            number UInt64,
            timestamp UInt64,
            project String,
            duration_ms Float64,
            failed UInt8,
            input UInt64,
            output UInt64,
            reasoning UInt64,
            cache_read UInt64,
            cache_write UInt64,
            cost Float64
        )
        ENGINE = ReplacingMergeTree
        PARTITION BY {_MONTH}
        ORDER BY (type, day, subject, session_id, batch_key, place)
        """,
    ),
)
"""The statements that lead from each version of the tables to the next; each may be repeated,
since two receivers may do so at the same time."""

_OURS = ("arrivals", "batches", "children", "events")


class _Name(msgspec.Struct):
    name: str


class _Version(msgspec.Struct):
    version: int


async def prepare(clickhouse: ClickHouse) -> None:
    """Make what is not there: the database, the tables, or what is new in them.

    Raises:
        StoreError: the tables are another program's, or of a later version.
    """
    database = clickhouse.address.database
    sql = f"SELECT name FROM system.databases WHERE name = {literal(database)}"
    if not await clickhouse.rows(_Name, sql, anywhere=True):
        await clickhouse.command(f"CREATE DATABASE IF NOT EXISTS {database}", anywhere=True)
    version = await _version(clickhouse)
    for number, statements in enumerate(VERSIONS[version:], start=version + 1):
        for statement in statements:
            await clickhouse.command(statement)
        await clickhouse.insert("trimaran", [_Version(number)])


async def _version(clickhouse: ClickHouse) -> int:
    """The version of the tables, 0 if there are none yet."""
    sql = f"SELECT name FROM system.tables WHERE database = {literal(clickhouse.address.database)}"
    names = {row.name for row in await clickhouse.rows(_Name, sql)}
    if "trimaran" not in names:
        if foreign := sorted(names.intersection(_OURS)):
            raise StoreError(f"{clickhouse.address}: has a table {foreign[0]!r} of another program")
        # Made first, it says of all others whose they are.
        await clickhouse.command(
            "CREATE TABLE IF NOT EXISTS trimaran (version UInt32)"
            " ENGINE = MergeTree ORDER BY version"
        )
        return 0
    [newest] = await clickhouse.rows(_Version, "SELECT max(version) AS version FROM trimaran")
    if newest.version > len(VERSIONS):
        raise StoreError(
            f"{clickhouse.address}: was written by a later version of Trimaran (its tables are"
            f" {newest.version}, the newest known here are {len(VERSIONS)})"
        )
    return newest.version
