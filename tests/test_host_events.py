"""Events of the host's own are made from what was recorded of them."""

from __future__ import annotations

import string
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran import _host_events
from trimaran._events import UNSET
from trimaran._host_events import HostEvents, UnusableEvent
from trimaran.testing import Capture

NAMES = st.text(string.ascii_letters + string.digits + "_- .é", min_size=1, max_size=12).filter(
    lambda name: name not in {"type", "timestamp", "session_id"}
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.dictionaries(NAMES, st.integers(), max_size=4)),
        max_size=6,
    )
)
def test_an_event_has_its_own_fields_and_no_others(
    events: list[tuple[str, dict[str, int]]],
) -> None:
    """Whatever events of its type had before it."""
    kinds = HostEvents()
    for name, values in events:
        event = kinds.make(name, values, UNSET)

        assert msgspec.json.decode(msgspec.json.encode(event)) == {"type": name, **values}


@pytest.mark.parametrize("field", ["class", "urgent", "cut_fields", "__init__", "__slots__", "a b"])
def test_a_field_may_be_called_anything(field: str) -> None:
    """Also as Python or an event calls something of its own."""
    event = HostEvents().make("deployment", {field: 1}, UNSET)

    assert msgspec.json.decode(msgspec.json.encode(event))[field] == 1
    assert event.urgent is False
    assert event.cut_fields == ()


def test_the_same_fields_make_no_new_class() -> None:
    """Nor do fewer of them."""
    kinds = HostEvents()
    first = kinds.make("deployment", {"a": 1, "b": 2}, 5)
    second = kinds.make("deployment", {"b": 2}, 6)

    assert type(first) is type(second)
    assert (first.timestamp, second.timestamp) == (5, 6)


@pytest.mark.parametrize("name", ["", 'a"b', "a\\b", "a\nb"])
def test_refuses_a_name_that_cannot_be_written(name: str) -> None:
    """Of a type and of a field."""
    with pytest.raises(UnusableEvent, match=r"a type named .* cannot be empty, nor have quotes"):
        HostEvents().make(name, {}, UNSET)
    with pytest.raises(UnusableEvent, match=r"a field named .* cannot be empty, nor have quotes"):
        HostEvents().make("own", {name: 1}, UNSET)


def test_refuses_a_name_that_is_too_long() -> None:
    """A type that the receiver would refuse, too."""
    with pytest.raises(UnusableEvent, match="a type of 129 characters, 128 are the most"):
        HostEvents().make("x" * 129, {}, UNSET)


def test_refuses_a_name_that_would_have_to_be_masked() -> None:
    """Masking leaves the names of fields as they are, so an address there is refused."""
    with pytest.raises(UnusableEvent, match="would have to be masked"):
        HostEvents().make("own", {"me@example.com": 1}, UNSET)


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound, what needs a new name is refused; what needs none goes on."""
    monkeypatch.setattr(_host_events, "MOST_NAMES", 3)
    kinds = HostEvents()
    kinds.make("a", {"x": 1, "y": 2}, UNSET)

    with pytest.raises(UnusableEvent, match="a: more than 3 names"):
        kinds.make("a", {"z": 1}, UNSET)
    with pytest.raises(UnusableEvent, match="b: more than 3 names"):
        kinds.make("b", {}, UNSET)
    assert kinds.make("a", {"y": 3}, UNSET).timestamp is UNSET


async def test_what_is_secret_by_its_field_is_masked() -> None:
    """In whichever way the field is written."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session(announce=False) as session:
        for field in ("api_key", "api-key", "apiKey"):
            session.track(HostEvents().make("deployment", {field: "hunter2", "n": 1}, UNSET))

    sent: list[Any] = [msgspec.json.decode(request.body) for request in capture.requests]
    events = [event for batch in sent for event in batch["events"]]
    assert [event["n"] for event in events] == [1, 1, 1]
    assert "hunter2" not in str(events)


def test_it_is_an_event() -> None:
    """For everything that takes one."""
    assert isinstance(HostEvents().make("deployment", {}, UNSET), trimaran.Event)
