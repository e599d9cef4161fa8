"""What a batch says beyond the origin's wire, for a destination that wants spans.

In: entries of a session, in order. Out: the members to write into each event, and into a body.
Does not know: batches, trace ids, what a destination makes of it.
"""

from __future__ import annotations

from typing import NamedTuple

from trimaran._events import Generation, SessionEnd, SessionStart
from trimaran._pipeline.encoder import encode_value
from trimaran._pipeline.entry import Entry
from trimaran._spans import Spans, nanoseconds

__all__ = ["Members", "OfSession"]

_ROOT_FIELDS = ("agent", "model_id", "provider_id")
"""What a session's end does not say itself, and its span should."""


class OfSession(NamedTuple):
    """What is said once for each batch."""

    app: str
    """The host's name."""
    traceparent: str
    """What the session's root stands below; "" for nothing."""


class Members:
    """The members of one session's events, for one destination.

    Args:
        spans: the session's.
        of_session: what every batch says.
    """

    def __init__(self, spans: Spans, of_session: OfSession) -> None:
        self.of_session: OfSession = of_session
        self._spans = spans
        self._known: dict[str, str] = {}
        self._begun = 0
        """Nanoseconds since the epoch that the session began, or its first block, if that is
        earlier by a clock that was set meanwhile; 0 if its beginning was not here."""
        self._ended = 0
        """The same of the block that ended last."""

    def put_into(self, encoded: bytes, entry: Entry) -> bytes:
        """*encoded*, which is the event of *entry* as a JSON object, with its members."""
        own, above = self._spans.ids(entry.number, entry.place)
        start, end = (0, 0) if entry.place is None else entry.place[2:]
        if start:
            self._begun = min(self._begun, start)
            self._ended = max(self._ended, end)
        end = end or nanoseconds(entry.time)
        members = b'{"span_id":"%016x",' % own
        if above:
            members += b'"parent_span_id":"%016x",' % above
        event = entry.event
        if isinstance(event, SessionEnd):
            start, end = self._begun, max(self._ended, end)
            if self._known:
                members += encode_value({**self._known})[1:-1] + b","
        elif isinstance(event, SessionStart | Generation):
            self._note(event)
            if isinstance(event, SessionStart):
                self._begun = self._begun or end
        if start:
            members += b'"span_start":"%d",' % start
        return members + b'"span_end":"%d",' % end + encoded[1:]

    def _note(self, event: SessionStart | Generation) -> None:
        """Keep what the session's start says, and its first generation beside that."""
        for field in _ROOT_FIELDS:
            value: object = getattr(event, field)
            if type(value) is str and value:
                self._known.setdefault(field, value)
