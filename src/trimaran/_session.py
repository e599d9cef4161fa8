"""A session: what an agent calls, and the channel scope behind it.

In: what happens, from any code of the agent. Out: three stages joined by channels, a
ledger, statistics.
Does not know: other sessions, the tier, how the network is reached.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable
from random import Random
from types import MappingProxyType

import msgspec
import trio

from trimaran._current import current
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import Endpoint
from trimaran._events import Command, CommandSource, ErrorEvent, Event, SessionEnd, SessionStart
from trimaran._pipeline.batcher import Batch, batch_events
from trimaran._pipeline.collector import ToolSequence, collect
from trimaran._pipeline.inbox import Inbox
from trimaran._pipeline.ledger import DropReason, Ledger, Statistics
from trimaran._pipeline.mailbox import Chunk, Entry, Mailbox, MemoryBudget
from trimaran._pipeline.redact import Redactor
from trimaran._pipeline.sender import Sender
from trimaran._pipeline.wire import Context
from trimaran._recording import (
    BridgeMeasure,
    GenerationMeasure,
    SilentBridgeMeasure,
    SilentGenerationMeasure,
    SilentToolMeasure,
    ToolMeasure,
    message_of,
)
from trimaran._settings import Settings

__all__ = ["Flushed", "LiveSession", "Session", "SessionContext", "SilentSession", "current_session"]

_CALLS_BETWEEN_YIELDS = 128
"""Calls of ``send`` after which other tasks get a turn. One turn costs as much as ten
events, and the pipeline moves up to 200 of them in each."""


class Flushed(msgspec.Struct, frozen=True, kw_only=True):
    """How a flush ended. True in a condition exactly when it is complete."""

    complete: bool
    """Whether everything that was tracked before has its fate: delivered or dropped."""
    delivered: int = 0
    """Events delivered while it lasted."""
    dropped: int = 0
    """Events dropped while it lasted."""
    pending: int = 0
    """Events whose fate was open when it ended."""

    def __bool__(self) -> bool:
        return self.complete


class Session(abc.ABC):
    """What an agent says of one session.

    All calls but :meth:`send` and :meth:`flush` are plain functions that never wait
    and never raise for what they are given; they may be called from any thread, also
    after the session has ended, when their events are counted as ``closed``.
    """

    @property
    @abc.abstractmethod
    def id(self) -> str:
        """The session's id; "" when nothing is recorded."""

    @abc.abstractmethod
    def track(self, event: Event) -> None:
        """Hand over an event: stamp it, keep it, go on.

        Never waits, never raises, may be called from any thread. What cannot be kept
        is dropped and counted: see :class:`~trimaran.DropReason`.
        """

    @abc.abstractmethod
    async def send(self, event: Event) -> None:
        """Hand over an event, waiting for room instead of dropping.

        Always a point of cancellation; other tasks get a turn when it waits, and every
        128 calls. A cancel leaves the event untracked. After the end of the session the
        event is counted as ``closed``. From the session's own trio run only.
        """

    @abc.abstractmethod
    async def flush(self, *, timeout: float = 2.0) -> Flushed:  # noqa: ASYNC109 - says how it ended
        """Wait until all that was tracked before is delivered or dropped.

        Args:
            timeout: seconds to wait at most; ``math.inf`` waits as long as it takes.

        Returns:
            How it ended: false in a condition when the time ran out before. A cancel
            leaves everything as it is: what was tracked is still on its way.
        """

    @abc.abstractmethod
    def statistics(self) -> Statistics:
        """What became of the events up to this moment; also after the end."""

    @abc.abstractmethod
    def generation(
        self,
        *,
        message_id: str = "",
        model_id: str | None = None,
        provider_id: str | None = None,
        agent: str | None = None,
    ) -> GenerationMeasure:
        """A block that calls a model; call ``finish()`` of what it gives inside.

        A block that ends without it has the finish reason ``"error"`` after an
        exception, ``"cancelled"`` after a cancellation, else ``"unknown"``.

        Args:
            message_id: the message that is generated.
            model_id: the session's, if None; so for the next two.
            provider_id: who runs the model.
            agent: which agent asks.
        """

    @abc.abstractmethod
    def tool_call(
        self, tool_name: str, *, message_id: str = "", category: str | None = None
    ) -> ToolMeasure:
        """A block that runs a tool; its duration, status and place are kept by itself.

        Calls are numbered in the order in which they begin. An exception makes the
        status ``"error"`` and goes on; a cancellation is not taken for an error of the
        tool: the status is ``"success"`` then and ``error`` says ``"cancelled"``.

        Args:
            tool_name: MCP tools are known by ``mcp__`` at its beginning.
            message_id: the message that asked for it.
            category: ``tool_category``; the tool type, if None.
        """

    @abc.abstractmethod
    def bridge_call(self, method: str) -> BridgeMeasure:
        """A block that calls *method* of a bridge; as :meth:`tool_call`."""

    def command(
        self, command_name: str, *, source: CommandSource = "unknown", message_id: str = ""
    ) -> None:
        """A slash command was run."""
        self.track(
            Command(command_name=command_name, command_source=source, message_id=message_id)
        )

    def error(self, error: BaseException | str, *, context: str = "") -> None:
        """Something failed: an exception, or what it is called.

        Args:
            error: an exception gives its class and text; text gives both.
            context: where it happened, ``"prompt"`` say.
        """
        if isinstance(error, BaseException):
            event = ErrorEvent(
                error_name=type(error).__name__, error_message=message_of(error), context=context
            )
        else:
            event = ErrorEvent(error_name=error, error_message=error, context=context)
        self.track(event)


