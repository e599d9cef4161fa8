"""Waiting for a better moment, and not having to when time runs out.

In: moments, by trio's clock. Out: the end of a wait.
Does not know: what is waited for.
"""

from __future__ import annotations

import trio

__all__ = ["Pauses"]


class Pauses:
    """The pauses of all who wait for one thing."""

    def __init__(self) -> None:
        self._hurried = trio.Event()

    def hurry(self) -> None:
        """Time runs out: whoever waits may try once, now."""
        self._hurried.set()

    async def until(self, time: float) -> None:
        """Sleep until *time*, by trio's clock, or until time runs out for the first time."""
        with trio.move_on_at(time):
            if self._hurried.is_set():
                await trio.sleep_forever()
            await self._hurried.wait()
