"""Events become spans: ids, parents, times, and whatever stands in an event."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran._trace import trace_of
from trimaran.otlp import LANGFUSE, MLFLOW, OPENINFERENCE, PLAIN, Dialect, Shape
from trimaran.otlp.conventions import table_of
from trimaran.otlp.spans import Begun, Body, Names, Origin, Span, begun_by, read_body, spans_of

MS = 1_000_000
"""Nanoseconds."""

FIRST = "00000000000000a1"
SECOND = "00000000000000a2"


def spans(
    *events: dict[str, Any],
    origin: Origin | None = None,
    dialect: Dialect = OPENINFERENCE,
    begun: Begun | None = None,
    session_id: str = "ses_1",
    email: str = "",
    **names: Any,
) -> list[Span]:
    """The spans of a batch with these events."""
    body = Body(session_id, 9_000, list(events), user_email=email, project_id="p")
    wanted = Names(dialect, table_of(dialect, {}), **names)
    return spans_of(body, origin or Origin("key_1"), wanted, begun)


def attributes(span: Span) -> dict[str, Any]:
    """All attributes of a span."""
    assert not span.shared.keys() & span.attributes.keys()
    return {**span.shared, **span.attributes}


def test_a_session_is_one_trace() -> None:
    """Its trace and its root follow from its id; what names no parent stands below the root."""
    [command, end] = spans(
        {"type": "command", "timestamp": 2_000, "command_name": "init"},
        {"type": "session_end", "timestamp": 3_000, "duration_ms": 2_500},
    )

    trace = trace_of("ses_1")
    assert (command.trace_id, end.trace_id) == (trace.trace_id, trace.trace_id)
    assert (end.span_id, end.parent_span_id) == (trace.span_id, "")
    assert command.parent_span_id == trace.span_id
    assert (end.start, end.end) == (500 * MS, 3_000 * MS)


def test_a_trace_that_came_from_outside_goes_on() -> None:
    """The root stands below the span that the process was started in."""
    origin = Origin("key_1", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    [command, end] = spans(
        {"type": "command", "timestamp": 1}, {"type": "session_end", "timestamp": 1}, origin=origin
    )

    assert {command.trace_id, end.trace_id} == {"a" * 32}
    assert end.parent_span_id == "b" * 16
    assert command.parent_span_id == end.span_id == trace_of("ses_1").span_id


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "b" * 16 + "-01"])
def test_what_is_no_traceparent_changes_nothing(traceparent: str) -> None:
    """The session has a trace of its own then."""
    [end] = spans({"type": "session_end", "timestamp": 1}, origin=Origin(traceparent=traceparent))

    assert (end.trace_id, end.parent_span_id) == (trace_of("ses_1").trace_id, "")


def test_a_sub_agents_session_is_linked_with_the_one_that_it_works_for() -> None:
    """Its root names the other's root, in the other's trace, and the other's id."""
    [end] = spans({"type": "session_end", "timestamp": 1}, origin=Origin("k", "ses_0"))

    assert end.link == trace_of("ses_0")[:2]
    assert end.attributes["trimaran.parent_session_id"] == "ses_0"


def test_an_event_names_its_span_and_its_parent() -> None:
    """A tool call inside a generation is below it, though that comes later."""
    [tool, generation] = spans(
        {"type": "tool_call", "timestamp": 5, "span_id": SECOND, "parent_span_id": FIRST},
        {"type": "generation", "timestamp": 9, "span_id": FIRST},
    )

    assert (tool.span_id, tool.parent_span_id) == (SECOND, FIRST)
    assert (generation.span_id, generation.parent_span_id) == (FIRST, trace_of("ses_1").span_id)
    assert not [name for name in attributes(tool) if "span_id" in name]


@pytest.mark.parametrize("bad", ["0" * 16, "a", "A" * 16, "g" * 16, "a" * 17, 7, None, ["a"]])
def test_what_is_no_id_is_not_sent_as_one(bad: object) -> None:
    """A made one stands in its place: one bad id costs some systems the whole batch."""
    [span] = spans({"type": "command", "timestamp": 1, "span_id": bad, "parent_span_id": bad})

    assert span.span_id == spans({"type": "command", "timestamp": 1})[0].span_id
    assert span.parent_span_id == trace_of("ses_1").span_id


