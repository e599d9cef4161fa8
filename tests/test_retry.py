import math
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran._pipeline.retry import Verdict, backoff, is_failing, judge, retry_after_seconds

NOW = 1_800_000_000.0
POSITIVE = st.floats(min_value=0.001, max_value=1e6)
CHANCES = st.floats(min_value=0, max_value=1, exclude_max=True)
RETRIED = {408, 429, 500, 502, 503, 504}


@given(status=st.integers(200, 299), with_token=st.booleans())
def test_any_success_delivers(status: int, with_token: bool) -> None:
    """An endpoint may say 202 or 207 as well."""
    assert judge(status, with_token=with_token) is Verdict.DELIVERED


@pytest.mark.parametrize("status", sorted(RETRIED))
@pytest.mark.parametrize("with_token", [True, False])
def test_a_passing_failure_is_tried_again(status: int, with_token: bool) -> None:
    """The endpoint is overloaded or down, which says nothing about the batch."""
    assert judge(status, with_token=with_token) is Verdict.RETRY
    assert is_failing(status)


def test_too_large_is_halved() -> None:
    """The same events in smaller batches may be taken."""
    assert judge(413, with_token=False) is Verdict.HALVE


def test_a_401_is_about_the_token_if_there_is_one() -> None:
    """An anonymous batch that is refused has nothing to refresh."""
    assert judge(401, with_token=True) is Verdict.UNAUTHORIZED
    assert judge(401, with_token=False) is Verdict.REJECTED


@given(status=st.integers(0, 999), with_token=st.booleans())
def test_all_else_is_rejected(status: int, with_token: bool) -> None:
    """Redirects too, which are not followed; and only a health problem is one."""
    is_known = 200 <= status < 300 or status in {*RETRIED, 401, 413}

    if not is_known:
        assert judge(status, with_token=with_token) is Verdict.REJECTED
    assert is_failing(status) == (status in RETRIED)


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 5.0), (6, 5.0), (10_000, 5.0)],
)
def test_the_wait_doubles_up_to_its_maximum(failures: int, seconds: float) -> None:
    """In the middle of the jitter, the waits are the plain ones of the settings."""
    assert backoff(failures, initial=0.5, maximum=5.0, chance=0.5) == seconds


def test_the_jitter_is_a_quarter_up_and_down() -> None:
    """It is in proportion, and still there when the wait sits at its maximum."""
    assert backoff(9, initial=0.5, maximum=4.0, chance=0.0) == 3.0
    assert backoff(9, initial=0.5, maximum=4.0, chance=0.999999) == pytest.approx(5.0, abs=1e-5)


@given(
    failures=st.integers(1, 1 << 40),
    initial=POSITIVE,
    maximum=POSITIVE | st.just(math.inf),
    chance=CHANCES,
)
def test_a_wait_is_bounded(failures: int, initial: float, maximum: float, chance: float) -> None:
    """For any number of failures it is above zero, at most the maximum and its jitter."""
    wait = backoff(failures, initial=initial, maximum=maximum, chance=chance)

    assert 0 < wait <= maximum * 1.25
    assert wait >= 0.75 * min(initial, maximum)


@given(failures=st.integers(1, 100), initial=POSITIVE, maximum=POSITIVE, chance=CHANCES)
def test_a_later_wait_is_no_shorter(
    failures: int, initial: float, maximum: float, chance: float
) -> None:
    """With the same luck."""
    earlier = backoff(failures, initial=initial, maximum=maximum, chance=chance)
    later = backoff(failures + 1, initial=initial, maximum=maximum, chance=chance)

    assert earlier <= later


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("\u0665", None),  # a digit, but not one of HTTP's
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +9999", None),
        ("0", 0.0),
        ("30", 30.0),
        (" 30 ", 30.0),
        ("121", 120.0),
        ("9" * 5000, 120.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 09:00:30 +0100", 30.0),
        ("Fri, 15 Jan 2027 08:00:30 -0000", 30.0),
        ("Friday, 15-Jan-27 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 08:30:00 GMT", 120.0),
        ("Fri, 15 Jan 2027 07:59:59 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Seconds or a date, clamped; what cannot be read is as if it were not there."""
    assert retry_after_seconds(value, now=NOW, maximum=120.0) == seconds


@given(seconds=st.integers(0, 1 << 40), maximum=POSITIVE)
def test_any_number_of_seconds_is_clamped(seconds: int, maximum: float) -> None:
    """As it is, up to the maximum."""
    expected = min(float(seconds), maximum)

    assert retry_after_seconds(f"{seconds}", now=NOW, maximum=maximum) == expected


# A year below 1000 is taken for one written with two or three digits.
MOMENTS = st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001 - below
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
ZONES = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))


@given(moment=MOMENTS, zone=ZONES, now=st.floats(0, 1e11))
def test_any_date_is_clamped(moment: datetime, zone: timezone, now: float) -> None:
    """The seconds from now until then, in whichever zone it is written."""
    expected = min(max(moment.timestamp() - now, 0.0), 120.0)

    seconds = retry_after_seconds(format_datetime(moment.astimezone(zone)), now=now, maximum=120.0)

    assert seconds == pytest.approx(expected)


@given(value=st.text(), now=st.floats(0, 1e11))
def test_no_value_breaks_it(value: str, now: float) -> None:
    """A header may hold anything."""
    seconds = retry_after_seconds(value, now=now, maximum=120.0)

    assert seconds is None or 0.0 <= seconds <= 120.0


@given(
    value=st.from_regex(
        r"\A[A-Za-z]{0,3},? ?-?\d{0,6}[ -]Jan[ -]-?\d{0,8} [\d:]{0,9} [+-]?\w{0,6}\Z"
    )
)
def test_no_date_breaks_it(value: str) -> None:
    """Nor may what looks like one."""
    seconds = retry_after_seconds(value, now=NOW, maximum=120.0)

    assert seconds is None or 0.0 <= seconds <= 120.0
