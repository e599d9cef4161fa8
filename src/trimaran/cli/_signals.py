"""Ctrl-C and SIGTERM end a command in time, with what it has in hand delivered.

In: the scope of a command's work. Out: that scope cancelled when a signal comes.
Does not know: what the work is.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

__all__ = ["Interrupt", "run_interruptible"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether a signal came, and what it ends."""

    def __init__(self) -> None:
        self._scopes: list[trio.CancelScope] = []
        self._stopped = False
        self.signal: signal.Signals | None = None
        """The first one that came."""

    @property
    def exit_status(self) -> int:
        """What a shell says of a program that a signal ended; 0 if none did."""
        return 0 if self.signal is None else 128 + self.signal

    def ends(self) -> trio.CancelScope:
        """A scope that a signal cancels; its block is left then, and what follows goes on."""
        scope = trio.CancelScope()
        self._scopes.append(scope)
        if self._stopped:
            scope.cancel()
        return scope

    def stop(self) -> None:
        """Do what a signal does, without one."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()

    async def watch(self, signals: AsyncIterator[int]) -> None:
        """Wait for the first signal; those after it change nothing."""
        async for number in signals:
            if self.signal is None:
                self.signal = signal.Signals(number)
                self.stop()


def run_interruptible(work: Callable[[Interrupt], Awaitable[int]]) -> int:
    """Run *work* with trio; it gets an :class:`Interrupt`, and says the exit status."""
    return trio.run(_run, work)


async def _run(work: Callable[[Interrupt], Awaitable[int]]) -> int:
    interrupt = Interrupt()
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt.watch, signals)
            status = await work(interrupt)
            nursery.cancel_scope.cancel()
    return status
