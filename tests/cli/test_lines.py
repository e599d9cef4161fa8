"""A line becomes an event, or the reason why it does not; nothing is ever raised."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._events import BUILT_IN_EVENTS, UNSET
from trimaran.cli._lines import Bad, Found, LineReader, PassedOver, Reading

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(names: list[str] | None = None, **fields: object) -> Reading:
    """What a line with these fields is."""
    return LineReader(names or ()).read(json.dumps(fields).encode())


def event_of(reading: Reading) -> trimaran.Event:
    """The event that was found."""
    assert isinstance(reading, Found), reading
    return reading.event


def reason_of(reading: Reading) -> str:
    """Why the line cannot be used."""
    assert isinstance(reading, Bad), reading
    return reading.reason


def test_reads_an_event_of_the_wire() -> None:
    """Every field is kept, and the session that the line names."""
    found = read(
        type="tool_call",
        tool_name="bash",
        status="error",
        duration_ms=1.5,
        sequence_index=7,
        previous_tool=None,
        error="no",
        timestamp=1_700_000_000_001,
        session_id="s",
    )

    assert found == Found(
        trimaran.ToolCall(
            tool_name="bash",
            status="error",
            duration_ms=1.5,
            sequence_index=7,
            previous_tool=None,
            error="no",
            timestamp=1_700_000_000_001,
        ),
        "s",
    )


@pytest.mark.parametrize("kind", BUILT_IN_EVENTS.values(), ids=BUILT_IN_EVENTS)
def test_reads_back_what_was_sent(kind: type[trimaran.Event]) -> None:
    """An event of each type comes back from its encoded form as it was."""
    required = {"tool_name": "t", "method": "m", "error_name": "e", "command_name": "c"}
    given_fields = {name: required[name] for name in kind.__struct_fields__ if name in required}
    if kind is trimaran.CompactionTriggered:
        given_fields["trigger"] = "error_recovery"
    event = kind(timestamp=5, **given_fields)

    assert event_of(LineReader().read(msgspec.json.encode(event))) == event


def test_leaves_out_what_the_wire_does_not_have() -> None:
    """A field that an event of the wire does not know is not sent."""
    event = event_of(read(type="command", command_name="init", mood="good"))

    assert event == trimaran.Command(command_name="init")


def test_keeps_an_event_of_the_hosts_own() -> None:
    """A type that the wire does not know comes out of the line as it went in."""
    event = event_of(read(type="deployment", target="prod", steps=[1, {"a": None}], timestamp=7))

    assert event.timestamp == 7
    assert msgspec.json.decode(msgspec.json.encode(event)) == {
        "type": "deployment",
        "timestamp": 7,
        "target": "prod",
        "steps": [1, {"a": None}],
    }


def lines_of_structlog(*processors: Any) -> tuple[Any, io.StringIO]:
    """A logger of structlog's that ends in its JSONRenderer, and what it writes."""
    output = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(output),
        processors=[
            structlog.processors.add_log_level,
            *processors,
            structlog.processors.JSONRenderer(),
        ],
    )
    return logger, output


def test_reads_what_structlog_writes() -> None:
    """A record whose event name is an event type is that event; numbers may be text."""
    logger, output = lines_of_structlog(structlog.processors.TimeStamper("iso"))
    before = dt.datetime.now(dt.UTC).timestamp() * 1000
    logger.info("tool_call", tool_name="bash", duration_ms="12", session_id="s", user="me")

    found = LineReader().read(output.getvalue().encode())

    assert isinstance(found, Found)
    assert found.session_id == "s"
    assert isinstance(found.event, trimaran.ToolCall)
    assert (found.event.tool_name, found.event.duration_ms) == ("bash", 12)
    assert found.event.timestamp is not UNSET
    assert before - 1 <= found.event.timestamp <= before + 60_000


@pytest.mark.parametrize(
    "render",
    [structlog.processors.format_exc_info, structlog.processors.dict_tracebacks],
    ids=["text", "dicts"],
)
def test_names_an_error_after_its_exception(render: Any) -> None:
    """``log.exception("error")`` takes name and message from the exception, as it is rendered."""
    logger, output = lines_of_structlog(render)
    try:
        try:
            int("x")
        except ValueError as cause:
            raise RuntimeError("two\nlines: here") from cause
    except RuntimeError:
        logger.exception("error", context="prompt")

    assert event_of(LineReader().read(output.getvalue().encode())) == trimaran.ErrorEvent(
        error_name="RuntimeError", error_message="two\nlines: here", context="prompt"
    )


@pytest.mark.parametrize(
    ("exception", "name"),
    [
        ("package.module.Failure", "Failure"),
        ([{"exc_type": "E"}], "E"),
        ([], None),
        (["text"], None),
        (5, None),
    ],
)
def test_takes_what_it_can_of_an_exception(exception: object, name: str | None) -> None:
    """A name without a message is a name; what is none of the known forms is nothing."""
    reading = read(event="error", exception=exception)

    if name is None:
        assert reason_of(reading) == "error: Object missing required field `error_name`"
    else:
        assert event_of(reading) == trimaran.ErrorEvent(error_name=name)


def test_what_a_record_says_goes_before_its_exception() -> None:
    """Fields of the record itself are kept."""
    event = event_of(read(event="error", exception="ValueError: x", error_name="Mine"))

    assert event == trimaran.ErrorEvent(error_name="Mine", error_message="x")


def test_passes_over_other_log_records() -> None:
    """A record that names no event is no event, whatever else is in it."""
    assert read(event="request handled", type="command", level="info") == PassedOver()


