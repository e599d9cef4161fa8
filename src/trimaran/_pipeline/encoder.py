"""Any Python value has a JSON form, and an event is encoded even where it is odd.

In: events, and whatever a host put into their fields.
Out: UTF-8 JSON; values made of None, bool, int, float, str, list and dict alone.
Does not know: batches, sessions, what must be masked.

Text of a value is never made by its own ``__repr__`` or ``__str__``: both may hang, fail
or tell what was not meant for others. What has no JSON form of its own is named by its
class. Exceptions are the one kind whose text is asked for, since it is meant to be read.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import pathlib
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import msgspec
import trio

from trimaran._events import Event

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_TEXT",
    "STOPS",
    "EncodeError",
    "JsonValue",
    "class_name",
    "encode",
    "encode_fast",
    "encode_value",
    "encoded_part",
    "inherits",
    "jsonable",
]

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

UNSET = msgspec.UNSET

STOPS: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, trio.Cancelled)
"""What ends a program or a task, and goes through wherever code of the host's is asked for
something; also a signal's handler may raise it there. All else that such code raises costs
only what it was asked for, and not all of it is an ``Exception``: a panic in an extension that
is written in Rust is none.
"""

MAX_DEPTH = 64
"""Containers inside each other; msgspec and most parsers take more, people do not."""

MAX_NODES = 10_000
"""Values in one event. At 25 bytes each, that is more than an event may take."""

MAX_TEXT = 65_536
"""Characters of one text. A longer one is named, not cut: half a secret is no match."""

_MAX_CHARACTERS = 1_048_576
"""Characters of all texts together, so that 10,000 long ones do not add up."""

_MAX_DIGIT_BITS = 1_024
"""Larger integers are named: Python may be set to refuse 640 digits and more."""

_LEFT_OUT = "<left out>"
_TOO_DEEP = "<too deep>"
_CYCLE = "<cycle>"

_encode = msgspec.json.Encoder().encode

# isinstance would ask the value's `__class__`, which may lie or raise.
inherits = cast("Callable[[type, Any], bool]", issubclass)

# The base's own methods, since a subclass or a metaclass may define them otherwise.
class_name = cast("Callable[[type], str]", type.__dict__["__name__"].__get__)
_dict_items = cast("Callable[[object], Iterable[tuple[object, object]]]", dict[Any, Any].items)


class EncodeError(Exception):
    """An event could not be encoded. Names its type and the reason, never its content."""


def encode(event: Event) -> bytes:
    """One event as a JSON object whose first member is ``type``.

    Raises:
        EncodeError: its class keeps its fields from being read; nothing else is too odd.
    """
    encoded = encode_fast(event)
    return _encode_slowly(event) if encoded is None else encoded


def encode_fast(event: Event) -> bytes | None:
    """What :func:`encode` gives, or None where that takes the slow path. Never raises.

    bytes become base64 here and text there, an integer beyond 64 bits stays a number, and
    a ``msgspec.Raw`` is taken as it is: an event of anything but plain values is to be
    masked, which makes it plain, before its encoded form is used.
    """
    try:
        encoded = _encode(event)
    except Exception:  # noqa: BLE001 - msgspec's own: no code of a value's comes out of it
        return None
    # A host's class may be declared to be an array, or to have another tag or none.
    return encoded if encoded[:8] == b'{"type":' else None


def encode_value(value: object) -> bytes:
    """A JSON value as UTF-8 JSON; what turns out to be none goes through :func:`jsonable`."""
    try:
        return _encode(value)
    except Exception:  # noqa: BLE001 - as in encode_fast
        return _encode_slowly(value)


def encoded_part(value: object) -> msgspec.Raw:
    """The same, to be kept as a part of something: msgspec gives away a buffer of up to twice
    the bytes that are in it.
    """
    return msgspec.Raw(bytes(memoryview(encode_value(value))))


def jsonable(value: object) -> JsonValue:
    """The JSON form of any Python value; raises nothing but :data:`STOPS`.

    At most 64 containers deep, 10,000 values and 1 Mi characters of text; what is beyond,
    and cycles, become markers like ``<too deep>``. NaN and infinities become None,
    integers beyond 64 bits text, bytes their UTF-8 text or ``<bytes: N>``, an enum member
    its value, a timedelta its seconds; dataclasses, attrs classes, structs and pydantic
    models become dicts; an object of any other kind becomes ``<ClassName>``. Containers
    are always copied, so that the result does not change when the original does.
    """
    try:
        return _Conversion().convert(value, 0)
    except Exception:  # noqa: BLE001 - too little stack left, even for a call from here
        return _TOO_DEEP


def _encode_slowly(value: object) -> bytes:
    """The encoded JSON form of *value*; an event stays an object with a ``type``."""
    form = jsonable(value)
    if isinstance(value, Event) and not isinstance(form, dict):
        raise EncodeError(f"{class_name(type(value))}: no fields can be read")
    return _encode(form)


class _Conversion:
    """One call of :func:`jsonable`: what is left of its bounds, and where it stands."""

    def __init__(self) -> None:
        self.nodes = MAX_NODES
        self.characters = _MAX_CHARACTERS
        self.path: set[int] = set()  # ids of the containers around the value at hand

    def convert(self, value: object, depth: int) -> JsonValue:
        """The JSON form of one value that has *depth* containers around it."""
        if depth > MAX_DEPTH:
            return _TOO_DEEP
        kind = type(value)
        try:
            if inherits(kind, str):
                return self._text(str.__str__(cast("str", value)))
            if kind is bool:
                return cast("bool", value)
            if value is None or value is UNSET:
                return None
            return self._convert_other(value, kind, depth)
        except STOPS:
            raise
        except BaseException:  # noqa: BLE001 - whatever its class does, a value costs only itself
            return _class_marker(value)

    def _text(self, text: str) -> str:
        if len(text) > min(MAX_TEXT, self.characters):
            return f"<str: {len(text)}>"
        self.characters -= len(text)
        return _valid(text)

    def _convert_other(self, value: object, kind: type, depth: int) -> JsonValue:
        if inherits(kind, enum.Enum):
            return self.convert(cast("enum.Enum", value).value, depth + 1)
        if inherits(kind, int):
            return _integer(int.__index__(cast("int", value)))
        if inherits(kind, float):
            number = float.__pos__(cast("float", value))
            return number if math.isfinite(number) else None
        if inherits(kind, (bytes, bytearray, memoryview)):
            return self._bytes(memoryview(cast("bytes", value)))
        for base, written in _WRITTEN:
            if inherits(kind, base):
                form = written(value)
                return self._text(form) if isinstance(form, str) else form
        if inherits(kind, BaseException):
            return self._text(_exception_text(cast("BaseException", value)))
        if id(value) in self.path:
            return _CYCLE
        self.path.add(id(value))
        try:
            return self._convert_container(value, kind, depth + 1)
        finally:
            self.path.remove(id(value))

    def _bytes(self, view: memoryview) -> str:
        if view.nbytes <= MAX_TEXT:
            try:
                return self._text(view.tobytes().decode())
            except UnicodeDecodeError:
                pass
        return f"<bytes: {view.nbytes}>"

    def _convert_container(self, value: object, kind: type, depth: int) -> JsonValue:
        """The form of what holds other values; of anything else, a marker."""
        if inherits(kind, dict):
            return self._record(_dict_items(value), depth)
        if inherits(kind, msgspec.Struct):
            return self._record(_struct_items(cast("msgspec.Struct", value)), depth)
        for base in _SEQUENCES:
            if inherits(kind, base):
                # The base's own iteration: a subclass may have defined another.
                elements = self._elements(base.__iter__(value), depth)
                return _sorted(elements) if base in _SETS else elements
        if inherits(kind, Mapping):
            mapping = cast("Mapping[object, object]", value)
            return self._record(((key, mapping[key]) for key in mapping), depth)
        names = _field_names(kind)
        if names is not None:
            return self._record(((name, getattr(value, name, UNSET)) for name in names), depth)
        if kind is msgspec.Raw:
            return self.convert(msgspec.json.decode(cast("msgspec.Raw", value)), depth)
        dump: object = getattr(kind, "model_dump", None)
        if callable(dump):
            return self.convert(dump(value), depth)
        return _class_marker(value)

    def _elements(self, values: Iterable[object], depth: int) -> list[JsonValue]:
        elements: list[JsonValue] = []
        for value in values:
            if self.nodes <= 0:
                elements.append(_LEFT_OUT)
                break
            self.nodes -= 1
            elements.append(self.convert(value, depth))
        return elements

    def _record(self, items: Iterable[tuple[object, object]], depth: int) -> dict[str, JsonValue]:
        record: dict[str, JsonValue] = {}
        for key, value in items:
            if value is UNSET:
                continue
            if self.nodes <= 0:
                record[_LEFT_OUT] = None
                break
            self.nodes -= 1
            name = self.convert(key, depth)
            if not isinstance(name, str):
                name = _encode(name).decode()
            if name in record:  # 1 and "1", or two objects of one class
                name = f"{name}#{len(record)}"
            record[name] = self.convert(value, depth)
        return record


def _valid(text: str) -> str:
    """*text* with U+FFFD for each lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _integer(number: int) -> int | str:
    """A number where 64 bits can hold it, else its digits, or how long it is.

    A longer one is JSON too, but many a parser refuses it, and with it the whole batch.
    """
    if -(2**63) <= number < 2**64:
        return number
    bits = number.bit_length()
    return str(number) if bits <= _MAX_DIGIT_BITS else f"<int: {bits} bits>"


