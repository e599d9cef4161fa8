"""``python -m faults``: measure everything, print the tables, write them into the pages.

In: where the pages are. Out: tables, on standard output and in them.
Does not know: what should come out; that is for the tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from .cases import CASES
from .ends import TRIALS, run_ends
from .matrix import run_cases
from .otlp_cases import OTLP_CASES
from .tables import ends_table, faults_table, with_table
from .timing import punctual

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Parse the arguments, run."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="default: %(default)s")
    docs: Path = parser.parse_args().docs
    measured = {
        ("delivery.md", "faults"): faults_table(trio.run(punctual, run_cases, CASES).values()),
        ("delivery.md", "ends"): ends_table(trio.run(punctual, run_ends, TRIALS)),
        ("otlp.md", "faults"): faults_table(trio.run(punctual, run_cases, OTLP_CASES).values()),
    }
    for (page, name), table in measured.items():
        print(table)
        (docs / page).write_text(with_table((docs / page).read_text(), name, table))


if __name__ == "__main__":
    main()
