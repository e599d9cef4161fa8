"""What flows from the mailbox to the batcher: entries, chunks of them, and marks.

In: an event. Out: the event as it may wait, with its bounds.
Does not know: where anything waits, and for what.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import trio
from msgspec.structs import force_setattr

from trimaran._events import UNSET, Event
from trimaran._spans import Place

__all__ = ["Chunk", "Entry", "Flush", "gather", "shortened", "unstamped", "with_fields"]

_Event = TypeVar("_Event", bound=Event)

ENTRY_OVERHEAD = 500
"""Bytes that an event takes beside its encoded form while it waits: the object, the
strings that are its own, the entry. For a tool call with an id of its own, tracemalloc
counts 493 on CPython 3.11."""

PLACE_BYTES = 240
"""Bytes that an event's place among the spans takes, where it has one of its own."""

ERROR_TEXT_WINDOW = 4096
"""Characters of an error's text that are kept of an event that is too large. It is cut
at 500 in the end, after masking; the rest is there so that no secret is cut in half."""

MOST_MILLISECONDS = 1 << 51
"""A timestamp past this is no time; it is 71,000 years, and up to it a count of milliseconds
can be turned to seconds and back."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An event that waits.

    The garbage collector does not look at it, which is cheaper for all that wait: a
    cycle that leads through the pipeline is broken when the session ends.
    """

    number: int
    """Counts what went into this mailbox from 1; the order across its two queues."""
    time: float
    """When it was tracked, in seconds since the epoch."""
    event: Event
    encoded: bytes | None
    """The event as JSON; None when it has no plain JSON form."""
    size: int
    """Bytes that it is charged with."""
    place: Place | None = None
    """Which span it is, and below which; None for what follows from its number, below all."""


class Flush:
    """A mark in the stream: reached when everything before it has its fate."""

    __slots__ = ("_is_abandoned", "_reached", "number")

    def __init__(self, number: int) -> None:
        self.number: int = number
        """The last entry before it."""
        self._reached = trio.Event()
        self._is_abandoned = False

    def reach(self) -> None:
        """Wake who waits. May be called again."""
        self._reached.set()

    @property
    def is_reached(self) -> bool:
        """Whether everything before it has its fate."""
        return self._reached.is_set()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody may wait for it yet."""
        return not (self._is_abandoned or self.is_reached)

    def abandon(self) -> None:
        """Nobody waits for it any more. It still makes due what is before it."""
        self._is_abandoned = True

    async def wait(self) -> None:
        """Wait until it is reached; a cancel leaves it in the stream."""
        await self._reached.wait()


class Chunk(NamedTuple):
    """Entries in order, and the marks that stand behind them."""

    entries: list[Entry]
    flushes: Sequence[Flush] = ()


def gather(marks: list[Flush], mark: Flush) -> None:
    """Put *mark* behind *marks*, and now and then leave out those that nobody waits for.

    That is done at each power of two, so that it costs little; no more than two for each one
    that was awaited at a time, and one, are ever kept. What is behind another makes due all
    that the other would.
    """
    if len(marks) & (len(marks) - 1) == 0:
        marks[:] = [each for each in marks if each.is_awaited]
    marks.append(mark)


def with_fields(event: _Event, fields: Mapping[str, object]) -> _Event:
    """A copy of *event* with other values in *fields*.

    A ``__post_init__`` of its class is not called, as it would be by ``replace()``: it has seen
    the event, and would not know its other values again in the form in which they wait.
    """
    copied = copy.copy(event)
    for name, value in fields.items():
        force_setattr(copied, name, value)
    return copied


def unstamped(event: Event, time: float | None) -> tuple[Event, float | None]:
    """*event* without stamps of its own; its timestamp (ms) becomes the time (s)."""
    stamp = event.timestamp
    # Its very type, since a subclass may compare and divide by code of its own.
    if (type(stamp) is int or type(stamp) is float) and 0 <= stamp < MOST_MILLISECONDS:
        time = stamp / 1000
    return with_fields(event, {"timestamp": UNSET, "session_id": UNSET}), time


def shortened(event: Event) -> Event:
    """*event* with its error texts cut to a window."""
    cut: dict[str, object] = {}
    for name in event.cut_fields:
        text = getattr(event, name, None)
        if type(text) is str and len(text) > ERROR_TEXT_WINDOW:
            cut[name] = text[:ERROR_TEXT_WINDOW]
    return with_fields(event, cut) if cut else event