def test_made_ids_are_those_of_the_batch_and_the_place() -> None:
    """The same batch again has the same, another one others, and each event its own."""
    events = [{"type": "command", "timestamp": 1}] * 200

    first, again = spans(*events), spans(*events)
    other = spans(*events, origin=Origin("key_2"))

    assert first == again
    assert len({span.span_id for span in [*first, *other]}) == 400


def test_an_open_root_goes_out_when_the_session_starts_and_again_when_it_ends() -> None:
    """The same span: same id, same start, same name. The end knows how it began."""
    start = {"type": "session_start", "timestamp": 1_000, "agent": "build", "model_id": "m"}
    begun = begun_by(Body("ses_1", 0, [start]))
    end = {"type": "session_end", "timestamp": 3_001, "duration_ms": 2_000}
    [first] = spans(start, with_open_root=True)
    [last] = spans(end, begun=begun, with_open_root=True)

    assert (first.span_id, first.name, first.start) == (last.span_id, last.name, last.start)
    assert (first.name, first.end, last.end) == ("invoke_agent build", 1_000 * MS, 3_001 * MS)
    assert last.attributes["gen_ai.request.model"] == "m"


def test_an_end_that_does_not_know_how_it_began_says_what_it_knows() -> None:
    """As when another process sends it."""
    [end] = spans({"type": "session_end", "timestamp": 3_000, "duration_ms": 2_000})

    assert (end.name, end.start) == ("invoke_agent", 1_000 * MS)


def test_a_root_that_its_end_replaces_in_the_same_batch_goes_out_once() -> None:
    """Some systems take no id twice in one request."""
    events = [{"type": "session_start", "timestamp": 1}, {"type": "session_end", "timestamp": 2}]

    once = spans(*events, with_open_root=True)
    twice = spans(*events, with_open_root=True, with_both_roots=True)
    assert [span.event for span in once] == ["session_end"]
    assert [span.event for span in twice] == ["session_start", "session_end"]


def test_without_an_open_root_the_start_is_a_span_of_its_own() -> None:
    """Below the root that comes at the end."""
    [start, end] = spans(
        {"type": "session_start", "timestamp": 1, "agent": "build"},
        {"type": "session_end", "timestamp": 2},
    )

    assert (start.name, end.name) == ("session_start build", "invoke_agent")
    assert start.parent_span_id == end.span_id
    assert start.span_id != end.span_id


def test_an_event_says_exactly_when_it_was() -> None:
    """Its milliseconds are what others go by."""
    exact = {"span_start": "2000125", "span_end": "4000375"}
    [start, call, own, command, end] = spans(
        {"type": "session_start", "timestamp": 2, "span_end": "2000001"},
        {"type": "tool_call", "timestamp": 4, "duration_ms": 2, **exact},
        {"type": "of a host's own", "timestamp": 4, **exact},
        {"type": "command", "timestamp": 4, "span_end": "4000300"},
        {"type": "session_end", "timestamp": 5, "duration_ms": 3}
        | {"span_start": "1999999", "span_end": "5000001"},
    )

    assert (start.start, start.end) == (2_000_001, 2_000_001)
    assert (call.start, call.end) == (own.start, own.end) == (2_000_125, 4_000_375)
    assert (command.start, command.end) == (4_000_300, 4_000_300)
    assert (end.start, end.end) == (1_999_999, 5_000_001)
    assert not [name for name in attributes(call) if "span_" in name]


def test_a_root_begins_when_its_start_says_so_exactly() -> None:
    """Where the end does not know it."""
    begun = begun_by(Body("ses_1", 0, [{"type": "session_start", "span_end": "2000001"}]))

    [end] = spans({"type": "session_end", "timestamp": 5, "duration_ms": 1}, begun=begun)

    assert (end.start, end.end) == (2_000_001, 5 * MS)


@pytest.mark.parametrize("bad", [7, "", "-1", "1.0", "x", None, str(2**63)])
def test_what_is_no_time_is_not_taken_for_one(bad: object) -> None:
    """The milliseconds count."""
    times = {"timestamp": 4, "duration_ms": 2, "span_start": bad, "span_end": bad}

    for kind in ("tool_call", "session_end"):
        [span] = spans({"type": kind, **times})
        assert (span.start, span.end) == (2 * MS, 4 * MS)


def test_a_span_does_not_begin_after_its_end() -> None:
    """Whoever said so."""
    for kind in ("tool_call", "session_end"):
        [span] = spans({"type": kind, "timestamp": 4, "span_start": "4000001"})
        assert (span.start, span.end) == (4 * MS, 4 * MS)


