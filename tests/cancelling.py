"""A scenario with numbered points, which can be cancelled at any of them.

In: where the host's scope is, how the run would end without a cancel, at which point the
cancel comes. Out: what the sessions say became of their events, what the endpoint got.
The points are the steps of all tasks, the pipeline's own too, and the checkpoints that
only look whether they are cancelled.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.testing

import trimaran

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

FOREVER = float("inf")
NO_HANG = 1000.0
"""Virtual seconds; a scenario takes about ten."""
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


class Disk:
    """Does one thing after the other; a cancel stops the waiting for it, and not the thing."""

    def __init__(self) -> None:
        self._busy = trio.Lock()

    async def __call__(self, call: Callable[[], Any]) -> Any:
        async with self._busy:
            result = call()
            await trio.sleep(0.01)
            return result


@dataclass
class Endpoint:
    """Takes its time before it takes a batch and after it; fails now and then.

    A failure of its own is kept: raised in an attempt, it would be taken for the network's.
    """

    hangs_from: float = FOREVER
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
    has_spool: bool = False


@dataclass
class World:
    """One run of a scenario."""

    scenario: Scenario
    endpoint: Endpoint
    random: Random
    folder: Path
    """For a spool."""
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
                SETTINGS,
                drain_timeout=self.scenario.drain_timeout,
                spool=self.scenario.has_spool and trimaran.Spool(directory=str(self.folder)),
            ),
            "run_blocking": Disk(),
        }

    async def live_again(self) -> None:
        """The next process, at an endpoint that is well, until nothing is left on disk."""
        self.endpoint.hangs_from = FOREVER
        async with trimaran.open_telemetry("test", **self._arguments) as telemetry:
            with trio.fail_after(NO_HANG):
                await trio.sleep(1)
                while telemetry.leftovers().pending:  # noqa: ASYNC110 - there is no event for it
                    await trio.sleep(1)
        assert telemetry.leftovers().dropped == {}

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


def run(
    scenario: Scenario, folder: Path, *, cancel_at: int | None = None, seed: int = 0
) -> tuple[World, Points]:
    """Run *scenario*; the same arguments give the same run, step by step."""
    world = World(scenario, Endpoint(scenario.hangs_from), Random(seed), folder / str(cancel_at))
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
    to_close = 0.1 if world.scenario.has_spool else 0.0
    assert world.ended - left <= world.scenario.drain_timeout + to_close + 1e-9, "it is bounded"
    for session in world.sessions:
        books = session.statistics()
        assert "bug" not in books.dropped, books
        assert books.pending == books.spooled, books
        assert books.delivered == world.endpoint.answered[session.id], "what was answered counts"
    if world.scenario.has_spool:
        trio.run(world.live_again, clock=trio.testing.MockClock(autojump_threshold=0))
    for session in world.sessions:
        books = session.statistics()
        arrived = sum(batch[session.id] for batch in world.endpoint.taken.values())
        in_flight = arrived - books.delivered - books.spooled
        assert 0 <= in_flight <= SETTINGS.batch_events, "at most one is counted as lost in vain"
