"""Measures several things in turn, so that noise hits all of them alike.

In: what to measure. Out: medians.
Does not know: what is measured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from statistics import median
from typing import TypeVar

__all__ = ["medians", "samples"]

_Sample = TypeVar("_Sample")


async def samples(
    cases: Mapping[str, Callable[[], Awaitable[_Sample]]], *, rounds: int
) -> dict[str, list[_Sample]]:
    """Run each case once a round, in the same order; what each gave, by its name.

    A first round warms up and does not count: it fills caches and compiles what is
    imported.
    """
    taken: dict[str, list[_Sample]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            sample = await case()
            if number:
                taken[name].append(sample)
    return taken


async def medians(
    cases: Mapping[str, Callable[[], Awaitable[float]]], *, rounds: int
) -> dict[str, float]:
    """The median of each case."""
    taken = await samples(cases, rounds=rounds)
    return {name: median(numbers) for name, numbers in taken.items()}
