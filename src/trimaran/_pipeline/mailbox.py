"""The edge of a session: the one place that sheds.

In: events, from any code of the agent; never waits. Out: chunks of entries, in the
order in which they were tracked.
Does not know: what becomes of the entries, what an event means.

Here an event is encoded, once: that costs a quarter of a microsecond, gives its
exact size for the bound on memory, and keeps what the event said at that moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import trio

from trimaran._events import Event
from trimaran._pipeline.encoder import encode_fast
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.size import rough_size
from trimaran._settings import Settings
from trimaran._spans import Place

UNSET = msgspec.UNSET

__all__ = ["Chunk", "Entry", "Flush", "Mailbox", "MemoryBudget"]

ENTRY_OVERHEAD = 500
"""Bytes that an event takes beside its encoded form while it waits: the object, the
strings that are its own, the entry. For a tool call with an id of its own, tracemalloc
counts 493 on CPython 3.11."""

_PLACE_BYTES = 160
"""Bytes that an event's place among the spans takes, where it has one of its own."""

ERROR_TEXT_WINDOW = 4096
"""Characters of an error's text that are kept of an event that is too large. It is cut
at 500 in the end, after masking; the rest is there so that no secret is cut in half."""

MOST_MILLISECONDS = 1 << 51
"""A timestamp past this is no time; it is 71,000 years, and up to it a count of milliseconds
can be turned to seconds and back."""

_CHUNK = 200
"""Entries handed on at once at most, so that the collector lets others run."""

_MOST_AHEAD = 2 * _CHUNK
"""Entries that may wait when one comes that can wait for its room. The rest of the room is
for those that cannot; and what comes to wait for no longer than that is still in the
processor's cache when its turn comes, which saves an eighth of the whole work."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An event that waits.

    The garbage collector does not look at it, which is cheaper for all that wait: a
    cycle that leads through the pipeline is broken when the session ends.
    """

    number: int
    """Counts what went into this mailbox from 1; the order across its two queues."""
    time: float
    """When it was tracked, in seconds since the epoch."""
    event: Event
    encoded: bytes | None
    """The event as JSON; None when it has no plain JSON form."""
    size: int
    """Bytes that it is charged with."""
    place: Place | None = None
    """Which span it is, and below which; None for what follows from its number, below all."""


class Flush:
    """A mark in the stream: reached when everything before it has its fate."""

    __slots__ = ("_reached", "number")

    def __init__(self, number: int) -> None:
        self.number: int = number
        """The last entry before it."""
        self._reached = trio.Event()

    def reach(self) -> None:
        """Wake who waits. May be called again."""
        self._reached.set()

    @property
    def is_reached(self) -> bool:
        """Whether everything before it has its fate."""
        return self._reached.is_set()

    async def wait(self) -> None:
        """Wait until it is reached; a cancel leaves it in the stream."""
        await self._reached.wait()


class Chunk(NamedTuple):
    """Entries in order, and the marks that stand behind them."""

    entries: list[Entry]
    flushes: Sequence[Flush] = ()


class MemoryBudget:
    """Bytes that all sessions of a telemetry hold together.

    When there is no room, the session that holds most sheds first, or one that holds
    nearly as much. Only what waits in a mailbox can be shed, so no session hands on
    more than its share once half of the memory is on its way: a quiet session loses
    nothing to a loud one.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.used: int = 0
        self.downstream: int = 0
        """How much of it was handed on, and cannot be shed any more."""
        # Dicts for their order, which a run with the same seeds repeats.
        self._mailboxes: dict[Mailbox, None] = {}
        self._heaviest: Mailbox | None = None
        self._starved: dict[Mailbox, None] = {}

    def join(self, mailbox: Mailbox) -> None:
        """*mailbox* holds bytes from now on."""
        self._mailboxes[mailbox] = None

    def leave(self, mailbox: Mailbox) -> None:
        """*mailbox* has ended and holds nothing any more."""
        self._mailboxes.pop(mailbox, None)
        self._starved.pop(mailbox, None)
        if self._heaviest is mailbox:
            self._heaviest = None

    def release(self, size: int) -> None:
        """*size* bytes are free again."""
        self.used -= size
        if self._starved:
            starved, self._starved = self._starved, {}
            for mailbox in starved:
                mailbox.room_may_have_come()

    def await_room(self, mailbox: Mailbox) -> None:
        """Tell *mailbox* when bytes are freed."""
        self._starved[mailbox] = None

    def heaviest(self) -> Mailbox | None:
        """The session to shed from; None when no mailbox holds anything.

        It is looked for again only when the last one is down to three quarters of an even
        share, so that a long overload does not cost a walk over all sessions for each event.
        """
        heaviest = self._heaviest
        waiting = self.used - self.downstream
        if heaviest is None or 4 * heaviest.held * len(self._mailboxes) <= 3 * waiting:
            heaviest = max(self._mailboxes, key=_held, default=None)
            self._heaviest = heaviest
        return heaviest if heaviest is not None and heaviest.held > 0 else None

    def is_crowded_by(self, downstream: int) -> bool:
        """Whether a session that has handed on so many bytes must not hand on more.

        One that has handed on nothing may always go on, and whoever may not has a batch on
        its way, so that it looks again when that has its fate.
        """
        half = self.limit // 2
        return self.downstream >= half and downstream > half // len(self._mailboxes)


def _held(mailbox: Mailbox) -> int:
    return mailbox.held


class _Line:
    """Those who wait for a mailbox's room: the first for room, the others for their turn."""

    __slots__ = ("first", "length", "turn")

    def __init__(self) -> None:
        self.length: int = 0
        self.turn: trio.StrictFIFOLock = trio.StrictFIFOLock()
        self.first: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()


