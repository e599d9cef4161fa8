"""When the disk is asked, and for how long it is waited for.

In: calls that block. Out: what they give, or soon that they do not.
Does not know: what a call does, batches.

One call after the other. A disk that is busy for too long is left alone for a while, so that
those who can do without it are not held up, each in its turn, by what held up the one before.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import trio

from trimaran._aside import aside
from trimaran._spool.values import SpoolBusy, SpoolError

__all__ = ["PATIENCE", "REST", "Disk", "RunBlocking", "in_a_thread"]

_Result = TypeVar("_Result")

PATIENCE = 1.5
"""Seconds that somebody who can do without the disk waits for his turn at most, and then for the
disk. Longer than SQLite waits for who writes there: it gives up cleanly."""

REST = 5.0
"""Seconds after which a disk that was busy for too long is tried again; by one, for all."""


_SLOW = f"the disk took more than {PATIENCE:g} s"


class RunBlocking(Protocol):
    """Runs what blocks, aside: one call after the other, in the order in which they came."""

    def __call__(self, call: Callable[[], _Result], /) -> Awaitable[_Result]:
        """Run *call* and give what it returns. Cancelled, it is left to end by itself."""
        ...


def in_a_thread() -> RunBlocking:
    """Runs calls in a thread, one after the other."""
    limiter = trio.CapacityLimiter(1)

    async def run(call: Callable[[], _Result], /) -> _Result:
        return await aside(call, limiter=limiter)

    return run


async def _never(_call: Callable[[], _Result], /) -> _Result:
    await trio.sleep_forever()


class Disk:
    """What stands between a keeper's tasks and the disk.

    Args:
        run: runs what blocks, aside.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, run: RunBlocking, now: Callable[[], float]) -> None:
        self._run = run
        self._now = now
        self._turn = trio.Lock()
        self._trouble = ""
        """What the last call met that was kept waiting for too long; "" since one went well."""
        self._rests_until = -math.inf
        self._went_on_at = -math.inf
        """When a call began or ended: it is not slow while many have their turn."""
        self._last: Callable[[], object] | None = None

    async def do(self, call: Callable[[], _Result], /) -> _Result:
        """What *call* gives, however long it takes. Cancelled, it is left to end by itself.

        Raises:
            SpoolError: what it raises.
        """
        async with self._turn:
            return await self._tried(call)

    async def do_last(self, call: Callable[[], object], /) -> None:
        """Have *call* run after all others. Cancelled, it is left to whichever of them is under
        way: that runs it when it ends, should nobody wait for it any more.

        Raises:
            SpoolError: what it raises.
        """
        self._last = call
        await self.do(self._run_last)

    def _followed(self, call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        finally:
            with suppress(SpoolError):
                self._run_last()

    def _run_last(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last()

    async def do_soon(self, call: Callable[[], _Result], /) -> _Result:
        """What *call* gives, or an error in at most twice :data:`PATIENCE` seconds.

        Raises:
            SpoolBusy: it was not tried; or takes longer, and is still under way.
            SpoolError: what it raises.
        """
        if self._is_resting or (self._trouble and self._turn.locked()):
            await trio.lowlevel.checkpoint()
            raise SpoolBusy(self._trouble)
        with trio.move_on_after(PATIENCE) as waiting:
            await self._turn.acquire()
        if waiting.cancelled_caught:
            if self._now() - self._went_on_at >= PATIENCE:
                self._rest(_SLOW)
            raise SpoolBusy(_SLOW)
        try:
            if self._is_resting:
                raise SpoolBusy(self._trouble)
            with trio.move_on_after(PATIENCE):
                return await self._tried(call)
            self._rest(_SLOW)
            raise SpoolBusy(_SLOW, is_under_way=True)
        finally:
            self._turn.release()

    @property
    def _is_resting(self) -> bool:
        return self._now() < self._rests_until

    async def _tried(self, call: Callable[[], _Result]) -> _Result:
        self._went_on_at = self._now()
        try:
            result = await self._run(lambda: self._followed(call))
        except SpoolBusy as error:
            self._rest(str(error))
            raise
        except SpoolError:
            self._trouble = ""  # it fails at once
            raise
        finally:
            self._went_on_at = self._now()
        self._trouble = ""
        return result

    def _rest(self, trouble: str) -> None:
        self._trouble = trouble
        self._rests_until = self._now() + REST

    def forked(self) -> None:
        """This is a forked child's copy: the disk is the parent's, and never answers."""
        self._run = _never
