"""The promises in worlds made of seeds; any seed that fails replays exactly."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from types import ModuleType


def _load(name: str) -> ModuleType:
    """A module that stands beside this file; the tests are no package."""
    spec = importlib.util.spec_from_file_location(
        name, pathlib.Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


simulation: Any = _load("simulation")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_in_any_world(seed: int) -> None:
    """After every step of every task the books add up, and at the end all the rest holds."""
    simulation.check(simulation.simulate(seed))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_with_a_disk_and_crashes(seed: int) -> None:
    """What was called safe reaches the endpoint in the life after, and is counted once."""
    with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
        simulation.check(simulation.simulate(seed, pathlib.Path(directory) / "spool"))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_for_each_of_two_destinations(seed: int) -> None:
    """With luck of its own each, and a full set of books."""
    simulation.check(simulation.simulate(seed, beside=True))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_for_each_of_two_destinations_with_a_disk_and_crashes(seed: int) -> None:
    """Each has its own place on the disk, and finds there what is its own."""
    with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
        disk = pathlib.Path(directory) / "spool"
        simulation.check(simulation.simulate(seed, disk, beside=True))


def test_a_seed_replays_exactly() -> None:
    """The same world twice: the same attempts, the same fates."""

    def run() -> object:
        with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
            world = simulation.simulate(12345, pathlib.Path(directory) / "spool")
        return world.endpoint.attempts, [s.statistics() for s in world.sessions]

    assert run() == run()


def test_the_worlds_are_not_all_alike() -> None:
    """Across a few seeds there are deliveries, retries, crashes and drops of most reasons."""
    reasons: set[str] = set()
    delivered = retries = checked = safe = 0
    for seed in range(60):
        with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
            disk = pathlib.Path(directory) / "spool"
            for world in (simulation.simulate(seed), simulation.simulate(seed, disk)):
                checked += world.checked
                safe += len(world.safe)
                for session in world.sessions:
                    books = session.statistics()
                    reasons |= set(books.dropped)
                    delivered += books.delivered
                    retries += books.retries

    assert delivered > 100
    assert retries > 10
    assert safe > 10
    assert checked > 10_000
    assert reasons >= {
        "mailbox_full",
        "rejected",
        "drain_timeout",
        "encode_error",
        "retries_exhausted",
        "consent_withdrawn",
        "spool_full",
    }


def test_a_world_that_breaks_a_promise_is_told_with_its_seed() -> None:
    """The check can fail: an endpoint that forgets what it took is found out."""
    world = simulation.simulate(3)
    assert any(session.statistics().delivered for session in world.sessions)

    world.endpoint.taken.clear()

    with pytest.raises(AssertionError):
        simulation.check(world)