def test_an_error_is_a_span_with_an_exception() -> None:
    """What it happened in has been sent, or will be, and cannot be changed by it."""
    [error] = spans(
        {
            "type": "error",
            "timestamp": 7,
            "parent_span_id": FIRST,
            "error_name": "ValueError",
            "error_message": "no",
        }
    )

    assert (error.is_error, error.message, error.parent_span_id) == (True, "no", FIRST)
    assert error.exception == {"exception.type": "ValueError", "exception.message": "no"}
    assert error.start == error.end == 7 * MS


def test_an_event_without_a_time_happened_when_it_was_sent() -> None:
    """And at the epoch, where that is no time either."""
    [untimed] = spans({"type": "command", "timestamp": "now"})
    body = Body("s", -1, [{"type": "command", "timestamp": 2**60}])
    [lost] = spans_of(body, Origin(), Names(PLAIN, table_of(PLAIN, {})))

    assert (untimed.end, lost.end) == (9_000 * MS, 0)


def test_a_cancelled_call_is_no_error() -> None:
    """Its text is ``cancelled``, its status success."""
    [tool] = spans({"type": "tool_call", "status": "success", "error": "cancelled"})

    assert (tool.is_error, tool.message) == (False, "")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"input": 10, "output": 3, "cache_read": 100, "cache_write": 5, "reasoning": 2}, (115, 5)),
        ({"input": 10, "output": 3}, (13 - 3, 3)),
        ({"cache_read": 7}, (7, 0)),
        ({"input": "10", "output": -3, "cache_read": True, "cache_write": 2**70, "x": 1}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_counts_of_opentelemetry_are_inclusive(tokens: object, expected: object) -> None:
    """Cached tokens are in the input's once, reasoning in the output's; rubbish is left out."""
    [span] = spans({"type": "generation", "tokens": tokens}, dialect=PLAIN)
    found = span.attributes.get

    counts = (found("gen_ai.usage.input_tokens"), found("gen_ai.usage.output_tokens"))
    assert counts == ((None, None) if expected is None else expected)


def test_counts_of_openinference_have_only_parts_that_there_are() -> None:
    """As of a call without a cache, by a model that does not reason."""
    [span] = spans({"type": "generation", "tokens": {"input": 10, "output": 3}})

    found = [name for name in span.attributes if name.startswith("llm.token_count.")]
    assert found == [f"llm.token_count.{name}" for name in ("prompt", "completion", "total")]


def test_counts_of_openinference_are_inclusive() -> None:
    """The total is that of the inclusive ones, and the parts stand beside."""
    tokens = {"input": 10, "output": 3, "cache_read": 100, "cache_write": 5, "reasoning": 2}
    [span] = spans({"type": "generation", "tokens": tokens, "cost": 0.5})

    prefix = "llm.token_count."
    counts = {k.removeprefix(prefix): v for k, v in span.attributes.items() if prefix in k}
    assert counts == {
        "prompt": 115,
        "completion": 5,
        "total": 120,
        "prompt_details.cache_read": 100,
        "prompt_details.cache_write": 5,
        "completion_details.reasoning": 2,
    }
    assert span.attributes["llm.cost.total"] == 0.5


def test_counts_of_langfuse_exclude_each_other() -> None:
    """It adds up all of them that are about input, and all that are about output."""
    tokens = {"input": 10, "output": 3, "cache_read": 100, "cache_write": 5, "reasoning": 2}
    [span] = spans({"type": "generation", "tokens": tokens, "cost": 0.5}, dialect=LANGFUSE)

    text = span.attributes["langfuse.observation.usage_details"]
    assert isinstance(text, str)
    usage = msgspec.json.decode(text, type=dict[str, int])
    assert sum(count for name, count in usage.items() if name.startswith("input")) == 115
    assert sum(count for name, count in usage.items() if name.startswith("output")) == 5
    assert usage["total"] == 120
    assert span.attributes["langfuse.observation.cost_details"] == '{"total":0.5}'


@pytest.mark.parametrize("cost", [0, 0.0, -1, "1", None])
def test_a_cost_that_is_not_known_is_not_told(cost: object) -> None:
    """0 is what nobody worked out: a system that knows prices may."""
    for dialect in (PLAIN, OPENINFERENCE, LANGFUSE, MLFLOW):
        [span] = spans({"type": "generation", "cost": cost}, dialect=dialect)
        assert not [found for found in span.attributes if "cost" in found]


@pytest.mark.parametrize(
    ("dialect", "names"),
    [
        (PLAIN, ["trimaran.cost"]),
        (OPENINFERENCE, ["trimaran.cost", "llm.cost.total"]),
        (MLFLOW, ["trimaran.cost", "mlflow.llm.cost"]),
        (
            LANGFUSE,
            ["langfuse.observation.metadata.cost", "langfuse.observation.cost_details"],
        ),
    ],
    ids=str,
)
def test_a_cost_that_is_known_is_told(dialect: Dialect, names: list[str]) -> None:
    """Under our own name as well."""
    [span] = spans({"type": "generation", "cost": 0.5}, dialect=dialect)

    assert {name for name in span.attributes if "cost" in name} == {*names}
    assert span.attributes[f"{dialect.prefix}cost"] == 0.5


@pytest.mark.parametrize("kind", ["tool_call", "bridge_call"])
@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        ("ValueError: no: table", "ValueError", "no: table"),
        ("Exception: x", "Exception", "x"),
        ("KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("httpx.ReadTimeout: ", "httpx.ReadTimeout", ""),
        ("TimeoutErrors: x", "", ""),
        ("HTTP: 404", "", ""),
        ("no such file", "", ""),
        ("disk Error: full", "", ""),
        ("", "", ""),
        (None, "", ""),
    ],
)
def test_a_call_that_raised_tells_what(
    kind: str, error: str | None, name: str, message: str
) -> None:
    """Its class and its message, as an exception of the span's; other text is no class."""
    [span] = spans({"type": kind, "status": "error", "error": error})

    told = {"exception.type": name, "exception.message": message}
    assert span.attributes["error.type"] == (name or "_OTHER")
    assert span.exception == {key: text for key, text in told.items() if text}
    assert (span.is_error, span.message) == (True, error or "")


