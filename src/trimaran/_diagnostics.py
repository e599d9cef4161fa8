"""What the library itself has to say: few lines, through structlog and the host's hook.

In: a problem and a few plain facts about it. Out: at most one line a minute for
each problem, with the number of times that it was held back.
Does not know: events. Its lines never become events: they are logged outside of
any session.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from trimaran._current import outside_sessions
from trimaran._hooks import Hooks, Problem

__all__ = ["Diagnostics"]

_INTERVAL = 60.0
"""Seconds between two lines about the same problem; logfire's choice too."""


class Diagnostics:
    """The voice of one telemetry.

    Args:
        now: a monotonic clock, in seconds.
        hooks: the host's, told whatever is logged.
    """

    def __init__(self, now: Callable[[], float], hooks: Hooks | None = None) -> None:
        self._now = now
        self._hooks = Hooks() if hooks is None else hooks
        self._hooks.fail = self._hook_failed
        self._about: dict[str, object] = {}
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def about(self, destination: str) -> Diagnostics:
        """A voice for what concerns one *destination*: it names that in every line, and its
        lines are counted for themselves.
        """
        fail = self._hooks.fail
        named = Diagnostics(self._now, self._hooks)
        self._hooks.fail = fail
        named._about = {"destination": destination}
        return named

    def warn(self, problem: str, /, **facts: object) -> None:
        """Tell of *problem*, unless it was told within the last minute.

        Never raises: a processor of the host's that fails is the host's to notice
        in its own lines.
        """
        repeated = self._due(problem)
        if repeated is None:
            return
        facts = self._about | facts
        self._hooks.problem(Problem(name=problem, count=repeated + 1, facts=facts))
        self._log("warning", problem, repeated, facts)

    def inform(self, news: str, /, **facts: object) -> None:
        """Log *news* that are no problem, as rarely as problems."""
        repeated = self._due(news)
        if repeated is not None:
            self._log("info", news, repeated, self._about | facts)

    def _hook_failed(self, kind: str) -> None:
        repeated = self._due("telemetry hook failed")
        if repeated is not None:
            self._log("warning", "telemetry hook failed", repeated, {"error": kind})

    def _due(self, line: str) -> int | None:
        """How often *line* was held back, if it may be told now; else None."""
        now = self._now()
        last = self._last.get(line)
        if last is not None and now - last < _INTERVAL:
            self._held_back[line] = self._held_back.get(line, 0) + 1
            return None
        self._last[line] = now
        return self._held_back.pop(line, 0)

    def _log(self, level: str, line: str, repeated: int, facts: dict[str, object]) -> None:
        if repeated:
            facts = {**facts, "repeated": repeated}
        with outside_sessions(), suppress(Exception):  # see warn()
            getattr(_logger(), level)(line, **facts)


def _logger() -> Any:  # noqa: ANN401 - structlog's own type for a bound logger
    """The host's structlog; where it is not configured, a line on stderr.

    Unconfigured structlog prints to stdout, which belongs to the host's own output.
    """
    import structlog  # noqa: PLC0415 - tens of milliseconds, and seldom needed

    if structlog.is_configured():
        return structlog.get_logger("trimaran")
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
