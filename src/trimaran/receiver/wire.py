"""What the receiver takes: the envelope of a batch, and the events in it.

In: the classes of the ten events that every session has.
Out: types that msgspec decodes into, with the bounds that hold on the wire.
Does not know: bodies, HTTP, what becomes of an event.

An agent that makes an event is never told that it is wrong, so the classes it uses
have no bounds. Here each gets a subclass that has: what is decoded is still a
:class:`~trimaran.Generation` to whoever asks. What the receiver says of itself to
other programs is made from the same types.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Union, cast, get_args
from urllib.parse import unquote_to_bytes

import msgspec

from trimaran._events import BUILT_IN_EVENTS, Event, Tokens
from trimaran.receiver.limits import MAX_ID

__all__ = [
    "EVENTS",
    "LAST_TIMESTAMP",
    "MAX_NUMBER",
    "PARENT_HEADER",
    "Envelope",
    "Head",
    "parent_of",
]

MAX_NUMBER = 2**53 - 1
"""The greatest integer that every JSON reader keeps exact. Beyond it, sums go wrong."""

LAST_TIMESTAMP = 253_402_300_799_999
"""ms since the epoch, the end of the year 9999: no calendar goes further."""

_MAX_TYPE = 128  # characters of an event's type

# A session id becomes part of an address. The end of the pattern means the very end in
# the dialect of JSON Schema and in Python's, whose $ would let a line break follow.
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$(?!\n)"

_SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID, pattern=_PRINTABLE)]
_Timestamp = Annotated[int, msgspec.Meta(ge=0, le=LAST_TIMESTAMP)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]


class Envelope(msgspec.Struct):
    """The body of a post."""

    session_id: _SessionId
    timestamp: _Timestamp
    events: list[msgspec.Raw]
    cli_version: str = ""
    user_email: str = ""
    project_id: str = ""


class Head(msgspec.Struct):
    """What every event must have, whatever its type."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_TYPE)]
    timestamp: _Timestamp
    session_id: str | msgspec.UnsetType = msgspec.UNSET


PARENT_HEADER = "trimaran-parent-session"
"""Names the session that this one works for. The body has no room for it: other servers
that take it know no further keys there."""


def parent_of(header: str) -> str | None:
    """The session id that a :data:`PARENT_HEADER` names; *header* with a character for a byte.

    It is in UTF-8, with any bytes encoded as they are in an address: %20 is a space. None
    for what no session can be called: a batch is not refused for what its parent is called.
    """
    try:
        text = unquote_to_bytes(header.encode("latin-1")).decode()
        return msgspec.convert(text, _SessionId)
    except (UnicodeDecodeError, msgspec.ValidationError):
        return None


_Tokens = msgspec.defstruct(
    "Tokens",
    [(name, cast(type, _Count), 0) for name in Tokens.__struct_fields__],
    bases=(Tokens,),
    frozen=True,
    kw_only=True,
)


def _bounded(annotation: object) -> object:
    """*annotation* with bounds on each number in it."""
    if annotation is int:
        return Annotated[int, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
    if annotation is float:
        return Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
    if annotation is Tokens:
        return _Tokens
    if isinstance(annotation, UnionType):
        return Union[tuple(map(_bounded, get_args(annotation)))]  # noqa: UP007 - however many
    return annotation


def _on_the_wire(event_class: type[Event]) -> type[Event]:
    """*event_class* with bounds on its numbers, and a timestamp that must be there."""
    fields: list[tuple[str, object, object]] = [
        (field.name, _bounded(field.type), msgspec.field(default=field.default))
        for field in msgspec.structs.fields(event_class)
        if field.name != "timestamp"
    ]
    subclass = msgspec.defstruct(
        event_class.__name__,
        cast("list[tuple[str, type, object]]", [("timestamp", _Timestamp), *fields]),
        bases=(event_class,),
        tag=event_class.__struct_config__.tag,
        frozen=True,
        kw_only=True,
    )
    return cast("type[Event]", subclass)


EVENTS: Mapping[str, type[Event]] = {
    name: _on_the_wire(event_class) for name, event_class in BUILT_IN_EVENTS.items()
}
"""Wire name to class. Every other type is an event of the host's own, with any fields."""
