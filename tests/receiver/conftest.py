"""Stores of every kind, for what holds of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE
from receiver.engines import engines, running_engine
from trimaran.receiver import Store
from trimaran.receiver.clickhouse import open_clickhouse
from trimaran.receiver.sqlite import open_sqlite

_NONE = "no ClickHouse"
CLICKHOUSES = [*engines()] or [_NONE]
"""The engines of this machine. Tests fail where there is none: they are not to be forgotten."""

_databases = count()


@dataclass(frozen=True)
class Place:
    """A store that can be opened, and opened again."""

    open: Callable[..., AbstractAsyncContextManager[Store]]
    """Takes a *clock*."""
    where: str


class Servers:
    """The engines that tests have asked for."""

    def __init__(self, stack: ExitStack, directory: Callable[[str], Path]) -> None:
        self._stack = stack
        self._directory = directory
        self._urls: dict[str, str] = {}

    def url(self, kind: str) -> str:
        """Where one listens; it is started for the first who asks."""
        if kind == _NONE:
            pytest.fail(
                "no ClickHouse to test with: apt-get install clickhouse-server, or pip install"
                " chdb-core-lite"
            )
        if kind not in self._urls:
            engine = running_engine(kind, self._directory(kind))
            self._urls[kind] = self._stack.enter_context(engine)
        return self._urls[kind]

    def new_database(self, kind: str) -> str:
        """The URL of one that nobody has used."""
        return f"clickhouse+{self.url(kind)}/test_{next(_databases)}"


@pytest.fixture(scope="session")
def clickhouses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """ClickHouses, for all tests of a process."""
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@pytest.fixture(params=CLICKHOUSES)
def clickhouse(request: pytest.FixtureRequest, clickhouses: Servers) -> str:
    """The URL of a new database, in each engine."""
    return clickhouses.new_database(request.param)


@pytest.fixture(params=["sqlite", *CLICKHOUSES])
def place(request: pytest.FixtureRequest, clickhouses: Servers, tmp_path: Path) -> Place:
    """A new store, of each kind."""
    if request.param == "sqlite":
        path = tmp_path / "s.sqlite"

        def in_file(*, clock: Any = time.time) -> AbstractAsyncContextManager[Store]:
            return open_sqlite(path, clock=clock)

        return Place(in_file, str(path))
    url = clickhouses.new_database(request.param)

    def in_clickhouse(*, clock: Any = time.time) -> AbstractAsyncContextManager[Store]:
        return open_clickhouse(url, clock=clock, gap=0, timeout=PATIENCE)

    return Place(in_clickhouse, url.removeprefix("clickhouse+"))
