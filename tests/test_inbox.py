from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

import trimaran
from patience import PATIENCE
from trimaran import DropReason, Settings
from trimaran._pipeline.inbox import Inbox
from trimaran._pipeline.ledger import Ledger
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.memory import MemoryBudget

THREADS = 8
EACH = 2000


class Mark(trimaran.Event, frozen=True):
    """An event that says which thread left it, and as which of its own."""

    thread: int = 0
    number: int = 0


class Broken(trimaran.Event, frozen=True):
    """An event of a class that fails where it should say whether it is urgent."""

    urgent: ClassVar[Any] = type("Never", (), {"__bool__": lambda _self: 1 / 0})()


class Side:
    """A session's inbox, mailbox and books."""

    def __init__(self, *, capacity: int = 100_000) -> None:
        self.ledger = Ledger()
        self.mailbox = Mailbox(
            Settings(mailbox_events=100_000),
            ledger=self.ledger,
            budget=MemoryBudget(1 << 40),
            wall_clock=lambda: 0.0,
        )
        self.inbox = Inbox(
            trio.lowlevel.current_trio_token(),
            mailbox=self.mailbox,
            ledger=self.ledger,
            capacity=capacity,
        )

    def leaves(self, *events: trimaran.Event, times: int = 1) -> Callable[[int], None]:
        """What a thread does that leaves *events* here, a number of *times*."""

        def leave(_thread: int) -> None:
            for _ in range(times):
                for event in events:
                    self.inbox.put(event, 0.0)

        return leave

    async def marks(self) -> list[Mark]:
        """What came into the mailbox, to the end of it."""
        self.mailbox.close()
        return [
            entry.event
            async for chunk in self.mailbox
            for entry in chunk.entries
            if isinstance(entry.event, Mark)
        ]


def in_threads(count: int, leave: Callable[[int], object]) -> None:
    """Run ``leave(0)``, ``leave(1)``... in threads of the host's own, at the same time."""
    barrier = threading.Barrier(count)

    def run(thread: int) -> None:
        barrier.wait()
        leave(thread)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def in_other_threads(count: int, leave: Callable[[int], object]) -> None:
    """The same, while trio goes on."""
    await trio.to_thread.run_sync(in_threads, count, leave)


async def until_empty(side: Side) -> None:
    """Let what was left come over, which it does in several goes if it is much."""
    with trio.fail_after(PATIENCE):
        while side.inbox.counts() != (0, {}):
            await trio.lowlevel.checkpoint()


class Anything(trimaran.Event, frozen=True):
    """An event with a field of any kind."""

    value: Any = None


async def test_an_event_says_what_it_said_in_its_thread() -> None:
    """What is in its containers may change before the session's thread comes for it."""
    side = Side()
    value = ["then"]

    side.inbox.put(Anything(value=value), 0.0)
    value.append("now")
    side.inbox.empty()

    [entry] = (await side.mailbox.receive()).entries
    assert isinstance(entry.event, Anything)
    assert bytes(entry.event.value) == b'["then"]'


class Panic(BaseException):
    """What an extension raises where it must not go on."""


class Unlistable(trimaran.Event, frozen=True):
    """An event of a class that fails where it should say which texts may be cut."""

    value: Any = None
    cut_fields: ClassVar[Any] = type("Never", (), {"__contains__": lambda *_: 1 / 0})()


def panic(*_asked: object) -> Any:
    """Fail in a way that is no ``Exception``."""
    raise Panic


class Panicking(trimaran.Event, frozen=True):
    """An event whose class fails in such a way."""

    value: Any = None
    cut_fields: ClassVar[Any] = type("Never", (), {"__contains__": panic})()
    urgent: ClassVar[Any] = type("Never", (), {"__bool__": panic})()


class Interrupted(trimaran.Event, frozen=True):
    """An event whose class ends the program."""

    value: Any = None
    cut_fields: ClassVar[Any] = type("Never", (), {"__contains__": lambda *_: sys.exit()})()
    urgent: ClassVar[Any] = type("Never", (), {"__bool__": lambda _self: sys.exit()})()


async def test_what_ends_the_program_does_so() -> None:
    """The event was not taken, then."""
    side = Side()

    with pytest.raises(SystemExit):
        side.inbox.put(Interrupted(value=[]), 0.0)

    side.inbox.empty()
    assert side.ledger.tracked == 0


