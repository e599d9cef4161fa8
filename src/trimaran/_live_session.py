"""A session with a pipeline of its own: the channel scope.

In: events, from the agent's tasks and threads. Out: three stages joined by channels, a
ledger, statistics.
Does not know: other sessions, the tier, how the network is reached.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import cast

import trio
from msgspec.structs import replace

from trimaran._children import Children
from trimaran._current import current
from trimaran._diagnostics import Diagnostics
from trimaran._ends import Ends
from trimaran._environment import Parent, with_parent, without_consent, without_parent
from trimaran._events import Event, SessionEnd, SessionStart
from trimaran._forked import tell_if_forked
from trimaran._hooks import Dropped
from trimaran._open_blocks import OpenBlocks, WatchedBlock
from trimaran._pipeline.collector import Known, ToolSequence, collect
from trimaran._pipeline.encoder import STOPS
from trimaran._pipeline.entry import Entry
from trimaran._pipeline.inbox import Inbox
from trimaran._pipeline.ledger import DropReason, Ledger, Statistics
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.members import Members, OfSession
from trimaran._pipeline.memory import MemoryBudget
from trimaran._pipeline.redact import Redactor, mask_text
from trimaran._pipeline.wire import LONGEST_PARENT, Context
from trimaran._recording import BridgeMeasure, GenerationMeasure, ToolMeasure
from trimaran._session import Flushed, Session
from trimaran._shared import SessionContext, Shared
from trimaran._spans import Block, Place, Spans, span_number

__all__ = ["LiveSession"]

_CALLS_BETWEEN_YIELDS = 128
"""Calls of ``send`` after which other tasks get a turn. One turn costs as much as ten
events, and the pipeline moves up to 200 of them in each."""

_LOOK_AGAIN = 0.01
"""Seconds until it is looked again whether a block is still open, when a parent waits for that."""

_NO_THREAD = 0
"""What no thread is called."""


class LiveSession(Session):
    """A session with a pipeline of its own.

    Args:
        context: what it says of itself.
        shared: what it has in common with the other sessions of its telemetry.
        announce: whether it tracks its own start and end.
    """

    def __init__(self, context: SessionContext, shared: Shared, *, announce: bool) -> None:
        settings = shared.settings
        self._shared = shared
        self._token = trio.lowlevel.current_trio_token()
        self._context = context
        self._announce = announce
        self._settings = settings
        self._diagnostics = shared.diagnostics
        self._hooks = shared.hooks
        self._wall_clock = shared.wall_clock
        self._now = trio.lowlevel.current_clock().current_time
        self._thread = threading.get_ident()
        self._redactor = Redactor(shared.home)
        self._tools = ToolSequence()
        on_drop = self._tell_drops_soon if shared.hooks.wants_drops else None
        self.ledger = Ledger(on_drop)
        """The session's books; others only read them."""
        self._mailbox = Mailbox(
            settings, ledger=self.ledger, budget=shared.budget, wall_clock=shared.wall_clock
        )
        self._inbox = Inbox(
            self._token, mailbox=self._mailbox, ledger=self.ledger, capacity=settings.mailbox_events
        )
        key_prefix = shared.new_id()
        self._spans = (
            Spans(
                key_prefix,
                span_number(context.span_id),
                now=self._now,
                wall_clock=shared.wall_clock,
            )
            if shared.wants_spans
            else None
        )
        self.ends: Ends = Ends(
            shared,
            mailbox=self._mailbox,
            ledger=self.ledger,
            context=Context(
                session_id=context.session_id,
                cli_version=shared.version,
                user_email=shared.user_email,
                project_id=mask_text(context.project_id, shared.home),
            ),
            parent_session_id=self._parent_that_can_be_named(context.parent_session_id),
            key_prefix=key_prefix,
            members=self._members,
            on_drop=on_drop,
            tell_bug=self._tell_bug,
        )
        """What it has for its destinations."""
        # Only a parent asks for it.
        self._open_blocks = None if shared.parent is None else OpenBlocks()
        self._children = Children(
            key_prefix,
            take=self._take_from_child,
            refuse=self._refuse_from_child,
            is_withdrawn=shared.is_withdrawn,
            diagnostics=shared.diagnostics,
            environ=shared.environ,
            strict=settings.strict,
            with_places=shared.wants_spans,
        )
        self._pid = os.getpid()
        self._stages: trio.Nursery | None = None
        self._latest_end = math.inf
        """When children must have left, since the telemetry is left; by trio's clock."""
        self._sends = 0
        self._begun = self._now()
        self._closed = False
        self._is_finished = False
        tell_if_forked(self)
        if announce:
            self.track(
                SessionStart(
                    model_id=context.model_id,
                    provider_id=context.provider_id,
                    agent=context.agent,
                    project_id=context.project_id,
                )
            )

    def __repr__(self) -> str:
        books = self.statistics()
        return (
            f"<Session {self.id!r}: tracked {books.tracked}, delivered {books.delivered}, "
            f"dropped {books.dropped_total}, pending {books.pending}>"
        )

    @property
    def id(self) -> str:
        """The id that every event of this session carries."""
        return self._context.session_id

    @trio.lowlevel.enable_ki_protection
    def track(self, event: Event, place: Place | None = None) -> None:
        """See :meth:`Session.track`. Given a *place*, that is where it stands among the spans."""
        if self._spans is not None and place is None:
            place = self._spans.here()
        if threading.get_ident() == self._thread:
            try:
                self._mailbox.put(event, None, place)
            except STOPS:
                # A signal's handler may have raised it after the event was taken, or dropped.
                # Was it not, it pends to the end of the session, and is a bug's then.
                raise
            except BaseException as bug:  # noqa: BLE001 - whatever it is, it is not the agent's
                self.ledger.drop(DropReason.BUG)
                self._tell_bug(bug)
            return
        try:
            now = self._wall_clock()
        except STOPS:
            raise
        except BaseException:  # noqa: BLE001 - a clock is the host's own code
            self._inbox.lose(DropReason.BUG)
        else:
            self._inbox.put(event, now, place)

    @trio.lowlevel.enable_ki_protection
    async def send(self, event: Event, place: Place | None = None) -> None:
        """See :meth:`Session.send`; *place* as in :meth:`track`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        place = self.here() if place is None else place
        try:
            if not self._mailbox.put_if_room(event, None, place):
                await self._mailbox.put_when_room(event, None, place)
        except STOPS:
            raise
        except BaseException as bug:  # noqa: BLE001 - as in track(); the event is in no book yet
            self.ledger.track()
            self.ledger.drop(DropReason.BUG)
            self._tell_bug(bug)
        self._sends += 1
        if self._sends % _CALLS_BETWEEN_YIELDS == 0:
            # The event is in: a cancel that came now would say that it is not.
            await trio.lowlevel.cancel_shielded_checkpoint()

    def here(self) -> Place | None:
        """Where an event stands among the spans that happens here and now; None for the
        session's root, and where nobody wants to know.
        """
        return None if self._spans is None else self._spans.here()

    def _block(self) -> Block | WatchedBlock | None:
        span = None if self._spans is None else self._spans.block()
        return span if self._open_blocks is None else self._open_blocks.block(span)

    @trio.lowlevel.enable_ki_protection
    async def flush(self, *, timeout: float = 2.0) -> Flushed:
        """See :meth:`Session.flush`."""
        before = self.statistics()
        self._inbox.empty()
        mark = self._mailbox.flush()
        self.ends.nudge()
        try:
            with trio.move_on_after(max(0.0, timeout)):
                await mark.wait()
        finally:
            self._mailbox.forget(mark)
        after = self.statistics()
        return Flushed(
            complete=mark.is_reached,
            delivered=after.delivered - before.delivered,
            dropped=after.dropped_total - before.dropped_total,
            pending=after.pending,
            spooled=after.spooled,
            handed_over=after.handed_over,
        )

    async def say_all(self) -> None:
        """Return when no block is open, and all is decided that was tracked until then."""
        while True:
            # What ends during the flush is tracked behind its mark.
            was_open = bool(self._open_blocks)
            await self.flush(timeout=math.inf)
            if not (was_open or self._open_blocks):
                return
            # They are left in any thread, and nobody is told.
            await trio.sleep(_LOOK_AGAIN)

    def statistics(self) -> Statistics:
        """See :meth:`Session.statistics`."""
        return self.ends.statistics(
            self._inbox.statistics, max(self._mailbox.peak, len(self._mailbox))
        )

    def generation(
        self,
        *,
        message_id: str = "",
        model_id: str | None = None,
        provider_id: str | None = None,
        agent: str | None = None,
    ) -> GenerationMeasure:
        """See :meth:`Session.generation`."""
        context = self._context
        return GenerationMeasure(
            self.track,
            self._now,
            self._block(),
            message_id=message_id,
            model_id=context.model_id if model_id is None else model_id,
            provider_id=context.provider_id if provider_id is None else provider_id,
            agent=context.agent if agent is None else agent,
        )

    def tool_call(
        self, tool_name: str, *, message_id: str = "", category: str | None = None
    ) -> ToolMeasure:
        """See :meth:`Session.tool_call`."""
        block = self._block()
        return ToolMeasure(
            self.track, self._now, self._tools, tool_name, message_id, category, block
        )

    def bridge_call(self, method: str) -> BridgeMeasure:
        """See :meth:`Session.bridge_call`."""
        return BridgeMeasure(self.track, self._now, method, self._block())

    @trio.lowlevel.enable_ki_protection
    def to_env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """See :meth:`Session.to_env`."""
        base = os.environ if base is None else base
        if self._shared.is_withdrawn():
            return without_consent(base)
        above = 0 if self._spans is None else self._spans.above()
        span_id = f"{above:016x}" if above else ""
        parent = self._shared.parent
        environ = with_parent(
            base,
            self._as_parent(span_id)
            if parent is None
            else replace(
                parent,
                span_id=span_id,
                has_own_consent=parent.has_own_consent or self._shared.has_own_consent,
            ),
        )
        if environ is None:
            self._diagnostics.warn("telemetry takes no children", reason="its context is too long")
            return without_parent(base)
        return environ

    def _as_parent(self, span_id: str) -> Parent:
        """What children are told; somebody listens for them from now on."""
        place = self._children.place()
        if threading.get_ident() == self._thread:
            self._await_children()
        elif place is not None and not self._closed:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._await_children, idempotent=True)
        return self._shared.as_parent(
            self._context,
            pid=self._pid,
            socket=None if place is None else str(place),
            is_over=self._children.is_over,
            span_id=span_id,
        )

    def _await_children(self) -> None:
        if self._stages is not None and self._children.is_to_run():
            self._stages.start_soon(self._run_children)

    @trio.lowlevel.enable_ki_protection
    async def _run_children(self) -> None:
        current.set(None)
        await self._children.run()
        self._finish()

    async def _take_from_child(self, event: Event, place: Place | None) -> None:
        if not self._mailbox.put_if_room(event, None, place, from_child=True):
            await self._mailbox.put_when_room(event, None, place, from_child=True)
        self.ledger.from_children += 1

    def _refuse_from_child(self) -> None:
        self.ledger.from_children += 1
        self.ledger.track()
        self.ledger.drop(DropReason.ENCODE_ERROR)

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """End the session: its last event is tracked, and nothing more is taken.

        While children are attached, their events still are, for ``drain_timeout`` seconds at
        most; the last event comes after theirs. What waits is still delivered, by its own
        tasks, while the telemetry is open.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._inbox.empty()
        finally:
            deadline = min(self._now() + self._settings.drain_timeout, self._latest_end)
            if self._children.end(deadline):
                self._mailbox.refuse()
            else:
                self._finish()

    def hurry(self, deadline: float) -> None:
        """The telemetry is left: children are waited for until *deadline* at the latest."""
        self._latest_end = deadline
        self._children.hurry(deadline)

    def _finish(self) -> None:
        """Nothing more comes from anybody. May be called again."""
        if self._is_finished:
            return
        self._is_finished = True
        try:
            if self._announce:
                duration = round((self._now() - self._begun) * 1000)
                self._mailbox.put(SessionEnd(duration_ms=duration), always=True)
        except Exception as bug:  # noqa: BLE001 - as in track()
            self.ledger.drop(DropReason.BUG)
            self._tell_bug(bug)
        finally:
            self._mailbox.close()

    def abandon(self) -> None:
        """Take nothing: the telemetry that would run the stages is over."""
        self._closed = self._is_finished = True
        self._children.abandon()
        self._inbox.end()
        self._mailbox.end()
        self.ends.abandon()
        self.ledger.close(DropReason.CLOSED)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Run the stages until everything has its fate, or until cancelled.

        The books are done either way. A bug in a stage ends this session alone; it
        comes out only if the settings are strict.
        """
        current.set(None)
        is_cancelled = False
        try:
            async with trio.open_nursery() as nursery:
                self._stages = nursery
                self._await_children()
                nursery.start_soon(
                    partial(
                        collect,
                        self._mailbox,
                        self.ends.open(),
                        redactor=self._redactor,
                        tools=self._tools,
                        known=Known(
                            model_id=self._context.model_id,
                            provider_id=self._context.provider_id,
                            agent=self._context.agent,
                        ),
                        drop=self._drop,
                        tell_bug=self._tell_bug,
                    )
                )
                await self.ends.run(nursery)
        except* trio.Cancelled:
            is_cancelled = True
            raise
        except* Exception as bugs:  # noqa: BLE001 - a stage's bug is not the agent's
            # A stage that fails breaks the channel of the one before it: that is no bug.
            is_cancelled = False
            self._tell_bug(bugs.split(trio.BrokenResourceError)[1] or bugs)
        finally:
            self._stages = None
            self._children.abandon()
            self._inbox.end()
            self._mailbox.end()
            self.ends.close(is_cancelled=is_cancelled)

    def forked(self) -> None:
        """This is a forked child's copy: it counts what is tracked, as closed, and no more.

        Nobody calls the session's thread, which is the parent's.
        """
        self._thread = _NO_THREAD
        self._closed = self._is_finished = True
        self._stages = None
        self.ledger = Ledger()
        self._mailbox = Mailbox(
            self._settings,
            ledger=self.ledger,
            budget=MemoryBudget(self._settings.memory_bytes),
            wall_clock=self._wall_clock,
        )
        self._mailbox.end()
        self.ends.forked(self.ledger)
        self._inbox = Inbox(None, mailbox=self._mailbox, ledger=self.ledger, capacity=1)
        self._inbox.end()
        self._children.forked()

    def _members(self) -> Members | None:
        """What goes out beside the origin's wire; None where nobody wants it."""
        if self._spans is None:
            return None
        return Members(self._spans, OfSession(self._shared.app, self._context.traceparent))

    def _parent_that_can_be_named(self, session_id: str) -> str:
        """*session_id*, or "" where it is too long for a header."""
        if len(session_id) <= LONGEST_PARENT:
            return session_id
        self._diagnostics.warn("telemetry parent session not named", characters=len(session_id))
        return ""

    def _tell_drops_soon(self) -> None:
        """Later rather than now: a hook is not to run inside of ``track()``."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._tell_drops)

    def _tell_drops(self) -> None:
        """Tell the host's hook what was dropped since the last time."""
        for name, reason, count in self.ends.take_untold():
            self._hooks.dropped(
                Dropped(session_id=self.id, destination=name, reason=reason, count=count)
            )

    def _tell_bug(self, bug: BaseException, voice: Diagnostics | None = None) -> None:
        """Log *bug*, by the *voice* of a destination perhaps; where settings are strict, raise it."""
        (voice or self._diagnostics).warn("telemetry failed", error=_kinds(bug))
        if self._settings.strict:
            raise bug

    def _drop(self, entry: Entry, reason: DropReason) -> None:
        self.ledger.drop(reason)
        self._mailbox.release(entry.size)


def _kinds(error: BaseException) -> str:
    """The kinds of the errors in a group; their texts may quote an event."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return ", ".join(_kinds(part) for part in group.exceptions)
    return type(error).__name__
