"""A destination of OTLP that keeps each span once, as those do that are made for it.

In: requests of OTLP, as large as it likes them. Out: the names of the events that the spans
in them were, by session, in the order in which they came first.
Does not know: who sends, what was sent before it came through.
"""

from __future__ import annotations

import gzip

import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from faults.exchange import Connection, Tally, raw_answer

__all__ = ["Collector"]


class Collector:
    """Takes what is sent to it.

    Args:
        max_body: bytes that a request may have, uncompressed.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._known: set[tuple[bytes, bytes]] = set()
        self.port = 0
        self.names: dict[str, list[str]] = {}
        """Of the events of each session."""
        self.repeated = 0
        """Spans that came again."""

    async def run(self, task_status: trio.TaskStatus[Collector]) -> None:
        """Take requests until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            task_status.started(self)

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = Connection(stream, Tally())
        try:
            while request := await connection.request():
                body = gzip.decompress(request.body)
                is_small = len(body) <= self._max_body
                if is_small:
                    self._take(ExportTraceServiceRequest.FromString(body))
                await stream.send_all(raw_answer(200 if is_small else 413))
        except trio.BrokenResourceError:
            pass  # killed

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            for scope in group.scope_spans:
                for span in scope.spans:
                    self._keep(span)

    def _keep(self, span: Span) -> None:
        id_ = (span.trace_id, span.span_id)
        if id_ in self._known:
            self.repeated += 1
            return
        self._known.add(id_)
        said = {each.key: each.value.string_value for each in span.attributes}
        kind = said["trimaran.type"]
        name = span.name.partition(" ")[2] if kind in {"command", "error"} else kind
        self.names.setdefault(said["session.id"], []).append(name)
