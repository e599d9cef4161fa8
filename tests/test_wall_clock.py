"""A wall clock that fails: it is the host's own code, and costs events, never the agent."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import structlog
import trio

import trimaran
from trimaran.testing import ScriptedTransport

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

CALL = trimaran.ToolCall(tool_name="bash")


class Clock:
    """Works until it is told not to; *where* names the thread in which it fails then."""

    def __init__(self) -> None:
        self.fails = False
        self.only_in: int | None = None

    def __call__(self) -> float:
        if self.fails and self.only_in in {None, threading.get_ident()}:
            raise ZeroDivisionError
        return time.time()


def opened(clock: Clock) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A telemetry with that clock, whose endpoint takes everything."""
    return trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test"},
        transport=ScriptedTransport(),
        wall_clock=clock,
    )


async def test_in_another_thread_it_costs_the_event() -> None:
    """``track()`` raises there as little as anywhere, and every event is counted."""
    clock = Clock()

    def work() -> None:
        clock.only_in = threading.get_ident()
        for _ in range(3):
            session.track(CALL)
            clock.fails = not clock.fails

    async with opened(clock) as telemetry, telemetry.session() as session:
        await trio.to_thread.run_sync(work)
        clock.fails = False
        assert await session.flush()

    books = session.statistics()
    assert books.dropped == {"bug": 1}
    assert (books.tracked, books.delivered, books.pending) == (5, 4, 0)


async def test_send_does_not_raise_either() -> None:
    """Whether there is room for the event or not."""
    clock = Clock()
    async with opened(clock) as telemetry, telemetry.session() as session:
        clock.fails = True
        await session.send(CALL)
        clock.fails = False
        while session.statistics().pending < 400:  # as many may be ahead of one that can wait
            session.track(CALL)
        clock.fails = True
        await session.send(CALL)
        clock.fails = False

    books = session.statistics()
    assert books.dropped == {"bug": 2}
    assert (books.tracked, books.delivered, books.pending) == (403, 401, 0)


async def test_in_the_sessions_own_thread_it_costs_the_event() -> None:
    """Told of once, by its kind."""
    clock = Clock()
    with structlog.testing.capture_logs() as logs:
        async with opened(clock) as telemetry, telemetry.session() as session:
            clock.fails = True
            session.track(CALL)
            session.track(CALL)
            clock.fails = False

    books = session.statistics()
    assert books.dropped == {"bug": 2}
    assert (books.tracked, books.delivered, books.pending) == (4, 2, 0)
    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry failed", "ZeroDivisionError")
    ]


@pytest.mark.parametrize("error", [None, KeyError("the host's own")])
async def test_when_a_session_is_left_it_costs_its_end(error: Exception | None) -> None:
    """What the block is left with comes out as it is, and the session is over all the same."""
    clock = Clock()
    opened_sessions: list[trimaran.Session] = []
    caught: Exception | None = None
    with structlog.testing.capture_logs():
        async with opened(clock) as telemetry:
            try:
                async with telemetry.session() as session:
                    opened_sessions.append(session)
                    assert await session.flush()
                    clock.fails = True
                    if error is not None:
                        raise error
            except KeyError as left_with:
                caught = left_with
            opened_sessions[0].track(CALL)

    assert caught is error
    books = opened_sessions[0].statistics()
    assert books.delivered == 1
    assert books.dropped == {"bug": 1, "closed": 1}
    assert books.pending == 0
