"""Every kind of event reads as what it is."""

import json
from typing import Any

import msgspec
import pytest

from trimaran import Tokens
from trimaran._events import BUILT_IN_EVENTS
from trimaran.receiver.rows import Row, row_of


def row(type_: str, **fields: Any) -> Row:
    event = {"type": type_, "timestamp": 7, "session_id": "s", **fields}
    return row_of(json.dumps(event).encode(), "s")


CASES = [
    (
        row("session_start", agent="build", model_id="m", project_id="p"),
        Row(type="session_start", timestamp=7, title="Session started", notes=("build", "m")),
    ),
    (
        row("session_end", tool_call_count=1, total_tokens=2000, total_cost=0.5, duration_ms=9),
        Row(
            type="session_end",
            timestamp=7,
            title="Session ended",
            notes=("1 tool call", "2,000 tokens", "$0.5000"),
            duration_ms=9,
        ),
    ),
    (
        row("session_end"),
        Row(type="session_end", timestamp=7, title="Session ended", duration_ms=0),
    ),
    (
        row(
            "generation",
            model_id="m",
            finish_reason="stop",
            tokens={"input": 3},
            cost=0.5,
            duration_ms=2.5,
        ),
        Row(
            type="generation",
            timestamp=7,
            title="m",
            notes=("stop",),
            duration_ms=2.5,
            tokens=Tokens(input=3),
            cost=0.5,
        ),
    ),
    (
        row("generation"),
        Row(
            type="generation",
            timestamp=7,
            title="a model",
            duration_ms=0,
            tokens=Tokens(),
            cost=0.0,
        ),
    ),
    (
        row("tool_call", tool_name="bash", tool_category="shell", duration_ms=4),
        Row(type="tool_call", timestamp=7, title="bash", notes=("shell",), duration_ms=4),
    ),
    (
        row("tool_call", tool_name="bash", status="error", error="exit 1"),
        Row(
            type="tool_call",
            timestamp=7,
            title="bash",
            error="exit 1",
            failed=True,
            duration_ms=0,
        ),
    ),
    (
        row("bridge_call", method="sql.execute", status="error"),
        Row(type="bridge_call", timestamp=7, title="sql.execute", failed=True, duration_ms=0),
    ),
    (
        row("error", error_name="OSError", error_message="no space", context="prompt"),
        Row(
            type="error",
            timestamp=7,
            title="OSError",
            notes=("prompt",),
            error="no space",
            failed=True,
        ),
    ),
    (
        row("command", command_name="init", command_source="skill"),
        Row(type="command", timestamp=7, title="/init", notes=("skill",)),
    ),
    (row("command", command_name="init"), Row(type="command", timestamp=7, title="/init")),
    (
        row("context_overflow_recovered", tokens_used=1, model_id="m"),
        Row(
            type="context_overflow_recovered",
            timestamp=7,
            title="Context overflow recovered",
            notes=("1 token", "m"),
        ),
    ),
    (
        row("compaction_triggered", trigger="error_recovery", attempt=2),
        Row(
            type="compaction_triggered",
            timestamp=7,
            title="Compaction triggered",
            notes=("error recovery", "attempt 2"),
        ),
    ),
    (
        row("tool_outputs_pruned", count=2, tokens_pruned=4000),
        Row(
            type="tool_outputs_pruned",
            timestamp=7,
            title="2 tool outputs pruned",
            notes=("4,000 tokens",),
        ),
    ),
    (
        row("deploy", target="staging", replicas=3),
        Row(
            type="deploy",
            timestamp=7,
            title="deploy",
            notes=('{"target":"staging","replicas":3}',),
        ),
    ),
    (row("ping"), Row(type="ping", timestamp=7, title="ping")),
]


@pytest.mark.parametrize(("told", "expected"), CASES)
def test_each_type_has_its_words(told: Row, expected: Row) -> None:
    """What happened, what else is known, and whether it failed."""
    assert msgspec.to_builtins(told) == msgspec.to_builtins(expected)


def test_all_types_of_the_wire_have_a_case() -> None:
    """None falls through to its JSON."""
    assert {expected.type for _, expected in CASES} >= set(BUILT_IN_EVENTS)


def test_texts_are_cut_to_what_a_page_can_hold() -> None:
    """A sender's megabyte does not become ours."""
    long = "x" * 5000
    told = row("tool_call", tool_name=long, tool_category=long, status="error", error=long)

    assert len(told.title) == 120
    assert len(told.notes[0]) == 80
    assert len(told.error) == 500
    assert len(row("deploy", target=long).notes[0]) == 300


def test_numbers_that_python_cannot_read_are_shown_as_sent() -> None:
    """A host's own event may have any number that is JSON."""
    raw = b'{"type":"deploy","timestamp":7,"session_id":"s","n":1e999}'

    assert row_of(raw, "s").notes == (raw.decode(),)
