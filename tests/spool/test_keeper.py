"""The keeper between sessions and the disk: when it writes, and what it books meanwhile."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest
import structlog
import trio
import trio.testing

from trimaran._diagnostics import Diagnostics
from trimaran._pipeline import wire
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._spool.disk import PATIENCE, REST
from trimaran._spool.file import SpoolFile
from trimaran._spool.keeper import CLOSE_GRACE, SpoolKeeper
from trimaran._spool.lock import lives
from trimaran._spool.values import SpoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_Result = TypeVar("_Result")

CONTEXT = wire.Context(session_id="s")
MOST_BYTES = 10_000


class Disk:
    """Runs calls right here, and counts them; may be slow to say that one is done."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.failure: SpoolError | None = None

    async def __call__(self, call: Callable[[], _Result], /) -> _Result:
        """Run *call*. A checkpoint."""
        self.calls += 1
        if self.failure is not None:
            await trio.sleep(self.seconds)
            raise self.failure
        result = call()
        await trio.sleep(self.seconds)
        return result


class World:
    """A spool in a directory, and the books of one session."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[SpoolFile] = []
        self.time = 5000.0
        self.disk = Disk()
        self.ledger = Ledger()
        self.keeper = self.kept_by("me", self.disk)

    def kept_by(self, owner: str, disk: Disk | None = None) -> SpoolKeeper:
        """The keeper of a process."""
        file = SpoolFile(
            self._directory,
            owner=owner,
            destination="anonymous https://x.test",
            most_bytes=MOST_BYTES,
            most_seconds=100.0,
            survives="kill",
            wall_clock=lambda: self.time,
        )
        self._files.append(file)
        return SpoolKeeper(
            file,
            run=Disk() if disk is None else disk,
            now=trio.current_time,
            diagnostics=Diagnostics(trio.current_time),
        )

    async def put(self, *keys: str, size: int = 2) -> list[Batch]:
        """Keep batches of two events each, tracked in the books."""
        batches = [batch_of(key, size=size) for key in keys]
        self.ledger.track(2 * len(batches))
        return await self.keeper.keep(batches, self.ledger)

    def fate(self, batch: Batch, *, delivered: bool) -> None:
        """Book what became of a batch, as the sender does."""
        assert batch.kept is not None
        if delivered:
            self.ledger.deliver(batch.tracked)
        else:
            self.ledger.drop(DropReason.REJECTED, batch.tracked)
        batch.kept.is_delivered = delivered
        batch.kept.decided(batch.tracked)

    def rows(self) -> list[str]:
        """The keys on disk, in their order."""
        with sqlite3.connect(self._directory / "spool.db") as database:
            rows = database.execute("SELECT key FROM batches ORDER BY position, key").fetchall()
        database.close()
        return [key for (key,) in rows]

    def books(self) -> tuple[int, int, dict[str, int]]:
        """Pending, spooled, dropped; after a look at the equation."""
        books = self.ledger.statistics()
        assert books.tracked == books.delivered + books.dropped_total + books.pending
        return books.pending, books.spooled, dict(books.dropped)

    def close(self) -> None:
        """Let go of all files."""
        for file in self._files:
            file.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A spool that is closed after the test."""
    made = World(tmp_path / "state")
    yield made
    made.close()


def batch_of(key: str, *, size: int = 2) -> Batch:
    """A batch of two events whose body has *size* bytes and a little more."""
    events = [b'"a"', b'"' + b"b" * size + b'"']
    return Batch(key=key, body=wire.body(CONTEXT, events, timestamp=7), events=2, size=size)


async def test_what_was_delivered_leaves_with_the_eighth(world: World) -> None:
    """One transaction for eight, while others wait; the disk is not touched before that."""
    batches = await world.put(*"abcdefghij")
    calls = world.disk.calls

    left: list[int] = []
    for batch in batches:
        world.fate(batch, delivered=True)
        await world.keeper.remove(batch)
        left.append(len(world.rows()))

    assert left == [10, 10, 10, 10, 10, 10, 10, 2, 2, 0]  # the last waits for no other
    assert world.disk.calls == calls + 2


