"""An agent whose process ends, as a program: ``python -m faults.ending_agent ORDERS``.

In: orders, as JSON; the endpoint's URL, in its environment; a signal, perhaps. Out: a line
of JSON when it is ready to end, one when it begins to leave the block, and one with its books
when it is out of it, if it gets there.
Does not know: what the endpoint does, who sends a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec
import trio

import trimaran
from patience import PATIENCE

__all__ = ["DRAIN_TIMEOUT", "HOW", "PENDING", "EndingOrders"]

DRAIN_TIMEOUT = 1.0
PENDING = 5
"""Events that nothing has asked to be sent when the end comes."""


class EndingOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is to do."""

    how: str
    """The name of one of the functions below."""
    with_recipe: bool = False
    until: str
    """Which of its statistics has to count something before it is ready."""
    spool: str | None = None
    """The directory of its spool; None has none."""
    drain_timeout: float = DRAIN_TIMEOUT


async def waits(_scope: trio.CancelScope) -> None:
    """For a signal."""
    await trio.sleep_forever()


async def returns(_scope: trio.CancelScope) -> None:
    """The end of the block, as it should be."""


async def fails(_scope: trio.CancelScope) -> None:
    """An exception that nobody handles."""
    raise ValueError("nobody handles this")


async def leaves(_scope: trio.CancelScope) -> None:
    """What many a program's own exit command does."""
    sys.exit(3)


async def is_out_of_time(scope: trio.CancelScope) -> None:
    """The scope around everything has a deadline, and it is now."""
    scope.deadline = trio.current_time()
    await trio.sleep_forever()


async def vanishes(_scope: trio.CancelScope) -> None:
    """No cleanup of any kind is done."""
    os._exit(4)


HOW: dict[str, Callable[[trio.CancelScope], Awaitable[None]]] = {
    end.__name__: end for end in (waits, returns, fails, leaves, is_out_of_time, vanishes)
}


def say(**what: object) -> None:
    """Tell who started this, with the time by a clock that all processes share."""
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)


async def cancel_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """The recipe of the tutorial."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def main(orders: EndingOrders) -> None:
    """Work until it ends."""
    if not orders.with_recipe:
        with trio.CancelScope() as scope:
            await work(orders, scope)
        return
    async with trio.open_nursery() as nursery:
        await nursery.start(cancel_on_signal, nursery.cancel_scope)
        await work(orders, nursery.cancel_scope)


async def work(orders: EndingOrders, scope: trio.CancelScope) -> None:
    """Have a session with something pending, and end."""
    settings = trimaran.Settings(
        drain_timeout=orders.drain_timeout,
        request_timeout=PATIENCE,  # for which nobody waits who leaves
        spool=False if orders.spool is None else trimaran.Spool(directory=orders.spool),
    )
    opened: list[trimaran.Session] = []
    try:
        async with (
            trimaran.open_telemetry("faults", settings=settings) as telemetry,
            telemetry.session(agent="ending") as session,
        ):
            opened.append(session)
            with trio.move_on_after(PATIENCE):
                while not getattr(session.statistics(), orders.until):  # noqa: ASYNC110 - no event
                    await trio.sleep(0.01)
            for number in range(PENDING):
                session.command(str(number))
            try:
                say(ready=True)
                await HOW[orders.how](scope)
            finally:
                say(leaving=True)
    finally:
        books = opened[0].statistics()
        say(
            tracked=books.tracked,
            delivered=books.delivered,
            pending=books.pending,
            spooled=books.spooled,
            dropped=dict(books.dropped),
        )


if __name__ == "__main__":
    trio.run(main, msgspec.json.decode(sys.argv[1], type=EndingOrders))