def test_a_call_that_was_cancelled_raised_nothing() -> None:
    """Whatever its text says."""
    [span] = spans({"type": "tool_call", "status": "success", "error": "ValueError: x"})

    assert span.exception == {}
    assert "error.type" not in span.attributes


@pytest.mark.parametrize("session_id", ["s" * 201, "sitzung-ß", "a\nb", "\ud800"])
def test_langfuse_gets_ids_that_it_takes(session_id: str) -> None:
    """Others are replaced, by the same one every time; also an address, and tags."""
    event = {"type": "command"}
    [span] = spans(event, session_id=session_id, email=session_id, dialect=LANGFUSE, tags=("ü",))
    [other] = spans(event, session_id=session_id + "x", dialect=LANGFUSE)
    shared = span.shared

    assert len(str(shared["session.id"])) == 32
    assert shared["session.id"] == shared["user.id"] != other.shared["session.id"]
    assert str(shared["langfuse.trace.tags"]).isascii()


def test_ids_that_langfuse_takes_stay_as_they_are() -> None:
    """Up to 200 characters of ASCII."""
    [span] = spans({"type": "command"}, session_id="s" * 200, dialect=LANGFUSE)

    assert span.shared["session.id"] == "s" * 200


def test_who_and_tags_are_on_every_span() -> None:
    """Systems that look at single spans find them."""
    found = spans(
        {"type": "command"},
        {"type": "session_end"},
        {"type": "of_the_host"},
        email="a@example.com",
        tags=("nightly",),
    )

    assert {span.shared["user.id"] for span in found} == {"a@example.com"}
    assert {span.shared["tag.tags"] for span in found} == {("nightly",)}


def test_a_host_gives_its_types_a_mapping_and_others_another() -> None:
    """What it says goes before what the table says; nothing stands there twice."""
    shape = Shape(
        name="run",
        subject="tool_name",
        always={"a": "b", "tool.name": "c"},
        own=("sequence_index",),
    )
    table = table_of(OPENINFERENCE, {"tool_call": shape})
    event: dict[str, object] = {"type": "tool_call", "tool_name": "bash", "sequence_index": 3}

    [span] = spans_of(Body("s", 0, [event]), Origin(), Names(OPENINFERENCE, table))

    assert span.name == "run bash"
    assert (attributes(span)["a"], attributes(span)["tool.name"]) == ("b", "bash")
    assert attributes(span)["trimaran.sequence_index"] == 3


