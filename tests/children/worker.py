"""What a child process does: it takes part in the session, and ends in one of several ways.

In: the environment that its parent made, a name, a way to end. Out: events with running
numbers; in a file of its own, how many of them the parent has acknowledged.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import trio

import trimaran

EVENTS = 1000
LONG = 60.0
"""Seconds; a machine that does other things as well takes its time."""
COST = 0.5
"""Of the one model call of each child that ends in order."""

SETTINGS = trimaran.Settings(drain_timeout=LONG)


class Crash(Exception):
    """The child's own fault."""


def note(directory: str, name: str, acknowledged: int) -> None:
    """Say for certain that so many of the first events were acknowledged."""
    path = Path(directory, name)
    part = path.with_suffix(".part")
    part.write_text(str(acknowledged))
    part.replace(path)


def track(session: trimaran.Session | trimaran.ThreadSession, name: str, number: int) -> None:
    """The event with this number."""
    session.track(trimaran.Command(command_name=name, message_id=str(number)))


async def live(environ: dict[str, str], directory: str, name: str, end: str) -> None:
    """A child that is trio."""
    async with trimaran.attach(environ=environ, settings=SETTINGS) as session:
        for number in range(EVENTS):
            track(session, name, number)
            if number % 250 == 100:
                if await session.flush(timeout=LONG):
                    note(directory, name, number + 1)
                if end == "kill" and number > EVENTS // 2:
                    for more in range(number + 1, EVENTS):
                        track(session, name, more)
                    await trio.sleep(0.001 * (os.getpid() % 7))
                    os.kill(os.getpid(), signal.SIGKILL)
                if end == "crash" and number > EVENTS // 2:
                    raise Crash
        with session.generation() as generation:
            generation.finish("stop", cost=COST)
    note(directory, name, EVENTS)


def live_plainly(environ: dict[str, str], directory: str, name: str, end: str) -> str:
    """A child that is not."""
    with trimaran.attach_in_thread(environ=environ, settings=SETTINGS) as session:
        for number in range(EVENTS):
            track(session, name, number)
            if number % 250 == 100:
                if session.flush(timeout=LONG):
                    note(directory, name, number + 1)
                if end == "kill" and number > EVENTS // 2:
                    for more in range(number + 1, EVENTS):
                        track(session, name, more)
                    time.sleep(0.001 * (os.getpid() % 7))
                    os.kill(os.getpid(), signal.SIGKILL)
                if end == "crash" and number > EVENTS // 2:
                    raise Crash
        with session.generation() as generation:
            generation.finish("stop", cost=COST)
    note(directory, name, EVENTS)
    return name


if __name__ == "__main__":
    _, *arguments = sys.argv
    notes, called, ends = arguments
    trio.run(live, dict(os.environ), notes, called, ends)
