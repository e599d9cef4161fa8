"""From the body of a post to a validated batch, without I/O.

In: the bytes of one post, decompressed.
Out: a :class:`Batch` of the events that are good, with the index and the reason
of each one that is not; or :class:`BadBody`, which says what is wrong and where, or
:class:`TooManyEvents`.
Does not know: HTTP, the store, time.

The ten types of the wire are checked against their classes. Every other ``type``
is an event of the host's own: it is kept as it came. What is kept is the JSON text
of the event itself, so nothing a sender adds gets lost on the way.
"""

import re
from collections.abc import Callable, Mapping
from typing import Union

import msgspec
from msgspec import UNSET

from trimaran._events import Event
from trimaran.receiver.limits import MAX_EVENTS
from trimaran.receiver.wire import EVENTS, Envelope, Head

__all__ = [
    "BadBody",
    "Batch",
    "GoodEvent",
    "Rejection",
    "TooManyEvents",
    "parse",
    "parse_event",
]

MAX_DEPTH = 64  # levels of nesting; readers of JSON give up at some hundreds
_LIST, _OBJECT = b"[{"
_BRACKET_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
# An escape in a string: two halves of a character, one that is alone, or any other.
# JavaScript writes one where a text was cut within a character; nobody else can read it.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)


class BadBody(Exception):
    """The body is not a batch.

    ``problem`` says what is wrong. ``at`` says where: a path such as ``$.events``
    when a value is of the wrong kind, ``byte 12`` when the body is not JSON, or None
    when it is the whole.
    """

    def __init__(self, problem: str, at: str | None = None) -> None:
        super().__init__(problem if at is None else f"{problem} (at {at})")
        self.problem = problem
        self.at = at


class TooManyEvents(Exception):
    """The batch has more events than are taken at once."""

    def __init__(self) -> None:
        super().__init__(f"The batch has more than {MAX_EVENTS} events")


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """One event that was not accepted: its index in the batch, and why."""

    index: int
    reason: str


class GoodEvent(msgspec.Struct, frozen=True, gc=False):
    """One event that was accepted.

    ``raw`` is its JSON text, which always has the ``session_id``. ``event`` is the
    typed event, or None for a type of the host's own.
    """

    type: str
    timestamp: int
    raw: bytes
    event: Event | None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one post carries, sorted into good events and rejected ones.

    ``timestamp`` is when the sender made the batch, in ms since the epoch.
    """

    session_id: str
    timestamp: int
    cli_version: str
    user_email: str
    project_id: str
    events: tuple[GoodEvent, ...]
    rejected: tuple[Rejection, ...]


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_known: Callable[[bytes], Event] = msgspec.json.Decoder(
    Union[tuple(EVENTS.values())]  # noqa: UP007 - of as many as there are
).decode
_NAMES: Mapping[type[Event], str] = {event_class: name for name, event_class in EVENTS.items()}


def parse(body: bytes) -> Batch:
    """Read *body* as a batch.

    Raises:
        BadBody: The body is not UTF-8, not JSON, or lacks what the envelope needs.
        TooManyEvents: It is a batch, but too large a one. Nothing else is raised,
            whatever the bytes are.
    """
    envelope = _envelope(body)
    if len(envelope.events) > MAX_EVENTS:
        raise TooManyEvents
    good: list[GoodEvent] = []
    rejected: list[Rejection] = []
    for index, raw in enumerate(envelope.events):
        try:
            good.append(parse_event(bytes(raw), envelope.session_id))
        except msgspec.DecodeError as error:
            rejected.append(Rejection(index, str(error)))
    return Batch(
        session_id=envelope.session_id,
        timestamp=envelope.timestamp,
        cli_version=envelope.cli_version,
        user_email=envelope.user_email,
        project_id=envelope.project_id,
        events=tuple(good),
        rejected=tuple(rejected),
    )


def _envelope(body: bytes) -> Envelope:
    try:
        # The decoder below reads past the strings that it leaves raw, and these are
        # stored as text: so all of the body is checked here.
        body.decode()
        return _decode_envelope(body)
    except UnicodeDecodeError as error:
        raise BadBody("The body is not UTF-8", f"byte {error.start}") from error
    except RecursionError as error:
        raise BadBody("The body is nested too deeply") from error
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `")
        raise BadBody(problem, path.removesuffix("`") or "$") from error
    except msgspec.DecodeError as error:
        mended = _ESCAPE.sub(_without_halves, body)
        if mended != body:
            return _envelope(mended)
        problem, _, place = str(error).partition(" (")
        raise BadBody(problem, place.removesuffix(")") or f"byte {len(body)}") from error


def _without_halves(escape: re.Match[bytes]) -> bytes:
    """The *escape* as it is, or in place of half a character the one that says so."""
    return rb"\ufffd" if escape["half"] else escape[0]


def parse_event(raw: bytes, session_id: str) -> GoodEvent:
    """Check *raw*, the JSON text of one event of the session *session_id*.

    Raises:
        msgspec.DecodeError: It is not an event of that session; the message is the
            reason, with the path to it.
    """
    # Almost every event is flat, which is seen at once; a single byte is found fastest.
    if (_LIST in raw or raw.rfind(_OBJECT) > 0) and _depth(raw) > MAX_DEPTH:
        raise msgspec.ValidationError(f"Nested deeper than {MAX_DEPTH} levels")
    try:
        event = _decode_known(raw)
    except msgspec.ValidationError:
        head = _decode_head(raw)
        if head.type in EVENTS:
            raise
        return GoodEvent(
            head.type, head.timestamp, _in_session(raw, head.session_id, session_id), None
        )
    if event.session_id != session_id:
        raw = _in_session(raw, event.session_id, session_id)
    assert event.timestamp is not UNSET
    return GoodEvent(_NAMES[type(event)], event.timestamp, raw, event)


def _in_session(raw: bytes, said: str | msgspec.UnsetType, session_id: str) -> bytes:
    """The event *raw*, with the *session_id* put in where it has none itself."""
    if said is UNSET:
        return b'{"session_id":%s,%s' % (msgspec.json.encode(session_id), raw[1:].lstrip())
    if said != session_id:
        raise msgspec.ValidationError("Is not the session of the batch - at `$.session_id`")
    return raw


def _depth(raw: bytes) -> int:
    """How deep the JSON text *raw* is nested, or any number within the limit.

    Almost no event has as many brackets as it takes to be too deep: only where one has
    are they followed, with strings left out.
    """
    brackets = raw.count(b"{") + raw.count(b"[")
    if brackets <= MAX_DEPTH:
        return brackets
    depth = deepest = 0
    for match in _BRACKET_OR_STRING.finditer(raw):
        match match[0]:
            case b"{" | b"[":
                depth += 1
                deepest = max(deepest, depth)
            case b"}" | b"]":
                depth -= 1
            case _:
                pass
    return deepest
