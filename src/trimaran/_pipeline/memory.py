"""The bytes that all sessions of a telemetry hold together, and who gives some up.

In: who holds bytes. Out: who sheds, who may hand on more, how much may wait for company, who
is told of room and of the want of it.
Does not know: what is held, how it is shed, what it waits for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

__all__ = ["Holder", "MemoryBudget"]


class Holder(Protocol):
    """Holds some of the bytes."""

    @property
    def held(self) -> int:
        """Bytes of what waits, and could be shed."""
        ...

    def shed_one(self, *, for_urgent: bool) -> bool:
        """Drop one that waits, by policy; False when the new one should go instead."""
        ...

    def room_may_have_come(self) -> None:
        """Bytes were freed."""
        ...


class MemoryBudget:
    """Bytes that all sessions of a telemetry hold together.

    When there is no room, the session that holds most sheds first, or one that holds
    nearly as much. Only what waits in a mailbox can be shed, so no session hands on
    more than its share once half of the memory is on its way: a quiet session loses
    nothing to a loud one.

    Memory is short from when half of it is used until a quarter is. That long, what waits
    for others to share its batch takes no more than a quarter: nothing is shed because of
    events that could be sent. Were it short only while half is used, each batch might end it
    and the next begin it, and tell every session.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.used: int = 0
        self.downstream: int = 0
        """How much of it was handed on, and cannot be shed any more."""
        # Dicts for their order, which a run with the same seeds repeats.
        self._holders: dict[Holder, None] = {}
        self._heaviest: Holder | None = None
        self._starved: dict[Holder, None] = {}
        self._is_short = False
        self._watchers: dict[Callable[[], object], None] = {}

    def join(self, holder: Holder) -> None:
        """*holder* holds bytes from now on."""
        self._holders[holder] = None

    def leave(self, holder: Holder) -> None:
        """*holder* has ended and holds nothing any more."""
        self._holders.pop(holder, None)
        self._starved.pop(holder, None)
        if self._heaviest is holder:
            self._heaviest = None

    def watch(self, tell: Callable[[], object]) -> None:
        """From now on *tell* is called whenever memory becomes short."""
        self._watchers[tell] = None

    def unwatch(self, tell: Callable[[], object]) -> None:
        """*tell* is called no more."""
        self._watchers.pop(tell, None)

    def hand_on(self, size: int) -> None:
        """*size* bytes of what is used are on their way, and cannot be shed any more."""
        self.downstream += size
        if not self._is_short and 2 * self.used >= self.limit:
            self._is_short = True
            for tell in self._watchers:
                tell()

    def settle(self, size: int) -> None:
        """The fate of *size* bytes that were on their way is known: they are free again."""
        self.downstream -= size
        self.release(size)

    def release(self, size: int) -> None:
        """*size* bytes are free again."""
        self.used -= size
        if 4 * self.used <= self.limit:
            self._is_short = False
        if self._starved:
            starved, self._starved = self._starved, {}
            for holder in starved:
                holder.room_may_have_come()

    def await_room(self, holder: Holder) -> None:
        """Tell *holder* when bytes are freed."""
        self._starved[holder] = None

    def heaviest(self) -> Holder | None:
        """The session to shed from; None when no holder holds anything.

        It is looked for again only when the last one is down to three quarters of an even
        share, so that a long overload does not cost a walk over all sessions for each event.
        """
        heaviest = self._heaviest
        waiting = self.used - self.downstream
        if heaviest is None or 4 * heaviest.held * len(self._holders) <= 3 * waiting:
            heaviest = max(self._holders, key=_held, default=None)
            self._heaviest = heaviest
        return heaviest if heaviest is not None and heaviest.held > 0 else None

    def is_crowded_by(self, downstream: int) -> bool:
        """Whether a session that has handed on so many bytes must not hand on more.

        One that has handed on nothing may always go on. Whoever may not has more on its way
        than :attr:`most_held_back`, so that a batch of its own is due, and it looks again when
        that has its fate.
        """
        half = self.limit // 2
        return self.downstream >= half and downstream > half // len(self._holders)

    @property
    def most_held_back(self) -> float:
        """Bytes of a session that may wait at most for others to share their batch."""
        if not self._is_short:
            return math.inf
        return self.limit / 4 / max(1, len(self._holders))


def _held(holder: Holder) -> int:
    return holder.held
