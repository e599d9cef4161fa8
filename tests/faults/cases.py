"""The fault matrix: at what an agent is let loose, and what has to become of its events.

In: nothing. Out: the table of cases.
Does not know: how a case is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from patience import PATIENCE

from .agent import EVENTS, Wire

__all__ = ["CASES", "DRAIN_TIMEOUT", "SETTINGS", "Case", "patient"]

DRAIN_TIMEOUT = 0.5
SETTINGS: Mapping[str, Any] = {
    "drain_timeout": DRAIN_TIMEOUT,
    "request_timeout": 2.0,
    "retry_initial": 0.05,
    "retry_max": 0.2,
    "retry_after_max": 2.0,
}
"""Short, so that all is over soon; the defaults are ten to thirty times as long."""

IMPATIENT: Mapping[str, Any] = {"settings": {"request_timeout": 0.3}}
"""For what hangs."""
NOT_IN_TIME = {"drain_timeout": EVENTS}
REJECTED = {"rejected": EVENTS}
SOME = (2, 30)
"""Requests that go on until time runs out: some, and no hot loop."""
OFTEN: Mapping[str, Any] = {"requests": SOME, "tries": SOME[0] + 1}
NEVER: Mapping[str, Any] = {"requests": (0, 0), "tries": 1}
"""For what no request comes through to as a whole."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the matrix."""

    name: str
    fault: str
    """What the server does, by the name that it has there."""
    scheme: str = "http"
    host: str = "127.0.0.1"
    delivered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    requests: tuple[int, int] = (2, 2)
    """Whole requests that the server sees, at least and at most."""
    pause: float = 0.0
    """Seconds between the first two of them at least."""
    tokens: tuple[str, ...] | None = None
    large: int = 0
    tries: int = 0
    """Attempts at the first batch that the agent waits for."""
    patience: float = 0.7
    """Seconds for which it then waits until that batch is settled."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    proxy: str | None = None
    """The fault that stands between."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the agent's environment."""
    wire: Wire = "origin"
    says: str = ""
    """What the agent's log has of it."""
    is_trusting: bool = True
    """Whether the agent is told of the authority that the server's certificate is from."""

    @property
    def drain_timeout(self) -> float:
        """Seconds."""
        return float(self.settings.get("drain_timeout", DRAIN_TIMEOUT))


def patient(case: Case) -> Case:
    """*case* on a machine that may be slow.

    What comes to an end by itself has the time for it. What hangs does so for longer than
    anybody may take to leave, unless it is to be seen more than once.
    """
    settings = dict(case.settings)
    if case.requests != SOME:
        settings["request_timeout"] = PATIENCE
    if not case.dropped.keys() & {"drain_timeout", "unauthorized"}:
        settings["drain_timeout"] = PATIENCE / 2
        return replace(case, settings=settings, patience=PATIENCE)
    return replace(case, settings=settings)


def arrives(name: str, fault: str, **more: Any) -> Case:
    """All of it is delivered."""
    return Case(name=name, fault=fault, **{"delivered": EVENTS, **more})


def fails(name: str, fault: str, **more: Any) -> Case:
    """Nothing is, and it is tried for as long as there is time."""
    return Case(name=name, fault=fault, **{"dropped": NOT_IN_TIME, **OFTEN, **more})


def is_refused(name: str, fault: str, **more: Any) -> Case:
    """The endpoint says that it will never take it."""
    return Case(name=name, fault=fault, dropped=REJECTED, **more)


def _connecting() -> Iterator[Case]:
    yield arrives("none: it is well", "well")
    yield fails("connection refused", "refused", **NEVER)
    yield fails(
        "no answer to the connection (a firewall drops it)", "black hole", **NEVER, **IMPATIENT
    )
    yield fails("the host's name is unknown", "well", host="nothing.invalid", **NEVER)
    yield fails("accepts, reads, never answers", "never answers", **IMPATIENT)
    yield fails("answers a byte a second", "drips", **IMPATIENT)
    yield fails("answers headers without end", "endless head")
    yield fails("answers in another protocol", "another protocol")
    yield fails("closes in the middle of the request", "closes in the request", **NEVER)
    yield fails("closes in the middle of the answer's head", "closes in the head")
    yield arrives("200, closes in the middle of the body", "closes in the body")
    yield arrives(
        "207, closes in the middle of the first body", "breaks off a 207 once", requests=(3, 3)
    )
    yield arrives(
        "200, then a byte of the body a second", "drips the body", settings={"drain_timeout": 1.5}
    )
    yield arrives("200 with an endless body", "endless body")
    yield arrives(
        "takes the first batch, closes without an answer",
        "takes the first silently",
        requests=(3, 3),
    )
    yield arrives("closes kept connections between two batches", "hangs up after an answer")
    yield arrives(
        "closes kept connections when they are used", "hangs up on the second", requests=(3, 3)
    )


