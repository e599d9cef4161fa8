"""A whole telemetry in a world made of one seed: sessions, endpoint, cancellations, time.

In: a seed. Out: what the sessions say became of their events, and what the endpoint got.
The books are checked after every single step of every task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import trio
import trio.testing

import trimaran

if TYPE_CHECKING:
    from collections.abc import Callable

DRAIN = 2.0
ENVIRON = {"SIM_TELEMETRY_URL": "https://endpoint.test"}
STATUSES = [200, 200, 200, 200, 200, 207, 301, 400, 401, 403, 413, 429, 500, 503]


class ChecksBooks(trio.abc.Instrument):
    """Checks the books of all sessions after each step that any task makes."""

    def __init__(self, sessions: list[trimaran.Session]) -> None:
        self._sessions = sessions
        self.checked = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        for session in self._sessions:
            books = session.statistics()
            assert books.tracked == books.delivered + books.dropped_total + books.pending, books
            assert books.pending >= 0, books
            self.checked += 1


@dataclass
class SimulatedEndpoint:
    """An endpoint and the network before it; both do whatever the seed says."""

    random: Random
    trouble: float
    """How likely an attempt is to meet with something else than success."""
    withdrawn: Callable[[], bool]
    taken: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    """Events by idempotency key, as the endpoint took them, answered or not."""
    confirmed: set[str] = field(default_factory=set)
    """Keys that were answered with success, whether or not the answer was heard."""
    refused: dict[str, set[int]] = field(default_factory=dict)
    attempts: int = 0

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        assert not self.withdrawn(), "a request after consent was withdrawn"
        self.attempts += 1
        random = self.random
        await trio.sleep(random.choice([0, 0, 0.001, 0.1, 3]))
        if random.random() >= self.trouble:
            return self._take(request, 200)
        what = random.choice(["status", "status", "reset before", "reset after", "hang"])
        if what == "hang":
            await trio.sleep(math.inf)
        if what == "reset before":
            raise trimaran.TransportError("reset")
        if what == "reset after":
            self._take(request, 200)
            raise trimaran.TransportError("reset")
        status = random.choice(STATUSES)
        if status == 413 and request.headers["idempotency-key"] in self.taken:
            status = 503  # what was small enough once is so for ever
        if status in {200, 207}:
            return self._take(request, status)
        return trimaran.Answer(status, retry_after=random.choice([None, "1", "999999", "soon"]))

    def _take(self, request: trimaran.Request, status: int) -> trimaran.Answer:
        key = request.headers["idempotency-key"]
        batch = msgspec.json.decode(request.body)
        assert {event["session_id"] for event in batch["events"]} <= {batch["session_id"]}
        events = batch["events"]
        assert self.taken.setdefault(key, events) == events, "one key, two batches"
        self.confirmed.add(key)
        refused: set[int] = set()
        if status == 207:
            refused = {index for index in range(len(events)) if self.random.random() < 0.2}
        self.refused[key] = refused
        body = msgspec.json.encode({"rejected": [{"index": index} for index in sorted(refused)]})
        return trimaran.Answer(status, body=body)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Outcome:
    """What a run left behind."""

    sessions: list[trimaran.Session]
    endpoint: SimulatedEndpoint
    drained_for: float
    checked: int


def settings_of(random: Random) -> trimaran.Settings:
    """Limits small enough to be met often."""
    return trimaran.Settings(
        mailbox_events=random.choice([3, 20, 20_000]),
        mailbox_policy=random.choice(["drop_oldest", "drop_newest"]),
        backlog_events=random.choice([2, 20, 20_000]),
        batch_events=random.choice([1, 2, 7, 200]),
        batch_bytes=8_000,
        event_bytes=4_000,
        memory_bytes=random.choice([8_000, 64 * 1024 * 1024]),
        flush_interval=random.choice([0.01, 1.0, 5.0]),
        retry_timeout=random.choice([1.0, 20.0, 600.0]),
        max_requests=random.choice([1, 16]),
        drain_timeout=DRAIN,
        strict=True,
    )


def simulate(seed: int) -> Outcome:
    """Run the world of *seed* to its end."""
    random = Random(seed)
    environ = dict(ENVIRON)
    endpoint = SimulatedEndpoint(
        random, random.choice([0.0, 0.2, 0.9]), lambda: "DO_NOT_TRACK" in environ
    )
    sessions: list[trimaran.Session] = []
    instrument = ChecksBooks(sessions)
    left = math.nan
    ended = math.nan

    async def agent(telemetry: trimaran.Telemetry, name: int) -> None:
        await trio.sleep(random.choice([0, 0.01, 2]))
        with trio.move_on_after(random.choice([0.0, 0.5, 5, 60])):
            async with telemetry.session(session_id=f"s{name}") as session:
                sessions.append(session)
                for number in range(random.choice([0, 3, 30])):
                    await act(session, name, number)

    async def act(session: trimaran.Session, name: int, number: int) -> None:
        match random.randrange(9):
            case 0 | 1 | 2:
                session.track(trimaran.Command(command_name=f"{name}:{number}"))
            case 3:
                await session.send(trimaran.Command(command_name=f"{name}:{number}"))
            case 4:
                session.error("sometimes")
            case 5:
                with session.tool_call("bash"):
                    await trio.sleep(random.choice([0, 0.2, 4]))
            case 6:
                await session.flush(timeout=random.choice([0, 0.1, 20]))
            case 7:
                session.track(None)  # type: ignore[arg-type]
            case _:
                await trio.sleep(random.choice([0, 0.01, 1, 7]))

    async def main() -> None:
        nonlocal left, ended
        with trio.move_on_after(random.choice([0.0, 0.3, 4, 40, 400])):
            async with trimaran.open_telemetry(
                "sim",
                environ=environ,
                transport=endpoint,
                settings=settings_of(random),
                random=random,
                wall_clock=lambda: 1_700_000_000 + trio.current_time(),
                new_id=lambda: f"{random.getrandbits(64):016x}",
            ) as telemetry:
                try:
                    async with trio.open_nursery() as nursery:
                        for name in range(random.choice([1, 2, 6])):
                            nursery.start_soon(agent, telemetry, name)
                        if random.random() < 0.1:
                            await trio.sleep(random.choice([0, 0.5, 3]))
                            environ["DO_NOT_TRACK"] = "1"
                finally:
                    left = trio.current_time()
        ended = trio.current_time()

    # What orders tasks that can run at the same time; pytest-trio reaches for it in the same way.
    run: Any = trio._core._run  # type: ignore[attr-defined]  # noqa: SLF001
    state, deterministic = run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING
    run._r.seed(seed)
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        trio.run(
            main,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=[instrument],
        )
    finally:
        run._r.setstate(state)
        run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic
    drained_for = 0.0 if math.isnan(left) else ended - left
    return Outcome(sessions, endpoint, drained_for, instrument.checked)


def check(outcome: Outcome) -> None:
    """What must hold at the end of any world."""
    assert outcome.drained_for <= DRAIN + 1e-6, "nothing lasts past its deadline"
    endpoint = outcome.endpoint
    for session in outcome.sessions:
        books = session.statistics()
        assert books.pending == 0, books
        assert "bug" not in books.dropped, books
        confirmed = 0
        last_number = -1
        for key, events in endpoint.taken.items():
            if not events or events[0]["session_id"] != session.id:
                continue
            for index, event in enumerate(events):
                name = str(event.get("command_name", ""))
                if name:
                    owner, number = name.split(":")
                    assert f"s{owner}" == session.id, "delivered to another session"
                    assert int(number) > last_number, "out of order"
                    last_number = int(number)
                is_report = str(event.get("error_name", "")).startswith("Telemetry")
                confirmed += not is_report and index not in endpoint.refused[key]
        assert books.delivered <= confirmed, (books, confirmed)
