"""OTLP as JSON: a request from spans, and what an answer says.

In: spans. Out: bytes. And back: an answer's bytes; how much was refused, and why.
Does not know: where spans come from, HTTP.

Not quite protobuf's own mapping: ids are hexadecimal digits, kinds are numbers; whole numbers
of 64 bits are text, as there (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from trimaran.otlp.conventions import Attribute, Value
from trimaran.otlp.form import Partial
from trimaran.otlp.spans import Span

__all__ = ["logs", "message_of_status", "partial_success", "traces"]

_encode = msgspec.json.Encoder().encode


def traces(resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]) -> bytes:
    """An ExportTraceServiceRequest."""
    inner = {"scope": _scope(scope), "spans": [_span(span) for span in spans]}
    return _encode({"resourceSpans": [{"resource": _resource(resource), "scopeSpans": [inner]}]})


def logs(resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]) -> bytes:
    """An ExportLogsServiceRequest, with a record for what each span was made of."""
    inner = {"scope": _scope(scope), "logRecords": [_record(span) for span in spans]}
    return _encode({"resourceLogs": [{"resource": _resource(resource), "scopeLogs": [inner]}]})


def _resource(attributes: Sequence[Attribute]) -> dict[str, Any]:
    return {"attributes": _key_values(attributes)}


def _scope(scope: Sequence[str]) -> dict[str, Any]:
    name, version, mapping = scope
    return {
        "name": name,
        "version": version,
        "attributes": _key_values([("trimaran.mapping", mapping)]),
    }


def _span(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {"traceId": span.trace_id, "spanId": span.span_id}
    if span.parent_span_id:
        found["parentSpanId"] = span.parent_span_id
    found |= {
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _key_values([*span.shared.items(), *span.attributes.items()]),
    }
    if span.exception:
        event = {
            "timeUnixNano": str(span.end),
            "name": "exception",
            "attributes": _key_values(span.exception.items()),
        }
        found["events"] = [event]
    if span.link:
        trace_id, span_id = span.link
        found["links"] = [{"traceId": trace_id, "spanId": span_id}]
    if span.is_error:
        found["status"] = {"code": 2} | ({"message": span.message} if span.message else {})
    return found


def _record(span: Span) -> dict[str, Any]:
    number, text = (17, "ERROR") if span.is_error else (9, "INFO")
    return {
        "timeUnixNano": str(span.end),
        "observedTimeUnixNano": str(span.end),
        "severityNumber": number,
        "severityText": text,
        **({"body": {"stringValue": span.message}} if span.message else {}),
        "attributes": _key_values(
            [*span.shared.items(), *span.attributes.items(), *span.exception.items()]
        ),
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "eventName": f"trimaran.{span.event}",
    }


def _key_values(attributes: Iterable[Attribute]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _any_value(value)} for name, value in attributes]


def _any_value(value: Value) -> dict[str, Any]:
    match value:
        case str():
            return {"stringValue": value}
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"arrayValue": {"values": [{"stringValue": item} for item in value]}}


class _PartialSuccess(msgspec.Struct, frozen=True, rename="camel"):
    rejected_spans: int | str = 0
    rejected_log_records: int | str = 0
    error_message: str = ""


class _Taken(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess = _PartialSuccess()


class _Status(msgspec.Struct):
    message: str = ""


def partial_success(answer: bytes) -> Partial:
    """What the answer to a request that was taken says: nothing, in most cases."""
    try:
        said = msgspec.json.decode(answer, type=_Taken).partial_success
        refused = max(0, int(said.rejected_spans), int(said.rejected_log_records))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0, ""
    return refused, said.error_message


def message_of_status(answer: bytes) -> str:
    """The message of a ``google.rpc.Status``, which says why a request was not taken."""
    try:
        return msgspec.json.decode(answer, type=_Status).message
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
