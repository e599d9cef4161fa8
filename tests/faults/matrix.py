"""Runs the fault matrix: an agent in a process of its own for each case.

In: cases. Out: for each what the agent said, and what the server saw.
Does not know: what should come of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import trio

import trimaran

from .agent import Orders, Report
from .cases import SETTINGS, Case
from .exchange import Tally
from .served import LONG, FaultyServer, environment, faulty_server
from .timing import TOLERANCE

__all__ = ["Result", "run_cases"]

AT_ONCE = 6
"""Agents that run at the same time. Each takes half a second of a processor, and waits."""


class Ran(NamedTuple):
    """What an agent left behind."""

    report: Report
    ended: float
    """When its process was over, by the clock of the report."""
    said: str
    """What it wrote on standard error."""


@dataclass(frozen=True)
class Result:
    """What came of one case."""

    case: Case
    report: Report
    ended: float
    said: str
    tally: Tally
    """What came in at the endpoint."""

    @property
    def left_within(self) -> float:
        """Seconds that leaving the block took."""
        return self.report.left - self.report.leaving

    @property
    def ended_within(self) -> float:
        """Seconds from then to the end of the process."""
        return self.ended - self.report.leaving

    @property
    def is_in_time(self) -> bool:
        """Whether it was out of the block when it had to be."""
        return self.left_within <= self.case.drain_timeout + TOLERANCE

    @property
    def stored(self) -> int:
        """Events that the endpoint has, each counted once."""
        return sum(self.tally.taken.values())


async def run_cases(cases: Sequence[Case]) -> dict[str, Result]:
    """Run all of them, a few at a time; by name."""
    ran: dict[str, Ran] = {}
    limit = trio.CapacityLimiter(AT_ONCE)
    wanted = {case.name: case.fault for case in cases}
    wanted |= {_proxy_of(case): case.proxy for case in cases if case.proxy is not None}

    async def run(case: Case, server: FaultyServer) -> None:
        async with limit:
            ran[case.name] = await _run_agent(case, server)

    async with faulty_server(wanted) as server:
        async with trio.open_nursery() as nursery:
            for case in cases:
                nursery.start_soon(run, case, server)
        tallies = await server.close()
    return {case.name: Result(case, *ran[case.name], tallies[case.name]) for case in cases}


def _proxy_of(case: Case) -> str:
    """The name of the fault between its agent and its endpoint."""
    return f"proxy of {case.name}"


async def _run_agent(case: Case, server: FaultyServer) -> Ran:
    """Let an agent loose."""
    url = server.url(case.name, scheme=case.scheme, host=case.host)
    variables = {
        "FAULTS_TELEMETRY_URL": url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "LANGFUSE_BASE_URL": url,
        "LANGFUSE_PUBLIC_KEY": "pk-lf",
        "LANGFUSE_SECRET_KEY": "sk-lf",
    }
    if case.is_trusting:
        trusts = "SSL_CERT_FILE" if case.wire == "origin" else "OTEL_EXPORTER_OTLP_CERTIFICATE"
        variables[trusts] = str(server.authority)
    if case.proxy is not None:
        variables[f"{case.scheme}_proxy"] = server.url(_proxy_of(case))
    orders = Orders(
        settings=trimaran.Settings(**{**SETTINGS, **case.settings}),
        tries=case.tries,
        patience=case.patience,
        tokens=None if case.tokens is None else list(case.tokens),
        large=case.large,
        wire=case.wire,
    )
    with trio.fail_after(LONG):
        done = await trio.run_process(
            [sys.executable, "-m", "faults.agent", msgspec.json.encode(orders).decode()],
            env=environment(**{**variables, **case.environ}),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    ended = time.monotonic()
    said = done.stderr.decode()
    if done.returncode:
        raise RuntimeError(f"the agent at {case.name!r} failed:\n{said}")
    return Ran(msgspec.json.decode(done.stdout, type=Report), ended, said)
