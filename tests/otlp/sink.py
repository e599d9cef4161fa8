"""The far end of a collector: it takes OTLP, and reads thousands of spans in no time.

In: requests, over HTTP. Out: the spans in them, in the order in which they came.
Does not know: who sent them first.
"""

from __future__ import annotations

import gzip
from typing import Any

import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from faults.exchange import Connection, Tally, raw_answer
from otlp.systems import ReadSpan

__all__ = ["Sink"]


class Sink:
    """Takes everything that is sent to it."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[ReadSpan] = []

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Take requests until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = Connection(stream, Tally())
        while request := await connection.request():
            is_packed = request.headers.get("content-encoding") == "gzip"
            body = gzip.decompress(request.body) if is_packed else request.body
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {a.key: value_of(a.value) for a in group.resource.attributes}
                for scope in group.scope_spans:
                    self.spans += [read(span, resource) for span in scope.spans]
            await stream.send_all(raw_answer(200))


def read(span: Span, resource: dict[str, Any]) -> ReadSpan:
    """A span, as other systems show it."""
    return ReadSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        kind=span.kind,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes={a.key: value_of(a.value) for a in span.attributes},
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        message=span.status.message,
        events=[
            (e.name, e.time_unix_nano, {a.key: value_of(a.value) for a in e.attributes})
            for e in span.events
        ],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource=resource,
    )


def value_of(value: AnyValue) -> Any:
    """A plain value; nothing else is in these tests."""
    kind = value.WhichOneof("value")
    assert kind is not None
    return getattr(value, kind)
