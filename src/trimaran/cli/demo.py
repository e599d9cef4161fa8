"""``trimaran demo``: agents, a receiver, and what flows between them, on this machine alone.

In: a directory with Python files. Out: what the agents do as they do it; their ledgers; the
address of a page with their events.
Does not know: what an agent does, how events get to a receiver.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.request import getproxies

import click
import trio
from msgspec.structs import replace
from rich.console import Console

from trimaran._decision import opted_out
from trimaran.cli._errors import FAILED, Failure
from trimaran.cli._options import to_option
from trimaran.cli._signals import Interrupt, run_interruptible
from trimaran.cli._system import system_of
from trimaran.cli._terminal import console, leave_line, printable, tell_diagnostics
from trimaran.cli.demo_books import Entry, entry_of, print_books
from trimaran.cli.demo_process import APP, run_agent
from trimaran.cli.demo_relay import (
    ARRIVAL_PATIENCE,
    Network,
    print_exits,
    stopped,
    watch_exits,
)
from trimaran.cli.demo_report import Assignment, Report
from trimaran.cli.demo_view import Board, View, name_of
from trimaran.cli.status_probe import examine
from trimaran.cli.status_target import of_system

__all__ = ["assignments", "demo", "find_sources"]

MOST_FILES = 8
"""Files that one session reviews at most, so that a large tree takes no longer than a small one."""


ELSEWHERE_TIMEOUT = 12.0
"""Seconds that agents have to leave where others have what they send: enough for an attempt that
gets no answer, and another one."""


class Options(TypedDict):
    """What the command line says beside the path."""

    sessions: int
    database: str | None
    to: str | None
    relay: bool
    exits: bool


@click.command()
@click.argument("path", required=False, type=click.Path())
@click.option(
    "--sessions",
    default=4,
    show_default=True,
    type=click.IntRange(1, 20),
    help="How many agents to run at the same time.",
)
@click.option(
    "--database",
    metavar="FILE",
    type=click.Path(),
    help="Where the receiver keeps the events; without it they are gone at the end.",
)
@to_option
@click.option(
    "--relay",
    is_flag=True,
    help="Let the agents hand over to a relay; show how they leave with it and without.",
)
@click.option("--exit", "exits", is_flag=True, help="End when the agents are done.")
def demo(path: str | None, **options: Unpack[Options]) -> int:
    """Watch agents at work, and their events on the way to a receiver.

    Starts a receiver on a free port of this machine, and several agents, each a process, that
    review the Python files in PATH (by default those of Trimaran itself): they list, read, parse
    and compile them, let processes of their own search them and keep notes in SQLite, have a
    sub-agent write a text, and sometimes fail. Only their model is a script. One search never
    ends, and is killed. Shows what became of every event, and the address of a page that shows
    the events.

    With --to there is no receiver: the sessions go to that system, and it is said where to look
    at them there.

    \b
    Examples:
      trimaran demo
      trimaran demo ~/src/project --sessions 8
      trimaran demo --relay
      trimaran demo --to otlp+http://127.0.0.1:4318
      trimaran demo --exit && echo fine

    Ctrl-C ends it. Exit status: 0 if all ledgers add up, and the receiver stored as much.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    if options["to"] is not None and (options["relay"] or options["database"] is not None):
        other = "--relay" if options["relay"] else "--database"
        raise click.UsageError(f"with --to there is no receiver, which {other} is about")
    return run_interruptible(partial(_demo, path=path, options=options))


async def _demo(interrupt: Interrupt, *, path: str | None, options: Options) -> int:
    tell_diagnostics(console(stderr=True))
    stdout = console()
    root = Path(__file__).parent.parent if path is None else Path(path)
    exit_status: int | None = None
    if (off := opted_out(APP, os.environ)) is not None:
        raise Failure(f"there is nothing to see: {off.reason}; unset it")
    with tempfile.TemporaryDirectory(prefix="trimaran-demo-") as directory:
        workspace = Path(directory)
        async with trio.open_nursery() as nursery:
            with interrupt.ends():
                files = await trio.to_thread.run_sync(find_sources, root, abandon_on_cancel=True)
                tasks = assignments(files, root, workspace, options["sessions"])
                if options["to"] is not None:
                    adds_up = await _watch_elsewhere(tasks, root, options["to"], stdout)
                    return 0 if adds_up else FAILED
                network = Network(nursery, options["database"] or workspace / "telemetry.sqlite")
                await network.up()
                _print_beginning(root, tasks, f"A receiver listens on {network.url}", stdout)
                watch = _watch_with_relay if options["relay"] else _watch
                exit_status = 0 if await watch(tasks, network, stdout) else FAILED
                if not options["exits"]:
                    stdout.print(f"Look at the events: {network.url}/ (Ctrl-C ends)")
                    await trio.sleep_forever()
            if interrupt.signal is not None:
                leave_line(stdout)
            nursery.cancel_scope.cancel()
    return interrupt.exit_status if exit_status is None else exit_status


