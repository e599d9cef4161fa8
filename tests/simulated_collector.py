"""A destination of OTLP in a simulated world: the real transport, and below it no network.

In: requests of OTLP, one attempt each. Out: its answers, and a book of the spans that came.
Does not know: the batches that they were, but for their keys, which the wire does not say.
"""

from __future__ import annotations

import gzip
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import trimaran
from simulated_endpoint import SimulatedEndpoint
from trimaran._trace import trace_of
from trimaran.otlp import (
    LANGFUSE,
    MLFLOW,
    OPENINFERENCE,
    PLAIN,
    Dialect,
    OtlpSettings,
    OtlpTransport,
)

__all__ = ["SimulatedCollector"]

DIALECTS = (OPENINFERENCE, MLFLOW, LANGFUSE, PLAIN)
REASON = b"\x12\x09sometimes"
"""The message of a ``google.rpc.Status``."""
URL = "https://collector.test/v1/traces"

_request: ContextVar[trimaran.Request] = ContextVar("request")
"""What the attempt of this task is made of."""


class Came(NamedTuple):
    """A span that came in."""

    key: str
    """Of its batch."""
    content: bytes


@dataclass
class SimulatedCollector(SimulatedEndpoint):
    """A destination of OTLP, and the network before it; both do whatever the seed says."""

    spans: dict[tuple[str, str], Came] = field(default_factory=dict)
    """By the ids of the trace and the span."""

    def __post_init__(self) -> None:
        self.dialect: Dialect = self.random.choice(DIALECTS)

    def transport(self) -> trimaran.Transport:
        """The real one, as it is in a process that has just begun."""
        settings = OtlpSettings(
            url=URL,
            dialect=self.dialect,
            compression=self.random.choice(["gzip", "none"]),
            timeout=self.random.choice([1.0, 10.0]),
        )
        return _OverOtlp(settings, self)

    def events_in(self, key: str, body: bytes) -> list[dict[str, object]]:
        """What the spans in *body* say of their events."""
        request = ExportTraceServiceRequest.FromString(body)
        [group] = request.resource_spans
        [scope] = group.scope_spans
        told: list[dict[str, object]] = [self._read(key, span) for span in scope.spans]
        batch = msgspec.json.decode(_request.get().body)
        kinds = [event["type"] for event in batch["events"]]
        if self.dialect.replaces_spans and {"session_start", "session_end"} <= {*kinds}:
            # The root at the end is in its place.
            told.insert(kinds.index("session_start"), {"session_id": batch["session_id"]})
        for event, said in zip(batch["events"], told, strict=True):
            own = event.get("span_id") if not said.get("is_root") else None
            if said["session_id"] != batch["session_id"]:
                self.wrong.append("a span of another session")
            if own is not None and said.get("span_id", own) != own:
                self.wrong.append("an event is another's span")
        return told

    def _read(self, key: str, span: Span) -> dict[str, object]:
        said = {each.key: each.value.string_value for each in span.attributes}
        session_id = said[self.dialect.session[0]]
        trace = trace_of(session_id)
        trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
        if trace_id != trace.trace_id:
            self.wrong.append("a span in another session's trace")
        is_root = span_id == trace.span_id
        came = Came(key, span.SerializeToString(deterministic=True))
        # A root may come twice: when its session begins, and instead when it ends.
        if not is_root and self.spans.setdefault((trace_id, span_id), came) != came:
            self.wrong.append("one id, two spans")
        word, _, subject = span.name.partition(" ")
        return {
            "session_id": session_id,
            "span_id": span_id,
            "is_root": is_root,
            **({f"{word}_name": subject} if word in {"command", "error"} else {}),
        }

    def receipt(self, key: str, status: int, refused: set[int]) -> trimaran.Answer:
        """How many are refused; which, OTLP does not say, nor that it knows the batch already."""
        # Only what was refused each time is not there.
        self.refused[key] = refused & self.refused.get(key, refused)
        answer = ExportTraceServiceResponse()
        if refused or self.random.random() < 0.1:
            answer.partial_success.rejected_spans = len(refused)
            answer.partial_success.error_message = "sometimes"
        return trimaran.Answer(200, body=answer.SerializeToString())

    def refusal(self, answer: trimaran.Answer) -> trimaran.Answer:
        """*answer* with the reason."""
        return trimaran.Answer(answer.status, answer.retry_after, REASON)


class _OverOtlp:
    """The real transport, which remembers what it was given."""

    wants_spans = True

    def __init__(self, settings: OtlpSettings, collector: SimulatedCollector) -> None:
        self._inner = OtlpTransport(settings)
        self._inner._http = _Exchange(collector, settings.compression == "gzip")

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        token = _request.set(request)
        try:
            return await self._inner.attempt(request)
        finally:
            _request.reset(token)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Exchange:
    """In the place of HTTP."""

    def __init__(self, collector: SimulatedCollector, is_compressed: bool) -> None:
        self._collector = collector
        self._is_compressed = is_compressed

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        key = _request.get().headers["idempotency-key"]
        body = gzip.decompress(request.body) if self._is_compressed else request.body
        return await self._collector.meet(key, body)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
