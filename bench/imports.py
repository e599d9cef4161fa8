"""What ``import trimaran`` costs a program that uses trio anyway: milliseconds.

In: how often. Out: a row.
Does not know: what is imported.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import trio

from bench.rounds import medians
from bench.rows import Aim, Row

__all__ = ["imports"]

_KEEPS_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
"""The variable that has every process compile everything anew."""

_PROGRAM = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


async def imports(*, rounds: int) -> list[Row]:
    """Time both imports, each in a fresh process, compiled before."""
    await _import("trimaran")  # which compiles what is not
    took = await medians(
        {module: partial(_import, module) for module in ("trio", "trimaran")}, rounds=rounds
    )
    return [
        Row(
            group="start",
            name="import trimaran, floor: import trio",
            unit="ms",
            value=took["trimaran"],
            floor=took["trio"],
            aim=Aim("excess", 30.0),
        )
    ]


async def _import(module: str) -> float:
    """Milliseconds, with bytecode kept, as it is for what pip has installed."""
    command = [sys.executable, "-c", _PROGRAM.format(module)]
    environ = {name: value for name, value in os.environ.items() if name != _KEEPS_NO_BYTECODE}
    done = await trio.run_process(command, capture_stdout=True, env=environ)
    return float(done.stdout) * 1000
