"""How long a test on a real clock waits, and what its programs leave out of the measurement."""

from __future__ import annotations

from collections.abc import Mapping

PATIENCE = 60.0
"""Seconds after which what should long have happened is taken to hang.

It bounds what processes, threads, sockets and signals do, on the slowest machine that runs the
tests: two busy cores, measured. What takes longer hangs; no test waits so long for what is well.
"""

_MEASURING = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""What makes a child process measure itself; the first is coverage's own, the second its users'."""


def unmeasured(environ: Mapping[str, str]) -> dict[str, str]:
    """*environ* for a program that forks while its threads run: coverage does not measure it.

    A fork copies the locks as they are, and coverage's data may be locked by another thread at that
    moment: the child then waits for it for ever.
    """
    return {name: value for name, value in environ.items() if name not in _MEASURING}
