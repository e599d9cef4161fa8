"""``trimaran relay``: the process that sends for others; start it, look at it, end it.

In: an app's name, perhaps a directory. Out: a process, tables, an exit status.
Does not know: what a relay does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from trimaran._process import ProcessError
from trimaran._relay.launch import LaunchError, launch
from trimaran._relay.messages import MessageError, Report
from trimaran._relay.orders import Orders, orders_of
from trimaran._relay.place import RelayPlace, relay_of
from trimaran._relay.server import RelayServer
from trimaran._relay.visit import end_relay, report_of
from trimaran._settings import Relay, Settings
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.values import SpoolError
from trimaran.cli._errors import FAILED, Failure
from trimaran.cli._options import app_option, check_directory
from trimaran.cli._spool_sending import counted, failures_told
from trimaran.cli._terminal import console, dropped, new_table, printable, say, tell_diagnostics
from trimaran.cli.spool import age_of

__all__ = ["relay"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")

_PATIENCE = 10.0
"""Seconds for a relay to begin, to answer or to end; it takes a few at most."""

_LOOK = 0.02
"""Seconds between two looks for it."""


def _relay_options(function: _Function) -> _Function:
    """Which relay: ``--app`` and ``--directory``."""
    return app_option(
        click.option(
            "--directory",
            metavar="DIRECTORY",
            callback=check_directory,
            help="Where it keeps batches, if the program puts it elsewhere than into the state "
            "directory of its user.",
        )(function)
    )


@click.group(invoke_without_command=True)
@_relay_options
@click.option("--foreground", is_flag=True, help="Be the relay, until Ctrl-C or idleness ends it.")
@click.pass_context
def relay(context: click.Context, app: str, directory: str | None, *, foreground: bool) -> int:
    """Start the process that sends for the runs of a program, or look after it.

    A program whose telemetry has a relay hands batches of events over to it, and need not wait
    for the network when it ends. It starts one by itself: this is for who wants to see it work.
    A relay ends when it has nothing to deliver and nobody is connected, after half a minute.

    \b
    Examples:
      trimaran relay --app myagent --foreground
      trimaran relay status --app myagent
      trimaran relay stop --app myagent

    Exit status: 0 if there is one now; 1 if none can be started, or, with --foreground, if there
    is one already.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    if context.invoked_subcommand is not None:
        return 0
    orders = _orders(app, directory)
    if foreground:
        return _be(orders)
    place = RelayPlace(Path(orders.directory))
    try:
        is_new = launch(orders)
    except LaunchError as error:
        raise Failure(f"no relay can be started: {error}") from None
    report = trio.run(_begun, place)
    told = "A relay runs" if is_new else "A relay runs already"
    console().print(printable(f"{told} (pid {report.pid}), for {place.directory}."), soft_wrap=True)
    return 0


async def _begun(place: RelayPlace) -> Report:
    with trio.move_on_after(_PATIENCE):
        while (report := await _report_of(place)) is None:  # noqa: ASYNC110 - another process
            await trio.sleep(_LOOK)
        return report
    raise Failure(f"there is a relay{_pid_of(place)}, and it cannot be reached; try again")


def _be(orders: Orders) -> int:
    stdout = console()
    tell_diagnostics(console(stderr=True))
    server = RelayServer(orders, is_silent=False)
    try:
        lock = server.place.lock()
    except (OSError, SpoolError) as error:
        raise Failure(f"no relay can be here: {error}") from None
    if lock is None:
        raise Failure("there is a relay already; see: trimaran relay status")
    try:
        told = f"Relaying for {server.place.directory} (pid {os.getpid()}; Ctrl-C ends)"
        stdout.print(printable(told), soft_wrap=True)
        trio.run(server.run)
    except* ProcessError as errors:
        raise Failure(str(errors.exceptions[0])) from None
    finally:
        lock.release(remove=True)
    stdout.print("Ended; what was not delivered stays on disk.")
    return 0


