"""A store in one SQLite file: sessions and their batches.

In: validated batches.
Out: a receipt once a batch is on disk; sessions and events, page by page.
Does not know: HTTP, how a batch is validated, how a session is shown.

A batch is stored as it came, as one row that holds the JSON of its good events, so
that a post costs one insert however many events it carries; the summary of its
session is brought up to date in the same transaction. The view ``events`` takes the
rows apart again, for whoever opens the file with a tool of their own.

All writing goes through one connection, one transaction at a time. Posts that come
in while a transaction runs are written together by the next one, so that they share
one wait for the disk. Every read has a connection of its own: in WAL mode readers
and the writer do not wait for each other.
"""

import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from trimaran.receiver import sessions
from trimaran.receiver.database import open_reader, open_writer
from trimaran.receiver.ingest import Batch, Rejection
from trimaran.receiver.limits import EVENTS_PAGE, MAX_CURSOR, MAX_PAGE_BYTES, SESSIONS_PAGE
from trimaran.receiver.line import Line, Post
from trimaran.receiver.store import StoreUnavailable
from trimaran.receiver.summary import Summary, add
from trimaran.receiver.values import EventPage, Family, Receipt, SessionPage, StoredSession

__all__ = ["SqliteStore", "open_sqlite"]

BUSY_TIMEOUT = 5.0  # s; how long another process may hold the file before posts are put off
_READERS = 4  # threads that read at the same time

_T = TypeVar("_T")
_decode_rejections = msgspec.json.Decoder(tuple[Rejection, ...]).decode
_decode_events = msgspec.json.Decoder(list[msgspec.Raw]).decode


