"""A batch on its way from a process to the one whose session it takes part in.

In: a batch's key and body; on the other side, the bytes that came. Out: the bytes to hand
over; the key and the events.
Does not know: channels, sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from trimaran._environment import PROTOCOL
from trimaran._events import BUILT_IN_EVENTS, UNSET, BuiltInEvent, Event, ToolCall, read_back
from trimaran._host_events import HostEvents, UnusableEvent
from trimaran._pipeline.entry import MOST_MILLISECONDS
from trimaran._spans import Place, span_number, span_time

__all__ = [
    "ATTACHED",
    "SAID_ALL",
    "WITHDRAWN",
    "Unreadable",
    "child_of",
    "frame_of",
    "key_and_body",
    "places_in",
    "tracked_events",
]

WITHDRAWN = b"consent withdrawn"
"""What is answered to a batch that is not taken, since nothing may be sent any more."""

_HEAD = b"trimaran %d " % PROTOCOL

ATTACHED = _HEAD + b"attached"
"""What a child says first, which answers a last call of its parent."""

SAID_ALL = _HEAD + b"said all"
"""What it answers when it has nothing more to say."""

_LONGEST_KEY = 1024

_STAMPS = frozenset({"type", "timestamp", "session_id"})
_PLACE = frozenset({"span_id", "parent_span_id", "span_start", "span_end"})


class Unreadable(Exception):
    """What came is no batch; says why, and quotes nothing."""


class _Body(msgspec.Struct):
    events: list[BuiltInEvent]


class _Placed(msgspec.Struct):
    span_id: object = None
    parent_span_id: object = None
    span_start: object = None
    span_end: object = None


class _PlacedBody(msgspec.Struct):
    events: list[_Placed]


class _OddBody(msgspec.Struct):
    events: list[dict[str, Any]]


_bodies = msgspec.json.Decoder(_Body)
_placed_bodies = msgspec.json.Decoder(_PlacedBody)
_odd_bodies = msgspec.json.Decoder(_OddBody)


def frame_of(key: str, body: bytes) -> bytes:
    """What is said to hand over a batch."""
    return b"%b%b\n%b" % (_HEAD, key.encode(), body)


def key_and_body(frame: bytes) -> tuple[str, bytes]:
    """What :func:`frame_of` was made of.

    Raises:
        Unreadable: it was made by nothing like that.
    """
    head, newline, body = frame.partition(b"\n")
    if not newline or not head.startswith(_HEAD) or len(head) > _LONGEST_KEY:
        raise Unreadable("it does not begin as a batch of this version does")
    try:
        return head[len(_HEAD) :].decode(), body
    except UnicodeDecodeError:
        raise Unreadable("its key is not UTF-8") from None


def child_of(key: str) -> str:
    """Whose batch it is: what all keys of one pipeline have in common."""
    return key.rpartition("-")[0]


def places_in(body: bytes) -> Iterator[Place | None]:
    """Where the events of a batch stand among the spans, and when, as the child has it; None for
    one of which it does not say that.

    Raises:
        Unreadable: *body* is that of no batch.
    """
    try:
        events = _placed_bodies.decode(body).events
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(type(error).__name__) from None
    places = (
        (
            span_number(event.span_id),
            span_number(event.parent_span_id),
            span_time(event.span_start),
            span_time(event.span_end),
        )
        for event in events
    )
    return (place if any(place) else None for place in places)


def tracked_events(
    body: bytes, host_events: HostEvents, *, with_places: bool = False
) -> Iterator[Event | None]:
    """The events in a batch, as they were tracked; None in the place of one of no use.

    The number of a tool call and the tool before it are left to the session, so that
    they hold over all its processes.

    Args:
        body: the batch's.
        host_events: classes for types of the host's own.
        with_places: whether the child wrote into its events which spans they are, in members
            that are no fields of theirs.

    Raises:
        Unreadable: *body* is that of no batch.
    """
    beside = _STAMPS | _PLACE if with_places else _STAMPS
    try:
        plain: list[BuiltInEvent] = _bodies.decode(body).events
    except (msgspec.ValidationError, UnicodeDecodeError):
        # Types of the host's own, or values that a field is not declared for.
        odd = _odd_events(body)
        return (_odd_event(values, host_events, beside) for values in odd)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(type(error).__name__) from None
    return (_unnumbered(event) for event in plain)


def _odd_events(body: bytes) -> list[dict[str, Any]]:
    try:
        return _odd_bodies.decode(body).events
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(type(error).__name__) from None


def _odd_event(
    values: Mapping[str, Any], host_events: HostEvents, beside: frozenset[str]
) -> Event | None:
    name = values.get("type")
    if not isinstance(name, str):
        return None
    kind = BUILT_IN_EVENTS.get(name)
    try:
        if kind is not None:
            return _unnumbered(read_back(values, kind))
        own = {field: value for field, value in values.items() if field not in beside}
        return host_events.make(name, own, _timestamp(values.get("timestamp")))
    except (UnusableEvent, TypeError):
        return None


def _timestamp(value: object) -> int | msgspec.UnsetType:
    is_time = type(value) is int and 0 <= value < MOST_MILLISECONDS
    return cast("int", value) if is_time else UNSET


def _unnumbered(event: Event) -> Event:
    if isinstance(event, ToolCall):
        return replace(event, sequence_index=UNSET, previous_tool=UNSET)
    return event
