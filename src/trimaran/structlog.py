"""Log records as the source of events.

In: structlog's event dicts, as a processor in the host's chain.
Out: the same event dicts, unchanged; and typed events of the current session.
Does not know: how records are rendered; it configures nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, cast

import msgspec

from trimaran._events import BUILT_IN_EVENTS, ErrorEvent, Event
from trimaran._pipeline.encoder import STOPS, class_name
from trimaran._recording import message_of
from trimaran._session import SILENT, current_session

__all__ = ["TelemetryProcessor"]

_STAMPS = frozenset({"timestamp", "session_id"})
"""Fields that are the session's to stamp; a record's own timestamp is a matter of the
host's format."""


class TelemetryProcessor:
    """Turns records whose event name is an event type into events.

    Put it before the renderer, and before what renders exceptions. Where several
    handlers of the standard library's ``logging`` format the same records, put it into
    the chain of one of them, or each record becomes an event for each handler.

    ``log.info("tool_call", tool_name="bash", duration_ms=12)`` becomes a
    :class:`~trimaran.ToolCall` of the session that is current where the call stands.
    A record's keys that are no fields of the event are left out of it. A record that
    lacks a required field, or has one of another kind, is counted in the session as
    dropped, ``encode_error``. ``log.exception("error")`` takes name and message from
    the exception where the record does not give them.

    Outside of a session nothing happens. It never raises, never waits and always
    returns the very event dict that it was given.

    Args:
        events: the host's own event classes, beside the ten of the wire.
    """

    def __init__(self, *, events: Iterable[type[Event]] = ()) -> None:
        own = {str(event.__struct_config__.tag): event for event in events}
        self._kinds: Mapping[str, type[Event]] = {**BUILT_IN_EVENTS, **own}
        self._fields = {kind: _wire_names(kind) for kind in self._kinds.values()}

    def __call__(
        self,
        logger: Any,  # noqa: ANN401, ARG002 - structlog's signature of a processor
        method_name: str,  # noqa: ARG002 - as above
        event_dict: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        """See the class."""
        name = event_dict.get("event")
        kind = self._kinds.get(name) if type(name) is str else None
        if kind is not None:
            session = current_session()
            if session is not SILENT:
                session.track(self._event(kind, event_dict))
        return event_dict

    def _event(self, kind: type[Event], record: Mapping[str, Any]) -> Event:
        values = {
            wire_name: record[name]
            for name, wire_name in self._fields[kind].items()
            if name in record
        }
        try:
            if kind is ErrorEvent:
                error = _exception_of(record)
                if error is not None:
                    values.setdefault("error_name", class_name(type(error)))
                    values.setdefault("error_message", message_of(error))
            return msgspec.convert(values, kind, strict=False)
        except STOPS:
            raise
        except BaseException:  # noqa: BLE001 - a record may hold anything
            # No event: the session counts it as one that could not be encoded.
            return cast("Event", values)


def _wire_names(kind: type[Event]) -> dict[str, str]:
    """The fields that a record may give, by name, with what each is called on the wire."""
    names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
    return {name: wire_name for name, wire_name in names if name not in _STAMPS}


def _exception_of(record: Mapping[str, Any]) -> BaseException | None:
    """The exception of a record's ``exc_info``, in any of the forms that structlog takes.

    A record whose exception was rendered already comes, as a rule, from its handler.
    """
    exc_info: object = record.get("exc_info", "exception" in record)
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        parts = cast("tuple[object, ...]", exc_info)
        return next((part for part in parts if isinstance(part, BaseException)), None)
    return sys.exc_info()[1] if exc_info else None
