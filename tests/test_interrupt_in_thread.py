"""Ctrl-C on any line that plain code calls: nothing hangs, and the books are right at the end."""

from __future__ import annotations

import atexit
import contextvars
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import trimaran
from patience import PATIENCE
from trimaran.testing import Capture

LIBRARY = Path(trimaran.__file__).parent
PLAIN = {str(LIBRARY / name) for name in ("_in_thread.py", "_thread.py", "_thread_session.py")}
"""Where plain code waits. Not where locks are held: the interpreter lets no signal in between
the end of a ``with`` block and its lock's release, which a tracer does."""

COMMAND = trimaran.Command(command_name="init")
SETTINGS = trimaran.Settings(drain_timeout=PATIENCE, strict=True)


class Interruption:
    """Sends this process an interrupt, at one of the lines of the library that run here."""

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
        return self._pass if frame.f_code.co_filename in PLAIN else None

    def _pass(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            if self._passed == self._at:
                sys.settrace(None)
                self.line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
            self._passed += 1
        return self._pass


def host(sessions: list[trimaran.ThreadSession], capture: Capture) -> None:
    """A session in which everything is done once or twice."""
    environ = {"APP_TELEMETRY_URL": "https://capture.invalid"}
    with trimaran.open_in_thread(
        "app", environ=environ, transport=capture, settings=SETTINGS
    ) as telemetry:
        with telemetry.session() as session:
            sessions.append(session)
            with session.tool_call("bash"):
                pass
            session.track(COMMAND)
            session.send(COMMAND)
            session.flush(timeout=1)
            trimaran.current_session().error("urgent")


def test_interrupted_on_any_line_the_promises_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out as itself; every event has a fate, and none of them is a bug of ours.

    Where it falls on the way into the block, or on the way out before that has begun, the
    block is left at the interpreter's exit.
    """
    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)

    def unregister(call: Callable[[], object]) -> None:
        if call in at_exit:
            at_exit.remove(call)

    monkeypatch.setattr(atexit, "unregister", unregister)

    for at in itertools.count():
        interruption = Interruption(at)
        sessions: list[trimaran.ThreadSession] = []
        began = time.monotonic()
        try:
            with interruption.armed():
                contextvars.copy_context().run(host, sessions, Capture())
        except KeyboardInterrupt:
            assert interruption.line is not None
        else:
            assert interruption.line is None
            break
        for call in at_exit.copy():
            call()
        assert not at_exit, interruption.line
        assert time.monotonic() - began < PATIENCE / 2, f"{interruption.line} waits for nothing"
        assert not [t for t in threading.enumerate() if t.name == "trimaran app"], interruption.line
        for session in sessions:
            books = session.statistics()
            where = f"{interruption.line}: {books}"
            assert books.tracked == books.delivered + books.dropped_total + books.pending, where
            assert books.pending == 0, where
            assert set(books.dropped) <= {"closed"}, where
    assert at > 50
