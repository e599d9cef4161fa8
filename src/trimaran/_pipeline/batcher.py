"""Stage 2: events become batches.

In: chunks of masked entries. Out: batches, each due by count, bytes, age, urgency,
a flush or the end.
Does not know: how a batch is sent, what becomes of it.

Filling and handing over are two tasks, so that while the sender is busy whatever
comes in gathers to full batches behind the one that it will take next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import msgspec
import trio
from trio.abc import ReceiveChannel, SendChannel

from trimaran._events import ErrorEvent
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.encoder import EncodeError, encode
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.mailbox import Chunk, Entry, Flush
from trimaran._pipeline.wire import Context, body, stamped
from trimaran._settings import Settings

__all__ = ["Backlog", "Line", "batch_events", "loss_reports"]

_ENVELOPE = 1024
"""Bytes of a body beside its events, at most for an ordinary context."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """An event as it goes out."""

    encoded: bytes
    size: int
    """Bytes that it is charged with, from the mailbox on until its fate is known."""
    urgent: bool
    arrived: float
    """When it reached this stage, in seconds of a monotonic clock."""


class Backlog:
    """Encoded events that wait to become a batch, and what makes them due.

    Pure: the time comes in as an argument.

    Args:
        settings: what a batch holds at most, and for how long it may wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._most_events = settings.batch_events
        self._most_bytes = settings.batch_bytes - _ENVELOPE
        self._flush_interval = settings.flush_interval
        self._most_waiting = settings.backlog_events
        self._waiting: deque[Line | Flush] = deque()
        self._bytes = 0
        self._urgent = 0
        self._flushes = 0
        self._ended = False

    def __len__(self) -> int:
        return len(self._waiting) - self._flushes

    def add(self, line: Line) -> None:
        """*line* came in."""
        self._waiting.append(line)
        self._bytes += len(line.encoded) + 1
        self._urgent += line.urgent

    def mark(self, flush: Flush) -> None:
        """Everything so far is due, and *flush* belongs behind it."""
        self._waiting.append(flush)
        self._flushes += 1

    def end(self) -> None:
        """Nothing more comes in: whatever waits is due."""
        self._ended = True

    @property
    def is_full(self) -> bool:
        """Whether what comes in has to wait."""
        return len(self._waiting) >= self._most_waiting

    @property
    def is_over(self) -> bool:
        """Whether nothing waits and nothing will."""
        return self._ended and not self._waiting

    def due_at(self) -> float:
        """When the next batch is due, by the clock of the lines; infinity if nothing waits."""
        if (
            self._urgent
            or self._flushes
            or len(self._waiting) >= self._most_events
            or self._bytes >= self._most_bytes
            or (self._ended and self._waiting)
        ):
            return float("-inf")
        if not self._waiting:
            return float("inf")
        head = self._waiting[0]
        assert isinstance(head, Line)  # with a mark in the backlog, all of it is due
        return head.arrived + self._flush_interval

    def take(self) -> tuple[list[Line], list[Flush]]:
        """Take the next batch's lines, and the marks right behind them."""
        lines: list[Line] = []
        flushes: list[Flush] = []
        size = 0
        waiting = self._waiting
        while waiting:
            head = waiting[0]
            if isinstance(head, Flush):
                flushes.append(head)
                self._flushes -= 1
            else:
                size += len(head.encoded) + 1
                if flushes or len(lines) == self._most_events or (lines and size > self._most_bytes):
                    break
                lines.append(head)
                self._bytes -= len(head.encoded) + 1
                self._urgent -= head.urgent
            waiting.popleft()
        return lines, flushes


