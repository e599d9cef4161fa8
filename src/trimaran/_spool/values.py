"""What the spool speaks of: batches on disk, whose they are, those that had to leave it, and
its error.

In and out: plain values. Does not know: SQL, tasks.

What is secret is on no disk, but batches have to be bound to whose secret it is. A digest
stands for it that is slow to work out: one who reads the disk can try guesses only, each for a
tenth of a second, and the keys and tokens of such services are too long to be guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import msgspec

from trimaran._decision import Decision
from trimaran._pipeline.ledger import DropReason

__all__ = [
    "AND",
    "Binding",
    "Evicted",
    "Kept",
    "SpoolBusy",
    "SpoolError",
    "SpooledRow",
    "account_in",
    "bound_to",
    "destination_of",
    "given_destination",
    "hands_of",
    "stand_in_for",
    "worked_out",
]

AND = "\n"
"""Stands between the names of several who handed over the same batch."""


Binding: TypeAlias = str | Callable[[], str]
"""What batches are bound to; or what works that out, which takes a tenth of a second: to be
called beside the loop.
"""

_WITH_SPANS = " with spans"

_ROUNDS = 100_000
"""Of a digest; a tenth of a second."""


def destination_of(decision: Decision, account: str, *, with_spans: bool = False) -> str:
    """What batches are bound to: the tier, the URL, and what stands for the account, if any.

    Those *with_spans* say more than the origin's endpoint knows, and are bound to who takes that.
    """
    bound = f"{decision.tier} {decision.url} {account}".rstrip()
    return f"{bound}{_WITH_SPANS}" if with_spans else bound


def bound_to(
    decision: Decision, user_email: str, token: str | None, *, with_spans: bool = False
) -> Binding:
    """As :func:`destination_of`; for the account stands its e-mail address.

    Two accounts that have none are told apart by their tokens alone. The one that a process
    began with stands for the account there, whichever its provider gives later. So what is left
    waits for the very same token, where it has to be found out whose it is: rather too long
    than to go out with somebody else's.
    """
    if token is None or user_email.strip():
        return destination_of(decision, user_email, with_spans=with_spans)

    @cache
    def work_out() -> str:
        account = f"account:{stand_in_for(token, decision.url or '')}"
        return destination_of(decision, account, with_spans=with_spans)

    return work_out


def worked_out(binding: Binding) -> str:
    """What batches are bound to. May take a tenth of a second: call it beside the loop."""
    return binding if isinstance(binding, str) else binding()


def account_in(destination: str) -> str:
    """What stands for the account in what :func:`destination_of` gave; "" for nothing."""
    return destination.removesuffix(_WITH_SPANS).partition(" ")[2].partition(" ")[2]


def stand_in_for(secret: str, url: str) -> str:
    """What stands for *secret* at *url*, and does not tell it; see the head of this file."""
    # The URL as the salt: equal keys of two services have nothing in common.
    salt = url.encode(errors="surrogatepass")
    return hashlib.pbkdf2_hmac("sha512", secret.encode(), salt, _ROUNDS, 16).hex()


def given_destination(name: str, url: str, *, with_spans: bool) -> str:
    """As :func:`destination_of`, for one that the host named and brought the transport to."""
    bound = f"given {name} {url}".rstrip()
    return f"{bound}{_WITH_SPANS}" if with_spans else bound


def hands_of(handed_by: str) -> list[str]:
    """Who handed a batch over to a relay: more than one, where a process found it in the spool
    of another that was gone.
    """
    return handed_by.split(AND)


class SpoolError(Exception):
    """The spool cannot be used; the message says where, why and what to do."""


class SpoolBusy(SpoolError):
    """It cannot be used for now: somebody else writes there, or it takes too long.

    Args:
        message: as in the others.
        is_under_way: whether what was wanted may be done all the same, later.
    """

    def __init__(self, message: str, *, is_under_way: bool = False) -> None:
        super().__init__(message)
        self.is_under_way: bool = is_under_way


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
