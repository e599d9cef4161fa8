"""Ids of spans, and the innermost block of each session in any context."""

from __future__ import annotations

import math
import sys
from contextvars import Context, copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from trimaran._spans import Block, Place, Spans, span_number, span_time, untimed

SECOND = 1_000_000_000
"""Nanoseconds."""


class Clocks:
    """One that nobody sets, and one that is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ahead = 1_000.0
        """Seconds that the second one is ahead."""
        self.interruptions: list[float] = []
        """Seconds that somebody else has after each look at it."""

    def read_wall(self) -> float:
        """Look at the second one."""
        wall = self.now + self.ahead
        if self.interruptions:
            self.now += self.interruptions.pop(0)
        return wall


def spans_of(seed: str, below: int = 0, clocks: Clocks | None = None) -> Spans:
    """The spans of a pipeline, by clocks that stand still."""
    clocks = clocks or Clocks()
    return Spans(seed, below, now=lambda: clocks.now, wall_clock=clocks.read_wall)


def left(block: Block) -> tuple[int, int]:
    """Leave *block*: its id, and that of what it stands below."""
    return block.leave(1.0, 2.0)[:2]


def times(block: Block, begun: float, ended: float) -> tuple[int, int]:
    """Leave *block*: when it was, in nanoseconds since the epoch."""
    return block.leave(begun, ended)[2:]


def below(block: Block) -> Place:
    """Where an event stands that happens in *block*, as long as the clocks stand still."""
    return 0, block.id, 0, 1_100 * SECOND


def test_outside_of_all_blocks_nothing_is_kept() -> None:
    """The event's number says it all: what follows from it is the same whenever it is asked."""
    spans = spans_of("s")

    assert spans.here() is None
    assert spans.ids(1, None) == spans.ids(1, None) == spans_of("s").ids(1, None)
    assert spans.ids(1, None)[1] == 0


def test_every_event_and_every_block_has_an_id_of_its_own() -> None:
    """In one pipeline and over several; none is 0."""
    pipelines = [spans_of("a"), spans_of("b"), spans_of("half of a pair: \ud800")]

    ids = [spans.ids(number, None)[0] for spans in pipelines for number in range(1, 2_000)]
    ids += [spans.next_id() for spans in pipelines for _ in range(2_000)]

    assert len(set(ids)) == len(ids)
    assert all(0 < number < 2**64 for number in ids)


def test_an_id_is_never_0() -> None:
    """Even where the numbers come to that: 0 is no id anywhere."""
    spans = spans_of("s")
    spans._base = -2 * 7 * 0x9E37_79B9_7F4A_7C15 % 2**64

    assert spans.ids(7, None) == (1, 0)


def test_a_pipeline_may_stand_below_something_as_a_whole() -> None:
    """What is in no block is below that, and so is what is started."""
    spans = spans_of("s", 7)

    assert spans.above() == 7
    assert spans.ids(1, None)[1] == spans.ids(1, (3, 0, 0, 0))[1] == 7
    block = spans.block()
    block.enter()
    assert spans.above() == block.id
    assert spans.ids(1, spans.here())[1] == block.id
    left(block)


def test_where_an_event_stands_goes_before_what_follows_from_its_number() -> None:
    """Another process has said it."""
    assert spans_of("s").ids(1, (3, 4, 0, 0)) == (3, 4)


def test_a_block_inside_another_stands_below_it() -> None:
    """Its place is known when it begins, and given when it ends."""
    spans = spans_of("s")
    outer, inner = spans.block(), spans.block()

    outer.enter()
    inner.enter()
    assert spans.here() == below(inner)
    assert left(inner) == (inner.id, outer.id)
    assert spans.here() == below(outer)
    assert left(outer) == (outer.id, 0)
    assert spans.here() is None


def test_a_block_that_is_entered_again_never_stands_inside_itself() -> None:
    """Neither at once nor around another one: looking for what is around it comes to an end."""
    spans, other = spans_of("s"), spans_of("t")

    def nest() -> None:
        outer, inner = spans.block(), spans.block()
        outer.enter()
        inner.enter()
        outer.enter()
        assert other.here() is None
        places = [left(outer), left(inner)]
        assert spans.here() is None
        places.append(left(outer))
        assert len({own for own, _ in places}) == 3

        block = spans.block()
        block.enter()
        block.enter()
        first = left(block)
        assert spans.here() is None
        assert left(block)[0] != first[0]

    copy_context().run(nest)


