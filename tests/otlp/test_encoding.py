"""Both forms of OTLP, read back with OpenTelemetry's own messages."""

from __future__ import annotations

import math
import subprocess
import sys
from base64 import b64encode
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from patience import PATIENCE
from trimaran.otlp import Kind, OtlpSettings, OtlpTransport, json_form
from trimaran.otlp.conventions import Value
from trimaran.otlp.protobuf import Protobuf
from trimaran.otlp.spans import Span

RESOURCE: list[tuple[str, Value]] = [("service.name", "altimate"), ("process.pid", 7)]
SCOPE = ("trimaran", "0.1.0", "2026-11")

TEXT = st.text(max_size=20) | st.sampled_from([127, 128, 1_024, 20_000]).map("ü".__mul__)
VALUES = (
    TEXT
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(TEXT, max_size=2).map(tuple)
)
ATTRIBUTES = st.dictionaries(st.text(min_size=1, max_size=9), VALUES, max_size=3)
TRACE_IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)
SPAN_IDS = st.binary(min_size=8, max_size=8).map(bytes.hex)
TIMES = st.integers(0, 2**63 - 1)
SPANS = st.builds(
    Span,
    event=TEXT,
    trace_id=TRACE_IDS,
    span_id=SPAN_IDS,
    parent_span_id=SPAN_IDS | st.just(""),
    name=TEXT,
    kind=st.sampled_from(Kind),
    start=TIMES,
    end=TIMES,
    shared=ATTRIBUTES,
    attributes=ATTRIBUTES,
    is_error=st.booleans(),
    message=TEXT,
    exception=ATTRIBUTES,
    link=st.none() | st.tuples(TRACE_IDS, SPAN_IDS),
)


def with_ids_as_protobuf_has_them(value: Any) -> Any:
    """OTLP writes ids in hexadecimal digits, protobuf's own mapping in base64."""
    if isinstance(value, list):
        return [with_ids_as_protobuf_has_them(item) for item in value]
    if isinstance(value, dict):
        return {
            name: b64encode(bytes.fromhex(item)).decode()
            if name in {"traceId", "spanId", "parentSpanId"}
            else with_ids_as_protobuf_has_them(item)
            for name, item in value.items()
        }
    return value


@given(st.lists(SPANS, max_size=2))
def test_both_forms_of_spans_are_the_same_message(spans: list[Span]) -> None:
    """As OpenTelemetry's own library reads them."""
    read = ExportTraceServiceRequest.FromString(Protobuf().traces(RESOURCE, SCOPE, spans))
    form = msgspec.json.decode(json_form.traces(RESOURCE, SCOPE, spans))

    assert read == ParseDict(with_ids_as_protobuf_has_them(form), ExportTraceServiceRequest())


@given(st.lists(SPANS, max_size=2))
def test_both_forms_of_records_are_the_same_message(spans: list[Span]) -> None:
    """As OpenTelemetry's own library reads them."""
    read = ExportLogsServiceRequest.FromString(Protobuf().logs(RESOURCE, SCOPE, spans))
    form = msgspec.json.decode(json_form.logs(RESOURCE, SCOPE, spans))

    assert read == ParseDict(with_ids_as_protobuf_has_them(form), ExportLogsServiceRequest())


def span_with(attributes: dict[str, Value]) -> Span:
    """A span that says little else."""
    return Span("x", "a" * 32, "b" * 16, "", "x", Kind.CLIENT, 1, 2, {"shared": "s"}, attributes)


