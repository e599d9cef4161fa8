"""What each event is called elsewhere: one table, at one named version.

In: an event as it stands in a batch. Out: a span's name, kind and attributes.
Does not know: ids, times, batches, how spans are written down or sent.

Three sets of names stand side by side, since no system reads only one:

- OpenTelemetry's conventions for generative AI, for RPC and for MCP:
  https://github.com/open-telemetry/semantic-conventions-genai/tree/main/docs/gen-ai and
  https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/
- OpenInference, which Phoenix speaks:
  https://arize-ai.github.io/openinference/spec/attributes/semantic-conventions.html
- Langfuse's own:
  https://langfuse.com/integrations/native/opentelemetry#property-mapping

Token counts differ between them. In an event the five parts do not overlap. The counts of
OpenTelemetry and OpenInference for input and output are inclusive; the keys of Langfuse's
usage details exclude each other, and it adds them up
(https://github.com/langfuse/langfuse/issues/10592).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias, cast

import msgspec

__all__ = [
    "ALL",
    "LANGFUSE",
    "MAPPING_VERSION",
    "MLFLOW",
    "OPENINFERENCE",
    "OTHER",
    "PLAIN",
    "Attribute",
    "Columns",
    "Dialect",
    "Fields",
    "Kind",
    "Shape",
    "Table",
    "Value",
    "is_mapping_of_text",
    "is_texts",
    "raised_by",
    "table_of",
    "value_of",
    "without_text",
]

MAPPING_VERSION: str = "2026-11"
"""The name of this table. It changes with any name in it, and goes out with every span."""

Value: TypeAlias = str | bool | int | float | tuple[str, ...]
Attribute: TypeAlias = tuple[str, Value]
Fields: TypeAlias = Mapping[str, object]
"""An event as it stands in a batch."""
Computed: TypeAlias = Callable[[Fields], Iterable[Attribute]]

ALL = "*"
"""What stands for all types that nobody has described, among a host's own shapes."""

_LONGEST_INT = 2**63

_NO_CONTENT = frozenset({"type", "span_id", "parent_span_id", "status"})
"""Fields of text that say what happened, where, and whether it failed."""

_TOOL: tuple[Attribute, ...] = (("gen_ai.tool.type", "function"),)
_MCP_TOOL: tuple[Attribute, ...] = (
    ("gen_ai.tool.type", "extension"),
    ("mcp.method.name", "tools/call"),
)
_RAISED = re.compile(
    r"((?:[A-Za-z_][\w.]{0,99}?)?(?:Error|Exception|ExceptionGroup|Exit|Interrupt|Timeout|Warning))"
    r"(?:: |\Z)"
)
_FAILURE: tuple[Attribute, ...] = (("error.type", "_OTHER"),)


class Kind(IntEnum):
    """OpenTelemetry's kinds of spans, by their numbers on the wire."""

    INTERNAL = 1
    CLIENT = 3


class Columns(msgspec.Struct, frozen=True):
    """What one set of names says of one type of event."""

    always: Mapping[str, Value] = {}
    """Attributes with a constant value."""
    fields: Mapping[str, str] = {}
    """Attributes whose value is a field of the event; left out where it is empty."""
    computed: Computed | None = None
    """Attributes that have to be worked out."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a type of event becomes. A host gives its own types theirs.

    A span is named ``"{name} {field}"`` with the value of the field that *subject* names,
    and lasts ``duration_ms`` until the event's time, where the event has that field.
    Its status is an error where the field ``status`` says ``"error"``.

    Raises:
        ValueError: a value is not of its kind.
    """

    name: str = ""
    """The first word of the span's name."""
    subject: str = ""
    """The field whose value follows it; "" for none."""
    kind: Kind = Kind.INTERNAL
    always: Mapping[str, Value] = {}
    """Attributes with a constant value."""
    fields: Mapping[str, str] = {}
    """Attribute to field of the event."""
    own: tuple[str, ...] | None = None
    """Fields without a conventional name, which go out under ours; None for all of them, text
    too."""
    computed: tuple[Computed, ...] = ()
    """Attributes that have to be worked out."""

    def __post_init__(self) -> None:
        for name, (holds, expected) in _OF_A_SHAPE.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"Shape: {name} must be {expected}")


Table: TypeAlias = Mapping[str, Shape]


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """A set of names that a destination needs beside OpenTelemetry's."""

    name: str
    prefix: str = "trimaran."
    """Stands before the names of fields that no convention has a name for."""
    session: tuple[str, ...] = ("gen_ai.conversation.id", "session.id")
    """Attributes of every span with the session's id."""
    user: str = "user.id"
    """The attribute of every span with who the events belong to, where that is known."""
    tags: str = "tag.tags"
    """The attribute of every span with the destination's tags."""
    columns: Mapping[str, Columns] = {}
    """Event type to what it is called there."""
    other: Columns = Columns()
    """The same for all other types."""
    trace_name: str = ""
    """The attribute of a root with the name of the whole."""
    replaces_spans: bool = False
    """Whether a span that comes again under its id takes the place of the first."""
    longest_id: int | None = None
    """Characters of ASCII that ids of sessions and users, and tags, may have; None for any."""

    def __repr__(self) -> str:
        return f"Dialect({self.name!r})"


