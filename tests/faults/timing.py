"""What counts as late, on a machine that has other things to do.

In: things to run, and how. Out: what came of each, run again where it was late.
Does not know: what is run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

__all__ = ["TOLERANCE", "punctual"]

TOLERANCE = 0.2
"""Seconds beyond ``drain_timeout`` that leaving may take, to be worth a row in a table."""
TRIES = 3


class Named(Protocol):
    """What is run."""

    @property
    def name(self) -> str:
        """Its own among its like."""
        ...


class Timed(Protocol):
    """What comes of it."""

    @property
    def is_in_time(self) -> bool:
        """Whether it ended when it had to."""
        ...


N = TypeVar("N", bound=Named)
T = TypeVar("T", bound=Timed)


async def punctual(
    run: Callable[[Sequence[N]], Awaitable[dict[str, T]]], wanted: Sequence[N]
) -> dict[str, T]:
    """Run all that is *wanted*; by name.

    A machine under load may stall a process for longer than is asked of it here. Who was
    late is run again, and stays late only if it is so every time.
    """
    results: dict[str, T] = {}
    late = wanted
    for _ in range(TRIES):
        if late:
            results |= await run(late)
            late = [one for one in late if not results[one.name].is_in_time]
    return results
