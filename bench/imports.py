"""What ``import trimaran`` costs a program that uses trio anyway: milliseconds.

In: how often. Out: a row.
Does not know: what is imported.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from bench.rounds import medians
from bench.rows import Aim, Row

__all__ = ["imports"]

_PROGRAM = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


async def imports(*, rounds: int) -> list[Row]:
    """Time both imports, each in a fresh process, compiled before."""
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
    """Milliseconds."""
    command = [sys.executable, "-c", _PROGRAM.format(module)]
    return float((await trio.run_process(command, capture_stdout=True)).stdout) * 1000