def is_texts(value: object) -> bool:
    """A sequence of texts, and not one text, which is a sequence of its letters."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return False
    return all(isinstance(item, str) for item in cast("Sequence[object]", value))


def is_mapping_of_text(value: object) -> bool:
    """Names of text, and text under each of them."""
    if not isinstance(value, Mapping):
        return False
    pairs = cast("Mapping[object, object]", value).items()
    return all(isinstance(key, str) and isinstance(text, str) for key, text in pairs)


def _is_constant(value: object) -> bool:
    """What an attribute can hold."""
    if type(value) is int:
        return -_LONGEST_INT <= value < _LONGEST_INT
    return isinstance(value, (str, bool, float)) or (is_texts(value) and isinstance(value, tuple))


def _are_constants(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    pairs = cast("Mapping[object, object]", value).items()
    return all(isinstance(key, str) and _is_constant(constant) for key, constant in pairs)


def _are_functions(value: object) -> bool:
    return isinstance(value, tuple) and all(map(callable, cast("tuple[object, ...]", value)))


_OF_A_SHAPE: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "name": (lambda value: isinstance(value, str), "text"),
    "subject": (lambda value: isinstance(value, str), "the name of a field, or empty"),
    "kind": (lambda value: isinstance(value, Kind), "a Kind"),
    "always": (
        _are_constants,
        "a mapping of names to text, numbers, True, False or tuples of text",
    ),
    "fields": (is_mapping_of_text, "a mapping of attributes to names of fields"),
    "own": (lambda value: value is None or is_texts(value), "a tuple of names of fields, or None"),
    "computed": (_are_functions, "a tuple of functions"),
}
"""What each value of a shape has to be."""


class Counts(NamedTuple):
    """The tokens of a generation, in parts that do not overlap."""

    input: int
    output: int
    reasoning: int
    cache_read: int
    cache_write: int

    @property
    def input_total(self) -> int:
        """All that the model read."""
        return self.input + self.cache_read + self.cache_write

    @property
    def output_total(self) -> int:
        """All that the model wrote."""
        return self.output + self.reasoning


def value_of(value: object) -> Value | None:
    """A field as an attribute's value; None for what is empty, or no plain value."""
    if type(value) is str:
        return value or None
    if type(value) is int:
        return value if -_LONGEST_INT <= value < _LONGEST_INT else str(value)
    if type(value) in {bool, float}:
        return cast("bool | float", value)
    if type(value) is list:
        items = cast("list[object]", value)
        return tuple(cast("list[str]", items)) if all(type(i) is str for i in items) else None
    return None


def without_text(event: Fields) -> Fields:
    """What of an event that nobody has described may go out: numbers and truth values.

    Text of a host's own may be a prompt, an answer or an argument, and the host has not said
    that it is for this destination.
    """
    return {
        field: value
        for field, value in event.items()
        if field in _NO_CONTENT or type(value) in {int, float, bool}
    }


def counts_of(event: Fields) -> Counts | None:
    """The tokens of a generation; None where it counts none."""
    tokens = event.get("tokens")
    if not isinstance(tokens, Mapping):
        return None
    given = cast("Mapping[str, object]", tokens).get
    counts = Counts(*(_count(given(part)) for part in Counts._fields))
    return counts if any(counts) else None


def cost_of(event: Fields) -> float | None:
    """US dollars; None where it is 0, which is what is not known."""
    cost = event.get("cost")
    return float(cost) if isinstance(cost, int | float) and cost > 0 else None


def _count(value: object) -> int:
    """A number of tokens; 0 for anything else."""
    return value if type(value) is int and 0 < value < _LONGEST_INT else 0


def _gen_ai_usage(event: Fields) -> Iterable[Attribute]:
    """Cache writes under both names: it was renamed, and MLflow and others read the one or
    the other.
    """
    counts = counts_of(event)
    if counts is not None:
        yield "gen_ai.usage.input_tokens", counts.input_total
        yield "gen_ai.usage.output_tokens", counts.output_total
        if counts.cache_read:
            yield "gen_ai.usage.cache_read.input_tokens", counts.cache_read
        if counts.cache_write:
            yield "gen_ai.usage.cache_write.input_tokens", counts.cache_write
            yield "gen_ai.usage.cache_creation.input_tokens", counts.cache_write
        if counts.reasoning:
            yield "gen_ai.usage.reasoning.output_tokens", counts.reasoning


