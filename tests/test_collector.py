from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran import (
    ContextOverflowRecovered,
    DropReason,
    ErrorEvent,
    Generation,
    SessionEnd,
    Tokens,
    ToolCall,
)
from trimaran._events import BUILT_IN_EVENTS
from trimaran._pipeline.collector import Known, ToolSequence, Totals, collect
from trimaran._pipeline.encoder import encode_fast
from trimaran._pipeline.entry import Chunk, Entry, Flush
from trimaran._pipeline.redact import Redactor

SECRET = "ghp_" + "aB3" * 12
"""Of the shape of a token, which is known wherever it stands."""
COUNTS = st.integers(0, 1 << 40)
COSTS = st.floats(0, 1000, allow_nan=False)


class Note(trimaran.Event, frozen=True):
    """A routine event of the host's own."""

    text: str = ""
    more: Any = None


class Sieve:
    """A redactor that fails for one text."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def redact(self, event: trimaran.Event) -> trimaran.Event:
        """*event* as it is, if it is not the one."""
        if isinstance(event, Note) and event.text == "fail":
            raise self.error
        return event


class Stage:
    """The stage with both its ends, and what it tells of."""

    def __init__(self, redactor: Any = None) -> None:
        self.redactor = Redactor("/home/ada") if redactor is None else redactor
        self.tools = ToolSequence()
        self.known = Known()
        self.dropped: list[tuple[Entry, DropReason]] = []
        self.bugs: list[BaseException] = []
        self.tell_bug: Callable[[BaseException], None] = self.bugs.append
        self.put, receive = trio.open_memory_channel[Chunk](math.inf)
        send, self.get = trio.open_memory_channel[Chunk](math.inf)
        self._ends = receive, send

    async def run(self) -> None:
        """Run it to the end of its input."""
        await collect(
            *self._ends,
            redactor=self.redactor,
            tools=self.tools,
            known=self.known,
            drop=lambda entry, reason: self.dropped.append((entry, reason)),
            tell_bug=self.tell_bug,
        )

    async def through(self, *events: trimaran.Event) -> list[trimaran.Event]:
        """What comes out when *events* go in, in a chunk each."""
        return [entry.event for entry in await self.entries(*events)]

    async def entries(self, *events: trimaran.Event) -> list[Entry]:
        """The same, with what is known of each."""
        for event in events:
            self.put.send_nowait(Chunk([entry(event)]))
        self.put.close()
        await self.run()
        return [entry async for chunk in self.get for entry in chunk.entries]


def entry(event: trimaran.Event, size: int = 777) -> Entry:
    """An event as the mailbox hands it on, charged with *size* bytes."""
    return Entry(1, 5.0, event, encode_fast(event), size)


# Handing on.


@pytest.mark.parametrize(("size", "turns"), [(700, 0), (64 * 1024, 66)])
async def test_large_events_do_not_hold_up_the_agent(size: int, turns: int) -> None:
    """Masking 200 of them takes seconds: others get a turn every few; not with ordinary ones."""
    stage = Stage()
    stage.put.send_nowait(Chunk([entry(Note(text="x"), size)] * 200))
    stage.put.close()
    taken = 0

    async def agent() -> None:
        nonlocal taken
        while stage.get.statistics().current_buffer_used == 0:
            await trio.lowlevel.checkpoint()
            taken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent)
        await stage.run()

    assert taken == pytest.approx(turns, abs=3)
    assert len((await stage.get.receive()).entries) == 200


async def test_chunks_go_on_with_their_marks() -> None:
    """In order, one for one, also those that hold nothing but a mark; then both ends close."""
    stage = Stage()
    marks = [Flush(1), Flush(2)]
    chunks = [
        Chunk([entry(Note(text="1")), entry(Note(text="2"))]),
        Chunk([], marks),
        Chunk([entry(Note(text="3"))]),
    ]
    for chunk in chunks:
        stage.put.send_nowait(chunk)
    stage.put.close()

    await stage.run()

    assert [chunk async for chunk in stage.get] == chunks
    assert stage.put.statistics().open_receive_channels == 0


async def test_it_waits_for_the_stage_behind_it() -> None:
    """It holds one chunk, and takes no other before that one is taken."""
    stage = Stage()
    send, get = trio.open_memory_channel[Chunk](0)
    receive = stage._ends[0]
    stage._ends = receive, send
    for text in "123":
        stage.put.send_nowait(Chunk([entry(Note(text=text))]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.put.statistics().current_buffer_used == 2
        await get.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert stage.put.statistics().current_buffer_used == 1
        nursery.cancel_scope.cancel()


async def test_a_cancel_ends_it() -> None:
    """It has nothing to put away: what it holds is the session's to count."""
    stage = Stage()

    with trio.move_on_after(0) as scope:
        await stage.run()

    assert scope.cancelled_caught
    assert (stage.dropped, stage.bugs) == ([], [])


