"""What a session has of its own for one destination: the stages behind the collector.

In: chunks of masked entries. Out: batches, on the destination's way out; the books of what
becomes of them there.
Does not know: the agent's side of a session, other destinations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio
from trio.abc import ReceiveChannel

from trimaran._current import current
from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.batch import MOST_TOGETHER, Batch
from trimaran._pipeline.batcher import batch_events
from trimaran._pipeline.entry import Chunk, Entry
from trimaran._pipeline.fan_out import Branch
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.members import Members
from trimaran._pipeline.sender import Sender
from trimaran._pipeline.spooler import MOST_WAITING, spool_batches
from trimaran._pipeline.wire import Context
from trimaran._shared import Route, Shared
from trimaran._spool.keeper import SpoolKeeper

__all__ = ["End"]


class End:
    """The batcher and the sender of one session, for one destination.

    Args:
        route: what it shares with other sessions.
        shared: what all ends of all sessions share.
        mailbox: told what is free again of what it handed on, and why what it sheds is shed.
        ledger: the books of this destination.
        context: what every batch says of the session.
        parent_session_id: the session that this one works for.
        key_prefix: unique over all ends of all sessions of all time.
        members: what goes out beside the origin's wire; None for nothing.
    """

    def __init__(
        self,
        route: Route,
        shared: Shared,
        *,
        mailbox: Mailbox,
        ledger: Ledger,
        context: Context,
        parent_session_id: str,
        key_prefix: str,
        members: Members | None,
    ) -> None:
        self.route: Route = route
        self.ledger: Ledger = ledger
        self._settings = shared.settings
        self._wall_clock = shared.wall_clock
        self._mailbox = mailbox
        self._context = context
        self._parent_session_id = parent_session_id
        self._key_prefix = key_prefix
        self._members = members
        self._sender = Sender(
            endpoint=route.endpoint,
            settings=shared.settings,
            ledger=ledger,
            keeper=route.keeper,
            settled=self._settled,
            hold=self._hold,
            diagnostics=route.diagnostics,
            random=shared.random,
            wall_clock=shared.wall_clock,
            ahead=route.ahead,
        )

    @property
    def cancelled_because(self) -> DropReason:
        """Why that is dropped which pends here when time runs out."""
        if self.route.consent.is_withdrawn:
            return DropReason.CONSENT_WITHDRAWN
        return self._sender.held_back_by or DropReason.DRAIN_TIMEOUT

    @trio.lowlevel.enable_ki_protection
    async def run(self, receive: ReceiveChannel[Chunk], nursery: trio.Nursery) -> None:
        """Run the stages until all that *receive* gave has its fate; it is closed then.

        The stages before the last are started in *nursery*. A cancel, or a bug, leaves the
        books to whoever owns them.
        """
        keeper = self.route.keeper
        to_sender, from_batcher = trio.open_memory_channel[Batch](
            0 if keeper is None and self.route.ahead is None else MOST_TOGETHER
        )
        nursery.start_soon(
            partial(
                batch_events,
                receive,
                to_sender,
                settings=self._settings,
                context=self._context,
                parent_session_id=self._parent_session_id,
                key_prefix=self._key_prefix,
                members=self._members,
                ledger=self.ledger,
                budget=self.route.budget,
                drop=self._drop,
                flush_interval=self.route.flush_interval,
                wall_clock=self._wall_clock,
            )
        )
        if keeper is not None:
            from_batcher = self._spooled(from_batcher, keeper, nursery)
        await self._sender.run(from_batcher)

    @trio.lowlevel.enable_ki_protection
    async def run_apart(
        self, branch: Branch, tell_bug: Callable[[Exception, Diagnostics], None]
    ) -> None:
        """Run the stages until *branch* has ended, or until cancelled.

        A bug in one of them ends this destination alone, with its books closed, and is told
        to *tell_bug*, which may raise in its turn.
        """
        current.set(None)
        try:
            async with trio.open_nursery() as nursery:
                await self.run(branch, nursery)
        except* trio.Cancelled:
            raise
        except* Exception as bugs:  # noqa: BLE001 - a stage's bug is not the agent's
            branch.break_off()
            self.ledger.close(DropReason.BUG)
            # As in a session with one destination: no bug in itself.
            bug = bugs.split(trio.BrokenResourceError)[1] or bugs
            tell_bug(bug, self.route.diagnostics)

    def close_books(self, *, is_cancelled: bool) -> None:
        """Nothing more is decided here. May be called again."""
        self.ledger.close(self.cancelled_because if is_cancelled else DropReason.BUG)

    def _spooled(
        self,
        from_batcher: trio.MemoryReceiveChannel[Batch],
        keeper: SpoolKeeper,
        nursery: trio.Nursery,
    ) -> trio.MemoryReceiveChannel[Batch]:
        """Put the spool between batcher and sender; gives the sender's new end."""
        budget = self.route.budget
        to_sender, from_spooler = trio.open_memory_channel[Batch](MOST_WAITING)
        nursery.start_soon(
            partial(
                spool_batches,
                from_batcher,
                to_sender,
                keeper=keeper,
                ledger=self.ledger,
                is_memory_short=lambda: budget.used > budget.limit // 2,
                release=self._mailbox.release,
            )
        )
        return from_spooler

    def _settled(self, size: int) -> None:
        """A batch of *size* bytes has its fate."""
        self._mailbox.release(size)
        self.route.outages.settled()

    def _hold(self, reason: DropReason | None) -> None:
        """What has to be shed while batches are not taken is shed for that reason."""
        self._mailbox.full_because = reason or DropReason.MAILBOX_FULL

    def _drop(self, entry: Entry, reason: DropReason) -> None:
        self.ledger.drop(reason)
        self._mailbox.release(entry.size)
