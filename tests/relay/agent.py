"""An agent with a relay: ``python -m relay.agent ORDERS``.

In: orders, as JSON. Out: what became of its events, and how long its end took, as JSON.
Does not know: the endpoint, other agents.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import msgspec
import structlog
import trio

import trimaran
from patience import PATIENCE

__all__ = ["Ended", "Orders", "be_patient"]


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is to do."""

    url: str
    directory: str
    name: str = "a"
    """Of its session."""
    events: int = 5
    idle_timeout: float = 30.0
    drain_timeout: float = PATIENCE
    request_timeout: float = 10.0
    email: str = ""
    token: str = ""
    """Of an account, if it has one."""
    otlp: str = ""
    """Where spans go beside the endpoint, if anywhere."""
    headers: dict[str, str] = {}
    """Of OTLP."""
    is_watched: bool = False
    """Whether it says that the relay has it, and stays until its standard input ends."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended."""

    leaving: float
    """Seconds from its last event to the end of its telemetry."""
    tracked: int
    delivered: int
    pending: int
    handed_over: int
    dropped: dict[str, int]
    problems: list[str]


async def main(orders: Orders) -> Ended:
    """One session."""
    problems: list[trimaran.Problem] = []
    account = (
        trimaran.StaticAccount(orders.url, orders.token, email=orders.email)
        if orders.token
        else None
    )
    async with trimaran.open_telemetry(
        "relayed",
        account=account,
        environ={"RELAYED_TELEMETRY_URL": orders.url},
        settings=trimaran.Settings(
            relay=trimaran.Relay(directory=orders.directory, idle_timeout=orders.idle_timeout),
            drain_timeout=orders.drain_timeout,
            request_timeout=orders.request_timeout,
        ),
        destinations=destinations_of(orders),
        on_problem=problems.append,
    ) as telemetry:
        async with telemetry.session(session_id=orders.name) as session:
            for number in range(orders.events):
                session.command(str(number))
            # The relay is there and knows us, as it does of an agent that did some work.
            await session.flush(timeout=orders.drain_timeout)
            if orders.is_watched:
                print("still there", flush=True)
                await trio.to_thread.run_sync(sys.stdin.buffer.read)
            session.command("last")
            left_at = time.perf_counter()
    leaving = time.perf_counter() - left_at
    books = session.statistics()
    return Ended(
        leaving=leaving,
        tracked=books.tracked,
        delivered=books.delivered,
        pending=books.pending,
        handed_over=books.handed_over,
        dropped=dict(books.dropped),
        problems=[f"{problem.name}: {dict(problem.facts)}" for problem in problems],
    )


def destinations_of(orders: Orders) -> list[trimaran.Destination]:
    """Where its events go beside the endpoint."""
    if not orders.otlp:
        return []
    from trimaran.otlp import OtlpSettings, OtlpTransport  # most agents need none

    settings = OtlpSettings.from_environ({}, endpoint=orders.otlp, headers=orders.headers)
    return [trimaran.Destination(name="traces", transport=OtlpTransport(settings))]


def be_patient() -> None:
    """Wait for a relay for as long as it takes, where an agent would send for itself."""
    from trimaran._relay import client, launch  # not before it is needed, as in the library

    client.PATIENCE = launch._PATIENCE = PATIENCE


def _drop_line(*_arguments: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    structlog.configure(processors=[_drop_line])
    os.environ["NO_PROXY"] = "*"
    be_patient()
    given = msgspec.json.decode(sys.argv[1], type=Orders)
    print(msgspec.json.encode(trio.run(main, given)).decode())
