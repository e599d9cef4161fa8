"""Stage 2: events become batches.

In: chunks of masked entries. Out: batches, each due by count, bytes, age, urgency,
want of room, a flush or the end.
Does not know: how a batch is sent, what becomes of it, other sessions.

Filling and handing over are two tasks, so that while the sender is busy whatever
comes in gathers to full batches behind the one that it will take next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
import trio
from trio.abc import ReceiveChannel, SendChannel

from trimaran._events import ErrorEvent, Event
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.encoder import EncodeError, encode
from trimaran._pipeline.entry import Chunk, Entry, Flush, gather
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.members import Members
from trimaran._pipeline.memory import MemoryBudget
from trimaran._pipeline.wire import Context, Stamper, body, stamped
from trimaran._settings import Settings

__all__ = ["Backlog", "Bundle", "batch_events", "loss_reports"]

_ENVELOPE = 1024
"""Bytes of a body beside its events, at most for an ordinary context."""

_AT_ONCE = -math.inf
"""A time that has come already."""


class Bundle:
    """Events that will share a batch, while they wait for it."""

    __slots__ = ("due_at", "events", "flushes", "length", "size")

    def __init__(self, due_at: float) -> None:
        self.due_at = due_at
        """When they are to be sent, full or not."""
        self.events: list[bytes] = []
        self.length = 0
        """Bytes that they take in a body, each with its comma."""
        self.size = 0
        """Bytes that they are charged with."""
        self.flushes: list[Flush] = []
        """Marks right behind them."""


class Backlog:
    """Encoded events that wait to become batches, and what makes these due.

    They are bundled as they come in, so that taking a batch costs nothing for each of
    its events. Pure: the time comes in as an argument.

    Args:
        settings: what a batch holds at most, and for how long it may wait.
        flush_interval: that time where it changes, in seconds; None is as *settings* say.
    """

    def __init__(
        self, settings: Settings, flush_interval: Callable[[], float] | None = None
    ) -> None:
        self._most_events = settings.batch_events
        self._most_bytes = settings.batch_bytes - _ENVELOPE
        self._flush_interval = flush_interval or (lambda: settings.flush_interval)
        self._most_waiting = settings.backlog_events
        self._bundles: list[Bundle] = []
        self._open: Bundle | None = None
        """The last bundle, while it takes more; there is an event in it."""
        self._waiting = 0
        self._ended = False

    def __len__(self) -> int:
        return self._waiting

    def add(self, encoded: bytes, size: int, *, urgent: bool, now: float) -> None:
        """An event came in, charged with *size* bytes."""
        length = len(encoded) + 1
        bundle = self._open
        if bundle is None or bundle.length + length > self._most_bytes:
            self._close()
            bundle = self._open = Bundle(now + self._flush_interval())
            self._bundles.append(bundle)
        bundle.events.append(encoded)
        bundle.length += length
        bundle.size += size
        self._waiting += 1
        if urgent:
            bundle.due_at = _AT_ONCE
        if len(bundle.events) >= self._most_events:
            self._close()

    def mark(self, flush: Flush) -> None:
        """Everything so far is due, and *flush* belongs behind it."""
        self._close()
        if not self._bundles:
            self._bundles.append(Bundle(_AT_ONCE))
        gather(self._bundles[-1].flushes, flush)

    def end(self) -> None:
        """Nothing more comes in: whatever waits is due."""
        self._close()
        self._ended = True

    def _close(self) -> None:
        """Nothing more goes into the last bundle, so that there is nothing to wait for."""
        if self._open is not None:
            self._open.due_at = _AT_ONCE
            self._open = None

    @property
    def is_full(self) -> bool:
        """Whether what comes in has to wait."""
        return self._waiting >= self._most_waiting

    @property
    def is_over(self) -> bool:
        """Whether nothing waits and nothing will."""
        return self._ended and not self._bundles

    def due_at(self, *, most_held_back: float = math.inf) -> float:
        """When the next batch is due, by the clock of *now*; infinity if nothing waits.

        It is due at once if what it would wait for cannot come in, and if its events are
        charged with more than *most_held_back* bytes.
        """
        if not self._bundles:
            return math.inf
        bundle = self._bundles[0]
        is_pressed = self.is_full or bundle.size > most_held_back
        return _AT_ONCE if is_pressed else bundle.due_at

    def take(self) -> Bundle:
        """Take what becomes the next batch; there must be something."""
        bundle = self._bundles.pop(0)
        if bundle is self._open:
            self._open = None
        self._waiting -= len(bundle.events)
        return bundle


@trio.lowlevel.enable_ki_protection
async def batch_events(
    receive: ReceiveChannel[Chunk],
    send: SendChannel[Batch],
    *,
    settings: Settings,
    context: Context,
    parent_session_id: str = "",
    key_prefix: str,
    members: Members | None = None,
    ledger: Ledger,
    budget: MemoryBudget,
    drop: Callable[[Entry, DropReason], None],
    flush_interval: Callable[[], float] | None = None,
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
        parent_session_id: the session that this one works for; beside the body, since that
            has no place for it.
        key_prefix: unique over all sessions of all time; a batch's key begins with it.
        members: what is said beside the origin's wire, where the destination wants it.
        ledger: the session's books, for the losses to report.
        budget: the bytes of what is on this way; says how many may wait for others.
        drop: told of an entry that cannot go out, and why.
        flush_interval: as in :class:`Backlog`.
        wall_clock: seconds since the epoch.
    """
    stage = _Stage(
        settings=settings,
        context=context,
        parent_session_id=parent_session_id,
        key_prefix=key_prefix,
        members=members,
        ledger=ledger,
        budget=budget,
        drop=drop,
        flush_interval=flush_interval,
        wall_clock=wall_clock,
    )
    budget.watch(stage.look_again)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.fill, receive)
            await stage.hand_over(send)
    finally:
        budget.unwatch(stage.look_again)


