"""A batch: what is sent together, finished.

In: a body and what the books say of it. Out: the same, or two halves of it.
Does not know: how it was gathered, how it is sent, where it waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import msgspec
import trio
from msgspec.structs import replace

from trimaran._pipeline import wire
from trimaran._pipeline.entry import Flush
from trimaran._pipeline.ledger import DropReason, Ledger

__all__ = ["MOST_TOGETHER", "Batch", "KeptBatch", "ready"]

MOST_TOGETHER = 16
"""Batches of a session that are put on disk, or handed over, at once at most: a disk, and
whoever waits for it, take as long for all of them as for one."""


class KeptBatch:
    """A batch's place on disk, and what the books say of it.

    Its events are pending like others, and beside that counted as spooled: whatever
    happens to this process, they are not lost.
    """

    __slots__ = (
        "events",
        "handed_by",
        "is_being_sent",
        "is_delivered",
        "is_left",
        "is_lost",
        "is_on_disk",
        "is_withdrawn",
        "ledger",
    )

    def __init__(self, ledger: Ledger, events: int, handed_by: str = "") -> None:
        self.ledger: Ledger = ledger
        self.handed_by: str = handed_by
        self.events: int = events
        """Events in it that the books know, and whose fate is open."""
        self.is_on_disk: bool = True
        self.is_being_sent: bool = False
        self.is_delivered: bool = False
        self.is_left: bool = False
        """Nobody here sends it any more: it stays on disk for a later process."""
        self.is_lost: bool = False
        """Somebody removed the file that it was in: it is in memory, or nowhere."""
        self.is_withdrawn: bool = False
        """Consent to it is gone: nothing of it may be sent from now on."""
        ledger.spooled += events

    def decided(self, count: int) -> None:
        """The fate of *count* of its events is known."""
        self.events -= count
        if self.is_on_disk:
            self.ledger.spooled -= count

    def lost(self) -> None:
        """Somebody removed the file that it was in; what is in memory of it is still sent.

        Where that is nothing, its removal was its fate.
        """
        self.is_on_disk = False
        self.is_lost = True
        self.ledger.spooled -= self.events
        if self.is_left:
            self.ledger.drop(DropReason.CONSENT_WITHDRAWN, self.events)
            self.events = 0

    def evicted(self, reason: DropReason) -> None:
        """It had to leave the disk; unless it is being sent, that is its fate."""
        self.is_on_disk = False
        self.is_withdrawn = reason is DropReason.CONSENT_WITHDRAWN
        self.ledger.spooled -= self.events
        if not self.is_being_sent:
            self.ledger.drop(reason, self.events)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A request's worth of events, and the marks that stand behind them."""

    key: str
    """The idempotency key: unique for all time, the same for every attempt."""
    body: bytes | None
    """What is sent; None when it has to be read from the spool, or there is nothing."""
    events: int
    """Events in it, reports included."""
    reports: int = 0
    """How many of them, from the first, are reports of losses: these are in no book."""
    losses: Mapping[DropReason, int] = {}
    """The losses that the reports speak of."""
    parent_session_id: str = ""
    """The session that the one of these events works for; "" for none."""
    traceparent: str = ""
    """What that session's root stands below; "" for nothing, and where nobody wants to know."""
    flushes: Sequence[Flush] = ()
    """Marks that are reached when this batch has its fate."""
    size: int = 0
    """Bytes that its events are charged with in memory."""
    kept: KeptBatch | None = None
    """Its place on disk, if it has one."""
    handed_by: str = ""
    """The process that handed it over, where it is in a relay."""

    @property
    def tracked(self) -> int:
        """Events in it that the books know."""
        return self.events - self.reports

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches with keys of their own, which follow from this one's."""
        assert self.body is not None
        first, second = wire.halves(self.body)
        middle = self.events // 2
        reports = min(self.reports, middle)
        return (
            replace(self, key=f"{self.key}.0", body=first, events=middle, reports=reports),
            replace(
                self,
                key=f"{self.key}.1",
                body=second,
                events=self.events - middle,
                reports=self.reports - reports,
            ),
        )


def ready(receive: trio.MemoryReceiveChannel[Batch], most: int) -> Iterator[Batch]:
    """What can be had without waiting, up to *most*."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        for _ in range(most):
            yield receive.receive_nowait()
