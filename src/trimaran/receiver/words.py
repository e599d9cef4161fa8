"""Numbers and times in the form that a person reads.

In: counts, US dollars, milliseconds. Out: short texts, in English.
"""

from datetime import UTC, datetime, timedelta

__all__ = ["ago", "clock", "cost", "count", "cut", "duration", "moment"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SECOND = 1000  # ms
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def count(number: int) -> str:
    """``12345`` is "12,345"."""
    return f"{number:,}"


def cost(dollars: float) -> str:
    """To the cent, and where that says too little to the hundredth of a cent."""
    if dollars == 0:
        return "$0"
    sign = "-" if dollars < 0 else ""
    amount = abs(dollars)
    if amount >= 1:
        return f"{sign}${amount:,.2f}"
    return f"{sign}${amount:.4f}" if amount >= 0.00005 else f"{sign}<$0.0001"


def duration(milliseconds: float) -> str:
    """As exact as one wants to know: "0.4 ms", "35 ms", "1.24 s", "2 min 5 s", "3 h 4 min"."""
    if milliseconds < 0:
        return f"-{duration(-milliseconds)}"
    if milliseconds < 999.5:
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if milliseconds < 59_950:
        seconds = milliseconds / _SECOND
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, left = divmod(round(milliseconds / _SECOND), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def moment(timestamp: int) -> str:
    """A *timestamp* in ms since the epoch as date and time."""
    return f"{_EPOCH + timedelta(milliseconds=timestamp):%Y-%m-%d %H:%M:%S} UTC"


def ago(timestamp: int, now: int) -> str:
    """How long before *now* that was, both in ms since the epoch; far away, the moment."""
    passed = now - timestamp
    if not -_MINUTE <= passed < 30 * _DAY:
        return moment(timestamp)
    if passed < 2 * _SECOND:
        return "just now"
    if passed < _MINUTE:
        return f"{passed // _SECOND} s ago"
    if passed < _HOUR:
        return f"{passed // _MINUTE} min ago"
    return f"{passed // _HOUR} h ago" if passed < _DAY else f"{passed // _DAY} d ago"


def clock(milliseconds: int) -> str:
    """The time on a stopwatch: "0:01.234", "1:02:03.456"."""
    if milliseconds < 0:
        return f"-{clock(-milliseconds)}"
    seconds, ms = divmod(milliseconds, _SECOND)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{start}:{seconds:02}.{ms:03}"


def cut(text: str, length: int) -> str:
    """*text* with at most *length* characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
