"""A body becomes a batch, or is refused with what is wrong and where."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trimaran import Generation, ToolCall
from trimaran._events import BUILT_IN_EVENTS, ErrorEvent
from trimaran.receiver.ingest import BadBody, Batch, TooManyEvents, parse
from trimaran.receiver.limits import MAX_EVENTS
from trimaran.receiver.wire import LAST_TIMESTAMP, MAX_NUMBER

NOW = 1_795_000_000_000


def body(*events: Any, **envelope: Any) -> bytes:
    whole = {"session_id": "s", "timestamp": NOW, "events": list(events), **envelope}
    return json.dumps(whole, ensure_ascii=False).encode()


def event(type_: str = "ping", **fields: Any) -> dict[str, Any]:
    return {"type": type_, "timestamp": NOW, "session_id": "s", **fields}


def reasons(batch: Batch) -> dict[int, str]:
    return {rejection.index: rejection.reason for rejection in batch.rejected}


REQUIRED: dict[str, dict[str, Any]] = {
    "tool_call": {"tool_name": "bash"},
    "bridge_call": {"method": "sql.execute"},
    "error": {"error_name": "OSError"},
    "command": {"command_name": "init"},
    "compaction_triggered": {"trigger": "overflow_detection"},
}


@pytest.mark.parametrize("type_", sorted(BUILT_IN_EVENTS))
def test_every_type_of_the_wire_is_taken(type_: str) -> None:
    """Each built-in event comes out typed, and its JSON as it came."""
    sent = event(type_, **REQUIRED.get(type_, {}), more={"of": ["the", "sender's"]})

    batch = parse(body(sent))

    assert batch.rejected == ()
    (good,) = batch.events
    assert good.type == type_
    assert good.timestamp == NOW
    assert isinstance(good.event, BUILT_IN_EVENTS[type_])
    assert json.loads(good.raw) == sent


@pytest.mark.parametrize("type_", sorted(REQUIRED))
def test_a_field_without_a_default_is_required(type_: str) -> None:
    """An event that lacks it is rejected by name of the field."""
    (field,) = REQUIRED[type_]

    assert reasons(parse(body(event(type_)))) == {0: f"Object missing required field `{field}`"}


def test_the_envelope_is_kept() -> None:
    """Who sent it, from where, and when."""
    batch = parse(body(cli_version="0.5.7", user_email="kim@example.com", project_id="p"))

    assert batch == Batch(
        session_id="s",
        timestamp=NOW,
        cli_version="0.5.7",
        user_email="kim@example.com",
        project_id="p",
        events=(),
        rejected=(),
    )


def test_only_three_parts_of_the_envelope_are_required() -> None:
    """What an anonymous sender leaves out is empty."""
    batch = parse(body())

    assert (batch.cli_version, batch.user_email, batch.project_id) == ("", "", "")


def test_types_of_the_hosts_own_are_kept_as_they_are() -> None:
    """Whatever fields they have, in the very bytes that were sent."""
    raw = b'{ "type":"deploy", "timestamp":1, "session_id":"s", "n": 1e999, "n": 1E+02 }'

    batch = parse(b'{"session_id":"s","timestamp":1,"events":[ %s ]}' % raw)

    assert batch.events[0].raw == raw
    assert batch.events[0].event is None


def test_a_missing_session_id_is_that_of_the_batch() -> None:
    """It is put into the event, so that each tells whose it is."""
    batch = parse(body({"type": "ping", "timestamp": 1}, session_id='s"/ü'))

    assert json.loads(batch.events[0].raw) == {
        "session_id": 's"/ü',
        "type": "ping",
        "timestamp": 1,
    }


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (rb"cut \ud83d", "cut \ufffd"),
        (rb"\uDE00\uD83D\uDE00", "\ufffd\U0001f600"),
        (rb"\ud83d\ud83d\ude00\u0041", "\ufffd\U0001f600A"),
        (rb"\\ud83d \ud83d\\\"\\", '\\ud83d \ufffd\\"\\'),
    ],
)
def test_half_a_character_does_not_lose_a_batch(sent: bytes, kept: str) -> None:
    """JavaScript cuts texts anywhere, and writes the half that is left as an escape."""
    raw = b'{"type":"error","timestamp":1,"error_name":"x","error_message":"%s"}' % sent

    batch = parse(b'{"session_id":"s","timestamp":1,"events":[%s]}' % raw)

    (good,) = batch.events
    assert isinstance(good.event, ErrorEvent)
    assert good.event.error_message == kept
    assert json.loads(good.raw)["error_message"] == kept


def test_bad_events_do_not_hold_up_good_ones() -> None:
    """Each bad one is told by its index and its reason, and the rest is in order."""
    tokens = {"input": -1}
    batch = parse(
        body(
            event("a"),
            event("tool_call", tool_name=1),
            event("b"),
            5,
            event(session_id="other"),
            event(session_id=None),
            event(""),
            {"timestamp": NOW},
            {"type": "ping"},
            event(timestamp="now"),
            event(timestamp=1.5),
            event(timestamp=-1),
            event(timestamp=LAST_TIMESTAMP + 1),
            event("x" * 129),
            event("generation", tokens=tokens),
            event("tool_call", tool_name="x", status="maybe"),
            event("c"),
        )
    )

    assert [good.type for good in batch.events] == ["a", "b", "c"]
    assert reasons(batch) == {
        1: "Expected `str`, got `int` - at `$.tool_name`",
        3: "Expected `object`, got `int`",
        4: "Is not the session of the batch - at `$.session_id`",
        5: "Expected `str`, got `null` - at `$.session_id`",
        6: "Expected `str` of length >= 1 - at `$.type`",
        7: "Object missing required field `type`",
        8: "Object missing required field `timestamp`",
        9: "Expected `int`, got `str` - at `$.timestamp`",
        10: "Expected `int`, got `float` - at `$.timestamp`",
        11: "Expected `int` >= 0 - at `$.timestamp`",
        12: "Expected `int` <= 253402300799999 - at `$.timestamp`",
        13: "Expected `str` of length <= 128 - at `$.type`",
        14: "Expected `int` >= 0 - at `$.tokens.input`",
        15: "Invalid enum value 'maybe' - at `$.status`",
    }


@pytest.mark.parametrize(
    ("type_", "fields", "reason"),
    [
        ("generation", {"cost": 1e300}, "Expected `float` <= 9007199254740991.0 - at `$.cost`"),
        ("generation", {"cost": -1e300}, "Expected `float` >= -9007199254740991.0 - at `$.cost`"),
        ("generation", {"cost": 10**400}, "Number out of range - at `$.cost`"),
        (
            "generation",
            {"tokens": {"output": MAX_NUMBER + 1}},
            "Expected `int` <= 9007199254740991 - at `$.tokens.output`",
        ),
        (
            "tool_call",
            {"tool_name": "x", "duration_ms": 10**300},
            "Expected `int` <= 9007199254740991 - at `$.duration_ms`",
        ),
        (
            "tool_call",
            {"tool_name": "x", "duration_ms": -1e300},
            "Expected `float` >= -9007199254740991.0 - at `$.duration_ms`",
        ),
        (
            "tool_call",
            {"tool_name": "x", "sequence_index": 2**60},
            "Expected `int` <= 9007199254740991 - at `$.sequence_index`",
        ),
        (
            "session_end",
            {"total_tokens": 2**60},
            "Expected `int` <= 9007199254740991 - at `$.total_tokens`",
        ),
    ],
)
def test_numbers_that_cannot_be_added_up_are_rejected(
    type_: str, fields: dict[str, Any], reason: str
) -> None:
    """Sums and pages would go wrong over them, for the whole session."""
    assert reasons(parse(body(event(type_, **fields)))) == {0: reason}


def test_the_largest_numbers_are_taken() -> None:
    """The bounds themselves are within."""
    batch = parse(
        body(
            event("generation", cost=MAX_NUMBER, tokens={"input": MAX_NUMBER}),
            event("tool_call", tool_name="x", duration_ms=-MAX_NUMBER, timestamp=LAST_TIMESTAMP),
        )
    )

    assert isinstance(batch.events[0].event, Generation)
    assert isinstance(batch.events[1].event, ToolCall)


def nested(levels: int) -> dict[str, Any]:
    """An event that is *levels* deep itself."""
    inner: Any = "]]}}"
    for level in range(levels - 1):
        inner = [inner] if level % 2 else {'"{': inner}
    return event(deep=inner)


def test_nesting_is_bounded() -> None:
    """64 levels pass, however many brackets there are; one more is rejected."""
    wide = event(flat=[{"a": []} for _ in range(200)])

    batch = parse(body(nested(64), wide, nested(65)))

    assert len(batch.events) == 2
    assert reasons(batch) == {2: "Nested deeper than 64 levels"}


BAD_BODIES: list[tuple[bytes, str, str | None]] = [
    (b"", "Input data was truncated", "byte 0"),
    (b'{"session_id":"s"', "Input data was truncated", "byte 17"),
    (b"[]", "Expected `object`, got `array`", "$"),
    (b"null", "Expected `object`, got `null`", "$"),
    (b"{}", "Object missing required field `session_id`", "$"),
    (b'{"session_id":"s","timestamp":1}', "Object missing required field `events`", "$"),
    (body(session_id=1), "Expected `str`, got `int`", "$.session_id"),
    (body(session_id=""), "Expected `str` of length >= 1", "$.session_id"),
    (body(session_id="x" * 257), "Expected `str` of length <= 256", "$.session_id"),
    (body(timestamp="1"), "Expected `int`, got `str`", "$.timestamp"),
    (body(timestamp=10**30), "Expected `int` <= 253402300799999", "$.timestamp"),
    (body(events={}), "Expected `array`, got `object`", "$.events"),
    (body(project_id=None), "Expected `str`, got `null`", "$.project_id"),
    (body() + b"x", "JSON is malformed: trailing characters", "byte 62"),
    (body(float("nan")), "JSON is malformed: invalid character", "byte 59"),
    (b'\xef\xbb\xbf{"session_id":"s"}', "JSON is malformed: invalid character", "byte 0"),
    (b'{"session_id":"\xff"}', "The body is not UTF-8", "byte 15"),
    (b'{"session_id":"\\ud800 and on"}', "Object missing required field `timestamp`", "$"),
    (b'{"session_id":"\\ud800 \\x"}', "JSON is malformed: invalid escape", "byte 24"),
    (b'{"session_id":"\\ud8zz"}', "JSON is malformed: invalid character", "byte 20"),
    (body(events="@").replace(b'"@"', b"[" * 100_000), "The body is nested too", None),
]


@pytest.mark.parametrize(("raw", "problem", "at"), BAD_BODIES, ids=map(str, range(len(BAD_BODIES))))
def test_a_bad_body_says_what_and_where(raw: bytes, problem: str, at: str | None) -> None:
    """The place is a path into the values, or a byte of what is not JSON."""
    with pytest.raises(BadBody) as caught:
        parse(raw)

    assert caught.value.problem.startswith(problem)
    assert caught.value.at == at
    assert str(caught.value).startswith(problem)


def test_a_batch_has_so_many_events_at_most() -> None:
    """One more is too many: it could be answered with far more than it has itself."""
    assert len(parse(body(*[event()] * MAX_EVENTS)).events) == MAX_EVENTS
    with pytest.raises(TooManyEvents, match="more than 10000 events"):
        parse(body(*[0] * (MAX_EVENTS + 1)))


def test_a_session_id_has_no_control_characters() -> None:
    """It becomes part of an address and of a page."""
    for control in ("\0", "a\nb", "a\n", "\x7f"):
        with pytest.raises(BadBody, match="matching regex") as caught:
            parse(body(session_id=control))

        assert caught.value.at == "$.session_id"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["s", *BUILT_IN_EVENTS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = sorted({name for kind in BUILT_IN_EVENTS.values() for name in kind.__struct_fields__})
events = st.builds(
    dict[str, Any].__or__,
    st.dictionaries(st.sampled_from(names) | st.text(), json_values, max_size=4),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(sorted(BUILT_IN_EVENTS)) | json_values,
            "timestamp": st.integers(0, LAST_TIMESTAMP) | json_values,
        },
        optional={"session_id": st.just("s") | json_values},
    ),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@example(b'{"session_id":"\\udc00","timestamp":1,"events":[]}')
def test_any_bytes_are_a_batch_or_a_bad_body(raw: bytes) -> None:
    """Nothing else is ever raised."""
    try:
        batch = parse(raw)
    except BadBody:
        return
    assert isinstance(batch, Batch)


@given(st.lists(events, max_size=4), st.data())
def test_a_damaged_batch_is_a_batch_or_a_bad_body(sent: list[Any], data: st.DataObject) -> None:
    """Nothing else is ever raised for bytes that are nearly right."""
    raw = bytearray(json_bytes(sent))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        batch = parse(bytes(raw))
    except BadBody:
        return
    assert isinstance(batch, Batch)


def json_bytes(sent: list[Any]) -> bytes:
    return json.dumps({"session_id": "s", "timestamp": 1, "events": sent}).encode()


@given(st.lists(events, max_size=5))
def test_every_event_is_either_good_or_rejected(sent: list[Any]) -> None:
    """None is lost, none is both, order is kept, and what is good is JSON of its session."""
    try:
        batch = parse(json_bytes(sent))
    except BadBody:  # NaN, or half of a surrogate pair
        return

    rejected = [rejection.index for rejection in batch.rejected]
    assert len(batch.events) + len(rejected) == len(sent)
    good = [value for index, value in enumerate(sent) if index not in rejected]
    for value, kept in zip(good, batch.events, strict=True):
        assert msgspec.json.decode(kept.raw)["session_id"] == "s"
        assert kept.type == value["type"]
