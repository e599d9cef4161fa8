"""``trimaran demo``: agents, a receiver, and what flows between them, on this machine alone.

In: a directory with Python files. Out: what the agents do as they do it; their ledgers; the
address of a page with their events.
Does not know: what an agent does, how events get to a receiver.
"""

from __future__ import annotations

import http.client
import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, urlsplit

import click
import msgspec
import trio
from rich.console import Console

from trimaran._decision import opted_out, switch_name
from trimaran._pipeline.ledger import Statistics
from trimaran._settings import Settings
from trimaran._telemetry import open_telemetry
from trimaran._version import __version__
from trimaran.cli._errors import FAILED, Failure
from trimaran.cli._signals import Interrupt, run_interruptible
from trimaran.cli._terminal import (
    console,
    dropped,
    leave_line,
    new_table,
    printable,
    tell_diagnostics,
)
from trimaran.cli.demo_agent import Review, review
from trimaran.cli.demo_tools import Tools
from trimaran.cli.demo_view import View
from trimaran.cli.serve import start_receiver

__all__ = ["Entry", "demo", "find_sources", "print_books", "shares"]

APP = "trimaran-demo"
MOST_FILES = 25
"""Files that one session reviews at most, so that a large tree takes no longer than a small one."""

SETTINGS = Settings(
    flush_interval=1.0,  # seconds; the default is for agents that nobody watches
    drain_timeout=10.0,  # seconds; the receiver is near, but its disk may be slow
)


@click.command()
@click.argument("path", required=False, type=click.Path())
@click.option(
    "--sessions",
    default=4,
    show_default=True,
    type=click.IntRange(1, 100),
    help="How many agents to run at the same time.",
)
@click.option(
    "--database",
    metavar="FILE",
    type=click.Path(),
    help="Where the receiver keeps the events; without it they are gone at the end.",
)
@click.option("--exit", "exits", is_flag=True, help="End when the agents are done.")
def demo(path: str | None, sessions: int, database: str | None, exits: bool) -> int:  # noqa: FBT001 - click's
    """Watch agents at work, and their events on the way to a receiver.

    Starts a receiver on a free port of this machine, and several agents that review the Python
    files in PATH (by default those of Trimaran itself): they list, read, search, parse and
    compile them, keep notes in SQLite, and sometimes fail. Only their model is a script. Shows
    what became of every event, and the address of a page that shows the events.

    \b
    Examples:
      trimaran demo
      trimaran demo ~/src/project --sessions 8
      trimaran demo --exit && echo fine

    Ctrl-C ends it. Exit status: 0 if every event was delivered and is in the receiver's store.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    return run_interruptible(
        partial(_demo, path=path, sessions=sessions, database=database, exits=exits)
    )


async def _demo(
    interrupt: Interrupt, *, path: str | None, sessions: int, database: str | None, exits: bool
) -> int:
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
                tasks = [Review(root.resolve().name, share) for share in shares(files, sessions)]
                receiver = await start_receiver(
                    nursery, database=database or workspace / "telemetry.sqlite"
                )
                _print_beginning(root, tasks, receiver.url, stdout)
                await _run_agents(tasks, root, workspace, receiver.url, stdout)
                entries = [await _entry(task, receiver.url) for task in tasks]
                print_books(entries, stdout)
                exit_status = 0 if all(entry.adds_up for entry in entries) else FAILED
                if not exits:
                    stdout.print(f"Look at the events: {receiver.url}/ (Ctrl-C ends)")
                    await trio.sleep_forever()
            if interrupt.signal is not None:
                leave_line(stdout)
            nursery.cancel_scope.cancel()
    return interrupt.exit_status if exit_status is None else exit_status


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


def shares(files: Sequence[str], count: int) -> list[Sequence[str]]:
    """*files* dealt out to *count* agents, or to as many as there are files for."""
    hands = min(count, len(files))
    return [files[hand::hands][:MOST_FILES] for hand in range(hands)]


def _print_beginning(root: Path, tasks: Sequence[Review], url: str, stdout: Console) -> None:
    files = sum(len(task.files) for task in tasks)
    stdout.print(printable(f"{len(tasks)} agents review {files} files in {root}"), soft_wrap=True)
    stdout.print(f"A receiver listens on {url}")


async def _run_agents(
    tasks: Sequence[Review], root: Path, workspace: Path, url: str, stdout: Console
) -> None:
    """Run them all, and show how far they are, until their last event is delivered."""
    async with trio.open_nursery() as watching:
        with View(tasks, stdout) as view:
            watching.start_soon(view.keep_up)
            async with (
                open_telemetry(
                    APP,
                    version=__version__,
                    environ={**os.environ, switch_name(APP, "URL"): url},
                    settings=SETTINGS,
                ) as telemetry,
                trio.open_nursery() as agents,
            ):
                for number, task in enumerate(tasks):
                    own = workspace / f"agent-{number}"
                    own.mkdir()
                    agents.start_soon(review, telemetry, task, Tools(root, task.files, own))
            watching.cancel_scope.cancel()


class Entry(msgspec.Struct, frozen=True):
    """What became of one session's events, as its ledger has it and as the receiver does."""

    task: Review
    statistics: Statistics
    stored: int

    @property
    def adds_up(self) -> bool:
        """Whether every event was delivered, and the receiver has each."""
        books = self.statistics
        return books.tracked == books.delivered == self.stored and not books.pending


async def _entry(task: Review, url: str) -> Entry:
    assert task.session is not None
    stored = await trio.to_thread.run_sync(_count_stored, url, task.session.id)
    return Entry(task, task.session.statistics(), stored)


def _count_stored(url: str, session_id: str) -> int:
    """How many events of a session the receiver has; asked of it as anybody would."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    with closing(connection):
        connection.request("GET", f"/api/sessions/{quote(session_id)}")
        answer = connection.getresponse()
        found = msgspec.json.decode(answer.read())
        return int(found["event_count"]) if answer.status == HTTPStatus.OK else 0


def print_books(entries: Sequence[Entry], stdout: Console) -> None:
    """A row for each session, and whether all of it adds up."""
    table = new_table(
        *("Session", "Tools", "Failed", "Tokens", "Cost"),
        *("Tracked", "Delivered", "Dropped", "Stored"),
        numbers=8,
    )
    for entry in entries:
        task, books = entry.task, entry.statistics
        assert task.session is not None
        table.add_row(
            task.session.id[:8],
            *(f"{count:,}" for count in (task.tool_calls, task.failures, task.tokens)),
            f"${task.cost:.2f}",
            *(
                f"{books.tracked:,}",
                f"{books.delivered:,}",
                dropped(books.dropped),
                f"{entry.stored:,}",
            ),
        )
    stdout.print(table)
    wrong = sum(not entry.adds_up for entry in entries)
    if wrong:
        stdout.print(f"{wrong} of {len(entries)} ledgers do not add up.")
    else:
        total = sum(entry.stored for entry in entries)
        stdout.print(
            f"All ledgers add up: {total:,} events were tracked, delivered and stored; none was lost."
        )