def _class_marker(value: object) -> str:
    return f"<{_valid(class_name(type(value)))}>"


def _exception_text(error: BaseException) -> str:
    """``Type: message``, of what can be said without asking an argument for its text."""
    name = class_name(type(error))
    plain = [argument for argument in error.args if type(argument) in _PLAIN]
    try:
        whole = len(plain) == len(error.args)
        message = str(error) if whole else ", ".join(map(str, plain))
    except STOPS:
        raise
    except BaseException:  # noqa: BLE001 - its own text may fail as any other code does
        message = ""
    return f"{name}: {message}" if message else name


def _struct_items(struct: msgspec.Struct) -> Iterator[tuple[object, object]]:
    """The fields under their names on the wire, after the tag; an event's is ``type``."""
    kind = type(struct)
    config = kind.__struct_config__
    if inherits(kind, Event):
        yield "type", class_name(kind) if config.tag is None else config.tag
    elif config.tag is not None:
        yield config.tag_field, config.tag
    for name, wire_name in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
        yield wire_name, getattr(struct, name, UNSET)


def _field_names(kind: type) -> list[str] | None:
    """The fields of a dataclass or of an attrs class, None for any other."""
    fields: object = getattr(kind, "__dataclass_fields__", None)
    if type(fields) is dict:
        return list(cast("dict[str, object]", fields))
    attributes: object = getattr(kind, "__attrs_attrs__", None)
    if isinstance(attributes, tuple):
        return [attribute.name for attribute in cast("Iterable[Any]", attributes)]
    return None


