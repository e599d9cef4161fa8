"""Batches into ClickHouse, and sessions out of it.

In: validated batches. Out: a receipt once ClickHouse has a batch; sessions and events.
Does not know: requests, SQL beyond its inserts.

ClickHouse has neither transactions nor keys that are unique. So what comes is looked up first:
a batch that is there gets its first receipt again. Where two receivers look at the same time,
or a receiver does not hear that an insert went well, a batch is inserted twice under one key,
and counts once all the same: see ``schema``. The row of ``batches`` goes in last. What was put
elsewhere for a batch that never came is put there again, as the same rows, with its next
attempt.

It is slow to take many small inserts: posts of a quarter of a second are inserted together.
"""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex

import msgspec
import trio

from trimaran._transport import Transport
from trimaran.receiver.clickhouse import reading
from trimaran.receiver.clickhouse.client import (
    TIMEOUT,
    ClickHouse,
    address_of,
    literal,
    open_transport,
)
from trimaran.receiver.clickhouse.rows import BatchRow, batch_row, event_rows
from trimaran.receiver.clickhouse.schema import prepare
from trimaran.receiver.ingest import Batch, Rejection
from trimaran.receiver.limits import EVENTS_PAGE, MAX_CURSOR, SESSIONS_PAGE
from trimaran.receiver.line import Line, Post
from trimaran.receiver.values import EventPage, Family, Receipt, SessionPage, StoredSession

__all__ = ["INSERT_GAP", "ClickHouseStore", "open_clickhouse"]

INSERT_GAP = 0.25
"""Seconds between two inserts of a receiver, at least. Each makes a part of a table, and
ClickHouse refuses more where it has to merge hundreds of them."""

CLOSE_GRACE = 0.1
"""Seconds that closing the connections may take."""

_decode_rejections = msgspec.json.Decoder(tuple[Rejection, ...]).decode


class _Known(msgspec.Struct):
    session_id: str
    last_number: int


class _Earlier(msgspec.Struct):
    session_id: str
    batch_key: str
    accepted: int
    rejected: str


class _Arrival(msgspec.Struct):
    number: int
    session_id: str


class _Child(msgspec.Struct):
    parent: str
    session_id: str


