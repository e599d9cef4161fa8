"""Ids of spans, and the innermost block of each session in any context."""

from __future__ import annotations

from contextvars import Context, copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from trimaran._spans import Block, Spans, span_number


def below(block: Block) -> tuple[int, int]:
    """Where an event stands that happens in *block*."""
    return 0, block.place[0]


def test_outside_of_all_blocks_nothing_is_kept() -> None:
    """The event's number says it all: what follows from it is the same whenever it is asked."""
    spans = Spans("s")

    assert spans.here() is None
    assert spans.ids(1, None) == spans.ids(1, None) == Spans("s").ids(1, None)
    assert spans.ids(1, None)[1] == 0


def test_every_event_and_every_block_has_an_id_of_its_own() -> None:
    """In one pipeline and over several; none is 0."""
    pipelines = [Spans("a"), Spans("b"), Spans("half of a pair: \ud800")]

    ids = [spans.ids(number, None)[0] for spans in pipelines for number in range(1, 2_000)]
    ids += [spans.next_block()[0] for spans in pipelines for _ in range(2_000)]

    assert len(set(ids)) == len(ids)
    assert all(0 < number < 2**64 for number in ids)


def test_an_id_is_never_0() -> None:
    """Even where the numbers come to that: 0 is no id anywhere."""
    spans = Spans("s")
    spans._base = -2 * 7 * 0x9E37_79B9_7F4A_7C15 % 2**64

    assert spans.ids(7, None) == (1, 0)


def test_a_pipeline_may_stand_below_something_as_a_whole() -> None:
    """What is in no block is below that, and so is what is started."""
    spans = Spans("s", 7)

    assert spans.above() == 7
    assert spans.ids(1, None)[1] == spans.ids(1, (3, 0))[1] == 7
    block = spans.block()
    block.enter()
    assert spans.above() == block.place[0]
    assert spans.ids(1, spans.here())[1] == block.place[0]
    block.leave()


def test_where_an_event_stands_goes_before_what_follows_from_its_number() -> None:
    """Another process has said it."""
    assert Spans("s").ids(1, (3, 4)) == (3, 4)


def test_a_block_inside_another_stands_below_it() -> None:
    """Its place is known when it begins, and given when it ends."""
    spans = Spans("s")
    outer, inner = spans.block(), spans.block()

    outer.enter()
    inner.enter()
    assert inner.place[1] == outer.place[0]
    assert spans.here() == below(inner)
    assert inner.leave() == inner.place
    assert spans.here() == below(outer)
    assert outer.leave() == (outer.place[0], 0)
    assert spans.here() is None


def test_a_block_that_is_entered_again_never_stands_inside_itself() -> None:
    """Neither at once nor around another one: looking for what is around it comes to an end."""
    spans, other = Spans("s"), Spans("t")

    def nest() -> None:
        outer, inner = spans.block(), spans.block()
        outer.enter()
        inner.enter()
        outer.enter()
        assert other.here() is None
        places = [outer.leave(), inner.leave()]
        assert spans.here() is None
        places.append(outer.leave())
        assert len({own for own, _ in places}) == 3

        block = spans.block()
        block.enter()
        block.enter()
        first = block.leave()
        assert spans.here() is None
        assert block.leave()[0] != first[0]

    copy_context().run(nest)


def test_blocks_that_overlap_for_ever_make_no_chain() -> None:
    """What was left is let go of."""
    spans = Spans("s")
    previous = spans.block()
    previous.enter()
    for _ in range(100):
        block = spans.block()
        block.enter()
        previous.leave()
        previous = block

    length, block = 0, previous
    while block.outer is not None:
        length, block = length + 1, block.outer
    assert length <= 2
    previous.leave()


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
        self.sessions = [Spans(name) for name in "abc"]
        self.tasks: list[tuple[Context, list[Block]]] = [(Context(), [])]
        self.blocks: list[Block] = []

    @rule(task=st.integers(0), session=st.integers(0, 2))
    def enter(self, task: int, session: int) -> None:
        """A block begins."""
        context, entered = self.tasks[task % len(self.tasks)]
        block = self.sessions[session].block()
        expected = self.innermost(entered, session)
        context.run(block.enter)
        assert block.place[1] == expected
        entered.append(block)
        self.blocks.append(block)

    @rule(task=st.integers(0), which=st.integers(0))
    def leave(self, task: int, which: int) -> None:
        """A block ends, in whichever task."""
        open_ones = [block for block in self.blocks if not block.is_left]
        if open_ones:
            context, _ = self.tasks[task % len(self.tasks)]
            context.run(open_ones[which % len(open_ones)].leave)

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
        assert context.run(self.sessions[session].here) == ((0, expected) if expected else None)

    def innermost(self, entered: list[Block], session: int) -> int:
        """The block that was entered last of those of *session* that are open."""
        spans = self.sessions[session]
        found = [block for block in entered if block.spans is spans and not block.is_left]
        return found[-1].place[0] if found else 0


TestInterleaved = Interleaved.TestCase
