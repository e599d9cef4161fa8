"""Cancel everywhere: whatever the host's scope cuts short, the books are right at the end.

A scenario is run once to count the points at which a cancel can come, then once for each
of them. The points are the steps of all tasks, the pipeline's own too, and the checkpoints
that only look whether they are cancelled.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.testing

import trimaran
from trimaran._session import SilentSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FOREVER = float("inf")
NO_HANG = 1000.0
"""Virtual seconds; a scenario takes about ten."""
ENVIRON = {"TEST_TELEMETRY_URL": "https://endpoint.test"}
CALL = trimaran.ToolCall(tool_name="bash")
SETTINGS = trimaran.Settings(
    mailbox_events=3,  # so that send() waits
    batch_events=2,
    backlog_events=2,
    retry_initial=0.1,
    max_requests=1,  # so that a session waits for the other's request
    strict=True,
)


class Login:
    """An account that takes its time, and whose first token is not taken."""

    def __init__(self) -> None:
        self._tokens = iter(["stale", *["fresh"] * 9])

    async def account(self) -> trimaran.Account:
        """Always the same."""
        await trio.sleep(0.01)
        return trimaran.Account("https://endpoint.test")

    async def token(self, *, refresh: bool) -> str:
        """The next one."""
        await trio.sleep(0.01)
        return next(self._tokens)


@dataclass
class Endpoint:
    """Takes its time before it takes a batch and after it; fails now and then.

    A failure of its own is kept: raised in an attempt, it would be taken for the network's.
    """

    hangs_from: float
    """The number of the attempt from which on it never answers."""
    attempts: int = 0
    taken: dict[str, Counter[str]] = field(default_factory=dict)
    """Events taken under each key, by session."""
    answered: Counter[str] = field(default_factory=Counter)
    """Events of each session in answers of 200 that were given back to the caller."""

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        """Answer by the number of the attempt."""
        self.attempts += 1
        await trio.sleep(0.05)
        if self.attempts >= self.hangs_from:
            await trio.sleep_forever()
        if request.headers["authorization"] == "Bearer stale":
            return trimaran.Answer(401)
        events = msgspec.json.decode(request.body)["events"]
        if self.attempts == 3 and len(events) > 1:
            return trimaran.Answer(413)
        if self.attempts == 5:
            return trimaran.Answer(503, retry_after="1")
        mine = Counter(event["session_id"] for event in events if not is_report(event))
        self.taken[request.headers["idempotency-key"]] = mine
        if self.attempts == 6:
            raise trimaran.TransportError("reset")
        await trio.sleep(0.05)
        for _ in range(3):  # steps for a cancel to come from the host down to the stages
            await trio.lowlevel.checkpoint()
        self.answered += mine
        return trimaran.Answer(200)

    async def aclose(self) -> None:
        """Nothing is open."""
        await trio.lowlevel.checkpoint()


def is_report(event: dict[str, Any]) -> bool:
    """Whether it tells of losses: the books do not count those."""
    return event.get("context") == "telemetry"


@dataclass(frozen=True)
class Scenario:
    """Where the host's scope is, and how the run would end without a cancel."""

    where: str
    hangs_from: float = FOREVER
    drain_timeout: float = 2.0


@dataclass
class World:
    """One run of a scenario."""

    scenario: Scenario
    endpoint: Endpoint
    random: Random
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    sessions: list[trimaran.Session] = field(default_factory=list)
    left: float | None = None
    """When the block was left that the telemetry is open for; None if it was never entered."""
    ended: float = 0.0

    async def run(self) -> None:
        """The scenario. Raises what is no cancellation."""
        living = trio.lowlevel.current_statistics().tasks_living
        with trio.fail_after(NO_HANG):
            await {
                "around the telemetry": self._around_telemetry,
                "around the sessions": self._around_sessions,
                "around a nursery": self._around_nursery,
            }[self.scenario.where]()
        self.ended = trio.current_time()
        assert trio.lowlevel.current_statistics().tasks_living == living
        assert trimaran.current_session().id == ""

    @property
    def _arguments(self) -> dict[str, Any]:
        return {
            "account": Login(),
            "environ": {},
            "transport": self.endpoint,
            "random": self.random,
            "settings": msgspec.structs.replace(
                SETTINGS, drain_timeout=self.scenario.drain_timeout
            ),
        }

    async def _around_telemetry(self) -> None:
        with self.scope:
            async with trimaran.open_telemetry("test", **self._arguments) as telemetry:
                try:
                    await self._agent(telemetry)
                finally:
                    self.left = trio.current_time()

    async def _around_sessions(self) -> None:
        async with trimaran.open_telemetry("test", **self._arguments) as telemetry:
            with self.scope:
                await self._agent(telemetry)
            self.left = trio.current_time()

    async def _around_nursery(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                telemetry = await nursery.start(
                    partial(trimaran.run_telemetry, "test", **self._arguments)
                )
                try:
                    await self._agent(telemetry)
                finally:
                    self.left = trio.current_time()
                nursery.cancel_scope.cancel()

    async def _agent(self, telemetry: trimaran.Telemetry) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._session, telemetry, "calls", self._calls)
            nursery.start_soon(self._session, telemetry, "sends", self._sends)

    async def _session(
        self,
        telemetry: trimaran.Telemetry,
        name: str,
        act: Callable[[trimaran.Session], Awaitable[None]],
    ) -> None:
        async with telemetry.session(session_id=name) as session:
            self.sessions.append(session)
            await act(session)

    async def _calls(self, session: trimaran.Session) -> None:
        with session.tool_call("bash"):
            await trio.sleep(0.1)
        with session.generation() as generation:
            await trio.sleep(0.2)
            generation.finish("stop")
        await session.flush(timeout=0.5)
        try:
            await trio.sleep(3)
        finally:
            session.command("undo")

    async def _sends(self, session: trimaran.Session) -> None:
        for _ in range(6):
            await session.send(CALL)
        await session.flush(timeout=5)