class ClickHouseStore:
    """A database in ClickHouse. Made by :func:`open_clickhouse`, used from one trio run.

    Args:
        clickhouse: the database, with its tables.
        clock: gives the seconds since the epoch.
        new_key: gives a text that is unique for all time.
        gap: seconds between two inserts, at least.
    """

    def __init__(
        self,
        clickhouse: ClickHouse,
        *,
        clock: Callable[[], float],
        new_key: Callable[[], str],
        gap: float,
    ) -> None:
        self._clickhouse = clickhouse
        self._clock = clock
        self._new_key = new_key
        self._last_number = 0
        self._line = Line(self._write, gap=gap)

    def __repr__(self) -> str:
        return f"<ClickHouseStore {self.where}>"

    @property
    def where(self) -> str:
        """The server and the database."""
        return str(self._clickhouse.address)

    async def append(
        self, batch: Batch, key: str | None = None, *, parent: str | None = None
    ) -> Receipt:
        """See :class:`Keeper`; once this has returned, ClickHouse has it."""
        # One that has no key gets its own here, as it may have to be inserted twice: whoever
        # inserts for others may be cancelled, and leave open whether they are there.
        return await self._line.append(batch, key or f"\N{NULL}{self._new_key()}", parent)

    async def sessions(
        self,
        *,
        before: int = MAX_CURSOR,
        limit: int = SESSIONS_PAGE,
        parent: str | None = None,
    ) -> SessionPage:
        """See :class:`Store`."""
        return await reading.sessions(self._clickhouse, before=before, limit=limit, parent=parent)

    async def session(self, session_id: str) -> StoredSession | None:
        """See :class:`Store`."""
        return await reading.session(self._clickhouse, session_id)

    async def family(self, session: StoredSession) -> Family:
        """See :class:`Store`."""
        return await reading.family(self._clickhouse, session)

    async def events(
        self, session: StoredSession, *, first: int = 0, limit: int = EVENTS_PAGE
    ) -> EventPage:
        """See :class:`Store`."""
        return await reading.events(self._clickhouse, session.id, first=first, limit=limit)

    async def check(self) -> None:
        """See :class:`Keeper`: whether there is an answer from the tables."""
        await reading.names(self._clickhouse, [""])

    async def _write(self, group: Sequence[Post]) -> list[Receipt]:
        """Insert what is not there, all or none as far as anybody can tell."""
        ids = {post.batch.session_id for post in group}
        last = {row.session_id: row.last_number for row in await self._known(ids)}
        keys = {_key_of(post) for post in group}
        receipts = {
            (row.session_id, row.batch_key): Receipt(
                row.accepted, _decode_rejections(row.rejected), duplicate=True
            )
            for row in await self._earlier(keys)
        }
        answers: list[Receipt] = []
        rows: list[tuple[Post, BatchRow]] = []
        arrivals: list[_Arrival] = []
        for post in group:
            batch = post.batch
            key = _key_of(post)
            if key in receipts:
                answers.append(receipts[key])
                continue
            answers.append(Receipt(len(batch.events), batch.rejected))
            receipts[key] = Receipt(len(batch.events), batch.rejected, duplicate=True)
            now = self._clock()
            number = self._number(now, after=last.get(batch.session_id, 0))
            if batch.session_id not in last:
                arrivals.append(_Arrival(number, batch.session_id))
            last[batch.session_id] = number
            rows.append(
                (post, batch_row(post, key=key[1], number=number, received=int(now * 1000)))
            )
        if rows:
            await self._insert(rows, arrivals)
        return answers

    async def _insert(
        self, rows: Sequence[tuple[Post, BatchRow]], arrivals: Sequence[_Arrival]
    ) -> None:
        children = [_Child(row.parent, row.session_id) for _, row in rows if row.parent]
        events = [
            event
            for post, row in rows
            for event in event_rows(post, key=row.batch_key, number=row.number)
        ]
        insert = self._clickhouse.insert
        await insert("events", events)
        if arrivals:
            await insert("arrivals", arrivals)
        if children:
            await insert("children", children)
        await insert("batches", [row for _, row in rows])

    async def _known(self, ids: set[str]) -> list[_Known]:
        return await self._clickhouse.rows(
            _Known,
            "SELECT session_id, max(number) AS last_number FROM batches"
            f" WHERE session_id IN {reading.listed(sorted(ids))} GROUP BY session_id",
        )

    async def _earlier(self, keys: set[tuple[str, str]]) -> list[_Earlier]:
        pairs = ", ".join(f"({literal(a)}, {literal(b)})" for a, b in sorted(keys))
        return await self._clickhouse.rows(
            _Earlier,
            "SELECT session_id, batch_key, accepted, rejected FROM batches"
            f" WHERE (session_id, batch_key) IN ({pairs})",
        )

    def _number(self, now: float, *, after: int) -> int:
        """Later than all that came before, here and in the same session anywhere."""
        self._last_number = max(int(now * 1_000_000), self._last_number + 1, after + 1)
        return self._last_number


def _key_of(post: Post) -> tuple[str, str]:
    assert post.key is not None
    return post.batch.session_id, post.key


def _random_key() -> str:
    return token_hex(16)


@asynccontextmanager
async def open_clickhouse(
    url: str,
    *,
    clock: Callable[[], float] = time.time,
    new_key: Callable[[], str] = _random_key,
    gap: float = INSERT_GAP,
    timeout: float = TIMEOUT,
    transport: Transport | None = None,
) -> AsyncGenerator[ClickHouseStore]:
    """Open the store in the database at *url*; it and its tables are made if they are not there.

    Args:
        url: ``clickhouse+http://[user:password@]host[:port]/database``, or ``https``.
        clock: gives the seconds since the epoch.
        new_key: gives a text that is unique for all time.
        gap: seconds between two inserts, at least.
        timeout: seconds for an answer of ClickHouse.
        transport: makes requests; HTTP, if None. It is closed at the end.

    Raises:
        StoreError: it cannot be reached, or used as a store.
    """
    address = address_of(url)
    clickhouse = ClickHouse(address, transport or await open_transport(address), timeout=timeout)
    try:
        await prepare(clickhouse)
        yield ClickHouseStore(clickhouse, clock=clock, new_key=new_key, gap=gap)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE):
            await clickhouse.aclose()
