"""A session that does not announce itself: the replay of one that was recorded."""

from __future__ import annotations

import trimaran
from trimaran.testing import Capture


async def test_a_replay_has_the_recorded_start_and_end_and_no_others() -> None:
    """What is tracked is all that is sent; unset totals of a recorded end are filled in."""
    capture = Capture()
    async with capture.open() as telemetry:
        async with telemetry.session(session_id="s", announce=False) as session:
            session.track(trimaran.SessionStart(agent="build", timestamp=1_000))
            session.track(trimaran.ToolCall(tool_name="bash", timestamp=2_000))
            session.track(trimaran.SessionEnd(duration_ms=1_500, timestamp=2_500))

    start, call, end = capture.events()
    assert isinstance(start, trimaran.SessionStart)
    assert (start.agent, start.timestamp) == ("build", 1_000)
    assert isinstance(call, trimaran.ToolCall)
    assert isinstance(end, trimaran.SessionEnd)
    assert (end.timestamp, end.duration_ms, end.tool_call_count) == (2_500, 1_500, 1)
    assert session.statistics().tracked == session.statistics().delivered == 3


async def test_a_replay_of_nothing_sends_nothing() -> None:
    """Neither opening nor leaving such a session makes a request."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session(announce=False):
        pass

    assert capture.requests == []


async def test_a_session_announces_itself_unless_told_otherwise() -> None:
    """By default the start and the end are the session's own."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session():
        pass

    assert [type(event) for event in capture.events()] == [
        trimaran.SessionStart,
        trimaran.SessionEnd,
    ]
