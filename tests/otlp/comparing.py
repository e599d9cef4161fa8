"""What was recorded, beside what a system shows of it.

In: a telemetry's transport, spans as they were read. Out: a failure where they differ.
Does not know: which system it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

import trimaran
from otlp.systems import ReadSpan
from patience import PATIENCE
from trimaran._trace import trace_of
from trimaran.otlp import OtlpSettings, OtlpTransport

__all__ = ["MS", "Recorder", "check", "recording"]

MS = 1_000_000
"""Nanoseconds."""

NAMES = {
    "session_start": ("session_start", "agent"),
    "session_end": ("invoke_agent", "agent"),
    "generation": ("chat", "model_id"),
    "tool_call": ("execute_tool", "tool_name"),
    "bridge_call": ("", "method"),
    "error": ("error", "error_name"),
    "command": ("command", "command_name"),
    "compaction_triggered": ("compaction_triggered", "trigger"),
    "deployment": ("deployment", ""),
}
CLIENTS = {"generation", "bridge_call"}


class Recorder:
    """A transport that keeps what it passes on."""

    wants_spans = True

    def __init__(self, inner: OtlpTransport, *, roots: set[str]) -> None:
        self._inner = inner
        self.roots: set[str] = roots
        """Types of events that are their session's root."""
        self.requests: list[trimaran.Request] = []

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        """Pass it on."""
        self.requests.append(request)
        return await self._inner.attempt(request)

    async def aclose(self) -> None:
        """Close the inner one."""
        await self._inner.aclose()

    def events(self) -> list[dict[str, Any]]:
        """What was sent, as it was recorded."""
        bodies = [msgspec.json.decode(request.body) for request in self.requests]
        return [event for body in bodies for event in body["events"]]


@asynccontextmanager
async def recording(
    url: str, **settings: Any
) -> AsyncIterator[tuple[trimaran.Telemetry, Recorder]]:
    """Telemetry that delivers to *url*, with time enough to do so."""
    transport = OtlpTransport(OtlpSettings.from_environ({}, endpoint=url, **settings))
    is_open = settings.get("open_root") or settings.get("signal") == "logs"
    roots = {"session_start", "session_end"} if is_open else {"session_end"}
    recorder = Recorder(transport, roots=roots)
    async with trimaran.open_telemetry(
        "test",
        version="0.5.7",
        environ={"TEST_TELEMETRY_URL": url},
        transport=recorder,
        settings=trimaran.Settings(drain_timeout=PATIENCE),
    ) as telemetry:
        yield telemetry, recorder
    await recorder.aclose()


def check(spans: Sequence[ReadSpan], recorder: Recorder) -> None:
    """Span by span: each event is one, with its ids, parent, times, name and status."""
    events = recorder.events()
    assert len(spans) == len(events)
    agents = {e["session_id"]: e["agent"] for e in events if e["type"] == "session_start"}
    for span, event in zip(spans, events, strict=True):
        kind = event["type"]
        trace = trace_of(event["session_id"])
        is_root = kind in recorder.roots
        word, subject = NAMES["session_end" if is_root else kind]
        said = event.get(subject, agents.get(event["session_id"], "build"))
        name = f"{word} {said if subject else ''}".strip()
        is_failed = kind == "error" or event.get("status") == "error"
        assert span.trace_id == trace.trace_id
        assert span.span_id == (trace.span_id if is_root else event["span_id"])
        parent = "" if is_root else event.get("parent_span_id", trace.span_id)
        assert span.parent_span_id == parent
        assert (span.name, span.kind) == (name, 3 if kind in CLIENTS else 1)
        assert span.end == event["timestamp"] * MS
        if not is_root:
            assert span.end - span.start == event.get("duration_ms", 0) * MS
        assert span.is_error == is_failed
        assert span.message == (event.get("error") or event.get("error_message") or "") * is_failed
        assert span.attributes["session.id"] == event["session_id"]
        assert span.attributes["trimaran.type"] == kind
        assert span.resource["service.version"] == "0.5.7"
        if kind == "generation":
            check_usage(span.attributes, event["tokens"])
        if kind == "error":
            told = {
                "exception.type": event["error_name"],
                "exception.message": event["error_message"],
            }
            assert span.events == [("exception", span.end, told)]


def check_usage(found: dict[str, Any], tokens: dict[str, int]) -> None:
    """The inclusive counts; nothing where nobody counted."""
    if not any(tokens.values()):
        assert "gen_ai.usage.input_tokens" not in found
        return
    inputs = tokens["input"] + tokens["cache_read"] + tokens["cache_write"]
    assert found["gen_ai.usage.input_tokens"] == inputs
    assert found["llm.token_count.prompt"] == inputs
    assert found["gen_ai.usage.output_tokens"] == tokens["output"] + tokens["reasoning"]
