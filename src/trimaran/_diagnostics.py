"""What the library itself has to say: few lines, through structlog.

In: a problem and a few plain facts about it. Out: at most one line a minute for
each problem, with the number of times that it was held back.
Does not know: events. Its lines never become events: they are logged outside of
any session.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from trimaran._current import outside_sessions

__all__ = ["Diagnostics"]

_INTERVAL = 60.0
"""Seconds between two lines about the same problem; logfire's choice too."""


class Diagnostics:
    """The voice of one telemetry.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def warn(self, problem: str, /, **facts: object) -> None:
        """Log *problem* as a warning, unless it was logged within the last minute.

        Never raises: a processor of the host's that fails is the host's to notice
        in its own lines.
        """
        now = self._now()
        last = self._last.get(problem)
        if last is not None and now - last < _INTERVAL:
            self._held_back[problem] = self._held_back.get(problem, 0) + 1
            return
        self._last[problem] = now
        repeated = self._held_back.pop(problem, 0)
        if repeated:
            facts["repeated"] = repeated
        with outside_sessions():
            try:
                _logger().warning(problem, **facts)
            except Exception:  # noqa: BLE001, S110 - see the docstring
                pass


def _logger() -> Any:  # noqa: ANN401 - structlog's own type for a bound logger
    """The host's structlog; where it is not configured, a line on stderr.

    Unconfigured structlog prints to stdout, which belongs to the host's own output.
    """
    import structlog  # noqa: PLC0415 - tens of milliseconds, and seldom needed

    if structlog.is_configured():
        return structlog.get_logger("trimaran")
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
