"""The promises in worlds made of seeds; any seed that fails replays exactly."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from types import ModuleType


def _load(name: str) -> ModuleType:
    """A module that stands beside this file; the tests are no package."""
    spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


simulation: Any = _load("simulation")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_in_any_world(seed: int) -> None:
    """After every step of every task the books add up, and at the end all the rest holds."""
    simulation.check(simulation.simulate(seed))


def test_a_seed_replays_exactly() -> None:
    """The same world twice: the same attempts, the same fates."""

    def run() -> object:
        outcome = simulation.simulate(12345)
        return outcome.endpoint.attempts, [s.statistics() for s in outcome.sessions]

    assert run() == run()


def test_the_worlds_are_not_all_alike() -> None:
    """Across a few seeds there are deliveries, retries and drops of several reasons."""
    reasons: set[str] = set()
    delivered = retries = checked = 0
    for seed in range(60):
        outcome = simulation.simulate(seed)
        checked += outcome.checked
        for session in outcome.sessions:
            books = session.statistics()
            reasons |= set(books.dropped)
            delivered += books.delivered
            retries += books.retries

    assert delivered > 100
    assert retries > 10
    assert checked > 10_000
    assert {"mailbox_full", "rejected", "drain_timeout", "encode_error"} <= reasons
