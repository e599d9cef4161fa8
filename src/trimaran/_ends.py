"""What a session has for all its destinations: one end, or several behind a parting of ways.

In: chunks of masked entries. Out: the books of each destination.
Does not know: the agent's side of a session, what an end does.

With one destination its books are the session's, and what the collector hands on goes to its
batcher without a detour. With several, the session's books are of the way that they have in
common, and each destination has its own for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio
from msgspec.structs import replace
from trio.abc import ReceiveChannel, SendChannel

from trimaran._diagnostics import Diagnostics
from trimaran._end import End
from trimaran._pipeline.entry import Chunk
from trimaran._pipeline.fan_out import Branch, FanOut
from trimaran._pipeline.ledger import DropReason, Ledger, Statistics, books_past
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.members import Members
from trimaran._pipeline.wire import Context
from trimaran._shared import Shared

__all__ = ["Ends"]


class Ends:
    """The ends of one session.

    Args:
        shared: what they share with other sessions; it has the ways to the destinations.
        mailbox: the session's.
        ledger: the session's books.
        context: what every batch says of the session.
        parent_session_id: the session that this one works for.
        key_prefix: unique over all sessions of all time.
        members: makes what goes out beside the origin's wire, for one that wants it.
        on_drop: as in :class:`Ledger`, and so None.
        tell_bug: told of a bug in one of several, and who speaks for that one; may raise.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        mailbox: Mailbox,
        ledger: Ledger,
        context: Context,
        parent_session_id: str,
        key_prefix: str,
        members: Callable[[], Members | None],
        on_drop: Callable[[], object] | None,
        tell_bug: Callable[[Exception, Diagnostics], None],
    ) -> None:
        self._intake = ledger
        self._mailbox = mailbox
        self._names_each = shared.names_destinations
        self._event_bytes = shared.settings.event_bytes
        self._tell_bug = tell_bug
        self._way_in: ReceiveChannel[Chunk] | None = None
        self._branches: list[Branch] = []
        each: list[End] = []
        for route in shared.routes:
            books, box, prefix = ledger, mailbox, key_prefix
            if len(shared.routes) > 1:
                books = Ledger(on_drop)
                box = Branch(
                    shared.settings,
                    ledger=books,
                    budget=route.budget,
                    wall_clock=shared.wall_clock,
                )
                self._branches.append(box)
                # The first one's keys are what they are without the others.
                prefix = shared.new_id() if each else key_prefix
            each.append(
                End(
                    route,
                    shared,
                    mailbox=box,
                    ledger=books,
                    context=context,
                    parent_session_id=parent_session_id,
                    key_prefix=prefix,
                    members=members() if route.wants_spans else None,
                )
            )
        self.each: tuple[End, ...] = tuple(each)
        """In the order of the destinations; the first one's books are what is told first."""

    def open(self) -> SendChannel[Chunk]:
        """The way in, for the collector."""
        if self._branches:
            return FanOut(
                self._branches,
                intake=self._intake,
                release=self._mailbox.release,
                event_bytes=self._event_bytes,
            )
        to_batcher, self._way_in = trio.open_memory_channel[Chunk](0)
        return to_batcher

    async def run(self, nursery: trio.Nursery) -> None:
        """Run their stages, partly in *nursery*; not a checkpoint where there are several."""
        if self._way_in is not None:
            await self.each[0].run(self._way_in, nursery)
        for end, branch in zip(self.each, self._branches, strict=False):
            nursery.start_soon(end.run_apart, branch, self._tell_bug)

    def nudge(self) -> None:
        """Somebody waits for what is pending: each destination may be tried now."""
        for end in self.each:
            end.route.endpoint.nudge()

    def close(self, *, is_cancelled: bool) -> None:
        """Their stages are over, by a cancel or else: the books are done."""
        for branch in self._branches:
            branch.end()
        for end in self.each:
            end.close_books(is_cancelled=is_cancelled)
        reason = DropReason.DRAIN_TIMEOUT
        if all(end.route.consent.is_withdrawn for end in self.each):
            reason = DropReason.CONSENT_WITHDRAWN
        self._intake.close(reason if is_cancelled else DropReason.BUG)

    def abandon(self) -> None:
        """Their stages will never run; nothing has come to them."""
        for branch in self._branches:
            branch.end()

    def forked(self, ledger: Ledger) -> None:
        """This is a forked child's copy, whose books are *ledger*."""
        self._intake = ledger
        for end in self.each:
            end.ledger = Ledger() if self._branches else ledger

    def statistics(self, intake: Callable[[], Statistics], peak: int) -> Statistics:
        """The first destination's books, and by name those of each; from any thread.

        Args:
            intake: gives the session's books.
            peak: most events that waited in its mailbox.
        """
        if not self._names_each:
            return replace(intake(), peak_waiting=peak)
        by_name: dict[str, Statistics] = {}
        for number, end in enumerate(self.each):
            if self._branches:
                branch = self._branches[number]
                books = books_past(intake, end.ledger)
                most = max(peak, branch.peak, len(branch))
            else:
                books, most = intake(), peak
            by_name[end.route.name] = replace(books, peak_waiting=most)
        first = by_name[self.each[0].route.name]
        return replace(first, destinations=by_name)

    def take_untold(self) -> Iterator[tuple[str, DropReason, int]]:
        """The losses to tell the host of, with the destination that each was lost to."""
        shared = self._intake.take_untold() if self._branches else {}
        for end in self.each:
            for untold in (shared, end.ledger.take_untold()):
                for reason, count in untold.items():
                    yield end.route.name, reason, count