def _sorted(elements: list[JsonValue]) -> list[JsonValue]:
    """The elements of a set in an order that is the same in every process."""
    if all(type(element) in _NUMBERS for element in elements):
        return sorted(cast("list[Any]", elements))
    return sorted(elements, key=_encode)


_NUMBERS: frozenset[type] = frozenset({int, float})
_PLAIN: frozenset[type] = frozenset({str, int, float, bool, type(None)})
_SETS: frozenset[type] = frozenset({set, frozenset})
_SEQUENCES: tuple[Any, ...] = (
    list,
    tuple,
    set,
    frozenset,
    deque,
    range,
    type(dict[str, str]().keys()),
    type(dict[str, str]().values()),
)

_WRITTEN: tuple[tuple[type, Callable[[Any], str | float]], ...] = (
    (pathlib.PurePath, pathlib.PurePath.__str__),
    (decimal.Decimal, decimal.Decimal.__str__),
    (uuid.UUID, uuid.UUID.__str__),
    (dt.datetime, dt.datetime.isoformat),  # before date, which it is also
    (dt.date, dt.date.isoformat),
    (dt.time, dt.time.isoformat),
    (dt.timedelta, dt.timedelta.total_seconds),
)
"""Kinds with a text or number of their own, by the base's method, not a subclass's."""