class Mailbox(trio.abc.ReceiveChannel[Chunk]):
    """Takes events without ever waiting, hands them on in chunks.

    Full, in events or in the telemetry's bytes, it sheds: routine events before
    urgent ones, the oldest or the newest of them by policy.

    Args:
        settings: its bounds and policy.
        ledger: the session's books.
        budget: the telemetry's bytes.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ledger: Ledger,
        budget: MemoryBudget,
        wall_clock: Callable[[], float],
    ) -> None:
        self._capacity = settings.mailbox_events
        self._most_ahead = min(settings.mailbox_events, _MOST_AHEAD)
        self._sheds_oldest = settings.mailbox_policy == "drop_oldest"
        # What could never have room is too large, or it would be waited with for ever.
        self._event_bytes = min(settings.event_bytes, budget.limit - ENTRY_OVERHEAD)
        self._ledger = ledger
        self._budget = budget
        self._wall_clock = wall_clock
        self._last_number = 0
        self._routine: deque[Entry] = deque()
        self._urgent: deque[Entry] = deque()
        self._flushes: list[Flush] = []
        self._outstanding: dict[Flush, None] = {}
        self._reader: trio.Event | None = None
        self._line: _Line | None = None
        self._refuses = False
        """Whether the session's own process may put nothing more in."""
        self._closed = False
        """Whether nobody may."""
        self._ended = False
        self._charged = 0
        self._downstream = 0
        self.full_because: DropReason = DropReason.MAILBOX_FULL
        """Why there is no room when there is none: what is shed has this reason."""
        self.peak: int = 0
        """Most events that waited at once, as far as the reader saw."""
        budget.join(self)

    def __len__(self) -> int:
        return len(self._routine) + len(self._urgent)

    @property
    def held(self) -> int:
        """Bytes of what waits here, and could be shed."""
        return self._charged - self._downstream

    # The writing end, on the agent's side.

    def put(
        self,
        event: Event,
        time: float | None = None,
        place: Place | None = None,
        *,
        always: bool = False,
    ) -> None:
        """Take *event*, shedding what the policy says if there is no room. Never raises.

        Args:
            event: what happened; anything else is counted as ``encode_error``.
            time: seconds since the epoch; now, if None.
            place: where it stands among the spans.
            always: take it even without room, and after a :meth:`refuse`; for what a session
                says of itself.
        """
        ledger = self._ledger
        ledger.tracked += 1
        ledger.pending += 1
        if self._refuses and not (always and not self._closed):
            ledger.drop(DropReason.CLOSED)
            return
        entry = self._entry(event, time, place)
        if not isinstance(entry, Entry):
            ledger.drop(entry)
        elif always or self._has_room(entry) or self._make_room(entry):
            self._append(entry)
        else:
            ledger.drop(self.full_because)

    def put_if_room(
        self,
        event: Event,
        time: float | None = None,
        place: Place | None = None,
        *,
        in_turn: bool = False,
        from_child: bool = False,
    ) -> bool:
        """Take *event* unless there is no room for it; nothing is shed for it.

        Args:
            event: what happened.
            time: seconds since the epoch; now, if None.
            place: where it stands among the spans.
            in_turn: do not mind others who wait for room.
            from_child: another process hands it over, and may do so until :meth:`close`.

        Returns:
            False where there is no room, and nothing has happened. True else, also for an
            event that cannot be taken at all, which is counted as :meth:`put` does.
        """
        if self._line is not None and not in_turn:
            return False
        ledger, budget = self._ledger, self._budget
        is_late = self._closed if from_child else self._refuses
        entry = DropReason.CLOSED if is_late else self._entry(event, time, place)
        if not isinstance(entry, Entry):
            ledger.track()
            ledger.drop(entry)
            return True
        if (
            len(self._routine) + len(self._urgent) >= self._most_ahead
            or budget.used + entry.size > budget.limit
        ):
            return False
        ledger.tracked += 1
        ledger.pending += 1
        self._append(entry)
        return True

    async def put_when_room(
        self,
        event: Event,
        time: float | None = None,
        place: Place | None = None,
        *,
        from_child: bool = False,
    ) -> None:
        """Take *event* as soon as there is room; nothing is shed for it.

        Those who wait get their room in the order in which they came. A checkpoint. A
        cancel leaves the event untracked.
        """
        time = self._wall_clock() if time is None else time
        line = self._line = self._line or _Line()
        line.length += 1
        try:
            async with line.turn:
                while not self.put_if_room(event, time, place, in_turn=True, from_child=from_child):
                    self._budget.await_room(self)
                    await line.first.park()
        finally:
            line.length -= 1
            if not line.length:
                self._line = None

    def flush(self) -> Flush:
        """Put a mark behind everything that was taken so far."""
        mark = Flush(self._last_number)
        self._put_mark(mark)
        return mark

    def _put_mark(self, mark: Flush) -> None:
        if self._ended:
            mark.reach()
        else:
            self._outstanding[mark] = None
            self._flushes.append(mark)
            self._wake_reader()

    def forget(self, mark: Flush) -> None:
        """Nobody waits for *mark* any more."""
        self._outstanding.pop(mark, None)

    def refuse(self) -> None:
        """Take nothing more but from other processes, which have some time left."""
        self._refuses = True
        self.room_may_have_come()

    def close(self) -> None:
        """Take nothing more; what waits is still handed on."""
        self._refuses = self._closed = True
        self._wake_reader()
        self.room_may_have_come()

    def room_may_have_come(self) -> None:
        """Let who waits for room look again."""
        if self._line is not None:
            self._line.first.unpark()

    def _entry(self, event: Event, time: float | None, place: Place | None) -> Entry | DropReason:
        """An entry for *event*, or why there cannot be one."""
        # Not isinstance(): that asks the value for its __class__, which may be anybody's code.
        if not issubclass(type(event), Event):  # pyright: ignore[reportUnnecessaryIsInstance] - any caller
            return DropReason.ENCODE_ERROR
        if event.timestamp is not UNSET or event.session_id is not UNSET:
            event, time = _unstamped(event, time)
        encoded = encode_fast(event)
        size = rough_size(event) if encoded is None else len(encoded)
        if size > self._event_bytes:
            event = _shortened(event)
            encoded = encode_fast(event)
            size = rough_size(event) if encoded is None else len(encoded)
            if size > self._event_bytes:
                return DropReason.TOO_LARGE
        if place is not None:
            size += _PLACE_BYTES
            if ENTRY_OVERHEAD + size > self._budget.limit:
                return DropReason.TOO_LARGE
        self._last_number = number = self._last_number + 1
        time = self._wall_clock() if time is None else time
        if place is None:
            return Entry(number, time, event, encoded, ENTRY_OVERHEAD + size)
        return Entry(number, time, event, encoded, ENTRY_OVERHEAD + size, place)

    def _append(self, entry: Entry) -> None:
        size = entry.size
        (self._urgent if entry.event.urgent else self._routine).append(entry)
        self._charged += size
        self._budget.used += size
        if self._reader is not None:
            self._wake_reader()

    def _has_room(self, entry: Entry) -> bool:
        budget = self._budget
        return (
            len(self._routine) + len(self._urgent) < self._capacity
            and budget.used + entry.size <= budget.limit
        )

    def _make_room(self, entry: Entry) -> bool:
        """Shed until *entry* fits; False when it is itself what has to go."""
        if len(self) >= self._capacity and not self._shed_one(for_urgent=entry.event.urgent):
            return False
        budget = self._budget
        while budget.used + entry.size > budget.limit:
            heaviest = budget.heaviest()
            if heaviest is None or not heaviest._shed_one(  # noqa: SLF001 - its own kind
                for_urgent=entry.event.urgent or heaviest is not self
            ):
                return False
        return True

    def _shed_one(self, *, for_urgent: bool) -> bool:
        """Drop one waiting entry, by policy; False when the new one should go instead."""
        if self._routine:
            if self._sheds_oldest:
                shed = self._routine.popleft()
            elif for_urgent:
                shed = self._routine.pop()
            else:
                return False
        elif self._urgent and for_urgent:
            if not self._sheds_oldest:
                return False
            shed = self._urgent.popleft()
        else:
            return False
        self._charged -= shed.size
        self._budget.release(shed.size)
        self._ledger.drop(self.full_because)
        return True

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.set()

    # The reading end, on the collector's side.

    async def receive(self) -> Chunk:
        """The next entries in order, and the marks behind them; waits for some.

        A cancel takes nothing out.

        Raises:
            trio.EndOfChannel: closed, and everything was handed on.
        """
        await trio.lowlevel.checkpoint()
        while not self._is_ready():
            if self._closed:
                raise trio.EndOfChannel
            self._reader = trio.Event()
            await self._reader.wait()
        return self._take()

    def _is_ready(self) -> bool:
        """Whether there is something to hand on, and it may go."""
        if self._flushes:
            return True
        if not (self._routine or self._urgent):
            return False
        return self._closed or not self._budget.is_crowded_by(self._downstream)

    def _take(self) -> Chunk:
        self.peak = max(self.peak, len(self))
        routine = self._routine
        if self._urgent or self._flushes:
            entries = self._next_in_order()
        else:
            entries = [routine.popleft() for _ in range(min(len(routine), _CHUNK))]
        size = sum([entry.size for entry in entries])
        self._downstream += size
        self._budget.downstream += size
        self.room_may_have_come()
        return Chunk(entries, self._reached())

    def _next_in_order(self) -> list[Entry]:
        """The next entries of both queues, up to the first mark."""
        last = self._flushes[0].number if self._flushes else self._last_number
        entries: list[Entry] = []
        routine, urgent = self._routine, self._urgent
        while len(entries) < _CHUNK:
            if routine and not (urgent and urgent[0].number < routine[0].number):
                queue = routine
            elif urgent:
                queue = urgent
            else:
                break
            if queue[0].number > last:
                break
            entries.append(queue.popleft())
        return entries

    def _reached(self) -> list[Flush]:
        """Take the marks that have nothing before them any more."""
        heads = [queue[0].number for queue in (self._routine, self._urgent) if queue]
        first_waiting = min(heads, default=self._last_number + 1)
        reached: list[Flush] = []
        while self._flushes and self._flushes[0].number < first_waiting:
            reached.append(self._flushes.pop(0))
        return reached

    def release(self, size: int) -> None:
        """The fate of *size* bytes that were handed on is known: they are free."""
        self._charged -= size
        self._downstream -= size
        self._budget.downstream -= size
        self._budget.release(size)
        self._wake_reader()

    def end(self) -> None:
        """The session's tasks are over: nothing that waits will be handed on.

        Its bytes, here and downstream, are free again; the books are the caller's.
        """
        self._ended = True
        self.peak = max(self.peak, len(self))
        self.close()
        self._budget.downstream -= self._downstream
        self._budget.release(self._charged)
        self._budget.leave(self)
        self._charged = self._downstream = 0
        self._routine.clear()
        self._urgent.clear()
        self._flushes.clear()
        outstanding, self._outstanding = self._outstanding, {}
        for mark in outstanding:
            mark.reach()

    async def aclose(self) -> None:
        """Close the reading end: nothing more is taken, since nothing would be handed on."""
        self.close()
        await trio.lowlevel.checkpoint()


def _unstamped(event: Event, time: float | None) -> tuple[Event, float | None]:
    """*event* without stamps of its own; its timestamp (ms) becomes the time (s)."""
    stamp = event.timestamp
    # Its very type, since a subclass may compare and divide by code of its own.
    if (type(stamp) is int or type(stamp) is float) and 0 <= stamp < MOST_MILLISECONDS:
        time = stamp / 1000
    return msgspec.structs.replace(event, timestamp=UNSET, session_id=UNSET), time


def _shortened(event: Event) -> Event:
    """*event* with its error texts cut to a window."""
    cut: dict[str, object] = {}
    for name in event.cut_fields:
        text = getattr(event, name, None)
        if type(text) is str and len(text) > ERROR_TEXT_WINDOW:
            cut[name] = text[:ERROR_TEXT_WINDOW]
    return msgspec.structs.replace(event, **cut) if cut else event
