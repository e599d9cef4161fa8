"""How sessions began, on disk, until their ends come.

In: for each session a few bytes that its beginning said. Out: the same, also to the next
receiver on the directory.
Does not know: what the bytes mean. Blocking: call it from a thread, one call at a time.

What is here is a convenience: a loss of power may cost the newest of it, and an error on the
disk costs no batch.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

__all__ = ["FILE_NAME", "MOST_SECONDS", "MOST_SESSIONS", "Beginnings"]

FILE_NAME = "beginnings.db"

MOST_SESSIONS = 100_000
"""Whose beginnings are kept, the newest: some 20 MB."""

MOST_SECONDS = 7 * 24 * 3600.0
"""That a beginning is kept; as long as an agent keeps the end, where it cannot send it."""

_BUSY_TIMEOUT = 1.0
"""Seconds to wait for another receiver that writes; its transactions take milliseconds."""

_TABLES = """
CREATE TABLE IF NOT EXISTS beginnings (
    position INTEGER PRIMARY KEY,
    session BLOB NOT NULL UNIQUE,
    noted REAL NOT NULL,
    said BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS beginnings_noted ON beginnings (noted);
"""


class Beginnings:
    """The beginnings in one directory, which is there.

    Nothing is opened before it is needed.

    Args:
        directory: where they lie, as a file for its user alone.
        wall_clock: seconds since the epoch.
    """

    def __init__(self, directory: Path, wall_clock: Callable[[], float]) -> None:
        self._path = directory / FILE_NAME
        self._wall_clock = wall_clock
        self._database: sqlite3.Connection | None = None

    def note(self, said: Mapping[str, bytes]) -> None:
        """Keep what beginnings *said*, by the ids of their sessions; the oldest make room.

        Raises:
            OSError: there is no such file, nor can there be one.
            sqlite3.Error: it is not kept.
        """
        now = self._wall_clock()
        with self._opened() as database:
            database.executemany(
                "INSERT OR REPLACE INTO beginnings (session, noted, said) VALUES (?, ?, ?)",
                [(_digest(session), now, text) for session, text in said.items()],
            )
            database.execute(
                "DELETE FROM beginnings WHERE noted < ?"
                " OR position <= (SELECT max(position) FROM beginnings) - ?",
                (now - MOST_SECONDS, MOST_SESSIONS),
            )

    def of(self, sessions: Iterable[str]) -> dict[str, bytes]:
        """What the beginnings of *sessions* said, as far as that is known.

        Raises:
            OSError: there is no such file, nor can there be one.
            sqlite3.Error: it cannot be read.
        """
        database = self._opened()
        found: dict[str, bytes] = {}
        for session in sessions:
            row = database.execute(
                "SELECT said FROM beginnings WHERE session = ?", (_digest(session),)
            ).fetchone()
            if row is not None:
                found[session] = row[0]
        return found

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.touch(mode=0o600)
            database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.executescript(_TABLES)
            except sqlite3.Error:
                database.close()
                raise
            self._database = database
        return self._database


def _digest(session: str) -> bytes:
    """What stands for an id, however long it is."""
    return hashlib.blake2b(session.encode(), digest_size=16).digest()
