"""From lines to the endpoint: backpressure, patience, and how it is cut short."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from trio.testing import MockClock

import trimaran
from trimaran import Answer, TransportError
from trimaran.cli._progress import Display
from trimaran.cli._replay import Options, Outcome, Patience, replay
from trimaran.cli._signals import Interrupt
from trimaran.testing import Capture

ENVIRON = {"TEST_TELEMETRY_URL": "https://capture.invalid"}
DOWN = TransportError("nobody there")


def write_events(path: Path, count: int) -> None:
    """A recording of *count* events."""
    path.write_text(
        "".join(
            json.dumps({"type": "tool_call", "tool_name": f"t{number}", "session_id": "s"}) + "\n"
            for number in range(count)
        )
    )


async def replayed(
    path: Path,
    capture: Capture,
    *,
    timeout: float = math.inf,
    settings: trimaran.Settings | None = None,
    interrupt: Interrupt | None = None,
) -> tuple[Outcome, str]:
    """What becomes of the file at *path*, and what a person is told."""
    told = io.StringIO()
    outcome = await replay(
        Options(path=str(path), app="test", timeout=timeout),
        Interrupt() if interrupt is None else interrupt,
        Display(Console(file=told, width=200)),
        environ=dict(ENVIRON),
        transport=capture,
        settings=settings or trimaran.Settings(),
    )
    return outcome, told.getvalue()


async def test_nothing_is_dropped_for_want_of_room(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Reading waits for a slow endpoint: memory is bounded, and everything arrives, in order."""
    write_events(tmp_path / "events", 500)
    capture = Capture([Answer(503), 1.0, DOWN, 2.0, Answer(429, "7")])
    settings = trimaran.Settings(mailbox_events=10, backlog_events=10, batch_events=5)

    outcome, told = await replayed(tmp_path / "events", capture, settings=settings)

    assert outcome.is_complete
    assert outcome.books.total.delivered == 502
    assert outcome.books.total.peak_waiting <= 10
    calls = capture.events(trimaran.ToolCall)
    assert [call.tool_name for call in calls] == [f"t{number}" for number in range(500)]
    assert told.endswith("takes none; waiting on\n")


async def test_gives_up_while_it_waits_for_room(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An endpoint that takes nothing does not hold up a file that is not read to its end."""
    write_events(tmp_path / "events", 500)
    capture = Capture(itertools.repeat(DOWN))
    settings = trimaran.Settings(mailbox_events=10, backlog_events=10, batch_events=5)

    outcome, told = await replayed(tmp_path / "events", capture, settings=settings, timeout=20)

    assert (outcome.gave_up, outcome.was_read, outcome.is_complete) == (True, False, False)
    assert outcome.books.total.dropped.keys() == {"drain_timeout"}
    assert outcome.books.total.pending == 0
    first, last = told.splitlines()
    assert first.endswith(
        "events wait, and https://capture.invalid takes none; giving up in 17 s, see --timeout"
    )
    assert last.endswith("takes none for 20 s; giving up")


async def test_is_patient_while_there_is_progress(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """However long all of it takes, if something is taken within each timeout."""
    write_events(tmp_path / "events", 100)
    capture = Capture([step for _ in range(10) for step in (8.0, Answer(200))])
    settings = trimaran.Settings(batch_events=10, mailbox_events=10, backlog_events=10)

    outcome, _ = await replayed(tmp_path / "events", capture, settings=settings, timeout=10)

    assert outcome.is_complete
    assert outcome.books.total.delivered == 102


async def test_does_not_run_out_of_patience_with_a_quiet_input(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What waits for a batch to be due, or for an input to go on, waits for no endpoint."""
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, b'{"type": "command", "command_name": "c"}\n')
    capture = Capture([DOWN])
    interrupt = Interrupt()
    outcomes: list[Outcome] = []

    async def run() -> None:
        outcome, told = await replayed(tmp_path / "pipe", capture, timeout=1, interrupt=interrupt)
        outcomes.append(outcome)
        assert "giving up" not in told

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while len(capture.events()) < 2:  # noqa: ASYNC110 - a capture tells nobody
            await trio.sleep(1)
        await trio.sleep(100)
        interrupt.stop()
    os.close(writer)

    (outcome,) = outcomes
    assert not outcome.gave_up
    assert outcome.books.total.delivered == outcome.books.total.tracked == 3


async def test_a_stop_comes_through_before_there_is_anything_to_read(tmp_path: Path) -> None:
    """Also while a named pipe waits for its other end."""
    os.mkfifo(tmp_path / "pipe")
    interrupt = Interrupt()
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.sleep(0.05)
            interrupt.stop()

        nursery.start_soon(stop)
        outcome, _ = await replayed(tmp_path / "pipe", Capture(), interrupt=interrupt)
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))

    assert outcome == Outcome(
        tally=outcome.tally, books=outcome.books, made=0, gave_up=False, was_read=False
    )
    assert outcome.books.total.tracked == 0
    assert not outcome.is_complete


async def test_a_stop_before_the_beginning_is_not_forgotten(tmp_path: Path) -> None:
    """Nothing is read then."""
    write_events(tmp_path / "events", 5)
    interrupt = Interrupt()
    interrupt.stop()

    outcome, _ = await replayed(tmp_path / "events", Capture(), interrupt=interrupt)

    assert outcome.tally.lines == 0
    assert interrupt.exit_status == 0


def test_patience_begins_anew_with_every_progress() -> None:
    """A person is told once in each stall, and it is given up after the timeout."""
    patience = Patience(10)

    def look(now: float, progress: int, *, is_waiting: bool = True) -> float | None:
        return patience.look(now, progress=progress, is_waiting=is_waiting)

    assert look(0, 1) is None
    assert look(2, 1) is None
    assert look(4, 1) == 6
    assert look(5, 1) is None  # told already
    assert look(6, 2) is None
    assert look(9, 2) == 7
    assert look(12, 2, is_waiting=False) is None
    assert look(14, 2) is None
    assert look(22, 2) == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.booleans())))
def test_patience_lasts_as_long_as_it_says(looks: list[tuple[float, bool, bool]]) -> None:
    """It never ends sooner than a timeout after the last progress, nor later than a look after it."""
    timeout = 7.0
    patience = Patience(timeout)
    now = since = 0.0
    progress = 0
    patience.look(now, progress=progress, is_waiting=True)
    for step, moves, waits in looks:
        now += step
        progress += moves
        left = patience.look(now, progress=progress, is_waiting=waits)
        if moves or not waits:
            since = now
        gives_up = left is not None and left <= 0
        assert gives_up == (now - since >= timeout)


@pytest.mark.parametrize("timeout", [math.inf])
def test_patience_may_have_no_end(timeout: float) -> None:
    """It is still told that it waits."""
    patience = Patience(timeout)
    patience.look(0, progress=1, is_waiting=True)

    assert patience.look(1e9, progress=1, is_waiting=True) == math.inf
