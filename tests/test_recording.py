from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import trio
import trio.testing

import trimaran
from trimaran import BridgeCall, BridgeMeasure, Generation, GenerationMeasure, Tokens, ToolCall
from trimaran import ToolMeasure as Tool
from trimaran._pipeline.collector import ToolSequence
from trimaran._recording import error_text, is_cancellation, message_of
from trimaran._session import SILENT


class Recorder:
    """What a session offers for measuring, with a list in place of its pipeline."""

    def __init__(self, now: Callable[[], float] = lambda: 0.0) -> None:
        self.events: list[trimaran.Event] = []
        self.now = now
        self.tools = ToolSequence()

    def track(self, event: trimaran.Event, place: object = None) -> None:
        """Nobody wants to know of spans, and no block is one."""
        assert place is None
        self.events.append(event)

    def tool(self, name: str = "bash", category: str | None = None) -> Tool:
        """A block that runs a tool."""
        return Tool(self.track, self.now, self.tools, name, "msg_1", category)

    def bridge(self, method: str = "sql.execute") -> BridgeMeasure:
        """A block that calls a bridge."""
        return BridgeMeasure(self.track, self.now, method)

    def generation(self) -> GenerationMeasure:
        """A block that calls a model."""
        return GenerationMeasure(
            self.track,
            self.now,
            message_id="msg_1",
            model_id="m",
            provider_id="v",
            agent="build",
        )

    def blocks(self) -> list[AbstractContextManager[object]]:
        """One block of each kind."""
        return [self.tool(), self.bridge(), self.generation()]

    def only(self) -> Any:
        """The one event that was tracked."""
        [event] = self.events
        return event


class HostileError(Exception):
    """Fails where it is asked for its text."""

    def __str__(self) -> str:
        raise RuntimeError


class TrickyText(str):
    """Text that fails wherever it is used."""

    __slots__ = ()

    def fail(self, *_arguments: object) -> Any:
        """Fail."""
        raise RuntimeError

    __getitem__ = __format__ = __len__ = __str__ = fail


class TrickyError(Exception):
    """Has text that fails when it is used."""

    def __str__(self) -> str:
        return TrickyText("tricky")


CANCELLATIONS: list[Callable[[], BaseException]] = [
    asyncio.CancelledError,
    KeyboardInterrupt,
    lambda: SystemExit(2),
    GeneratorExit,
    lambda: BaseExceptionGroup("", [asyncio.CancelledError(), KeyboardInterrupt()]),
    lambda: BaseExceptionGroup("", [BaseExceptionGroup("", [asyncio.CancelledError()])]),
]
FAILURES: list[Callable[[], BaseException]] = [
    lambda: ValueError("wrong"),
    trio.TooSlowError,
    HostileError,
    TrickyError,
    lambda: ExceptionGroup("several", [ValueError("a"), TypeError("b")]),
    lambda: BaseExceptionGroup("mixed", [asyncio.CancelledError(), ValueError("a")]),
]


# What a block that went well says.


async def test_a_tool_call(autojump_clock: trio.testing.MockClock) -> None:
    """Its duration in whole milliseconds, its place, and what the agent said of it."""
    recorder = Recorder(trio.current_time)

    with recorder.tool("bash", category="shell"):
        await trio.sleep(1.2346)

    assert recorder.events == [
        ToolCall(
            tool_name="bash",
            message_id="msg_1",
            tool_type="standard",
            tool_category="shell",
            status="success",
            duration_ms=1235,
            sequence_index=0,
            previous_tool=None,
        )
    ]


@pytest.mark.parametrize(
    ("name", "tool_type"), [("bash", "standard"), ("mcp__github__search", "mcp")]
)
def test_a_tools_category_is_its_type_unless_said_otherwise(name: str, tool_type: str) -> None:
    """``mcp__`` at its beginning makes a tool an MCP tool; "" is a category too."""
    recorder = Recorder()

    with recorder.tool(name):
        pass
    with recorder.tool(name, category=""):
        pass

    calls: list[Any] = recorder.events
    assert [call.tool_type for call in calls] == [tool_type, tool_type]
    assert [call.tool_category for call in calls] == [tool_type, ""]


async def test_a_bridge_call(autojump_clock: trio.testing.MockClock) -> None:
    """Its method and its duration."""
    recorder = Recorder(trio.current_time)

    with recorder.bridge("sql.execute"):
        await trio.sleep(0.05)

    assert recorder.events == [BridgeCall(method="sql.execute", duration_ms=50)]


async def test_a_generation(autojump_clock: trio.testing.MockClock) -> None:
    """What the session knows, what the agent said when it was finished, its duration."""
    recorder = Recorder(trio.current_time)
    tokens = Tokens(input=900, output=120, cache_read=300)

    with recorder.generation() as generation:
        await trio.sleep(2)
        generation.finish("stop", tokens=tokens, cost=0.0123)
        await trio.sleep(1)

    assert recorder.events == [
        Generation(
            message_id="msg_1",
            model_id="m",
            provider_id="v",
            agent="build",
            finish_reason="stop",
            tokens=tokens,
            cost=0.0123,
            duration_ms=3000,
        )
    ]


