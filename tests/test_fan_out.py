"""Where the ways to several destinations part: who is waited for, who sheds, what is counted."""

from __future__ import annotations

from random import Random

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran import Command, DropReason, ErrorEvent, Event, SessionEnd, Settings
from trimaran._pipeline.encoder import encode_fast
from trimaran._pipeline.entry import Chunk, Entry, Flush
from trimaran._pipeline.fan_out import Branch, FanOut
from trimaran._pipeline.ledger import Ledger
from trimaran._pipeline.memory import MemoryBudget


class Parting:
    """A fan-out with its branches and books, and events by number."""

    def __init__(self, *, ways: int = 2, limit: int = 1 << 40, **limits: int | str) -> None:
        chosen = Settings(**limits)  # type: ignore[arg-type]
        self.intake = Ledger()
        self.books = [Ledger() for _ in range(ways)]
        self.budgets = [MemoryBudget(limit) for _ in range(ways)]
        self.branches = [
            Branch(chosen, ledger=books, budget=budget, wall_clock=lambda: 0.0)
            for books, budget in zip(self.books, self.budgets, strict=True)
        ]
        self.released = 0
        self.fan_out = FanOut(
            self.branches,
            intake=self.intake,
            release=self._release,
            event_bytes=chosen.event_bytes,
        )
        self._number = 0

    def _release(self, size: int) -> None:
        self.released += size

    def entry(
        self, event: Event | None = None, *, is_encoded: bool = True, size: int = 100
    ) -> Entry:
        """The next entry of the session."""
        self._number += 1
        self.intake.track()
        event = Command(command_name=str(self._number)) if event is None else event
        encoded = encode_fast(event) if is_encoded else None
        return Entry(self._number, 0.0, event, encoded, size)

    def chunk(self, number: int, *, size: int = 100) -> Chunk:
        """So many entries."""
        return Chunk([self.entry(size=size) for _ in range(number)])

    def adds_up(self) -> bool:
        """The ledger's equation, in the intake and at each end; and nothing lies between."""
        each = [self.intake, *self.books]
        return all(
            books.tracked == books.delivered + sum(books.dropped.values()) + books.pending
            for books in each
        ) and all(books.tracked == self.intake.delivered for books in self.books)


async def numbers_in(branch: Branch) -> list[int]:
    """What a branch hands on next."""
    return [entry.number for entry in (await branch.receive()).entries]


async def test_all_get_the_same_entries() -> None:
    """The very same objects, and what they were charged with in common is free."""
    parting = Parting(ways=3)
    chunk = parting.chunk(5)
    await parting.fan_out.send(chunk)

    assert parting.released == 500
    for branch in parting.branches:
        taken = await branch.receive()
        assert all(a is b for a, b in zip(taken.entries, chunk.entries, strict=True))
    assert parting.adds_up()


async def test_what_masking_changed_is_encoded_once() -> None:
    """What has no plain JSON form, or is too large, is left to each destination."""

    class Odd(Event, frozen=True):
        value: object = None

    parting = Parting(event_bytes=200)
    plain = parting.entry(is_encoded=False)
    odd = parting.entry(Odd(value=object()), is_encoded=False)
    large = parting.entry(Odd(value="x" * 300), is_encoded=False)
    await parting.fan_out.send(Chunk([plain, odd, large]))

    first, second = [(await branch.receive()).entries for branch in parting.branches]
    assert first[0].encoded is second[0].encoded is not None
    assert [entry.encoded for entry in first[1:]] == [None, None]


async def test_one_that_is_full_sheds_by_its_policy() -> None:
    """Routine events before urgent ones, the oldest first, for itself alone."""
    parting = Parting(mailbox_events=3)
    slow, quick = parting.branches
    await parting.fan_out.send(
        Chunk([parting.entry(ErrorEvent(error_name="E")), *parting.chunk(2).entries])
    )
    quick.release(100 * len(await numbers_in(quick)))
    await parting.fan_out.send(parting.chunk(2))

    assert await numbers_in(slow) == [1, 4, 5]
    assert await numbers_in(quick) == [4, 5]
    assert parting.books[0].dropped == {DropReason.MAILBOX_FULL: 2}
    assert parting.books[1].dropped == {}
    assert parting.adds_up()


async def test_the_quickest_is_waited_for_also_by_those_with_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Full for a moment, it gets what comes as soon as it has room, and sheds nothing."""
    parting = Parting(mailbox_events=3)
    quick, slow = parting.branches
    await parting.fan_out.send(parting.chunk(3))
    await numbers_in(slow)  # it has room, and all of it is still on its way
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parting.fan_out.send, parting.chunk(1))
        await trio.testing.wait_all_tasks_blocked()
        assert parting.intake.delivered == 3
        assert await numbers_in(quick) == [1, 2, 3]

    assert await numbers_in(quick) == [4]
    assert not any(books.dropped for books in parting.books)


async def test_a_few_bytes_less_on_the_way_do_not_make_one_the_quickest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Which has them may be chance; who is much ahead is waited for, and alone."""
    parting = Parting(mailbox_events=3)
    _, second = parting.branches
    await parting.fan_out.send(Chunk([parting.entry(size=101), *parting.chunk(2).entries]))
    await numbers_in(second)
    second.release(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parting.fan_out.send, parting.chunk(1))
        await trio.testing.wait_all_tasks_blocked()
        assert parting.intake.delivered == 3
        second.release(200)
        await trio.testing.wait_all_tasks_blocked()

    assert await numbers_in(second) == [4]
    assert parting.books[0].dropped == {DropReason.MAILBOX_FULL: 1}


