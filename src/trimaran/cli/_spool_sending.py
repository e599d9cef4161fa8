"""Delivers what dead processes left on disk: ``trimaran spool send``.

In: what the person asked for, an :class:`Interrupt`. Out: an exit status, and what to say.
Does not know: the command line, how a batch is sent; a telemetry that records nothing does it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio
from rich.console import Console

from trimaran._account import CredentialsError, CredentialsFile
from trimaran._decision import Decision, switch_name
from trimaran._pipeline.ledger import Statistics
from trimaran._settings import Settings, Spool
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.disk import in_a_thread
from trimaran._spool.values import SpooledRow, SpoolError, bound_to, worked_out
from trimaran._telemetry import Telemetry, open_telemetry, random_id
from trimaran.cli._errors import FAILED, Failure
from trimaran.cli._progress import Display
from trimaran.cli._replay import LOOK_INTERVAL, Patience
from trimaran.cli._signals import Interrupt
from trimaran.cli._terminal import console, dropped, printable, say, tell_diagnostics

__all__ = ["Options", "counted", "failures_told", "send_spooled"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and where to."""

    app: str
    directory: Path
    url: str | None
    credentials: str | None
    timeout: float
    """Seconds without progress after which it is given up."""


async def send_spooled(options: Options, interrupt: Interrupt) -> int:
    """Send what waits for the destination that the options lead to, and say how it ended.

    Raises:
        Failure: telemetry is off, or the spool cannot be used.
    """
    stderr = console(stderr=True)
    tell_diagnostics(stderr)
    sending = _Sending(options, Display(stderr))
    with interrupt.ends():
        await sending.run()
    if interrupt.signal is not None:
        say(stderr, f"ended by {interrupt.signal.name}; what was not sent stays on disk")
        return interrupt.exit_status
    return await sending.report(console(), stderr)


class _Sending:
    """One run."""

    def __init__(self, options: Options, display: Display) -> None:
        self._options = options
        self._display = display
        self._browser = SpoolBrowser(options.directory)
        self._owner = random_id()
        # The telemetry's work on the disk and ours, one after the other: a look at who lives,
        # while what the dead left is taken over, would mistake the one for the other.
        self._run_blocking = in_a_thread()
        self._destination = ""
        self._books = Statistics()

    async def run(self) -> None:
        """Until nothing of ours to send is left, or the endpoint takes nothing for too long."""
        options = self._options
        environ = dict(os.environ)
        if options.url is not None:
            environ[switch_name(options.app, "URL")] = options.url
        provider = None if options.credentials is None else CredentialsFile(options.credentials)
        user_email, token = await _user_of(options.credentials)
        async with open_telemetry(
            options.app,
            account=provider,
            environ=environ,
            new_id=lambda: self._owner,
            run_blocking=self._run_blocking,
            settings=Settings(
                # The person says with --timeout for how long to try; for how long a batch is
                # kept, the program said.
                retry_timeout=math.inf,
                spool=Spool(directory=str(options.directory), most_seconds=math.inf),
            ),
        ) as telemetry:
            _require_enabled(telemetry.decision, options.app)
            binding = bound_to(telemetry.decision, user_email, token)
            self._destination = await self._run_blocking(partial(worked_out, binding))
            with self._display:
                await self._wait(telemetry)
        self._books = telemetry.leftovers()

    async def _wait(self, telemetry: Telemetry) -> None:
        patience = Patience(self._options.timeout)
        while True:
            books = telemetry.leftovers()
            self._display.expect(books.tracked or None)
            self._display.show(
                f"{books.delivered:,} events delivered, {books.pending:,} waiting, "
                f"{books.dropped_total:,} dropped",
                done=books.tracked - books.pending,
            )
            if not books.pending and not await self._has_more_to_send():
                return
            left = patience.look(
                trio.current_time(),
                progress=(books.tracked, books.delivered, books.dropped_total),
                is_waiting=True,
            )
            if left is not None:
                wait = f"{books.pending:,} events wait, and {telemetry.decision.url} takes none"
                if left <= 0:
                    self._display.say(f"{wait} for {self._options.timeout:g} s; giving up")
                    return
                end = (
                    "waiting on"
                    if left == math.inf
                    else f"giving up in {left:.0f} s, see --timeout"
                )
                self._display.say(f"{wait}; {end}")
            await trio.sleep(LOOK_INTERVAL)

    async def report(self, stdout: Console, stderr: Console) -> int:
        """What became of it, and the exit status."""
        books, where = self._books, self._destination
        if books.tracked:
            told = f"Delivered {books.delivered:,} events, dropped {dropped(books.dropped)}."
        else:
            told = f"Nothing was left for {where}."
        stdout.print(printable(told), soft_wrap=True)
        rows = await self._rows()
        others = {row.destination for row in rows} - {where}
        if others:
            told = f"More waits for {_number(len(others), 'other destination')}; "
            told += f"see: trimaran spool list --app {self._options.app}"
            stdout.print(told, soft_wrap=True)
        rows = [row for row in rows if row.destination == where]
        if left := [row for row in rows if not row.is_owner_alive]:
            say(stderr, f"left for {where}: {counted(left)}; send them when it works")
        if living := [row for row in rows if row.is_owner_alive]:
            say(stderr, f"not sent: {counted(living)}, which a process that lives has and sends")
        return FAILED if rows or books.dropped else 0

    async def _has_more_to_send(self) -> bool:
        return any(
            row.destination == self._destination
            and (row.owner == self._owner or not row.is_owner_alive)
            for row in await self._rows()
        )

    async def _rows(self) -> list[SpooledRow]:
        with failures_told():
            return await self._run_blocking(self._browser.rows)


def counted(rows: Sequence[SpooledRow]) -> str:
    """``"2 batches with 302 events"``."""
    batches = _number(len(rows), "batch", "batches")
    return f"{batches} with {_number(sum(row.events for row in rows), 'event')}"


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


async def _user_of(path: str | None) -> tuple[str, str | None]:
    """The e-mail address and the token of the account in a file; "" and None for nobody."""
    if path is None:
        return "", None
    try:
        account = await CredentialsFile(path).account()
        token = await CredentialsFile(path).token(refresh=False)
    except CredentialsError as error:
        raise Failure(str(error)) from None
    if account is None:
        raise Failure(f"{path}: no such file; log in, or name another one")
    return account.email, token


def _require_enabled(decision: Decision, app: str) -> None:
    if decision.source == "default":
        raise Failure("nobody to send to; say where with --url URL or --credentials FILE")
    if not decision.enabled:
        raise Failure(f"nothing is sent: {decision.reason}; see: trimaran status --app {app}")


@contextmanager
def failures_told() -> Generator[None]:
    """A spool that cannot be used is no bug, but one line for the person."""
    try:
        yield
    except SpoolError as error:
        raise Failure(str(error)) from None
