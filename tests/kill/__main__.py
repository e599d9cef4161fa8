"""``python -m kill [COUNT] [SEED] [--wire WIRE]``: kill agents so many times, and see what is left.

In: how often, and the first seed. Out: what went wrong, and numbers.
Does not know: how it is done.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import get_args

import trio

from .agent import Wire
from .worlds import World, faults_of, run_worlds

MOST_WORLDS = 50
"""That share a receiver; in each, somebody is killed about three times."""


def main() -> int:
    """Parse the arguments, kill until it is enough."""
    parser = argparse.ArgumentParser(prog="python -m kill", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=300, help="default: %(default)s")
    parser.add_argument("seed", type=int, nargs="?", default=int.from_bytes(os.urandom(4)))
    parser.add_argument(
        "--wire", choices=get_args(Wire), default="origin", help="default: %(default)s"
    )
    chosen = parser.parse_args()
    print(f"from seed {chosen.seed} on")
    begun = time.monotonic()
    worlds: list[World] = []
    faults: list[str] = []
    arrived = 0
    while (missing := chosen.count - sum(world.kills for world in worlds)) > 0:
        first = chosen.seed + len(worlds)
        more, stored = trio.run(
            run_worlds, range(first, first + min(missing // 3 + 1, MOST_WORLDS)), chosen.wire
        )
        worlds += more
        arrived += sum(map(len, stored.values()))
        for world in more:
            faults += faults_of(world, stored)
    for fault in faults:
        print(fault)
    print(
        f"{sum(world.kills for world in worlds)} kills in {len(worlds)} worlds,"
        f" {time.monotonic() - begun:.0f} s;"
        f" {sum(sum(world.claims.values()) for world in worlds)} events called safe,"
        f" {arrived} arrived,"
        f" {sum(world.survivor.delivered for world in worlds if world.survivor)} of them by the last;"
        f" {sum(len(world.in_doubt) for world in worlds)} lives lost something that they had not called safe;"
        f" {len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