def test_a_generation_is_finished_by_the_last_word() -> None:
    """A first one that was premature leaves nothing behind."""
    recorder = Recorder()

    with recorder.generation() as generation:
        generation.finish("length", tokens=Tokens(input=1), cost=5.0)
        generation.finish("stop")

    event = recorder.only()
    assert (event.finish_reason, event.tokens, event.cost) == ("stop", Tokens(), 0.0)


def test_a_generation_that_is_never_finished() -> None:
    """Nobody knows how it ended."""
    recorder = Recorder()

    with recorder.generation():
        pass

    assert recorder.only().finish_reason == "unknown"


# How a block can fail.


@pytest.mark.parametrize("make", [*CANCELLATIONS, *FAILURES])
def test_an_exception_comes_out_as_itself(make: Callable[[], BaseException]) -> None:
    """The same object, out of every kind of block; the block is told of all the same."""
    recorder = Recorder()
    error = make()

    for block in recorder.blocks():
        with pytest.raises(type(error)) as caught, block:
            raise error
        assert caught.value is error

    assert [type(event) for event in recorder.events] == [ToolCall, BridgeCall, Generation]


def outcomes(error: BaseException) -> tuple[object, ...]:
    """What the three kinds of blocks say when *error* ends them."""
    recorder = Recorder()
    for block in recorder.blocks():
        with pytest.raises(type(error)), block:
            raise error
    tool, bridge, generation = recorder.events
    assert isinstance(tool, ToolCall)
    assert isinstance(bridge, BridgeCall)
    assert isinstance(generation, Generation)
    assert (tool.status, tool.error) == (bridge.status, bridge.error)
    return tool.status, tool.error, generation.finish_reason


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("wrong"), "ValueError: wrong"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "KeyError: 'key'"),
        (trio.TooSlowError(), "TooSlowError"),
        (HostileError(), "HostileError"),
        (TrickyError(), "TrickyError: tricky"),
        (ExceptionGroup("several", [ValueError()]), "ExceptionGroup: several (1 sub-exception)"),
    ],
)
def test_a_failure_is_an_error(error: Exception, text: str) -> None:
    """With its kind and its text, as far as it has one."""
    assert outcomes(error) == ("error", text, "error")


class NamelessKind(type):
    """Classes that fail where they are asked for their name."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class NamelessError(Exception, metaclass=NamelessKind):
    """Keeps its name to itself, and what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError


def test_an_exception_of_a_hostile_class_comes_out_as_itself() -> None:
    """Nothing of its class is asked in a way that may fail."""
    recorder = Recorder()
    error = NamelessError("wrong")
    for block in recorder.blocks():
        try:
            with block:
                raise error
        except NamelessError as caught:
            assert caught is error  # noqa: PT017 - pytest.raises asks for its class

    tool = recorder.events[0]
    assert isinstance(tool, ToolCall)
    assert tool.error == "NamelessError: wrong"


def test_groups_many_levels_deep_come_out_as_themselves() -> None:
    """However many nurseries there are inside each other."""
    error: Exception = ValueError("wrong")
    for _ in range(10_000):
        error = ExceptionGroup("deep", [error])

    assert outcomes(error) == ("error", "ExceptionGroup: deep (1 sub-exception)", "error")


@pytest.mark.parametrize("make", CANCELLATIONS)
def test_a_cancellation_is_no_error_of_the_tool(make: Callable[[], BaseException]) -> None:
    """Nothing failed; that it was cut short is said where an error would be."""
    assert outcomes(make()) == ("success", "cancelled", "cancelled")


def test_a_failure_beside_a_cancellation_is_an_error() -> None:
    """Something did fail, whatever else was cut short by it."""
    error = BaseExceptionGroup("mixed", [asyncio.CancelledError(), ValueError("a")])

    assert outcomes(error) == ("error", "BaseExceptionGroup: mixed (2 sub-exceptions)", "error")


async def test_a_block_that_trio_cancels(autojump_clock: trio.testing.MockClock) -> None:
    """The scope still catches what is its own, and the duration is until then."""
    recorder = Recorder(trio.current_time)

    with trio.move_on_after(3) as scope, recorder.tool():
        await trio.sleep_forever()

    assert scope.cancelled_caught
    assert recorder.only().status == "success"
    assert recorder.only().error == "cancelled"
    assert recorder.only().duration_ms == 3000


