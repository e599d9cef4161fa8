"""An event in which nothing changes any more, and nothing grows.

In: an event, whose fields may hold what the agent goes on to work with.
Out: the same event, where all its values are plain; else a copy in which the others are
their JSON form: texts and numbers as such, containers encoded, which takes the fewest bytes.
Does not know: where events wait, what is masked.

What may be large is looked at before anything is made of it, without calling any code of its
own: a text of a hundred megabytes would hold up the agent for half a second, to be dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from gc import is_tracked
from typing import TypeAlias, TypeVar, cast

import msgspec
from msgspec.structs import astuple, force_setattr

from trimaran._events import UNSET, Event, Tokens, ToolCall
from trimaran._pipeline.encoder import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    encode,
    encoded_part,
    jsonable,
)
from trimaran._pipeline.entry import ERROR_TEXT_WINDOW, shortened

__all__ = ["Settled", "TooLarge", "are_counts", "settled", "settled_and_encoded"]

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

Settled: TypeAlias = tuple[Event, bytes | None, int]
"""An event; its encoded form, where it has no container; the bytes of that form."""

_Event = TypeVar("_Event", bound=Event)


class TooLarge(Exception):
    """An event has more bytes than it may have."""


def settled(event: _Event, most_bytes: int) -> _Event:
    """*event* itself where all its values are plain, else a settled copy.

    Raises:
        TooLarge: it takes more than *most_bytes* encoded, whatever becomes of its error texts.
    """
    if type(event) is ToolCall and cast("ToolCall", event).error is UNSET and not is_tracked(event):
        return event  # see Mailbox
    values: tuple[object, ...] = astuple(event)
    for value in values:
        kind = type(value)  # compared, not hashed: a class may refuse that
        if kind is str:
            if len(cast("str", value)) <= most_bytes:
                continue
        elif _is_scalar(value, kind) or (kind is Tokens and are_counts(cast("Tokens", value))):
            continue
        return _settled_struct(event, most_bytes, event.cut_fields)
    return event


def settled_and_encoded(event: Event, most_bytes: int) -> Settled:
    """*event* as it waits, its error texts shortened if it would be too large.

    Raises:
        TooLarge: encoded it takes more than *most_bytes* even so.
        EncodeError: its fields cannot be read.
    """
    event = settled(event, most_bytes)
    encoded = encode(event)
    if len(encoded) > most_bytes:
        event = shortened(event)
        encoded = encode(event)
        if len(encoded) > most_bytes:
            raise TooLarge
    # What holds a container is masked piece by piece, and encoded anew: to keep it in both
    # forms would take twice the bytes.
    holds_container = any(type(value) is msgspec.Raw for value in astuple(event))
    return event, None if holds_container else encoded, len(encoded)


def are_counts(tokens: Tokens) -> bool:
    """Whether the parts of *tokens* are the numbers that they are declared to be."""
    for count in astuple(tokens):  # a third of the time of all()
        if type(count) is not int or not -(2**63) <= count < 2**64:
            return False
    return True


def _settled_struct(struct: _Struct, most_bytes: int, cut_fields: tuple[str, ...] = ()) -> _Struct:
    """A copy of *struct* with settled values; the struct's own code is not called."""
    copied = copy.copy(struct)
    for name, value in zip(struct.__struct_fields__, astuple(struct), strict=True):
        if name in cut_fields and type(value) is str and len(value) > most_bytes:
            form: object = value[:ERROR_TEXT_WINDOW]
        else:
            form = _settled_value(value, most_bytes)
        if form is not value:
            force_setattr(copied, name, form)
    return copied


def _settled_value(value: object, most_bytes: int) -> object:
    kind = type(value)
    if kind is str:
        if len(cast("str", value)) > most_bytes:
            raise TooLarge
        return value
    if _is_scalar(value, kind):
        return value
    if kind is Tokens:
        return _settled_struct(cast("Tokens", value), most_bytes)
    if kind is msgspec.Raw:
        return _settled_json(cast("msgspec.Raw", value), most_bytes)
    if _Look(most_bytes).is_plain(value):
        # Encoded as it is: ten times as fast as through a form of each of its values.
        return encoded_part(value)
    form = jsonable(value)
    return encoded_part(form) if isinstance(form, (list, dict)) else form


def _settled_json(raw: msgspec.Raw, most_bytes: int) -> object:
    """What is encoded already; read and encoded again, since it may be a window on anything."""
    if memoryview(raw).nbytes > most_bytes:
        raise TooLarge
    try:
        decoded: object = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return jsonable(raw)
    return _settled_value(decoded, most_bytes)


def _is_scalar(value: object, kind: type) -> bool:
    return kind is int or kind is float or value is None or kind is bool or value is UNSET


class _Look:
    """One look at a value, from the outside in: whether it is its own JSON form, as
    :func:`jsonable` would have it, and not too large.

    Each container is looked into once; what is found in two places, or in itself, is left to
    those who take care of it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._bytes_left = most_bytes
        self._nodes_left = MAX_NODES
        self._looked_at: set[int] = set()
        self._is_plain = True

    def is_plain(self, value: object) -> bool:
        """Whether it is.

        Raises:
            TooLarge: it would take more bytes than it may.
        """
        level: list[object] = [value]
        for _ in range(MAX_DEPTH + 1):
            below: list[object] = []
            for part in level:
                self._look_at(part, below)
            if not below:
                return self._is_plain and self._nodes_left >= 0
            level = below
        return False

    def _look_at(self, part: object, below: list[object]) -> None:
        kind = type(part)
        if kind is str:
            length = len(cast("str", part))
            self._take(length)
            self._is_plain = self._is_plain and length <= MAX_TEXT
        elif kind is int:
            self._is_plain = self._is_plain and -(2**63) <= cast("int", part) < 2**64
        elif kind is dict or kind is list or kind is tuple or kind is set or kind is frozenset:
            self._look_into(cast("Collection[object]", part), kind, below)
        elif kind is not float and part is not None and kind is not bool:
            self._is_plain = False
            if kind is bytes or kind is bytearray:
                self._take(len(cast("bytes", part)))

    def _look_into(self, parts: Collection[object], kind: type, below: list[object]) -> None:
        if id(parts) in self._looked_at:
            self._is_plain = False
            return
        self._looked_at.add(id(parts))
        self._nodes_left -= len(parts)
        self._take(2 * len(parts))  # a digit and a comma
        below += parts
        if kind is dict:
            self._is_plain = self._is_plain and all(type(key) is str for key in [*parts])
            below += cast("dict[object, object]", parts).values()
        elif kind is not list and kind is not tuple:
            self._is_plain = False

    def _take(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise TooLarge
