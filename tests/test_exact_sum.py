import functools
import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran._exact_sum import ExactSum

COSTS = st.floats(0, 1 << 53) | st.decimals(0, 10, places=6).map(float)


def sum_of(numbers: list[float]) -> ExactSum:
    """The sum of *numbers*, one by one."""
    total = ExactSum()
    for number in numbers:
        total = total.plus(number)
    return total


def test_ten_dimes_are_a_dollar() -> None:
    """They are not where each addition is rounded for itself."""
    assert functools.reduce(operator.add, [0.1] * 10) != 1.0
    assert sum_of([0.1] * 10).value == 1.0
    assert sum_of([0.1] * 100_000).value == math.fsum([0.1] * 100_000) == 10_000.0


def test_what_is_small_is_not_lost_beside_what_is_large() -> None:
    """Nor is it when it comes first."""
    small = [0.01] * 1_000

    assert sum_of([1e15, *small, -1e15]).value == pytest.approx(10.0, rel=1e-15)
    assert sum_of([*small, 1e15, -1e15]).value == pytest.approx(10.0, rel=1e-15)


@given(st.lists(COSTS))
def test_costs_are_summed_up_exactly(costs: list[float]) -> None:
    """As exactly as a number can say, in whichever order they come."""
    exact = math.fsum(costs)

    for total in (sum_of(costs), sum_of(costs[::-1])):
        assert abs(total.value - exact) <= math.ulp(exact)
        assert abs(total.rest) <= math.ulp(total.value)