class SilentSession(Session):
    """A session that does nothing, as cheaply as can be; it has no state."""

    _tool = SilentToolMeasure()
    _bridge = SilentBridgeMeasure()
    _generation = SilentGenerationMeasure()

    def __repr__(self) -> str:
        return "<Session: nothing is recorded>"

    @property
    def id(self) -> str:
        """Always ""."""
        return ""

    def track(self, event: Event) -> None:
        """Nothing is kept."""

    async def send(self, event: Event) -> None:  # noqa: ARG002 - the interface's
        """Nothing is kept. A point of cancellation as the real one."""
        await trio.lowlevel.checkpoint_if_cancelled()

    async def flush(self, *, timeout: float = 2.0) -> Flushed:  # noqa: ARG002, ASYNC109 - the interface's
        """There is nothing to wait for. A checkpoint."""
        await trio.lowlevel.checkpoint()
        return Flushed(complete=True)

    def statistics(self) -> Statistics:
        """All zero."""
        return Statistics()

    def generation(
        self,
        *,
        message_id: str = "",  # noqa: ARG002 - the interface's, as below
        model_id: str | None = None,  # noqa: ARG002
        provider_id: str | None = None,  # noqa: ARG002
        agent: str | None = None,  # noqa: ARG002
    ) -> GenerationMeasure:
        """A block that nobody measures."""
        return self._generation

    def tool_call(
        self,
        tool_name: str,  # noqa: ARG002 - the interface's, as below
        *,
        message_id: str = "",  # noqa: ARG002
        category: str | None = None,  # noqa: ARG002
    ) -> ToolMeasure:
        """A block that nobody measures."""
        return self._tool

    def bridge_call(self, method: str) -> BridgeMeasure:  # noqa: ARG002 - the interface's
        """A block that nobody measures."""
        return self._bridge

    def command(
        self, command_name: str, *, source: CommandSource = "unknown", message_id: str = ""
    ) -> None:
        """Nothing is kept."""

    def error(self, error: BaseException | str, *, context: str = "") -> None:
        """Nothing is kept."""


SILENT = SilentSession()


