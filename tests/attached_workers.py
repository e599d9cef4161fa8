"""What children of ``multiprocessing`` run in tests: a module that they can import."""

from __future__ import annotations

import os
from collections.abc import Mapping

import trimaran


def say(environ: Mapping[str, str], name: str, times: int) -> str:
    """Say *name* so many times in the parent's session; gives the session's id."""
    with trimaran.attach_in_thread(environ=environ) as session:
        for _ in range(times):
            session.command(name)
        with trimaran.current_session().tool_call(name):
            pass
        return session.id


def say_and_die(environ: Mapping[str, str], name: str, times: int) -> None:
    """End without any of the interpreter's own ways, but after the block."""
    say(environ, name, times)
    os._exit(0)


def say_task(task: tuple[Mapping[str, str], str, int]) -> str:
    """:func:`say`, for a pool."""
    return say(*task)


def attach_for_good(environ: Mapping[str, str]) -> None:
    """Take part from now on, in a block that is never left: what a pool's initializer can do."""
    session = trimaran.attach_in_thread(environ=environ)
    session.__enter__()
    _attached.append(session)


def say_in_passing(name: str) -> None:
    """Say *name* in the session that :func:`attach_for_good` takes part in."""
    trimaran.current_session().command(name)


_attached: list[object] = []
"""Kept, since a block that nobody has is left at once."""
