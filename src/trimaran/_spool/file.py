"""A queue of batches in one SQLite file, shared by the processes of a user and app.

In: finished batches. Out: the same batches, also to a later process.
Does not know: tasks, sessions, what a batch says. Blocking: call it from a thread.

Every batch has an owner, the process that will send it. An owner holds a lock on a file
of its own for as long as it lives; the kernel lets go of it in every way to die, so who
gets that lock may take over what the dead owner left. A batch is bound to a destination,
and only taken over for that.

The file is in WAL mode: what is committed survives the process being killed with
``synchronous=NORMAL``, and a power loss with ``FULL`` (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from trimaran._pipeline.ledger import DropReason
from trimaran._settings import Spool, Survives
from trimaran._spool.lock import OwnerLock
from trimaran._spool.values import AND, Binding, Evicted, Kept, SpoolBusy, SpoolError, worked_out

__all__ = [
    "BUSY_TIMEOUT",
    "FILE_NAME",
    "SpoolFile",
    "known_version",
    "make_private",
    "spool_directory",
    "state_directory",
]

BUSY_TIMEOUT = 1.0
"""Seconds to wait for another process that writes; its transactions take milliseconds."""

_YOUNG = 60.0
"""Seconds for which a lock file is left alone, whoever holds it."""

_EXPIRY_SLACK = 0.001
"""How much longer than its time a batch may be kept, as a part of that: ten minutes of a week."""

FILE_NAME = "spool.db"

_VERSIONS = (
    """
