"""How many requests an outage of ten minutes costs an endpoint: by simulation.

In: how many sessions face it. Out: a row.
Does not know: why the endpoint is down; it answers 503 after a tenth of a second.

Each number of sessions has a process of its own, ``python -m bench.outage COUNT``, whose
clock is virtual: ten minutes take as long as what happens in them. Every session tracks an
event a minute.
"""

from __future__ import annotations

import logging
import sys
from random import Random

import structlog
import trio
import trio.testing

import trimaran
from bench.rows import Aim, Row

__all__ = ["outage"]

_OUTAGE = 600.0
"""Seconds."""
_SESSIONS = 1_000
_MOST_FLOORS = 1.2


async def outage() -> list[Row]:
    """The requests of 1,000 sessions, beside those of one."""
    one, many = [await _requests_of(count) for count in (1, _SESSIONS)]
    return [
        Row(
            group="requests in an outage of ten minutes",
            name=f"{_SESSIONS:,} sessions, floor: one",
            unit="requests",
            value=many,
            floor=one,
            aim=Aim("ratio", _MOST_FLOORS),
        )
    ]


async def _requests_of(count: int) -> int:
    command = [sys.executable, "-m", "bench.outage", str(count)]
    return int((await trio.run_process(command, capture_stdout=True)).stdout)


class _Down:
    """A transport to an endpoint that is down."""

    def __init__(self) -> None:
        self.requests = 0

    async def attempt(self, _request: trimaran.Request) -> trimaran.Answer:
        self.requests += 1
        await trio.sleep(0.1)
        return trimaran.Answer(503)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def _endure(count: int) -> int:
    """The requests that *count* sessions make while the endpoint is down."""
    down = _Down()
    async with (
        trimaran.open_telemetry(
            "bench",
            environ={"BENCH_TELEMETRY_URL": "https://bench.invalid"},
            settings=trimaran.Settings(drain_timeout=0),
            transport=down,
            random=Random(1),  # noqa: S311 - the same numbers in every run
        ) as telemetry,
        trio.open_nursery() as nursery,
    ):

        async def host() -> None:
            async with telemetry.session() as session:
                while True:
                    session.track(trimaran.ToolCall(tool_name="bash"))
                    await trio.sleep(60)

        for _ in range(count):
            nursery.start_soon(host)
        await trio.sleep(_OUTAGE)
        requests = down.requests
        nursery.cancel_scope.cancel()
    return requests


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(trio.run(_endure, int(sys.argv[1]), clock=trio.testing.MockClock(autojump_threshold=0)))
