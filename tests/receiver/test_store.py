"""The store keeps what it was given, once, in order, and says so only when it is on disk."""

import json
import resource
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trimaran.receiver.database import APPLICATION_ID, MIGRATIONS
from trimaran.receiver.ingest import Batch, Rejection, parse
from trimaran.receiver.limits import MAX_PAGE_BYTES
from trimaran.receiver.store import (
    Receipt,
    Store,
    StoredSession,
    StoreError,
    StoreUnavailable,
    open_store,
)


def batch(*numbers: Any, session_id: str = "s") -> Batch:
    """A batch of events that are told apart by their numbers; None makes a bad one."""
    events = [
        {"type": "n" if number is not None else "", "timestamp": 1, "n": number}
        for number in numbers
    ]
    return parse(json.dumps({"session_id": session_id, "timestamp": 1, "events": events}).encode())


async def found(store: Store, session_id: str = "s") -> StoredSession:
    session = await store.session(session_id)
    assert session is not None
    return session


async def numbers(store: Store, session_id: str = "s", *, limit: int = 1000) -> list[Any]:
    """The numbers of all events of a session, page by page."""
    session = await found(store, session_id)
    seen: list[Any] = []
    first: int | None = 0
    while first is not None:
        page = await store.events(session, first=first, limit=limit)
        assert page.first == first == len(seen)
        assert len(page.events) <= limit
        seen += [json.loads(bytes(event))["n"] for event in page.events]
        first = page.next
    return seen


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


async def test_what_is_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    """Events in order, and the summary of their session."""
    async with open_store(tmp_path / "s.sqlite", clock=lambda: 1.5) as store:
        assert await store.append(batch(0, 1, 2)) == Receipt(3, ())
        assert await store.append(batch(3, 4)) == Receipt(2, ())
    async with open_store(tmp_path / "s.sqlite") as store:
        assert await numbers(store) == [0, 1, 2, 3, 4]
        summary = (await found(store)).summary
        assert summary.event_count == 5
        assert summary.events_by_type == {"n": 5}
        assert summary.received == 1500


async def test_bad_events_are_told_and_not_stored(tmp_path: Path) -> None:
    """The good ones of the same batch are."""
    async with open_store(tmp_path / "s.sqlite") as store:
        receipt = await store.append(batch(0, None, 1))

        assert receipt.accepted == 2
        assert [rejection.index for rejection in receipt.rejected] == [1]
        assert await numbers(store) == [0, 1]


async def test_a_batch_of_bad_events_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not even its session."""
    async with open_store(tmp_path / "s.sqlite") as store:
        with trio.testing.assert_checkpoints():
            receipt = await store.append(batch(None), "key")

        assert receipt == Receipt(0, (Rejection(0, "Expected `str` of length >= 1 - at `$.type`"),))
        assert await store.session("s") is None


async def test_a_repeated_key_stores_once(tmp_path: Path) -> None:
    """And gets the first answer again, whatever the repetition carries."""
    async with open_store(tmp_path / "s.sqlite") as store:
        first = await store.append(batch(0, None), "key")
        again = await store.append(batch(0, 1, 2), "key")

        assert again == Receipt(first.accepted, first.rejected, duplicate=True)
        assert await numbers(store) == [0]


async def test_a_key_is_of_its_session(tmp_path: Path) -> None:
    """Two senders that count from 1 do not get into each other's way."""
    async with open_store(tmp_path / "s.sqlite") as store:
        await store.append(batch(0, session_id="a"), "1")
        await store.append(batch(1, session_id="b"), "1")
        await store.append(batch(2, session_id="b"), "2")

        assert await numbers(store, "a") == [0]
        assert await numbers(store, "b") == [1, 2]


async def test_without_a_key_every_batch_is_stored(tmp_path: Path) -> None:
    """Two that are alike are two."""
    async with open_store(tmp_path / "s.sqlite") as store:
        await store.append(batch(0))
        await store.append(batch(0))

        assert await numbers(store) == [0, 0]


async def test_a_key_holds_over_a_restart_and_within_a_group(tmp_path: Path) -> None:
    """A repetition may come at the same time as the first, or a day later."""
    async with open_store(tmp_path / "s.sqlite") as store, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(store.append, batch(0), "key")
    async with open_store(tmp_path / "s.sqlite") as store:
        await store.append(batch(0), "key")

        assert await numbers(store) == [0]


async def test_posts_at_the_same_time_share_a_transaction(tmp_path: Path) -> None:
    """A hundred of them do not wait for the disk a hundred times; each keeps its order."""
    statements: list[str] = []
    async with open_store(tmp_path / "s.sqlite") as store:
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

    async with open_store(tmp_path / "s.sqlite") as store:
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

    async with open_store(tmp_path / "s.sqlite") as store:
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
        assert store._waiting == []


async def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """What agents do is nobody else's business; nor is what SQLite keeps beside it."""
    async with open_store(tmp_path / "s.sqlite") as store:
        await store.append(batch(0))

        assert set(modes_in(tmp_path)) == {"s.sqlite", "s.sqlite-wal", "s.sqlite-shm"}
        assert set(modes_in(tmp_path).values()) == {0o600}


