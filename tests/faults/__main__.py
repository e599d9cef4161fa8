"""``python -m faults``: measure everything, print the tables, write them into the page.

In: which page. Out: tables, on standard output and in it.
Does not know: what should come out; that is for the tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from .cases import CASES
from .ends import TRIALS, run_ends
from .matrix import run_cases
from .tables import ends_table, faults_table, with_table
from .timing import punctual

PAGE = Path(__file__).parents[2] / "docs" / "delivery.md"


def main() -> None:
    """Parse the arguments, run."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: %(default)s")
    page: Path = parser.parse_args().page
    measured = {
        "faults": faults_table(trio.run(punctual, run_cases, CASES).values()),
        "ends": ends_table(trio.run(punctual, run_ends, TRIALS)),
    }
    text = page.read_text()
    for name, table in measured.items():
        print(table)
        text = with_table(text, name, table)
    page.write_text(text)


if __name__ == "__main__":
    main()
