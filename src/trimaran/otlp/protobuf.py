"""OTLP as protobuf: a request from spans, and what an answer says.

In: spans. Out: bytes. And back: an answer's bytes; how much was refused, and why.
Does not know: where spans come from, HTTP.

Written down by hand, field by field: few kinds of message are needed, and the general
library takes several times the processor time for them and binds its users to a version. The
numbers are those of https://github.com/open-telemetry/opentelemetry-proto, whose messages
the tests read these bytes with. A field is its number and kind in one byte, then its value;
a message in a message has its length before it
(https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from trimaran.otlp.conventions import Attribute, Value
from trimaran.otlp.spans import Span

__all__ = ["Encoder", "Partial", "message_of_status", "partial_success"]

Partial = tuple[int, str]
"""How many items an endpoint refused of a request that it took, and its message."""

_MOST_KNOWN = 4096
"""Attributes that are kept encoded: what comes again and again is encoded once."""

_LONGEST_KNOWN = 64
"""Characters of a value that is worth keeping."""

_LONGEST_NUMBER = 70
"""Bits of a number on the wire, in groups of seven."""

_fixed64 = Struct("<Q").pack
_double = Struct("<d").pack


def _varint(number: int) -> bytes:
    """A whole number, seven bits at a time, from the lowest."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    pieces = bytearray()
    while number > 0x7F:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


_LENGTHS = tuple(_varint(length) for length in range(1024))


def _sized(content: bytes) -> bytes:
    length = len(content)
    return (_LENGTHS[length] if length < 1024 else _varint(length)) + content


def _text(text: str) -> bytes:
    return _sized(text.encode(errors="replace"))


def _any_value(value: Value) -> bytes:
    """An AnyValue."""
    match value:
        case bool():
            return b"\x10\x01" if value else b"\x10\x00"
        case int():
            return b"\x18" + _varint(value if value >= 0 else value + 2**64)
        case float():
            return b"\x21" + _double(value)
        case str():
            return b"\x0a" + _text(value)
        case _:
            return b"\x2a" + _sized(b"".join(b"\x0a" + _sized(_any_value(v)) for v in value))


class Encoder:
    """Writes requests, and remembers attributes that come again."""

    def __init__(self) -> None:
        self._known: dict[Attribute, bytes] = {}
        self._names: dict[str, bytes] = {}

    def traces(
        self, resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]
    ) -> bytes:
        """An ExportTraceServiceRequest."""
        write = _Spans(self)
        return self._request(resource, scope, [b"\x12" + _sized(write(span)) for span in spans])

    def logs(
        self, resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]
    ) -> bytes:
        """An ExportLogsServiceRequest, with a record for what each span was made of."""
        items = [b"\x12" + _sized(self._record(span)) for span in spans]
        return self._request(resource, scope, items)

    def _request(
        self, resource: Sequence[Attribute], scope: Sequence[str], items: Iterable[bytes]
    ) -> bytes:
        """Both kinds of request have the same numbers."""
        name, version, mapping = scope
        about_scope = b"".join(
            (
                b"\x0a" + _text(name),
                b"\x12" + _text(version),
                self.key_values(b"\x1a", [("trimaran.mapping", mapping)]),
            )
        )
        in_scope = b"".join((b"\x0a" + _sized(about_scope), *items))
        about = self.key_values(b"\x0a", resource)
        return b"\x0a" + _sized(b"\x0a" + _sized(about) + b"\x12" + _sized(in_scope))

    def _record(self, span: Span) -> bytes:
        number, text = (b"\x10\x11", "ERROR") if span.is_error else (b"\x10\x09", "INFO")
        return b"".join(
            (
                b"\x09" + _fixed64(span.end),
                number,
                b"\x1a" + _text(text),
                b"\x2a" + _sized(_any_value(span.message)) if span.message else b"",
                self.key_values(b"\x32", span.shared.items()),
                self.key_values(b"\x32", span.attributes.items()),
                self.key_values(b"\x32", span.exception.items()),
                b"\x4a\x10" + bytes.fromhex(span.trace_id),
                b"\x52\x08" + bytes.fromhex(span.span_id),
                b"\x59" + _fixed64(span.end),
                b"\x62" + _text(f"trimaran.{span.event}"),
            )
        )

    def key_values(self, tag: bytes, attributes: Iterable[Attribute]) -> bytes:
        """KeyValues, with *tag* before each."""
        known, names = self._known, self._names
        parts: list[bytes] = []
        for attribute in attributes:
            parts.append(tag)
            name, value = attribute
            if type(value) is str:
                # Only text is known: True, 1 and 1.0 are the same to a dict.
                parts.append(known.get(attribute) or self._text(attribute))
                continue
            head = names.get(name) or self._name(name)
            parts.append(_sized(head + _sized(_any_value(value))))
        return b"".join(parts)

    def _text(self, attribute: Attribute) -> bytes:
        """A KeyValue of text with its length before it, which is known from now on."""
        name, value = attribute
        encoded = _sized((self._names.get(name) or self._name(name)) + _sized(_any_value(value)))
        if isinstance(value, str) and len(value) <= _LONGEST_KNOWN:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[attribute] = encoded
        return encoded

    def _name(self, name: str) -> bytes:
        """The key of a KeyValue, and the tag of its value."""
        if len(self._names) >= _MOST_KNOWN:
            self._names.clear()
        head = self._names[name] = b"\x0a" + _text(name) + b"\x12"
        return head


