"""The edge of a session: the one place that sheds.

In: events, from any code of the agent; never waits. Out: chunks of entries, in the
order in which they were tracked.
Does not know: what becomes of the entries, what an event means.

Here an event is encoded, once: that costs a quarter of a microsecond, gives its
exact size for the bound on memory, and with it the event keeps what it said at that moment,
and nothing of the agent's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from gc import is_tracked

import trio

from trimaran._events import UNSET, Event, ToolCall
from trimaran._pipeline.encoder import EncodeError, encode_fast
from trimaran._pipeline.entry import (
    ENTRY_OVERHEAD,
    PLACE_BYTES,
    Chunk,
    Entry,
    Flush,
    gather,
    unstamped,
)
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.memory import MemoryBudget
from trimaran._pipeline.settled import TooLarge, settled_and_encoded
from trimaran._settings import Settings
from trimaran._spans import Place, untimed

__all__ = ["Mailbox"]

_CHUNK = 200
"""Entries handed on at once at most, so that the collector lets others run."""

_MOST_AHEAD = 2 * _CHUNK
"""Entries that may wait when one comes that can wait for its room. The rest of the room is
for those that cannot; and what comes to wait for no longer than that is still in the
processor's cache when its turn comes, which saves an eighth of the whole work."""


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
        self.event_bytes: int = min(settings.event_bytes, budget.limit - ENTRY_OVERHEAD)
        """Bytes that an event may take, encoded."""
        self._ledger = ledger
        self._budget = budget
        self._wall_clock = wall_clock
        self._last_number = 0
        self._routine: deque[Entry] = deque()
        self._urgent: deque[Entry] = deque()
        self._flushes: list[Flush] = []
        self._outstanding: list[Flush] = []
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
        self._append(entry)  # before it is in the books: the event's class may fail there
        ledger.tracked += 1
        ledger.pending += 1
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
            gather(self._outstanding, mark)
            gather(self._flushes, mark)
            self._wake_reader()

    def forget(self, mark: Flush) -> None:
        """Nobody waits for *mark* any more."""
        mark.abandon()

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
        is_flat = False
        if type(event) is ToolCall:
            # Most events are these, and of most of them one look says that nothing in them can
            # change: the garbage collector does not look after an event whose values hold
            # nothing. A look at each value would take half as long as all the rest here.
            is_flat = event.error is UNSET and not is_tracked(event)
        # Not isinstance(): that asks the value for its __class__, which may be anybody's code.
        elif not issubclass(type(event), Event):  # pyright: ignore[reportUnnecessaryIsInstance] - any caller
            return DropReason.ENCODE_ERROR
        if event.timestamp is not UNSET or event.session_id is not UNSET:
            event, time = unstamped(event, time)
            place = untimed(place)
        encoded = encode_fast(event) if is_flat else None
        if encoded is not None and len(encoded) <= self.event_bytes:
            size = len(encoded)
        else:
            try:
                event, encoded, size = settled_and_encoded(event, self.event_bytes)
            except TooLarge:
                return DropReason.TOO_LARGE
            except EncodeError:
                return DropReason.ENCODE_ERROR
        if place is not None:
            size += PLACE_BYTES
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
        if len(self) >= self._capacity and not self.shed_one(for_urgent=entry.event.urgent):
            return False
        budget = self._budget
        while budget.used + entry.size > budget.limit:
            heaviest = budget.heaviest()
            if heaviest is None or not heaviest.shed_one(
                for_urgent=entry.event.urgent or heaviest is not self
            ):
                return False
        return True

    def shed_one(self, *, for_urgent: bool) -> bool:
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
        self._budget.hand_on(size)
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
        self._budget.settle(size)
        self._wake_reader()

    def end(self) -> None:
        """The session's tasks are over: nothing that waits will be handed on.

        Its bytes, here and downstream, are free again; the books are the caller's.
        """
        self._ended = True
        self.peak = max(self.peak, len(self))
        self.close()
        self._budget.settle(self._downstream)
        self._budget.release(self.held)
        self._budget.leave(self)
        self._charged = self._downstream = 0
        self._routine.clear()
        self._urgent.clear()
        self._flushes.clear()
        outstanding, self._outstanding = self._outstanding, []
        for mark in outstanding:
            if mark.is_awaited:
                mark.reach()

    async def aclose(self) -> None:
        """Close the reading end: nothing more is taken, since nothing would be handed on."""
        self.close()
        await trio.lowlevel.checkpoint()
