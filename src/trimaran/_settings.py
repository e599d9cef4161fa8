"""Every limit of a telemetry, in one frozen object that is passed in.

In: keyword arguments. Out: checked, immutable values.
Does not know: the environment, the tier, any stage.

All times are float seconds, all sizes bytes.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import msgspec

__all__ = ["MailboxPolicy", "Relay", "Settings", "Spool", "Survives"]

MailboxPolicy: TypeAlias = Literal["drop_oldest", "drop_newest"]
Survives: TypeAlias = Literal["kill", "power_loss"]

KIB = 1024
MIB = 1024 * KIB

_FLAGS = ("enabled", "strict")
_POLICIES: tuple[str, ...] = get_args(MailboxPolicy)
_POSITIVE_NUMBERS = (
    "flush_interval",
    "memory_bytes",
    "event_bytes",
    "batch_bytes",
    "request_timeout",
    "account_timeout",
    "retry_initial",
    "retry_max",
    "retry_after_max",
    "retry_timeout",
    "retry_budget",
    "unauthorized_interval",
)
_POSITIVE_COUNTS = ("batch_events", "mailbox_events", "backlog_events", "max_requests")


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    """A queue on disk: batches wait there until their fate is known.

    Raises:
        ValueError: a value is not of its kind or not in its range.
    """

    directory: str | None = None
    """Where it lies; None is the user's state directory for the app. It is made for the
    user alone. Processes of one app share it."""

    most_bytes: int = 64 * MIB
    """Bytes of all batches on disk at most; the oldest of the process that needs room go."""

    most_seconds: float = 7 * 86_400.0
    """Seconds that a batch is kept at most."""

    survives: Survives = "kill"
    """What a batch on disk survives; ``"power_loss"`` waits for the disk with each one."""

    def __post_init__(self) -> None:
        _require_queue(self, "most_bytes", "most_seconds")


class Relay(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the user's that takes batches, keeps them on disk and sends them.

    It is started when it is needed, shared by the processes of one app, and ends by itself.
    The first process that needs it decides these values for all.

    Raises:
        ValueError: a value is not of its kind or not in its range.
    """

    directory: str | None = None
    """Where it keeps batches; None is the user's state directory for the app. It is made for
    the user alone. Processes that name the same one share a relay."""

    idle_timeout: float = 30.0
    """Seconds that it stays with nothing to deliver and nobody connected."""

    most_bytes: int = 64 * MIB
    """Bytes of all batches that it keeps at most; there is no room for more then, and who has
    more sends for itself."""

    most_seconds: float = 7 * 86_400.0
    """Seconds that it keeps and tries a batch at most."""

    survives: Survives = "kill"
    """What a batch that it took survives; ``"power_loss"`` waits for the disk with each one."""

    def __post_init__(self) -> None:
        _require_queue(self, "most_bytes", "most_seconds", "idle_timeout")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one telemetry; every default holds for an ordinary agent.

    Raises:
        ValueError: a value is not of its kind or not in its range; the message
            names the setting, the value and what it may be.
    """

    enabled: bool = True
    """False switches telemetry off in code, before anything else is looked at."""

    flush_interval: float = 5.0
    """Seconds that a routine event waits at most for others to share its batch.
    The origin, PostHog and OpenTelemetry chose the same."""

    batch_events: int = 200
    """Events in a batch at most; the origin's number."""

    batch_bytes: int = 512 * KIB
    """Bytes of a batch's body at most, uncompressed: half of the 1 MiB that a
    receiver takes by default."""

    event_bytes: int = 64 * KIB
    """Bytes of one encoded event at most; a larger one is dropped as ``too_large``.
    An event of ten fields takes about 250."""

    mailbox_events: int = 20_000
    """Events that wait in a session's mailbox at most: ten seconds of 2,000 events/s."""

    mailbox_policy: MailboxPolicy = "drop_oldest"
    """Which routine event goes when the mailbox is full. Urgent ones go last."""

    backlog_events: int = 20_000
    """Encoded events of a session that wait for its sender at most, behind the mailbox.
    With it an outage of ten seconds at 2,000 events/s loses nothing, although
    the sender is in the pause before its next attempt when the outage ends."""

    memory_bytes: int = 64 * MIB
    """Bytes that all sessions of a telemetry hold together at most."""

    max_requests: int = 16
    """Requests under way at once, over all sessions of a telemetry."""

    request_timeout: float = 10.0
    """Seconds that one attempt may take, from connecting to the end of the answer;
    the origin's number. A provider's token call is bounded by it too."""

    account_timeout: float = 2.0
    """Seconds that the account and its token may take when telemetry opens."""

    drain_timeout: float = 2.0
    """Seconds that leaving ``open_telemetry()`` may take to deliver what is pending.
    The origin's later budget, and Sentry's."""

    retry_initial: float = 0.5
    """Seconds before the second attempt; doubled for each further one."""

    retry_max: float = 5.0
    """Seconds between two attempts at most, unless the endpoint asks for more."""

    retry_after_max: float = 120.0
    """Seconds that a ``Retry-After`` is honoured for at most."""

    retry_timeout: float = 3600.0
    """Seconds that one batch is tried for at most, before ``retries_exhausted``: an hour of
    outage is sat out, a batch that an endpoint will never take does not stay for ever."""

    retry_budget: float = 10.0
    """Repeated requests a second, over all sessions, in the long run; ten seconds' worth
    may be made at once."""

    unauthorized_interval: float = 60.0
    """Seconds between two refreshes of a token that the endpoint refuses."""

    spool: bool | Spool = False
    """A queue on disk, for events that must survive the process; True is one with its
    defaults. Off, nothing is written to disk."""

    relay: bool | str | Relay = False
    """A process that sends in place of this one, so that leaving waits for no network; True
    is one with its defaults, a path names its directory. Off, no process is started."""

    strict: bool = False
    """True lets a bug in a stage come out of ``open_telemetry()``; for tests."""

    def __post_init__(self) -> None:
        for name in _FLAGS:
            _require(self, name, "True or False", holds=type(getattr(self, name)) is bool)
        for name in _POSITIVE_NUMBERS:
            value = getattr(self, name)
            _require(self, name, "a number above 0", holds=_is_number(value) and value > 0)
        for name in _POSITIVE_COUNTS:
            value = getattr(self, name)
            _require(self, name, "a whole number above 0", holds=type(value) is int and value > 0)
        drain = self.drain_timeout
        _require(
            self, "drain_timeout", "0 or a number above it", holds=_is_number(drain) and drain >= 0
        )
        _require(
            self,
            "mailbox_policy",
            " or ".join(map(repr, _POLICIES)),
            holds=self.mailbox_policy in _POLICIES,
        )
        _require(
            self, "event_bytes", "less than batch_bytes", holds=self.event_bytes < self.batch_bytes
        )
        _require(
            self,
            "spool",
            "True, False or a Spool",
            holds=isinstance(self.spool, (bool, Spool)),  # pyright: ignore[reportUnnecessaryIsInstance]
        )
        relay = self.relay
        _require(
            self,
            "relay",
            "True, False, a path or a Relay",
            holds=isinstance(relay, (bool, Relay)) or _is_text(relay),
        )
        _require(
            self,
            "memory_bytes",
            "at least batch_bytes",
            holds=self.memory_bytes >= self.batch_bytes,
        )


def _is_number(value: object) -> bool:
    """An int or a float that is a number (NaN is not), and not a bool."""
    return type(value) is int or (type(value) is float and not math.isnan(value))


def _is_text(value: object) -> bool:
    """A text that says something."""
    return isinstance(value, str) and value != ""


def _require_queue(queue: Spool | Relay, *positive: str) -> None:
    """What holds for every queue on disk; *positive* names the numbers in it."""
    for name in positive:
        value = getattr(queue, name)
        _require(queue, name, "a number above 0", holds=_is_number(value) and value > 0)
    survivals = get_args(Survives)
    _require(
        queue, "survives", " or ".join(map(repr, survivals)), holds=queue.survives in survivals
    )
    is_path = queue.directory is None or _is_text(queue.directory)
    _require(queue, "directory", "a path as text, or None", holds=is_path)


def _require(settings: Settings | Spool | Relay, name: str, expected: str, *, holds: bool) -> None:
    if not holds:
        kind = type(settings).__name__
        message = f"{kind}({name}={getattr(settings, name)!r}): {name} must be {expected}"
        raise ValueError(message)
