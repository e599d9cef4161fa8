"""Numbers and times read as a person would say them."""

import pytest

from trimaran.receiver import words

DAY = 86_400_000
NOW = 1_795_364_664_000  # 2026-11-22 16:24:24 UTC


def test_counts_have_their_thousands_apart() -> None:
    """As in English."""
    assert words.count(0) == "0"
    assert words.count(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (0.0, "$0"),
        (0.00001, "<$0.0001"),
        (0.0123, "$0.0123"),
        (0.5, "$0.5000"),
        (1.0, "$1.00"),
        (1234.567, "$1,234.57"),
        (-0.25, "-$0.2500"),
    ],
)
def test_costs_are_as_exact_as_their_size_asks(dollars: float, text: str) -> None:
    """Cents where there are dollars, and more where there are none."""
    assert words.cost(dollars) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 ms"),
        (0.44, "0.4 ms"),
        (9.9, "9.9 ms"),
        (9.96, "10 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (1244, "1.24 s"),
        (9996, "10.0 s"),
        (59_949, "59.9 s"),
        (59_950, "1 min 0 s"),
        (125_000, "2 min 5 s"),
        (11_040_000, "3 h 4 min"),
        (DAY * 2 + 3_600_000, "2 d 1 h"),
        (DAY * 5000, "5,000 d 0 h"),
        (-350, "-350 ms"),
    ],
)
def test_durations_have_about_three_digits(milliseconds: float, text: str) -> None:
    """And the unit that fits."""
    assert words.duration(milliseconds) == text


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (0, "just now"),
        (-59_000, "just now"),
        (2_000, "2 s ago"),
        (59_999, "59 s ago"),
        (60_000, "1 min ago"),
        (3_600_000, "1 h ago"),
        (DAY, "1 d ago"),
        (30 * DAY, "2026-10-23 16:24:24 UTC"),
        (-60_001, "2026-11-22 16:25:24 UTC"),
    ],
)
def test_the_past_is_told_by_its_distance(passed: int, text: str) -> None:
    """What is far off or still to come, by its date; clocks differ by some seconds."""
    assert words.ago(NOW - passed, NOW) == text


def test_moments_reach_to_the_end_of_the_calendar() -> None:
    """The first and the last that a batch may carry."""
    assert words.moment(0) == "1970-01-01 00:00:00 UTC"
    assert words.moment(253_402_300_799_999) == "9999-12-31 23:59:59 UTC"


def test_a_stopwatch_shows_hours_when_there_are_some() -> None:
    """And milliseconds always."""
    assert words.clock(1_234) == "0:01.234"
    assert words.clock(3_723_004) == "1:02:03.004"
    assert words.clock(-1_500) == "-0:01.500"


def test_long_texts_are_cut() -> None:
    """The result is as long as asked for, and shows that there was more."""
    assert words.cut("abcd", 4) == "abcd"
    assert words.cut("abcde", 4) == "abc…"
