"""One agent, as a program: ``python -m faults.agent ORDERS``, with the endpoint's URL in its
environment.

In: orders, as JSON. Out: a line of JSON with its books and when it left.
Does not know: what the endpoint does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Literal, TypeAlias

import msgspec
import trio

import trimaran
import trimaran._transport.http  # the first attempt is not to wait for it
from patience import PATIENCE
from trimaran.langfuse import langfuse_transport
from trimaran.otlp import OtlpTransport

__all__ = ["EVENTS", "Orders", "Report", "Wire"]

Wire: TypeAlias = Literal["origin", "otlp", "langfuse"]
"""How batches go out."""

APP = "faults"
EVENTS = 12
"""A session's start and end, and five events in each of two batches."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is to do."""

    settings: trimaran.Settings
    tries: int
    """Attempts that have begun, at least, when it goes on."""
    patience: float
    """Seconds that it waits for the first batch from then on."""
    tokens: list[str] | None = None
    """The tokens of its account, one more at each refresh; None has no account."""
    large: int = 0
    """Characters in a further event of the second batch."""
    wire: Wire = "origin"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it."""

    tracked: int
    delivered: int
    pending: int
    dropped: dict[str, int]
    attempts: int
    leaving: float
    """When it began to leave the block, by a clock that all processes share."""
    left: float
    """When it was out of it."""


class Login:
    """An account whose tokens run out."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = iter(tokens)

    async def account(self) -> trimaran.Account:
        """Always there."""
        return trimaran.Account(os.environ[f"{APP.upper()}_TELEMETRY_URL"], "ann@example.com")

    async def token(self, *, refresh: bool) -> str | None:
        """The next one."""
        return next(self._tokens, None)


def transport_over(wire: Wire) -> trimaran.Transport | None:
    """What a host gives to a telemetry, by the variables of that wire."""
    match wire:
        case "origin":
            return None
        case "otlp":
            return OtlpTransport()
        case "langfuse":
            return langfuse_transport()


async def work(orders: Orders) -> Report:
    """Track two batches, leave."""
    account = None if orders.tokens is None else Login(orders.tokens)
    leaving = 0.0
    transport = transport_over(orders.wire)
    async with trimaran.open_telemetry(
        APP, account=account, settings=orders.settings, transport=transport
    ) as telemetry:
        async with telemetry.session(project_id="p", agent="faults") as session:
            for number in range(5):
                session.command(f"first {number}")
            with trio.move_on_after(PATIENCE):
                while session.statistics().attempts < orders.tries:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.01)
            await session.flush(timeout=orders.patience)
            for number in range(5):
                session.command(f"second {number}")
            if orders.large:
                session.command("x " * (orders.large // 2))
        leaving = time.monotonic()
    left = time.monotonic()
    if transport is not None:
        await transport.aclose()
    books = session.statistics()
    return Report(
        tracked=books.tracked,
        delivered=books.delivered,
        pending=books.pending,
        dropped=dict(books.dropped),
        attempts=books.attempts,
        leaving=leaving,
        left=left,
    )


if __name__ == "__main__":
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    print(json.dumps(msgspec.to_builtins(trio.run(work, orders))), flush=True)