def current_session() -> Session:
    """The innermost session of this task's context, or one that does nothing.

    A task inherits it from the code that started it.
    """
    session = current.get()
    return SILENT if session is None else session


class SessionContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a session says of itself and, where they say nothing else, of its events."""

    session_id: str
    project_id: str = ""
    agent: str = ""
    model_id: str = ""
    provider_id: str = ""


class LiveSession(Session):
    """A session with a pipeline of its own.

    Args:
        context: what it says of itself.
        wire_context: what each of its batches says.
        endpoint: the way out, shared.
        settings: its bounds.
        budget: the telemetry's bytes, shared.
        diagnostics: the telemetry's voice.
        home: the user's home directory, to be masked.
        random: where jitter comes from.
        wall_clock: seconds since the epoch.
        key_prefix: unique over all sessions of all time.
        announce: whether it tracks its own start and end.
    """

    def __init__(
        self,
        context: SessionContext,
        *,
        wire_context: Context,
        endpoint: Endpoint,
        settings: Settings,
        budget: MemoryBudget,
        diagnostics: Diagnostics,
        home: str | None,
        random: Random,
        wall_clock: Callable[[], float],
        key_prefix: str,
        announce: bool,
    ) -> None:
        self._context = context
        self._announce = announce
        self._settings = settings
        self._diagnostics = diagnostics
        self._wall_clock = wall_clock
        self._redactor = Redactor(home)
        self._tools = ToolSequence()
        self._ledger = Ledger()
        self._mailbox = Mailbox(
            settings, ledger=self._ledger, budget=budget, wall_clock=wall_clock
        )
        self._sender = Sender(
            context=wire_context,
            key_prefix=key_prefix,
            endpoint=endpoint,
            settings=settings,
            ledger=self._ledger,
            release=self._mailbox.release,
            diagnostics=diagnostics,
            random=random,
            wall_clock=wall_clock,
        )
        self._now = trio.lowlevel.current_clock().current_time
        self._thread = threading.get_ident()
        self._inbox = Inbox(
            trio.lowlevel.current_trio_token(),
            mailbox=self._mailbox,
            ledger=self._ledger,
            capacity=settings.mailbox_events,
        )
        self._sends = 0
        self._begun = self._now()
        self._closed = False
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

    def track(self, event: Event) -> None:
        """See :meth:`Session.track`."""
        if threading.get_ident() == self._thread:
            try:
                self._mailbox.put(event)
            except Exception as bug:  # noqa: BLE001 - whatever it is, it is not the agent's
                self._ledger.drop(DropReason.BUG)
                self._tell_bug(bug)
        else:
            self._inbox.put(event, self._wall_clock())

    async def send(self, event: Event) -> None:
        """See :meth:`Session.send`."""
        await self._mailbox.put_when_room(event)
        self._sends += 1
        if self._sends % _CALLS_BETWEEN_YIELDS == 0:
            # The event is in: a cancel that came now would say that it is not.
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def flush(self, *, timeout: float = 2.0) -> Flushed:  # noqa: ASYNC109 - says how it ended
        """See :meth:`Session.flush`."""
        before = self.statistics()
        self._inbox.empty()
        mark = self._mailbox.flush()
        try:
            with trio.move_on_after(timeout):
                await mark.wait()
        finally:
            self._mailbox.forget(mark)
        after = self.statistics()
        return Flushed(
            complete=mark.is_reached,
            delivered=after.delivered - before.delivered,
            dropped=after.dropped_total - before.dropped_total,
            pending=after.pending,
        )

    def statistics(self) -> Statistics:
        """See :meth:`Session.statistics`."""
        ledger = self._ledger
        waiting, refused = self._inbox.counts()
        dropped = {str(reason): count for reason, count in ledger.dropped.items()}
        for reason, count in refused.items():
            dropped[str(reason)] = dropped.get(str(reason), 0) + count
        return Statistics(
            tracked=ledger.tracked + waiting + sum(refused.values()),
            delivered=ledger.delivered,
            pending=ledger.pending + waiting,
            dropped=MappingProxyType(dropped),
            batches=ledger.batches,
            attempts=ledger.attempts,
            retries=ledger.retries,
            loss_reports=ledger.loss_reports,
            peak_waiting=max(self._mailbox.peak, len(self._mailbox)),
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
            message_id=message_id,
            model_id=context.model_id if model_id is None else model_id,
            provider_id=context.provider_id if provider_id is None else provider_id,
            agent=context.agent if agent is None else agent,
        )

    def tool_call(
        self, tool_name: str, *, message_id: str = "", category: str | None = None
    ) -> ToolMeasure:
        """See :meth:`Session.tool_call`."""
        return ToolMeasure(self.track, self._now, self._tools, tool_name, message_id, category)

    def bridge_call(self, method: str) -> BridgeMeasure:
        """See :meth:`Session.bridge_call`."""
        return BridgeMeasure(self.track, self._now, method)

    def close(self) -> None:
        """End the session: its last event is tracked, and nothing more is taken.

        What waits is still delivered, by its own tasks, while the telemetry is open.
        """
        if self._closed:
            return
        self._closed = True
        self._inbox.empty()
        if self._announce:
            duration = round((self._now() - self._begun) * 1000)
            self._mailbox.put(SessionEnd(duration_ms=duration), always=True)
        self._mailbox.close()

    def abandon(self) -> None:
        """Take nothing: the telemetry that would run the stages is over."""
        self._closed = True
        self._inbox.end()
        self._mailbox.end()
        self._ledger.drop(DropReason.CLOSED, self._ledger.pending)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Run the stages until everything has its fate, or until cancelled.

        The books are done either way. A bug in a stage ends this session alone; it
        comes out only if the settings are strict.
        """
        current.set(None)
        to_batcher, from_collector = trio.open_memory_channel[Chunk](0)
        to_sender, from_batcher = trio.open_memory_channel[Batch](0)
        reason = DropReason.BUG
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._collect, to_batcher)
                nursery.start_soon(self._batch, from_collector, to_sender)
                nursery.start_soon(self._send, from_batcher)
        except* trio.Cancelled:
            reason = self._sender.held_back_by or DropReason.DRAIN_TIMEOUT
            raise
        except* Exception as bugs:
            self._tell_bug(bugs)
        finally:
            self._inbox.end()
            self._mailbox.end()
            self._ledger.drop(reason, self._ledger.pending)

    @trio.lowlevel.enable_ki_protection
    async def _collect(self, send: trio.MemorySendChannel[Chunk]) -> None:
        await collect(
            self._mailbox,
            send,
            redactor=self._redactor,
            tools=self._tools,
            drop=self._drop,
            tell_bug=self._tell_bug,
        )

    @trio.lowlevel.enable_ki_protection
    async def _batch(
        self, receive: trio.MemoryReceiveChannel[Chunk], send: trio.MemorySendChannel[Batch]
    ) -> None:
        await batch_events(
            receive,
            send,
            settings=self._settings,
            session_id=self.id,
            ledger=self._ledger,
            drop=self._drop,
            wall_clock=self._wall_clock,
        )

    @trio.lowlevel.enable_ki_protection
    async def _send(self, receive: trio.MemoryReceiveChannel[Batch]) -> None:
        await self._sender.run(receive)

    def _tell_bug(self, bug: Exception) -> None:
        """Log *bug*; where the settings are strict, raise it."""
        self._diagnostics.warn("telemetry failed", error=_kinds(bug))
        if self._settings.strict:
            raise bug

    def _drop(self, entry: Entry, reason: DropReason) -> None:
        self._ledger.drop(reason)
        self._mailbox.release(entry.size)


def _kinds(error: BaseException) -> str:
    """The kinds of the errors in a group; their texts may quote an event."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_kinds(part) for part in error.exceptions)
    return type(error).__name__
