"""What a process had called safe when it was killed is delivered all the same, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pytest
import trio

from kill.worlds import World, faults_of, run_worlds

if TYPE_CHECKING:
    Stored = Mapping[str, Sequence[str]]

SEEDS = range(2000, 2007)
"""Worlds in which more than twenty processes are killed; in some, several share a spool."""


@pytest.fixture(scope="module")
def over() -> tuple[list[World], Stored]:
    """Worlds that are over, and what the receiver has of all their sessions."""
    return trio.run(run_worlds, SEEDS)


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
