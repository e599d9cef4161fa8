"""The bytes that sessions share: who may hand on, and what may wait when memory is short."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._pipeline.memory import MemoryBudget
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

LIMIT = 1000
KIB = 1024


class Part:
    """Holds some of the bytes, and cannot give any up."""

    held = 0

    def shed_one(self, *, for_urgent: bool) -> bool:
        """There is nothing to shed."""
        return False

    def room_may_have_come(self) -> None:
        """Nobody waits."""


class Shared:
    """A budget that some hold together, and how often it told that memory is short."""

    def __init__(self, holders: int = 1) -> None:
        self.budget = MemoryBudget(LIMIT)
        self.told = 0
        for _ in range(holders):
            self.budget.join(Part())
        self.budget.watch(self.tell)

    def tell(self) -> None:
        """Memory is short."""
        self.told += 1

    def hand_on(self, size: int) -> None:
        """Bytes come in, and are handed on."""
        self.budget.used += size
        self.budget.hand_on(size)


def test_what_waits_is_bounded_from_half_of_the_memory_to_a_quarter() -> None:
    """All sessions together may hold back a quarter of it, each an even part."""
    shared = Shared(holders=5)
    shared.hand_on(499)
    assert shared.budget.most_held_back == math.inf
    shared.hand_on(1)
    assert shared.budget.most_held_back == LIMIT / 4 / 5

    shared.budget.settle(249)
    assert shared.budget.most_held_back == LIMIT / 4 / 5
    shared.budget.settle(1)

    assert shared.budget.most_held_back == math.inf


def test_what_waits_in_mailboxes_counts_as_used() -> None:
    """Memory is short when little is on its way behind many that wait for their turn."""
    shared = Shared()
    shared.budget.used += 499
    shared.hand_on(1)

    assert shared.budget.most_held_back == LIMIT / 4


def test_want_of_memory_is_told_once() -> None:
    """Whenever it begins, to who watches then."""
    shared = Shared()
    for _ in range(5):
        shared.hand_on(150)
    assert shared.told == 1
    shared.budget.settle(750)
    assert shared.told == 1

    shared.hand_on(500)
    assert shared.told == 2
    shared.budget.settle(500)
    shared.budget.unwatch(shared.tell)
    shared.hand_on(500)

    assert shared.told == 2


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["wait", "hand_on", "settle", "shed"]), st.integers(1, 700))
    ),
    holders=st.integers(1, 5),
)
def test_who_may_not_hand_on_has_more_than_may_be_held_back(
    steps: list[tuple[str, int]], holders: int
) -> None:
    """So a batch of its own is due, and it is never held up by nothing but patience."""
    shared = Shared(holders)
    budget = shared.budget
    waiting = 0
    for step, number in steps:
        if step == "wait":
            size = min(number, LIMIT - budget.used)
            budget.used += size
            waiting += size
        elif step == "settle":
            budget.settle(min(number, budget.downstream))
        else:
            size = min(number, waiting)
            waiting -= size
            (budget.hand_on if step == "hand_on" else budget.release)(size)
        for downstream in range(0, budget.downstream + 1, 50):
            if budget.is_crowded_by(downstream):
                assert downstream > budget.most_held_back
    assert budget.used == waiting + budget.downstream


# Whole sessions, with endpoints that answer at once.


def opened(
    transports: Sequence[trimaran.Transport], **settings: Any
) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A strict telemetry with so many destinations."""
    first, *others = transports
    return trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test"},
        transport=first,
        destinations=[
            trimaran.Destination(name=f"d{number}", transport=transport)
            for number, transport in enumerate(others)
        ],
        settings=trimaran.Settings(strict=True, **settings),
    )


def note(size: int) -> trimaran.Command:
    """An event of so many bytes."""
    return trimaran.Command(command_name="ab " * (size // 3))


def events_in(capture: Capture) -> list[int]:
    """The numbers of events of all batches."""
    return [request.events for request in capture.taken]


@pytest.mark.parametrize("destinations", [1, 2, 3])
@pytest.mark.parametrize("sessions", [1, 20, 100])
async def test_no_event_is_lost_while_the_endpoint_answers(
    sessions: int, destinations: int, autojump_clock: trio.testing.MockClock
) -> None:
    """However many sessions gather theirs: a batch does not wait for what has no room.

    And batches are not much smaller than they have to be: all sessions together fill a
    quarter of a destination's memory at least, before one of them is sent.
    """
    captures = [Capture() for _ in range(destinations)]
    memory = 2048 * KIB
    events = 2000 // sessions
    async with (
        opened(captures, memory_bytes=memory) as telemetry,
        trio.open_nursery() as nursery,
    ):

        async def one() -> None:
            async with telemetry.session() as session:
                for _ in range(events):
                    session.track(note(2500))
                    await trio.sleep(2 / events)
            everyone.append(session)

        everyone: list[trimaran.Session] = []
        for _ in range(sessions):
            nursery.start_soon(one)

    for session in everyone:
        books = session.statistics()
        for each in [books, *books.destinations.values()]:
            assert (each.delivered, each.dropped) == (events + 2, {})
    share = memory if destinations == 1 else memory // (destinations + 1)
    fewest = share // 4 // 3000 // sessions
    for capture in captures:
        # The first and the last batch of a session have its start and its end, and may be small.
        assert len(events_in(capture)) <= 2 * sessions + sessions * events / max(1, fewest)


@pytest.mark.parametrize("destinations", [1, 2])
async def test_who_rests_gives_its_room_to_who_works(
    destinations: int, autojump_clock: trio.testing.MockClock
) -> None:
    """What it held back is sent when another session makes the memory short, ahead of its time."""
    captures = [Capture() for _ in range(destinations)]
    memory = 1024 * KIB
    share = memory if destinations == 1 else memory // (destinations + 1)
    async with (
        opened(captures, memory_bytes=memory) as telemetry,
        telemetry.session() as resting,
        telemetry.session() as working,
    ):
        await trio.testing.wait_all_tasks_blocked()
        held_back = int(share * 0.4) // 3000
        for _ in range(held_back):
            resting.track(note(2400))
        await trio.sleep(1)
        assert resting.statistics().pending == held_back

        for _ in range(100):
            working.track(note(2400))
            await trio.sleep(0.001)

        assert resting.statistics().pending == 0
        assert working.statistics().dropped == {}


async def test_one_that_presses_leaves_others_their_patience(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While memory is short because of one, a session with little still sends it together."""

    class Slow(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            await trio.sleep(0.2)
            return await super().attempt(request)

    slow = Slow()
    async with (
        opened([slow], memory_bytes=1024 * KIB, batch_events=20, drain_timeout=60) as telemetry,
        telemetry.session(session_id="loud") as loud,
        telemetry.session(session_id="quiet") as quiet,
    ):
        for _ in range(100):
            for _ in range(10):
                loud.track(note(2400))
            quiet.track(note(240))
            await trio.sleep(0.05)

    assert loud.statistics().dropped_total > 0
    assert quiet.statistics().dropped == {}
    # Its start, twice five seconds' worth, and what is left with its end.
    assert quiet.statistics().batches <= 4 + 100 // 20