CREATE TABLE batches (
    key TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    owner TEXT NOT NULL,
    destination TEXT NOT NULL,
    created REAL NOT NULL,
    events INTEGER NOT NULL,
    reports INTEGER NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX batches_position ON batches (position, key);
CREATE INDEX batches_owner ON batches (owner, position, key);
CREATE TABLE totals (bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0);
CREATE TRIGGER batches_added AFTER INSERT ON batches
BEGIN UPDATE totals SET bytes = bytes + NEW.size; END;
CREATE TRIGGER batches_removed AFTER DELETE ON batches
BEGIN UPDATE totals SET bytes = bytes - OLD.size; END;
""",
    """
ALTER TABLE batches ADD COLUMN handed_by TEXT NOT NULL DEFAULT '';
""",
    """
ALTER TABLE batches ADD COLUMN parent_session_id TEXT NOT NULL DEFAULT '';
""",
    """
ALTER TABLE batches ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
""",
)
"""What makes each version of the tables out of the one before; the first out of nothing."""

SCHEMA_VERSION = len(_VERSIONS)


def spool_directory(app: str, spool: Spool) -> Path:
    """Where an app's spool lies: as set, or in the user's state directory.

    Raises:
        SpoolError: there is none, and nothing is set.
    """
    if spool.directory is not None:
        return Path(spool.directory)
    return state_directory(app) / "telemetry"


def state_directory(app: str) -> Path:
    """The state directory that the user has for *app*; it need not be there.

    Raises:
        SpoolError: the user has none, as in a container that knows nobody of that uid.
    """
    try:
        directory = platformdirs.user_state_path(app, appauthor=False)
    except (RuntimeError, OSError, ValueError) as error:
        raise SpoolError(f"{error}; say which directory to use") from None
    # What there is of a home directory that could not be found would begin in the current one.
    if not directory.is_absolute():
        raise SpoolError(f"{directory} is not an absolute path; say which directory to use")
    return directory


def known_version(database: sqlite3.Connection, path: Path) -> int:
    """The version of the tables in a file; 0 if there are none yet.

    Raises:
        SpoolError: it is of a version to come.
    """
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        message = f"{path}: was written by a newer version of trimaran; update this one"
        raise SpoolError(message)
    return version


class SpoolFile:
    """One process's hold on the queue of a directory.

    Args:
        directory: where it lies; made if need be, for its user alone (0700, files 0600).
        owner: unique over all processes of all time.
        destination: what batches are bound to: the tier, the URL and the account; worked out
            when the file is opened.
        most_bytes: of all bodies together, of all processes.
        most_seconds: that a batch is kept.
        survives: what a batch that was put survives.
        wall_clock: seconds since the epoch.
        evicts: whether the oldest make room for what comes; if not, what has no room is not
            kept, and that is an error.
    """

    def __init__(
        self,
        directory: Path,
        *,
        owner: str,
        destination: Binding,
        most_bytes: int,
        most_seconds: float,
        survives: Survives,
        wall_clock: Callable[[], float],
        evicts: bool = True,
    ) -> None:
        self._directory = directory
        self._owner = owner
        self._binding = destination
        self._destination = ""
        """What that comes to, once the file is open."""
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._synchronous = "FULL" if survives == "power_loss" else "NORMAL"
        self._wall_clock = wall_clock
        self._evicts = evicts
        self._expired_at = -math.inf
        """When it was last looked for what is too old, in seconds since the epoch."""
        self._database: sqlite3.Connection | None = None
        self._lock: OwnerLock | None = None
        self._identity: os.stat_result | None = None
        """What the file at its path was when it was opened."""
        self.losses: int = 0
        """How often the file was removed while it was open, with all that was in it."""

    @contextmanager
    def together(self) -> Generator[None]:
        """Make one transaction of the calls in a block: the disk is waited for once.

        Raises:
            SpoolError: none of them counts.
        """
        with self._transaction():
            yield

    def put(
        self,
        key: str,
        body: bytes,
        *,
        events: int,
        reports: int,
        handed_by: str = "",
        parent_session_id: str = "",
        traceparent: str = "",
    ) -> list[Evicted]:
        """Keep a batch; what had to make room for it, or was too old, is told.

        Only this process's own batches make room, the oldest first; a batch that has no
        room even so is among those told, and not kept. One of this process's own that has
        the key stays as it is: whoever put it did not hear of it.

        Raises:
            SpoolError: it is not kept.
        """
        with self._transaction() as database:
            now = self._wall_clock()
            evicted = self._expired(database, self._owner) if self._may_have_expired(now) else []
            put = database.execute(
                "INSERT INTO batches"
                " (key, position, owner, destination, created, events, reports, size, body,"
                " handed_by, parent_session_id, traceparent)"
                " SELECT ?, coalesce(max(position), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
                " FROM batches WHERE true"
                " ON CONFLICT (key) DO UPDATE SET handed_by = excluded.handed_by"
                " WHERE owner = excluded.owner AND destination = excluded.destination",
                (
                    key,
                    self._owner,
                    self._destination,
                    now,
                    events,
                    reports,
                    len(body),
                    body,
                    handed_by,
                    parent_session_id,
                    traceparent,
                ),
            )
            if put.rowcount == 0:
                raise SpoolError(f"{self._directory / FILE_NAME}: has another batch of that key")
            while database.execute("SELECT bytes FROM totals").fetchone()[0] > self._most_bytes:
                if not self._evicts:
                    raise SpoolError(f"{self._directory / FILE_NAME}: is full")
                oldest = self._removed(
                    database,
                    DropReason.SPOOL_FULL,
                    "key = (SELECT key FROM batches WHERE owner = ? ORDER BY position, key)",
                    self._owner,
                )
                if not oldest:
                    break
                evicted += oldest
        return evicted

    def is_elsewhere(self, key: str) -> bool:
        """Whether another process has that batch on disk, for the same destination.

        Raises:
            SpoolError: it cannot be seen.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT 1 FROM batches WHERE key = ? AND owner != ? AND destination = ?",
                (key, self._owner, self._destination),
            ).fetchone()
        return row is not None

    def read(self, key: str) -> bytes | None:
        """A kept batch's body; None when it is not there any more.

        Raises:
            SpoolError: it cannot be read.
        """
        if not self._is_there():
            return None
        with self._errors_told():
            row = (
                self._opened().execute("SELECT body FROM batches WHERE key = ?", (key,)).fetchone()
            )
        return None if row is None else row[0]

    def remove(self, keys: Sequence[str]) -> None:
        """The fate of batches is known: they leave the disk.

        Raises:
            SpoolError: they stay, and will be sent once more with the same keys.
        """
        if not self._is_there():
            return
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM batches WHERE key = ? AND owner = ?",
                [(key, self._owner) for key in keys],
            )

    def also_handed_by(self, handed_by: str, keys: Sequence[str]) -> None:
        """Batches, or the parts that there are of them, are somebody's too from now on.

        Raises:
            SpoolError: they are not.
        """
        with self._transaction() as database:
            database.executemany(
                # The key of a part is that of the whole, a point, and its number.
                "UPDATE batches SET handed_by = handed_by || ?"
                " WHERE key = ? OR (key > ? AND key < ?)",
                [(AND + handed_by, key, f"{key}.", f"{key}/") for key in keys],
            )

    def split(self, key: str, halves: Sequence[tuple[str, bytes, int, int]]) -> bool:
        """Put *halves* (key, body, events, reports) in the place of a batch, in its order.

        Their keys follow its own in order. False, and nothing is done, if it is not there
        any more.

        Raises:
            SpoolError: the whole stays.
        """
        if not self._is_there():
            return False
        with self._transaction() as database:
            for half, body, events, reports in halves:
                database.execute(
                    "INSERT OR IGNORE INTO batches (key, position, owner, destination, created,"
                    " events, reports, size, body, handed_by, parent_session_id, traceparent)"
                    " SELECT ?, position, owner, destination, created, ?, ?, ?, ?, handed_by,"
                    " parent_session_id, traceparent FROM batches WHERE key = ?",
                    (half, events, reports, len(body), body, key),
                )
            return database.execute("DELETE FROM batches WHERE key = ?", (key,)).rowcount > 0

    def take_over(self) -> tuple[list[Kept], list[Evicted]]:
        """Own what dead processes left for this destination, in the order it was put; and
        what was too old of all that they left, for which nobody may ever come.

        Raises:
            SpoolError: nothing was taken over.
        """
        if not self._is_there():
            return [], []
        with self._transaction() as database:
            owners = database.execute(
                "SELECT DISTINCT owner FROM batches WHERE owner != ?", (self._owner,)
            ).fetchall()
            taken: list[Kept] = []
            evicted: list[Evicted] = []
            for (owner,) in owners:
                lock = OwnerLock.seized(self._directory, owner)
                if lock is None:
                    continue
                taken += [
                    Kept(
                        key=key,
                        events=events,
                        reports=reports,
                        handed_by=handed_by,
                        parent_session_id=parent,
                        traceparent=traceparent,
                    )
                    for key, events, reports, handed_by, parent, traceparent in database.execute(
                        "SELECT key, events, reports, handed_by, parent_session_id, traceparent"
                        " FROM batches WHERE owner = ? AND destination = ?"
                        " ORDER BY position, key",
                        (owner, self._destination),
                    )
                ]
                database.execute(
                    "UPDATE batches SET owner = ? WHERE owner = ? AND destination = ?",
                    (self._owner, owner, self._destination),
                )
                evicted += self._expired(database, owner)
                left = database.execute(
                    "SELECT 1 FROM batches WHERE owner = ?", (owner,)
                ).fetchone()
                lock.release(remove=left is None)
            evicted += self._expired(database, self._owner)
        self._remove_old_locks()
        gone = {each.key for each in evicted}
        return [row for row in taken if row.key not in gone], evicted

    def _remove_old_locks(self) -> None:
        """Remove the lock files of owners that died and left nothing."""
        for path in self._directory.glob("*.lock"):
            # What was taken over is ours already, whatever becomes of the others' files.
            with suppress(OSError, sqlite3.Error):
                # A young one may belong to a process that is about to lock it.
                if path.stat().st_mtime < self._wall_clock() - _YOUNG:
                    lock = OwnerLock.seized(self._directory, path.stem)
                    if lock is not None:
                        try:
                            owns = self._opened().execute(
                                "SELECT 1 FROM batches WHERE owner = ?", (path.stem,)
                            )
                            lock.release(remove=owns.fetchone() is None)
                        finally:
                            lock.release(remove=False)

    def destinations(self) -> list[str]:
        """What batches are bound to, of all owners; in the order of their first ones.

        Raises:
            SpoolError: it cannot be read.
        """
        with self._errors_told():
            rows = self._opened().execute(
                "SELECT destination FROM batches GROUP BY destination ORDER BY min(position)"
            )
            return [destination for (destination,) in rows]

    def withdraw(self, handed_by: str | None = None) -> None:
        """Consent is gone: nothing of this process, or of dead ones, stays for its destination.

        Of what was *handed_by* somebody, if that is said, whoever did so too; whichever process
        had it then, since no two of them keep what others handed over at the same time. It is
        overwritten, also in SQLite's log unless another process is at work on that.

        Raises:
            SpoolError: it stays on disk, unsent.
        """
        if not self._is_there():
            return
        if handed_by is None:
            self.take_over()
        with self._errors_told():
            self._opened().execute("PRAGMA secure_delete = ON")
        with self._transaction() as database:
            mine, value = (
                ("owner = ?", self._owner)
                if handed_by is None
                else (f"instr('{AND}' || handed_by || '{AND}', ?)", AND + handed_by + AND)
            )
            database.execute(
                f"DELETE FROM batches WHERE destination = ? AND {mine}",  # noqa: S608 - ours
                (self._destination, value),
            )
        with self._errors_told():
            self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def forked(self) -> None:
        """This is a forked child's copy. The connection is kept, and of no use: SQLite does not
        let go of its parent's locks, whatever becomes of it here.
        """
        if self._lock is not None:
            self._lock.forked()

    def close(self) -> None:
        """Let go; what is kept stays for a later process."""
        with suppress(OSError):
            self._let_go_if_removed()
        if self._database is not None:
            with suppress(sqlite3.Error):
                left = self._database.execute(
                    "SELECT 1 FROM batches WHERE owner = ?", (self._owner,)
                ).fetchone()
                if self._lock is not None:
                    self._lock.release(remove=left is None)
            self._database.close()
            self._database = None
        if self._lock is not None:
            self._lock.release(remove=False)
            self._lock = None

    def _is_there(self) -> bool:
        """Whether anybody put anything yet: to find nothing, no file is made."""
        with self._errors_told():
            self._let_go_if_removed()
            return self._database is not None or (self._directory / FILE_NAME).exists()

    def _let_go_if_removed(self) -> None:
        """A file that was removed is still written to, by whoever has it open, for nobody."""
        if self._database is None or self._database.in_transaction:
            return
        assert self._identity is not None
        with suppress(FileNotFoundError):
            if os.path.samestat((self._directory / FILE_NAME).stat(), self._identity):
                return
        self.losses += 1
        with suppress(sqlite3.Error):
            self._database.close()
        self._database = None
        if self._lock is not None:
            self._lock.release(remove=False)
            self._lock = None

    def _may_have_expired(self, now: float) -> bool:
        """Whether it is time to look for what is too old, which looks at every batch."""
        return abs(now - self._expired_at) >= self._most_seconds * _EXPIRY_SLACK

    def _expired(self, database: sqlite3.Connection, owner: str) -> list[Evicted]:
        """Remove what is too old, of this process or a dead one."""
        self._expired_at = self._wall_clock()
        return self._removed(
            database,
            DropReason.EXPIRED,
            "owner = ? AND created < ?",
            owner,
            self._wall_clock() - self._most_seconds,
        )

    @staticmethod
    def _removed(
        database: sqlite3.Connection, reason: DropReason, which: str, *values: object
    ) -> list[Evicted]:
        rows = database.execute(
            f"DELETE FROM batches WHERE {which} RETURNING key, events - reports",  # noqa: S608 - *which* is ours
            values,
        ).fetchall()
        return [Evicted(key=key, events=events, reason=reason) for key, events in rows]

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._errors_told():
            database = self._opened()
            if database.in_transaction:
                yield database
                return
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors_told(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            message = f"{self._directory / FILE_NAME}: {error}"
            # Its lowest byte says what is wrong, the others say more of it.
            is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            raise (SpoolBusy if is_busy else SpoolError)(message) from error

    def _opened(self) -> sqlite3.Connection:
        self._let_go_if_removed()
        if self._database is None:
            self._destination = worked_out(self._binding)
            make_private(self._directory)
            self._lock = self._lock or OwnerLock.taken(self._directory, self._owner)
            path = self._directory / FILE_NAME
            database = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(database, path)
            except BaseException:
                database.close()
                raise
            self._identity = path.stat()
            self._database = database
        return self._database

    def _prepare(self, database: sqlite3.Connection, path: Path) -> None:
        database.execute("PRAGMA schema_version")  # makes the file, if there is none
        # SQLite gives the files beside it the same mode. It was not made by ourselves: when
        # a process closes a file, it loses the locks of its other connections to it
        # (https://sqlite.org/howtocorrupt.html, 2.2).
        path.chmod(0o600)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {self._synchronous}")
        # Some systems have it on: to overwrite what is deleted takes as long as to write it.
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("BEGIN IMMEDIATE")
        for version in _VERSIONS[known_version(database, path) :]:
            for statement in version.strip().split(";\n"):
                if statement:
                    database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")


def make_private(directory: Path) -> None:
    """Make *directory*, or check that nobody else can write to it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name == "posix":
        status = directory.stat()
        if status.st_uid != os.geteuid():
            message = f"{directory}: belongs to another user"
            raise SpoolError(message)
        if status.st_mode & 0o077:
            directory.chmod(0o700)