SECRETIVE: dict[str, Any] = {
    "type": "prompted",
    "timestamp": 5,
    "span_id": FIRST,
    "parent_span_id": SECOND,
    "duration_ms": 2,
    "status": "error",
    "error": "private: the prompt",
    "prompt": "private",
    "labels": ["private"],
    "nested": {"deep": "private"},
    "agent": "private",
    "model_id": "private",
    "count": 2**70,
    "ratio": 0.5,
    "is_cached": True,
    "nothing": None,
}
"""An event of a host's own, as its author never thought that it might leave the machine."""


@pytest.mark.parametrize("dialect", [PLAIN, OPENINFERENCE, MLFLOW, LANGFUSE], ids=repr)
@pytest.mark.parametrize("kind", ["prompted", ""])
def test_of_what_nobody_has_described_no_text_goes_out(kind: str, dialect: Dialect) -> None:
    """Its type, ids, times, status and numbers do; also where it names no type."""
    [span] = spans({**SECRETIVE, "type": kind}, dialect=dialect)

    assert "private" not in str(span)
    assert (span.name, span.is_error) == (kind or "event", True)
    assert (span.span_id, span.parent_span_id) == (FIRST, SECOND)
    assert (span.start, span.end) == (3 * MS, 5 * MS)
    prefix = dialect.prefix
    own = {"count": str(2**70), "ratio": 0.5, "is_cached": True}
    assert span.attributes == {f"{prefix}{name}": value for name, value in own.items()}


def test_a_shape_lets_text_out() -> None:
    """One for the type, or one for all types; only for the destination that has it."""
    for shapes in ({"prompted": Shape()}, {"*": Shape()}):
        table = table_of(PLAIN, shapes)
        [span] = spans_of(Body("s", 0, [SECRETIVE]), Origin(), Names(PLAIN, table))
        assert span.attributes["trimaran.prompt"] == "private"
        assert span.message == "private: the prompt"
    [span] = spans(SECRETIVE, dialect=PLAIN)
    assert "trimaran.prompt" not in span.attributes


def test_a_shape_for_all_types_is_for_those_without_one() -> None:
    """Neither those that are built in, nor those that have one of their own."""
    shapes = {"*": Shape(name="any"), "deployed": Shape(name="deploy", own=())}
    names = Names(PLAIN, table_of(PLAIN, shapes))
    kinds = ["command", "deployed", "prompted", ""]
    events: list[dict[str, object]] = [{"type": kind, "command_name": "c"} for kind in kinds]

    found = spans_of(Body("s", 0, events), Origin(), names)
    assert [span.name for span in found] == ["command c", "deploy", "any", "any"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
FIELDS = ["timestamp", "duration_ms", "status", "error", "error_message", "tokens", "cost"]
FIELDS += ["model_id", "tool_name", "finish_reason", "span_id", "agent", "subject", "x"]
FIELDS += ["span_start", "span_end"]
KINDS = ["session_start", "session_end", "generation", "tool_call", "bridge_call", "error"]


@given(
    events=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from(KINDS) | JSON,
                **dict.fromkeys(FIELDS, JSON),
            },
        ),
        max_size=3,
    ),
    dialect=st.sampled_from([PLAIN, OPENINFERENCE, MLFLOW, LANGFUSE]),
)
def test_whatever_stands_in_an_event_becomes_a_span(
    events: list[dict[str, Any]], dialect: Dialect
) -> None:
    """With ids and times that can be sent, and a name."""
    found = spans(*events, dialect=dialect)

    assert len(found) >= len(events) - sum(e.get("type") == "session_start" for e in events)
    for span in found:
        assert 0 <= span.start <= span.end < 2**63
        assert len(span.span_id) == 16
        assert span.name
        attributes(span)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"session_id":1}',
        b"\xff",
        b'{"session_id":"\xff","timestamp":1,"events":[]}',
        b"[" * 100_000,
        b'{"events":[1]}',
    ],
)
def test_what_is_no_batch_is_one_error(body: bytes) -> None:
    """However it is wrong."""
    with pytest.raises(msgspec.DecodeError):
        read_body(body)


def test_what_a_request_says_beside_its_batch() -> None:
    """The session that this one works for may have any id."""
    headers = {
        "idempotency-key": "k",
        "trimaran-parent-session": "a%20%C3%A4",
        "traceparent": "00-1-2-01",
    }

    assert Origin.of(headers) == Origin("k", "a ä", "00-1-2-01")
    assert Origin.of({}) == Origin()