def _finish(event: Fields) -> Iterable[Attribute]:
    """A list there, one reason here."""
    reason = event.get("finish_reason")
    if type(reason) is str and reason:
        yield "gen_ai.response.finish_reasons", (reason,)
        if reason == "error":
            yield "error.type", "_OTHER"


def _tool(event: Fields) -> Iterable[Attribute]:
    """A tool of an MCP server is called over the network, by a method of that protocol."""
    return _MCP_TOOL if event.get("tool_type") == "mcp" else _TOOL


def raised_by(text: str) -> tuple[str, str]:
    """The class of an exception and its message, where *text* is both; else "" and *text*.

    A block that fails says so in its ``error`` as Python does, and as other languages do. By
    the class's name, which ends as such names do, it is told from other text with a colon.
    """
    found = _RAISED.match(text)
    return ("", text) if found is None else (found[1], text[found.end() :])


def _failure(event: Fields) -> Iterable[Attribute]:
    """The class of what was raised; the convention's word for others, where nobody tells it."""
    if event.get("status") != "error":
        return ()
    error = event.get("error")
    name = raised_by(error)[0] if type(error) is str else ""
    return (("error.type", name),) if name else _FAILURE


def _cost_under(prefix: str) -> Computed:
    """A generation's cost among what has no conventional name."""
    name = f"{prefix}cost"

    def told(event: Fields) -> Iterable[Attribute]:
        cost = cost_of(event)
        return () if cost is None else ((name, cost),)

    return told


def _openinference_usage(event: Fields) -> Iterable[Attribute]:
    counts = counts_of(event)
    if counts is not None:
        yield "llm.token_count.prompt", counts.input_total
        yield "llm.token_count.completion", counts.output_total
        yield "llm.token_count.total", counts.input_total + counts.output_total
        if counts.cache_read:
            yield "llm.token_count.prompt_details.cache_read", counts.cache_read
        if counts.cache_write:
            yield "llm.token_count.prompt_details.cache_write", counts.cache_write
        if counts.reasoning:
            yield "llm.token_count.completion_details.reasoning", counts.reasoning
    cost = cost_of(event)
    if cost is not None:
        yield "llm.cost.total", cost


def _mlflow_cost(event: Fields) -> Iterable[Attribute]:
    """Else it is worked out there, by its own prices; it reads all attributes as JSON."""
    cost = cost_of(event)
    if cost is not None:
        told = {"input_cost": 0.0, "output_cost": 0.0, "total_cost": cost}
        yield "mlflow.llm.cost", msgspec.json.encode(told).decode()


def _langfuse_usage(event: Fields) -> Iterable[Attribute]:
    """Given whole, so that nothing is worked out from other attributes there."""
    counts = counts_of(event)
    if counts is not None:
        usage = {
            "input": counts.input,
            "output": counts.output,
            "input_cached_tokens": counts.cache_read,
            "input_cache_creation": counts.cache_write,
            "output_reasoning_tokens": counts.reasoning,
            "total": counts.input_total + counts.output_total,
        }
        told = {key: count for key, count in usage.items() if count}
        yield "langfuse.observation.usage_details", msgspec.json.encode(told).decode()
    cost = cost_of(event)
    if cost is not None:
        yield "langfuse.observation.cost_details", msgspec.json.encode({"total": cost}).decode()


OTHER = Shape()
"""What is left of a type that nobody has described: its plain fields, under our names."""

_MODEL = {
    "gen_ai.request.model": "model_id",
    "gen_ai.provider.name": "provider_id",
}
_ROOT = {**_MODEL, "gen_ai.agent.name": "agent"}