async def test_what_ends_the_program_while_events_come_over_does_so() -> None:
    """As where a signal's handler raises it then. What is behind that event comes later."""
    side = Side()
    in_threads(1, side.leaves(Interrupted(), Mark()))

    with pytest.raises(SystemExit):
        side.inbox.empty()
    assert (side.ledger.tracked, side.ledger.pending) == (1, 1)

    await until_empty(side)
    assert (side.ledger.tracked, side.ledger.pending) == (2, 2)
    assert await side.marks() == [Mark()]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Anything(value=["x" * 100_000]), DropReason.TOO_LARGE),
        (Unlistable(value=[]), DropReason.BUG),
        (Panicking(value=[]), DropReason.BUG),
        (Panicking(), DropReason.BUG),
        ("no event", DropReason.ENCODE_ERROR),
    ],
)
async def test_what_cannot_be_taken_is_counted(event: Any, reason: DropReason) -> None:
    """In its thread already, or by the mailbox; nothing is raised."""
    side = Side()

    side.inbox.put(event, 0.0)
    side.inbox.empty()

    assert (side.ledger.tracked, side.ledger.dropped) == (1, {reason: 1})


async def test_the_sessions_thread_has_turns_while_much_comes_over() -> None:
    """In one go it would hold up the agent, if that thread is the agent's own."""
    side = Side()
    in_threads(1, side.leaves(Mark(), times=10_000))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await until_empty(side)
        nursery.cancel_scope.cancel()

    assert turns >= 5
    assert side.ledger.tracked == 10_000


async def test_a_host_that_holds_a_lock_of_its_own_is_not_waited_for() -> None:
    """An event's class, or a finalizer, may want a lock of the host's on the session's thread
    while a thread that holds it leaves an event: neither waits for the other.
    """
    side = Side()
    lock = threading.Lock()
    holds, left = threading.Event(), threading.Event()

    def put(event: Mark, time: float, _place: object) -> None:
        assert holds.wait(PATIENCE)
        side.ledger.track()
        if event.number == 1:
            assert left.wait(
                PATIENCE
            )  # what follows on the other thread comes to its end meanwhile
        with lock:
            pass

    def leave() -> None:
        with lock:
            holds.set()
            side.inbox.put(Mark(number=2), 0.0)
            side.inbox.statistics()
            left.set()

    side.mailbox.put = put  # type: ignore[assignment, method-assign]  # the host's code in it
    side.inbox.put(Mark(number=1), 0.0)
    thread = threading.Thread(target=leave)
    thread.start()
    side.inbox.empty()
    thread.join()
    await until_empty(side)

    assert (side.ledger.tracked, side.ledger.dropped) == (2, {})


async def test_an_event_comes_over_by_itself() -> None:
    """Nobody has to ask for it; its time is the one at which it was tracked."""
    side = Side()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_other_threads, 1, lambda _: side.inbox.put(Mark(number=7), 5.0))
        [entry] = (await side.mailbox.receive()).entries

    assert (entry.event, entry.time) == (Mark(number=7), 5.0)
    assert (side.ledger.tracked, side.ledger.pending) == (1, 1)


async def test_threads_under_load_lose_nothing() -> None:
    """Every event of every thread is there once, in its thread's order, and so are the books."""
    side = Side()

    def leave(thread: int) -> None:
        for number in range(EACH):
            side.inbox.put(Mark(thread=thread, number=number), 0.0)

    await in_other_threads(THREADS, leave)
    await until_empty(side)
    assert (side.ledger.tracked, side.ledger.pending) == (THREADS * EACH, THREADS * EACH)

    marks = await side.marks()
    for thread in range(THREADS):
        numbers = [mark.number for mark in marks if mark.thread == thread]
        assert numbers == list(range(EACH))


async def test_the_books_add_up_for_any_thread() -> None:
    """Whoever looks, and whenever: each event is in one place, and in none twice."""
    events, looks = 3_000, 0
    side = Side(capacity=50)

    def look() -> None:
        nonlocal looks
        while (books := side.inbox.statistics()).tracked < 2 * events:
            assert books.tracked == books.delivered + books.dropped_total + books.pending
            assert books.tracked <= 2 * events
            looks += 1

    def leave() -> None:
        for _ in range(events):
            side.inbox.put(Mark(), 0.0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, look)
            nursery.start_soon(trio.to_thread.run_sync, leave)
            while not looks:
                await trio.lowlevel.checkpoint()
            for number in range(events):
                side.mailbox.put(Mark())
                if number % 100 == 0:
                    await trio.lowlevel.checkpoint()
    finally:
        sys.setswitchinterval(interval)


