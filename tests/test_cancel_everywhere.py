"""Cancel everywhere: whatever the host's scope cuts short, the books are right at the end.

A scenario is run once to count the points at which a cancel can come, then once for each.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

import trimaran
from cancelling import Endpoint, Points, Scenario, World, check, run
from trimaran._session import SilentSession

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "ending",
    [{}, {"hangs_from": 7}, {"drain_timeout": 0.0}, {"has_spool": True, "hangs_from": 7}],
    ids=["healthy", "hung", "without a drain", "hung, with a spool"],
)
@pytest.mark.parametrize(
    "where", ["around the telemetry", "around the sessions", "around a nursery"]
)
def test_cancelled_at_any_point_the_promises_hold(
    where: str, ending: dict[str, Any], tmp_path: Path
) -> None:
    """No hang, no loss without a count, nothing left behind, whatever was cut short.

    Without a drain the cancel reaches the stages at once, at any of their own points.
    """
    scenario = Scenario(where, **ending)
    world, points = run(scenario, tmp_path)
    check(world, points)
    assert points.passed > 150

    for at in range(points.passed):
        world, cut = run(scenario, tmp_path, cancel_at=at)
        assert cut.cancelled_at is not None
        check(world, cut)


def test_a_run_repeats_itself_and_a_cancel_changes_it(tmp_path: Path) -> None:
    """The same arguments give the same run, so every point that was counted is met again."""

    def outcome(cancel_at: int | None) -> object:
        world, points = run(Scenario("around the telemetry"), tmp_path, cancel_at=cancel_at)
        return points.passed, world.ended, [session.statistics() for session in world.sessions]

    assert outcome(None) == outcome(None)
    assert outcome(100) == outcome(100)
    assert outcome(100) != outcome(None)


def test_books_that_do_not_add_up_are_seen(tmp_path: Path) -> None:
    """The watch over them is awake: what an instrument raises, trio would only log."""

    class HasLostOne(SilentSession):
        def statistics(self) -> trimaran.Statistics:
            return trimaran.Statistics(tracked=1)

    world = World(Scenario("around the telemetry"), Endpoint(), Random(0), tmp_path)
    world.sessions.append(HasLostOne())
    points = Points(world, None)

    points.point()

    assert len(points.wrong) == 1
