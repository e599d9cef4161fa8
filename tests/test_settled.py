from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimaran
from trimaran import ErrorEvent, Generation, Tokens, ToolCall
from trimaran._pipeline.encoder import MAX_DEPTH, MAX_NODES, MAX_TEXT, EncodeError, encode, jsonable
from trimaran._pipeline.settled import TooLarge, are_counts, settled, settled_and_encoded

MOST = 64 * 1024
PLENTY = 1 << 30


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: object


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)
KEYS = st.text() | st.integers() | st.none() | st.binary()
ODD = st.recursive(
    SCALARS | st.binary() | st.decimals() | st.uuids() | st.timedeltas(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.frozensets(SCALARS)
        | inner.map(Point)
        | inner.map(lambda value: [value, value])
        | inner.map(lambda value: collections.deque([value]))
    ),
    max_leaves=20,
)


class Odd(trimaran.Event, frozen=True, kw_only=True):
    """A host's event that holds anything."""

    value: object = None


class Strict(trimaran.Event, frozen=True, kw_only=True):
    """A host's event that refuses what it was not made with."""

    value: object = None

    def __post_init__(self) -> None:
        if type(self.value) is not list:
            raise ValueError


class Mood(enum.StrEnum):
    """A text that is none."""

    GOOD = "good"


class HostileMeta(type):
    """Makes classes that fail for whatever they are asked."""

    def __hash__(cls) -> NoReturn:
        raise RuntimeError

    def __eq__(cls, other: object) -> NoReturn:
        raise RuntimeError


class OfHostileMeta(metaclass=HostileMeta):
    """Harmless but for its class."""


class Endless(Mapping[int, int]):
    """A mapping without an end."""

    def __getitem__(self, key: int) -> int:
        return key

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def __len__(self) -> int:
        return 1


def form_of(value: object, most: int = PLENTY) -> Any:
    """What is kept of *value*, read back."""
    kept = settled(Odd(value=value), most).value
    return msgspec.json.decode(kept) if isinstance(kept, msgspec.Raw) else kept


def nested(depth: int) -> list[object]:
    """A list in a list, *depth* times."""
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[object]:
    """A list that holds itself, beside a long text."""
    value: list[object] = ["x" * 2000]
    value.append(value)
    return value


@pytest.mark.parametrize(
    "event",
    [
        Odd(),
        Odd(value="text"),
        Odd(value=1.5),
        Odd(value=True),
        Odd(value=msgspec.UNSET, timestamp=5),
        ToolCall(tool_name="bash"),
        ToolCall(tool_name="bash", error="x"),
        Generation(tokens=Tokens(input=5), cost=0.5),
        ErrorEvent(error_name="E"),
    ],
)
def test_what_is_settled_comes_back_itself(event: trimaran.Event) -> None:
    """Nothing is made anew, and its encoded form is kept."""
    kept, encoded, size = settled_and_encoded(event, MOST)

    assert settled(event, MOST) is event
    assert kept is event
    assert encoded == encode(event)
    assert encoded is not None
    assert size == len(encoded)


@settings(deadline=None)
@given(PLAIN)
def test_plain_values_are_kept_as_they_are(value: object) -> None:
    """In the form that any value has, which is JSON in as few bytes as can be."""
    kept, encoded, size = settled_and_encoded(Odd(value=value), PLENTY)

    assert form_of(value) == jsonable(value)
    assert size == len(encode(kept))
    assert (encoded is None) == (type(value) in {list, dict, tuple})


@settings(deadline=None)
@given(ODD)
def test_any_value_is_kept_in_its_form(value: object) -> None:
    """Whatever it is made of."""
    assert form_of(value) == form_of(jsonable(value)) == jsonable(value)


