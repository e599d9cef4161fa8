"""The other end of OTLP, as far as a faulty server needs it.

In: the body of a request. Out: the spans in it; bodies of answers.
Does not know: HTTP, what is wrong with the server.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["CONTENT_TYPE", "MESSAGE", "partly", "spans_in", "status"]

CONTENT_TYPE = "application/x-protobuf"
MESSAGE = "the quota of today is used up"
"""What a server says beside, in one of two places."""


def spans_in(headers: Mapping[str, str], body: bytes) -> list[str]:
    """Trace, span and end of each span in a request, in their order, loss reports left out.

    A root that comes again when its session is over ends later: there, they are two.
    """
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return [
        f"{span.trace_id.hex()} {span.span_id.hex()} {span.end_time_unix_nano}"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in group.scope_spans
        for span in scope.spans
        if not span.name.startswith("error Telemetry")
    ]


def partly(refused: int, message: str = MESSAGE) -> bytes:
    """A request was taken, but for so many spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = refused
    answer.partial_success.error_message = message
    return answer.SerializeToString()


def status(message: str = MESSAGE) -> bytes:
    """A ``google.rpc.Status``, which is how OTLP says why."""
    text = message.encode()
    return bytes([0x12, len(text)]) + text
