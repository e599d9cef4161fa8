from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest
import structlog

from trimaran import current_session
from trimaran._current import entered
from trimaran._diagnostics import Diagnostics
from trimaran._hooks import Hooks, Problem
from trimaran._session import SILENT, SilentSession


class Clock:
    """A monotonic clock that stands until it is moved."""

    time = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.time


@pytest.fixture(autouse=True)
def unconfigured() -> Generator[None]:
    """Structlog as it is in a process that never configured it, before and after."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def lines(unconfigured: None) -> list[dict[str, Any]]:
    """What a host that configured structlog gets to see, level included."""
    seen: list[dict[str, Any]] = []

    def keep(_logger: object, method: str, event_dict: structlog.typing.EventDict) -> str:
        seen.append({**event_dict, "level": method})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    return seen


@pytest.fixture
def clock() -> Clock:
    """A clock to move by hand."""
    return Clock()


def test_a_problem_is_a_warning_with_its_facts(lines: list[dict[str, Any]], clock: Clock) -> None:
    """In the host's own structlog, as the host configured it."""
    Diagnostics(clock).warn("telemetry rejected", status=400)

    assert lines == [{"event": "telemetry rejected", "status": 400, "level": "warning"}]


def test_any_fact_may_be_told(lines: list[dict[str, Any]], clock: Clock) -> None:
    """Also one that is called as the method's own parameter."""
    Diagnostics(clock).warn("telemetry token cannot be had", problem="took too long")

    assert lines[0]["problem"] == "took too long"


def test_news_are_no_warning(lines: list[dict[str, Any]], clock: Clock) -> None:
    """What is better again is told at a lower level, as rarely as what is worse."""
    diagnostics = Diagnostics(clock)

    diagnostics.inform("telemetry delivered again", seconds=9)
    diagnostics.inform("telemetry delivered again", seconds=1)

    assert lines == [{"event": "telemetry delivered again", "seconds": 9, "level": "info"}]


def test_a_problem_is_told_once_a_minute(lines: list[dict[str, Any]], clock: Clock) -> None:
    """What was held back is counted in the next line; each line has its own minute."""
    diagnostics = Diagnostics(clock)

    diagnostics.warn("one", at=1)
    clock.time += 59.9
    diagnostics.warn("one", at=2)
    diagnostics.warn("other", at=3)
    diagnostics.warn("one", at=4)
    clock.time += 0.1
    diagnostics.warn("one", at=5)
    diagnostics.warn("one", at=6)
    clock.time += 60
    diagnostics.warn("one", at=7)
    diagnostics.warn("other", at=8)
    clock.time += 60
    diagnostics.inform("one", at=9)

    told = [(line["event"], line["at"], line.get("repeated")) for line in lines]
    assert told == [
        ("one", 1, None),
        ("other", 3, None),
        ("one", 5, 2),
        ("one", 7, 1),
        ("other", 8, None),
        ("one", 9, None),
    ]


def test_two_telemetries_do_not_hold_each_other_back(
    lines: list[dict[str, Any]], clock: Clock
) -> None:
    """What was told is a matter of each; no state is shared."""
    Diagnostics(clock).warn("one")
    Diagnostics(clock).warn("one")

    assert len(lines) == 2


def test_lines_are_logged_outside_of_any_session(clock: Clock) -> None:
    """So that none of them can become an event; the session is current again afterwards."""
    seen: list[object] = []

    def look(*_arguments: object) -> str:
        seen.append(current_session())
        return "line"

    structlog.configure(processors=[look], logger_factory=structlog.ReturnLoggerFactory())
    session = SilentSession()
    with entered(session):
        Diagnostics(clock).warn("one")
        inside = current_session()

    assert seen == [SILENT]
    assert inside is session


@pytest.mark.parametrize("failing", ["processor", "logger"])
def test_a_host_that_cannot_log_is_not_our_trouble(failing: str, clock: Clock) -> None:
    """Telling of a problem must not become one; the next minute it is tried again."""
    calls: list[str] = []

    def fail(*_arguments: object) -> Any:
        calls.append(failing)
        raise RuntimeError

    if failing == "processor":
        structlog.configure(processors=[fail])
    else:
        structlog.configure(logger_factory=fail)
    diagnostics = Diagnostics(clock)

    diagnostics.warn("one")
    clock.time += 60
    diagnostics.inform("one")

    assert len(calls) == 2


def test_without_structlog_configured_it_goes_to_stderr(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stdout belongs to the host's own output; nothing is configured behind its back."""
    Diagnostics(clock).warn("telemetry rejected", status=400)

    out, err = capsys.readouterr()
    assert out == ""
    assert "telemetry rejected" in err
    assert "status" in err
    assert not structlog.is_configured()


def test_without_any_output_nothing_is_said(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a console has neither stream."""
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)

    Diagnostics(clock).warn("one")

    assert not structlog.is_configured()


def test_the_hosts_hook_is_told_what_is_logged(lines: list[dict[str, Any]], clock: Clock) -> None:
    """Problems alone, as rarely as they are logged, with how often each was met."""
    told: list[Problem] = []
    diagnostics = Diagnostics(clock, Hooks(on_problem=told.append))

    for status in (500, 501, 502):
        diagnostics.warn("failing", status=status)
    diagnostics.inform("better")
    clock.time += 60
    diagnostics.warn("failing", status=503)

    assert told == [
        Problem(name="failing", count=1, facts={"status": 500}),
        Problem(name="failing", count=3, facts={"status": 503}),
    ]
    assert len(lines) == 3


def test_a_hook_that_fails_is_told_of(lines: list[dict[str, Any]], clock: Clock) -> None:
    """By its kind, once a minute, beside what it failed to hear."""

    def fail(_problem: Problem) -> None:
        raise KeyError("secret")

    diagnostics = Diagnostics(clock, Hooks(on_problem=fail))

    diagnostics.warn("one")
    diagnostics.warn("other")

    assert [line["event"] for line in lines] == ["telemetry hook failed", "one", "other"]
    assert lines[0] == {"event": "telemetry hook failed", "error": "KeyError", "level": "warning"}