async def batch_events(
    receive: ReceiveChannel[Chunk],
    send: SendChannel[Batch],
    *,
    settings: Settings,
    context: Context,
    key_prefix: str,
    ledger: Ledger,
    drop: Callable[[Entry, DropReason], None],
    wall_clock: Callable[[], float],
) -> None:
    """Run the stage until its input ends; both its ends are closed then.

    An event with no JSON form is dropped alone, through *drop*. A cancel leaves what
    waits to the session, which counts it.

    Args:
        receive: masked entries.
        send: finished batches.
        settings: what a batch holds at most, and for how long it may wait.
        context: what every batch says of its session.
        key_prefix: unique over all sessions of all time; a batch's key begins with it.
        ledger: the session's books, for the losses to report.
        drop: told of an entry that cannot go out, and why.
        wall_clock: seconds since the epoch.
    """
    backlog = Backlog(settings)
    session_id_json = msgspec.json.encode(context.session_id)
    changed = _Changes()

    @trio.lowlevel.enable_ki_protection
    async def fill() -> None:
        async with receive:
            async for entries, flushes in receive:
                now = trio.current_time()
                for entry in entries:
                    line = _line(entry, session_id_json, settings.event_bytes, now)
                    if isinstance(line, Line):
                        backlog.add(line)
                    else:
                        drop(entry, line)
                for flush in flushes:
                    backlog.mark(flush)
                changed.tell()
                while backlog.is_full:
                    await changed.wait()
        backlog.end()
        changed.tell()

    @trio.lowlevel.enable_ki_protection
    async def hand_over() -> None:
        number = 0
        async with send:
            while not backlog.is_over:
                if backlog.due_at() > trio.current_time():
                    with trio.move_on_at(backlog.due_at()):
                        await changed.wait()
                    continue
                lines, flushes = backlog.take()
                changed.tell()
                losses = ledger.take_losses()
                time = wall_clock()
                reports = loss_reports(losses, time, session_id_json)
                events = [*reports, *(line.encoded for line in lines)]
                await send.send(
                    Batch(
                        key=f"{key_prefix}-{number}",
                        body=body(context, events, timestamp=int(time * 1000)) if events else None,
                        events=len(events),
                        reports=len(reports),
                        losses=losses,
                        flushes=flushes,
                        size=sum(line.size for line in lines),
                    )
                )
                number += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        nursery.start_soon(hand_over)


class _Changes:
    """Lets the two tasks of the stage wait for each other's change of the backlog."""

    def __init__(self) -> None:
        self._waiters = trio.lowlevel.ParkingLot()

    def tell(self) -> None:
        self._waiters.unpark_all()

    async def wait(self) -> None:
        await self._waiters.park()


def loss_reports(
    losses: Mapping[DropReason, int], time: float, session_id_json: bytes
) -> list[bytes]:
    """The events that tell the endpoint of *losses*, encoded; *time* since the epoch.

    What had no room is told in the origin's words; other losses, which the origin did
    not know, in an event of their own with the number for each reason.
    """
    overflow = losses.get(DropReason.MAILBOX_FULL, 0)
    others = {reason: n for reason, n in losses.items() if reason is not DropReason.MAILBOX_FULL}
    events: list[ErrorEvent] = []
    if overflow:
        events.append(
            ErrorEvent(
                error_name="TelemetryBufferOverflow",
                error_message=f"{overflow} events dropped due to buffer overflow",
                context="telemetry",
            )
        )
    if others:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(others.items()))
        events.append(
            ErrorEvent(
                error_name="TelemetryLoss",
                error_message=f"{sum(others.values())} events dropped: {reasons}",
                context="telemetry",
            )
        )
    return [
        stamped(encode(event), timestamp=int(time * 1000), session_id_json=session_id_json)
        for event in events
    ]


def _line(
    entry: Entry, session_id_json: bytes, most_bytes: int, now: float
) -> Line | DropReason:
    """The entry as it goes out, or why it cannot."""
    encoded = entry.encoded
    if encoded is None:
        try:
            encoded = encode(entry.event)
        except EncodeError:
            return DropReason.ENCODE_ERROR
        if len(encoded) > most_bytes:
            return DropReason.TOO_LARGE
    return Line(
        stamped(encoded, timestamp=int(entry.time * 1000), session_id_json=session_id_json),
        entry.size,
        entry.event.urgent,
        now,
    )