def test_blocks_that_overlap_for_ever_make_no_chain() -> None:
    """What was left is let go of."""
    spans = spans_of("s")
    previous = spans.block()
    previous.enter()
    for _ in range(100):
        block = spans.block()
        block.enter()
        left(previous)
        previous = block

    length, block = 0, previous
    while block.outer is not None:
        length, block = length + 1, block.outer
    assert length <= 2
    left(previous)


def test_a_block_begins_by_the_clock_that_is_set_and_lasts_by_the_other() -> None:
    """To the nanosecond; whatever is done to the clock meanwhile, blocks inside are inside."""
    clocks = Clocks()
    spans, others = spans_of("s", clocks=clocks), spans_of("t", clocks=clocks)
    outer, inner, elses = spans.block(), spans.block(), others.block()

    outer.enter()
    clocks.ahead = 500.0
    elses.enter()
    inner.enter()

    assert times(inner, 100.25, 100.5) == (1_100_250_000_000, 1_100_500_000_000)
    assert times(elses, 100.25, 100.5) == (600_250_000_000, 600_500_000_000)
    assert times(outer, 100.0, 101.000_000_001) == (1_100 * SECOND, 1_101_000_000_001)


def test_a_block_that_stands_in_none_looks_at_the_clock_that_is_set() -> None:
    """It may have been set since the last one."""
    clocks = Clocks()
    spans = spans_of("s", clocks=clocks)
    first, second = spans.block(), spans.block()

    first.enter()
    assert times(first, 100.0, 101.0) == (1_100 * SECOND, 1_101 * SECOND)
    clocks.ahead = 500.0
    second.enter()
    assert times(second, 102.0, 103.0) == (602 * SECOND, 603 * SECOND)


def test_what_is_lost_in_reading_moves_no_block() -> None:
    """Clocks that are about as far apart as they were are taken to be."""
    clocks = Clocks()
    spans = spans_of("s", clocks=clocks)
    for apart, start in ((0.0, 1_100 * SECOND), (-0.000_09, 1_100 * SECOND), (0.5, 1_100.5e9)):
        clocks.ahead = 1_000.0 + apart
        block = spans.block()
        block.enter()
        assert times(block, 100.0, 100.0) == (start, start)


def test_what_happens_in_a_block_is_in_its_time() -> None:
    """Whatever was done to the clock; what says itself when it was is taken at its word."""
    clocks = Clocks()
    spans = spans_of("s", clocks=clocks)
    block = spans.block()
    block.enter()
    clocks.ahead -= 500.0
    clocks.now += 0.25

    place = spans.here()

    assert place == (0, block.id, 0, 1_100_250_000_000)
    assert untimed(place) == (0, block.id, 0, 0)
    assert untimed((7, 0, 1, 2)) == (7, 0, 1, 2)
    assert untimed(None) is None
    clocks.now = -1_000.0
    assert spans.here() == (0, block.id, 0, 0)
    left(block)


