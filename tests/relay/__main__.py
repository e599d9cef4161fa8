"""``python -m relay [COUNT] [SEED]``: kill relays so many times, and see what is lost.

In: how often, and the seed. Out: what went wrong, and numbers.
Does not know: how it is done.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from .kills import faults_of, kill_relays


def main() -> int:
    """Parse the arguments, kill until it is enough."""
    parser = argparse.ArgumentParser(prog="python -m relay", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=300, help="default: %(default)s")
    parser.add_argument("seed", type=int, nargs="?", default=int.from_bytes(os.urandom(4)))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        killed = trio.run(partial(kill_relays, chosen.seed, Path(folder), kills=chosen.count))
    faults = faults_of(killed)
    for fault in faults:
        print(fault)
    print(
        f"{killed.kills} kills, {time.monotonic() - begun:.0f} s;"
        f" {sum(len(said.safe) for said in killed.said)} sessions,"
        f" {sum(sum(said.safe.values()) for said in killed.said)} events called safe,"
        f" {sum(said.handed_over for said in killed.said)} of them handed over,"
        f" {sum(map(len, killed.stored.values()))} arrived;"
        f" {sum(bool(said.problems) for said in killed.said)} agents had to send for themselves;"
        f" {len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