@settings(deadline=None)
@given(ODD)
def test_what_is_settled_once_is_settled(value: object) -> None:
    """A thread settles events before the session's own does."""
    once = settled(Odd(value=value), PLENTY)
    twice = settled(once, PLENTY)

    assert encode(once) == encode(twice)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nested(MAX_DEPTH),
        lambda: nested(MAX_DEPTH + 1),
        lambda: nested(100_000),
        lambda: [0] * MAX_NODES,
        lambda: [0] * (MAX_NODES + 1),
        lambda: ["x" * MAX_TEXT],
        lambda: ["x" * (MAX_TEXT + 1)],
        lambda: [1 << 64],
        lambda: [-(1 << 63)],
        lambda: [[[]] * 3],
        lambda: {"a": {1: 2, "1": 3}},
        lambda: {(1, 2): 3},
        lambda: [b"\xff", b"text", bytearray(b"text")],
        lambda: [msgspec.UNSET],
        lambda: [Mood.GOOD, {Mood.GOOD: 1}],
        lambda: ["\ud800"],
        OfHostileMeta,
        lambda: [OfHostileMeta()],
        Endless,
        lambda: Mood.GOOD,
        lambda: bytearray(b"text"),
        lambda: {3, 1, 2},
        cycle,
        lambda: ValueError("no"),
        lambda: msgspec.Raw(b"no json"),
        lambda: msgspec.Raw(b'"text"'),
        lambda: msgspec.Raw(b' { "a" : [ 1 ] } '),
        lambda: msgspec.Raw(b"[" * 100_000),
    ],
)
def test_values_at_the_bounds(make: Callable[[], object]) -> None:
    """They have the form that all values have: what is beyond a bound is named in it."""
    value = make()

    assert form_of(value) == jsonable(value)


def test_a_cycle_is_not_taken_to_be_large() -> None:
    """What it holds is counted once, and named where it comes again."""
    assert form_of(cycle(), MOST) == ["x" * 2000, "<cycle>"]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1001,
        ["x" * 1001],
        ["x" * 600, "x" * 600],
        {"x" * 1001: 1},
        {"a": {"b": ["x" * 1001]}},
        [b"x" * 1001],
        bytearray(1001),
        [0] * 501,
        {1: [0] * 501, 2: Endless()},
        set(range(501)),
        msgspec.Raw(b"[" + b" " * 1000 + b"]"),
        msgspec.Raw(b'["' + b"\\u0041" * 160 + b'"]'),
    ],
)
def test_what_is_too_large_is_known_early(value: object) -> None:
    """From its parts, before anything is made of it; there are no too large ones kept."""
    with pytest.raises(TooLarge):
        settled_and_encoded(Odd(value=value), 900)


@given(PLAIN)
def test_nothing_is_too_large_that_has_room(value: object) -> None:
    """What is estimated is never more than the encoded form takes."""
    _, _, size = settled_and_encoded(Odd(value=value), PLENTY)

    assert settled_and_encoded(Odd(value=value), size)[2] == size
    with pytest.raises(TooLarge):
        settled_and_encoded(Odd(value=value), size - 1)


def test_parts_of_tokens_are_settled_one_by_one() -> None:
    """The others are counted still."""
    tokens: Any = Tokens(input=[1], output=3)  # type: ignore[arg-type]

    kept = settled(Generation(tokens=tokens), MOST).tokens

    assert type(kept) is Tokens
    part: Any = kept.input
    assert (bytes(part), kept.output) == (b"[1]", 3)
    assert not are_counts(tokens)
    assert are_counts(Tokens(input=3))


def test_a_class_is_not_asked_about_its_settled_values() -> None:
    """It would refuse them, or do who knows what."""
    event = Strict(value=["x"])
    kept: Any = settled(event, MOST).value

    assert bytes(kept) == b'["x"]'
    assert event.value == ["x"]


def test_a_text_without_a_plain_form_is_left_alone() -> None:
    """It cannot change; what it is on the wire is known."""
    event = Odd(value="\ud800")

    kept, encoded, size = settled_and_encoded(event, MOST)

    assert kept is event
    assert encoded == '{"type":"odd","value":"\ufffd"}'.encode()
    assert encoded is not None
    assert size == len(encoded)


class Shut(trimaran.Event, frozen=True, kw_only=True):
    """An event whose field cannot be read."""

    value: object = None

    def __getattribute__(self, name: str) -> Any:
        if name == "value":
            raise RuntimeError
        return super().__getattribute__(name)


def test_an_event_that_cannot_be_read() -> None:
    """There is nothing to keep of it."""
    with pytest.raises(EncodeError):
        settled_and_encoded(Shut(value="\ud800"), MOST)
