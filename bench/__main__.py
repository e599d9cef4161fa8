"""``python -m bench``: measure everything, print a table.

In: how thorough. Out: rows on standard output, and in a file.
Does not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import trio

from bench.caller import caller
from bench.endtoend import end_to_end
from bench.idle import idle
from bench.imports import imports
from bench.otlp import otlp
from bench.outage import outage
from bench.process_channel import process_channel
from bench.relay import relay
from bench.rows import Row, table
from bench.serve import server
from bench.spooled import spooled

_PROFILE_LINES = 45


class _Effort(msgspec.Struct, frozen=True):
    """How much is measured; all but the sizes are rounds."""

    caller: int
    calls: int
    end_to_end: int
    events: int
    idle: int
    imports: int


_FULL = _Effort(caller=101, calls=2_000, end_to_end=5, events=100_000, idle=3, imports=21)
_QUICK = _Effort(caller=3, calls=500, end_to_end=1, events=5_000, idle=1, imports=1)


async def _measure(effort: _Effort) -> AsyncIterator[list[Row]]:
    """The groups of rows, one after the other: nothing else runs meanwhile."""
    yield await caller(rounds=effort.caller, calls=effort.calls)
    for kind in ("sink", "receiver"):
        yield await end_to_end(kind, rounds=effort.end_to_end, events=effort.events)
    yield await spooled(rounds=effort.end_to_end, events=effort.events)
    yield await process_channel(rounds=effort.end_to_end, values=effort.events // 2)
    yield await relay(rounds=effort.idle)
    yield await otlp(rounds=effort.end_to_end, events=effort.events // 5)
    yield await outage()
    yield await idle(rounds=effort.idle)
    yield await imports(rounds=effort.imports)


async def _run(effort: _Effort, file: Path | None) -> None:
    print(
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors; medians"
    )
    rows: list[Row] = []
    async for group in _measure(effort):
        print(f"\n{table(group)}", flush=True)
        rows += group
    if file is not None:
        known = [
            {**msgspec.to_builtins(row), "ratio": row.ratio, "is_met": row.is_met} for row in rows
        ]
        file.write_bytes(msgspec.json.format(msgspec.json.encode(known)))


async def _profile(events: int) -> None:
    """Print where the time of sending *events* goes, as cProfile sees it."""
    async with server("sink") as url:
        command = [sys.executable, "-m", "cProfile", "-s", "tottime"]
        command += ["-m", "bench.send", "trimaran", url, str(events)]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
    print(*done.stdout.decode().splitlines()[:_PROFILE_LINES], sep="\n")


def main() -> None:
    """Parse the arguments, run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: rough numbers, soon")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE too")
    parser.add_argument(
        "--profile", action="store_true", help="show instead where the time of sending goes"
    )
    chosen = parser.parse_args()
    effort = _QUICK if chosen.quick else _FULL
    if chosen.profile:
        trio.run(_profile, effort.events)
    else:
        trio.run(_run, effort, chosen.json)


main()
