"""The demonstration's search: a tool that is a process of its own.

In: a pattern and files, on the command line. Out: the lines in which it is found, one line for
each file; and, in the session of the agent that started it, an event for each of them.
Does not know: who searches, and why.

It takes as long as Python's regular expressions do, which for some patterns is for ever: then
nobody can talk to it any more, and who waits for it has to kill it.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

import trimaran
from trimaran.cli._signals import Interrupt
from trimaran.cli.demo_child import run_child, say
from trimaran.cli.demo_report import Said, line_of

__all__ = ["hits", "main"]

LIFETIME = 30.0
"""Seconds that it lives at most, in case that nobody is left to kill it."""

MOST_CHARACTERS = 64 * 1024
"""Characters of a file that are searched."""


async def search(interrupt: Interrupt, pattern: str, files: Sequence[Path]) -> int:
    """Search one file after the other; hand over in between what there is to tell."""
    async with trimaran.attach() as session:
        with interrupt.ends():
            say(line_of(Said()))
            for number, file in enumerate(files):
                if number == (len(files) - 1) // 2:
                    await session.flush()
                try:
                    with session.bridge_call("re.search"):
                        found = hits(pattern, file)
                except (OSError, re.error) as error:
                    found = f"{file.name}: {error}"
                say(line_of(Said(text=found, tracked=session.statistics().tracked)))
                await trio.lowlevel.checkpoint()
    books = session.statistics()
    say(line_of(Said(tracked=books.tracked, delivered=books.delivered)))
    return interrupt.exit_status


def hits(pattern: str, file: Path) -> str:
    """The lines of *file* with *pattern* in them."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        lines = opened.read(MOST_CHARACTERS).splitlines()
    return "\n".join(
        f"{file.name}:{number}: {line.strip()}"
        for number, line in enumerate(lines, start=1)
        if re.search(pattern, line)
    )


def main() -> int:
    """Search for the first word of the command line in the files that the others name."""
    # The default action is the system's, which needs nothing of a Python that is stuck.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LIFETIME)
    pattern, *files = sys.argv[1:]
    return run_child(lambda interrupt: search(interrupt, pattern, [Path(file) for file in files]))


if __name__ == "__main__":
    sys.exit(main())