class SqliteStore:
    """One SQLite file. Made by :func:`open_sqlite`, used from one trio run.

    Reads and writes wait for the disk in a thread; every async method is a checkpoint.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, clock: Callable[[], float]
    ) -> None:
        self.path = path
        self._clock = clock
        self._connection = connection  # used by whoever writes, and no one else
        self._file = _identity(path)
        self._line = Line(self._write_in_thread)
        self._readers = trio.CapacityLimiter(_READERS)

    def __repr__(self) -> str:
        return f"<SqliteStore {str(self.path)!r}>"

    @property
    def where(self) -> str:
        """The file."""
        return str(self.path)

    async def append(
        self, batch: Batch, key: str | None = None, *, parent: str | None = None
    ) -> Receipt:
        """See :class:`Keeper`; once this has returned, the batch is on disk."""
        return await self._line.append(batch, key, parent)

    async def sessions(
        self,
        *,
        before: int = MAX_CURSOR,
        limit: int = SESSIONS_PAGE,
        parent: str | None = None,
    ) -> SessionPage:
        """See :class:`Store`."""
        return await self._read(
            partial(sessions.sessions, before=before, limit=limit, parent=parent)
        )

    async def session(self, session_id: str) -> StoredSession | None:
        """See :class:`Store`."""
        return await self._read(partial(sessions.session, session_id=session_id))

    async def family(self, session: StoredSession) -> Family:
        """See :class:`Store`."""
        return await self._read(partial(sessions.family, of=session))

    async def events(
        self, session: StoredSession, *, first: int = 0, limit: int = EVENTS_PAGE
    ) -> EventPage:
        """See :class:`Store`."""

        def query(connection: sqlite3.Connection) -> EventPage:
            rows = connection.execute(
                "SELECT first, events FROM batches WHERE session = ? AND first >="
                " (SELECT max(first) FROM batches WHERE session = ? AND first <= ?)"
                " ORDER BY first",
                (session.number, session.number, first),
            )
            found: list[msgspec.Raw] = []
            size = 0
            for start, text in rows:
                for event in _decode_events(text)[max(0, first - start) :]:
                    size += memoryview(event).nbytes
                    if len(found) == limit or (found and size > MAX_PAGE_BYTES):
                        return EventPage(first, tuple(found), first + len(found))
                    found.append(event)
            return EventPage(first, tuple(found), None)

        return await self._read(query)

    async def check(self) -> None:
        """See :class:`Keeper`: whether the file can be read."""
        await self.sessions(limit=1)

    async def aclose(self) -> None:
        """Close the file, after what is being written; also when cancelled.

        That takes as long as another process holds the file, 5 s at most by default.
        """
        with trio.CancelScope(shield=True):
            await self._line.until_written()
            with self._line.alone():
                await trio.to_thread.run_sync(self._connection.close)

    async def _read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        def run() -> _T:
            try:
                with closing(open_reader(self.path)) as connection:
                    return query(connection)
            except sqlite3.OperationalError as error:
                raise StoreUnavailable(f"{self.path}: {error}") from error

        return await trio.to_thread.run_sync(run, limiter=self._readers)

    async def _write_in_thread(self, group: Sequence[Post]) -> list[Receipt]:
        try:
            return await trio.to_thread.run_sync(self._write, group)
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def _write(self, group: Sequence[Post]) -> list[Receipt]:
        """Write all of *group* in one transaction, or nothing. Runs in a thread."""
        if _identity(self.path) != self._file:
            # SQLite would go on writing to a file that has no name any more.
            raise StoreUnavailable(f"{self.path}: was removed or replaced")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            receipts = [self._insert(post.batch, post.key, post.parent) for post in group]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends some by itself
                self._connection.execute("ROLLBACK")
            raise
        return receipts

    def _insert(self, batch: Batch, key: str | None, parent: str | None) -> Receipt:
        """Add one batch within the transaction that is under way."""
        execute = self._connection.execute
        known: tuple[int, str] | None = execute(
            "SELECT number, summary FROM sessions WHERE id = ?", (batch.session_id,)
        ).fetchone()
        if known is not None and key is not None:
            earlier: tuple[int, str] | None = execute(
                "SELECT accepted, rejected FROM batches WHERE session = ? AND key = ?",
                (known[0], key),
            ).fetchone()
            if earlier is not None:
                return Receipt(earlier[0], _decode_rejections(earlier[1]), duplicate=True)
        before = Summary() if known is None else sessions.decode_summary(known[1])
        received = int(self._clock() * 1000)
        summary = msgspec.json.encode(add(before, batch, received=received)).decode()
        if known is None:
            number = execute(
                "INSERT INTO sessions (id, summary, parent) VALUES (?, ?, ?)",
                (batch.session_id, summary, parent),
            ).lastrowid
        else:
            number = known[0]
            execute(
                "UPDATE sessions SET summary = ?, parent = coalesce(?, parent) WHERE number = ?",
                (summary, parent, number),
            )
        execute(
            "INSERT INTO batches (session, first, accepted, received, key, rejected, events)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                before.event_count,
                len(batch.events),
                received,
                key,
                msgspec.json.encode(batch.rejected).decode(),
                (b"[" + b",".join(event.raw for event in batch.events) + b"]").decode(),
            ),
        )
        return Receipt(len(batch.events), batch.rejected)


@asynccontextmanager
async def open_sqlite(
    path: str | os.PathLike[str],
    *,
    busy_timeout: float = BUSY_TIMEOUT,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[SqliteStore]:
    """Open the store in the file at *path*, which is made if it is not there.

    Args:
        path: Must be on a disk of this machine: SQLite's WAL mode does not work over
            a network.
        busy_timeout: Seconds to wait for another process that holds the file.
        clock: Gives the seconds since the epoch.

    Raises:
        StoreError: The file cannot be used as a store.
    """
    where = Path(path)
    connection = await trio.to_thread.run_sync(
        partial(open_writer, where, busy_timeout=busy_timeout)
    )
    store = SqliteStore(where, connection, clock)
    try:
        yield store
    finally:
        await store.aclose()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells one file from another of the same name; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