async def test_bytes_that_another_session_frees_are_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who waits is told of it."""
    parting = Parting(limit=100)
    for budget in parting.budgets:
        budget.used = 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parting.fan_out.send, parting.chunk(1))
        await trio.testing.wait_all_tasks_blocked()
        assert parting.intake.delivered == 0
        parting.budgets[1].release(100)

    assert await numbers_in(parting.branches[1]) == [1]
    assert parting.books[0].dropped == {DropReason.MAILBOX_FULL: 1}


async def test_the_end_of_a_session_is_taken_without_room() -> None:
    """Once: the host may track such events, too, and memory is bounded all the same."""
    parting = Parting(limit=1_000, mailbox_policy="drop_newest")
    full, quick = parting.branches
    parting.budgets[0].used = 1_000
    parting.budgets[1].limit = 1 << 40
    ends = [parting.entry(SessionEnd(duration_ms=1)) for _ in range(3)]
    await parting.fan_out.send(Chunk([*ends, parting.entry()]))

    assert (len(full), len(quick)) == (1, 4)
    assert await numbers_in(full) == [1]
    assert parting.books[0].dropped == {DropReason.MAILBOX_FULL: 3}
    assert parting.adds_up()


async def test_a_cancel_leaves_what_waits_in_the_books_of_the_intake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What was handed on is at the ends, whole."""
    parting = Parting(mailbox_events=3)
    with trio.move_on_after(1) as scope:
        await parting.fan_out.send(parting.chunk(5))

    assert scope.cancelled_caught
    assert (parting.intake.delivered, parting.intake.pending) == (3, 2)
    assert parting.adds_up()


async def test_a_flush_is_reached_when_every_part_of_it_is() -> None:
    """In any order; and of all of them no more than the last is kept."""
    parting = Parting(ways=3)
    for _ in range(50):
        flush = Flush(0)
        await parting.fan_out.send(Chunk(parting.chunk(1).entries, [flush]))
        for branch in reversed(parting.branches):
            assert not flush.is_reached
            (part,) = (await branch.receive()).flushes
            part.reach()
            part.reach()
        assert flush.is_reached
    assert [len(branch._outstanding) for branch in parting.branches] == [1, 1, 1]


async def test_an_end_that_is_over_reaches_its_part_of_a_flush() -> None:
    """The parts that wait there, and those that come."""
    parting = Parting()
    broken, healthy = parting.branches
    before, after = Flush(0), Flush(0)
    await parting.fan_out.send(Chunk(parting.chunk(1).entries, [before]))
    broken.break_off()
    await parting.fan_out.send(Chunk(parting.chunk(1).entries, [after]))
    for _ in range(2):
        for part in (await healthy.receive()).flushes:
            part.reach()

    assert before.is_reached
    assert after.is_reached
    assert parting.books[0].dropped == {DropReason.BUG: 1}
    assert parting.books[0].pending == 1  # what was there is its end's to close


async def test_closed_it_closes_every_branch() -> None:
    """What waits is handed on, and then the end."""
    parting = Parting()
    await parting.fan_out.send(parting.chunk(2))
    await parting.fan_out.aclose()

    for branch in parting.branches:
        assert [len(chunk.entries) async for chunk in branch] == [2]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    ways=st.integers(2, 4),
    capacity=st.integers(1, 12),
    limit=st.sampled_from([100, 450, 2_000, 1 << 40]),
    policy=st.sampled_from(["drop_oldest", "drop_newest"]),
    speeds=st.lists(st.sampled_from([0.01, 0.3, 1.0]), min_size=4, max_size=4),
)
def test_whatever_happens_the_books_add_up_and_the_quickest_loses_nothing(  # noqa: PLR0917 - what may differ
    seed: int, ways: int, capacity: int, limit: int, policy: str, speeds: list[float]
) -> None:
    """Readers of any speed, some of which stop or break; one that never waits loses nothing."""
    random = Random(seed)

    async def main() -> None:
        parting = Parting(ways=ways, limit=limit, mailbox_events=capacity, mailbox_policy=policy)
        got: list[list[int]] = [[] for _ in range(ways)]

        async def read(way: int) -> None:
            branch, books = parting.branches[way], parting.books[way]
            async for chunk in branch:
                assert parting.adds_up()
                await trio.sleep(0 if way == 0 else speeds[way])
                for entry in chunk.entries:
                    got[way].append(entry.number)
                    books.deliver(1)
                    branch.release(entry.size)
                for flush in chunk.flushes:
                    flush.reach()
                if way and random.random() < 0.05:
                    branch.break_off()
                    books.close(DropReason.BUG)
                    return

        flushes: list[Flush] = []
        async with trio.open_nursery() as nursery:
            for way in range(ways):
                nursery.start_soon(read, way)
            for _ in range(30):
                chunk = parting.chunk(random.randrange(6), size=random.randrange(80, 101))
                flush = Flush(0)
                flushes.append(flush)
                await parting.fan_out.send(Chunk(chunk.entries, [flush]))
                assert parting.adds_up()
            await parting.fan_out.aclose()

        assert parting.adds_up()
        assert all(flush.is_reached for flush in flushes)
        assert all(numbers == sorted(set(numbers)) for numbers in got)
        assert all(books.pending == 0 for books in parting.books)
        assert all(budget.used == 0 for budget in parting.budgets)
        assert parting.books[0].dropped == {}
        assert len(got[0]) == parting.intake.tracked == parting.intake.delivered

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_send_is_a_checkpoint() -> None:
    """However much room there is."""
    parting = Parting()
    with trio.testing.assert_checkpoints():
        await parting.fan_out.send(parting.chunk(1))