class _Spans:
    """Writes the spans of one request, and what they share only once."""

    def __init__(self, encoder: Encoder) -> None:
        self._key_values = encoder.key_values
        self._shared: dict[int, bytes] = {}
        """By identity: all spans live as long as this."""

    def __call__(self, span: Span) -> bytes:
        """A Span."""
        shared = self._shared.get(id(span.shared))
        if shared is None:
            shared = self._key_values(b"\x4a", span.shared.items())
            self._shared[id(span.shared)] = shared
        parts = [
            b"\x0a\x10" + bytes.fromhex(span.trace_id),
            b"\x12\x08" + bytes.fromhex(span.span_id),
            b"\x22\x08" + bytes.fromhex(span.parent_span_id) if span.parent_span_id else b"",
            b"\x2a" + _text(span.name),
            b"\x30" + bytes((span.kind,)),
            b"\x39" + _fixed64(span.start),
            b"\x41" + _fixed64(span.end),
            shared,
            self._key_values(b"\x4a", span.attributes.items()),
        ]
        if span.exception:
            event = b"\x09" + _fixed64(span.end) + b"\x12" + _text("exception")
            event += self._key_values(b"\x1a", span.exception.items())
            parts.append(b"\x5a" + _sized(event))
        if span.link:
            trace_id, span_id = map(bytes.fromhex, span.link)
            parts.append(b"\x6a" + _sized(b"\x0a\x10" + trace_id + b"\x12\x08" + span_id))
        if span.is_error:
            message = b"\x12" + _text(span.message) if span.message else b""
            parts.append(b"\x7a" + _sized(message + b"\x18\x02"))
        return b"".join(parts)


class _Reader:
    """The fields of a message, as far as it can be read."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def fields(self) -> Iterable[tuple[int, int | bytes]]:
        """Number and value of each. It ends at what is no field.

        Raises:
            IndexError: the message is cut off, or a number has no end.
        """
        while self._at < len(self._content):
            tag = self._number()
            match tag & 7:
                case 0:
                    yield tag >> 3, self._number()
                case 1:
                    yield tag >> 3, self._bytes(8)
                case 2:
                    yield tag >> 3, self._bytes(self._number())
                case 5:
                    yield tag >> 3, self._bytes(4)
                case _:
                    return

    def _number(self) -> int:
        number = 0
        for shift in range(0, _LONGEST_NUMBER, 7):
            piece = self._content[self._at]
            self._at += 1
            number |= (piece & 0x7F) << shift
            if piece < 0x80:
                return number
        raise IndexError

    def _bytes(self, length: int) -> bytes:
        if self._at + length > len(self._content):
            raise IndexError
        self._at += length
        return self._content[self._at - length : self._at]


def _fields(content: bytes) -> dict[int, int | bytes]:
    found: dict[int, int | bytes] = {}
    try:
        found.update(_Reader(content).fields())
    except IndexError:
        return {}
    return found


def partial_success(answer: bytes) -> Partial:
    """What the answer to a request that was taken says: nothing, in most cases."""
    partial = _fields(answer).get(1)
    if not isinstance(partial, bytes):
        return 0, ""
    fields = _fields(partial)
    refused, message = fields.get(1, 0), fields.get(2, b"")
    return (
        refused if isinstance(refused, int) and refused < 2**63 else 0,
        message.decode(errors="replace") if isinstance(message, bytes) else "",
    )


def message_of_status(answer: bytes) -> str:
    """The message of a ``google.rpc.Status``, which says why a request was not taken."""
    message = _fields(answer).get(2, b"")
    return message.decode(errors="replace") if isinstance(message, bytes) else ""
