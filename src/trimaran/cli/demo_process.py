"""An agent of the demonstration in a process of its own; both ends of it.

In: an assignment, which becomes JSON on a command line; where events go, in the environment.
Out: how far the agent is, again and again, in lines for who started it.
Does not know: what the agent does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

import msgspec
import trio

from trimaran._decision import switch_name
from trimaran._environment import without_parent
from trimaran._settings import Relay, Settings
from trimaran._telemetry import open_telemetry
from trimaran._version import __version__
from trimaran.cli._signals import Interrupt
from trimaran.cli._system import opened, system_of
from trimaran.cli._terminal import console, tell_diagnostics
from trimaran.cli.demo_agent import Progress, work
from trimaran.cli.demo_child import run_child, say, started
from trimaran.cli.demo_report import Assignment, Report, line_of
from trimaran.cli.demo_tools import AGENT_PATIENCE

__all__ = ["APP", "main", "run_agent"]

APP = "trimaran-demo"

INTERVAL = 0.1
"""Seconds between two reports."""


async def run_agent(task: Assignment, url: str, heard: Callable[[Report], None]) -> None:
    """Let an agent work that sends to *url*; *heard* gets its reports."""
    await trio.Path(task.workspace).mkdir()
    async with started(
        "trimaran.cli.demo_process",
        line_of(task).decode(),
        environ={**without_parent(os.environ), switch_name(APP, "URL"): url},
        patience=AGENT_PATIENCE,
    ) as agent:
        while (line := await agent.lines.next()) is not None:
            heard(msgspec.json.decode(line, type=Report))


def settings_of(task: Assignment) -> Settings:
    """Those for agents that somebody watches."""
    # Were the demonstration killed, its relay would soon have nothing left to stay for.
    relay = Relay(directory=task.relay, idle_timeout=5.0, most_seconds=60.0)
    return Settings(
        flush_interval=0.5,  # seconds
        drain_timeout=task.drain_timeout,
        relay=False if task.relay is None else relay,
    )


async def run(interrupt: Interrupt, task: Assignment) -> int:
    """Let the agent work, and report until its last event has its fate."""
    tell_diagnostics(console(stderr=True))
    progress = Progress(task)
    to = None if task.to is None else system_of(task.to, os.environ, app=APP)
    async with trio.open_nursery() as nursery, opened(to) as transport:
        nursery.start_soon(report, progress)
        async with open_telemetry(
            APP, version=__version__, settings=settings_of(task), transport=transport
        ) as telemetry:
            with interrupt.ends():
                await work(telemetry, progress, say)
            leaving = trio.current_time()
        progress.leaving = trio.current_time() - leaving
        progress.doing = "done" if interrupt.signal is None else "interrupted"
        progress.is_done = interrupt.signal is None
        nursery.cancel_scope.cancel()
    say(line_of(progress.report()))
    return interrupt.exit_status


async def report(progress: Progress) -> None:
    """Say how far it is, until cancelled."""
    while True:
        say(line_of(progress.report()))
        await trio.sleep(INTERVAL)


def main() -> int:
    """Be the agent that the command line describes."""
    task = msgspec.json.decode(sys.argv[1], type=Assignment)
    return run_child(partial(run, task=task))


if __name__ == "__main__":
    sys.exit(main())
