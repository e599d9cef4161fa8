"""Stage 1: what leaves it is masked, complete and counted.

In: chunks of entries from the mailbox. Out: the same chunks, their events masked and
with the fields that a session fills in.
Does not know: batches, sending, the session itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
import trio
from msgspec.structs import replace
from trio.abc import ReceiveChannel, SendChannel

from trimaran._events import (
    ContextOverflowRecovered,
    Event,
    Generation,
    SessionEnd,
    Tokens,
    ToolCall,
    tool_type_of,
)
from trimaran._exact_sum import ExactSum
from trimaran._pipeline.encoder import STOPS
from trimaran._pipeline.entry import Chunk, Entry, with_fields
from trimaran._pipeline.ledger import DropReason
from trimaran._pipeline.redact import Redactor

__all__ = ["Known", "ToolSequence", "Totals", "collect"]

UNSET = msgspec.UNSET

_Event = TypeVar("_Event", bound=Event)

_MOST = 1 << 53
"""Up to here a double counts exactly."""

_BYTES_BETWEEN_YIELDS = 160 * 1024
"""Bytes of events that are masked before other tasks get a turn: more than a chunk of
ordinary events takes, and little enough that large ones do not hold up the agent."""


class ToolSequence:
    """Numbers a session's tool calls from 0, in the order in which they began.

    Safe to use from any thread. There is no lock: a finalizer, which may run at any moment,
    could begin a call of its own within it.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._names: dict[int, str] = {}
        """The tools of the last two calls, by number."""

    def begin(self, tool_name: str) -> tuple[int, str | None]:
        """The index of the call that begins now, and the tool called before it.

        None as well, should that one be beginning in another thread at this very moment.
        """
        index = next(self._numbers)
        self._names[index] = tool_name
        self._names.pop(index - 2, None)
        return index, self._names.get(index - 1)


class Known:
    """What a session knows of its model calls, where they do not say it themselves."""

    def __init__(self, *, model_id: str = "", provider_id: str = "", agent: str = "") -> None:
        known = {"model_id": model_id, "provider_id": provider_id, "agent": agent}
        self._known = [(name, value) for name, value in known.items() if value]

    def filled_into(self, event: _Event) -> _Event:
        """*event* itself where it leaves nothing open that is known, else a copy."""
        missing = {
            name: value for name, value in self._known if _is_empty(getattr(event, name, None))
        }
        return with_fields(event, missing) if missing else event


class Totals:
    """What ``session_end`` says of all the events that went through a session."""

    def __init__(self) -> None:
        self.cost = ExactSum()
        self.tokens = 0
        self.tool_calls = 0

    def count_generation(self, event: Generation) -> None:
        """Add a generation's cost and tokens. What is no number counts as nothing."""
        self.cost = self.cost.plus(float(_summand(event.cost)))
        if type(event.tokens) is Tokens:
            for count in msgspec.structs.astuple(event.tokens):
                # An ordinary count goes without the call.
                ordinary = type(count) is int and 0 <= count < _MOST
                self.tokens += count if ordinary else _summand(count)

    def complete(self, event: SessionEnd) -> SessionEnd:
        """*event* with the totals so far in place of those that it leaves unset."""
        totals = {
            "total_cost": _given(event.total_cost, self.cost.value),
            "total_tokens": _given(event.total_tokens, self.tokens),
            "tool_call_count": _given(event.tool_call_count, self.tool_calls),
        }
        return with_fields(event, totals)


@trio.lowlevel.enable_ki_protection
async def collect(
    receive: ReceiveChannel[Chunk],
    send: SendChannel[Chunk],
    *,
    redactor: Redactor,
    tools: ToolSequence,
    known: Known,
    drop: Callable[[Entry, DropReason], None],
    tell_bug: Callable[[BaseException], None],
) -> None:
    """Run the stage until its input ends; both its ends are closed then.

    Masking raises for no content; should it do so all the same, the event is dropped
    alone, through *drop*, after *tell_bug*, which may raise in its turn. A cancel leaves
    what the stage holds to the session, which counts it.
    """
    totals = Totals()

    async def mask(chunk: Chunk) -> Chunk:
        entries: list[Entry] = []
        masked_bytes = 0
        for entry in chunk.entries:
            masked_bytes += entry.size
            if masked_bytes > _BYTES_BETWEEN_YIELDS:
                await trio.lowlevel.checkpoint()
                masked_bytes = 0
            event = entry.event
            try:
                complete = _completed(event, totals, tools, known)
                masked = redactor.redact(complete)
            except STOPS:
                raise
            except BaseException as bug:  # noqa: BLE001 - it must cost one event, no more
                tell_bug(bug)
                drop(entry, DropReason.BUG)
                continue
            entries.append(entry if masked is event else replace(entry, event=masked, encoded=None))
        return Chunk(entries, chunk.flushes)

    async with receive, send:
        async for chunk in receive:
            masked = await mask(chunk)
            await send.send(masked)
            # A session that waits for its next event keeps nothing of the last ones.
            del chunk, masked


def _completed(event: Event, totals: Totals, tools: ToolSequence, known: Known) -> Event:
    """Count *event*, and fill in the fields that it leaves to the session."""
    if isinstance(event, ToolCall):
        totals.tool_calls += 1
        if (
            event.sequence_index is UNSET
            or event.previous_tool is UNSET
            or event.tool_type is UNSET
            or _is_empty(event.tool_category)
        ):
            return _completed_tool_call(event, tools)
    elif isinstance(event, Generation):
        totals.count_generation(event)
        return known.filled_into(event)
    elif isinstance(event, ContextOverflowRecovered):
        return known.filled_into(event)
    elif isinstance(event, SessionEnd):
        return totals.complete(event)
    return event


def _completed_tool_call(event: ToolCall, tools: ToolSequence) -> ToolCall:
    index, previous = event.sequence_index, None
    if index is UNSET:
        index, previous = tools.begin(event.tool_name)
    tool_type = _given(event.tool_type, tool_type_of(event.tool_name))
    completed = {
        "tool_type": tool_type,
        "tool_category": tool_type if _is_empty(event.tool_category) else event.tool_category,
        "sequence_index": index,
        "previous_tool": _given(event.previous_tool, previous),
    }
    return with_fields(event, completed)


def _is_empty(value: object) -> bool:
    return type(value) is str and not value


_Value = TypeVar("_Value")


def _given(value: _Value | msgspec.UnsetType, otherwise: _Value) -> _Value:
    return otherwise if value is UNSET else value


def _summand(value: object) -> Any:  # noqa: ANN401 - whole numbers stay whole
    """A number as it is summed up; 0 for what is none, or is past all counting.

    One value, NaN say, or a number of a hundred digits, must not spoil a total.
    """
    is_plain = type(value) is int or type(value) is float
    return value if is_plain and -_MOST < cast("float", value) < _MOST else 0
