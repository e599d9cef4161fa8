"""What an answer means for a batch, and how long to wait before the next attempt.

In: a status, headers' values, a number drawn by the caller, the wall clock's reading.
Out: a verdict, seconds.
Does not know: requests, batches, a clock or a random source of its own.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto

__all__ = ["Verdict", "backoff", "is_failing", "judge", "retry_after_seconds"]


class Verdict(Enum):
    """What becomes of a batch after an attempt."""

    DELIVERED = auto()
    REJECTED = auto()
    """It will never be taken."""
    RETRY = auto()
    HALVE = auto()
    """It is too large as it is."""
    UNAUTHORIZED = auto()
    """The token is not taken, and neither was a fresh one."""


_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""OTLP/HTTP retries 429, 502, 503 and 504. 408 and 500 are added as most clients of
this kind do: a repeated batch carries the same key, so repeating costs no duplicate."""


def judge(status: int, *, with_token: bool) -> Verdict:
    """What the status of an answer means. A redirect is not followed: it is rejected."""
    if 200 <= status < 300:
        return Verdict.DELIVERED
    if status in _RETRIED:
        return Verdict.RETRY
    if status == 413:
        return Verdict.HALVE
    if status == 401 and with_token:
        return Verdict.UNAUTHORIZED
    return Verdict.REJECTED


def is_failing(status: int) -> bool:
    """Whether an answer speaks of the endpoint's health rather than of the batch."""
    return status in _RETRIED


def backoff(failures: int, *, initial: float, maximum: float, chance: float) -> float:
    """Seconds to wait after the *failures*-th failed attempt in a row (from 1).

    ``min(maximum, initial * 2 ** (failures - 1)) * (0.75 + 0.5 * chance)``: the jitter
    is in proportion, so that it is still there when the wait sits at its maximum.

    Args:
        failures: failed attempts so far, at least 1.
        initial: seconds after the first failure.
        maximum: seconds at most, before the jitter.
        chance: a number drawn from [0, 1).
    """
    doublings = min(failures - 1, 64)  # 2 ** 64 is past any maximum, and far from overflow
    return min(maximum, initial * 2.0**doublings) * (0.75 + 0.5 * chance)


def retry_after_seconds(value: str | None, *, now: float, maximum: float) -> float | None:
    """Seconds that a ``Retry-After`` asks for, clamped to [0, *maximum*].

    None where there is none, or nothing that can be read: both forms of RFC 9110,
    section 10.2.3, are taken, seconds and an HTTP date.

    Args:
        value: the header's value.
        now: seconds since the epoch, for the date form.
        maximum: seconds at most.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Twelve digits are 30,000 years: whatever is longer is clamped all the same.
        return min(maximum, float(text[:12]))
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(maximum, max(0.0, moment.timestamp() - now))
