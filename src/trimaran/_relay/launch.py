"""Starts a relay as a process that belongs to nobody.

In: orders. Out: a process that holds the relay's lock, or the reason why there is none.
Does not know: what is said to a relay. Blocking: call it from a thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trimaran._relay.orders import Orders, relay_environment, words_of
from trimaran._relay.place import RelayPlace
from trimaran._spool.values import SpoolError

__all__ = ["LaunchError", "NoInterpreterError", "launch"]

_PATIENCE = 20.0
"""Seconds for a process to get its lock; it takes some tenths of one."""

_WORD = b"python"

_DETACH = f"""
import os, sys
os.write(1, {_WORD!r})
os.fork() and os._exit(0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What a bare interpreter runs: it says that it is one; a child of its own becomes the relay,
and it ends. So the relay is nobody's child: no agent has to wait for it, and it has no terminal."""


class LaunchError(Exception):
    """There is no relay, and none can be started; the message says why."""


class NoInterpreterError(LaunchError):
    """What is called Python's executable is something else, which was started; once is enough."""


def launch(orders: Orders) -> bool:
    """Start a relay unless there is one, or somebody is just starting one.

    Whether it was started; unless it was killed since, it can be reached soon.

    Raises:
        LaunchError: it cannot be.
    """
    place = RelayPlace(Path(orders.directory))
    try:
        # One at a time: a process of Python for each of fifty agents would hold all of them up.
        turn = place.starting()
        if turn is None:
            return False
        try:
            if place.is_held():
                return False
            said = _start(orders)
            # One that says nothing and is not there was killed: that is no reason to give up.
            if said and not place.is_held():
                raise LaunchError(said)
        finally:
            turn.release(remove=True)
    except (OSError, SpoolError, subprocess.SubprocessError) as error:
        raise LaunchError(str(error)) from None
    return True


def _start(orders: Orders) -> str:
    """Start it, and wait until it has its lock or has ended; the last line that it said."""
    if getattr(sys, "frozen", False):
        # Its executable would be the agent's program, once more.
        raise LaunchError("this program is frozen, and has no interpreter to start one with")
    if not sys.executable or not hasattr(os, "fork"):
        raise LaunchError("this system or interpreter cannot start a process of its own kind")
    relay = [sys.executable, "-P", "-m", "trimaran._relay", *words_of(orders)]
    try:
        # Its standard output and error are open until it has its lock, or has ended.
        done = subprocess.run(  # noqa: S603 - our own interpreter, our own words
            [sys.executable, "-I", "-S", "-c", _DETACH, *relay],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env=relay_environment(os.environ),
            start_new_session=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        _require_word(error.stdout or b"")
        raise
    # What was killed had no time to say it.
    if done.returncode >= 0:
        _require_word(done.stdout)
    return done.stderr.decode(errors="replace").strip().rpartition("\n")[2]


def _require_word(said: bytes) -> None:
    """A program with Python inside may name itself as the executable, and know no such words."""
    if not said.startswith(_WORD):
        raise NoInterpreterError(f"{sys.executable} is no interpreter to start one with")
