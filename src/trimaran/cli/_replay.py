"""From lines to the endpoint: what ``pipe`` does, and ``show`` up to the last step.

In: what the person asked for, an :class:`Interrupt`, a way to speak.
Out: an :class:`Outcome`.
Does not know: the command line, how the outcome is told.
"""

from __future__ import annotations

import math
import os

import msgspec
import trio

from trimaran._account import CredentialsFile
from trimaran._decision import Tier, switch_name
from trimaran._pipeline.ledger import Statistics
from trimaran._settings import Settings
from trimaran._telemetry import Telemetry, open_telemetry
from trimaran._transport import Transport
from trimaran.cli._errors import Failure
from trimaran.cli._input import (
    LONGEST_LINE,
    STANDARD_INPUT,
    Line,
    LineSplitter,
    Source,
    open_source,
)
from trimaran.cli._lines import Bad, LineReader, PassedOver
from trimaran.cli._progress import Display
from trimaran.cli._recorded import Books, RecordedSessions
from trimaran.cli._signals import Interrupt

__all__ = ["Options", "Outcome", "Patience", "Tally", "replay"]

LOOK_INTERVAL = 0.1
"""Seconds between two looks at how far it is."""

TELL_AFTER = 3.0
"""Seconds without progress after which a person is told."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and where to."""

    path: str
    app: str
    app_version: str = ""
    url: str | None = None
    credentials: str | None = None
    session_id: str | None = None
    parent_session_id: str | None = None
    project_id: str | None = None
    names: tuple[str, ...] = ()
    """Log records that are events of the host's own."""
    timeout: float = 30.0
    """Seconds without progress after which it is given up."""


class Tally(msgspec.Struct):
    """The lines so far."""

    lines: int = 0
    """All but empty ones."""
    found: int = 0
    passed_over: int = 0
    bad: int = 0
    bytes: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it all."""

    tally: Tally
    books: Books
    made: int
    """Starts and ends of sessions that the recording lacks."""
    gave_up: bool
    """Whether the endpoint took nothing for too long."""
    was_read: bool
    """Whether the input was read to its end."""

    @property
    def is_complete(self) -> bool:
        """Whether all that was valid was delivered."""
        total = self.books.total
        return self.was_read and not self.gave_up and total.delivered == total.tracked


class Patience:
    """How long to wait for an endpoint that takes nothing; pure.

    Args:
        timeout: seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._progress: object = None
        self._since = 0.0
        self._told = False

    def look(self, now: float, *, progress: object, is_waiting: bool) -> float | None:
        """Seconds that are left, at the first look at which a person should know; else None.

        Zero or less: it is time to give up. The clock starts anew with every *progress*
        that is not the one before.
        """
        if not is_waiting or progress != self._progress:
            self._progress, self._since, self._told = progress, now, False
            return None
        left = self._timeout - (now - self._since)
        if left <= 0:
            return left
        if self._told or now - self._since < TELL_AFTER:
            return None
        self._told = True
        return left


async def replay(
    options: Options,
    interrupt: Interrupt,
    display: Display,
    *,
    environ: dict[str, str] | None = None,
    transport: Transport | None = None,
    settings: Settings,
) -> Outcome:
    """Send the events in the lines of a file, and say what became of them.

    Raises:
        Failure: telemetry is off.
        OSError: the input cannot be read.
    """
    environ = dict(os.environ) if environ is None else environ
    if options.url is not None:
        environ[switch_name(options.app, "URL")] = options.url
    account = None if options.credentials is None else CredentialsFile(options.credentials)
    replaying = _Replay(options, display)
    with interrupt.ends() as scope:
        async with open_source(options.path) as source:
            display.expect(source.size)
            async with open_telemetry(
                options.app,
                version=options.app_version,
                account=account,
                settings=settings,
                environ=environ,
                transport=transport,
            ) as telemetry:
                _require_enabled(telemetry, options)
                await replaying.run(source, telemetry, scope)
    return replaying.outcome()


