"""``trimaran pipe``: lines of JSON become events at an endpoint.

In: a file or the standard input. Out: requests; a table of what became of the events.
Does not know: how a line is read, how a session is kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial

import click
import msgspec
from rich.console import Console

from trimaran._pipeline.ledger import DropReason
from trimaran._settings import Settings
from trimaran.cli._errors import FAILED
from trimaran.cli._options import replay_options, to_option
from trimaran.cli._progress import Display
from trimaran.cli._replay import Options, Outcome, replay
from trimaran.cli._signals import Interrupt, run_interruptible
from trimaran.cli._system import opened, system_of
from trimaran.cli._terminal import console, dropped, new_table, printable, say, tell_diagnostics

__all__ = ["PIPE_SETTINGS", "exit_status", "pipe", "report"]

PIPE_SETTINGS = Settings(
    # What `tail -f` gives should be seen soon; a file fills its batches anyway.
    flush_interval=1.0,
    # The person says with --timeout how long to try.
    retry_timeout=math.inf,
)


@click.command()
@replay_options
@to_option
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Give up when the endpoint takes nothing for so long; 'inf' never does.",
)
def pipe(*, to: str | None, **given: object) -> int:
    """Send events that were recorded as lines of JSON.

    A line is an event as it is on the wire, {"type": "tool_call", "tool_name": "bash", ...},
    or a record of structlog's JSONRenderer, {"event": "tool_call", "tool_name": "bash", ...}.
    Each goes into the session that its "session_id" names, with the "timestamp" that it has.
    FILE is the standard input if it is - or left out.

    Reading waits for the endpoint; nothing is dropped for want of room. A line that cannot be
    used is reported, and the rest goes on. Log records that are no events are counted. Of more
    than 1,000 sessions at once, those that were idle longest are put aside until they go on.

    \b
    Examples:
      trimaran pipe events.jsonl --app myagent --url http://127.0.0.1:8474
      tail -f agent.log | trimaran pipe --app myagent --url http://127.0.0.1:8474
      trimaran pipe log.jsonl --event deployment --session nightly
      trimaran pipe events.jsonl --app myagent --to otlp+http://127.0.0.1:4318

    Exit status: 0 if all that was valid was delivered, with bad lines or without; 1 if not, or
    if there were lines and none was valid; 130 after Ctrl-C, when what was read is delivered.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    options = msgspec.convert(given, Options)
    if to is not None and (options.url is not None or options.credentials is not None):
        other = "--credentials" if options.url is None else "--url"
        raise click.UsageError(f"--to and {other} name two places to send to: leave out one")
    return run_interruptible(partial(_pipe, options, to))


async def _pipe(options: Options, to: str | None, interrupt: Interrupt) -> int:
    system = None if to is None else system_of(to, os.environ, app=options.app)
    stderr, stdout = console(stderr=True), console()
    tell_diagnostics(stderr)
    async with opened(system) as transport:
        outcome = await replay(
            options,
            interrupt,
            Display(stderr),
            environ=None if system is None else system.environ(os.environ, options.app),
            transport=transport,
            settings=PIPE_SETTINGS,
        )
    report(outcome, stdout)
    if system is not None and outcome.books.total.delivered:
        stdout.print(f"Look at the sessions: {system.look}", soft_wrap=True)
    return exit_status(outcome, interrupt, stderr, to=to)


def report(outcome: Outcome, where: Console) -> None:
    """The table at the end."""
    books, tally = outcome.books, outcome.tally
    table = new_table("Session", "Tracked", "Delivered", "Dropped", numbers=3)
    for session_id, row in sorted(books.rows.items()):
        table.add_row(
            printable(session_id), f"{row.tracked:,}", f"{row.delivered:,}", dropped(row.dropped)
        )
    if (more := books.sessions - len(books.rows)) > 0:
        table.add_row(f"... and {more:,} more", "", "", "")
    total = books.total
    table.add_section()
    table.add_row("All", f"{total.tracked:,}", f"{total.delivered:,}", dropped(total.dropped))
    where.print(table)
    where.print(
        f"Lines: {tally.lines:,} read, {tally.found:,} events, "
        f"{tally.passed_over:,} log records that are no events, {tally.bad:,} bad."
    )
    if outcome.made:
        where.print(f"Made: {outcome.made:,} starts and ends of sessions that were not recorded.")


def exit_status(
    outcome: Outcome, interrupt: Interrupt, stderr: Console, *, to: str | None = None
) -> int:
    """How it ended, with a line where that is not as it should be."""
    tally, total = outcome.tally, outcome.books.total
    lost = total.tracked - total.delivered
    if lost:
        say(stderr, f"{lost:,} events were not delivered; {_advice(total.dropped, to)}")
    if interrupt.signal is not None:
        say(stderr, f"ended by {interrupt.signal.name}; the rest was not read")
        return interrupt.exit_status
    if tally.bad and not tally.found:
        say(stderr, "no line was an event; see: trimaran pipe --help")
        return FAILED
    return 0 if outcome.is_complete else FAILED


def _advice(dropped: Mapping[str, int], to: str | None) -> str:
    """What a person can do about what was lost."""
    test = "" if to is None else f"; to find out what is wrong: trimaran status --to {to}"
    if dropped.get(DropReason.REJECTED, 0):
        return f"put right what it says above, or they are refused again{test}"
    if dropped.get(DropReason.UNAUTHORIZED, 0):
        return f"its token is refused: correct the file that --credentials names{test}"
    return f"send them again when it works{test}"