_OPENTELEMETRY: Table = {
    # Where it is a span of its own; else it is the root, as its end is.
    "session_start": Shape(
        name="session_start", subject="agent", fields=_ROOT, own=("project_id",)
    ),
    "session_end": Shape(
        name="invoke_agent",
        subject="agent",
        always={"gen_ai.operation.name": "invoke_agent"},
        fields=_ROOT,
        # Under names of our own: as counts of the convention, systems that add up all spans
        # of a trace would count the generations' tokens twice.
        own=("project_id", "total_cost", "total_tokens", "tool_call_count"),
    ),
    "generation": Shape(
        name="chat",
        subject="model_id",
        kind=Kind.CLIENT,
        always={"gen_ai.operation.name": "chat"},
        fields={**_MODEL, "gen_ai.agent.name": "agent"},
        own=("message_id",),  # and its cost, where that is known
        computed=(_gen_ai_usage, _finish),
    ),
    "tool_call": Shape(
        name="execute_tool",
        subject="tool_name",
        always={"gen_ai.operation.name": "execute_tool"},
        fields={"gen_ai.tool.name": "tool_name"},
        own=("message_id", "tool_category", "sequence_index", "previous_tool"),
        computed=(_tool, _failure),
    ),
    "bridge_call": Shape(
        subject="method",
        kind=Kind.CLIENT,
        always={"rpc.system.name": "bridge"},
        fields={"rpc.method": "method"},
        own=(),
        computed=(_failure,),
    ),
    "error": Shape(
        name="error",
        subject="error_name",
        fields={"error.type": "error_name"},
        own=("context",),
    ),
    "command": Shape(
        name="command",
        subject="command_name",
        own=("command_name", "command_source", "message_id"),
    ),
    "context_overflow_recovered": Shape(
        name="context_overflow_recovered", fields=_MODEL, own=("tokens_used",)
    ),
    "compaction_triggered": Shape(
        name="compaction_triggered", subject="trigger", own=("trigger", "attempt")
    ),
    "tool_outputs_pruned": Shape(name="tool_outputs_pruned", own=("count", "tokens_pruned")),
}

PLAIN = Dialect(name="plain")
"""OpenTelemetry's names alone."""

OPENINFERENCE = Dialect(
    name="openinference",
    columns={
        "session_end": Columns({"openinference.span.kind": "AGENT"}, {"agent.name": "agent"}),
        "generation": Columns(
            {"openinference.span.kind": "LLM"},
            {"llm.model_name": "model_id", "llm.provider": "provider_id"},
            _openinference_usage,
        ),
        "tool_call": Columns({"openinference.span.kind": "TOOL"}, {"tool.name": "tool_name"}),
    },
    other=Columns({"openinference.span.kind": "CHAIN"}),
)
"""For Phoenix; others leave alone what they do not know."""

MLFLOW = msgspec.structs.replace(
    OPENINFERENCE,
    name="mlflow",
    columns={
        **OPENINFERENCE.columns,
        "generation": msgspec.structs.replace(
            OPENINFERENCE.columns["generation"], computed=_mlflow_cost
        ),
    },
    replaces_spans=True,
)
"""For MLflow, which reads usage by OpenTelemetry's names, and kinds by OpenInference's."""

LANGFUSE = Dialect(
    name="langfuse",
    # What stands anywhere else is not shown by its newer tables.
    prefix="langfuse.observation.metadata.",
    session=("session.id", "gen_ai.conversation.id"),
    tags="langfuse.trace.tags",
    columns={
        "session_start": Columns({"langfuse.observation.type": "event"}),
        "session_end": Columns({"langfuse.observation.type": "agent"}),
        "generation": Columns(
            {"langfuse.observation.type": "generation"},
            {"langfuse.observation.model.name": "model_id"},
            _langfuse_usage,
        ),
        "tool_call": Columns({"langfuse.observation.type": "tool"}),
        "bridge_call": Columns({"langfuse.observation.type": "span"}),
        "error": Columns({"langfuse.observation.type": "event"}),
        "command": Columns({"langfuse.observation.type": "event"}),
        "context_overflow_recovered": Columns({"langfuse.observation.type": "event"}),
        "compaction_triggered": Columns({"langfuse.observation.type": "event"}),
        "tool_outputs_pruned": Columns({"langfuse.observation.type": "event"}),
    },
    other=Columns({"langfuse.observation.type": "span"}),
    trace_name="langfuse.trace.name",
    longest_id=200,
)
"""For Langfuse."""


def table_of(dialect: Dialect, shapes: Mapping[str, Shape]) -> Table:
    """The whole table of a destination.

    Args:
        dialect: the names that it needs beside OpenTelemetry's.
        shapes: what the host's own types become, and built-in ones where it wants another;
            under :data:`ALL`, what all others of its own become.
    """
    generation = _OPENTELEMETRY["generation"]
    computed = (*generation.computed, _cost_under(dialect.prefix))
    generation = msgspec.structs.replace(generation, computed=computed)
    known = {**_OPENTELEMETRY, "generation": generation, **shapes, "": OTHER}
    return {
        kind: _with_columns(shape, dialect.columns.get(kind, dialect.other), dialect.prefix)
        for kind, shape in known.items()
    }


def _with_columns(shape: Shape, columns: Columns, prefix: str) -> Shape:
    computed = shape.computed if columns.computed is None else (*shape.computed, columns.computed)
    fields = {**shape.fields, **columns.fields}
    if shape.own is not None:
        fields |= {f"{prefix}{field}": field for field in shape.own}
    always = {**shape.always, **columns.always}
    return msgspec.structs.replace(
        shape,
        always={name: value for name, value in always.items() if name not in fields},
        fields=fields,
        own=None if shape.own is None else (),
        computed=computed,
    )