@given(SPANS)
def test_a_span_is_what_it_was(span: Span) -> None:
    """Every part of it, in its own field."""
    request = ExportTraceServiceRequest.FromString(Protobuf().traces(RESOURCE, SCOPE, [span]))
    [group] = request.resource_spans
    [read] = group.scope_spans[0].spans
    found = MessageToDict(group.resource)["attributes"]

    assert [each["key"] for each in found] == ["service.name", "process.pid"]
    assert group.scope_spans[0].scope.name == "trimaran"
    assert read.trace_id.hex() == span.trace_id
    assert read.span_id.hex() == span.span_id
    assert read.parent_span_id.hex() == span.parent_span_id
    assert (read.name, int(read.kind)) == (span.name, int(span.kind))
    assert (read.start_time_unix_nano, read.end_time_unix_nano) == (span.start, span.end)
    assert len(read.attributes) == len(span.shared) + len(span.attributes)
    assert [(e.name, e.time_unix_nano) for e in read.events] == (
        [("exception", span.end)] if span.exception else []
    )
    assert [(k.trace_id.hex(), k.span_id.hex()) for k in read.links] == (
        [span.link] if span.link else []
    )
    assert read.status == (
        Status(code=Status.STATUS_CODE_ERROR, message=span.message) if span.is_error else Status()
    )


def test_what_is_the_same_to_a_dict_is_not_mixed_up() -> None:
    """True, 1 and 1.0 under one name, and text that was seen before under another."""
    encoder = Protobuf()
    spans = [span_with({"a": value, "b": "x"}) for value in (1, True, 1.0, "1", "x", "1")]

    for _ in range(2):
        request = ExportTraceServiceRequest.FromString(encoder.traces([], SCOPE, spans))
        values = [s.attributes[1].value for s in request.resource_spans[0].scope_spans[0].spans]
        kinds = [value.WhichOneof("value") for value in values]
        assert kinds == ["int_value", "bool_value", "double_value"] + 3 * ["string_value"]
        assert [value.string_value for value in values][3:] == ["1", "x", "1"]


def test_what_is_remembered_is_bounded() -> None:
    """A host may have any number of names and values."""
    encoder = Protobuf()

    for number in range(100):
        names = {f"{number}-{place}": f"{number}" for place in range(100)}
        encoder.traces([], SCOPE, [span_with({**names, "long": "x" * 100})])

    assert len(encoder._texts) <= 4096
    assert len(encoder._others) <= 4096
    assert not [value for _, value in encoder._texts if value == "x" * 100]


@given(refused=st.integers(1, 2**62), message=TEXT)
def test_a_partial_success_is_read_in_both_forms(refused: int, message: str) -> None:
    """Of spans, and of log records, whose field has the same number."""
    spans = ExportTraceServiceResponse()
    spans.partial_success.rejected_spans = refused
    spans.partial_success.error_message = message
    logs = ExportLogsServiceResponse()
    logs.partial_success.rejected_log_records = refused
    logs.partial_success.error_message = message

    for answer in (spans, logs):
        form = msgspec.json.encode(MessageToDict(answer))
        assert Protobuf().partial_success(answer.SerializeToString()) == (refused, message)
        assert json_form.partial_success(form) == (refused, message)


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"\x0a\x00", b'{"partialSuccess":{}}', b'{"partialSuccess":{"x":1}}']
)
def test_an_answer_that_refuses_nothing(answer: bytes) -> None:
    """Which is the usual one, in whatever form."""
    assert Protobuf().partial_success(answer) == (0, "")
    assert json_form.partial_success(answer) == (0, "")


@given(st.binary(max_size=50))
def test_an_answer_may_be_anything(answer: bytes) -> None:
    """It is read as far as it can be, and never further."""
    for read in (Protobuf().partial_success, json_form.partial_success):
        refused, message = read(answer)
        assert 0 <= refused <= math.inf
        assert isinstance(message, str)
    for read_message in (Protobuf().message_of_status, json_form.message_of_status):
        assert isinstance(read_message(answer), str)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\x08\x03\x12\x02no", "no"),  # code 3, message "no"
        (b"\x09" + b"x" * 8 + b"\x15" + b"x" * 4 + b"\x12\x02no", "no"),  # fields of other kinds
        (b"\x12\x02no\x0f", ""),  # a kind that there is none of
        (b"\x12\x05no", ""),  # cut off
        (b"\x12" + b"\xff" * 12, ""),  # a number without an end
        (b"\x10\x01", ""),  # not text
    ],
)
def test_the_message_of_a_status(answer: bytes, expected: str) -> None:
    """What comes in other fields is passed over; what is no such message says nothing."""
    assert Protobuf().message_of_status(answer) == expected


