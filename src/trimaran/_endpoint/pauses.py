"""Waiting for a better moment, and not having to when time runs out.

In: moments, by trio's clock; news that it may be time. Out: the end of a wait.
Does not know: what is waited for.
"""

from __future__ import annotations

import trio

__all__ = ["Pauses"]


class Pauses:
    """The pauses of all who wait for one thing."""

    def __init__(self) -> None:
        self._waiting = trio.lowlevel.ParkingLot()
        self._is_hurried = False

    def hurry(self) -> None:
        """Time runs out: whoever waits may try once, now; from now on, waits are whole."""
        self._is_hurried = True
        self._waiting.unpark_all()

    def nudge(self) -> None:
        """Whoever waits may look now; unless time runs out, when they have done so."""
        if not self._is_hurried:
            self._waiting.unpark_all()

    async def until(self, time: float) -> None:
        """Sleep until *time*, by trio's clock, or until the next :meth:`hurry` or :meth:`nudge`;
        to the end where time ran out before.
        """
        with trio.move_on_at(time):
            if self._is_hurried:
                await trio.sleep_forever()
            await self._waiting.park()