# Masking.


async def test_what_is_clean_goes_on_untouched() -> None:
    """The very same entry, with the encoded form that it has."""
    stage = Stage()
    clean = entry(Note(text="nothing to hide"))
    stage.put.send_nowait(Chunk([clean]))
    stage.put.close()

    await stage.run()

    [chunk] = [chunk async for chunk in stage.get]
    assert chunk.entries[0] is clean


async def test_what_is_masked_loses_its_encoded_form() -> None:
    """It is encoded anew later; its place, time and charge stay what they were."""
    [masked] = await Stage().entries(Note(text=f"key {SECRET} in /home/ada/x"))

    assert isinstance(masked.event, Note)
    assert SECRET not in masked.event.text
    assert "/home/ada" not in masked.event.text
    assert masked.encoded is None
    assert (masked.number, masked.time, masked.size) == (1, 5.0, 777)


async def test_what_a_session_fills_in_is_masked_too() -> None:
    """The name of the tool before may be a secret as well as any."""
    before, after = await Stage().through(ToolCall(tool_name=SECRET), ToolCall(tool_name="bash"))

    assert SECRET not in repr(before)
    assert SECRET not in repr(after)


async def test_an_event_that_cannot_be_masked_is_dropped_alone() -> None:
    """The bug is told before, and what is around it goes on."""
    bug = RuntimeError("a bug of ours")
    stage = Stage(Sieve(bug))
    failing = entry(Note(text="fail"))
    mark = Flush(1)
    stage.put.send_nowait(Chunk([entry(Note(text="1")), failing, entry(Note(text="2"))], [mark]))
    stage.put.close()

    await stage.run()

    [chunk] = [chunk async for chunk in stage.get]
    assert chunk == Chunk([entry(Note(text="1")), entry(Note(text="2"))], [mark])
    assert stage.dropped == [(failing, DropReason.BUG)]
    assert stage.bugs == [bug]


async def test_a_bug_may_end_the_stage() -> None:
    """Where whoever is told of it raises, as in tests, that comes out; both ends are closed."""
    stage = Stage(Sieve(RuntimeError("a bug of ours")))

    def tell(bug: BaseException) -> None:
        raise bug

    stage.tell_bug = tell

    with pytest.raises(RuntimeError, match="a bug of ours"):
        await stage.through(Note(text="fail"))

    assert stage.dropped == []
    with pytest.raises(trio.EndOfChannel):
        await stage.get.receive()


class Panic(BaseException):
    """What an extension raises where it must not go on."""


async def test_what_is_no_exception_costs_one_event_too() -> None:
    """It is whatever a class of the host's raises."""
    bug = Panic()
    stage = Stage(Sieve(bug))

    [event] = await stage.through(Note(text="fail"), Note(text="1"))

    assert event == Note(text="1")
    assert stage.bugs == [bug]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
async def test_what_ends_a_program_is_not_held_up(stop: type[BaseException]) -> None:
    """Ctrl-C in the middle of masking is nobody's bug."""
    stage = Stage(Sieve(stop()))

    with pytest.raises(stop):
        await stage.through(Note(text="fail"))

    assert stage.bugs == []


class Hostile:
    """Fails at whatever it is asked."""

    def fail(self, *_arguments: object) -> Any:
        """Fail."""
        raise RuntimeError

    __eq__ = __hash__ = __bool__ = __str__ = __repr__ = __lt__ = __gt__ = __neg__ = fail
    __class__ = property(fail)


@pytest.mark.parametrize("name", BUILT_IN_EVENTS)
async def test_any_content_goes_through(name: str) -> None:
    """Every field of every event may hold what fails when it is touched: that costs nothing."""
    kind: Any = BUILT_IN_EVENTS[name]
    fields = [field for field in kind.__struct_fields__ if field not in {"timestamp", "session_id"}]
    stage = Stage()

    events = await stage.through(
        *(kind(**{**dict.fromkeys(fields, "x"), field: Hostile()}) for field in fields),
        kind(**{field: Hostile() for field in fields}),
    )

    assert len(events) == len(fields) + 1
    assert (stage.dropped, stage.bugs) == ([], [])


