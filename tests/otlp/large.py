"""A day's work of an agent: a long session, many at once, sub-agents, child processes.

In: a telemetry. Out: how many events that were.
Does not know: where they go.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

import trimaran
from otlp import nested
from patience import PATIENCE

__all__ = ["CHILDREN", "EVENTS_OF_MANY", "LONG", "MANY", "NAMES_OF_CHILDREN", "large", "names_of"]

LONG = 10_000
"""Events of the long session, its start and end left out."""
MANY = 200
"""Sessions at once."""
EVENTS_OF_MANY = 8
"""Of each of them."""
CHILDREN = 4
"""Child processes, every other one of which is not trio."""
NAMES_OF_CHILDREN = [f"child{number}" for number in range(CHILDREN)]
SUBS = 3
"""Sub-agents."""


def names_of(prefix: str) -> list[str]:
    """The ids of all sessions."""
    many = [f"{prefix}-{number}" for number in range(MANY)]
    subs = [f"{prefix}-sub{number}" for number in range(SUBS)]
    return [f"{prefix}-long", *many, f"{prefix}-family", *subs]


async def large(telemetry: trimaran.Telemetry, prefix: str) -> None:
    """Have all of it at the same time; the ids of the sessions begin with *prefix*."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_be_long, telemetry, prefix)
        nursery.start_soon(_have_family, telemetry, prefix)
        for number in range(MANY):
            nursery.start_soon(_be_one_of_many, telemetry, f"{prefix}-{number}")


async def _be_long(telemetry: trimaran.Telemetry, prefix: str) -> None:
    async with telemetry.session(session_id=f"{prefix}-long", agent="build") as session:
        for number in range(LONG // 4):
            with session.generation(model_id="m") as generation:
                tokens = trimaran.Tokens(input=number, output=1, cache_read=7)
                generation.finish("stop", tokens=tokens)
                for _ in range(3):
                    await session.send(trimaran.ToolCall(tool_name="bash", duration_ms=number))


async def _be_one_of_many(telemetry: trimaran.Telemetry, name: str) -> None:
    async with telemetry.session(session_id=name, agent="build") as session:
        for _ in range((EVENTS_OF_MANY - 2) // 2):
            with session.generation(model_id="m"):
                await trio.lowlevel.checkpoint()
                with session.tool_call("bash"):
                    await trio.lowlevel.checkpoint()


async def _have_family(telemetry: trimaran.Telemetry, prefix: str) -> None:
    """Children take part in the session, sub-agents have one of their own."""
    async with (
        telemetry.session(session_id=f"{prefix}-family", agent="build") as session,
        trio.open_nursery() as nursery,
    ):
        with session.tool_call("outer"):
            environ = session.to_env()
        for number, name in enumerate(NAMES_OF_CHILDREN):
            how = "plainly" if number % 2 else "child"
            command = [sys.executable, nested.__file__, how, name]
            nursery.start_soon(partial(_run, command, environ))
        for number in range(SUBS):
            nursery.start_soon(_be_sub_agent, telemetry, f"{prefix}-sub{number}", session.id)


async def _run(command: list[str], environ: dict[str, str]) -> None:
    with trio.fail_after(PATIENCE):
        await trio.run_process(command, env=environ)


async def _be_sub_agent(telemetry: trimaran.Telemetry, name: str, parent: str) -> None:
    async with telemetry.session(
        session_id=name, agent="build", parent_session_id=parent
    ) as session:
        nested.record(session, "sub")
        await trio.lowlevel.checkpoint()
