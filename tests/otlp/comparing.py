"""What was recorded, beside what a system shows of it.

In: what a transport sent, spans as they were read. Out: a failure where they differ.
Does not know: which system it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otlp.recorder import Recorder
from otlp.systems import ReadSpan
from trimaran._trace import trace_of

__all__ = ["MS", "check"]

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
