"""Sums of many fractions that are right to the last digit.

In: a sum so far and a number. Out: their sum.
Does not know: what is summed up.

Ten times 0.1 is 1.0 then, and not 0.9999999999999999: what the rounding of each addition
takes away is kept beside the sum (O. Møller, Quasi double-precision in floating point
addition, 1965; D. E. Knuth, The Art of Computer Programming, 4.2.2).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ExactSum"]


class ExactSum(NamedTuple):
    """A sum so far."""

    value: float = 0.0
    """The sum, rounded once."""
    rest: float = 0.0
    """What it is short of, which is less than half of its last digit."""

    def plus(self, number: float) -> ExactSum:
        """The sum with *number*, which is finite, added."""
        rough, lost = _added(self.value, number)
        return ExactSum(*_added(rough, lost + self.rest))


def _added(one: float, other: float) -> tuple[float, float]:
    """The sum of two numbers, and what its rounding took away."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)
