from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran import Event, Generation, Tokens, ToolCall
from trimaran._pipeline.encoder import (
    EncodeError,
    JsonValue,
    encode,
    encode_fast,
    encode_value,
    jsonable,
)


class Odd(Event, frozen=True, kw_only=True):
    """A host's event that holds anything."""

    value: object = None


class LeakError(Exception):
    """Raised by whatever a value must not be asked for."""


class Panic(BaseException):
    """The same, and no ``Exception``: what an extension written in Rust raises is none."""


class Hostile:
    """Raises for whatever it is asked."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise LeakError

    def __repr__(self) -> str:
        raise LeakError

    def __str__(self) -> str:
        raise LeakError

    def __eq__(self, other: object) -> bool:
        raise LeakError

    def __hash__(self) -> int:
        return 1

    def __len__(self) -> int:
        raise LeakError

    def __iter__(self) -> Iterator[int]:
        raise LeakError

    def __bool__(self) -> bool:
        raise LeakError


class HostileMeta(type):
    """Makes classes that raise for whatever they are asked."""

    def __getattr__(cls, name: str) -> NoReturn:
        raise LeakError

    def __repr__(cls) -> str:
        raise LeakError

    def __hash__(cls) -> int:
        raise LeakError

    def __instancecheck__(cls, instance: object) -> bool:
        raise LeakError


class OfHostileMeta(metaclass=HostileMeta):
    """Harmless but for its class."""


class Liar:
    """Says that it is a text."""

    @property  # type: ignore[misc]  # as read-only as it gets
    def __class__(self) -> Any:
        """Not the truth."""
        return str


class HostileDict(dict[str, int]):
    """A dict whose ways in are closed, as a subclass may do."""

    def __iter__(self) -> Iterator[str]:
        raise Panic

    def items(self) -> NoReturn:
        """Fail."""
        raise Panic

    def __len__(self) -> int:
        raise Panic


class HostileList(list[int]):
    """A list whose ways in are closed."""

    def __iter__(self) -> Iterator[int]:
        raise Panic

    def __len__(self) -> int:
        raise Panic


class HostileStr(str):
    """A text that raises where texts do not."""

    __slots__ = ()

    def __str__(self) -> str:
        raise Panic

    def __len__(self) -> int:
        raise Panic

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        """Fail."""
        raise Panic


class HostileInt(int):
    """A number that raises where numbers do not."""

    def __index__(self) -> int:
        raise Panic

    def __str__(self) -> str:
        raise Panic

    def __lt__(self, other: int) -> bool:
        raise Panic


class HostileFloat(float):
    """A number that raises where numbers do not."""

    def __pos__(self) -> float:
        raise Panic

    def __float__(self) -> float:
        raise Panic


class HostileError(Exception):
    """An exception with no text."""

    def __str__(self) -> str:
        raise Panic


class HostileMapping(Mapping[str, int]):
    """A mapping that holds less than it says."""

    def __getitem__(self, key: str) -> int:
        raise Panic

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


class EndlessMapping(Mapping[int, int]):
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


class Model:
    """A model as pydantic makes them."""

    def __init__(self, dumped: object) -> None:
        self.dumped = dumped

    def model_dump(self) -> object:
        """What it was made of."""
        return self.dumped


class BadModel:
    """A model that cannot be dumped."""

    def model_dump(self) -> NoReturn:
        """Fail."""
        raise Panic


class SelfModel:
    """A model that is its own content."""

    def model_dump(self) -> SelfModel:
        """Itself."""
        return self


class EverNewModel:
    """A model whose content never ends, nor repeats."""

    def model_dump(self) -> list[EverNewModel]:
        """Two more."""
        return [EverNewModel(), EverNewModel()]


class Color(enum.Enum):
    """Members of any value."""

    RED = "red"
    PAIR = (1, 2)


class Size(enum.IntEnum):
    """Members that are numbers."""

    BIG = 3


class Mood(enum.StrEnum):
    """Members that are texts."""

    GOOD = "good"


class Loop(enum.Enum):
    """A member that says its value is itself."""

    ITSELF = 1

    @property
    def value(self) -> Any:
        """Not what the member was made of."""
        return self


@dataclasses.dataclass
class Point:
    """A dataclass with a field that is not there until somebody sets it."""

    x: int
    y: object = None
    late: int = dataclasses.field(init=False)


@attrs.define
class Parcel:
    """A class of attrs."""

    weight: float
    label: str = "box"


class Plain(msgspec.Struct):
    """A struct."""

    a: int
    b: object = msgspec.UNSET


class Tagged(msgspec.Struct, tag="t", tag_field="kind", rename="camel"):
    """A struct with a tag, and other names on the wire."""

    some_name: int


class BadZone(dt.tzinfo):
    """A time zone that fails."""

    def utcoffset(self, when: dt.datetime | None, /) -> NoReturn:
        """Fail."""
        raise Panic

    def dst(self, when: dt.datetime | None, /) -> None:
        """None is known."""

    def tzname(self, when: dt.datetime | None, /) -> None:
        """None is known."""


class Pair(NamedTuple):
    """A tuple with names."""

    a: int
    b: int


def nested(depth: int) -> list[object]:
    """A list in a list, *depth* times."""
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> dict[str, object]:
    """A dict that holds itself."""
    value: dict[str, object] = {}
    value["me"] = [value]
    return value


FORMS: list[tuple[object, JsonValue]] = [
    (None, None),
    (True, True),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (2**64, str(2**64)),
    (-(2**63) - 1, str(-(2**63) - 1)),
    (1 << 100_000, "<int: 100001 bits>"),
    (1.5, 1.5),
    (float("nan"), None),
    (-math.inf, None),
    ("text", "text"),
    ("\ud800 alone", "\ufffd alone"),
    ("\ud83d\ude00", "\U0001f600"),
    ("x" * 65_536, "x" * 65_536),
    ("x" * 65_537, "<str: 65537>"),
    (b"text \xc3\xa9", "text \xe9"),
    (b"\xff\xfe", "<bytes: 2>"),
    (b"x" * 65_537, "<bytes: 65537>"),
    (bytearray(b"ab"), "ab"),
    (memoryview(b"abcdef")[::2], "ace"),
    ([1, (2, [3])], [1, [2, [3]]]),
    ({3, 1, 2.5}, [1, 2.5, 3]),
    (frozenset({"b", "a", None}), ["a", "b", None]),
    (collections.deque([1]), [1]),
    (range(2), [0, 1]),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    (Pair(1, 2), [1, 2]),
    ({(1, "a"): 2, None: 3, 4: 5, 1.5: 6}, {'[1,"a"]': 2, "null": 3, "4": 5, "1.5": 6}),
    ({b"k": 1, Color.RED: 2, True: 3}, {"k": 1, "red": 2, "true": 3}),
    ({1: "a", "1": "b"}, {"1": "a", "1#1": "b"}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (types.MappingProxyType({"a": b"x"}), {"a": "x"}),
    (cycle(), {"me": ["<cycle>"]}),
    (Color.PAIR, [1, 2]),
    (Size.BIG, 3),
    (Mood.GOOD, "good"),
    (Loop.ITSELF, "<too deep>"),
    (Point(1, Point(2)), {"x": 1, "y": {"x": 2, "y": None}}),
    (Parcel(1.5), {"weight": 1.5, "label": "box"}),
    (Plain(1), {"a": 1}),
    (Tagged(2), {"kind": "t", "someName": 2}),
    (Tokens(), dict.fromkeys(Tokens.__struct_fields__, 0)),
    (Model({"a": b"1"}), {"a": "1"}),
    (Model(None), None),
    (SelfModel(), "<cycle>"),
    (BadModel(), "<BadModel>"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (pathlib.PureWindowsPath("C:\\a"), "C:\\a"),
    (decimal.Decimal("1.10"), "1.10"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (dt.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),  # noqa: DTZ001 - naive
    (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "2026-01-02T00:00:00+00:00"),
    (dt.datetime(2026, 1, 2, tzinfo=BadZone()), "<datetime>"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.time(1, 2), "01:02:00"),
    (dt.timedelta(seconds=1.5), 1.5),
    (ValueError("no"), "ValueError: no"),
    (ValueError(), "ValueError"),
    (OSError(2, "no such", "/a"), "FileNotFoundError: [Errno 2] no such: '/a'"),
    (KeyError(Hostile()), "KeyError"),
    (ValueError("a", object(), 1), "ValueError: a, 1"),
    (HostileError("no"), "HostileError"),
    (ExceptionGroup("several", [ValueError("a")]), "ExceptionGroup: several"),
    (msgspec.UNSET, None),
    (Hostile(), "<Hostile>"),
    (OfHostileMeta(), "<OfHostileMeta>"),
    (Liar(), "<Liar>"),
    (HostileDict(a=1), {"a": 1}),
    (HostileList([1]), [1]),
    (HostileStr("text"), "text"),
    (HostileInt(7), 7),
    (HostileFloat(0.5), 0.5),
    (HostileMapping(), "<HostileMapping>"),
    ([Hostile(), 1], ["<Hostile>", 1]),
    (object(), "<object>"),
    (int, "<type>"),
    (3j, "<complex>"),
]
"""Values, and what they become."""

BOUNDLESS: list[object] = [
    nested(10_000),
    list(range(50_000)),
    dict.fromkeys(range(50_000)),
    [["y" * 60_000] * 100],
    EverNewModel(),
    EndlessMapping(),
]

Recipe: TypeAlias = Callable[[], object]
"""Makes a value. Hypothesis looks at what it makes, which some values do not bear."""


def as_recipe(value: object) -> Recipe:
    """The recipe of a value that is there already."""
    return lambda: value


def recipes_of(make: Callable[[Any], object]) -> Callable[[Recipe], Recipe]:
    """From the recipe of a part to that of a whole."""
    return lambda part: lambda: make(part())


def list_recipe(parts: list[Recipe]) -> Recipe:
    """The recipe of a list."""
    return lambda: [part() for part in parts]


def dict_recipe(parts: dict[Any, Recipe]) -> Recipe:
    """The recipe of a dict."""
    return lambda: {key: part() for key, part in parts.items()}


plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),  # lone surrogates among them
    st.binary(),
    st.decimals(),
    st.datetimes(timezones=st.none() | st.just(dt.UTC)),
    st.timedeltas(),
    st.uuids(),
    st.sets(st.integers() | st.text() | st.floats(), max_size=4),
)
odd_values = st.one_of(
    st.integers(0, len(FORMS) - 1).map(lambda index: lambda: FORMS[index][0]),
    st.integers(0, len(BOUNDLESS) - 1).map(lambda index: lambda: BOUNDLESS[index]),
)
keys = st.text() | st.integers() | st.none() | st.tuples(st.floats())
recipes: st.SearchStrategy[Recipe] = st.recursive(
    plain_values.map(as_recipe) | odd_values,
    lambda part: st.one_of(
        st.lists(part, max_size=4).map(list_recipe),
        st.dictionaries(keys, part, max_size=4).map(dict_recipe),
        part.map(recipes_of(lambda value: (value, value))),
        part.map(recipes_of(lambda value: Point(1, value))),
        part.map(recipes_of(lambda value: Plain(1, value))),
        part.map(recipes_of(Parcel)),
        part.map(recipes_of(Model)),
        part.map(recipes_of(ValueError)),
    ),
    max_leaves=8,
)


def strict_json(encoded: bytes) -> Any:
    """What *encoded* says to a parser that takes UTF-8 and no NaN."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    return json.loads(encoded.decode("utf-8"), parse_constant=refuse)


