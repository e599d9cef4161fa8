from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._pipeline.size import TOO_MANY_VALUES, rough_size

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.lists(inner).map(tuple)
        | st.frozensets(SCALARS)
    ),
    max_leaves=30,
)


class Holder(trimaran.Event, frozen=True):
    """An event of anything."""

    value: Any = None


EMPTY = rough_size(Holder())


def size_of(value: object) -> int:
    """What *value* adds to an event."""
    return rough_size(Holder(value=value)) - EMPTY


class Hostile:
    """An object that fails at whatever it is asked."""

    def fail(self, *_arguments: object) -> Any:
        """Fail."""
        raise RuntimeError

    __repr__ = __str__ = __len__ = __iter__ = __hash__ = __eq__ = __bool__ = fail


@pytest.mark.parametrize("text", ["x" * 1000, b"x" * 1000, bytearray(1000)])
def test_text_counts_by_its_length(text: object) -> None:
    """Nothing counts before (but None does), so the difference is nearly the length."""
    assert 900 < size_of(text) <= 1000


def test_what_is_inside_counts() -> None:
    """Keys and values, at any depth."""
    text = "x" * 1000

    assert size_of([text, text]) > 1900
    assert size_of({text: text}) > 1900
    assert size_of(((({text},),), [[frozenset({text})]])) > 1900


def test_a_long_number_counts_by_its_digits() -> None:
    """An integer of ten thousand digits takes about that many bytes."""
    assert 9_900 < size_of(10**10_000) < 12_000


def test_what_is_unknown_counts_as_something() -> None:
    """Without asking it: the text of an object is made by its own code."""
    assert size_of(Hostile()) > 0
    assert size_of([Hostile()] * 10) > 1000
    assert size_of(trimaran.Tokens()) > 0


def test_a_cycle_ends() -> None:
    """Each container is looked into once."""
    cycle: list[Any] = ["x"]
    cycle.append({"again": cycle})

    assert 0 < size_of(cycle) < 100


def test_more_values_than_any_event_may_have() -> None:
    """Then nothing more is looked at, however they are arranged."""
    nested = [[None] * 100 for _ in range(100)]

    assert rough_size(Holder(value=[None] * 10_000)) < TOO_MANY_VALUES
    assert rough_size(Holder(value=[None] * 10_001)) == TOO_MANY_VALUES
    assert rough_size(Holder(value=nested[1:])) < TOO_MANY_VALUES
    assert rough_size(Holder(value=nested)) == TOO_MANY_VALUES
    assert rough_size(Holder(value=dict.fromkeys(range(10_000)))) < TOO_MANY_VALUES
    assert rough_size(Holder(value=range(10**9))) < 1000


def test_deep_is_not_many() -> None:
    """It does not recurse, so no depth is too much for it."""
    deep: Any = None
    for _ in range(9000):
        deep = [deep]

    assert 9000 < size_of(deep) < TOO_MANY_VALUES


@given(value=VALUES)
def test_it_is_in_the_order_of_the_encoded_form(value: object) -> None:
    """For what has a JSON form, within a factor of what is charged anyway."""
    encoded = len(msgspec.json.encode(Holder(value=value)))

    assert 0 <= rough_size(Holder(value=value)) < 8 * encoded + 100
    assert encoded < 8 * rough_size(Holder(value=value)) + 100
