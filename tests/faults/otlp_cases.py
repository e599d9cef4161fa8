"""The fault matrix over OTLP: what is not as it is over the wire of the origin, and enough of
the rest to see that it is.

In: nothing. Out: the table of cases.
Does not know: how a case is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import cases
from .agent import EVENTS
from .cases import IMPATIENT, NEVER, Case
from .otlp import MESSAGE

__all__ = ["OTLP_CASES"]

CERTIFICATE = "OTEL_EXPORTER_OTLP_CERTIFICATE"
REJECTED = {"rejected": EVENTS}
IN_BATCHES = 2
"""Batches of a session in all of this."""


def arrives(name: str, fault: str, **more: Any) -> Case:
    """All of it is delivered."""
    return cases.arrives(name, fault, **{"wire": "otlp", **more})


def fails(name: str, fault: str, **more: Any) -> Case:
    """Nothing is, and it is tried for as long as there is time."""
    return cases.fails(name, fault, **{"wire": "otlp", **more})


def is_refused(name: str, fault: str, **more: Any) -> Case:
    """The endpoint says that it will never take it."""
    return cases.is_refused(name, fault, **{"wire": "otlp", **more})


def _connecting() -> Iterator[Case]:
    yield arrives("none: it is well", "well")
    yield fails("connection refused", "refused", **NEVER)
    yield fails("accepts, reads, never answers", "never answers", **IMPATIENT)
    yield fails(
        "never answers, and `OTEL_EXPORTER_OTLP_TIMEOUT` says 300 ms",
        "never answers",
        environ={"OTEL_EXPORTER_OTLP_TIMEOUT": "300"},
        says="no answer within 0.3 s",
    )
    yield fails("answers a byte a second", "drips", **IMPATIENT)
    yield fails("closes in the middle of the answer's head", "closes in the head")
    yield arrives(
        "takes the first batch, closes without an answer",
        "takes the first silently",
        requests=(3, 3),
    )
    yield arrives(
        "closes kept connections when they are used", "hangs up on the second", requests=(3, 3)
    )


def _taking_it() -> Iterator[Case]:
    yield arrives("200, closes in the middle of the body", "closes in the body")
    yield arrives(
        "200, then a byte of the body a second", "drips the body", settings={"drain_timeout": 1.5}
    )
    yield arrives("200 with an endless body", "endless body")
    yield arrives("200 with a body that is no protobuf", "answers with a page")
    yield arrives("200, partial success: none refused, a warning", "warns", says=MESSAGE)
    two_of_each = {"rejected": 2 * IN_BATCHES}
    yield arrives(
        "200, partial success: two of each batch refused",
        "refuses two",
        delivered=EVENTS - 2 * IN_BATCHES,
        dropped=two_of_each,
        says=MESSAGE,
    )
    yield is_refused("200, partial success: more refused than there were", "refuses too many")


def _refusing() -> Iterator[Case]:
    yield is_refused("301", "301")
    yield is_refused("400, with a message", "400 and why", says=MESSAGE)
    for status in (401, 404):
        yield is_refused(str(status), str(status))
    for status in (408, 500):
        yield is_refused(f"{status}, which OTLP does not retry", str(status))
    for status in (429, 502, 503, 504):
        yield arrives(f"{status} twice", f"{status} twice", requests=(4, 4))
    yield fails("503 always", "503")
    yield Case(
        name="413 always",
        fault="413",
        wire="otlp",
        dropped={"too_large": EVENTS},
        requests=(24, 24),
    )
    yield arrives(
        "413 above a size",
        "has a limit",
        requests=(4, 24),
        environ={"OTEL_EXPORTER_OTLP_COMPRESSION": "none"},
    )
    once = {"requests": (3, 3), "patience": 4.0}
    yield arrives("429, Retry-After: 1", "after 1", pause=1.0, **once)
    yield arrives("429, Retry-After: a date in 2 s", "after a date", pause=0.9, **once)
    yield fails(
        "503, Retry-After: 3600",
        "503 for an hour",
        requests=(1, 1),
        tries=1,
        settings={"retry_after_max": 120.0},
    )


def _over_tls() -> Iterator[Case]:
    tls: dict[str, Any] = {"scheme": "https"}
    untrusted: dict[str, Any] = {**tls, **NEVER, "tries": 2}  # the first of them is over then
    yield arrives("none, over TLS", "tls", host="localhost", **tls)
    yield fails(
        "TLS: an unknown authority", "tls", is_trusting=False, **untrusted, says=CERTIFICATE
    )
    yield fails("TLS: self-signed", "tls self-signed", **untrusted, says=CERTIFICATE)
    yield fails("TLS: the name of another host", "tls of another host", **untrusted)
    missing = "/nowhere/authority.pem"
    yield fails(
        "a file of certificates that is not there",
        "tls",
        environ={CERTIFICATE: missing},
        **untrusted,
        says=missing,
    )
    yield arrives("a proxy that works", "tls", proxy="proxy", host="endpoint.test", **tls)
    yield fails(
        "a proxy that refuses connections", "well", proxy="refused", host="endpoint.test", **NEVER
    )


def _at_langfuse() -> Iterator[Case]:
    langfuse: dict[str, Any] = {"wire": "langfuse"}
    yield arrives("Langfuse: none, it is well", "takes keys of Langfuse", **langfuse)
    yield is_refused("Langfuse: 401", "401", **langfuse)
    yield arrives("Langfuse: 429 twice", "429 twice", requests=(4, 4), **langfuse)
    yield arrives(
        "Langfuse: takes the first batch, closes without an answer",
        "takes the first silently",
        requests=(3, 3),
        **langfuse,
    )


OTLP_CASES = (
    *_connecting(),
    *_taking_it(),
    *_refusing(),
    *_over_tls(),
    *_at_langfuse(),
)
