"""An agent with blocks inside each other, as a process of its own: ``python nested.py HOW ...``.

In: how it comes by its session, and where it goes. Out: what it recorded, in the session.
Does not know: who looks at it.
"""

from __future__ import annotations

import os
import signal
import sys

import trio

import trimaran
from trimaran.otlp import OtlpSettings, OtlpTransport

SETTINGS = trimaran.Settings(drain_timeout=60.0)


def record(session: trimaran.Session | trimaran.ThreadSession, name: str) -> None:
    """Blocks of every kind, and what happens in them; their names begin with *name*."""
    session.command(f"{name} first")
    with session.generation(model_id=f"{name} model") as generation:
        session.command(f"{name} asked")
        with session.tool_call(f"{name} tool"):
            with session.bridge_call(f"{name} method"):
                session.error(f"{name} wrong")
            session.command(f"{name} went on")
        generation.finish("stop", tokens=trimaran.Tokens(input=9, output=1), cost=0.5)
    session.command(f"{name} last")


def tree_of(name: str, above: str = "") -> dict[str, str]:
    """What :func:`record` records: the name of each span with that of the one above it."""
    return {
        f"command {name} first": above,
        f"chat {name} model": above,
        f"command {name} asked": f"chat {name} model",
        f"execute_tool {name} tool": f"chat {name} model",
        f"{name} method": f"execute_tool {name} tool",
        f"error {name} wrong": f"{name} method",
        f"command {name} went on": f"execute_tool {name} tool",
        f"command {name} last": above,
    }


async def take_part(name: str) -> None:
    """A child, which is trio."""
    async with trimaran.attach(settings=SETTINGS) as session:
        record(session, name)


def take_part_plainly(name: str) -> None:
    """A child that is not."""
    with trimaran.attach_in_thread(settings=SETTINGS) as session:
        record(session, name)


async def crash(directory: str, url: str, session_id: str) -> None:
    """An agent that is killed when what it recorded is on disk, and nowhere else."""
    transport = OtlpTransport(OtlpSettings.from_environ({}, endpoint=url))
    settings = trimaran.Settings(spool=trimaran.Spool(directory=directory))
    async with (
        trimaran.open_telemetry("test", transport=transport, settings=settings) as telemetry,
        telemetry.session(session_id=session_id, agent="build") as session,
    ):
        record(session, "lost")
        await session.flush(timeout=0.1)
        while session.statistics().spooled < session.statistics().tracked:  # noqa: ASYNC110
            await trio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    how, *words = sys.argv[1:]
    if how in {"child", "plainly"}:
        [called] = words
        if how == "child":
            trio.run(take_part, called)
        else:
            take_part_plainly(called)
    else:
        directory, url, session_id = words
        trio.run(crash, directory, url, session_id)