async def test_what_was_delivered_leaves_with_the_next_that_is_put(world: World) -> None:
    """In the same transaction, and is then forgotten."""
    first, _ = await world.put("a", "b")
    world.fate(first, delivered=True)
    await world.keeper.remove(first)
    assert world.rows() == ["a", "b"]
    calls = world.disk.calls

    await world.put("c")
    assert world.rows() == ["b", "c"]
    assert world.disk.calls == calls + 1

    # Somebody else's row of that name is not removed with the next: it is no more ours.
    with sqlite3.connect(world._directory / "spool.db") as database:
        database.execute("UPDATE batches SET key = 'a' WHERE key = 'b'")
    database.close()
    await world.put("d")
    assert world.rows() == ["a", "c", "d"]


async def test_what_was_dropped_leaves_at_once_and_takes_the_delivered_with_it(
    world: World,
) -> None:
    """A later process must not deliver it after others of its session."""
    first, second, _ = await world.put("a", "b", "c")
    world.fate(first, delivered=True)
    await world.keeper.remove(first)
    assert world.rows() == ["a", "b", "c"]
    world.fate(second, delivered=False)

    await world.keeper.remove(second)

    assert world.rows() == ["c"]


async def test_a_disk_that_fails_puts_the_removal_off(world: World) -> None:
    """It is made up for with the next that leaves."""
    first, second, _ = await world.put("a", "b", "c")
    world.disk.failure = SpoolError("full")
    world.fate(first, delivered=False)
    with structlog.testing.capture_logs() as logs:
        await world.keeper.remove(first)
    assert [line["event"] for line in logs] == ["telemetry spool failed"]
    assert world.rows() == ["a", "b", "c"]

    world.disk.failure = None
    world.fate(second, delivered=False)
    await world.keeper.remove(second)

    assert world.rows() == ["c"]


