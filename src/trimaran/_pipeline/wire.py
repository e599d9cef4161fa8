"""The origin's wire: what a batch looks like as the body of a request, and back.

In: a session's context and events that are encoded already; the answer's body.
Out: bytes; which events of a batch the endpoint refused.
Does not know: how requests are made, what an event means.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote, unquote

import msgspec

__all__ = [
    "INGEST_PATH",
    "LONGEST_ID",
    "LONGEST_PARENT",
    "Context",
    "Stamper",
    "body",
    "endpoint_url",
    "halves",
    "parent_headers",
    "parent_of",
    "refused_indexes",
    "session_id_of",
    "stamped",
    "trace_headers",
    "traceparent_of",
    "without_members",
]

INGEST_PATH = "/api/observability/ingest"

_PARENT_HEADER = "trimaran-parent-session"
_TRACE_HEADER = "traceparent"

LONGEST_PARENT = 256
"""Characters of a parent's id that is sent. Encoded they take 3 KiB at most; servers take
8 KiB or 16 KiB of headers, and refuse the request beyond that."""

LONGEST_ID = 256
"""Characters of a session's id, which becomes part of addresses."""

_DIGEST = 16
"""Hexadecimal digits that keep ids apart which had to be changed."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_TEXT = rb'"(?:[^"\\]|\\.)*"'

_MEMBERS = re.compile(
    rb'(\{"timestamp":\d+,"session_id":%b,)(?:"\w+":%b,)*(?="type":)' % (_TEXT, _TEXT)
)
"""An event's stamps, and what stands between these and its own members."""

_encode = msgspec.json.Encoder().encode


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What is said once for each batch of a session."""

    session_id: str
    cli_version: str = ""
    user_email: str = ""
    project_id: str = ""


class _Body(msgspec.Struct, omit_defaults=True):
    session_id: str
    cli_version: str
    user_email: str
    project_id: str
    timestamp: int
    events: list[msgspec.Raw]
    app: str = ""


_bodies = msgspec.json.Decoder(_Body)


class _Refusal(msgspec.Struct):
    index: int


class _PartialAnswer(msgspec.Struct):
    rejected: list[_Refusal] = []


_partial_answers = msgspec.json.Decoder(_PartialAnswer)


def endpoint_url(base: str) -> str:
    """The URL that batches are posted to."""
    return base.rstrip("/") + INGEST_PATH


def session_id_of(text: str) -> str:
    """*text* itself where a receiver takes it as the id of a session; else what it takes, the
    same for the same text, and another one for another.
    """
    if len(text) <= LONGEST_ID and not _CONTROL.search(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    return f"{_CONTROL.sub('_', text[: LONGEST_ID - _DIGEST - 1])}-{digest}"


def parent_headers(parent_session_id: str) -> dict[str, str]:
    """The header that names a session's parent; none where there is none.

    The id is percent-encoded as in an address, so that a header can carry any text, and
    nothing in it can end the header.
    """
    if not parent_session_id:
        return {}
    return {_PARENT_HEADER: quote(parent_session_id, safe="")}


def parent_of(headers: Mapping[str, str]) -> str:
    """What :func:`parent_headers` were made of."""
    return unquote(headers.get(_PARENT_HEADER, ""))


def trace_headers(traceparent: str) -> dict[str, str]:
    """The header that names what a session's root stands below, as W3C Trace Context has it;
    none where it stands below nothing.
    """
    return {_TRACE_HEADER: traceparent} if traceparent else {}


def traceparent_of(headers: Mapping[str, str]) -> str:
    """What :func:`trace_headers` were made of."""
    return headers.get(_TRACE_HEADER, "")


def stamped(encoded: bytes, *, timestamp: int, session_id_json: bytes) -> bytes:
    """An encoded event with the session's stamps; *timestamp* in ms since the epoch.

    *encoded* is a JSON object with at least one member and neither stamp in it.
    """
    return b'{"timestamp":%d,"session_id":%b,' % (timestamp, session_id_json) + encoded[1:]


class Stamper:
    """Puts the stamps of one session into its events, as :func:`stamped` does.

    In a stream many events have one millisecond in common, and so their beginning: it is
    kept from one to the next.
    """

    __slots__ = ("_beginning", "_millisecond", "_session_id_json")

    def __init__(self, session_id_json: bytes) -> None:
        self._session_id_json = session_id_json
        self._millisecond = -1
        self._beginning = b""

    def stamped(self, encoded: bytes, time: float) -> bytes:
        """*encoded* with the session's stamps; *time* in seconds since the epoch."""
        # Rounded: a millisecond that went through seconds may come back a hair below itself.
        millisecond = int(time * 1000 + 0.5)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._beginning = stamped(
                b"{", timestamp=millisecond, session_id_json=self._session_id_json
            )
        return self._beginning + encoded[1:]


def body(context: Context, events: Sequence[bytes], *, timestamp: int, app: str = "") -> bytes:
    """The body of a batch; *timestamp* is when it was made, in ms since the epoch.

    *app* is the host's name, for a destination that takes more than the origin's endpoint.
    """
    host = b'"app":%b,' % _encode(app) if app else b""
    return b'{"session_id":%b,"cli_version":%b,"user_email":%b,"project_id":%b,' % (
        _encode(context.session_id),
        _encode(context.cli_version),
        _encode(context.user_email),
        _encode(context.project_id),
    ) + b'%b"timestamp":%d,"events":[%b]}' % (host, timestamp, b",".join(events))


def halves(whole: bytes) -> tuple[bytes, bytes]:
    """A body's first half of events, and the rest, each with all that is said once."""
    parsed = _bodies.decode(whole)
    middle = len(parsed.events) // 2
    first = msgspec.structs.replace(parsed, events=parsed.events[:middle])
    second = msgspec.structs.replace(parsed, events=parsed.events[middle:])
    return _encode(first), _encode(second)


def without_members(whole: bytes) -> bytes:
    """A body without what the origin's endpoint does not know; see :func:`body`."""
    parsed = _bodies.decode(whole)
    events = [msgspec.Raw(_MEMBERS.sub(rb"\1", bytes(event), count=1)) for event in parsed.events]
    return _encode(msgspec.structs.replace(parsed, events=events, app=""))


def refused_indexes(answer: bytes, *, count: int) -> frozenset[int]:
    """Which of a batch's *count* events a 207 answer refused.

    An answer that cannot be read refuses none: the endpoint did say success.
    """
    try:
        partial = _partial_answers.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()
    return frozenset(refusal.index for refusal in partial.rejected if 0 <= refusal.index < count)