def _answering() -> Iterator[Case]:
    yield is_refused("301", "301")
    for status in (400, 403, 404, 422):
        yield is_refused(str(status), str(status))
    yield is_refused("401, no account", "401")
    yield arrives("401 once", "wants a fresh token", tokens=("stale", "fresh"), requests=(3, 3))
    yield Case(
        name="401 always",
        fault="401",
        tokens=("stale", "other"),
        dropped={"unauthorized": EVENTS},
        requests=(2, 2),
        tries=2,
    )
    yield Case(
        name="401, and no other token to be had",
        fault="401",
        tokens=("stale",),
        dropped={"unauthorized": EVENTS},
        requests=(1, 1),
        tries=1,
    )
    for status in (408, 429, 500, 502, 503, 504):
        yield arrives(f"{status} twice", f"{status} twice", requests=(4, 4))
        yield fails(f"{status} always", str(status))
    yield Case(name="413 always", fault="413", dropped={"too_large": EVENTS}, requests=(24, 24))
    yield arrives("413 above a size", "has a limit", requests=(4, 12))
    yield arrives(
        "413 above a size, one event larger than that",
        "has a limit",
        large=2000,
        dropped={"too_large": 1},
        requests=(4, 14),
    )


def _asking_for_a_pause() -> Iterator[Case]:
    once = {"requests": (3, 3), "patience": 4.0}
    clamped = {"settings": {"retry_after_max": 0.4}, "pause": 0.4}
    yield arrives("429, Retry-After: 1", "after 1", pause=1.0, **once)
    yield arrives("429, Retry-After: a date in 2 s", "after a date", pause=0.9, **once)
    yield arrives("429, Retry-After: 99999999999999999999", "after for ever", **once, **clamped)
    yield arrives("429, Retry-After: a date in 9999", "after year 9999", **once, **clamped)
    yield arrives("429, Retry-After: a date in 1970", "after 1970", **once)
    yield arrives("429, Retry-After: -5", "after -5", **once)
    yield arrives("429, Retry-After: soon", "after soon", **once)
    yield fails(
        "503, Retry-After: 3600",
        "503 for an hour",
        requests=(1, 1),
        tries=1,
        settings={"retry_after_max": 120.0},
    )


def _over_tls() -> Iterator[Case]:
    tls: dict[str, Any] = {"scheme": "https"}
    untrusted: dict[str, Any] = {**tls, **NEVER}
    yield arrives("none, over TLS", "tls", host="localhost", **tls)
    yield fails("TLS: an unknown authority", "tls", is_trusting=False, **untrusted)
    yield fails("TLS: self-signed", "tls self-signed", **untrusted)
    yield fails("TLS: expired", "tls expired", **untrusted)
    yield fails("TLS: the name of another host", "tls of another host", **untrusted)
    yield fails("TLS: never shakes hands", "never answers", **untrusted, **IMPATIENT)
    yield fails("TLS: the server speaks plain HTTP", "answers anything", **untrusted)
    yield Case(
        name="TLS: never reads a batch of 400 kB",
        fault="tls never reads",
        dropped={"drain_timeout": EVENTS + 1},
        large=400_000,
        settings={"event_bytes": 450_000, "request_timeout": 0.3},
        requests=(0, 0),
        tries=1,
        **tls,
    )
    yield arrives("offers HTTP/2 and HTTP/1.1", "http/2 and 1.1", **tls)
    yield fails("speaks HTTP/2 alone", "http/2 alone", **untrusted)


def _behind_a_proxy() -> Iterator[Case]:
    away: dict[str, Any] = {"host": "endpoint.test"}  # this machine is reached without a proxy
    plain: dict[str, Any] = {**away, **NEVER}
    tls: dict[str, Any] = {**plain, "scheme": "https"}
    yield arrives("a proxy that works", "tls", proxy="proxy", scheme="https", **away)
    yield fails("a proxy that refuses connections", "well", proxy="refused", **plain)
    yield fails("a proxy that never answers", "well", proxy="never answers", **plain, **IMPATIENT)
    yield fails("a proxy that answers 502", "well", proxy="502", **plain)
    yield is_refused("a proxy that answers 407", "well", proxy="407", **plain)
    yield fails(
        "a proxy that never answers CONNECT", "tls", proxy="never answers", **tls, **IMPATIENT
    )
    yield fails("a proxy that answers CONNECT with 502", "tls", proxy="proxy 502", **tls)
    yield fails("a proxy that answers CONNECT with 407", "tls", proxy="proxy 407", **tls)
    yield fails(
        "TLS through a proxy: never shakes hands",
        "never answers",
        proxy="proxy",
        **tls,
        **IMPATIENT,
    )
    yield arrives("a proxy that fails, the endpoint on this machine", "well", proxy="refused")
    unusable = {"environ": {"NO_PROXY": "localhost,::1/128"}}
    hopeless = {**plain, **unusable, "tries": 0}
    yield fails("a proxy variable that cannot be used", "well", **hopeless)
    yield arrives(
        "a proxy variable that cannot be used, the endpoint on this machine", "well", **unusable
    )


CASES = (
    *_connecting(),
    *_answering(),
    *_asking_for_a_pause(),
    *_over_tls(),
    *_behind_a_proxy(),
)