@relay.command()
@_relay_options
def status(app: str, directory: str | None) -> int:
    """Show whether a relay runs, and what it has.

    \b
    Example:
      trimaran relay status --app myagent

    Exit status: 0 if one runs, 1 if not, or if it does not answer.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    place = _place(app, directory)
    stdout = console()
    report = trio.run(_patiently, partial(_reported, place))
    if report is None:
        told = f"No relay runs for {place.directory}."
        if _is_held(place):
            told = f"A relay{_pid_of(place)} is there for {place.directory}, and does not answer."
        stdout.print(printable(told), soft_wrap=True)
        _show_waiting(place)
        return FAILED
    began = age_of(time.time() - report.began)
    told = (
        f"A relay runs for {place.directory}: pid {report.pid}, version {report.version}, "
        f"since {began}, {report.agents:,} connected."
    )
    stdout.print(printable(told), soft_wrap=True)
    if report.outlets:
        table = new_table("Destination", "Waiting", "Events", "Delivered", "Dropped", numbers=4)
        for outlet in report.outlets:
            waits = ", for a token" if outlet.waits_for_token and outlet.waiting else ""
            table.add_row(
                printable(outlet.destination),
                f"{outlet.waiting:,}{waits}",
                f"{outlet.events:,}",
                f"{outlet.delivered:,}",
                dropped(outlet.dropped),
            )
        stdout.print(table)
    if report.problem:
        stdout.print(printable(f"Its last problem: {report.problem}."), soft_wrap=True)
    return 0


def _show_waiting(place: RelayPlace) -> None:
    """What a relay that is gone has left."""
    try:
        rows = SpoolBrowser(place.directory).rows()
    except SpoolError as error:
        raise Failure(str(error)) from None
    if rows:
        told = f"{counted(rows)} wait there; the next one delivers them."
        console().print(told, soft_wrap=True)


@relay.command()
@_relay_options
def stop(app: str, directory: str | None) -> int:
    """End the relay. What it has stays on disk, and the next one delivers it.

    A program that runs starts another one when it has something to say.

    \b
    Example:
      trimaran relay stop --app myagent

    Exit status: 0 if none runs any more, 1 if it does not end.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    place = _place(app, directory)
    try:
        was_there = trio.run(_patiently, partial(end_relay, place))
    except (OSError, SpoolError) as error:
        raise Failure(f"no relay can be here: {error}") from None
    if was_there is None:
        told = f"the relay{_pid_of(place)} for {place.directory} does not end; kill it"
        say(console(stderr=True), told)
        return FAILED
    told = "The relay has ended" if was_there else "No relay runs"
    console().print(printable(f"{told}, for {place.directory}."), soft_wrap=True)
    return 0


async def _reported(place: RelayPlace) -> Report | None:
    """How the relay is, for which one that cannot be found just now is waited for."""
    while (  # noqa: ASYNC110 - another process is waited for
        report := await _report_of(place)
    ) is None and _is_held(place):
        await trio.sleep(_LOOK)
    return report


def _is_held(place: RelayPlace) -> bool:
    try:
        return place.is_held()
    except (OSError, SpoolError) as error:
        raise Failure(f"no relay can be here: {error}") from None


def _pid_of(place: RelayPlace) -> str:
    """Which process it is, as the middle of a sentence; as far as it says."""
    pid = place.holder()
    return "" if pid is None else f" (pid {pid})"


async def _report_of(place: RelayPlace) -> Report | None:
    try:
        return await report_of(place)
    except MessageError:
        raise Failure("the relay is of another version; see: trimaran relay stop") from None


async def _patiently(work: Callable[[], Awaitable[_Result]]) -> _Result | None:
    """What *work* gives; None if it takes too long."""
    with trio.move_on_after(_PATIENCE):
        return await work()
    return None


def _orders(app: str, directory: str | None) -> Orders:
    settings = Settings(relay=Relay(directory=directory))
    with failures_told():
        chosen = relay_of(app, settings)
    assert chosen is not None
    return orders_of(chosen, settings)


def _place(app: str, directory: str | None) -> RelayPlace:
    return RelayPlace(Path(_orders(app, directory).directory))
