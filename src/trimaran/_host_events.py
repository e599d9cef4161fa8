"""Events of the host's own, made from what was recorded of them.

In: an event's ``type`` and its fields, as JSON values.
Out: an :class:`~trimaran.Event` of a class made for the occasion.
Does not know: lines, sessions.

A type has one class at a time, whose fields are all that its events were seen with so
far; what one of them does not have is unset, and so not sent. That way there are no more
classes than there are names, however the fields are combined, and names are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import msgspec

from trimaran._events import UNSET, Event
from trimaran._pipeline.redact import mask_text

__all__ = ["HostEvents", "MadeEvent", "UnusableEvent"]

MOST_NAMES = 1_000
"""Names of types and of their fields together; a host has some dozens. Each new one makes
a class, of a few kilobytes."""

LONGEST_NAME = 128
"""Characters of a type or of a field; what the receiver takes for a type."""

_UNWRITABLE = re.compile(r'["\\\x00-\x1f]')
"""What msgspec does not write in the name of a field."""


class UnusableEvent(Exception):
    """An event that cannot be sent; says why."""


class MadeEvent(Event, frozen=True, kw_only=True):
    """The base of the classes that are made here, which are no host's: it has a place of its own
    among the events, before all that hosts declare.
    """


class HostEvents:
    """The classes made so far."""

    def __init__(self) -> None:
        self._classes: dict[str, Callable[..., Event]] = {}
        self._attributes: dict[str, dict[str, str]] = {}
        """By type: the attribute for each field."""
        self._names = 0

    def make(
        self, name: str, values: Mapping[str, object], timestamp: int | msgspec.UnsetType
    ) -> Event:
        """The event of type *name*; *timestamp* in ms since the epoch.

        What every event has (a type, a timestamp, a session) is not among *values*.

        Raises:
            UnusableEvent: a name is of no use, or there are too many of them.
        """
        known = self._attributes.get(name)
        if known is None or not known.keys() >= values.keys():
            known = self._extend(name, known or {}, values)
        fields = {known[field]: value for field, value in values.items()}
        return self._classes[name](timestamp=timestamp, **fields)

    def _extend(self, name: str, known: Mapping[str, str], fields: Iterable[str]) -> dict[str, str]:
        new = [field for field in fields if field not in known]
        _check("type", name)
        for field in new:
            _check("field", field)
        names = self._names + len(new) + (name not in self._classes)
        if names > MOST_NAMES:
            raise UnusableEvent(
                f"{name}: more than {MOST_NAMES:,} names of types and fields of the host's own"
            )
        attributes = {**known}
        for field in new:
            # No name of Python's or of the event's own; masking goes by the field's.
            attributes[field] = f"own_{len(attributes)}"
        made = msgspec.defstruct(
            "HostEvent",
            [(attribute, object, UNSET) for attribute in attributes.values()],
            bases=(MadeEvent,),
            tag=name,
            rename={attribute: field for field, attribute in attributes.items()},
            frozen=True,
            kw_only=True,
        )
        self._classes[name] = cast("type[Event]", made)
        self._names = names
        self._attributes[name] = attributes
        return attributes


def _check(what: str, name: str) -> None:
    if len(name) > LONGEST_NAME:
        raise UnusableEvent(f"a {what} of {len(name)} characters, {LONGEST_NAME} are the most")
    if not name or _UNWRITABLE.search(name):
        raise UnusableEvent(
            f"a {what} named {name!r}; it cannot be empty, nor have quotes, "
            "backslashes or control characters"
        )
    if mask_text(name) != name:
        # Masking looks at what stands under a name, and leaves the name as it is.
        raise UnusableEvent(f"a {what} whose name has in it what would have to be masked")