class _Stage:
    """The two tasks, and what they share. Neither keeps anything of what has gone on:
    there may be a thousand sessions that wait for their next event.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        context: Context,
        parent_session_id: str,
        key_prefix: str,
        members: Members | None,
        ledger: Ledger,
        budget: MemoryBudget,
        drop: Callable[[Entry, DropReason], None],
        flush_interval: Callable[[], float] | None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._event_bytes = settings.event_bytes
        self._context = context
        self._parent_session_id = parent_session_id
        self._key_prefix = key_prefix
        self._members = members
        self._ledger = ledger
        self._budget = budget
        self._drop = drop
        self._wall_clock = wall_clock
        self._session_id_json = msgspec.json.encode(context.session_id)
        self._stamper = Stamper(self._session_id_json)
        self._backlog = Backlog(settings, flush_interval)
        self._changed = _Changes()
        self._batches = 0

    @trio.lowlevel.enable_ki_protection
    async def fill(self, receive: ReceiveChannel[Chunk]) -> None:
        """Bundle what comes in, up to what may wait."""
        async with receive:
            async for chunk in receive:
                self._take_in(chunk)
                del chunk
                self._changed.tell()
                while self._backlog.is_full:
                    await self._changed.wait()
        self._backlog.end()
        self._changed.tell()

    async def hand_over(self, send: SendChannel[Batch]) -> None:
        """Send what is due."""
        backlog, budget = self._backlog, self._budget
        async with send:
            while not backlog.is_over:
                due_at = backlog.due_at(most_held_back=budget.most_held_back)
                if due_at > trio.current_time():
                    with trio.move_on_at(due_at):
                        await self._changed.wait()
                    continue
                bundle = backlog.take()
                self._changed.tell()
                batch = self._finished(bundle)
                del bundle
                await send.send(batch)
                del batch

    def look_again(self) -> None:
        """What waits may be due, since memory is short."""
        self._changed.tell()

    def _take_in(self, chunk: Chunk) -> None:
        now = trio.current_time()
        stamped, add, members = self._stamper.stamped, self._backlog.add, self._members
        for entry in chunk.entries:
            encoded = entry.encoded or _encoded(entry.event, self._event_bytes)
            if isinstance(encoded, bytes):
                if members is not None:
                    encoded = members.put_into(encoded, entry)
                line = stamped(encoded, entry.time)
                add(line, entry.size, urgent=entry.event.urgent, now=now)
            else:
                self._drop(entry, encoded)
        for flush in chunk.flushes:
            self._backlog.mark(flush)

    def _finished(self, bundle: Bundle) -> Batch:
        losses = self._ledger.take_losses()
        time = self._wall_clock()
        reports = loss_reports(losses, time, self._session_id_json)
        events = [*reports, *bundle.events]
        app, traceparent = ("", "") if self._members is None else self._members.of_session
        number, self._batches = self._batches, self._batches + 1
        return Batch(
            key=f"{self._key_prefix}-{number}",
            body=body(self._context, events, timestamp=int(time * 1000), app=app)
            if events
            else None,
            events=len(events),
            reports=len(reports),
            losses=losses,
            parent_session_id=self._parent_session_id,
            traceparent=traceparent,
            flushes=bundle.flushes,
            size=bundle.size,
        )


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


def _encoded(event: Event, most_bytes: int) -> bytes | DropReason:
    """The event's JSON form, or why there is none that can go out."""
    try:
        encoded = encode(event)
    except EncodeError:
        return DropReason.ENCODE_ERROR
    return DropReason.TOO_LARGE if len(encoded) > most_bytes else encoded
