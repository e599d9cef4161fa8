"""A batch of events becomes spans of one trace.

In: a batch's body, the table of names. Out: frozen spans, in the order of the events.
Does not know: how spans are written down or sent, what a destination makes of them.

Ids follow from what is in the batch, so that a batch that is sent again, by whichever
process, is the same spans again. An event says its own span and its parent's by two members
more, ``span_id`` and ``parent_span_id``; without them its id is made of the batch's key and
its place there, and it stands below the session's root. Two others, ``span_start`` and
``span_end``, say when it was, exactly; without them that follows from the time at which it was
tracked and from its duration, both in milliseconds.

A span goes out when it is over, and cannot be changed then. So an error, which comes after,
is a span without length below what it belongs to. The root comes at the end, and the start is
a span of its own before; but where a destination lets a span take the place of an earlier one
under the same id, the root goes out twice, as soon as the session starts and again when it
ends: what comes of a session that dies stands below something then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

from trimaran._pipeline.wire import parent_of, traceparent_of
from trimaran._spans import span_time
from trimaran._trace import trace_of
from trimaran.otlp.conventions import (
    ALL,
    OTHER,
    Dialect,
    Fields,
    Kind,
    Shape,
    Table,
    Value,
    raised_by,
    value_of,
    without_text,
)

__all__ = ["Begun", "Body", "Names", "Origin", "Span", "begun_by", "read_body", "spans_of"]

_NANOSECONDS = 1_000_000
"""In a millisecond."""

_LATEST = 2**63 // _NANOSECONDS
"""Milliseconds since the epoch: later has no nanoseconds in 64 bits."""

_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}", re.ASCII)

_IDS = 2**64
"""As many span ids there are, and one that is none."""

_STEP = 0x9E37_79B9_7F4A_7C15
"""From one made id to the next: an odd number comes back to the first after all others, and
this one, the golden ratio's, spreads few of them well."""

_ROOTS = frozenset({"session_start", "session_end"})

_SAID_OTHERWISE = frozenset(
    {
        "type",
        "timestamp",
        "session_id",
        "span_id",
        "parent_span_id",
        "span_start",
        "span_end",
        "duration_ms",
        "status",
        "error",
    }
)
"""Fields with a place in every span, beside its attributes."""


class Body(msgspec.Struct):
    """A batch as it is sent to the origin's endpoint, with the host's name beside that."""

    session_id: str
    timestamp: int
    events: list[dict[str, object]]
    cli_version: str = ""
    user_email: str = ""
    project_id: str = ""
    app: str = ""


_bodies = msgspec.json.Decoder(Body)


class Begun(msgspec.Struct, frozen=True):
    """What a session's end does not say any more."""

    time: int
    """When it started, in nanoseconds since the epoch."""
    fields: Mapping[str, object]
    """What its start said."""


class Names(msgspec.Struct, frozen=True):
    """How a destination wants to have it."""

    dialect: Dialect
    """The names that it needs beside OpenTelemetry's."""
    table: Table
    """All names, by type of event."""
    tags: tuple[str, ...] = ()
    """What every span is marked with."""
    with_open_root: bool = False
    """Whether a session's start is its root, to be replaced at its end; else it is a span of
    its own, and the root comes at the end alone."""
    with_both_roots: bool = False
    """Whether a root that its end replaces in the same batch goes out all the same: as a log
    record it is one of its own."""


class Origin(msgspec.Struct, frozen=True):
    """What a batch's request says of it beside its body."""

    key: str = ""
    parent_session_id: str = ""
    """The session that this one works for."""
    traceparent: str = ""
    """What the session's root stands below, as W3C Trace Context writes it."""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Origin:
        """From the headers of a batch."""
        return cls(
            headers.get("idempotency-key", ""),
            parent_of(headers),
            traceparent_of(headers),
        )


class Span(msgspec.Struct, frozen=True):
    """What happened, by the names of a destination. Times are nanoseconds since the epoch,
    ids hexadecimal digits.
    """

    event: str
    """The type of the event that it was."""
    trace_id: str
    span_id: str
    parent_span_id: str
    """ "" for none."""
    name: str
    kind: Kind
    start: int
    end: int
    shared: Mapping[str, Value]
    """Attributes that all spans of its type in this batch have: one object for all of them."""
    attributes: Mapping[str, Value]
    """Those that are its own."""
    is_error: bool = False
    message: str = ""
    """What went wrong."""
    exception: Mapping[str, Value] = {}
    """Attributes of an event ``exception`` at the span's end."""
    link: tuple[str, str] | None = None
    """Trace and span of what it is connected with, in another trace."""


