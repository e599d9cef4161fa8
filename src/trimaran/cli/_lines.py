"""A line of JSON becomes an event, or the reason why it does not.

In: one line, as bytes.
Out: :class:`Found`, :class:`PassedOver` or :class:`Bad`; nothing is ever raised.
Does not know: files, sessions, what becomes of the event.

Two kinds of lines are read. An event as it is on the wire has a ``type``; what the wire
does not know is an event of the host's own. A record of structlog's ``JSONRenderer`` has
an ``event``, and is one only where that names an event: any other record is a log line
like many, which nobody asked to send. Where a line has both, ``event`` goes first if it names
an event; else it is a field of what ``type`` says, unless there is a ``level``, as log lines
have.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from trimaran._events import BUILT_IN_EVENTS, UNSET, ErrorEvent, Event
from trimaran._host_events import HostEvents, UnusableEvent
from trimaran._pipeline.encoder import jsonable

__all__ = ["Bad", "Found", "LineReader", "PassedOver", "Reading"]

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LAST_TIMESTAMP = 253_402_300_799_999
"""The end of the year 9999, in ms since the epoch; no calendar goes further."""

LEAST_MILLISECONDS = 1e11
"""A record's number from here on is milliseconds: as seconds, it were the year 5138."""

_RECORD_KEYS = frozenset(
    {
        "event",
        "exc_info",
        "exception",
        "level",
        "logger",
        "session_id",
        "stack",
        "timestamp",
        "type",
    }
)
"""What structlog's own processors put into a record, and ``type``, which is the event's
name already: no fields of an event."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """The line is an event; ``session_id`` is the one that it names, if any."""

    event: Event
    session_id: str | None


class PassedOver(msgspec.Struct, frozen=True, gc=False):
    """The line is a log record, and no event."""


class Bad(msgspec.Struct, frozen=True, gc=False):
    """The line cannot be used, and why."""

    reason: str


Reading: TypeAlias = Found | PassedOver | Bad


class LineReader:
    """Reads lines of one input.

    Args:
        names: names of log records that are events of the host's own.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._host_events = HostEvents()

    def read(self, line: bytes) -> Reading:
        """What *line* is."""
        try:
            content = msgspec.json.decode(line)
        except UnicodeDecodeError as error:
            return Bad(f"not UTF-8 ({error.reason})")
        except RecursionError:
            return Bad("nested too deeply")
        except msgspec.DecodeError as error:
            content = _from_python(line)
            if content is None:
                return Bad(f"not JSON ({error})")
        if not isinstance(content, dict):
            return Bad(f"a JSON {_JSON_KINDS[type(content)]}, not an object")
        record = cast("dict[str, Any]", content)
        try:
            session_id = _session_id(record)
            if self._is_record(record):
                event = self._from_record(record)
            else:
                event = self._from_wire(record)
        except (msgspec.ValidationError, UnusableEvent) as error:
            return Bad(str(error))
        return PassedOver() if event is None else Found(event, session_id)

    def _is_record(self, content: Mapping[str, Any]) -> bool:
        name = content.get("event")
        if not isinstance(name, str):
            return False
        is_event = name in BUILT_IN_EVENTS or name in self._names
        return is_event or "level" in content or not isinstance(content.get("type"), str)

    def _from_wire(self, values: dict[str, Any]) -> Event:
        name = values.pop("type", None)
        if not isinstance(name, str):
            raise UnusableEvent("no event: it has neither a `type` nor an `event`")
        values.pop("session_id", None)
        timestamp = _timestamp(values.pop("timestamp", None), seconds=False)
        kind = BUILT_IN_EVENTS.get(name)
        if kind is None:
            return self._host_events.make(name, values, timestamp)
        return _built_in(name, kind, values, timestamp, strict=True)

    def _from_record(self, record: Mapping[str, Any]) -> Event | None:
        name: str = record["event"]
        kind = BUILT_IN_EVENTS.get(name)
        if kind is None and name not in self._names:
            return None
        timestamp = _timestamp(record.get("timestamp"), seconds=True)
        values = {key: value for key, value in record.items() if key not in _RECORD_KEYS}
        if kind is None:
            return self._host_events.make(name, values, timestamp)
        if kind is ErrorEvent:
            values = {**_exception(record.get("exception")), **values}
        return _built_in(name, kind, values, timestamp, strict=False)


def _from_python(line: bytes) -> dict[str, Any] | None:
    """What Python's ``json`` wrote, and JSON does not know; None if it is not that either.

    So does structlog's renderer: half of a surrogate pair, which stands for a byte of a file
    name that is no text, becomes the character for that; what is no number is left out.
    """
    try:
        content = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    mended = cast("dict[str, Any]", jsonable(cast("object", content)))
    return {key: value for key, value in mended.items() if value is not None}


def _built_in(
    name: str,
    kind: type[Event],
    values: Mapping[str, Any],
    timestamp: int | msgspec.UnsetType,
    *,
    strict: bool,
) -> Event:
    """An event of the wire; fields that it does not have are left out, as they would be there."""
    stamped = values if timestamp is UNSET else {**values, "timestamp": timestamp}
    try:
        return msgspec.convert(stamped, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{name}: {error}") from None


def _session_id(record: Mapping[str, Any]) -> str | None:
    session_id = record.get("session_id")
    if session_id is not None and not isinstance(session_id, str):
        raise UnusableEvent(f"session_id is {session_id!r:.40}, not text")
    return session_id or None


def _timestamp(value: object, *, seconds: bool) -> int | msgspec.UnsetType:
    """Milliseconds since the epoch, of a number or of a time in ISO 8601.

    A time without a zone is local: structlog's ``TimeStamper(utc=False)`` writes it so.
    A number is in milliseconds, or in *seconds* where it is too small for the former.
    """
    if value is None:
        return UNSET
    stamp: int | None = None
    if isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value).astimezone(dt.UTC)
        except (ValueError, OverflowError):
            pass
        else:
            stamp = (moment - EPOCH) // dt.timedelta(milliseconds=1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        stamp = round(value * 1000 if seconds and value < LEAST_MILLISECONDS else value)
    if stamp is None or not 0 <= stamp <= LAST_TIMESTAMP:
        raise UnusableEvent(
            f"timestamp {value!r:.40} is neither "
            f"{'seconds' if seconds else 'milliseconds'} since the epoch nor ISO 8601"
        )
    return stamp


_LAST_FRAME = re.compile(r"(?:\A|\n)[ \t][^\n]*\n(?![ \t])")
"""The end of a traceback's frames, which are indented; what was raised stands behind it."""


def _exception(exception: object) -> dict[str, str]:
    """Name and message of what structlog rendered, by ``format_exc_info`` or ``dict_tracebacks``."""
    if isinstance(exception, str):
        ends = [match.end() for match in _LAST_FRAME.finditer(exception)]
        name, _, message = exception[ends[-1] if ends else 0 :].partition(": ")
        return {"error_name": name.strip().rpartition(".")[2], "error_message": message}
    if isinstance(exception, list) and exception:
        # In a chain of exceptions, structlog's first is the one that came out.
        raised = cast("list[object]", exception)[0]
        if isinstance(raised, dict):
            found = cast("dict[str, object]", raised)
            return {
                "error_name": str(found.get("exc_type", "")),
                "error_message": str(found.get("exc_value", "")),
            }
    return {}


_JSON_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
}