def assert_plain(value: object, depth: int = 0) -> None:
    """*value* is made of plain values alone and is no deeper than promised."""
    assert depth <= 65
    if type(value) is list:
        for element in value:
            assert_plain(element, depth + 1)
    elif type(value) is dict:
        for key, member in value.items():
            assert type(key) is str
            assert_plain(member, depth + 1)
    else:
        assert value is None or type(value) in {bool, int, float, str}


def values_in(value: JsonValue) -> Iterator[JsonValue]:
    """*value* and all that is in it."""
    yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from values_in(part)


@pytest.mark.parametrize("index", range(len(FORMS)), ids=[type(v).__name__ for v, _ in FORMS])
def test_form_of_value(index: int) -> None:
    """Each kind of value has the form that the documentation gives it."""
    value, form = FORMS[index]
    converted = jsonable(value)

    assert form == converted
    assert type(form) is type(converted)
    assert_plain(converted)


@settings(deadline=None)
@given(recipes)
def test_any_value_has_a_form(recipe: Recipe) -> None:
    """Whatever a field holds, the event is encoded, as valid JSON, and keeps its type."""
    value = recipe()
    form = jsonable(value)

    assert_plain(form)
    strict_json(encode_value(form))
    encoded = strict_json(encode(Odd(value=value)))
    assert encoded["type"] == "odd"