def test_the_message_of_a_status_in_json() -> None:
    """What is no status has none."""
    assert json_form.message_of_status(b'{"code":3,"message":"no"}') == "no"
    assert json_form.message_of_status(b"[" * 100_000) == ""
    assert json_form.partial_success(b'{"partialSuccess":{"rejectedSpans":"x"}}') == (0, "")


@pytest.mark.parametrize("value", ["text", 1])
def test_attributes_are_remembered_to_a_bound(
    value: Value, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, each goes out as it is, also those that were forgotten."""
    monkeypatch.setattr("trimaran.otlp.protobuf._MOST_KNOWN", 2)
    attributes = {f"a{number}": value for number in range(5)}
    span = Span("x", "a" * 32, "b" * 16, "", "x", Kind.CLIENT, 1, 2, {}, attributes)
    form = Protobuf()

    for _ in range(2):
        read = ExportTraceServiceRequest.FromString(form.traces([], ("t", "1", "m"), [span]))
        [written] = read.resource_spans[0].scope_spans[0].spans
        names = [attribute.key for attribute in written.attributes]
        assert names == [*attributes]
    assert len(form._texts) <= 2
    assert len(form._others) <= 2


def test_an_answer_in_json_is_read_whatever_was_asked_in() -> None:
    """Gateways answer in it: what is refused counts, and the message is told."""
    partly = b' {"partialSuccess":{"rejectedSpans":"3","errorMessage":"no room"}}'

    assert Protobuf().partial_success(partly) == (3, "no room")
    assert Protobuf().message_of_status(b'{"code":3,"message":"no"}') == "no"


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", "ü\ud83d"])
def test_text_that_utf8_cannot_say(text: str) -> None:
    """It goes out with a question mark there, wherever it stands."""
    odd = Span(
        "x" + text, "a" * 32, "b" * 16, "", text, Kind.CLIENT, 1, 2, {text: text}, {text: (text,)},
        is_error=True, message=text,
    )  # fmt: skip
    said = text.encode(errors="replace").decode()
    traces = ExportTraceServiceRequest.FromString(
        Protobuf().traces([("service.name", text)], SCOPE, [odd])
    )
    span = traces.resource_spans[0].scope_spans[0].spans[0]
    logs = ExportLogsServiceRequest.FromString(Protobuf().logs([], SCOPE, [odd]))
    record = logs.resource_logs[0].scope_logs[0].log_records[0]

    assert traces.resource_spans[0].resource.attributes[0].value.string_value == said
    assert (span.name, span.status.message) == (said, said)
    assert [attribute.key for attribute in span.attributes] == [said, said]
    assert span.attributes[0].value.string_value == said
    assert span.attributes[1].value.array_value.values[0].string_value == said
    assert (record.event_name, record.body.string_value) == (f"trimaran.x{said}", said)


@pytest.mark.usefixtures("without_extra_otlp")
def test_without_the_extra_protobuf_says_what_to_install() -> None:
    """At once, where a host makes the transport; JSON needs nothing."""
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'trimaran\[otlp\]'"):
        OtlpTransport(OtlpSettings(url="https://x.test"))

    OtlpTransport(OtlpSettings(url="https://x.test", encoding="json"))


def test_the_library_is_imported_with_the_first_request() -> None:
    """In a thread then: it takes a tenth of a second."""
    code = (
        "import sys, trimaran.otlp as o; o.OtlpTransport(o.OtlpSettings(url='https://x.test'));"
        "sys.exit('google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
