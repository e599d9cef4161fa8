"""A batch comes out of a channel as the events that went into it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._handover import (
    Unreadable,
    child_of,
    frame_of,
    key_and_body,
    places_in,
    tracked_events,
)
from trimaran._host_events import HostEvents
from trimaran._pipeline.encoder import encode

KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=100)


class Deploy(trimaran.Event, frozen=True):
    """An event of a host's own."""

    target: Any = ""


def events_in(*events: object) -> list[trimaran.Event | None]:
    """What is read of a body with such events."""
    body = json.dumps({"session_id": "s", "events": events}).encode()
    return list(tracked_events(body, HostEvents()))


@given(KEYS, st.binary())
def test_key_and_body_come_out_as_they_went_in(key: str, body: bytes) -> None:
    """Any body; a key is one line."""
    assert key_and_body(frame_of(key, body)) == (key, body)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"trimaran 1 key",
        b"trimaran 2 key\n{}",
        b"\n{}",
        b"trimaran 1 \xff\n{}",
        b"trimaran 1 " + b"k" * 2000 + b"\n{}",
    ],
)
def test_a_frame_that_is_no_batch_is_told(frame: bytes) -> None:
    """Before anything of it is taken."""
    with pytest.raises(Unreadable):
        key_and_body(frame)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"events": 1}', b'{"events": [1]}', b"\xff", b"[" * 100_000],
)
def test_a_body_that_is_no_batch_is_told(body: bytes) -> None:
    """It never raises anything else."""
    with pytest.raises(Unreadable):
        tracked_events(body, HostEvents())


@pytest.mark.parametrize(
    "body", [b'{"events": [{"type": "x", "a": "\xff"}]}', b'{"events": [{"type": "x"}, {]}']
)
def test_a_body_that_breaks_off_behind_an_odd_event_is_told(body: bytes) -> None:
    """Nothing of it is taken either."""
    with pytest.raises(Unreadable):
        tracked_events(body, HostEvents())


def test_keys_of_one_pipeline_have_its_name() -> None:
    """Those of halves, too."""
    assert {child_of("a-b-0"), child_of("a-b-12.0.1")} == {"a-b"}


def test_events_keep_their_class_and_time() -> None:
    """What the wire knows comes out as it was tracked."""
    generation = trimaran.Generation(tokens=trimaran.Tokens(input=5), cost=0.5, timestamp=7)

    (event,) = events_in(json.loads(encode(generation)))

    assert event == generation


def test_the_numbers_of_tool_calls_are_left_to_the_session() -> None:
    """Also in a batch with events of the host's own."""
    call = {"type": "tool_call", "tool_name": "bash", "sequence_index": 3, "previous_tool": "x"}

    plain, odd = events_in(call), events_in(call, {"type": "deploy"})

    for event in plain[0], odd[0]:
        assert isinstance(event, trimaran.ToolCall)
        assert event.sequence_index is event.previous_tool is msgspec.UNSET


def test_events_of_a_host_have_a_class_made_for_them() -> None:
    """Their JSON form is the one they had."""
    deploy = Deploy(target={"a": [1, None]}, timestamp=5)

    (event,) = events_in(json.loads(encode(deploy)))

    assert event is not None
    assert json.loads(encode(event)) == json.loads(encode(deploy))


def test_values_that_a_field_is_not_declared_for_are_kept() -> None:
    """Nothing is validated when an event is made, nor here."""
    (event,) = events_in({"type": "generation", "cost": "much", "tokens": {"input": 5}})

    assert isinstance(event, trimaran.Generation)
    assert event.cost == "much"  # type: ignore[comparison-overlap]
    assert event.tokens == trimaran.Tokens(input=5)


@pytest.mark.parametrize(
    "event",
    [
        {"type": 1},
        {},
        {"type": "x" * 200},
        {"type": "bridge_call"},  # without its method
    ],
)
def test_an_event_of_no_use_is_marked(event: object) -> None:
    """The others of its batch are taken."""
    read = events_in(event, {"type": "command", "command_name": "init"})

    assert read[0] is None
    assert isinstance(read[1], trimaran.Command)


@pytest.mark.parametrize("timestamp", ["now", -1, 1 << 60, None, True])
def test_a_time_that_is_none_is_left_out(timestamp: object) -> None:
    """The parent's own clock stands in for it."""
    (event,) = events_in({"type": "deploy", "timestamp": timestamp})

    assert event is not None
    assert event.timestamp is msgspec.UNSET


def test_where_events_stand_is_read_as_the_child_has_it() -> None:
    """And when they were. What says nothing of it, or nothing sensible, has that by itself."""
    body = b"""{"events":[
        {"type":"command","span_id":"00000000000000a1","parent_span_id":"00000000000000b2"},
        {"type":"command","span_id":"00000000000000a1"},
        {"type":"command"},
        {"type":"command","span_id":7,"parent_span_id":"nonsense"},
        {"type":"command","span_id":null,"parent_span_id":"00000000000000b2"},
        {"type":"command","span_start":"7","span_end":"1795000000000000001"},
        {"type":"command","span_id":"00000000000000a1","span_start":7,"span_end":"9223372036854775808"}
    ]}"""

    assert list(places_in(body)) == [
        (0xA1, 0xB2, 0, 0),
        (0xA1, 0, 0, 0),
        None,
        None,
        (0, 0xB2, 0, 0),
        (0, 0, 7, 1_795_000_000_000_000_001),
        (0xA1, 0, 0, 0),
    ]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"events":[1]}', b"\xff", b"[" * 100_000])
def test_what_is_no_batch_says_of_no_place(body: bytes) -> None:
    """However it is wrong."""
    with pytest.raises(Unreadable):
        places_in(body)


def test_ids_of_spans_are_no_fields_of_a_hosts_own_event() -> None:
    """Where the child was asked for them; else a field may be called so."""
    body = b'{"events":[{"type":"own","timestamp":1,"session_id":"s","span_id":"a",'
    body += b'"parent_span_id":"b","span_start":"1","span_end":"2","x":1}]}'

    [asked] = tracked_events(body, HostEvents(), with_places=True)
    [not_asked] = tracked_events(body, HostEvents())

    assert asked is not None
    assert not_asked is not None
    assert encode(asked) == b'{"type":"own","timestamp":1,"x":1}'
    assert encode(not_asked) == (
        b'{"type":"own","timestamp":1,"span_id":"a","parent_span_id":"b","span_start":"1",'
        b'"span_end":"2","x":1}'
    )
