"""The store's SQLite file: how it is opened, what is in it, which versions there are.

In: a path.
Out: a connection to a file of the newest schema, or a :class:`StoreError`.
Does not know: what is written and read.
"""

import sqlite3
from pathlib import Path

from trimaran.receiver.store import StoreError

__all__ = ["open_reader", "open_writer"]

APPLICATION_ID = 0x54524D4E  # "TRMN", in the file's header: whose file it is

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE sessions (
            number INTEGER PRIMARY KEY,  -- in the order of first arrival
            id TEXT NOT NULL UNIQUE,
            summary TEXT NOT NULL  -- JSON
        )
        """,
        """
        CREATE TABLE batches (
            session INTEGER NOT NULL REFERENCES sessions (number),
            first INTEGER NOT NULL,  -- the position in its session of the first event
            accepted INTEGER NOT NULL,  -- how many events there are
            received INTEGER NOT NULL,  -- ms since the epoch, by the receiver's clock
            key TEXT,  -- the sender's idempotency key
            rejected TEXT NOT NULL,  -- JSON: index and reason of each event not accepted
            events TEXT NOT NULL  -- JSON: the events as they came
        )
        """,
        "CREATE UNIQUE INDEX batches_in_order ON batches (session, first)",
        "CREATE UNIQUE INDEX batches_by_key ON batches (session, key) WHERE key IS NOT NULL",
        """
        CREATE VIEW events AS
        SELECT
            sessions.id AS session_id,
            batches.first + event.key AS position,
            json_extract(event.value, '$.type') AS type,
            json_extract(event.value, '$.timestamp') AS timestamp,
            batches.received AS received,
            event.value AS event
        FROM sessions
        JOIN batches ON batches.session = sessions.number
        JOIN json_each(batches.events) AS event
        """,
    ),
    (
        "ALTER TABLE sessions ADD COLUMN parent TEXT",  # the id of the session it works for
        "CREATE INDEX sessions_by_parent ON sessions (parent) WHERE parent IS NOT NULL",
    ),
)
"""The statements that lead from each version of the schema to the next."""

_WAL_LIMIT = 64 * 1024 * 1024  # bytes that the log keeps on disk between checkpoints


def open_writer(path: Path, *, busy_timeout: float) -> sqlite3.Connection:
    """Open the file at *path* for writing; make it, or bring its schema up to date.

    A new file can be read by its owner only. The connection waits *busy_timeout*
    seconds for a file that another process holds, and leaves transactions to its user.

    Raises:
        StoreError: The file cannot be opened, is not a store, or is one of a later
            version. It has not been changed then.
    """
    try:
        path.touch(mode=0o600)
        connection = sqlite3.connect(
            path, timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: {error}") from error
    try:
        _bring_up_to_date(connection, path)
        # In WAL mode, FULL is what makes a commit wait until the disk has it; NORMAL
        # would only keep the file sound, and lose what was answered with a 200 when
        # the power goes.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    except sqlite3.Error as error:
        connection.close()
        raise StoreError(f"{path}: {error}") from error
    except StoreError:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the file at *path* for reading only.

    Raises:
        sqlite3.OperationalError: The file is not there or cannot be read.
    """
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
    for migration in MIGRATIONS[_version(connection, path) :]:
        for statement in migration:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the schema in the file, 0 for an empty file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (things,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application, version, things) != (0, 0, 0):
        raise StoreError(f"{path}: is a database of another program")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path}: was written by a later version of Trimaran (its schema is {version},"
            f" the newest one known here is {len(MIGRATIONS)})"
        )
    return int(version)