# The tools of a session.


def test_a_sequence_counts_from_zero() -> None:
    """Each call knows its index and the tool before it."""
    tools = ToolSequence()

    assert [tools.begin(name) for name in ("read", "grep", "read")] == [
        (0, None),
        (1, "read"),
        (2, "grep"),
    ]


def test_a_sequence_is_one_for_all_threads() -> None:
    """No index twice, none left out, and the tool before is that of the index before."""
    tools = ToolSequence()
    begun: list[tuple[int, str | None, str]] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for call in range(500):
            name = f"{number}.{call}"
            begun.append((*tools.begin(name), name))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    begun.sort()
    assert [index for index, _, _ in begun] == list(range(4000))
    assert [previous for _, previous, _ in begun] == [None, *(name for _, _, name in begun[:-1])]


def filled(name: str, kind: Literal["standard", "mcp"], index: int, before: Any) -> ToolCall:
    """A call of which the session has said everything."""
    return ToolCall(
        tool_name=name,
        tool_type=kind,
        tool_category=kind,
        sequence_index=index,
        previous_tool=before,
    )


async def test_a_tracked_tool_call_is_completed() -> None:
    """What the caller left to the session is filled in: index, tool before, type."""
    events = await Stage().through(
        ToolCall(tool_name="bash"), ToolCall(tool_name="mcp__db__query"), ToolCall(tool_name="read")
    )

    assert events == [
        filled("bash", "standard", 0, None),
        filled("mcp__db__query", "mcp", 1, "bash"),
        filled("read", "standard", 2, "mcp__db__query"),
    ]


KNOWN = Known(model_id="m", provider_id="v", agent="build")


async def test_what_the_session_knows_of_a_model_call_is_filled_in() -> None:
    """Where it is empty, and the session knows something."""
    stage, other = Stage(), Stage()
    stage.known = KNOWN
    other.known = Known(agent="build")
    events = [
        Generation(finish_reason="stop"),
        Generation(model_id="n", agent="plan"),
        ContextOverflowRecovered(tokens_used=5),
        ContextOverflowRecovered(model_id="n"),
    ]

    assert await stage.through(*events) == [
        Generation(finish_reason="stop", model_id="m", provider_id="v", agent="build"),
        Generation(model_id="n", provider_id="v", agent="plan"),
        ContextOverflowRecovered(model_id="m", provider_id="v", tokens_used=5),
        ContextOverflowRecovered(model_id="n", provider_id="v"),
    ]
    assert await other.through(*events[1:3]) == events[1:3]


async def test_what_is_odd_is_not_filled_in() -> None:
    """It is no empty text, and is not asked."""
    odd: Any = {"model_id": None, "provider_id": msgspec.Raw(b"[]"), "agent": 0}
    stage = Stage()
    stage.known = KNOWN

    [event] = await stage.through(Generation(**odd))

    assert event == Generation(**odd)


async def test_a_tools_category_is_its_type() -> None:
    """Unless it says another."""
    events = await Stage().through(
        ToolCall(tool_name="mcp__a"), ToolCall(tool_name="bash", tool_category="shell")
    )

    assert [event.tool_category for event in events if isinstance(event, ToolCall)] == [
        "mcp",
        "shell",
    ]


async def test_it_goes_on_from_the_measured_calls() -> None:
    """Blocks and plain events of one session are numbered together."""
    stage = Stage()
    stage.tools.begin("measured")

    [event] = await stage.through(ToolCall(tool_name="bash"))

    assert isinstance(event, ToolCall)
    assert (event.sequence_index, event.previous_tool) == (1, "measured")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"sequence_index": 7}, (7, None, "standard")),
        ({"previous_tool": "x"}, (0, "x", "standard")),
        ({"previous_tool": None}, (0, None, "standard")),
        ({"tool_type": "mcp"}, (0, None, "mcp")),
        ({"sequence_index": 7, "tool_type": "mcp"}, (7, None, "mcp")),
        ({"sequence_index": 7, "previous_tool": "x"}, (7, "x", "standard")),
        ({"sequence_index": 7, "previous_tool": "x", "tool_type": "mcp"}, (7, "x", "mcp")),
    ],
)
async def test_what_the_caller_gave_stays(given: dict[str, Any], expected: object) -> None:
    """A replay has numbers of its own; the wire wants all three, so none is left out."""
    [event] = await Stage().through(ToolCall(tool_name="bash", **given))

    assert isinstance(event, ToolCall)
    assert (event.sequence_index, event.previous_tool, event.tool_type) == expected