async def test_what_comes_over_between_two_looks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was here at the look into the books, and is there at the look in here."""
    side = Side()
    in_threads(1, side.leaves(Mark(), times=3))
    count = side.inbox.counts

    def count_late() -> tuple[int, dict[DropReason, int]]:
        side.inbox.empty()  # as the session's thread may at any moment
        return count()

    monkeypatch.setattr(side.inbox, "counts", count_late)

    assert side.inbox.statistics().tracked == 3


async def test_the_sessions_thread_goes_on_meanwhile() -> None:
    """Its own events mix with those of others, and none gets lost or counted twice."""
    side = Side()
    is_over = threading.Event()

    def leave(thread: int) -> None:
        for number in range(EACH):
            side.inbox.put(Mark(thread=thread, number=number), 0.0)

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def others() -> None:
            await in_other_threads(THREADS, leave)
            is_over.set()

        own = 0
        while not is_over.is_set() or own < EACH:
            side.mailbox.put(Mark(thread=-1, number=own))
            own += 1
            side.inbox.empty()
            await trio.lowlevel.checkpoint()

    await until_empty(side)
    assert side.ledger.tracked == own + THREADS * EACH
    dropped = side.ledger.dropped.get(DropReason.MAILBOX_FULL, 0)
    assert len(await side.marks()) == side.ledger.tracked - dropped


async def test_it_is_bounded() -> None:
    """While the session's thread does not come by, what is too much is refused and counted."""
    side = Side(capacity=10)

    in_threads(4, side.leaves(Mark(), times=25))
    assert side.inbox.counts() == (10, {DropReason.MAILBOX_FULL: 90})
    assert side.ledger.tracked == 0  # written by the session's thread alone

    side.inbox.empty()
    assert side.inbox.counts() == (0, {})
    assert (side.ledger.tracked, side.ledger.pending) == (100, 10)
    assert side.ledger.dropped == {DropReason.MAILBOX_FULL: 90}


async def test_after_the_end_events_are_closed_out() -> None:
    """Those that waited and those that come later; the books have them when trio goes on."""
    side = Side()
    in_threads(1, side.leaves(Mark(), times=3))

    side.inbox.end()
    assert side.inbox.counts() == (0, {DropReason.CLOSED: 3})
    in_threads(2, side.leaves(Mark(), times=5))
    assert side.inbox.counts() == (0, {DropReason.CLOSED: 13})

    await until_empty(side)
    assert (side.ledger.tracked, side.ledger.dropped) == (13, {DropReason.CLOSED: 13})


async def test_the_mailbox_decides_what_it_takes() -> None:
    """An event of another thread is shed, refused or too large like any other."""
    side = Side()
    side.mailbox.close()

    in_threads(1, side.leaves(Mark()))
    await until_empty(side)

    assert side.ledger.dropped == {DropReason.CLOSED: 1}


def test_after_the_run_is_over_events_are_closed_out() -> None:
    """A thread that outlives trio hurts nobody; whoever asks for numbers finds them here."""

    async def open_side() -> Side:
        return Side()

    side = trio.run(open_side)

    in_threads(THREADS, side.leaves(Mark(), times=100))

    assert side.inbox.counts() == (0, {DropReason.CLOSED: THREADS * 100})
    assert side.ledger.tracked == 0


def test_events_around_the_end_of_the_run_are_counted_once() -> None:
    """Before it or after it: each is in the books or still here, and closed out."""

    async def leave_one() -> Side:
        side = Side()
        in_threads(1, side.leaves(Mark()))
        side.inbox.end()
        return side

    side = trio.run(leave_one)
    side.inbox.put(Mark(), 0.0)

    waiting, refused = side.inbox.counts()
    assert (waiting, side.ledger.pending) == (0, 0)
    assert refused[DropReason.CLOSED] + side.ledger.dropped[DropReason.CLOSED] == 2


async def test_a_thread_that_is_in_the_middle_of_it_may_come_in_again() -> None:
    """A finalizer that logs may run wherever memory is allocated, here too."""
    side = Side()
    again = [Mark(number=2)]

    def put(event: Mark, time: float, _place: object) -> None:
        side.ledger.track()
        if again:
            side.inbox.put(again.pop(), time)

    side.mailbox.put = put  # type: ignore[assignment, method-assign]  # a finalizer at its worst
    side.inbox.put(Mark(number=1), 0.0)

    side.inbox.empty()
    await until_empty(side)

    assert side.ledger.tracked == 2


@pytest.mark.parametrize("event", [Broken(), object()])
async def test_a_thread_cannot_bring_the_run_down(event: Any) -> None:
    """Whatever is left here, trio's own loop does not see it fail, and what is behind it arrives."""
    side = Side()

    in_threads(1, side.leaves(event, Mark()))
    await until_empty(side)

    assert sum(side.ledger.dropped.values()) == 1
    assert (side.ledger.tracked, side.ledger.pending) == (2, 1)
    assert await side.marks() == [Mark()]


async def test_counts_never_miss_an_event() -> None:
    """Whenever somebody looks, what is outside of the books and inside adds up."""
    side = Side(capacity=50)
    total = 4 * 500
    seen: list[int] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_other_threads, 4, side.leaves(Mark(), times=500))
        while not seen or seen[-1] < total:
            waiting, refused = side.inbox.counts()
            seen.append(side.ledger.tracked + waiting + sum(refused.values()))
            await trio.lowlevel.checkpoint()

    assert seen == sorted(seen)
    assert side.ledger.tracked == side.ledger.pending + sum(side.ledger.dropped.values())