@settings(deadline=None)
@given(recipes)
def test_form_is_stable(recipe: Recipe) -> None:
    """The form of a form is the form."""
    form = jsonable(recipe())

    assert encode_value(form) == encode_value(jsonable(form))


@pytest.mark.parametrize("value", BOUNDLESS, ids=lambda value: type(value).__name__)
def test_bounds(value: object) -> None:
    """What has no end is cut off in depth, in number and in text."""
    form = jsonable(value)

    assert_plain(form)
    found = list(values_in(form))
    assert len(found) < 11_000
    assert sum(len(text) for text in found if isinstance(text, str)) < 1_300_000


def test_depth_at_the_bound() -> None:
    """64 lists inside each other are kept, the one in the 65th is named."""
    assert "too deep" not in encode_value(jsonable(nested(64))).decode()
    assert "too deep" in encode_value(jsonable(nested(65))).decode()


def test_what_is_left_out_is_marked() -> None:
    """After 10,000 values, a list and a dict end with a mark."""
    elements = jsonable(list(range(10_001)))
    members = jsonable(dict.fromkeys(range(10_001)))

    assert isinstance(elements, list)
    assert isinstance(members, dict)
    assert elements[9_999:] == [9_999, "<left out>"]
    assert list(members)[9_999:] == ["9999", "<left out>"]


