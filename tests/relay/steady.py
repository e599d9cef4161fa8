"""An agent that sends until it is told to stop: ``python -m relay.steady ORDERS``.

In: orders, as JSON; the end of its standard input. Out: for each of its sessions, how many
of its events, from the first, are safe; as JSON.
Does not know: who kills its relay.
"""

from __future__ import annotations

import itertools
import os
import sys
from random import Random
from typing import Any

import msgspec
import structlog
import trio

import trimaran

from .agent import Orders, be_patient

__all__ = ["Said", "SteadyOrders"]

PAUSES = (0, 0.001, 0.01, 0.1)
"""Seconds between two things that an agent says."""


class SteadyOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What a steady agent is to do."""

    agent: Orders
    seed: int


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a steady agent knows in the end."""

    safe: dict[str, int]
    """Events of each session that are delivered or handed over."""
    handed_over: int
    dropped: dict[str, int]
    problems: list[str]


class SteadyAgent:
    """Hosts one session after the other."""

    def __init__(self, orders: SteadyOrders) -> None:
        self._orders = orders.agent
        self._random = Random(orders.seed)
        self._sessions: list[trimaran.Session] = []
        self._problems: list[str] = []

    async def run(self) -> Said:
        """Until standard input ends."""
        settings = trimaran.Settings(
            relay=trimaran.Relay(
                directory=self._orders.directory, idle_timeout=self._orders.idle_timeout
            ),
            batch_events=self._random.choice([3, 40, 400]),
            flush_interval=self._random.choice([0.01, 0.1]),
            retry_initial=0.01,
            retry_max=0.1,
            retry_budget=1000.0,
            # A relay that is killed again and again takes its time.
            drain_timeout=self._orders.drain_timeout,
        )
        async with trimaran.open_telemetry(
            "steady",
            environ={"STEADY_TELEMETRY_URL": self._orders.url},
            settings=settings,
            on_problem=lambda problem: self._problems.append(f"{problem.name} {problem.facts}"),
        ) as telemetry:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._host, telemetry)
                await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
                nursery.cancel_scope.cancel()
        books = {session.id: session.statistics() for session in self._sessions}
        dropped: dict[str, int] = {}
        for each in books.values():
            for why, count in each.dropped.items():
                dropped[why] = dropped.get(why, 0) + count
        return Said(
            safe={name: each.delivered + each.handed_over for name, each in books.items()},
            handed_over=sum(each.handed_over for each in books.values()),
            dropped=dropped,
            problems=self._problems,
        )

    async def _host(self, telemetry: trimaran.Telemetry) -> None:
        for count in itertools.count():
            async with telemetry.session(session_id=f"{self._orders.name}.{count}") as session:
                self._sessions.append(session)
                numbers = map(str, itertools.count())
                for _ in range(self._random.choice([1, 10, 50])):
                    for _ in range(self._random.choice([1, 1, 30])):
                        await session.send(trimaran.Command(command_name=next(numbers)))
                    if self._random.random() < 0.3:
                        await session.flush(timeout=self._random.choice([0.001, 0.1]))
                    await trio.sleep(self._random.choice(PAUSES))


def _drop_line(*_arguments: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    structlog.configure(processors=[_drop_line])
    os.environ["NO_PROXY"] = "*"
    be_patient()
    given = msgspec.json.decode(sys.argv[1], type=SteadyOrders)
    print(msgspec.json.encode(trio.run(SteadyAgent(given).run)).decode())
