"""Processes that are killed: what they promised before holds all the same."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from kill import senders
from kill.senders import Sent, batch_of, kill_receiver, post, started_receiver
from kill.worlds import World, faults_of, run_worlds
from patience import PATIENCE

if TYPE_CHECKING:
    Stored = Mapping[str, Sequence[str]]

pytestmark = pytest.mark.timeout(15 * PATIENCE)  # many processes live and die in one test's setup

SEEDS = range(2000, 2007)
"""Worlds in which more than twenty processes are killed; in some, several share a spool."""
COLLECTED_SEEDS = range(3000, 3003)
"""Fewer of them: what differs over OTLP is below the spool."""


@pytest.fixture(scope="module")
def over() -> tuple[list[World], Stored]:
    """Worlds that are over, and what the receiver has of all their sessions."""
    return trio.run(run_worlds, SEEDS)


@pytest.fixture(scope="module")
def collected() -> tuple[list[World], Stored]:
    """Worlds over OTLP that are over, and the events whose spans a collector has."""
    return trio.run(run_worlds, COLLECTED_SEEDS, "otlp")


def test_what_was_safe_is_delivered_exactly_once(over: tuple[list[World], Stored]) -> None:
    """Killed at any time, in the middle of a send, or of a write, with the receiver well,
    slow, busy, hung or gone; by itself or beside others that share its spool. What arrives
    of a session are its first events, each once, in order, and no less than was safe.
    """
    worlds, stored = over

    assert [fault for world in worlds for fault in faults_of(world, stored)] == []


def test_there_was_something_to_lose(over: tuple[list[World], Stored]) -> None:
    """Twenty kills at least, and events that nobody but the last process delivered."""
    worlds, stored = over

    assert sum(world.kills for world in worlds) >= 20
    claimed = sum(sum(world.claims.values()) for world in worlds)
    assert 1000 < claimed <= sum(map(len, stored.values()))
    assert sum(world.survivor.delivered for world in worlds if world.survivor) > 500
    assert any(len({life.split(".")[1] for life in world.claims}) > 1 for world in worlds)


def test_what_was_safe_is_at_a_collector_too(collected: tuple[list[World], Stored]) -> None:
    """Over OTLP the wire has no key of a batch: what is sent again, by the next process too,
    is the same spans, and whoever keeps each once has a session's first events, in order.
    """
    worlds, stored = collected

    assert [fault for world in worlds for fault in faults_of(world, stored)] == []
    assert sum(world.kills for world in worlds) >= 6
    assert sum(sum(world.claims.values()) for world in worlds) > 50
    assert sum(world.survivor.delivered for world in worlds if world.survivor) > 0


@pytest.mark.parametrize(
    "names",
    [
        ["session_start", "0", "2"],
        ["session_start", "0", "0"],
        ["session_start", "1", "0"],
        ["0", "1"],
        ["session_start"],
    ],
)
def test_a_broken_promise_is_noticed(names: list[str]) -> None:
    """A gap, a repetition, a wrong order, a missing beginning, too few."""
    world = World(7, claims={"7.0.0.0.0": 2})
    assert faults_of(world, {"7.0.0.0.0": ["session_start", "0", "1", "session_end"]}) == []

    assert faults_of(world, {"7.0.0.0.0": names}) != []


def test_what_is_left_on_disk_is_noticed() -> None:
    """Nothing is to be there when all is over, whatever the session of it."""
    assert faults_of(World(7, left_on_disk=1), {}) != []
    assert faults_of(World(7, failures=["it raised"]), {}) != []


async def test_what_a_receiver_answered_is_there_after_it_was_killed(tmp_path: Path) -> None:
    """Several senders repeat each batch until it is answered with a 200: whenever the
    receiver is killed, what it answered is there, and what was repeated is there once.
    """
    sent = await kill_receiver(seed=1, kills=4, database=tmp_path / "receiver.sqlite")

    assert senders.faults_of(sent) == []
    assert sent.kills == 4
    assert len(sent.answered) > 20


@pytest.mark.parametrize(
    "sent",
    [
        Sent(missing=["a"]),
        Sent(answered={"a": 1}),
        Sent(stored={"a": 2}),
        Sent(events={"s": [0, 2]}, totals={"s": 2}),
        Sent(events={"s": [0, 1, 1]}, totals={"s": 3}),
        Sent(events={"s": [0, 1]}, totals={"s": 3}),
    ],
)
def test_a_receivers_broken_promise_is_noticed(sent: Sent) -> None:
    """What is missing, in the meantime or in the end; what is there twice; wrong totals."""
    assert senders.faults_of(sent) != []


async def test_a_receiver_whose_disk_is_full_puts_senders_off_and_recovers(tmp_path: Path) -> None:
    """It says when to come again, still gives back what it has, and with room it goes on.

    The bound on the size of files is one that the operating system sets for the process.
    """
    database = tmp_path / "receiver.sqlite"
    sent = Sent()
    numbers = iter(range(100_000))

    async def post_more(client: httpx.AsyncClient) -> httpx.Response:
        chosen = [next(numbers) for _ in range(100)]
        key = f"s-{chosen[0]}"
        answer = await post(client, key, batch_of("s", chosen))
        if answer.status_code == 200:
            sent.answered[key] = len(chosen)
        return answer

    async with (
        started_receiver(database, most_bytes=400_000) as (process, url),
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client,
    ):
        with trio.fail_after(PATIENCE):
            while (answer := await post_more(client)).status_code == 200:
                pass
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "disk" in answer.json()["error"]
        assert (await post_more(client)).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        page = await client.get("/api/sessions/s")
        assert page.json()["event_count"] == sum(sent.answered.values())

        process.send_signal(signal.SIGUSR1)
        with trio.fail_after(PATIENCE):
            while (await post_more(client)).status_code != 200:  # noqa: ASYNC110 - another process
                await trio.sleep(0.01)
        for _ in range(50):
            assert (await post_more(client)).status_code == 200

    sent.read(database)
    assert set(sent.stored) == set(sent.answered)
    assert set(sent.stored.values()) == {1}
    assert sent.totals["s"] == sum(sent.answered.values()) == len(sent.events["s"])
