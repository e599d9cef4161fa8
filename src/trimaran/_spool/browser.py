"""The spool as a person sees it: what waits and whose it is, and how to empty it.

In: a directory. Out: batches of all processes and destinations.
Does not know: sending. It owns nothing, makes no file, and takes nothing from an owner that
lives. Blocking.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from trimaran._spool.file import BUSY_TIMEOUT, FILE_NAME, known_version
from trimaran._spool.lock import OwnerLock, lives
from trimaran._spool.values import SpooledRow, SpoolError

__all__ = ["SpoolBrowser"]


class SpoolBrowser:
    """Looks into the queue of a directory, which need not be there.

    Every method opens the file anew, and raises :class:`SpoolError` when it cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def rows(self) -> list[SpooledRow]:
        """All that is kept, in the order in which it was put."""
        with self._opened("ro") as database:
            if database is None:
                return []
            found = database.execute(
                "SELECT key, owner, destination, created, events - reports, size"
                " FROM batches ORDER BY position, key"
            ).fetchall()
            alive = {owner: lives(self._directory, owner) for owner in {row[1] for row in found}}
        return [
            SpooledRow(
                key=key,
                owner=owner,
                is_owner_alive=alive[owner],
                destination=destination,
                created=created,
                events=events,
                size=size,
            )
            for key, owner, destination, created, events, size in found
        ]

    def read(self, key: str) -> bytes | None:
        """A batch's body, byte for byte as it is sent; None when it is not there."""
        with self._opened("ro") as database:
            if database is None:
                return None
            row = database.execute("SELECT body FROM batches WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def remove(self, rows: Iterable[SpooledRow]) -> list[SpooledRow]:
        """Remove *rows* whose owner is dead, and overwrite their bodies; gives those rows."""
        by_owner: dict[str, list[SpooledRow]] = {}
        for row in rows:
            by_owner.setdefault(row.owner, []).append(row)
        removed: list[SpooledRow] = []
        with self._opened("rw") as database:
            if database is not None:
                database.execute("PRAGMA secure_delete = ON")
                database.execute("BEGIN IMMEDIATE")
                for owner, its_rows in by_owner.items():
                    if self._removed(database, owner, its_rows):
                        removed += its_rows
                database.execute("COMMIT")
                _tidy(database)
        return removed

    def _removed(self, database: sqlite3.Connection, owner: str, rows: list[SpooledRow]) -> bool:
        """Whether *owner* is dead, and so its *rows* are removed."""
        lock = OwnerLock.seized(self._directory, owner)
        if lock is None:
            return False
        is_empty = False
        try:
            database.executemany(
                # Not by its key alone: somebody may have taken it over since it was looked at.
                "DELETE FROM batches WHERE key = ? AND owner = ?",
                [(row.key, owner) for row in rows],
            )
            left = database.execute("SELECT 1 FROM batches WHERE owner = ?", (owner,))
            is_empty = left.fetchone() is None
        finally:
            lock.release(remove=is_empty)
        return True

    @contextmanager
    def _opened(self, mode: str) -> Generator[sqlite3.Connection | None]:
        """The file, for a block; None where there is none, or nothing was ever kept in it."""
        path = self._directory / FILE_NAME
        try:
            if not path.exists():
                yield None
                return
            with closing(
                sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode={mode}",
                    uri=True,
                    timeout=BUSY_TIMEOUT,
                    isolation_level=None,
                )
            ) as database:
                yield database if known_version(database, path) else None
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"{path}: {error}") from error


def _tidy(database: sqlite3.Connection) -> None:
    """Leave nothing of what was removed on the disk, neither in SQLite's log nor, where the
    queue is empty now, as free room in the file. Others at work on the file go first.
    """
    with suppress(sqlite3.OperationalError):
        if database.execute("SELECT 1 FROM batches").fetchone() is None:
            database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