class Points(trio.abc.Instrument):
    """Numbers the points of a run, cancels a scope at one of them, checks the books at all.

    What an instrument raises is logged by trio and lost: what is wrong is kept instead.
    """

    def __init__(self, world: World, cancel_at: int | None) -> None:
        self._world = world
        self._cancel_at = cancel_at
        self.passed = 0
        self.wrong: list[str] = []
        self.cancelled_at: float | None = None
        """In virtual seconds."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Each step of any task ends at a point."""
        self.point()

    def point(self) -> None:
        """One more point is passed."""
        if self.passed == self._cancel_at:
            self.cancelled_at = trio.current_time()
            self._world.scope.cancel()
        self.passed += 1
        for session in self._world.sessions:
            books = session.statistics()
            if books.tracked != books.delivered + books.dropped_total + books.pending:
                self.wrong.append(f"{session.id} at point {self.passed}: {books}")


@contextmanager
def countable(points: Points, seed: int) -> Iterator[None]:
    """Let *seed* decide the order of tasks that can run at the same time. Checkpoints that
    only look whether they are cancelled are points.
    """
    look = trio.lowlevel.checkpoint_if_cancelled

    async def counted() -> None:
        points.point()
        await look()

    # Where trio keeps the order of tasks; pytest-trio reaches for it in the same way.
    loop: Any = trio._core._run
    state = loop._r.getstate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.lowlevel, "checkpoint_if_cancelled", counted)
        patch.setattr(loop, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        loop._r.seed(seed)
        try:
            yield
        finally:
            loop._r.setstate(state)


def run(scenario: Scenario, *, cancel_at: int | None, seed: int = 0) -> tuple[World, Points]:
    """Run *scenario*; the same arguments give the same run, step by step."""
    world = World(scenario, Endpoint(scenario.hangs_from), Random(seed))
    points = Points(world, cancel_at)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with countable(points, seed):
        trio.run(world.run, clock=clock, instruments=[points])
    return world, points


def check(world: World, points: Points) -> None:
    """What must hold wherever the cancel came."""
    assert not points.wrong, "the books add up at every point"
    left = points.cancelled_at if world.left is None else world.left
    assert left is not None
    assert world.ended - left <= world.scenario.drain_timeout + 1e-9, "the drain is bounded"
    for session in world.sessions:
        books = session.statistics()
        assert books.pending == 0, books
        assert "bug" not in books.dropped, books
        assert books.delivered == world.endpoint.answered[session.id], "what was answered counts"
        taken = sum(batch[session.id] for batch in world.endpoint.taken.values())
        assert 0 <= taken - books.delivered <= SETTINGS.batch_events, "but for one in flight"


@pytest.mark.parametrize(
    "ending",
    [{}, {"hangs_from": 7}, {"drain_timeout": 0.0}],
    ids=["healthy", "hung", "without a drain"],
)
@pytest.mark.parametrize(
    "where", ["around the telemetry", "around the sessions", "around a nursery"]
)
def test_cancelled_at_any_point_the_promises_hold(where: str, ending: dict[str, float]) -> None:
    """No hang, no loss without a count, nothing left behind, whatever was cut short.

    Without a drain the cancel reaches the stages at once, at any of their own points.
    """
    scenario = Scenario(where, **ending)
    world, points = run(scenario, cancel_at=None)
    check(world, points)
    assert points.passed > 150

    for at in range(points.passed):
        world, cut = run(scenario, cancel_at=at)
        assert cut.cancelled_at is not None
        check(world, cut)


def test_a_run_repeats_itself_and_a_cancel_changes_it() -> None:
    """The same arguments give the same run, so every point that was counted is met again."""

    def outcome(cancel_at: int | None) -> object:
        world, points = run(Scenario("around the telemetry"), cancel_at=cancel_at, seed=3)
        return points.passed, world.ended, [session.statistics() for session in world.sessions]

    assert outcome(None) == outcome(None)
    assert outcome(100) == outcome(100)
    assert outcome(100) != outcome(None)


def test_books_that_do_not_add_up_are_seen() -> None:
    """The watch over them is awake: what an instrument raises, trio would only log."""

    class HasLostOne(SilentSession):
        def statistics(self) -> trimaran.Statistics:
            return trimaran.Statistics(tracked=1)

    world = World(Scenario("around the telemetry"), Endpoint(FOREVER), Random(0))
    world.sessions.append(HasLostOne())
    points = Points(world, None)

    points.point()

    assert len(points.wrong) == 1