def _require_enabled(telemetry: Telemetry, options: Options) -> None:
    decision = telemetry.decision
    if not decision.enabled:
        if decision.source == "default":
            raise Failure(
                "nobody to send to; say where with --url URL, --credentials FILE or --to DESTINATION"
            )
        raise Failure(
            f"nothing is sent: {decision.reason}; see: trimaran status --app {options.app}"
        )
    if options.credentials is not None and decision.tier is not Tier.AUTHENTICATED:
        raise Failure(f"{options.credentials}: no such file; log in, or name another one")


class _Replay:
    """One run."""

    def __init__(self, options: Options, display: Display) -> None:
        self._options = options
        self._display = display
        self._reader = LineReader(options.names)
        self._tally = Tally()
        self._sessions: RecordedSessions | None = None
        self._was_read = False
        self._gave_up = False

    async def run(self, source: Source, telemetry: Telemetry, scope: trio.CancelScope) -> None:
        """Until everything has its fate, or patience ends, which cancels *scope*."""
        if source.is_terminal:
            self._display.say("events are read from the terminal; Ctrl-D ends them")
        with self._display:
            async with trio.open_nursery() as watching:
                async with trio.open_nursery() as keeping:
                    self._sessions = sessions = RecordedSessions(
                        telemetry,
                        keeping,
                        session_id=self._options.session_id,
                        parent_session_id=self._options.parent_session_id,
                        project_id=self._options.project_id,
                    )
                    watching.start_soon(self._watch, sessions, scope, telemetry.decision.url)
                    await self._read_all(source, sessions)
                    await sessions.close()
                watching.cancel_scope.cancel()
            self._show(sessions.books().total)

    def outcome(self) -> Outcome:
        """How it ended; final after the telemetry was left."""
        sessions = self._sessions
        return Outcome(
            tally=self._tally,
            books=Books() if sessions is None else sessions.books(),
            made=0 if sessions is None else sessions.made,
            gave_up=self._gave_up,
            was_read=self._was_read,
        )

    async def _read_all(self, source: Source, sessions: RecordedSessions) -> None:
        splitter = LineSplitter()
        while chunk := await source.read():
            self._tally.bytes += len(chunk)
            for line in splitter.feed(chunk):
                await self._take(line, sessions)
        for line in splitter.end():
            await self._take(line, sessions)
        self._was_read = True

    async def _take(self, line: Line, sessions: RecordedSessions) -> None:
        if line.content is None:
            self._count_bad(line.number, f"longer than {LONGEST_LINE:,} bytes")
            return
        if not line.content.strip():
            return
        reading = self._reader.read(line.content)
        if isinstance(reading, Bad):
            self._count_bad(line.number, reading.reason)
            return
        self._tally.lines += 1
        if isinstance(reading, PassedOver):
            self._tally.passed_over += 1
        else:
            self._tally.found += 1
            await sessions.send(reading.event, reading.session_id)

    def _count_bad(self, number: int, reason: str) -> None:
        self._tally.lines += 1
        self._tally.bad += 1
        path = self._options.path
        where = "standard input" if path == STANDARD_INPUT else path
        self._display.say(f"{where}, line {number}: {reason}")

    async def _watch(
        self, sessions: RecordedSessions, scope: trio.CancelScope, url: str | None
    ) -> None:
        """Show how far it is, and give up when the endpoint takes nothing for too long."""
        patience = Patience(self._options.timeout)
        while True:
            await trio.sleep(LOOK_INTERVAL)
            total = sessions.books().total
            self._show(total)
            left = patience.look(
                trio.current_time(),
                progress=(self._tally.lines, total.delivered, total.dropped_total),
                is_waiting=total.pending > 0 and (sessions.is_waiting or self._was_read),
            )
            if left is None:
                continue
            wait = f"{total.pending:,} events wait, and {url} takes none"
            if left <= 0:
                self._display.say(f"{wait} for {self._options.timeout:g} s; giving up")
                self._gave_up = True
                scope.cancel()
            elif left == math.inf:
                self._display.say(f"{wait}; waiting on")
            else:
                self._display.say(f"{wait}; giving up in {left:.0f} s, see --timeout")

    def _show(self, total: Statistics) -> None:
        self._display.show(
            f"{self._tally.found:,} events read, {total.delivered:,} delivered, "
            f"{total.pending:,} waiting, {total.dropped_total:,} dropped",
            done=self._tally.bytes,
        )
