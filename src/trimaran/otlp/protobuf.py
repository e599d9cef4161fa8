"""OTLP as protobuf: a request from spans, and what an answer says.

In: spans. Out: bytes. And back: an answer's bytes; how much was refused, and why.
Does not know: where spans come from, HTTP.

The messages are those of ``opentelemetry-proto``, which takes a tenth of a second to import.
Made one by one, its small ones cost more than all the rest of a span; so they are made once
where they come again, and copied into the request, which costs little.

What is no message is read as JSON: gateways in front of a server answer in it, whatever they
were asked in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from trimaran.otlp import json_form
from trimaran.otlp.conventions import Attribute, Value
from trimaran.otlp.form import Partial
from trimaran.otlp.spans import Span

__all__ = ["Protobuf"]

_MOST_KNOWN = 4096
"""Attributes that are kept as messages: what comes again and again is made once."""

_LONGEST_KNOWN = 64
"""Characters of a value that is worth keeping."""


class Protobuf:
    """Writes requests, and remembers attributes that come again. See :class:`Form`."""

    def __init__(self) -> None:
        self._texts: dict[Attribute, KeyValue] = {}
        self._others: dict[str, tuple[KeyValue, AnyValue]] = {}
        """One for each name, and its value, which is put in right before it is copied."""

    def traces(
        self, resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]
    ) -> bytes:
        """An ExportTraceServiceRequest."""
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add(resource=self._resource(resource))
        within = group.scope_spans.add(scope=self._scope(scope))
        shared: dict[int, trace_pb2.Span] = {}  # by identity: all spans live as long as this
        for span in spans:
            begun = shared.get(id(span.shared))
            if begun is None:
                begun = shared[id(span.shared)] = trace_pb2.Span()
                begun.attributes.extend(self._key_values(span.shared))
            self._write(within.spans.add(), begun, span)
        return request.SerializeToString()

    def logs(
        self, resource: Sequence[Attribute], scope: Sequence[str], spans: Sequence[Span]
    ) -> bytes:
        """An ExportLogsServiceRequest, with a record for what each span was made of."""
        request = ExportLogsServiceRequest()
        group = request.resource_logs.add(resource=self._resource(resource))
        within = group.scope_logs.add(scope=self._scope(scope))
        for span in spans:
            self._record(within.log_records.add(), span)
        return request.SerializeToString()

    def partial_success(self, answer: bytes) -> Partial:
        """What the answer to a request that was taken says: nothing, in most cases."""
        # That of log records has the same fields.
        said = ExportTraceServiceResponse()
        try:
            said.ParseFromString(answer)
        except DecodeError:
            return json_form.partial_success(answer)
        return max(0, said.partial_success.rejected_spans), said.partial_success.error_message

    def message_of_status(self, answer: bytes) -> str:
        """The message of a ``google.rpc.Status``, which says why a request was not taken."""
        # A number and a text under the same numbers as there, so that this reads it as well
        # (https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto).
        status = ExportTracePartialSuccess()
        try:
            status.ParseFromString(answer)
        except DecodeError:
            return json_form.message_of_status(answer)
        return status.error_message

    def _resource(self, attributes: Sequence[Attribute]) -> Resource:
        resource = Resource()
        resource.attributes.extend(self._key_values(dict(attributes)))
        return resource

    def _scope(self, scope: Sequence[str]) -> InstrumentationScope:
        name, version, mapping = scope
        about = InstrumentationScope(name=name, version=version)
        about.attributes.extend(self._key_values({"trimaran.mapping": mapping}))
        return about

    def _write(self, written: trace_pb2.Span, begun: trace_pb2.Span, span: Span) -> None:
        """*span*, on top of what it shares with others."""
        written.CopyFrom(begun)
        written.trace_id = bytes.fromhex(span.trace_id)
        written.span_id = bytes.fromhex(span.span_id)
        written.parent_span_id = bytes.fromhex(span.parent_span_id)
        written.name = _valid(span.name)
        written.kind = trace_pb2.Span.SpanKind.ValueType(span.kind)
        written.start_time_unix_nano = span.start
        written.end_time_unix_nano = span.end
        written.attributes.extend(self._key_values(span.attributes))
        if span.exception:
            event = written.events.add(time_unix_nano=span.end, name="exception")
            event.attributes.extend(self._key_values(span.exception))
        if span.link:
            trace_id, span_id = map(bytes.fromhex, span.link)
            written.links.add(trace_id=trace_id, span_id=span_id)
        if span.is_error:
            written.status.code = trace_pb2.Status.STATUS_CODE_ERROR
            written.status.message = _valid(span.message)

    def _record(self, record: LogRecord, span: Span) -> None:
        record.time_unix_nano = record.observed_time_unix_nano = span.end
        if span.is_error:
            record.severity_number = SeverityNumber.SEVERITY_NUMBER_ERROR
            record.severity_text = "ERROR"
        else:
            record.severity_number = SeverityNumber.SEVERITY_NUMBER_INFO
            record.severity_text = "INFO"
        if span.message:
            record.body.string_value = _valid(span.message)
        for attributes in (span.shared, span.attributes, span.exception):
            record.attributes.extend(self._key_values(attributes))
        record.trace_id = bytes.fromhex(span.trace_id)
        record.span_id = bytes.fromhex(span.span_id)
        record.event_name = _valid(f"trimaran.{span.event}")

    def _key_values(self, attributes: Mapping[str, Value]) -> list[KeyValue]:
        """*attributes*, to be copied at once: the next ones may be the same objects."""
        texts, others = self._texts, self._others
        found: list[KeyValue] = []
        for attribute in attributes.items():
            name, value = attribute
            if type(value) is str:
                # Only text is known: True, 1 and 1.0 are the same to a dict.
                found.append(texts.get(attribute) or self._text(attribute, value))
                continue
            known, place = others.get(name) or self._other(name)
            if type(value) is int:
                place.int_value = value
            elif type(value) is float:
                place.double_value = value
            elif type(value) is bool:
                place.bool_value = value
            else:
                place.CopyFrom(_array(value))
            found.append(known)
        return found

    def _text(self, attribute: Attribute, value: str) -> KeyValue:
        """A KeyValue of text, which is known from now on."""
        made = KeyValue(key=_valid(attribute[0]), value=AnyValue(string_value=_valid(value)))
        if len(value) <= _LONGEST_KNOWN:
            if len(self._texts) >= _MOST_KNOWN:
                self._texts.clear()
            self._texts[attribute] = made
        return made

    def _other(self, name: str) -> tuple[KeyValue, AnyValue]:
        """A KeyValue that has no value yet, and where that belongs."""
        if len(self._others) >= _MOST_KNOWN:
            self._others.clear()
        made = KeyValue(key=_valid(name))
        self._others[name] = made, made.value
        return made, made.value


def _array(value: Value) -> AnyValue:
    assert isinstance(value, tuple)
    array = AnyValue()
    array.array_value.SetInParent()  # also where there is nothing in it
    array.array_value.values.extend(AnyValue(string_value=_valid(item)) for item in value)
    return array


def _valid(text: str) -> str:
    """*text*, with a question mark for what UTF-8 cannot say: half of a surrogate pair."""
    return text if text.isascii() else text.encode(errors="replace").decode()
