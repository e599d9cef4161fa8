"""Two lines for an outage: delivery lost, delivery restored, with what it cost.

In: the books of the sessions, the moments at which the endpoint's state changed.
Out: log lines.
Does not know: why the endpoint failed.
"""

from __future__ import annotations

from collections.abc import Callable

from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.ledger import Ledger

__all__ = ["Outages"]


class Outages:
    """Sums up the books of one telemetry's sessions, and tells of its outages.

    Args:
        diagnostics: the telemetry's voice.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, diagnostics: Diagnostics, now: Callable[[], float]) -> None:
        self._diagnostics = diagnostics
        self._now = now
        # A dict for its order, which a run with the same seeds repeats.
        self._running: dict[Ledger, None] = {}
        self._ended_delivered = 0
        self._ended_dropped = 0
        self._lost_at = 0.0
        self._before = (0, 0)
        self._caught_up_at: int | None = None
        """The number of decided events at which the backlog of the outage is worked off."""

    def join(self, ledger: Ledger) -> None:
        """A session's tasks begin."""
        self._running[ledger] = None

    def leave(self, ledger: Ledger) -> None:
        """A session's tasks are over; its books are closed."""
        del self._running[ledger]
        self._ended_delivered += ledger.delivered
        self._ended_dropped += sum(ledger.dropped.values())

    def totals(self) -> tuple[int, int, int]:
        """Events delivered, dropped and pending, over all sessions."""
        delivered = self._ended_delivered + sum(books.delivered for books in self._running)
        dropped = self._ended_dropped + sum(sum(b.dropped.values()) for b in self._running)
        # What a relay has was not waited for.
        pending = sum(books.pending - books.handed_over for books in self._running)
        return delivered, dropped, pending

    def change(self, is_lost: bool) -> None:  # noqa: FBT001 - the endpoint's callback
        """Delivery was lost, or it works again."""
        delivered, dropped, pending = self.totals()
        if is_lost:
            self._caught_up_at = None
            self._lost_at = self._now()
            self._before = (delivered, dropped)
            self._diagnostics.warn("telemetry delivery lost", pending=pending)
        else:
            self._caught_up_at = delivered + dropped + pending

    def settled(self) -> None:
        """A batch has its fate: once the backlog is worked off, tell what the outage cost."""
        if self._caught_up_at is None:
            return
        delivered, dropped, _ = self.totals()
        if delivered + dropped >= self._caught_up_at:
            self._caught_up_at = None
            self._diagnostics.inform(
                "telemetry delivery restored",
                delivered=delivered - self._before[0],
                dropped=dropped - self._before[1],
                seconds=round(self._now() - self._lost_at, 1),
            )
