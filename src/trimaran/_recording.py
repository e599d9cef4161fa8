"""Blocks under measurement: a model call, a tool call, a bridge call.

In: a block of the agent's code, and how it ended.
Out: one typed event for each block, handed to ``track``.
Does not know: pipelines, channels, the network.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, cast

import msgspec

from trimaran._events import (
    UNSET,
    BridgeCall,
    Event,
    Generation,
    Status,
    Tokens,
    ToolCall,
    tool_type_of,
)
from trimaran._pipeline.collector import ToolSequence
from trimaran._pipeline.encoder import STOPS, class_name, inherits
from trimaran._spans import Place

__all__ = [
    "BridgeMeasure",
    "GenerationMeasure",
    "SilentBridgeMeasure",
    "SilentGenerationMeasure",
    "SilentToolMeasure",
    "ToolMeasure",
    "error_text",
    "is_cancellation",
    "message_of",
]

CANCELLED = "cancelled"
"""What a call that was cut short says in its ``error``: its status stays a success,
since the tool did not fail, and the wire has no third one."""

_TEXT_WINDOW = 4096
"""Characters of an error's text that are looked at; 500 of them are sent."""


def is_cancellation(error: BaseException) -> bool:
    """Whether *error* ends a block without the block having failed.

    That is what is no ``Exception`` (trio's and asyncio's cancellation, Ctrl-C,
    ``sys.exit``, a closed generator), alone or grouped with nothing else.
    """
    waiting = [error]  # rather than a call for each group inside another: they may be many
    while waiting:
        part = waiting.pop()
        if inherits(type(part), BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", part).exceptions
        elif inherits(type(part), Exception):
            return False
    return True


def message_of(error: BaseException) -> str:
    """An exception's text, cut to a window; "" where its own code fails to give one."""
    try:
        # An exact str, since a subclass may fail later, where it is put together with others.
        return str.__str__(str(error))[:_TEXT_WINDOW]
    except STOPS:
        raise
    except BaseException:  # noqa: BLE001 - an exception's __str__ is anybody's code
        return ""


def error_text(error: BaseException) -> str:
    """``"ValueError: text"``, whatever an exception's own code does."""
    name = class_name(type(error))
    text = message_of(error)
    return f"{name}: {text}" if text else name


class _Track(Protocol):
    def __call__(self, event: Event, place: Place | None = None, /) -> None: ...


class _Block(Protocol):
    def enter(self) -> None: ...
    def leave(self, begun: float, ended: float) -> Place | None: ...
    def done(self) -> None: ...


class _Measure(abc.ABC):
    """A block under measurement, by a monotonic clock; entered once.

    *block* is the same as a span, where somebody wants that.
    """

    __slots__ = ("_begun", "_block", "_now", "_track")

    def __init__(self, track: _Track, now: Callable[[], float], block: _Block | None) -> None:
        self._track = track
        self._now = now
        self._block = block
        self._begun = 0.0

    def __enter__(self) -> Self:
        if self._block is not None:
            self._block.enter()
        self._begun = self._now()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = self._now()
        duration_ms = round((ended - self._begun) * 1000)
        if self._block is None:
            self._track(self._event(duration_ms, error))
        else:
            try:
                place = self._block.leave(self._begun, ended)
                self._track(self._event(duration_ms, error), place)
            finally:
                self._block.done()

    @abc.abstractmethod
    def _event(self, duration_ms: int, error: BaseException | None) -> Event:
        """What happened, in a block that took so long and ended with *error*, if any."""


class ToolMeasure(_Measure):
    """The block of a tool call; tracks a :class:`~trimaran.ToolCall` when it ends.

    An exception makes the status ``"error"`` and goes on; a cancellation does not.
    """

    __slots__ = ("_category", "_index", "_message_id", "_name", "_previous", "_tools")

    def __init__(  # noqa: PLR0917 - made for every call of a tool: keywords double its cost
        self,
        track: _Track,
        now: Callable[[], float],
        tools: ToolSequence,
        name: str,
        message_id: str,
        category: str | None,
        block: _Block | None = None,
    ) -> None:
        super().__init__(track, now, block)
        self._tools = tools
        self._name = name
        self._message_id = message_id
        self._category = category
        self._index = 0
        self._previous: str | None = None

    def __enter__(self) -> Self:
        self._index, self._previous = self._tools.begin(self._name)
        return super().__enter__()

    def _event(self, duration_ms: int, error: BaseException | None) -> Event:
        status, text = _outcome(error)
        tool_type = tool_type_of(self._name)
        return ToolCall(
            message_id=self._message_id,
            tool_name=self._name,
            tool_type=tool_type,
            tool_category=tool_type if self._category is None else self._category,
            status=status,
            duration_ms=duration_ms,
            sequence_index=self._index,
            previous_tool=self._previous,
            error=text,
        )


class BridgeMeasure(_Measure):
    """The block of a bridge call; tracks a :class:`~trimaran.BridgeCall` when it ends."""

    __slots__ = ("_method",)

    def __init__(
        self,
        track: _Track,
        now: Callable[[], float],
        method: str,
        block: _Block | None = None,
    ) -> None:
        super().__init__(track, now, block)
        self._method = method

    def _event(self, duration_ms: int, error: BaseException | None) -> Event:
        status, text = _outcome(error)
        return BridgeCall(method=self._method, status=status, duration_ms=duration_ms, error=text)


class GenerationMeasure(_Measure):
    """The block of a model call; tracks a :class:`~trimaran.Generation` when it ends."""

    __slots__ = (
        "_agent",
        "_cost",
        "_message_id",
        "_model_id",
        "_provider_id",
        "_reason",
        "_tokens",
    )

    def __init__(
        self,
        track: _Track,
        now: Callable[[], float],
        block: _Block | None = None,
        *,
        message_id: str,
        model_id: str,
        provider_id: str,
        agent: str,
    ) -> None:
        super().__init__(track, now, block)
        self._message_id = message_id
        self._model_id = model_id
        self._provider_id = provider_id
        self._agent = agent
        self._reason: str | None = None
        self._tokens = Tokens()
        self._cost = 0.0

    def finish(self, reason: str, *, tokens: Tokens | None = None, cost: float = 0.0) -> None:
        """Say how the model ended, with what it took; the last call counts.

        Args:
            reason: the provider's finish reason, ``"stop"`` say.
            tokens: what was read and written.
            cost: US dollars.
        """
        self._reason = reason
        self._tokens = tokens if tokens is not None else Tokens()
        self._cost = cost

    def _event(self, duration_ms: int, error: BaseException | None) -> Event:
        reason = self._reason
        if reason is None:
            reason = _unfinished(error)
        return Generation(
            message_id=self._message_id,
            model_id=self._model_id,
            provider_id=self._provider_id,
            agent=self._agent,
            finish_reason=reason,
            tokens=self._tokens,
            cost=self._cost,
            duration_ms=duration_ms,
        )


def _outcome(error: BaseException | None) -> tuple[Status, str | msgspec.UnsetType]:
    if error is None:
        return "success", UNSET
    if is_cancellation(error):
        return "success", CANCELLED
    return "error", error_text(error)


def _unfinished(error: BaseException | None) -> str:
    """The finish reason of a model call that never said one."""
    if error is None:
        return "unknown"
    return CANCELLED if is_cancellation(error) else "error"


class _Silent:
    """A block that nobody measures; nothing is kept, so that one object serves all."""

    __slots__ = ()

    def __init__(self) -> None:
        """Without what the measuring block needs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_outcome: object) -> None:
        return None


class SilentToolMeasure(_Silent, ToolMeasure):
    """A tool call that nobody measures."""

    __slots__ = ()


class SilentBridgeMeasure(_Silent, BridgeMeasure):
    """A bridge call that nobody measures."""

    __slots__ = ()


class SilentGenerationMeasure(_Silent, GenerationMeasure):
    """A model call that nobody measures."""

    __slots__ = ()

    def finish(self, reason: str, *, tokens: Tokens | None = None, cost: float = 0.0) -> None:
        """Nothing is kept."""