async def _watch(tasks: Sequence[Assignment], network: Network, stdout: Console) -> bool:
    """Let the agents work, and print the books; whether these add up."""
    board = await _run_agents(tasks, network.url, stdout)
    patience = 0.0 if tasks[0].relay is None else ARRIVAL_PATIENCE
    entries = [
        await entry_of(number + 1, report, network.url, patience=patience)
        for number, report in board
    ]
    print_books(entries, stdout)
    return all(entry.adds_up for entry in entries)


async def _watch_elsewhere(
    tasks: Sequence[Assignment], root: Path, to: str, stdout: Console
) -> bool:
    """The same with another system in the receiver's place, which is tested before.

    Raises:
        Failure: it takes nothing.
    """
    system = system_of(to, os.environ, app=APP)
    url = system.settings.url
    if problem := (await examine(of_system(system), getproxies()))[-1].problem:
        raise Failure(f"{url}: {problem}")
    _print_beginning(root, tasks, f"Their sessions go to {system.name} at {url}", stdout)
    tasks = [replace(task, to=to, drain_timeout=ELSEWHERE_TIMEOUT) for task in tasks]
    board = await _run_agents(tasks, url, stdout)
    entries = [Entry(number + 1, report, stored=None) for number, report in board]
    print_books(entries, stdout)
    stdout.print(f"Look at the sessions: {system.look}, by their ids:", soft_wrap=True)
    for entry in entries:
        stdout.print(f"  {entry.report.session_id} ({name_of(entry.report, entry.agent)})")
    return all(entry.adds_up for entry in entries)


async def _watch_with_relay(tasks: Sequence[Assignment], network: Network, stdout: Console) -> bool:
    """The same with a relay; and then how agents leave."""
    relay = str(Path(tasks[0].workspace).with_name("relay"))
    async with stopped(relay):
        tasks = [replace(task, relay=relay) for task in tasks]
        adds_up = await _watch(tasks, network, stdout)
        stdout.print(
            "Four agents leave, one after the other; the receiver is away for two of them."
        )
        exits = await watch_exits(tasks[0], network, relay)
        has_arrived = await print_exits(exits, network, stdout)
    stdout.print("The relay is stopped.")
    return adds_up and has_arrived


def find_sources(root: Path) -> list[str]:
    """The Python files under *root*, relative to it; those in hidden directories left out.

    Raises:
        Failure: there are none.
    """
    files = [file.relative_to(root) for file in root.rglob("*.py")]
    found = [
        str(file)
        for file in sorted(files)
        if not str(file).startswith(".") and "/." not in file.as_posix()
    ]
    if not found:
        raise Failure(f"{root}: no directory with Python files to review; name another one")
    return found


def assignments(files: Sequence[str], root: Path, workspace: Path, count: int) -> list[Assignment]:
    """*files* dealt out to *count* agents, or to as many as there are files for.

    The first of them is the careless one.
    """
    hands = min(count, len(files))
    return [
        Assignment(
            agent="reviewer",
            project=root.resolve().name,
            root=str(root.resolve()),
            files=tuple(files[hand::hands][:MOST_FILES]),
            workspace=str(workspace / f"agent-{hand + 1}"),
            is_careless=hand == 0,
        )
        for hand in range(hands)
    ]


def _print_beginning(root: Path, tasks: Sequence[Assignment], way: str, stdout: Console) -> None:
    files = sum(len(task.files) for task in tasks)
    stdout.print(printable(f"{len(tasks)} agents review {files} files in {root}"), soft_wrap=True)
    stdout.print(way, soft_wrap=True)


async def _run_agents(tasks: Sequence[Assignment], url: str, stdout: Console) -> Board:
    """Run them all, and show how far they are, until their last event is delivered."""
    board = Board([Report(agent=task.agent) for task in tasks])
    async with trio.open_nursery() as watching:
        with View(board, stdout) as view:
            watching.start_soon(view.keep_up)
            async with trio.open_nursery() as agents:
                for number, task in enumerate(tasks):
                    agents.start_soon(run_agent, task, url, partial(board.put, number))
            watching.cancel_scope.cancel()
    return board
