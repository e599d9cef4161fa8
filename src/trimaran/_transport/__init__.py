"""The seam to the network: what one attempt is, whoever makes it.

In: a request, whole. Out: the endpoint's answer, or a :class:`TransportError`.
Does not know: tokens, retries, batches; each attempt stands for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from trimaran._pipeline.ledger import DropReason

__all__ = [
    "ANSWER_LIMIT",
    "HANDED_OVER",
    "Answer",
    "Blueprint",
    "GivenUp",
    "Request",
    "Transport",
    "TransportError",
    "blueprint_of",
    "wants_spans",
]

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer's body that are read at most; the rest is cut off with the
connection. A 207 that refuses all of 200 events takes about 20,000."""


class Request(msgspec.Struct, frozen=True):
    """One POST. ``repr`` shows neither headers nor body: they carry the token."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    events: int = 0
    """Events in the body."""
    reports: int = 0
    """How many of them, from the first, are reports of losses."""

    def __repr__(self) -> str:
        return f"Request(url={self.url!r}, {len(self.body)} bytes)"


class Answer(msgspec.Struct, frozen=True):
    """What the endpoint said: a status, ``Retry-After`` as it came, and the body's
    first 64 KiB.
    """

    status: int
    retry_after: str | None = None
    body: bytes = b""


HANDED_OVER = Answer(202)
"""The very answer that means: not the endpoint has it, but a relay, on its disk."""


class TransportError(Exception):
    """An attempt ended without an answer: not connected, broken off, out of time.

    The endpoint may or may not have taken the batch. The message names the kind
    of failure and never quotes the request.
    """


class GivenUp(Exception):
    """There is no sense in trying: *reason* is what becomes of the request's events."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(str(reason))
        self.reason: DropReason = reason


class Blueprint(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a transport again in another process. No secret is in it."""

    kind: str
    """Which kind of transport: a word that who makes it knows, as "otlp"."""
    version: int
    """Of what *settings* mean."""
    url: str
    """Where it posts to."""
    settings: str
    """The rest, as text: the same one for equal transports."""


class Transport(Protocol):
    """Makes single attempts. One transport serves all sessions of a telemetry.

    One with an attribute ``wants_spans`` that is True gets more than the origin's endpoint:
    in each event of a body ``span_id`` and, where it happened inside a block,
    ``parent_span_id``, each 16 hexadecimal digits; ``span_end`` and, of a block,
    ``span_start``, each the digits of nanoseconds since the epoch; in ``session_end`` the
    agent and its model;
    in the body ``app``, the host's name; and a header ``traceparent``, where the session
    stands below something. It is looked up once.

    One that a relay can make again in its own process, and so send in its place, has two
    attributes more: ``blueprint``, a :class:`Blueprint` or None, and ``secret_headers``, the
    headers of its requests that are not to be on any disk. They are looked up once, too.
    """

    async def attempt(self, request: Request) -> Answer:
        """Post *request* once and give the answer, whatever its status.

        It sets no time limit: the caller cancels it after
        ``Settings.request_timeout``. A cancelled attempt leaves the transport
        usable, and leaves open whether the endpoint took the request.

        Raises:
            TransportError: there is no answer.
        """
        ...

    async def aclose(self) -> None:
        """Close what is open. May be cancelled, and closes then without grace."""
        ...


def wants_spans(transport: Transport | None) -> bool:
    """Whether *transport* asks for spans; HTTP to the origin's endpoint does not."""
    try:
        return getattr(transport, "wants_spans", False) is True
    except Exception:  # noqa: BLE001 - it may be the host's own code
        return False


def blueprint_of(transport: Transport | None) -> tuple[Blueprint, Mapping[str, str]] | None:
    """What makes *transport* again elsewhere, and its secret headers; None if nothing does."""
    try:
        blueprint = getattr(transport, "blueprint", None)
        if type(blueprint) is not Blueprint:
            return None
        return blueprint, msgspec.convert(getattr(transport, "secret_headers", {}), dict[str, str])
    except Exception:  # noqa: BLE001 - it may be the host's own code
        return None