async def test_what_is_put_again_does_not_leave_with_what_was_decided_before(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Who put it did not hear that it was on disk, and puts it again; another leaves then."""
    [done] = await world.put("a")
    world.disk.seconds = 2 * PATIENCE
    [batch] = await world.put("b")
    assert batch.kept is None
    assert world.rows() == ["a", "b"]
    world.disk.seconds = 0.5
    await trio.sleep(REST)
    assert await world.keeper.body_of(msgspec.structs.replace(done, body=None))  # it is well again
    world.fate(done, delivered=False)
    again: list[Batch] = []

    async def put_again() -> None:
        again.extend(await world.keeper.keep([batch], world.ledger))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_again)
        await trio.sleep(0.25)
        nursery.start_soon(world.keeper.remove, done)

    assert again[0].kept is not None
    assert world.rows() == ["b"]
    assert world.books() == (2, 2, {"rejected": 2})


async def test_what_is_too_old_of_our_own_is_dropped_in_its_sessions_books(world: World) -> None:
    """Taking over looks at all that is old; what another book has is not booked again."""
    await world.put("a")
    [leaving] = await world.put("b")
    leaving.kept.is_being_sent = True  # type: ignore[union-attr]
    world.time += 1000
    leftovers = Ledger()

    assert await world.keeper.take_over(leftovers) == []

    assert world.rows() == []
    assert leftovers.statistics().tracked == 0
    # the request of the one under way is its fate; nothing of both is on disk any more
    assert world.books() == (2, 0, {"expired": 2})


async def test_what_is_too_old_of_a_dead_process_is_dropped_in_the_books_of_leftovers(
    world: World,
) -> None:
    """They were in the books of a process that is gone."""
    dead = world.kept_by("dead")
    await dead.keep([batch_of("a"), batch_of("b")], Ledger())
    world._files.pop().close()
    world.time += 1000
    leftovers = Ledger()

    assert await world.keeper.take_over(leftovers) == []

    books = leftovers.statistics()
    assert (books.tracked, books.pending, books.dropped) == (4, 0, {"expired": 4})


async def test_consent_that_goes_while_a_batch_is_put_takes_it(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The disk was emptied meanwhile: the batch is dropped for that, and has no place there."""
    world.disk.seconds = 1.0
    kept: list[Batch] = []

    async def put() -> None:
        kept.extend(await world.put("a"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await trio.sleep(0.5)
        await world.keeper.withdraw()

    [batch] = kept
    assert world.rows() == []
    assert batch.kept is None  # it goes on from memory, to the sender, who asks for consent
    assert world.books() == (2, 0, {})


async def test_consent_that_goes_while_leftovers_are_taken_over_takes_them(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """They are counted as what they are, and never sent."""
    dead = world.kept_by("dead")
    await dead.keep([batch_of("a")], Ledger())
    world._files.pop().close()
    world.disk.seconds = 1.0
    taken: list[Batch] = []

    async def take_over() -> None:
        taken.extend(await world.keeper.take_over(world.ledger))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        await trio.sleep(0.5)
        await world.keeper.withdraw()

    assert world.rows() == []
    assert world.books() == (0, 0, {"consent_withdrawn": 2})
    [batch] = taken
    assert await world.keeper.body_of(batch) is None


async def test_a_batch_without_room_for_itself_goes_on_from_memory(world: World) -> None:
    """The disk let go of all that was there before, for which that is the fate."""
    await world.put("a")
    [batch] = await world.put("b", size=2 * MOST_BYTES)

    assert batch.kept is None
    assert batch.body
    assert world.rows() == []
    assert world.books() == (2, 0, {"spool_full": 2})


async def test_what_makes_room_for_others_is_dropped(world: World) -> None:
    """Also when its session hears of it later: that it was put is no protection."""
    size = MOST_BYTES // 3
    [first] = await world.put("a", size=size)
    await world.put("b", "c", size=size)

    assert world.rows() == ["b", "c"]
    assert first.kept is not None
    assert not first.kept.is_on_disk
    assert await world.keeper.body_of(msgspec.structs.replace(first, body=None)) is None
    assert world.books() == (4, 4, {"spool_full": 2})


async def test_halves_take_the_place_of_the_whole(world: World) -> None:
    """The books move from the one to the others, which are under way as it was."""
    [whole] = await world.put("a")
    await world.keeper.body_of(whole)

    first, second = await world.keeper.split(whole, *whole.halves())

    assert world.rows() == ["a.0", "a.1"]
    assert world.books() == (2, 2, {})
    for half in (first, second):
        assert half.kept is not None
        assert half.kept.is_being_sent
    await world.keeper.withdraw()
    assert world.books() == (2, 0, {})  # both are the sender's to decide


async def test_the_last_half_waits_for_no_other(world: World) -> None:
    """With it all of the batch is off the disk; the whole, which it was part of, is no more."""
    [whole] = await world.put("a")
    await world.keeper.body_of(whole)

    for half in await world.keeper.split(whole, *whole.halves()):
        world.fate(half, delivered=True)
        await world.keeper.remove(half)

    assert world.rows() == []
    assert world.books() == (0, 0, {})


async def test_what_a_put_that_nobody_waited_for_evicted_is_booked_with_the_next_halves(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The one under way is the sender's to decide; what waited is dropped for what took it."""
    size = MOST_BYTES // 3
    whole, _, _ = await world.put("a", "b", "c", size=size // 2)
    await world.keeper.body_of(whole)
    world.disk.seconds = 1.0
    with trio.move_on_after(0.5):
        await world.put("d", size=2 * size)
    assert world.rows() == ["c", "d"]

    first, second = await world.keeper.split(whole, *whole.halves())

    assert (first.kept, second.kept) == (whole.kept, whole.kept)
    assert world.books() == (6, 2, {"spool_full": 2})


async def test_halves_of_a_whole_that_a_person_removed_are_sent_from_memory(world: World) -> None:
    """It was under way, so its removal is not its fate; on disk there is nothing of it."""
    [whole] = await world.put("a")
    await world.keeper.body_of(whole)
    with sqlite3.connect(world._directory / "spool.db") as database:
        database.execute("DELETE FROM batches")
    database.close()

    first, second = await world.keeper.split(whole, *whole.halves())

    assert (first.kept, second.kept) == (whole.kept, whole.kept)
    assert whole.kept is not None
    assert not whole.kept.is_on_disk
    assert world.rows() == []
    assert world.books() == (2, 0, {})


async def test_a_waiting_batch_that_a_person_removed_is_dropped(world: World) -> None:
    """Nobody else takes away what is ours."""
    [batch] = await world.put("a")
    with sqlite3.connect(world._directory / "spool.db") as database:
        database.execute("DELETE FROM batches")
    database.close()

    assert await world.keeper.body_of(msgspec.structs.replace(batch, body=None)) is None
    assert world.books() == (0, 0, {"consent_withdrawn": 2})
    await world.keeper.withdraw()
    assert world.books() == (0, 0, {"consent_withdrawn": 2})  # and not twice


async def test_what_was_decided_and_not_yet_removed_leaves_at_the_end(world: World) -> None:
    """A later process would send it once more, for nothing."""
    first, _ = await world.put("a", "b")
    world.fate(first, delivered=True)
    await world.keeper.remove(first)
    assert world.rows() == ["a", "b"]

    await world.keeper.aclose()

    assert world.rows() == ["b"]


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """A tenth of a second, also for a host that is cancelled."""
    await world.put("a")
    world.disk.seconds = 1000.0
    began = trio.current_time()
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.keeper.aclose()

    assert scope.cancelled_caught
    assert trio.current_time() - began == pytest.approx(CLOSE_GRACE)


async def test_a_disk_that_hung_lets_go_of_the_file_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Another telemetry of the same process may then have what is there."""
    directory = tmp_path / "state"

    def file_of(owner: str) -> SpoolFile:
        return SpoolFile(
            directory,
            owner=owner,
            destination="anonymous https://x.test",
            most_bytes=MOST_BYTES,
            most_seconds=100.0,
            survives="kill",
            wall_clock=lambda: 5000.0,
        )

    hanging: list[Callable[[], object]] = []
    hangs = False

    async def run(call: Callable[[], _Result], /) -> _Result:
        if hangs:
            hanging.append(call)
            await trio.sleep_forever()
        return call()

    keeper = SpoolKeeper(
        file_of("me"), run=run, now=trio.current_time, diagnostics=Diagnostics(trio.current_time)
    )
    [batch] = await keeper.keep([batch_of("a")], Ledger())
    hangs = True
    with trio.move_on_after(1):
        await keeper.body_of(msgspec.structs.replace(batch, body=None))
    await keeper.aclose()
    assert lives(directory, "me")

    under_way, _closing = hanging  # one call after the other: the second never began
    under_way()

    assert not lives(directory, "me")
    later = file_of("later")
    taken, _ = later.take_over()
    assert [row.key for row in taken] == ["a"]
    later.close()


async def test_what_a_put_that_nobody_waited_for_evicted_is_booked_at_the_end(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The disk did its work all the same: what it let go of is not on disk any more."""
    size = MOST_BYTES // 3
    await world.put("a", "b", size=size)
    world.disk.seconds = 1.0
    with trio.move_on_after(0.5) as scope:
        await world.put("c", size=size)
    assert scope.cancelled_caught
    assert world.rows() == ["b", "c"]
    assert world.books() == (6, 4, {})
    world.disk.seconds = 0.0

    await world.keeper.aclose()

    assert world.books() == (4, 2, {"spool_full": 2})


async def test_what_comes_onto_the_disk_too_late_leaves_it_again(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """It went on from memory meanwhile: a later process would send it once more."""
    world.disk.seconds = 2 * PATIENCE
    [batch] = await world.put("a")
    assert batch.kept is None
    assert batch.body
    assert world.rows() == ["a"]
    assert world.books() == (2, 0, {})
    world.disk.seconds = 0.0
    [batch] = await world.put("b")  # the disk is left alone for now
    assert batch.kept is None
    await trio.sleep(REST)

    await world.put("c")

    assert world.rows() == ["c"]


async def test_only_what_is_ours_is_removed(world: World) -> None:
    """Somebody else's batch of the same key is not."""
    other = world.kept_by("other")
    [batch] = await other.keep([batch_of("a")], Ledger())

    await world.keeper.remove(batch)

    assert world.rows() == ["a"]