def test_shared_value_is_no_cycle() -> None:
    """A value that is there twice, side by side, is there twice."""
    shared = [1]

    assert jsonable([shared, {"a": shared}]) == [[1], {"a": [1]}]


def test_form_is_a_copy() -> None:
    """Containers are copied, so that a later change is not seen."""
    value: dict[str, list[int]] = {"a": [1]}
    form = jsonable(value)
    value["a"].append(2)

    assert form == {"a": [1]}


def test_unset_members_are_left_out() -> None:
    """UNSET is None in a list, and no member of a dict."""
    assert jsonable([msgspec.UNSET]) == [None]
    assert jsonable({"a": msgspec.UNSET, "b": 1}) == {"b": 1}


def test_raw_json() -> None:
    """A piece of encoded JSON is read, or named where it is none."""
    assert jsonable(msgspec.Raw(b'{"a": [1, "\xc3\xa9"]}')) == {"a": [1, "\xe9"]}
    assert jsonable(msgspec.Raw(b"no json")) == "<Raw>"


def test_hostile_attrs_class() -> None:
    """What only looks like a dataclass or an attrs class is named by its class."""
    looks = type("Looks", (), {"__dataclass_fields__": 1, "__attrs_attrs__": 2})

    assert jsonable(looks()) == "<Looks>"


