"""A process that delivers what another left: ``python -m bench.leftovers URL COUNT``.

In: how many events there are to be. Out: a JSON line with the seconds of processor time (of
all threads) and of wall time from opening the telemetry to the last answer.
Does not know: the server, which runs in a process of its own.

The other one, whose endpoint never answers, comes first, off the clock. What it left is
posted once before as well, so that the import of the HTTP library is not on the clock.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import tempfile
import time

import msgspec
import trio

import trimaran
from bench.events import mix
from bench.send import Spent
from trimaran.testing import ScriptedTransport

__all__: list[str] = []


async def leave(environ: dict[str, str], settings: trimaran.Settings, count: int) -> None:
    """Put *count* events into the spool."""
    settings = msgspec.structs.replace(settings, drain_timeout=0)
    transport = ScriptedTransport([math.inf])
    async with (
        trimaran.open_telemetry(
            "bench", environ=environ, settings=settings, transport=transport
        ) as telemetry,
        telemetry.session(announce=False) as session,
    ):
        for event in mix(count):
            await session.send(event)
        while session.statistics().spooled < count:
            await session.flush(timeout=0.1)


async def deliver(environ: dict[str, str], settings: trimaran.Settings) -> int:
    """Deliver all that is in the spool; how many events that were."""
    settings = msgspec.structs.replace(settings, drain_timeout=60)
    async with trimaran.open_telemetry("bench", environ=environ, settings=settings) as telemetry:
        pass
    return telemetry.leftovers().delivered


async def main(url: str, count: int) -> Spent:
    """Leave a few events and deliver them, then all."""
    environ = {"BENCH_TELEMETRY_URL": url}
    with tempfile.TemporaryDirectory() as directory:
        settings = trimaran.Settings(spool=trimaran.Spool(directory=directory))
        await leave(environ, settings, 1)
        await deliver(environ, settings)
        await leave(environ, settings, count)
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        delivered = await deliver(environ, settings)
        spent = Spent(time.process_time() - cpu, time.perf_counter() - wall)
    assert delivered == count, delivered
    return spent


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "*"
    print(msgspec.json.encode(trio.run(main, sys.argv[1], int(sys.argv[2]))).decode())
