"""A relay that is killed, again and again: what agents handed over arrives once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

from patience import PATIENCE

from .kills import AGENTS, Killed, faults_of, kill_relays
from .steady import Said

pytestmark = pytest.mark.timeout(15 * PATIENCE)  # many processes live and die in one test's setup

KILLS = 4
SECONDS = 10.0


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Ten agents that sent meanwhile, through a network that has its moods."""
    folder = tmp_path_factory.mktemp("killed")
    return trio.run(partial(kill_relays, 1, folder, kills=KILLS, seconds=SECONDS))


def test_nothing_that_was_taken_is_lost_or_doubled(killed: Killed) -> None:
    """Killed while it starts, adopts, takes, sends, removes: each session's events are at the
    receiver once, in order, and no fewer than were called safe; nothing is left on disk.
    """
    assert faults_of(killed) == []


def test_there_was_something_to_lose(killed: Killed) -> None:
    """Several relays were killed, and took most of what was said."""
    assert killed.kills >= KILLS
    assert len(killed.said) == AGENTS
    handed_over = sum(said.handed_over for said in killed.said)
    assert handed_over > 500
    assert handed_over > sum(sum(said.safe.values()) for said in killed.said) / 2


def _said(**named: object) -> Said:
    chosen: dict[str, Any] = {"handed_over": 0, "dropped": {}, "problems": [], **named}
    return Said(**chosen)


@pytest.mark.parametrize(
    "killed",
    [
        Killed(left_on_disk=1),
        Killed(left={"spool.db", "relay.lock"}),
        Killed(said=[_said(safe={}, dropped={"drain_timeout": 1})]),
        Killed(said=[_said(safe={"s": 3})], stored={"s": ["session_start", "0"]}),
        Killed(said=[_said(safe={"s": 2})], stored={"s": ["session_start", "0", "0"]}),
        Killed(said=[_said(safe={"s": 2})], stored={"s": ["session_start", "1", "0"]}),
        Killed(
            said=[_said(safe={"s": 2}, problems=["alone"])],
            stored={"s": ["session_start", "1", "0", "0"]},
        ),
    ],
)
def test_a_broken_promise_is_noticed(killed: Killed) -> None:
    """Something left, dropped, lost, doubled, or out of its order."""
    assert faults_of(killed) != []
