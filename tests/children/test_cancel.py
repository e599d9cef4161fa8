"""A cancel at any point of a session with a child: both books are right, and nothing is left.

The points are those of the tests of sessions: the steps of all tasks, and the checkpoints that
only look whether they are cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import trio
import trio.testing

import trimaran
from cancelling import Points, countable
from trimaran.testing import Capture

if TYPE_CHECKING:
    from cancelling import World
    from children.conftest import Home

SETTINGS = trimaran.Settings(
    strict=True, batch_events=4, mailbox_events=6, backlog_events=4, drain_timeout=1.0
)
NO_HANG = 100.0
"""Virtual seconds; a run takes about two."""


@dataclass
class Family:
    """One run: a parent and its child, and a scope around one of them, or around both."""

    home: Home
    where: str
    capture: Capture = field(default_factory=lambda: Capture([0.3]))
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    sessions: list[trimaran.Session] = field(default_factory=list)

    def _around(self, what: str) -> trio.CancelScope:
        return self.scope if what == self.where else trio.CancelScope()

    async def run(self) -> None:
        """Raises what is no cancellation."""
        living = trio.lowlevel.current_statistics().tasks_living
        with trio.fail_after(NO_HANG):
            with self._around("both"):
                async with trimaran.open_telemetry(
                    "test",
                    environ=self.home.environ,
                    settings=SETTINGS,
                    transport=self.capture,
                ) as telemetry:
                    with self._around("session"):
                        async with telemetry.session(session_id="s") as session:
                            self.sessions.append(session)
                            with self._around("child"):
                                await self._child(session.to_env({}))
                            await session.flush(timeout=1)
        assert trio.lowlevel.current_statistics().tasks_living == living
        assert trimaran.current_session().id == ""

    async def _child(self, environ: dict[str, str]) -> None:
        settings = msgspec.structs.replace(SETTINGS, mailbox_events=100)
        async with trimaran.attach(environ=environ, settings=settings) as child:
            self.sessions.append(child)
            for number in range(10):
                with child.tool_call(f"tool {number}"):
                    await trio.sleep(0.01)
            await child.flush(timeout=1)
            child.error("last")


def run(home: Home, where: str, cancel_at: int | None = None) -> tuple[Family, Points]:
    """One run; the same arguments give the same one, step by step."""
    family = Family(home, where)
    points = Points(cast("World", family), cancel_at)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with countable(points, 0):
        trio.run(family.run, clock=clock, instruments=[points])
    return family, points


def check(family: Family, points: Points) -> None:
    """What must hold wherever the cancel came."""
    assert not points.wrong, "the books add up at every point"
    assert family.home.sockets() == []
    books = [session.statistics() for session in family.sessions]
    for each in books:
        assert each.pending == 0, each
        assert "bug" not in each.dropped, each
    if books:
        assert books[0].delivered <= len(family.capture.events()), "what was answered counts"
    if len(books) == 2:
        parent, child = books
        surplus = parent.from_children - child.delivered
        assert 0 <= surplus <= SETTINGS.batch_events, "at most one is counted as lost in vain"
        tools = [call.tool_name for call in family.capture.events(trimaran.ToolCall)]
        assert tools == [f"tool {number}" for number in range(len(tools))]


@pytest.mark.parametrize("where", ["both", "session", "child"])
def test_cancelled_at_any_point_the_promises_hold(where: str, home: Home) -> None:
    """No hang, no loss without a count, no socket left, whatever was cut short."""
    whole, points = run(home, where)
    check(whole, points)
    assert points.passed > 100
    assert whole.sessions[0].statistics().from_children == 11

    for at in range(points.passed):
        family, cut = run(home, where, at)
        assert cut.cancelled_at is not None
        check(family, cut)
