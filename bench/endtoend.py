"""What an event costs from ``session.send`` to the answer: microseconds of its process.

In: how many. Out: rows.
Does not know: how sending is done: :mod:`bench.send` does, in a process for each round.
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

__all__ = ["end_to_end"]

_MOST_FLOORS = 2.0


async def end_to_end(kind: str, *, rounds: int, events: int) -> list[Row]:
    """Send *events* to a server of that kind, by hand and through a session in turn."""
    async with server(kind) as url:
        spent = await samples(
            {way: partial(_send, way, url, events) for way in ("floor", "trimaran")},
            rounds=rounds,
        )
    group = f"end to end, to {'a bare server' if kind == 'sink' else 'our receiver'}"
    return [
        Row(
            group=group,
            name=f"{name} an event",
            unit="us",
            value=median(map(seconds, spent["trimaran"])) / events * 1e6,
            floor=median(map(seconds, spent["floor"])) / events * 1e6,
            aim=aim if kind == "sink" else None,
        )
        for name, seconds, aim in (
            ("processor time", _cpu, Aim("ratio", _MOST_FLOORS)),
            ("wall time", _wall, None),
        )
    ]


def _cpu(spent: Spent) -> float:
    return spent.cpu


def _wall(spent: Spent) -> float:
    return spent.wall


async def _send(way: str, url: str, events: int) -> Spent:
    command = [sys.executable, "-m", "bench.send", way, url, str(events)]
    done = await trio.run_process(command, capture_stdout=True)
    return msgspec.json.decode(done.stdout, type=Spent)
