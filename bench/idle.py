"""What sessions cost that do nothing: bytes of resident memory.

In: how many sessions. Out: rows.
Does not know: what takes the memory.

Each number of sessions has a process of its own, ``python -m bench.idle COUNT URL``. The
baseline is such a process that has imported trimaran, and opens no telemetry; so the
first session pays for the HTTP library and the connections. A session is idle when its
``session_start`` has been answered.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

import trimaran
from bench.rounds import medians
from bench.rows import Aim, Row
from bench.serve import server

__all__ = ["idle"]

_MEGABYTE = 1_000_000
_COUNTS = (1, 100, 1000)
_AIMS = {1000: Aim("value", 50.0)}


async def idle(*, rounds: int) -> list[Row]:
    """Resident megabytes of 1, 100 and 1,000 idle sessions over the baseline."""
    async with server("sink") as url:
        resident = await medians(
            {str(count): partial(_resident_with, count, url) for count in (0, *_COUNTS)},
            rounds=rounds,
        )
    return [
        Row(
            group="memory of idle sessions, over none",
            name=f"{count:,} session{'s' if count > 1 else ''}",
            unit="MB",
            value=(resident[str(count)] - resident["0"]) / _MEGABYTE,
            aim=_AIMS.get(count),
        )
        for count in _COUNTS
    ]


async def _resident_with(count: int, url: str) -> float:
    command = [sys.executable, "-m", "bench.idle", str(count), url]
    return float((await trio.run_process(command, capture_stdout=True)).stdout)


async def _hold(count: int, url: str) -> int:
    """The process's resident bytes while *count* sessions are open and idle."""
    async with AsyncExitStack() as stack:
        if count:
            environ = {"BENCH_TELEMETRY_URL": url}
            telemetry = await stack.enter_async_context(
                trimaran.open_telemetry("bench", environ=environ)
            )
            sessions = [
                await stack.enter_async_context(telemetry.session(project_id="p"))
                for _ in range(count)
            ]
            for session in sessions:
                await session.flush(timeout=math.inf)
        gc.collect()
        return _resident()


def _resident() -> int:
    """Bytes of this process in memory; the most there have been, where /proc is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "*"
    print(trio.run(_hold, int(sys.argv[1]), sys.argv[2]))
