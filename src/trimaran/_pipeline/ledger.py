"""What became of every event: ``tracked == delivered + dropped + pending``.

In: counts, from the stage that decided. Out: the books, and what is yet to report.
Does not know: events, channels, time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

__all__ = ["DropReason", "Ledger", "Statistics", "books_past"]

_MOST_LOOKS = 100
"""Looks at the books at most: a finalizer that interrupts their own thread gets no further."""


class DropReason(StrEnum):
    """Why an event was not delivered; every dropped event has exactly one."""

    MAILBOX_FULL = "mailbox_full"
    """There was no room, in the session's mailbox or in the telemetry's memory."""
    CLOSED = "closed"
    """It was tracked after its session had ended."""
    TOO_LARGE = "too_large"
    """It was larger than an event may be, or than the endpoint takes."""
    ENCODE_ERROR = "encode_error"
    """It had no JSON form, or was no event at all."""
    REJECTED = "rejected"
    """The endpoint said that it will never take it."""
    RETRIES_EXHAUSTED = "retries_exhausted"
    """The endpoint did not take it for as long as one batch is tried."""
    UNAUTHORIZED = "unauthorized"
    """The endpoint refused the token until time ran out."""
    DRAIN_TIMEOUT = "drain_timeout"
    """The telemetry was left, and its time to drain ran out."""
    SPOOL_FULL = "spool_full"
    """The queue on disk had no room."""
    EXPIRED = "expired"
    """It waited on disk for longer than events are kept."""
    CONSENT_WITHDRAWN = "consent_withdrawn"
    """Telemetry was switched off while the event waited."""
    BUG = "bug"
    """A stage failed in a way that it should not."""


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a session's events, at one instant; all numbers are counts.

    ``tracked == delivered + sum(dropped.values()) + pending`` holds in every one.
    """

    tracked: int = 0
    """Events handed over, ``session_start`` and ``session_end`` included."""
    delivered: int = 0
    """Events that the endpoint confirmed."""
    pending: int = 0
    """Events whose fate is open: waiting, or in a request under way."""
    spooled: int = 0
    """How many of the pending events are safe on disk: a later process delivers them."""
    handed_over: int = 0
    """How many of the pending events are on the disk of a relay, which delivers them. After
    the end of the telemetry what is spooled and what is handed over is all that pends."""
    dropped: Mapping[str, int] = MappingProxyType({})
    """Events that were given up, by reason; a reason with no event is left out."""
    batches: int = 0
    """Batches whose fate was decided."""
    attempts: int = 0
    """Requests made, first ones and repeated ones."""
    retries: int = 0
    """Requests that repeated one before."""
    loss_reports: int = 0
    """Reports of losses that the endpoint confirmed, or a relay took; they are not events of
    the host."""
    peak_waiting: int = 0
    """Most events that waited in the mailbox at once; choose ``mailbox_events`` by it."""
    from_children: int = 0
    """How many of the tracked events came from processes that take part in the session; the
    reports of losses of their own are among them."""
    destinations: Mapping[str, Statistics] = {}
    """Where destinations are given: the books of each by its name, the first one's, which are
    these, included. Empty where none are."""

    def __repr__(self) -> str:
        # A read-only mapping says "mappingproxy(...)" of itself, which nobody wants to read.
        values = msgspec.structs.asdict(self) | {"dropped": dict(self.dropped)}
        if not self.destinations:
            del values["destinations"]
        return f"Statistics({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def dropped_total(self) -> int:
        """Events that were given up, over all reasons."""
        return sum(self.dropped.values())