async def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """2 is FULL: in WAL mode less would lose what was answered when the power goes."""
    async with open_store(tmp_path / "s.sqlite") as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_sessions_come_newest_first_by_pages(tmp_path: Path) -> None:
    """Every session is on one page, in the reverse order of first arrival."""
    async with open_store(tmp_path / "s.sqlite") as store:
        for name in "abcde":
            await store.append(batch(0, session_id=name))
        await store.append(batch(1, session_id="a"))
        pages: list[str] = []
        page = await store.sessions(limit=2)
        while True:
            pages.append("".join(session.id for session in page.sessions))
            if page.next is None:
                break
            page = await store.sessions(before=page.next, limit=2)

    assert pages == ["ed", "cb", "a"]


async def test_a_page_that_is_just_full_is_the_last(tmp_path: Path) -> None:
    """Nobody is sent to a page with nothing on it."""
    async with open_store(tmp_path / "s.sqlite") as store:
        assert (await store.sessions()).sessions == ()
        await store.append(batch(0, 1, session_id="a"))
        await store.append(batch(0, session_id="b"))

        assert (await store.sessions(limit=2)).next is None
        assert (await store.events(await found(store, "a"), limit=2)).next is None


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
async def test_events_come_in_order_whatever_the_page(tmp_path: Path, limit: int) -> None:
    """Pages begin and end within batches."""
    async with open_store(tmp_path / "s.sqlite") as store:
        for start in (0, 3, 4, 8):
            await store.append(batch(*range(start, {0: 3, 3: 4, 4: 8, 8: 9}[start])))
            await store.append(batch("other", session_id="t"))

        assert await numbers(store, limit=limit) == list(range(9))


async def test_beyond_the_last_event_there_is_none(tmp_path: Path) -> None:
    """A cursor from elsewhere does no harm."""
    async with open_store(tmp_path / "s.sqlite") as store:
        await store.append(batch(0))
        page = await store.events(await found(store), first=2**63 - 1)

    assert page.events == ()
    assert page.next is None


async def test_a_page_of_large_events_ends_early(tmp_path: Path) -> None:
    """It never holds much more than its bound in bytes, but always one event."""
    large = ["x" * (MAX_PAGE_BYTES // 3)] * 4
    async with open_store(tmp_path / "s.sqlite") as store:
        for value in [*large, "x" * (MAX_PAGE_BYTES + 1)]:
            await store.append(batch(value))
        session = await found(store)
        lengths = [len((await store.events(session, first=first)).events) for first in range(5)]

    assert lengths == [2, 2, 2, 1, 1]


async def test_a_locked_file_puts_off_and_recovers(tmp_path: Path) -> None:
    """Nothing is stored, the reason is given, and afterwards all is well; reading goes on."""
    path = tmp_path / "s.sqlite"
    async with open_store(path, busy_timeout=0.01) as store:
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

    async with open_store(tmp_path / "s.sqlite") as store:
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
    async with open_store(path) as store:
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

    async with open_store(tmp_path / "s.sqlite", clock=clock) as store:
        await store.append(batch(0))
        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                nursery.start_soon(append, number)

        assert met == ["second", "first"]
        assert len(await numbers(store)) == 4
        assert store._waiting == []


async def test_a_cancelled_post_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    """One that was being written is there; one that still waited leaves the line."""
    path = tmp_path / "s.sqlite"
    scopes = [trio.CancelScope() for _ in range(3)]

    async def append(number: int) -> None:
        with scopes[number]:
            await store.append(batch(number))

    async with open_store(path) as store:
        async with trio.open_nursery() as nursery:
            with held(path):
                for number in range(3):
                    nursery.start_soon(append, number)
                    await trio.testing.wait_all_tasks_blocked()
                scopes[0].cancel()
                scopes[1].cancel()
                await trio.testing.wait_all_tasks_blocked()

        assert await numbers(store) == [0, 2]
        assert store._waiting == []


async def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    """Also when everything is cancelled: the transaction ends, then the file is closed."""
    path = tmp_path / "s.sqlite"
    with trio.CancelScope() as scope:
        async with open_store(path) as store, trio.open_nursery() as nursery:
            await store.append(batch(0))
            with held(path):
                nursery.start_soon(store.append, batch(1))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    assert list(modes_in(tmp_path)) == ["s.sqlite"]
    async with open_store(path) as store:
        assert await numbers(store) == [0, 1]


async def test_the_file_can_be_read_with_any_tool(tmp_path: Path) -> None:
    """A view takes the batches apart into events."""
    async with open_store(tmp_path / "s.sqlite", clock=lambda: 2.5) as store:
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
    async with open_store(tmp_path / "s.sqlite") as store:
        assert repr(store) == f"<Store {str(tmp_path / 's.sqlite')!r}>"


async def refused(path: Path) -> str:
    """The reason why the file cannot be opened, which also says which file."""
    with pytest.raises(StoreError) as caught:
        async with open_store(path, busy_timeout=0.01):
            pass
    reason = str(caught.value)
    assert str(path) in reason
    return reason


async def test_a_later_version_is_refused(tmp_path: Path) -> None:
    """It is left as it was: a later Trimaran knows what to do with it."""
    path = tmp_path / "s.sqlite"
    async with open_store(path):
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

    async with open_store(tmp_path / "s.sqlite"):
        pass
    with held(tmp_path / "s.sqlite"):
        assert "database is locked" in await refused(tmp_path / "s.sqlite")


async def test_two_receivers_may_share_a_file(tmp_path: Path) -> None:
    """Positions go on where the other one left off, and keys count for both."""
    path = tmp_path / "s.sqlite"
    async with open_store(path) as one, open_store(path) as other:
        await one.append(batch(0), "a")
        await other.append(batch(1), "b")
        await other.append(batch(0), "a")
        await one.append(batch(2), "c")

        assert await numbers(other) == [0, 1, 2]