def test_class_name_with_metaclass_name() -> None:
    """A class is named as it is, whatever its metaclass says of its name."""

    class Meta(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise LeakError

    class Named(metaclass=Meta):
        pass

    assert jsonable(Named()) == "<Named>"


def test_event_on_the_fast_path() -> None:
    """A plain event is encoded with its type first and without what is unset."""
    event = ToolCall(tool_name="bash", sequence_index=0, previous_tool=None, duration_ms=1.5)
    encoded = encode(event)

    assert encoded == encode_fast(event)
    assert encoded.startswith(b'{"type":"tool_call"')
    assert strict_json(encoded) == {
        "type": "tool_call",
        "tool_name": "bash",
        "message_id": "",
        "tool_category": "",
        "status": "success",
        "duration_ms": 1.5,
        "sequence_index": 0,
        "previous_tool": None,
    }


def test_both_paths_agree_on_plain_events() -> None:
    """The slow path gives what the fast path gives, where both can."""
    event = Generation(message_id="m", tokens=Tokens(input=3), cost=0.5, timestamp=5)

    assert jsonable(event) == strict_json(encode(event))


@pytest.mark.parametrize(
    "make",
    [
        object,
        lambda: "\ud800",
        Hostile,
        cycle,
        lambda: {None: 1},
        lambda: nested(10_000),
        lambda: 1 << 100_000,
    ],
)
def test_odd_event_takes_the_slow_path(make: Callable[[], object]) -> None:
    """Where the fast path raises anything at all, it says None, and the slow one helps."""
    event = Odd(value=make(), timestamp=5)

    assert encode_fast(event) is None
    assert strict_json(encode(event)) == {
        "type": "odd",
        "timestamp": 5,
        "value": strict_json(encode_value(jsonable(event)))["value"],
    }


class Array(Event, frozen=True, kw_only=True, array_like=True):
    """Declared to be an array."""

    value: int = 1


class Untagged(Event, frozen=True, kw_only=True, tag=False):
    """Declared to have no type."""

    value: int = 1


class Renamed(Event, frozen=True, kw_only=True, rename="camel", tag="other"):
    """Declared with names of its own."""

    some_value: object = 1


@pytest.mark.parametrize(
    ("event", "record"),
    [
        (Array(), {"type": "array", "value": 1}),
        (Untagged(), {"type": "Untagged", "value": 1}),
        (Renamed(), {"type": "other", "someValue": 1}),
        (Renamed(some_value=3j), {"type": "other", "someValue": "<complex>"}),
    ],
)
def test_event_is_an_object_with_a_type(event: Event, record: dict[str, object]) -> None:
    """However its class was declared, an event is an object whose first member is type."""
    encoded = encode(event)

    assert strict_json(encoded) == record
    assert encoded.startswith(b'{"type":')


def test_value_that_is_no_json() -> None:
    """encode_value makes the best of what only claims to be a JSON value."""
    value: Any = [object(), "\ud800"]

    assert encode_value(value) == '["<object>","\ufffd"]'.encode()


class Closed(Event, frozen=True, kw_only=True):
    """An event whose fields cannot be read, other than by the fast path."""

    value: object = None

    def __getattribute__(self, name: str) -> NoReturn:
        raise LeakError("private")


def test_event_that_cannot_be_encoded() -> None:
    """The error names the event's class, and has no content in its message or its chain."""
    with pytest.raises(EncodeError, match=r"^Closed: no fields can be read$") as caught:
        encode(Closed(value=object()))

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_little_stack_left() -> None:
    """Where the stack is nearly used up, a value has a shorter form and nothing is raised."""
    forms: list[JsonValue] = []
    refused = 0

    def descend() -> None:
        nonlocal refused
        try:  # noqa: SIM105 - a context manager would need a deeper stack than there is
            descend()
        except RecursionError:  # as deep as it goes; from here on the way back up
            pass
        if len(forms) < 200:
            try:
                forms.append(jsonable(value))
            except RecursionError:
                refused += 1

    value = nested(30)
    descend()

    assert refused < 10  # where there was no room for the first call either
    assert "<too deep>" in forms
    assert forms[-1] == value
    assert_plain(forms)


class StoppedError(Exception):
    """An exception that is stopped while it says what it is."""

    def __init__(self, stop: BaseException) -> None:
        super().__init__()
        self.stop = stop

    def __str__(self) -> str:
        raise self.stop


class Interrupting:
    """A model that is stopped while it is dumped."""

    def __init__(self, stop: BaseException) -> None:
        self.stop = stop

    def model_dump(self) -> NoReturn:
        """Stop."""
        raise self.stop


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupt_goes_through(stop: type[BaseException]) -> None:
    """What stops a program is not taken for a value's fault."""
    with pytest.raises(stop):
        jsonable([Interrupting(stop())])
    with pytest.raises(stop):
        jsonable([StoppedError(stop())])
    with pytest.raises(stop):
        encode(Odd(value=Interrupting(stop())))
    with pytest.raises(stop):
        encode_value([Interrupting(stop())])
