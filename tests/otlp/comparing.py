"""What was recorded, beside what a system shows of it.

In: what a transport sent, spans as they were read. Out: a failure where they differ.
Does not know: which system it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otlp.recorder import Recorder
from otlp.systems import ReadSpan
from patience import LATENESS
from trimaran._trace import trace_of

__all__ = ["MS", "check", "check_inside"]

MS = 1_000_000
SECOND = 1_000 * MS
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
        check_times(span, event, is_root=is_root)
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


def check_times(span: ReadSpan, event: dict[str, Any], *, is_root: bool) -> None:
    """When it was, to the nanosecond, as far as the wire's milliseconds can tell that."""
    assert span.end == int(event["span_end"])
    length = span.end - span.start
    if is_root:
        assert span.start == int(event.get("span_start", event["span_end"]))
    elif "span_start" in event:
        assert span.start == int(event["span_start"])
        assert abs(length - event["duration_ms"] * MS) <= MS
        # It is tracked when it is over; two clocks say when, and are not read at one moment.
        assert span.end <= event["timestamp"] * MS + LATENESS * SECOND
    else:
        # In a block its clock says when; it is tracked by the other one, perhaps a while later.
        assert abs(span.end - event["timestamp"] * MS) <= LATENESS * SECOND
        assert length == event.get("duration_ms", 0) * MS


def check_inside(spans: Sequence[ReadSpan], recorder: Recorder) -> None:
    """What was measured, or has no length, is over before what it happened in, and begins
    later. What the host says of an event of its own stands as it is.

    Not so for what a block has started and not waited for.
    """
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    for span, event in zip(spans, recorder.events(), strict=True):
        around = by_id.get((span.trace_id, span.parent_span_id))
        if around is not None and ("span_start" in event or "duration_ms" not in event):
            assert around.start <= span.start <= span.end <= around.end, (around, span)


def check_usage(found: dict[str, Any], tokens: dict[str, int]) -> None:
    """The inclusive counts; nothing where nobody counted."""
    if not any(tokens.values()):
        assert "gen_ai.usage.input_tokens" not in found
        return
    inputs = tokens["input"] + tokens["cache_read"] + tokens["cache_write"]
    assert found["gen_ai.usage.input_tokens"] == inputs
    assert found["llm.token_count.prompt"] == inputs
    assert found["gen_ai.usage.output_tokens"] == tokens["output"] + tokens["reasoning"]
