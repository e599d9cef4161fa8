"""What the spool adds to an event, and how soon what is in it is delivered.

In: how many events. Out: rows.
Does not know: how sending is done: :mod:`bench.send` and :mod:`bench.leftovers` do, in a
process for each round.

The spool lies where temporary files do. What ``survives="power_loss"`` costs in wall time
is mostly what that disk takes to say that it has something.
"""

from __future__ import annotations

import sys
from functools import partial
from statistics import median

import msgspec
import trio

from bench.rounds import samples
from bench.rows import Aim, Row
from bench.send import Spent
from bench.serve import server

__all__ = ["spooled"]

_MOST_FLOORS = 1.5
_MODES = {"kill": Aim("ratio", _MOST_FLOORS), "power_loss": None}
LEFT = 100_000
"""Events that an earlier process left."""


async def spooled(*, rounds: int, events: int) -> list[Row]:
    """Send *events* without a spool and with one in turn; deliver what is left in one."""
    async with server("sink") as url:
        spent = await samples(
            {
                **{way: partial(_run, "send", way, url, events) for way in ("trimaran", *_MODES)},
                "leftovers": partial(_run, "leftovers", url, LEFT),
            },
            rounds=rounds,
        )
    cpu = {way: median(one.cpu for one in taken) for way, taken in spent.items()}
    wall = {way: median(one.wall for one in taken) for way, taken in spent.items()}
    rows: list[Row] = []
    for mode, aim in _MODES.items():
        for name, seconds, its_aim in (
            ("processor time", cpu, aim),
            ("wall time", wall, None),
        ):
            rows.append(
                Row(
                    group="with a spool, floor: without one",
                    name=f"{name} an event, survives {mode.replace('_', ' ')}",
                    unit="us",
                    value=seconds[mode] / events * 1e6,
                    floor=seconds["trimaran"] / events * 1e6,
                    aim=its_aim,
                )
            )
    rows += [
        Row(
            group=f"{LEFT:,} events that an earlier process left",
            name=f"{name} until they are delivered",
            unit="s",
            value=seconds["leftovers"],
        )
        for name, seconds in (("processor time", cpu), ("wall time", wall))
    ]
    return rows


async def _run(module: str, *arguments: str | int) -> Spent:
    command = [sys.executable, "-m", f"bench.{module}", *map(str, arguments)]
    done = await trio.run_process(command, capture_stdout=True)
    return msgspec.json.decode(done.stdout, type=Spent)
