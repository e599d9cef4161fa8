"""Where the ways to several destinations part, behind the collector.

In: chunks of masked entries. Out: the same entries, in a mailbox for each destination.
Does not know: what becomes of them there, how many sessions there are.

A destination that is slow fills its own mailbox, which sheds then; the others are not held
up. What comes in waits for room in the mailbox of the quickest alone, so that it sheds nothing
which can wait. The quickest is the one with the fewest bytes on its way, over all sessions; who
has not even twice as many is as quick, since a few of them more or less may be chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio
from msgspec.structs import replace

from trimaran._events import SessionEnd
from trimaran._pipeline.encoder import encode_fast
from trimaran._pipeline.entry import Chunk, Entry, Flush
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.memory import MemoryBudget
from trimaran._settings import Settings

__all__ = ["Branch", "FanOut"]


class Branch(Mailbox):
    """The mailbox of one destination: takes entries that have been through the collector.

    Args:
        settings: its bounds and policy.
        ledger: the books of the destination.
        budget: the bytes of what is on the way there.
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
        super().__init__(settings, ledger=ledger, budget=budget, wall_clock=wall_clock)
        self.room: Callable[[], object] = lambda: None
        """Told when there may be room again."""
        self._has_end = False

    @property
    def is_over(self) -> bool:
        """Whether what it takes has its fate already."""
        return self._ended

    @property
    def load(self) -> int:
        """Bytes that are on the way to this destination, from all sessions."""
        return self._budget.used

    def has_room_for(self, entry: Entry) -> bool:
        """Whether *entry* can be taken without shedding anything."""
        return not self._ended and self._has_room(entry)

    def await_room(self) -> None:
        """Tell *room* also when bytes are freed by another session."""
        self._budget.await_room(self)

    def take(self, entry: Entry) -> None:
        """Take *entry*, shedding what the policy says if there is no room. Never raises."""
        self._ledger.track()
        self._last_number = entry.number
        if not self._ended and (
            self._has_room(entry) or self._make_room(entry) or self._is_first_end(entry)
        ):
            self._append(entry)
        else:
            self._ledger.drop(self.full_because)

    def _is_first_end(self, entry: Entry) -> bool:
        """Whether *entry* is the session's end, which is taken without room, too; once, since
        the host may track such events as well.
        """
        is_first = isinstance(entry.event, SessionEnd) and not self._has_end
        self._has_end = self._has_end or is_first
        return is_first

    def mark(self, flush: Flush, reached: Callable[[], object]) -> None:
        """Put a part of *flush* behind everything so far; *reached* is told once, perhaps at once,
        if somebody waits for the flush.
        """
        self._put_mark(_Part(flush, self._last_number, reached))

    def report(self, losses: Mapping[DropReason, int]) -> None:
        """The next batch tells of *losses*, which no destination heard of yet."""
        self._ledger.give_back_losses(losses)

    def break_off(self) -> None:
        """What is on its way to this destination is lost to a bug, and so is what comes."""
        self.full_because = DropReason.BUG
        self.end()

    def room_may_have_come(self) -> None:
        """See :class:`Mailbox`."""
        super().room_may_have_come()
        self.room()


class _Part(Flush):
    """A flush's mark on the way to one of its destinations."""

    __slots__ = ("_tell", "_whole")

    def __init__(self, whole: Flush, number: int, tell: Callable[[], object]) -> None:
        super().__init__(number)
        self._whole = whole
        self._tell = tell

    @property
    def is_awaited(self) -> bool:
        return self._whole.is_awaited and super().is_awaited

    def reach(self) -> None:
        if not self.is_reached:
            super().reach()
            self._tell()


class FanOut(trio.abc.SendChannel[Chunk]):
    """The collector's way to several destinations.

    Args:
        branches: one for each of them.
        intake: the books of what has not got here yet; what has counts as delivered there.
        release: told the bytes of what has got here.
        event_bytes: what an event's encoded form may take.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        *,
        intake: Ledger,
        release: Callable[[int], object],
        event_bytes: int,
    ) -> None:
        self._branches = branches
        self._intake = intake
        self._release = release
        self._event_bytes = event_bytes
        self._waiting = trio.lowlevel.ParkingLot()
        for branch in branches:
            branch.room = self._waiting.unpark_all

    async def send(self, value: Chunk) -> None:
        """Hand *value* to every destination; waits while the quickest has no room for it.

        A checkpoint. A cancel leaves what was not handed on in the books of the intake.
        """
        await trio.lowlevel.checkpoint()
        self._report_losses()
        size = 0
        for given in value.entries:
            entry = self._encoded(given)
            while not self._may_pass(entry):
                await self._waiting.park()
            for branch in self._branches:
                branch.take(entry)
            self._intake.deliver(1)
            size += entry.size
        self._release(size)
        for flush in value.flushes:
            self._mark(flush)

    def _may_pass(self, entry: Entry) -> bool:
        """Whether the quickest can take *entry*, or nobody ever will; if not, room is told of."""
        for branch in self._branches:
            if not branch.has_room_for(entry):
                break
        else:
            return True
        living = [branch for branch in self._branches if not branch.is_over]
        least = min((branch.load for branch in living), default=0)
        quickest = [branch for branch in living if branch.load < 2 * least or branch.load == least]
        if all(branch.has_room_for(entry) for branch in quickest):
            return True
        for branch in living:
            branch.await_room()
        return False

    def _encoded(self, entry: Entry) -> Entry:
        """*entry*, encoded once for all; what cannot be is each destination's to drop."""
        if entry.encoded is None:
            encoded = encode_fast(entry.event)
            if encoded is not None and len(encoded) <= self._event_bytes:
                return replace(entry, encoded=encoded)
        return entry

    def _report_losses(self) -> None:
        """What was lost before the ways part was lost to every destination."""
        losses = self._intake.take_losses()
        for branch in self._branches:
            branch.report(losses)

    def _mark(self, flush: Flush) -> None:
        left = len(self._branches)

        def reached() -> None:
            nonlocal left
            left -= 1
            if not left:
                flush.reach()

        for branch in self._branches:
            branch.mark(flush, reached)

    async def aclose(self) -> None:
        """Nothing more comes. A checkpoint."""
        for branch in self._branches:
            branch.close()
        await trio.lowlevel.checkpoint()
