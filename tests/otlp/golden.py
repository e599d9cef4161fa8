"""What each type of event becomes, for each destination, in files: a change shows as a diff.

In: an event of each type. Out: a span in OTLP's JSON, beside those in ``golden/``.
``python tests/otlp/golden.py`` writes them anew, for a reviewer to read the diff.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import trimaran
from trimaran.otlp import LANGFUSE, MLFLOW, OPENINFERENCE, PLAIN, Dialect, Kind, Shape
from trimaran.otlp.conventions import table_of
from trimaran.otlp.json_form import traces
from trimaran.otlp.spans import Begun, Body, Names, Origin, spans_of

GOLDEN = Path(__file__).parent / "golden"

NOW = 1_795_000_000_000
"""Milliseconds since the epoch."""
SESSION = "ses_1"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPAN = "00000000000000a1"
PARENT = "00000000000000b2"

DIALECTS: Mapping[str, Dialect] = {
    each.name: each for each in (PLAIN, OPENINFERENCE, MLFLOW, LANGFUSE)
}

SHAPES = {
    "deployment": Shape(
        name="deploy",
        subject="target",
        kind=Kind.CLIENT,
        always={"deployment.system": "ours"},
        fields={"deployment.environment.name": "target"},
        own=("attempt",),
    )
}


class Deployment(trimaran.Event, frozen=True):
    """An event of a host's own, with a mapping of its own."""

    target: str
    attempt: int
    duration_ms: int


class Upload(trimaran.Event, frozen=True):
    """An event of a host's own that nobody has described."""

    name: str
    bytes: int
    is_public: bool
    ratio: float
    labels: list[str]
    nested: dict[str, int]
    status: str
    error: str
    duration_ms: int


EVENTS: Mapping[str, trimaran.Event] = {
    "session_start": trimaran.SessionStart(
        model_id="large-model-4-5", provider_id="provider", agent="build", project_id="p"
    ),
    "session_end": trimaran.SessionEnd(
        total_cost=0.0123, total_tokens=1_470, tool_call_count=2, duration_ms=5_000
    ),
    "generation": trimaran.Generation(
        message_id="msg_1",
        model_id="large-model-4-5",
        provider_id="provider",
        agent="build",
        finish_reason="stop",
        tokens=trimaran.Tokens(
            input=900, output=120, reasoning=50, cache_read=300, cache_write=100
        ),
        cost=0.0123,
        duration_ms=1_500,
    ),
    "generation-failed": trimaran.Generation(
        model_id="large-model-4-5", finish_reason="error", duration_ms=20.5
    ),
    "tool_call": trimaran.ToolCall(
        tool_name="bash",
        message_id="msg_1",
        tool_type="standard",
        tool_category="shell",
        duration_ms=250,
        sequence_index=1,
        previous_tool="read",
    ),
    "tool_call-mcp-failed": trimaran.ToolCall(
        tool_name="mcp__github__search",
        tool_type="mcp",
        tool_category="mcp",
        status="error",
        duration_ms=250,
        sequence_index=0,
        previous_tool=None,
        error="TimeoutError: no answer",
    ),
    "bridge_call": trimaran.BridgeCall(method="sql.execute", duration_ms=40),
    "bridge_call-failed": trimaran.BridgeCall(
        method="sql.execute", status="error", duration_ms=40, error="ValueError: no table"
    ),
    "error": trimaran.ErrorEvent(
        error_name="ValueError", error_message="no such model", context="prompt"
    ),
    "command": trimaran.Command(command_name="init", command_source="command", message_id="msg_1"),
    "context_overflow_recovered": trimaran.ContextOverflowRecovered(
        model_id="large-model-4-5", provider_id="provider", tokens_used=200_001
    ),
    "compaction_triggered": trimaran.CompactionTriggered(trigger="overflow_detection", attempt=2),
    "tool_outputs_pruned": trimaran.ToolOutputsPruned(count=3, tokens_pruned=4_000),
    "deployment": Deployment(target="production", attempt=2, duration_ms=900),
    "upload": Upload(
        name="report.pdf",
        bytes=1024,
        is_public=False,
        ratio=0.5,
        labels=["a", "b"],
        nested={"left": 1},
        status="error",
        error="disk full",
        duration_ms=10,
    ),
}


def wire_form(event: trimaran.Event) -> dict[str, Any]:
    """An event as it stands in a batch, with ids of its own."""
    fields = msgspec.json.decode(msgspec.json.encode(event), type=dict[str, Any])
    stamps = {"timestamp": NOW, "session_id": SESSION}
    return {**fields, **stamps, "span_id": SPAN, "parent_span_id": PARENT}


def rendered(name: str, dialect: Dialect) -> bytes:
    """One event's span, as a request in JSON."""
    body = Body(SESSION, NOW, [wire_form(EVENTS[name])], user_email="a@example.com", project_id="p")
    names = Names(dialect, table_of(dialect, SHAPES), ("nightly",), dialect.replaces_spans)
    start = wire_form(EVENTS["session_start"])
    begun = Begun((NOW - 5_000) * 1_000_000, start) if name == "session_end" else None
    spans = spans_of(body, Origin("key_1", "ses_0"), names, begun)
    request = msgspec.json.decode(traces([], ("trimaran", "", ""), spans))
    [span] = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return msgspec.json.format(msgspec.json.encode(span)) + b"\n"


NESTED = (
    ("session_start", "00000000000000c1", ""),
    ("command", "00000000000000c2", "00000000000000c6"),
    ("bridge_call", "00000000000000c3", "00000000000000c5"),
    ("error", "00000000000000c4", "00000000000000c5"),
    ("tool_call-mcp-failed", "00000000000000c5", "00000000000000c6"),
    ("generation", "00000000000000c6", ""),
    ("session_end", "00000000000000c7", ""),
)
"""A session in the order in which it is tracked: blocks after what is in them."""


def rendered_nested(dialect: Dialect) -> bytes:
    """The spans of a session with blocks inside each other, as a request in JSON."""
    events: list[dict[str, Any]] = []
    for number, (name, span_id, above) in enumerate(NESTED):
        event = wire_form(EVENTS[name]) | {"timestamp": NOW + number, "span_id": span_id}
        del event["parent_span_id"]
        end = (NOW + number) * 1_000_000 - 250
        event |= {"span_end": str(end)}
        if "duration_ms" in event:
            event |= {"span_start": str(end - event["duration_ms"] * 1_000_000 + 125)}
        events.append(event | ({"parent_span_id": above} if above else {}))
    events[-1] |= {"agent": "build", "model_id": "large-model-4-5", "provider_id": "provider"}
    body = Body(SESSION, NOW, events, app="altimate")
    names = Names(dialect, table_of(dialect, SHAPES), (), dialect.replaces_spans)
    spans = spans_of(body, Origin("key_1", "ses_0", TRACEPARENT), names)
    request = msgspec.json.decode(traces([], ("trimaran", "", ""), spans))
    found = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def file_of(name: str, dialect: Dialect) -> Path:
    """Where an event's span is kept."""
    return GOLDEN / dialect.name / f"{name}.json"


if __name__ == "__main__":
    for dialect in DIALECTS.values():
        for name in EVENTS:
            file = file_of(name, dialect)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(rendered(name, dialect))
        file_of("nested", dialect).write_bytes(rendered_nested(dialect))