async def test_a_block_with_tasks_that_trio_cancels(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A nursery gives a group of cancellations, which is a cancellation."""
    recorder = Recorder()

    with trio.move_on_after(1) as scope, recorder.tool():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    assert scope.cancelled_caught
    assert recorder.only().error == "cancelled"


async def test_a_block_around_its_own_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A tool that gave up by itself has failed, if it says so, and is done, if it does not."""
    recorder = Recorder()

    with pytest.raises(trio.TooSlowError), recorder.tool():
        with trio.fail_after(1):
            await trio.sleep_forever()
    with recorder.tool(), trio.move_on_after(1):
        await trio.sleep_forever()

    calls: list[Any] = recorder.events
    assert [call.status for call in calls] == ["error", "success"]
    assert calls[0].error == "TooSlowError"


async def test_a_generation_that_is_cut_short_keeps_what_was_said() -> None:
    """Its tokens were spent; how it ended was said before."""
    recorder = Recorder()

    def call_model() -> None:
        with recorder.generation() as generation:
            generation.finish("stop", tokens=Tokens(output=5), cost=1.0)
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        call_model()

    event = recorder.only()
    assert (event.finish_reason, event.tokens, event.cost) == ("stop", Tokens(output=5), 1.0)


def test_a_long_text_is_cut_to_a_window() -> None:
    """More than is sent in the end, so that no secret is cut in half before it is masked."""
    assert message_of(ValueError("x" * 100_000)) == "x" * 4096
    assert error_text(ValueError("x" * 100_000)) == f"ValueError: {'x' * 4096}"


@pytest.mark.parametrize("make", CANCELLATIONS)
def test_what_a_cancellation_is(make: Callable[[], BaseException]) -> None:
    """Whatever is no ``Exception``, alone or together with others like it."""
    assert is_cancellation(make())


@pytest.mark.parametrize("make", FAILURES)
def test_what_a_cancellation_is_not(make: Callable[[], BaseException]) -> None:
    """An ``Exception``, alone or in a group with anything."""
    assert not is_cancellation(make())


# The sequence of a session's tool calls.


async def test_tool_calls_are_numbered_as_they_begin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whenever they end, each knows its place and the tool that began before it."""
    recorder = Recorder(trio.current_time)

    async def call(name: str, begin: float, seconds: float) -> None:
        await trio.sleep(begin)
        with recorder.tool(name):
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "slow", 1, 10)
        nursery.start_soon(call, "read", 2, 1)
        nursery.start_soon(call, "grep", 3, 1)
        nursery.start_soon(call, "late", 6, 1)

    calls: list[Any] = recorder.events
    assert [(call.tool_name, call.sequence_index, call.previous_tool) for call in calls] == [
        ("read", 1, "slow"),
        ("grep", 2, "read"),
        ("late", 3, "grep"),
        ("slow", 0, None),
    ]
    assert [call.duration_ms for call in calls] == [1000, 1000, 1000, 10_000]


def test_a_tool_inside_another() -> None:
    """The inner one begins later and ends sooner."""
    recorder = Recorder()

    with recorder.tool("outer"), recorder.tool("inner"):
        pass

    calls: list[Any] = recorder.events
    assert [(call.tool_name, call.sequence_index, call.previous_tool) for call in calls] == [
        ("inner", 1, "outer"),
        ("outer", 0, None),
    ]


async def test_threads_number_their_calls_together() -> None:
    """No number is given twice, and none is left out.

    The tool before is missing where that call began in another thread at that very moment.
    """
    recorder = Recorder()

    def run_tools() -> None:
        for _ in range(500):
            with recorder.tool():
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(trio.to_thread.run_sync, run_tools)

    calls: list[Any] = recorder.events
    assert sorted(call.sequence_index for call in calls) == list(range(4000))
    without = [call.sequence_index for call in calls if call.previous_tool is None]
    assert 0 in without
    assert len(without) < 400
    assert {call.previous_tool for call in calls} == {None, "bash"}


@pytest.mark.parametrize("kind", [dict, int, bytes, list, lambda: TrickyText("mcp__x")])
def test_any_name_of_a_tool_is_taken(kind: Callable[[], Any]) -> None:
    """What is odd is a matter of the pipeline, not of the agent's block."""
    recorder = Recorder()
    name = kind()

    with recorder.tool(name):
        pass

    assert recorder.only().tool_name is name


# Blocks of a session that does nothing.


def test_a_silent_session_measures_nothing() -> None:
    """The blocks run, can be said to be finished, and can be inside each other."""
    with (
        SILENT.tool_call("bash"),
        SILENT.tool_call("bash") as tool,
        SILENT.bridge_call("sql.execute") as bridge,
        SILENT.generation() as generation,
    ):
        generation.finish("stop", tokens=Tokens(input=1), cost=1.0)

    assert isinstance(tool, Tool)
    assert isinstance(bridge, BridgeMeasure)
    assert isinstance(generation, GenerationMeasure)


def test_a_silent_session_lets_exceptions_through() -> None:
    """As themselves."""
    blocks: list[AbstractContextManager[object]] = [
        SILENT.tool_call("bash"),
        SILENT.bridge_call("sql.execute"),
        SILENT.generation(),
    ]
    for block in blocks:
        with pytest.raises(ValueError, match="wrong"), block:
            raise ValueError("wrong")
