"""What the spool speaks of: batches on disk, those that had to leave it, and its error.

In and out: plain values. Does not know: SQL, tasks.
"""

from __future__ import annotations

import msgspec

from trimaran._decision import Decision
from trimaran._pipeline.ledger import DropReason

__all__ = [
    "AND",
    "Evicted",
    "Kept",
    "SpoolError",
    "SpooledRow",
    "destination_of",
    "given_destination",
    "hands_of",
]

AND = "\n"
"""Stands between the names of several who handed over the same batch."""


def destination_of(decision: Decision, user_email: str, *, with_spans: bool = False) -> str:
    """What batches are bound to: the tier, the URL, and the account's e-mail address.

    Those *with_spans* say more than the origin's endpoint knows, and are bound to who takes that.
    """
    bound = f"{decision.tier} {decision.url} {user_email}".rstrip()
    return f"{bound} with spans" if with_spans else bound


def given_destination(name: str, url: str, *, with_spans: bool) -> str:
    """As :func:`destination_of`, for one that the host named and brought the transport to."""
    bound = f"given {name} {url}".rstrip()
    return f"{bound} with spans" if with_spans else bound


def hands_of(handed_by: str) -> list[str]:
    """Who handed a batch over to a relay: more than one, where a process found it in the spool
    of another that was gone.
    """
    return handed_by.split(AND)


class SpoolError(Exception):
    """The spool cannot be used; the message says where, why and what to do."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A batch on disk, without its body."""

    key: str
    events: int
    reports: int
    handed_by: str = ""
    """Whose it is, on the disk of a relay; see :func:`hands_of`."""
    parent_session_id: str = ""
    """The session that the one of its events works for."""
    traceparent: str = ""
    """What that session's root stands below."""


class SpooledRow(msgspec.Struct, frozen=True, kw_only=True):
    """A batch on disk, as a person looks at it."""

    key: str
    owner: str
    destination: str
    created: float
    """Seconds since the epoch."""
    events: int
    size: int
    """Bytes of its body."""
    is_owner_alive: bool
    """Whether the process that sends it lives; nobody else touches it then."""


class Evicted(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that had to leave the disk undelivered."""

    key: str
    events: int
    """Events in it that are in a book."""
    reason: DropReason
