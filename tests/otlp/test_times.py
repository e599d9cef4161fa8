"""When spans began and ended: as it was, and never outside of what they happened in."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import trio
import trio.testing

import trimaran
from otlp.comparing import check_inside
from otlp.recorder import recording
from otlp.sink import Sink
from otlp.systems import ReadSpan
from trimaran.otlp import OPENINFERENCE
from trimaran.otlp.conventions import table_of
from trimaran.otlp.spans import Names, Origin, Span, begun_by, read_body, spans_of
from trimaran.testing import Capture

EPOCH = 1_795_000_000.0
"""Seconds; as many as there are bits for, so that what is compared is exact."""
S = 1_000_000_000
"""Nanoseconds."""


class Watched(Capture):
    """A destination of spans, and the two clocks of an agent."""

    wants_spans = True

    def __init__(self, clock: trio.testing.MockClock) -> None:
        super().__init__()
        self.clock = clock
        self._begun = clock.current_time()
        self.set_by = 0.0
        """Seconds by which somebody has set the clock that can be set."""

    def pass_time(self, seconds: float) -> None:
        """It goes by."""
        self.clock.jump(seconds)

    def wall_clock(self) -> float:
        """The one that can be set."""
        return EPOCH + self.set_by + self.clock.current_time() - self._begun

    @asynccontextmanager
    async def session(self) -> AsyncIterator[trimaran.Session]:
        """A session that goes here."""
        async with (
            trimaran.open_telemetry(
                "test",
                environ={"TEST_TELEMETRY_URL": "https://x.test"},
                transport=self,
                wall_clock=self.wall_clock,
            ) as telemetry,
            telemetry.session() as session,
        ):
            yield session

    def spans(self) -> list[Span]:
        """What everything that came becomes; each batch by itself, as after a restart."""
        names = Names(OPENINFERENCE, table_of(OPENINFERENCE, {}))
        bodies = [read_body(request.body) for request in self.taken]
        return [span for body in bodies for span in spans_of(body, Origin(), names, begun_by(body))]

    def times(self) -> dict[str, tuple[float, float]]:
        """The seconds after the epoch at which each began and ended."""
        return {span.name: (span.start / S - EPOCH, span.end / S - EPOCH) for span in self.spans()}


async def test_times_are_whole(mock_clock: trio.testing.MockClock) -> None:
    """Not rounded to the wire's milliseconds: neither those of blocks, nor of what is in them."""
    capture = Watched(mock_clock)
    tick = 2.0**-16  # some 15 microseconds
    async with capture.session() as session:
        for name in ("a", "b"):
            capture.pass_time(tick)
            with session.generation(model_id=name):
                capture.pass_time(tick)
                with session.tool_call(f"in {name}"):
                    capture.pass_time(2 * tick)
                    session.command(f"in {name}")
                capture.pass_time(tick)
        capture.pass_time(tick)
        await session.flush()

    assert {name: (start / tick, end / tick) for name, (start, end) in capture.times().items()} == {
        "session_start": (0, 0),
        "chat a": (1, 5),
        "execute_tool in a": (2, 4),
        "command in a": (4, 4),
        "chat b": (6, 10),
        "execute_tool in b": (7, 9),
        "command in b": (9, 9),
        "invoke_agent": (0, 11),
    }


async def test_the_origins_wire_says_nothing_of_them(mock_clock: trio.testing.MockClock) -> None:
    """It is as it was, to the byte."""
    capture = Watched(mock_clock)
    capture.wants_spans = False
    async with capture.session() as session:
        with session.tool_call("bash"):
            capture.pass_time(0.25)

    assert b"span_" not in b"".join(request.body for request in capture.taken)
    [call] = capture.events(trimaran.ToolCall)
    assert (call.timestamp, call.duration_ms) == (int(EPOCH * 1000) + 250, 250)


async def test_a_clock_that_is_set_moves_no_block_out_of_another(
    mock_clock: trio.testing.MockClock,
) -> None:
    """In either direction; a session's own span has room for all of them."""
    for set_by in (-3_600.0, 3_600.0):
        capture = Watched(mock_clock)
        async with capture.session() as session:
            with session.generation(model_id="m"):
                capture.pass_time(1.0)
                capture.set_by += set_by
                with session.tool_call("inside"):
                    capture.pass_time(1.0)
                    session.command("inside")
            with session.tool_call("later"):
                capture.pass_time(1.0)
            capture.set_by -= set_by
            await session.flush()

        assert capture.times() == {
            "session_start": (0, 0),
            "chat m": (0, 2),
            "execute_tool inside": (1, 2),
            "command inside": (2, 2),
            "execute_tool later": (set_by + 2, set_by + 3),
            "invoke_agent": (min(0, set_by + 2), max(3, set_by + 3)),
        }


async def test_a_time_that_a_host_gives_is_its_own(mock_clock: trio.testing.MockClock) -> None:
    """As for what happened earlier, elsewhere: in milliseconds, and not the session's."""
    capture = Watched(mock_clock)
    stamp = int(EPOCH * 1000) - 5_000
    async with capture.session() as session:
        with session.tool_call("here"):
            capture.pass_time(0.5)
            session.track(
                trimaran.ToolCall(tool_name="elsewhere", duration_ms=250, timestamp=stamp)
            )

    assert capture.times() == {
        "session_start": (0, 0),
        "execute_tool elsewhere": (-5.25, -5),
        "execute_tool here": (0, 0.5),
        "invoke_agent": (0, 0.5),
    }


async def test_a_childs_times_are_those_that_it_has_measured(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Whatever its parent's clock says when it gets to know of them."""
    capture = Watched(mock_clock)
    tick = 2.0**-16
    async with capture.session() as session:
        with session.tool_call("task"):
            async with trimaran.attach(
                environ=session.to_env({}), wall_clock=capture.wall_clock
            ) as child:
                capture.pass_time(tick)
                with child.tool_call("child"):
                    capture.pass_time(tick)
                    child.command("child")
                capture.pass_time(tick)

    times = {name: (start / tick, end / tick) for name, (start, end) in capture.times().items()}
    assert times["execute_tool child"] == (1, 2)
    assert times["command child"] == (2, 2)
    assert times["execute_tool task"] == times["invoke_agent"] == (0, 3)


async def test_blocks_one_after_the_other_do_not_overlap() -> None:
    """By real clocks, as short as they come."""
    sink = Sink()
    began: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        async with recording(sink.url) as (telemetry, recorder):
            async with telemetry.session(agent="build") as session:
                for number in range(1_000):
                    began.append(time.time_ns())
                    with session.generation(model_id=str(number)), session.tool_call("bash"):
                        session.command("init")
                    if number % 100 == 0:
                        await session.flush()
        nursery.cancel_scope.cancel()

    spans = {span.span_id: span for span in sink.spans}
    assert len(spans) == 3_002
    order = {
        event.get("span_id") if event["type"] not in recorder.roots else "": number
        for number, event in enumerate(recorder.events())
    }
    check_inside(sorted(sink.spans, key=lambda s: order.get(s.span_id, order[""])), recorder)
    chats = sorted(
        (span for span in sink.spans if span.name.startswith("chat")), key=_number_in_name
    )
    assert all(first.end < second.start for first, second in pairwise(chats))
    assert all(
        before - 100_000 < chat.start < after + 100_000
        for chat, before, after in zip(chats, began, [*began[1:], time.time_ns()], strict=True)
    )


def _number_in_name(span: ReadSpan) -> int:
    return int(span.name.split()[1])
