"""What the store gives: values, no more.

In and out: plain values.
Does not know: SQL, HTTP, how any of it is shown.
"""

import msgspec

from trimaran.receiver.ingest import Rejection
from trimaran.receiver.summary import Summary

__all__ = ["Ancestor", "EventPage", "Family", "Receipt", "SessionPage", "StoredSession"]


class Receipt(msgspec.Struct, frozen=True):
    """What became of a batch: how many events are stored, and which are not, and why.

    A repeated batch gets the receipt of the first time, marked as a *duplicate*.
    """

    accepted: int
    rejected: tuple[Rejection, ...]
    duplicate: bool = False


class StoredSession(msgspec.Struct, frozen=True):
    """A session and its totals. ``number`` counts up in the order of first arrival."""

    number: int
    id: str
    summary: Summary

    parent: str | None = None
    """The session that it says it works for; that one may never have arrived."""

    is_parent_stored: bool = False

    children: tuple[str, ...] = ()
    """The first ``limits.MAX_CHILDREN`` sessions that say so of this one."""


class SessionPage(msgspec.Struct, frozen=True):
    """Some sessions, the newest first. ``next`` is where the next page starts, or None."""

    sessions: tuple[StoredSession, ...]
    next: int | None


class EventPage(msgspec.Struct, frozen=True):
    """Some events of a session as their JSON text, in the order of arrival.

    ``first`` is the position of the first one, counted from 0; ``next`` is where the
    next page starts, or None.
    """

    first: int
    events: tuple[msgspec.Raw, ...]
    next: int | None


class Ancestor(msgspec.Struct, frozen=True):
    """A session above another one, and whether anything of it has arrived."""

    id: str
    is_stored: bool


class Family(msgspec.Struct, frozen=True):
    """The sessions above one, the topmost first, and those below it.

    Of those below, the nearest ``limits.MAX_FAMILY``, in the order of first arrival;
    ``more`` says whether there are others.
    """

    above: tuple[Ancestor, ...] = ()
    below: tuple[StoredSession, ...] = ()
    more: bool = False
