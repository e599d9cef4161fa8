"""A process that sends: ``python -m bench.send WAY URL COUNT``.

In: the events of the mix, all made before the clock starts.
Out: a JSON line with the seconds of processor time (of all threads) and of wall time
from the first event to the last answer.
Does not know: the server, which runs in a process of its own.

``trimaran``: each event through ``session.send``, then a flush. ``kill`` and
``power_loss``: the same with a spool that survives this. ``floor``: the same events,
already stamped, encoded 200 at a time into a body of the same shape, and one bare post for
each. All have posted once before, so that neither the import of the HTTP library nor the
connection is on the clock.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Literal

import httpx
import msgspec
import trio

import trimaran
from bench.events import mix

__all__ = ["WAYS", "Spent"]

INGEST_PATH = "/api/observability/ingest"
BATCH = 200
"""Events; what Trimaran puts into a batch by default."""


class Spent(msgspec.Struct, frozen=True):
    """Seconds."""

    cpu: float
    wall: float


class _Body(msgspec.Struct):
    session_id: str
    cli_version: str
    user_email: str
    project_id: str
    timestamp: int
    events: list[trimaran.Event]


async def through_trimaran(
    url: str, events: list[trimaran.Event], settings: trimaran.Settings | None = None
) -> Spent:
    """Send *events* through a session."""
    environ = {"BENCH_TELEMETRY_URL": url}
    async with (
        trimaran.open_telemetry(
            "bench", version="1.0", environ=environ, settings=settings
        ) as telemetry,
        telemetry.session(project_id="p") as session,
    ):

        async def send() -> None:
            for event in events:
                await session.send(event)
            await session.flush(timeout=math.inf)

        await session.flush(timeout=math.inf)
        spent = await _timed(send)
        assert session.statistics().delivered == 1 + len(events), session
    return spent


async def with_spool(
    survives: Literal["kill", "power_loss"], url: str, events: list[trimaran.Event]
) -> Spent:
    """Send *events* through a session, and through a spool of its own."""
    with tempfile.TemporaryDirectory() as directory:
        spool = trimaran.Spool(directory=directory, survives=survives)
        return await through_trimaran(url, events, trimaran.Settings(spool=spool))


async def by_hand(url: str, events: list[trimaran.Event]) -> Spent:
    """Post *events* as bare batches."""
    now = int(time.time() * 1000)
    stamped = [
        msgspec.structs.replace(event, timestamp=now, session_id="s" * 32) for event in events
    ]
    encode = msgspec.json.Encoder().encode
    async with httpx.AsyncClient() as client:

        async def post(events: list[trimaran.Event]) -> None:
            answer = await client.post(
                url + INGEST_PATH,
                content=encode(_Body("s" * 32, "1.0", "", "p", now, events)),
                headers={"content-type": "application/json"},
            )
            answer.raise_for_status()

        async def send() -> None:
            for start in range(0, len(stamped), BATCH):
                await post(stamped[start : start + BATCH])

        await post([])
        return await _timed(send)


async def _timed(work: Callable[[], Awaitable[None]]) -> Spent:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


WAYS: Mapping[str, Callable[[str, list[trimaran.Event]], Awaitable[Spent]]] = {
    "trimaran": through_trimaran,
    "kill": partial(with_spool, "kill"),
    "power_loss": partial(with_spool, "power_loss"),
    "floor": by_hand,
}

if __name__ == "__main__":
    way, url, count = sys.argv[1:]
    os.environ["NO_PROXY"] = "*"
    print(msgspec.json.encode(trio.run(WAYS[way], url, mix(int(count)))).decode())
