"""``trimaran spool``: what waits on disk; a look at it, sending it, removing it.

In: an app's name, perhaps a directory. Out: tables, bodies, an exit status.
Does not know: how batches are kept, how they are sent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from trimaran._relay.made import shown
from trimaran._settings import Spool
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.file import spool_directory
from trimaran.cli._errors import FAILED, Failure
from trimaran.cli._options import app_option, check_directory, destination_options
from trimaran.cli._signals import run_interruptible
from trimaran.cli._spool_sending import Options, counted, failures_told, send_spooled
from trimaran.cli._terminal import console, new_table, printable, say

__all__ = ["age_of", "spool"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _spool_options(function: _Function) -> _Function:
    """Which spool: ``--app`` and ``--directory``."""
    return app_option(
        click.option(
            "--directory",
            metavar="DIRECTORY",
            callback=check_directory,
            help="Where the spool lies, if the program puts it elsewhere than into the state "
            "directory of its user.",
        )(function)
    )


@click.group(invoke_without_command=True)
@click.pass_context
def spool(context: click.Context) -> None:
    """See, send or remove what waits on disk.

    A program whose telemetry has a spool keeps batches of events on disk until their fate is
    known. What it leaves there, the next run of the program delivers; these commands are for
    when there is none, or when a person wants to know.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@spool.command("list")
@_spool_options
def list_batches(app: str, directory: str | None) -> None:
    """Show the batches that wait, by destination, and whose they are.

    A batch belongs to a process until that ends. A process that lives delivers its batches
    itself; what one that is gone has left waits for the next run, or for "send".

    \b
    Examples:
      trimaran spool list --app myagent
      trimaran spool list --directory /var/lib/myagent/telemetry

    Exit status: 0.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    where = _place(app, directory)
    with failures_told():
        rows = SpoolBrowser(where).rows()
    stdout = console()
    if not rows:
        stdout.print(printable(f"Nothing waits in {where}."), soft_wrap=True)
        return
    now = time.time()
    for destination in dict.fromkeys(row.destination for row in rows):
        table = new_table("Batch", "Process", "Age", "Events", "Bytes", numbers=3)
        for row in rows:
            if row.destination == destination:
                table.add_row(
                    row.key,
                    "lives" if row.is_owner_alive else "is gone",
                    age_of(now - row.created),
                    f"{row.events:,}",
                    f"{row.size:,}",
                )
        stdout.print(printable(shown(destination)), soft_wrap=True)
        stdout.print(table)
    oldest = age_of(now - min(row.created for row in rows))
    size = sum(row.size for row in rows)
    stdout.print(
        printable(f"All: {counted(rows)}, {size:,} bytes, the oldest {oldest} old, in {where}."),
        soft_wrap=True,
    )


@spool.command()
@click.argument("key", metavar="BATCH")
@_spool_options
@click.option("--pretty", is_flag=True, help="Indent it, for reading.")
def show(key: str, app: str, directory: str | None, *, pretty: bool) -> None:
    """Print the body of a batch, byte for byte as it is sent.

    BATCH is what "list" calls it; its beginning is enough, if no other one begins so.

    \b
    Examples:
      trimaran spool show 6f1ed002ab5595859014ebf0951522d9-3 --app myagent
      trimaran spool show 6f1e --app myagent --pretty

    Exit status: 0, or 1 if there is no such batch.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    browser = SpoolBrowser(_place(app, directory))
    with failures_told():
        known = [row.key for row in browser.rows() if row.key.startswith(key)]
        if len(known) > 1 and key not in known:
            raise Failure(f"{len(known):,} batches begin with {key}; say more of it")
        found = key if key in known else "".join(known)
        body = browser.read(found)
    if body is None:
        raise Failure(f"no batch begins with {key}; see: trimaran spool list --app {app}")
    click.echo(_indented(body) if pretty else body, nl=pretty or sys.stdout.isatty())


def _indented(body: bytes) -> bytes:
    try:
        return msgspec.json.format(body, indent=2)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(f"it is not JSON ({error}); see it without --pretty") from None


@spool.command()
@_spool_options
@destination_options
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Give up when the endpoint takes nothing for so long; 'inf' never does.",
)
def send(
    app: str, directory: str | None, url: str | None, credentials: str | None, timeout: float
) -> int:
    """Deliver what processes that are gone have left.

    A batch is bound to a destination: how it is sent (anonymous or authenticated), the URL,
    and the account: its e-mail address, or its token where it has none. What waits for this one is sent, with the keys that
    it always had, so that a receiver knows what it has already. The switches of the program
    hold: switched off, nothing is sent.

    \b
    Examples:
      trimaran spool send --app myagent
      trimaran spool send --app myagent --url https://telemetry.example.com
      trimaran spool send --app myagent --credentials ~/.myagent/credentials.json

    Exit status: 0 if all that waited for the destination was delivered; 1 if not, also where a
    living process still has some of it; 130 after Ctrl-C.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    where = _place(app, directory)
    with failures_told():
        if not SpoolBrowser(where).rows():
            console().print(printable(f"Nothing waits in {where}."), soft_wrap=True)
            return 0
    options = Options(app=app, directory=where, url=url, credentials=credentials, timeout=timeout)
    return run_interruptible(partial(send_spooled, options))


@spool.command()
@_spool_options
@click.option(
    "--destination",
    metavar="DESTINATION",
    help='Only what waits for this one, written as "list" shows it.',
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(app: str, directory: str | None, destination: str | None, *, yes: bool) -> int:
    """Remove what processes that are gone have left; it is never delivered then.

    What a process that lives has is left alone.

    \b
    Examples:
      trimaran spool clear --app myagent
      trimaran spool clear --app myagent --destination "anonymous https://old.example.com" --yes

    Exit status: 0 if nothing of it is left; 1 if something is, or if the answer was no.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    where = _place(app, directory)
    browser = SpoolBrowser(where)
    stdout, stderr = console(), console(stderr=True)
    with failures_told():
        rows = [row for row in browser.rows() if destination in {None, shown(row.destination)}]
        gone = [row for row in rows if not row.is_owner_alive]
        if gone and not (yes or _agreed(f"Remove {counted(gone)} from {where}?")):
            say(stderr, "nothing was removed")
            return FAILED
        removed = browser.remove(gone)
    told = (
        f"Removed {counted(removed)} from {where}." if removed else f"Nothing to remove in {where}."
    )
    stdout.print(printable(told), soft_wrap=True)
    if kept := [row for row in rows if row not in removed]:
        say(stderr, f"not removed: {counted(kept)}, which a process that lives has")
    return FAILED if kept else 0


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here; say --yes if it is meant")
    return click.confirm(printable(f"trimaran: {question}"), err=True)


def age_of(seconds: float) -> str:
    """How long ago that is, in the largest unit that it is two of: ``"90 min"``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _place(app: str, directory: str | None) -> Path:
    with failures_told():
        return spool_directory(app, Spool(directory=directory))