class Ledger:
    """The books of one session. Written by one thread, that of the session's tasks.

    *on_drop* is called when there are losses to tell of, and not again until they were
    taken; it must not raise.
    """

    __slots__ = (
        "attempts",
        "batches",
        "delivered",
        "dropped",
        "from_children",
        "handed_over",
        "loss_reports",
        "on_drop",
        "pending",
        "retries",
        "spooled",
        "tracked",
        "unreported",
        "untold",
    )

    def __init__(self, on_drop: Callable[[], object] | None = None) -> None:
        self.tracked: int = 0
        self.from_children: int = 0
        self.delivered: int = 0
        self.pending: int = 0
        self.spooled: int = 0
        self.handed_over: int = 0
        self.dropped: dict[DropReason, int] = {}
        self.batches: int = 0
        self.attempts: int = 0
        self.retries: int = 0
        self.loss_reports: int = 0
        self.unreported: dict[DropReason, int] = {}
        """Losses that no report under way or delivered speaks of."""
        self.on_drop: Callable[[], object] | None = on_drop
        self.untold: dict[DropReason, int] = {}
        """Losses that the host was not told of; kept only with *on_drop*."""

    def track(self, count: int = 1) -> None:
        """*count* events were handed over; their fate is open."""
        self.tracked += count
        self.pending += count

    def deliver(self, count: int) -> None:
        """The endpoint confirmed *count* pending events."""
        self.pending -= count
        self.delivered += count

    def hand_over(self, count: int) -> None:
        """A relay took *count* pending events: they pend there."""
        self.handed_over += count

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """*count* pending events were given up."""
        if count:
            self.pending -= count
            _add(self.dropped, reason, count)
            _add(self.unreported, reason, count)
            if self.on_drop is not None:
                if not self.untold:
                    self.on_drop()
                _add(self.untold, reason, count)

    def close(self, reason: DropReason) -> None:
        """Nothing more will be decided here: what pends and is on no disk is given up."""
        self.drop(reason, self.pending - self.spooled - self.handed_over)

    def statistics(self) -> Statistics:
        """The books at this instant; from any thread.

        Another thread may look while an event moves from one count to the next: it lets the
        session's own thread go on, and looks again.
        """
        books = self._read()
        for _ in range(_MOST_LOOKS):
            if books.tracked == books.delivered + books.dropped_total + books.pending:
                break
            time.sleep(0)
            books = self._read()
        return books

    def _read(self) -> Statistics:
        dropped = self.dropped.copy()  # in one step, whatever is added meanwhile
        return Statistics(
            tracked=self.tracked,
            from_children=self.from_children,
            delivered=self.delivered,
            pending=self.pending,
            spooled=self.spooled,
            handed_over=self.handed_over,
            dropped=MappingProxyType({str(why): count for why, count in dropped.items()}),
            batches=self.batches,
            attempts=self.attempts,
            retries=self.retries,
            loss_reports=self.loss_reports,
        )

    def take_untold(self) -> dict[DropReason, int]:
        """The losses to tell the host of."""
        untold, self.untold = self.untold, {}
        return untold

    def take_losses(self) -> dict[DropReason, int]:
        """The losses to put into a report; they count as reported until given back."""
        losses, self.unreported = self.unreported, {}
        return losses

    def give_back_losses(self, losses: Mapping[DropReason, int]) -> None:
        """A report of *losses* did not arrive: the next one has to speak of them."""
        for reason, count in losses.items():
            _add(self.unreported, reason, count)


def books_past(intake: Callable[[], Statistics], end: Ledger) -> Statistics:
    """The books of a destination, where a session has several; from any thread.

    Args:
        intake: gives the books of what is on its way to all of them; what has got to them
            counts there as delivered.
        end: the destination's own.
    """
    before, own = intake(), end.statistics()
    for _ in range(_MOST_LOOKS):
        if before.delivered == own.tracked:
            break
        time.sleep(0)  # as in Ledger.statistics()
        before, own = intake(), end.statistics()
    dropped = dict(before.dropped)
    for reason, count in own.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    return msgspec.structs.replace(
        own,
        tracked=before.tracked,
        from_children=before.from_children,
        pending=before.pending + own.pending,
        dropped=MappingProxyType(dropped),
    )


def _add(counts: dict[DropReason, int], reason: DropReason, count: int) -> None:
    counts[reason] = counts.get(reason, 0) + count
