"""Whether the endpoint is worth an attempt now: shared health, decided purely.

In: how attempts ended, and when. Out: from when on the next one may be made.
Does not know: requests, tasks; the time comes in as an argument, in seconds of a
monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FAILURES_TO_OPEN", "Circuit", "RetryBudget"]

FAILURES_TO_OPEN = 3
"""Failures in a row, over all sessions, after which the endpoint counts as down. One is
an accident, and a batch that alone is not taken meets the successes of other sessions."""


class Circuit:
    """Closed while the endpoint works; open, it lets one probe at a time through.

    Args:
        backoff: seconds to wait after the n-th failure in a row, from 1.
    """

    def __init__(self, backoff: Callable[[int], float]) -> None:
        self._backoff = backoff
        self._failures = 0
        self._retry_at = float("-inf")
        self._held_until = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether the endpoint counts as down."""
        return self._failures >= FAILURES_TO_OPEN

    def holds(self, now: float) -> bool:
        """Whether attempts have to queue up: it is open, or the endpoint asked for a pause."""
        return self.is_open or now < self._held_until

    def next_at(self) -> float:
        """When the next attempt may be made."""
        return max(self._retry_at if self.is_open else float("-inf"), self._held_until)

    def failed(self, now: float, *, pause: float | None, is_probe: bool) -> None:
        """An attempt failed; *pause* is what the endpoint asked for, in seconds.

        Attempts that were under way when it opened change nothing any more: only
        probes do, so that the wait does not grow by how many failed at once.
        """
        if pause is not None:
            self._held_until = max(self._held_until, now + pause)
        if not self.is_open or is_probe:
            self._failures += 1
            self._retry_at = now + self._backoff(self._failures)

    def succeeded(self) -> None:
        """The endpoint answered: it works."""
        self._failures = 0
        self._held_until = float("-inf")

    def hurry(self) -> None:
        """Allow a probe at once; a pause that the endpoint asked for is kept all the same."""
        self._retry_at = float("-inf")


class RetryBudget:
    """Bounds repeated requests over all sessions, so that retries cannot bury an endpoint.

    A bucket that fills at a constant rate and holds what ten seconds fill.

    Args:
        per_second: repeated requests a second, in the long run.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, 10 * per_second)
        self._left = self._most
        self._filled_at = float("-inf")

    def take(self, now: float) -> float:
        """Take one; seconds to wait before it may be used."""
        gained = (now - self._filled_at) * self._per_second
        self._left = min(self._most, self._left + gained) - 1
        self._filled_at = now
        return max(0.0, -self._left / self._per_second)