async def test_a_complete_tool_call_is_not_touched() -> None:
    """As the measuring blocks make it: nothing is made anew."""
    complete = filled("bash", "standard", 3, None)

    [event] = await Stage().through(complete)

    assert event is complete


async def test_a_tool_without_a_name_has_a_place_all_the_same() -> None:
    """What is odd about a name is for the encoder to deal with."""
    make: Any = ToolCall

    _, event = await Stage().through(make(tool_name=7), ToolCall(tool_name="bash"))

    assert event == filled("bash", "standard", 1, 7)


# Totals.


@given(
    costs=st.lists(COSTS),
    tokens=st.lists(st.builds(Tokens, input=COUNTS, cache_read=COUNTS)),
    calls=st.integers(0, 5),
)
async def test_the_end_has_the_totals_of_all_events(
    costs: list[float], tokens: list[Tokens], calls: int
) -> None:
    """Whatever went through before it; all five kinds of tokens count."""
    stage = Stage()

    *_, end = await stage.through(
        *(Generation(cost=cost) for cost in costs),
        *(Generation(tokens=some) for some in tokens),
        *(ToolCall(tool_name="bash") for _ in range(calls)),
        Note(text="counts nowhere"),
        SessionEnd(duration_ms=5),
    )

    assert isinstance(end, SessionEnd)
    assert end.total_cost == pytest.approx(sum(costs))
    assert end.total_tokens == sum(some.total for some in tokens)
    assert (end.tool_call_count, end.duration_ms) == (calls, 5)


async def test_total_costs_are_exact() -> None:
    """Ten generations for ten cents each cost a dollar."""
    *_, end = await Stage().through(*[Generation(cost=0.1)] * 10, SessionEnd())

    assert isinstance(end, SessionEnd)
    assert end.total_cost == 1.0


async def test_an_empty_session_ends_with_zeros() -> None:
    """The wire wants them."""
    assert await Stage().through(SessionEnd()) == [
        SessionEnd(total_cost=0.0, total_tokens=0, tool_call_count=0)
    ]


async def test_totals_that_are_given_stay() -> None:
    """A replayed session may end with its own, or with some of them."""
    events = await Stage().through(
        Generation(cost=1.0, tokens=Tokens(input=5)), SessionEnd(total_cost=9.0)
    )

    assert events[-1] == SessionEnd(total_cost=9.0, total_tokens=5, tool_call_count=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: "5",
        lambda: True,
        lambda: math.nan,
        lambda: math.inf,
        lambda: -math.inf,
        lambda: 10**400,
        lambda: [5],
        Hostile,
    ],
)
async def test_what_is_no_number_spoils_no_total(make: Callable[[], Any]) -> None:
    """It counts as nothing, and the rest of the event counts."""
    value = make()
    stage = Stage()

    *_, end = await stage.through(
        Generation(cost=value, tokens=Tokens(output=3)),
        Generation(cost=0.5, tokens=Tokens(input=value, output=4)),
        Generation(cost=0.5, tokens=value),
        SessionEnd(),
    )

    assert end == SessionEnd(total_cost=1.0, total_tokens=7, tool_call_count=0)
    assert stage.bugs == []


def test_totals_stay_whole_numbers() -> None:
    """Tokens are counted, not measured; a cost that is given as an int is still a cost."""
    totals = Totals()
    totals.count_generation(Generation(cost=1, tokens=Tokens(input=2)))

    end = totals.complete(SessionEnd())

    assert msgspec.json.encode(end) == (
        b'{"type":"session_end","total_cost":1.0,"total_tokens":2,"tool_call_count":0,"duration_ms":0}'
    )


async def test_sessions_count_apart() -> None:
    """Two stages share nothing."""
    one, other = Stage(), Stage()
    await one.through(ToolCall(tool_name="bash"), Generation(cost=1.0))

    events = await other.through(ToolCall(tool_name="read"), SessionEnd())

    assert events == [
        filled("read", "standard", 0, None),
        SessionEnd(total_cost=0.0, total_tokens=0, tool_call_count=1),
    ]


async def test_error_texts_are_cut_after_they_were_masked() -> None:
    """A secret that the cut would have left in half is gone before."""
    [event] = await Stage().through(
        ErrorEvent(error_name="E", error_message=f"{'x' * 480} {SECRET}")
    )

    assert isinstance(event, ErrorEvent)
    assert len(event.error_message) <= 500
    assert SECRET[:15] not in event.error_message
