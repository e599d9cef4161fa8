"""A session, as an agent sees it; and the one that does nothing.

In: what happens, from any code of the agent. Out: events, to whoever implements it.
Does not know: pipelines, tasks, the tier.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping
from typing import cast

import msgspec
import trio

from trimaran._current import current
from trimaran._environment import without_consent, without_parent
from trimaran._events import Command, CommandSource, ErrorEvent, Event
from trimaran._pipeline.encoder import class_name, inherits
from trimaran._pipeline.ledger import Statistics
from trimaran._pipeline.redact import beginning
from trimaran._recording import (
    BridgeMeasure,
    GenerationMeasure,
    SilentBridgeMeasure,
    SilentGenerationMeasure,
    SilentToolMeasure,
    ToolMeasure,
    message_of,
)

__all__ = ["OPTED_OUT", "SILENT", "Flushed", "Session", "SilentSession", "current_session"]


class Flushed(msgspec.Struct, frozen=True, kw_only=True):
    """How a flush ended. True in a condition exactly when it is complete."""

    complete: bool
    """Whether everything that was tracked before was delivered, dropped or handed over to a
    relay."""
    delivered: int = 0
    """Events delivered while it lasted."""
    dropped: int = 0
    """Events dropped while it lasted."""
    pending: int = 0
    """Events whose fate was open when it ended."""
    spooled: int = 0
    """How many of those are safe on disk: whatever happens to the process, a later one
    delivers them."""
    handed_over: int = 0
    """How many of those are on the disk of a relay, which delivers them."""

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
    async def flush(self, *, timeout: float = 2.0) -> Flushed:
        """Wait until all that was tracked before is delivered or dropped.

        Where delivery waits for a better moment, it is tried now: once a second at most, for
        all sessions together, and not before the end of a pause that the endpoint asked for.

        Args:
            timeout: seconds to wait at most; ``math.inf`` waits as long as it takes.

        Returns:
            How it ended, which is false in a condition when the time ran out before. A cancel
            leaves everything as it is: what was tracked is still on its way.
        """

    @abc.abstractmethod
    def statistics(self) -> Statistics:
        """What became of the events up to this moment; also after the end."""

    @abc.abstractmethod
    def to_env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """An environment for a child process that takes part in this session.

        The child gets there with :func:`~trimaran.attach`. It is told of the session, of who
        its parent is and how to reach it, of the decision, and by ``TRACEPARENT`` of the
        trace; never of a token. Where telemetry was switched off, at the start or by now, it
        stays off in the child; where none is set up, the child is told nothing.

        The first call opens a socket, in a directory of the user's own, which ends with the
        session.

        Args:
            base: what to add to, which is left as it is; ``os.environ``, if None.
        """

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
        self.track(Command(command_name=command_name, command_source=source, message_id=message_id))

    def error(self, error: BaseException | str, *, context: str = "") -> None:
        """Something failed: an exception, or what it is called.

        Args:
            error: an exception gives its class and text; text gives both, of which 4,096
                characters are looked at.
            context: where it happened, ``"prompt"`` say.
        """
        if inherits(type(error), BaseException):
            failure = cast("BaseException", error)
            name, message = class_name(type(failure)), message_of(failure)
        elif type(error) is str:
            name = message = beginning(error)
        else:
            name = message = cast("str", error)
        event = ErrorEvent(error_name=name, error_message=message, context=context)
        self.track(event)


class SilentSession(Session):
    """A session that does nothing, as cheaply as can be; it has no state.

    Args:
        is_opted_out: whether that is what somebody wants, for child processes too.
    """

    _tool = SilentToolMeasure()
    _bridge = SilentBridgeMeasure()
    _generation = SilentGenerationMeasure()

    def __init__(self, *, is_opted_out: bool = False) -> None:
        self._is_opted_out = is_opted_out

    def __repr__(self) -> str:
        return "<Session: nothing is recorded>"

    @property
    def id(self) -> str:
        """Always ""."""
        return ""

    def track(self, event: Event) -> None:
        """Nothing is kept."""

    async def send(self, event: Event) -> None:  # noqa: ARG002 - the interface's
        """Nothing is kept. A point of cancellation as the real one, where trio runs."""
        if trio.lowlevel.in_trio_run():
            await trio.lowlevel.checkpoint_if_cancelled()

    async def flush(self, *, timeout: float = 2.0) -> Flushed:  # noqa: ARG002 - the interface's
        """There is nothing to wait for. A checkpoint, where trio runs."""
        if trio.lowlevel.in_trio_run():
            await trio.lowlevel.checkpoint()
        return Flushed(complete=True)

    def statistics(self) -> Statistics:
        """All zero."""
        return Statistics()

    def to_env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """A copy of *base* in which there is no session, and off stays off."""
        base = os.environ if base is None else base
        return without_consent(base) if self._is_opted_out else without_parent(base)

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
OPTED_OUT = SilentSession(is_opted_out=True)


def current_session() -> Session:
    """The innermost session of this task's context, or one that does nothing.

    A task inherits it from the code that started it.
    """
    innermost = current.get()
    return SILENT if innermost is None else innermost.session
