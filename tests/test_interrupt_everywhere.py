"""Ctrl-C everywhere: on whichever line of the library it falls, the books are right at the end.

Most of the library runs in tasks that are protected from it. What the host's own code calls
does not, unless it says so: there ``KeyboardInterrupt`` could be raised between any two lines.
"""

from __future__ import annotations

import itertools
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import trimaran
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

LIBRARY = str(Path(trimaran.__file__).parent)
CALL = trimaran.ToolCall(tool_name="bash")
SETTINGS = trimaran.Settings(mailbox_events=3, batch_events=2, strict=True)


class Interruption:
    """Sends this process an interrupt, at one of the lines that nothing protects from it."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._passed = 0
        self.line: str | None = None
        """Where it came; None if there were not so many lines."""

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Wait for that line in a block."""
        tracer = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(tracer)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        is_library = frame.f_code.co_filename.startswith(LIBRARY)
        return self._pass if is_library and not trio.lowlevel.currently_ki_protected() else None

    def _pass(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            if self._passed == self._at:
                sys.settrace(None)
                self.line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
            self._passed += 1
        return self._pass


async def agent(sessions: list[trimaran.Session], capture: Capture) -> None:
    """A session in which everything is done once or a few times."""
    async with capture.open(settings=SETTINGS) as telemetry, telemetry.session() as session:
        sessions.append(session)
        with session.tool_call("bash"):
            await trio.sleep(0.01)
        for _ in range(4):
            session.track(CALL)
        for _ in range(4):
            await session.send(CALL)
        await session.flush(timeout=1)
        session.error(ValueError("no such table"))
        with session.generation() as generation:
            generation.finish("stop")


def test_interrupted_on_any_line_the_promises_hold() -> None:
    """It comes out as itself; every event has a fate, and none of them is a bug of ours.

    The endpoint is well, so that an exit at the deadline would be one, too.
    """
    for at in itertools.count():
        interruption = Interruption(at)
        sessions: list[trimaran.Session] = []
        clock = trio.testing.MockClock(autojump_threshold=0)
        try:
            with interruption.armed():
                trio.run(agent, sessions, Capture(), clock=clock)
        except KeyboardInterrupt:
            assert interruption.line is not None
        else:
            assert interruption.line is None
            break
        for session in sessions:
            books = session.statistics()
            where = f"{interruption.line}: {books}"
            assert books.tracked == books.delivered + books.dropped_total + books.pending, where
            assert books.pending == 0, where
            assert set(books.dropped) <= {"mailbox_full"}, where
    assert at > 50