def test_a_turn_of_others_between_two_looks_does_not_count() -> None:
    """The clocks are looked at again then; but not for ever, and the shortest turn counts."""
    for interruptions, off in (([5.0], 0), ([5.0, 1.0, 0.5, 9.0], SECOND // 4)):
        clocks = Clocks()
        clocks.interruptions = interruptions
        block = spans_of("s", clocks=clocks).block()

        block.enter()

        assert times(block, 100.0, 101.0) == (1_100 * SECOND - off, 1_101 * SECOND - off)


@pytest.mark.parametrize("ahead", [-200.0, 1e10, math.nan, math.inf])
def test_a_time_that_systems_have_no_room_for_is_none(ahead: float) -> None:
    """What the event itself says stands in for it."""
    clocks = Clocks()
    clocks.ahead = ahead
    block = spans_of("s", clocks=clocks).block()

    block.enter()

    assert times(block, 100.0, 101.0) == (0, 0)


class Panic(BaseException):
    """What an extension raises where it must not go on: no ``Exception``."""


@pytest.mark.parametrize("failure", [ZeroDivisionError, Panic])
def test_a_clock_that_fails_costs_the_times(failure: type[BaseException]) -> None:
    """It is the host's own code; the agent's goes on."""

    def fail() -> float:
        raise failure

    spans = Spans("s", now=lambda: 1.0, wall_clock=fail)
    block = spans.block()

    block.enter()

    assert spans.here() == (0, block.id, 0, 0)
    assert block.leave(1.0, 2.0) == (block.id, 0, 0, 0)


def test_what_ends_a_program_while_a_clock_is_read_goes_through() -> None:
    """As where a signal's handler raises it then."""
    block = Spans("s", now=lambda: 1.0, wall_clock=sys.exit).block()

    with pytest.raises(SystemExit):
        block.enter()


def test_a_block_that_ended_before_it_began_says_nothing_of_that() -> None:
    """Somebody has done things to the clock that nobody sets."""
    block = spans_of("s").block()
    block.enter()

    assert times(block, 101.0, 100.0) == (0, 0)


@pytest.mark.parametrize(
    "text", [None, 7, "", "-1", "1.5", " 1", "१", "1_0", str(2**63), "1" * 5_000]
)
def test_what_is_no_time_is_0(text: object) -> None:
    """It may have come from anywhere."""
    assert span_time(text) == 0


@given(st.integers(0, 2**63 - 1))
def test_a_time_is_read_back(time: int) -> None:
    """From its digits."""
    assert span_time(str(time)) == time


@pytest.mark.parametrize(
    "text", [None, 7, "", "a" * 15, "a" * 17, "g" * 16, "+" + "1" * 15, "१" * 16]
)
def test_what_is_no_id_is_0(text: object) -> None:
    """It may have come from anywhere."""
    assert span_number(text) == 0


@given(st.integers(0, 2**64 - 1))
def test_an_id_is_read_back(number: int) -> None:
    """From its sixteen digits."""
    assert span_number(f"{number:016x}") == number


class Interleaved(RuleBasedStateMachine):
    """Tasks that start each other, enter blocks of several sessions, and leave any of them, in
    any order and from anywhere. The model: for each task the blocks that it, or who started it,
    had entered, in order.
    """

    @initialize()
    def begin(self) -> None:
        """One task, three sessions."""
        self.sessions = [spans_of(name) for name in "abc"]
        self.tasks: list[tuple[Context, list[Block]]] = [(Context(), [])]
        self.blocks: list[Block] = []

    @rule(task=st.integers(0), session=st.integers(0, 2))
    def enter(self, task: int, session: int) -> None:
        """A block begins."""
        context, entered = self.tasks[task % len(self.tasks)]
        block = self.sessions[session].block()
        expected = self.innermost(entered, session)
        context.run(block.enter)
        assert block.above == expected
        entered.append(block)
        self.blocks.append(block)

    @rule(task=st.integers(0), which=st.integers(0))
    def leave(self, task: int, which: int) -> None:
        """A block ends, in whichever task."""
        open_ones = [block for block in self.blocks if not block.is_left]
        if open_ones:
            context, _ = self.tasks[task % len(self.tasks)]
            context.run(left, open_ones[which % len(open_ones)])

    @rule(task=st.integers(0))
    def start(self, task: int) -> None:
        """A task starts another one."""
        context, entered = self.tasks[task % len(self.tasks)]
        self.tasks.append((context.run(copy_context), [*entered]))

    @rule(task=st.integers(0), session=st.integers(0, 2))
    def happen(self, task: int, session: int) -> None:
        """Something happens in a task."""
        context, entered = self.tasks[task % len(self.tasks)]
        expected = self.innermost(entered, session)
        assert context.run(self.sessions[session].above_here) == expected

    def innermost(self, entered: list[Block], session: int) -> int:
        """The block that was entered last of those of *session* that are open."""
        spans = self.sessions[session]
        found = [block for block in entered if block.spans is spans and not block.is_left]
        return found[-1].id if found else 0


TestInterleaved = Interleaved.TestCase
