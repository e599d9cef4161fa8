"""How long a test on a real clock waits, and how it lives with forks."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial

import trio

PATIENCE = 60.0
"""Seconds after which what should long have happened is taken to hang.

It bounds what processes, threads, sockets and signals do, on the slowest machine that runs the
tests: two busy cores, measured. What takes longer hangs; no test waits so long for what is well.
"""

LATENESS = 5.0
"""Seconds by which such a machine may miss a deadline. Whoever has none waits for much longer
in these tests: for an endpoint or a hook that never answers.
"""

_MEASURING = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""What makes a child process measure itself; the first is coverage's own, the second its users'."""


def unmeasured(environ: Mapping[str, str]) -> dict[str, str]:
    """*environ* for a program that forks while its threads run: coverage does not measure it.

    A fork copies the locks as they are, and coverage's data may be locked by another thread at that
    moment: the child then waits for it for ever.
    """
    return {name: value for name, value in environ.items() if name not in _MEASURING}


@contextmanager
def untraced() -> Generator[None]:
    """Without a tracer, which may hold a lock of its own where it is interrupted; coverage's does.

    What is forked in here has none either.
    """
    ours, theirs = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(theirs)
        sys.settrace(ours)


async def status_of(child: int) -> int:
    """The exit status of a forked child, which is killed if it hangs."""
    wait = partial(os.waitid, os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with trio.move_on_after(PATIENCE) as waiting:
        await trio.to_thread.run_sync(wait, abandon_on_cancel=True)
    if waiting.cancelled_caught:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222 - it is over
