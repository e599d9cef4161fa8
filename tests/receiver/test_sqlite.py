"""The store in a file, where it differs from others: the disk, its locks, the file itself."""

import resource
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from receiver.batches import batch, numbers
from trimaran.receiver import StoreError, StoreUnavailable
from trimaran.receiver.database import APPLICATION_ID, MIGRATIONS
from trimaran.receiver.sqlite import open_sqlite


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process that writes to the file and does not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond *size* bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def modes_in(directory: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


async def test_posts_at_the_same_time_share_a_transaction(tmp_path: Path) -> None:
    """A hundred of them do not wait for the disk a hundred times; each keeps its order."""
    statements: list[str] = []
    async with open_sqlite(tmp_path / "s.sqlite") as store:
        store._connection.set_trace_callback(statements.append)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(store.append, batch(number, session_id=str(number % 2)))

        assert statements.count("COMMIT") <= 2
        everything = await numbers(store, "0") + await numbers(store, "1")
        assert sorted(everything) == list(range(100))


class Rounds(trio.abc.Instrument):
    """Counts the rounds in which trio runs whatever can go on."""

    def __init__(self) -> None:
        self.number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_those_whose_posts_are_written_are_told_together(tmp_path: Path) -> None:
    """The last of a hundred learns of it when the first does, not one by one after it."""
    rounds = Rounds()
    told: list[int] = []

    async def append(number: int) -> None:
        await store.append(batch(number))
        told.append(rounds.number)

    async with open_sqlite(tmp_path / "s.sqlite") as store:
        trio.lowlevel.add_instrument(rounds)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(append, number)
        trio.lowlevel.remove_instrument(rounds)

    assert len(told) == 100
    assert max(told) - min(told) <= 1  # the one who wrote, then all others at once


async def test_when_the_writer_is_cancelled_another_writes(tmp_path: Path) -> None:
    """Those who wait for it do not wait for ever, and what left the line is not stored."""
    writer = trio.CancelScope()

    async def append(number: int) -> None:
        with writer if number == 0 else trio.CancelScope():
            await store.append(batch(number))

    async with open_sqlite(tmp_path / "s.sqlite") as store:
        threads = trio.to_thread.current_default_thread_limiter()
        places = int(threads.total_tokens)
        await trio.testing.wait_all_tasks_blocked()
        for place in range(places):
            threads.acquire_on_behalf_of_nowait(place)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(append, number)
                await trio.testing.wait_all_tasks_blocked()
            writer.cancel()  # while it waits for a thread to write in
            await trio.testing.wait_all_tasks_blocked()
            for place in range(places):
                threads.release_on_behalf_of(place)

        assert await numbers(store) == [1, 2]
        assert store._line.waiting == []


async def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """What agents do is nobody else's business; nor is what SQLite keeps beside it."""
    async with open_sqlite(tmp_path / "s.sqlite") as store:
        await store.append(batch(0))

        assert set(modes_in(tmp_path)) == {"s.sqlite", "s.sqlite-wal", "s.sqlite-shm"}
        assert set(modes_in(tmp_path).values()) == {0o600}


async def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """2 is FULL: in WAL mode less would lose what was answered when the power goes."""
    async with open_sqlite(tmp_path / "s.sqlite") as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_locked_file_puts_off_and_recovers(tmp_path: Path) -> None:
    """Nothing is stored, the reason is given, and afterwards all is well; reading goes on."""
    path = tmp_path / "s.sqlite"
    async with open_sqlite(path, busy_timeout=0.01) as store:
        await store.append(batch(0))
        with held(path):
            with pytest.raises(StoreUnavailable, match=r"s\.sqlite: database is locked"):
                await store.append(batch(1))
            assert await numbers(store) == [0]
        await store.append(batch(2))

        assert await numbers(store) == [0, 2]


async def test_a_full_disk_puts_off_and_recovers(tmp_path: Path) -> None:
    """All who wrote together are put off together, and nothing of them is stored."""
    failed: list[str] = []

    async def append(number: int) -> None:
        try:
            await store.append(batch(number, "x" * 100_000))
        except StoreUnavailable as error:
            failed.append(str(error))

    async with open_sqlite(tmp_path / "s.sqlite") as store:
        await store.append(batch(0))
        with full_disk(150_000):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(append, number)
            assert await numbers(store) == [0]
        assert len(failed) == 3
        await store.append(batch(4))

        assert await numbers(store) == [0, 4]


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_was_taken_away_is_noticed(tmp_path: Path, replaced: bool) -> None:
    """Nothing is written to a file that nobody will find again, nor read from another."""
    path = tmp_path / "s.sqlite"
    async with open_sqlite(path) as store:
        await store.append(batch(0))
        path.unlink()
        if replaced:
            path.touch()

        with pytest.raises(StoreUnavailable, match="was removed or replaced"):
            await store.append(batch(1))
        with pytest.raises(StoreUnavailable):
            await store.check()


async def test_a_bug_fails_the_one_who_meets_it(tmp_path: Path) -> None:
    """The next ones in line are written all the same, and nothing is left half done."""
    ticks = iter([1.0])

    def clock() -> float:
        if value := next(ticks, None):
            return value
        if failures:
            raise failures.pop()
        return 2.0

    failures = [ZeroDivisionError("first"), ZeroDivisionError("second")]
    met: list[str] = []

    async def append(number: int) -> None:
        try:
            await store.append(batch(number))
        except ZeroDivisionError as error:
            met.append(str(error))

    async with open_sqlite(tmp_path / "s.sqlite", clock=clock) as store:
        await store.append(batch(0))
        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                nursery.start_soon(append, number)

        assert met == ["second", "first"]
        assert len(await numbers(store)) == 4
        assert store._line.waiting == []


async def test_a_cancelled_post_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    """One that was being written is there; one that still waited leaves the line."""
    path = tmp_path / "s.sqlite"
    scopes = [trio.CancelScope() for _ in range(3)]

    async def append(number: int) -> None:
        with scopes[number]:
            await store.append(batch(number))

    async with open_sqlite(path) as store:
        async with trio.open_nursery() as nursery:
            with held(path):
                for number in range(3):
                    nursery.start_soon(append, number)
                    await trio.testing.wait_all_tasks_blocked()
                scopes[0].cancel()
                scopes[1].cancel()
                await trio.testing.wait_all_tasks_blocked()

        assert await numbers(store) == [0, 2]
        assert store._line.waiting == []


async def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    """Also when everything is cancelled: the transaction ends, then the file is closed."""
    path = tmp_path / "s.sqlite"
    with trio.CancelScope() as scope:
        async with open_sqlite(path) as store, trio.open_nursery() as nursery:
            await store.append(batch(0))
            with held(path):
                nursery.start_soon(store.append, batch(1))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    assert list(modes_in(tmp_path)) == ["s.sqlite"]
    async with open_sqlite(path) as store:
        assert await numbers(store) == [0, 1]


async def test_the_file_can_be_read_with_any_tool(tmp_path: Path) -> None:
    """A view takes the batches apart into events."""
    async with open_sqlite(tmp_path / "s.sqlite", clock=lambda: 2.5) as store:
        await store.append(batch(7, 8))
        await store.append(batch("é"))
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as connection:
        rows = connection.execute(
            "SELECT session_id, position, type, timestamp, received,"
            " json_extract(event, '$.n') FROM events ORDER BY position"
        ).fetchall()

    assert rows == [
        ("s", 0, "n", 1, 2500, 7),
        ("s", 1, "n", 1, 2500, 8),
        ("s", 2, "n", 1, 2500, "é"),
    ]


async def test_a_store_tells_its_file(tmp_path: Path) -> None:
    """In its repr, for whoever debugs."""
    async with open_sqlite(tmp_path / "s.sqlite") as store:
        assert repr(store) == f"<SqliteStore {str(tmp_path / 's.sqlite')!r}>"


async def refused(path: Path) -> str:
    """The reason why the file cannot be opened, which also says which file."""
    with pytest.raises(StoreError) as caught:
        async with open_sqlite(path, busy_timeout=0.01):
            pass
    reason = str(caught.value)
    assert str(path) in reason
    return reason


async def test_a_later_version_is_refused(tmp_path: Path) -> None:
    """It is left as it was: a later Trimaran knows what to do with it."""
    path = tmp_path / "s.sqlite"
    async with open_sqlite(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()

    assert "was written by a later version of Trimaran (its schema is 3" in await refused(path)
    assert path.read_bytes() == before


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Whether it says whose it is or not; it is left as it was."""
    path = tmp_path / "s.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    before = path.read_bytes()

    assert "is a database of another program" in await refused(path)
    assert path.read_bytes() == before

    with closing(sqlite3.connect(tmp_path / "t.sqlite")) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID + 1}")
    assert "is a database of another program" in await refused(tmp_path / "t.sqlite")


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A text, a directory, a file in a directory that is not there, a locked file."""
    text = tmp_path / "notes.txt"
    text.write_text("Not a database, and longer than the header of one. " * 20)

    assert "file is not a database" in await refused(text)
    assert "unable to open database file" in await refused(tmp_path)
    assert "No such file" in await refused(tmp_path / "nowhere" / "s.sqlite")

    async with open_sqlite(tmp_path / "s.sqlite"):
        pass
    with held(tmp_path / "s.sqlite"):
        assert "database is locked" in await refused(tmp_path / "s.sqlite")