def read_body(body: bytes) -> Body:
    """The batch in a request's body.

    Raises:
        msgspec.DecodeError: it is none.
    """
    try:
        return _bodies.decode(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(type(error).__name__) from None


def begun_by(body: Body) -> Begun | None:
    """How the session began, where that is in this batch."""
    for event in body.events:
        if event.get("type") == "session_start":
            return Begun(_time_of(event, body), event)
    return None


def spans_of(body: Body, origin: Origin, names: Names, begun: Begun | None = None) -> list[Span]:
    """The spans of a batch in the order of its events: one for each, but for a root that its
    end replaces in the same batch.

    Args:
        body: the batch.
        origin: what its request says beside.
        names: how the destination wants to have it.
        begun: how the session began, if that is known.
    """
    mapping = _Mapping(body, origin, names, begun)
    roots = _ROOTS if names.with_open_root else _ROOTS - {"session_start"}
    kinds = [_kind_of(event) for event in body.events]
    left_out: frozenset[str] = frozenset()
    if "session_end" in kinds and not names.with_both_roots:
        left_out = roots & {"session_start"}
    return [
        mapping.root(kind, event) if kind in roots else mapping.span(kind, event, index)
        for index, (kind, event) in enumerate(zip(kinds, body.events, strict=True))
        if kind not in left_out
    ]


class _Mapping:
    """One batch, while it is made into spans."""

    def __init__(self, body: Body, origin: Origin, names: Names, begun: Begun | None) -> None:
        trace = trace_of(body.session_id, origin.traceparent)
        _, _, above = origin.traceparent.strip().partition(trace.trace_id)
        self._body = body
        self._base = _base_of(body.session_id, origin.key)
        self._trace_id = trace.trace_id
        self._root = trace.span_id
        self._above_root = above[1:17]
        self._parent_session_id = origin.parent_session_id
        # What was started in another session's trace goes on in it, and so is in the same one.
        parent = trace_of(origin.parent_session_id, origin.traceparent)
        self._parent = (parent.trace_id, parent.span_id)
        self._dialect = names.dialect
        self._table = names.table
        self._begun = begun
        self._common = _common(body, names)
        self._shared: dict[str, dict[str, Value]] = {}

    def span(self, kind: str, event: Fields, index: int) -> Span:
        """What any event becomes but a root."""
        end = _time_of(event, self._body)
        start = _start_of(event, end)
        shape = self._table.get(kind or ALL) or self._table.get(ALL)
        if shape is None:  # nobody has said what of it may go out
            shape, event = self._table.get("", OTHER), without_text(event)
        is_error = _is_error(kind, event)
        message = _text(event, "error_message" if kind == "error" else "error")
        return Span(
            kind,
            self._trace_id,
            self._id_of(event, index),
            _span_id(event.get("parent_span_id")) or self._root,
            _name(shape, kind, event),
            shape.kind,
            start,
            end,
            self._shared.get(kind) or self._shared_by(kind, shape),
            self._attributes(shape, event),
            is_error,
            message if is_error else "",
            _exception(kind, event, message) if is_error else {},
        )

    def root(self, kind: str, event: Fields) -> Span:
        """The session's own span: as long as it was, or without length while it runs."""
        begun = self._begun
        time = _time_of(event, self._body)
        known = {
            **({} if begun is None else begun.fields),
            **event,
            "project_id": self._body.project_id,
        }
        start = span_time(event.get("span_start"))
        if not start:
            start = time - _duration(event, time) if begun is None else begun.time
        shape = self._table["session_end"]
        name = _name(shape, kind, known)
        attributes = self._attributes(shape, known)
        if self._dialect.trace_name:
            attributes[self._dialect.trace_name] = name
        link = None
        if self._parent_session_id:
            attributes[f"{self._dialect.prefix}parent_session_id"] = self._parent_session_id
            link = self._parent
        return Span(
            kind,
            self._trace_id,
            self._root,
            self._above_root,
            name,
            shape.kind,
            min(start, time),
            time,
            self._shared_by(kind, shape),
            attributes,
            link=link,
        )

    def _shared_by(self, kind: str, shape: Shape) -> dict[str, Value]:
        """What the spans of a type have in common, in this batch."""
        shared = {**self._common, f"{self._dialect.prefix}type": kind, **shape.always}
        self._shared[kind] = shared
        return shared

    def _attributes(self, shape: Shape, event: Fields) -> dict[str, Value]:
        """What an event says itself, under every name that it has."""
        found: dict[str, Value] = {}
        for name, field in shape.fields.items():
            value = event.get(field)
            # Most are text, and most of what is none is not there.
            if type(value) is not str and value is not None:
                value = value_of(value)
            if value is not None and value != "":
                found[name] = value
        if shape.own is None:
            for field, said in event.items():
                value = value_of(said)
                if value is not None and field not in _SAID_OTHERWISE:
                    found[f"{self._dialect.prefix}{field}"] = value
        for computed in shape.computed:
            found.update(computed(event))
        return found

    def _id_of(self, event: Fields, index: int) -> str:
        given = _span_id(event.get("span_id"))
        return given or f"{(self._base + index * _STEP) % _IDS or 1:016x}"


def _common(body: Body, names: Names) -> dict[str, Value]:
    """What every span of a session carries, so that each can be found by it."""
    dialect = names.dialect
    session = _fitting(body.session_id, dialect.longest_id)
    found: dict[str, Value] = dict.fromkeys(dialect.session, session)
    if body.user_email:
        found[dialect.user] = _fitting(body.user_email, dialect.longest_id)
    if names.tags:
        found[dialect.tags] = tuple(_fitting(tag, dialect.longest_id) for tag in names.tags)
    return found


def _fitting(text: str, longest: int | None) -> str:
    """*text*, or what stands for it everywhere where it may not be sent as it is."""
    if longest is None or (len(text) <= longest and text.isascii() and text.isprintable()):
        return text
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _kind_of(event: Fields) -> str:
    kind = event.get("type")
    return kind if type(kind) is str else ""


def _name(shape: Shape, kind: str, event: Fields) -> str:
    subject = _text(event, shape.subject) if shape.subject else ""
    return f"{shape.name} {subject}".strip() or kind or "event"


def _text(event: Fields, field: str) -> str:
    value = event.get(field)
    return value if type(value) is str else ""


def _is_error(kind: str, event: Fields) -> bool:
    return (
        kind == "error"
        or event.get("status") == "error"
        or (kind == "generation" and event.get("finish_reason") == "error")
    )


def _exception(kind: str, event: Fields, message: str) -> dict[str, Value]:
    """As OpenTelemetry has it: https://opentelemetry.io/docs/specs/semconv/exceptions/."""
    name = _text(event, "error_name")
    if kind != "error":
        name, message = raised_by(message)
        if not name:
            return {}
    told = {"exception.type": name, "exception.message": message}
    return {name: text for name, text in told.items() if text}


def _time_of(event: Fields, body: Body) -> int:
    """When an event was over, in nanoseconds since the epoch; else, when it was sent."""
    exact = span_time(event.get("span_end"))
    if exact:
        return exact
    for time in (event.get("timestamp"), body.timestamp):
        if type(time) is int and 0 <= time < _LATEST:
            return time * _NANOSECONDS
    return 0


def _start_of(event: Fields, end: int) -> int:
    """When an event began that was over at *end*."""
    start = span_time(event.get("span_start"))
    return start if 0 < start <= end else end - _duration(event, end)


def _duration(event: Fields, end: int) -> int:
    """Nanoseconds that it lasted, at most since the epoch; 0 where it has no length."""
    duration = event.get("duration_ms")
    if type(duration) is int or type(duration) is float:
        length = duration * _NANOSECONDS
        if 0 < length < end:
            return int(length)
        return end if length > 0 else 0
    return 0


def _span_id(value: object) -> str | None:
    """*value*, where it is an id: one that is not costs some destinations the whole batch."""
    return value if type(value) is str and _SPAN_ID.fullmatch(value) else None


def _base_of(session_id: str, key: str) -> int:
    """Where the ids begin that are made for a batch."""
    text = f"{session_id}\n{key}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
