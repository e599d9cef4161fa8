"""The ends of a process, and what each of them leaves of a session.

In: nothing. Out: for each end, at an endpoint that is well and at one that hangs, what was
delivered, what the books say and how long it took.
Does not know: what should come of it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import trio

from patience import PATIENCE

from .ending_agent import DRAIN_TIMEOUT, PENDING, EndingOrders
from .served import LONG, FaultyServer, environment, faulty_server, line_of, rest_of
from .timing import TOLERANCE

__all__ = [
    "ENDPOINTS",
    "ENDS",
    "TRIALS",
    "Books",
    "End",
    "Ended",
    "Trial",
    "name_of",
    "patient",
    "run_ends",
]

ENDPOINTS = {
    "well": ("far away", "delivered"),
    "hung": ("never answers", "attempts"),
    "hung, spool": ("well later", "spooled"),
}
"""What an endpoint does, in a word; the fault that does it; and what an agent there counts
when it is ready. At the last one it has a spool, and the next process finds the endpoint well."""
BETWEEN_SIGNALS = 0.4
"""Seconds; all endpoints need longer, so that the second one meets the drain."""
FOR_A_DISK = 3.0
"""Seconds in which even a slow one has taken a batch."""
AT_ONCE = 6


Lost: TypeAlias = Literal["nothing", "books", "events"]


@dataclass(frozen=True, kw_only=True)
class End:
    """One way for a process to end."""

    name: str
    how: str = "waits"
    """What the agent does by itself."""
    signals: Sequence[signal.Signals] = ()
    with_recipe: bool = False
    status: int = 0
    """The exit status that it leads to; for a signal its number, negative."""
    loses: Lost = "nothing"
    """What the process takes with it: what was pending, or only what the books say."""


ENDS = (
    End(name="the block is left", how="returns"),
    End(name="an exception that nobody handles", how="fails", status=1),
    End(name="`sys.exit(3)` inside the session", how="leaves", status=3),
    End(name="the scope around it runs out of time", how="is_out_of_time"),
    End(name="SIGTERM, with the recipe", signals=[SIGTERM], with_recipe=True),
    End(
        name="SIGTERM twice, with the recipe",
        signals=[SIGTERM, SIGTERM],
        with_recipe=True,
        status=-SIGTERM,
        loses="books",
    ),
    End(name="Ctrl-C", signals=[SIGINT], status=-SIGINT),
    End(name="Ctrl-C twice", signals=[SIGINT, SIGINT], status=-SIGINT),
    End(name="Ctrl-C, then SIGTERM", signals=[SIGINT, SIGTERM], status=-SIGTERM, loses="books"),
    End(name="SIGTERM, without a recipe", signals=[SIGTERM], status=-SIGTERM, loses="events"),
    End(name="`os._exit(4)`", how="vanishes", status=4, loses="events"),
    End(name="SIGKILL", signals=[SIGKILL], status=-SIGKILL, loses="events"),
)


def name_of(end: End, endpoint: str) -> str:
    """What the trial of an end at an endpoint is called."""
    return f"{end.name}, {endpoint}"


@dataclass(frozen=True)
class Trial:
    """One end at one endpoint."""

    end: End
    endpoint: str
    fault: str
    """What the endpoint does, by the name that the server has for it."""
    drain_timeout: float = DRAIN_TIMEOUT
    between: float = BETWEEN_SIGNALS
    """Seconds from when one signal has been heard to the next."""

    @property
    def name(self) -> str:
        """Unique over all."""
        return name_of(self.end, self.endpoint)

    @property
    def has_spool(self) -> bool:
        """Whether a next process takes over what is left."""
        return self.endpoint.endswith("spool")


TRIALS = [Trial(end, name, fault) for end in ENDS for name, (fault, _) in ENDPOINTS.items()]


def patient(trial: Trial) -> Trial:
    """*trial* on a machine that may be slow: there is time for what comes to an end by itself.

    What does not has enough for a disk; and who is ended in the drain drains until then.
    """
    long_enough = FOR_A_DISK if trial.has_spool else trial.between
    if trial.end.loses == "books":
        fault = "goes away" if trial.endpoint == "well" else trial.fault
        return replace(trial, fault=fault, drain_timeout=PATIENCE, between=long_enough)
    if trial.endpoint == "well":
        return replace(trial, drain_timeout=PATIENCE)
    return replace(trial, drain_timeout=max(long_enough, trial.drain_timeout))


class Books(msgspec.Struct, frozen=True):
    """What an agent says when it is out of the block."""

    at: float
    tracked: int
    delivered: int
    pending: int
    spooled: int
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Ended:
    """What came of it."""

    trial: Trial
    stored: int
    """Events that the endpoint has in the end."""
    status: int
    books: Books | None
    """None where the process was gone before."""
    left_within: float | None
    """Seconds from what ended it to being out of the block."""
    gone_within: float
    """Seconds from then to the end of the process."""
    said: str
    """What it wrote on standard error."""
    later: int | None
    """Events that the next process delivers; None where there is none."""

    @property
    def tracked(self) -> int:
        """Events of the session: its start, what is pending, and its end if it came to that."""
        return 1 + PENDING + (self.trial.end.loses != "events")

    @property
    def exit_within(self) -> float:
        """Seconds to being out of the block, or of this world."""
        return self.gone_within if self.left_within is None else self.left_within

    @property
    def is_in_time(self) -> bool:
        """Whether it was out of the block when it had to be, if it got there at all."""
        latest = self.trial.drain_timeout + TOLERANCE
        return self.left_within is None or self.left_within <= latest


async def run_ends(trials: Sequence[Trial]) -> dict[str, Ended]:
    """Run them, a few at a time; by name."""
    gone: dict[str, _Gone] = {}
    limit = trio.CapacityLimiter(AT_ONCE)

    async def run(trial: Trial, server: FaultyServer) -> None:
        async with limit:
            with tempfile.TemporaryDirectory() as directory:
                spool = directory if trial.has_spool else None
                gone[trial.name] = await _run_agent(trial, server.url(trial.name), spool)

    wanted = {trial.name: trial.fault for trial in trials}
    async with faulty_server(wanted) as server:
        async with trio.open_nursery() as nursery:
            for trial in trials:
                nursery.start_soon(run, trial, server)
        tallies = await server.close()
    return {
        trial.name: Ended(trial, sum(tallies[trial.name].taken.values()), *gone[trial.name])
        for trial in trials
    }


class _Gone(NamedTuple):
    status: int
    books: Books | None
    left_within: float | None
    gone_within: float
    said: str
    later: int | None


async def _run_agent(trial: Trial, url: str, spool: str | None) -> _Gone:
    """Start an agent, end it; with a spool, start another to see what it left."""
    end = trial.end
    orders = EndingOrders(
        how=end.how,
        with_recipe=end.with_recipe,
        until=ENDPOINTS[trial.endpoint][1],
        spool=spool,
        drain_timeout=trial.drain_timeout,
    )
    said = b""

    async def listen(process: trio.Process) -> None:
        nonlocal said
        assert process.stderr is not None
        async for part in process.stderr:
            said += part

    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, "-m", "faults.ending_agent", msgspec.json.encode(orders)],
                    env=environment(FAULTS_TELEMETRY_URL=url),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    check=False,
                )
            )
            nursery.start_soon(listen, process)
            began: float = json.loads(await line_of(process, at_once=1))["at"]
            for number, each in enumerate(end.signals):
                if number:
                    assert "leaving" in json.loads(await line_of(process, at_once=1))
                    await trio.sleep(trial.between)
                else:
                    began = time.monotonic()
                process.send_signal(each)
            lines = (await rest_of(process)).splitlines()
            status = await process.wait()
            ended = time.monotonic()
    books = (
        msgspec.json.decode(lines[-1], type=Books) if lines and b"tracked" in lines[-1] else None
    )
    left_within = None if books is None else books.at - began
    later = None if spool is None else await _deliver_later(url, spool)
    return _Gone(status, books, left_within, ended - began, said.decode(), later)


async def _deliver_later(url: str, spool: str) -> int:
    """Start the next process; says how much of what it found it has delivered."""
    with trio.fail_after(LONG):
        done = await trio.run_process(
            [sys.executable, "-m", "faults.later_agent", spool],
            env=environment(FAULTS_TELEMETRY_URL=url),
            capture_stdout=True,
        )
    delivered = json.loads(done.stdout)["delivered"]
    assert isinstance(delivered, int)
    return delivered