@pytest.mark.parametrize("name", ["webhook", "tool_call"])
def test_an_event_may_have_a_field_of_that_name(name: str) -> None:
    """It is no record for that: it says its type, and log lines have a level."""
    event = event_of(read(type=name, event="push", tool_name="bash"))

    assert msgspec.json.decode(msgspec.json.encode(event))["type"] == name


def test_a_record_may_have_a_field_named_type() -> None:
    """Its name goes first where that is an event's."""
    assert isinstance(event_of(read(event="command", type="x", command_name="c")), trimaran.Command)


def test_takes_what_only_python_writes_for_json() -> None:
    """As structlog's renderer does: bytes of a file name that are no text, and no numbers."""
    write = structlog.processors.JSONRenderer()
    record = {
        "event": "tool_call",
        "tool_name": b"caf\xe9".decode(errors="surrogateescape"),
        "duration_ms": math.nan,
    }
    line = write(None, "info", record)
    assert isinstance(line, str)

    event = event_of(LineReader().read(line.encode()))

    assert event == trimaran.ToolCall(tool_name="caf\ufffd")


def test_takes_records_of_names_that_it_is_told() -> None:
    """Such a record is an event of the host's own, of all but what structlog itself adds."""
    event = event_of(
        read(
            ["deployment"],
            event="deployment",
            target="prod",
            level="info",
            logger="x",
            type="t",
            timestamp="2026-01-02T03:04:05.678901Z",
        )
    )

    assert msgspec.json.decode(msgspec.json.encode(event)) == {
        "type": "deployment",
        "target": "prod",
        "timestamp": 1_767_323_045_678,
    }


@pytest.mark.parametrize(
    ("timestamp", "milliseconds"),
    [
        (1_700_000_000.25, 1_700_000_000_250),  # structlog's TimeStamper(None)
        (1_700_000_000_250, 1_700_000_000_250),
        (1_700_000_000_250.4, 1_700_000_000_250),
        ("2023-11-14T22:13:20.250+00:00", 1_700_000_000_250),
        ("2023-11-15T00:13:20.250+02:00", 1_700_000_000_250),
        (0, 0),
    ],
)
def test_understands_the_times_of_records(timestamp: object, milliseconds: int) -> None:
    """Seconds and milliseconds since the epoch, and ISO 8601."""
    event = event_of(read(event="command", command_name="c", timestamp=timestamp))

    assert event.timestamp == milliseconds


def test_a_time_without_a_zone_is_local() -> None:
    """As structlog's TimeStamper(utc=False) writes it."""
    moment = dt.datetime(2026, 1, 2, 3, 4, 5).astimezone()
    event = event_of(read(type="command", command_name="c", timestamp="2026-01-02T03:04:05"))

    assert event.timestamp == moment.timestamp() * 1000


def test_a_number_on_the_wire_is_milliseconds() -> None:
    """However small it is."""
    assert event_of(read(type="command", command_name="c", timestamp=12)).timestamp == 12


@pytest.mark.parametrize(
    "timestamp",
    ["noon", "0001-01-01T00:00:00", -1, 1e300, 10**400, True, [], "1969-12-31T23:59:59Z"],
    ids=str,
)
def test_refuses_a_time_that_is_none(timestamp: object) -> None:
    """The line is bad: an event at a wrong time is worse than one that a person is told of."""
    reason = reason_of(read(type="command", command_name="c", timestamp=timestamp))

    assert reason.startswith("timestamp ")
    assert reason.endswith("is neither milliseconds since the epoch nor ISO 8601")
    assert len(reason) < 120


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON (Input data was truncated)"),
        (b"\x00\x01", "not JSON (JSON is malformed: invalid character (byte 0))"),
        (b'{"a": "\xff"}', "not UTF-8 (invalid start byte)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "a JSON array, not an object"),
        (b"null", "a JSON null, not an object"),
        (b"1", "a JSON number, not an object"),
        (b'"x"', "a JSON string, not an object"),
        (b"true", "a JSON boolean, not an object"),
        (b"{}", "no event: it has neither a `type` nor an `event`"),
        (b'{"type": 5}', "no event: it has neither a `type` nor an `event`"),
        (b'{"type": "tool_call"}', "tool_call: Object missing required field `tool_name`"),
        (
            b'{"type": "tool_call", "tool_name": "t", "duration_ms": "1"}',
            "tool_call: Expected `int | float`, got `str` - at `$.duration_ms`",
        ),
        (b'{"type": "command", "session_id": 5}', "session_id is 5, not text"),
    ],
)
def test_says_what_is_wrong(line: bytes, reason: str) -> None:
    """A person can find the mistake by the reason."""
    assert LineReader().read(line) == Bad(reason)


def test_no_session_is_named_by_an_empty_id() -> None:
    """As by none."""
    found = read(type="command", command_name="c", session_id="")

    assert isinstance(found, Found)
    assert found.session_id is None


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_nothing_is_raised(line: bytes) -> None:
    """Whatever the bytes are."""
    assert isinstance(LineReader().read(line), (Found, PassedOver, Bad))


@given(
    st.dictionaries(st.sampled_from(["timestamp", "session_id", "exception"]) | st.text(), JSON),
    st.sampled_from(["type", "event"]),
    st.sampled_from([*BUILT_IN_EVENTS, "own"]) | st.text(),
)
def test_nothing_is_raised_for_an_event(fields: dict[str, Any], key: str, name: str) -> None:
    """Whatever its fields are; and what is found can be encoded."""
    reading = LineReader(["own"]).read(json.dumps({**fields, key: name}).encode())

    if isinstance(reading, Found):
        assert msgspec.json.decode(msgspec.json.encode(reading.event))["type"] == name
    else:
        assert isinstance(reading, (PassedOver, Bad))
