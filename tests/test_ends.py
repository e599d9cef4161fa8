"""What each way for a process to end leaves of a session: real processes, real signals."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import trimaran
from faults.ending_agent import PENDING
from faults.ends import ENDS, TRIALS, Books, End, Ended, Trial, patient, run_ends
from patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.timeout(15 * PATIENCE)  # they all run together, in the first test's setup

PAGE = Path(__file__).parent.parent / "docs" / "delivery.md"
START = 1
LATER = 2
"""The start and the end of the session in which the next process takes over."""
EVENTS = START + PENDING + 1
"""A session's start, what is pending when the end comes, and the session's end."""
LATE = PATIENCE / 3
"""Seconds beyond ``drain_timeout`` that leaving may take; with a request it would be a minute."""
TO_END_A_PROCESS = PATIENCE
"""Seconds; it takes 0.1 on a machine at rest, and for ever if something holds it."""


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Mapping[str, Ended]:
    """What came of the trials that are asked for, all run together."""
    asked = " ".join(item.name for item in request.session.items)
    return trio.run(run_ends, [patient(each) for each in TRIALS if f"[{each.name}]" in asked])


def trials(*loses: str, at: str) -> pytest.MarkDecorator:
    """Those whose process loses so much, at one of the endpoints."""
    chosen = [t for t in TRIALS if t.end.loses in loses and t.endpoint == at]
    return pytest.mark.parametrize("trial", chosen, ids=lambda trial: trial.name)


@trials("nothing", at="well")
def test_an_end_that_leaves_the_block_delivers_everything(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """What is pending, and the end of the session, which comes with it."""
    ended = results[trial.name]

    books = books_after_an_exit(ended)
    assert (books.delivered, books.dropped) == (EVENTS, {})
    assert ended.stored == EVENTS


@trials("nothing", at="hung")
def test_an_end_that_leaves_the_block_counts_what_a_hung_endpoint_does_not_take(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """All of it is lost, with its reason, at the deadline."""
    ended = results[trial.name]

    books = books_after_an_exit(ended)
    assert (books.delivered, books.dropped) == (0, {"drain_timeout": EVENTS})
    assert ended.stored == 0


@trials("nothing", at="hung, spool")
def test_an_end_that_leaves_the_block_loses_nothing_with_a_spool(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """The books call it safe, and the next process delivers it, once."""
    ended = results[trial.name]

    books = books_after_an_exit(ended)
    assert (books.delivered, books.spooled, books.dropped) == (0, EVENTS, {})
    assert ended.later == EVENTS
    assert ended.stored == EVENTS + LATER


def books_after_an_exit(ended: Ended) -> Books:
    """The books of who left the block, in time and with the status that belongs to the end."""
    assert ended.status == ended.trial.end.status
    assert ended.left_within is not None
    assert ended.left_within <= ended.trial.drain_timeout + LATE
    assert ended.gone_within <= ended.left_within + TO_END_A_PROCESS
    assert "Exception ignored" not in ended.said
    assert ended.books is not None
    assert ended.books.tracked == EVENTS
    assert ended.books.pending == ended.books.spooled
    return ended.books


@trials("events", at="well")
def test_an_end_without_warning_loses_what_was_pending(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """And only that: what was delivered before is delivered."""
    assert stored_after_a_death(results[trial.name]) == START


@trials("books", at="well")
def test_an_end_within_the_drain_loses_the_books(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """A request was under way: the endpoint may have it, and nobody hears of it."""
    assert stored_after_a_death(results[trial.name]) in {START, EVENTS}


@trials("events", "books", at="hung")
def test_a_process_that_is_gone_leaves_nothing_at_a_hung_endpoint(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """It has no time for anything, whatever the endpoint does."""
    assert stored_after_a_death(results[trial.name]) == 0


@trials("events", at="hung, spool")
def test_an_end_without_warning_loses_what_is_in_no_batch_yet(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """With a spool the batch under way survives the process, and the next one delivers it."""
    ended = results[trial.name]

    assert ended.later == START
    assert stored_after_a_death(ended) == START + LATER


@trials("books", at="hung, spool")
def test_an_end_within_the_drain_loses_nothing_with_a_spool(
    trial: Trial, results: Mapping[str, Ended]
) -> None:
    """The last batch too is on disk as soon as it is one."""
    ended = results[trial.name]

    assert ended.later == EVENTS
    assert stored_after_a_death(ended) == EVENTS + LATER


def stored_after_a_death(ended: Ended) -> int:
    """What the endpoint has of a process that went at once, without a word."""
    assert ended.status == ended.trial.end.status
    assert ended.books is None
    assert ended.gone_within <= ended.trial.between + TO_END_A_PROCESS
    return ended.stored


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.name)
def test_the_documentation_says_so(end: End) -> None:
    """Its table has a row for each end, with its status and what is lost."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines()]

    [row] = [row for row in rows if row[0] == end.name and len(row) == 8]

    lost = {
        "nothing": ["7 of 7", "0 of 7: 7 `drain_timeout`", "7 of 7, later"],
        "books": ["7 of 7", "0 of 7: uncounted", "7 of 7, later"],
        "events": ["1 of 6: uncounted", "0 of 6: uncounted", "1 of 6, later: uncounted"],
    }
    assert [row[1], *row[2::2]] == [str(int(end.status)), *lost[end.loses]]


def test_a_ctrl_c_that_hits_the_http_client_goes_to_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It costs an attempt, not the session: nothing protects the tasks that a client starts."""
    opened: list[trimaran.Session] = []

    async def is_hit() -> None:
        signal.raise_signal(signal.SIGINT)

    async def connect_in_tasks(**_address: object) -> None:
        monkeypatch.undo()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_hit)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as hung:
            environ = {"TEST_TELEMETRY_URL": f"http://127.0.0.1:{hung.getsockname()[1]}"}
            async with (
                trimaran.open_telemetry(
                    "test", environ=environ, settings=trimaran.Settings(drain_timeout=0.1)
                ) as telemetry,
                telemetry.session() as session,
            ):
                opened.append(session)
                await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", connect_in_tasks)
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)

    [session] = opened
    assert session.statistics().dropped == {"drain_timeout": 2}
