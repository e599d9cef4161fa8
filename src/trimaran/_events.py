"""What a session can say: frozen, typed events and the tokens they carry.

In: the facts of an agent's session, as keyword arguments.
Out: immutable values, encoded by msgspec with ``type`` as the tag.
Does not know: sessions, pipelines, time, the network.

The fields are the wire's own names, so that one definition serves the agent
that records, the command that reads lines back and the receiver that validates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, cast

import msgspec

__all__ = [
    "BUILT_IN_EVENTS",
    "BridgeCall",
    "BuiltInEvent",
    "Command",
    "CommandSource",
    "CompactionTrigger",
    "CompactionTriggered",
    "ContextOverflowRecovered",
    "ErrorEvent",
    "Event",
    "Generation",
    "SessionEnd",
    "SessionStart",
    "Status",
    "Tokens",
    "ToolCall",
    "ToolOutputsPruned",
    "ToolType",
    "read_back",
    "tool_type_of",
]

UNSET = msgspec.UNSET

Status: TypeAlias = Literal["success", "error"]
ToolType: TypeAlias = Literal["standard", "mcp"]
CommandSource: TypeAlias = Literal["command", "mcp", "skill", "unknown"]
CompactionTrigger: TypeAlias = Literal["overflow_detection", "error_recovery"]

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _wire_name(class_name: str) -> str:
    """``ToolCall`` is ``tool_call`` on the wire, ``MCPCall`` is ``mcp_call``.

    msgspec gives a class inside another with the other's name in front of its own.
    """
    return _WORD_START.sub("_", class_name.rpartition(".")[2]).lower()


def tool_type_of(tool_name: object) -> ToolType:
    """``"mcp"`` for a tool whose name starts with ``mcp__``, else ``"standard"``."""
    # By its type and by str's own method: the value's class may be anybody's code.
    is_text = issubclass(type(tool_name), str)
    is_mcp = is_text and str.startswith(cast("str", tool_name), "mcp__")
    return "mcp" if is_mcp else "standard"


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=_wire_name):
    """The base of every event; subclass it to add events of a host's own.

    The wire's ``type`` is the class name in snake case; give another one with
    ``class Deploy(trimaran.Event, frozen=True, tag="deployment")``. Say ``frozen=True`` in
    each class: events are frozen without it too, but to a type checker a class that does
    not say so is not, and may not have a base that is.

    ``timestamp`` (whole milliseconds since the epoch) and ``session_id`` are the
    session's to stamp, at the moment the event is tracked. A *timestamp* given
    here is kept, which is what a replay of recorded events wants; a *session_id*
    given here is replaced by that of the session which tracks the event.

    Nothing is validated when an event is made: making one never raises for the
    content of a field.
    """

    timestamp: int | msgspec.UnsetType = UNSET
    session_id: str | msgspec.UnsetType = UNSET

    urgent: ClassVar[bool] = False
    """An urgent event starts a flush at once, and is shed after all routine ones."""

    cut_fields: ClassVar[tuple[str, ...]] = ()
    """Names of fields with error text, cut at 500 characters before they are sent."""


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one model call, as five parts that do not overlap.

    ``input`` excludes what was read from or written to a cache (the meaning of
    Langfuse and of Anthropic's API), and ``output`` excludes ``reasoning``, so
    that :attr:`total` is the plain sum. OpenTelemetry's inclusive counts are
    :attr:`input_total` and :attr:`output_total`.
    """

    input: int = 0
    output: int = 0
    reasoning: int = 0
    cache_read: int = 0
    cache_write: int = 0

    @property
    def input_total(self) -> int:
        """All that the model read: ``input + cache_read + cache_write``."""
        return self.input + self.cache_read + self.cache_write

    @property
    def output_total(self) -> int:
        """All that the model wrote: ``output + reasoning``."""
        return self.output + self.reasoning

    @property
    def total(self) -> int:
        """The sum of the five parts."""
        return self.input_total + self.output_total

    @classmethod
    def from_anthropic(cls, usage: object) -> Tokens:
        """From the ``usage`` of Anthropic's Messages API, an object or a mapping.

        ``input_tokens`` excludes cached ones there already, and thinking is part
        of ``output_tokens`` and not told apart, so ``reasoning`` is 0.
        """
        return cls(
            input=_count(usage, "input_tokens"),
            output=_count(usage, "output_tokens"),
            cache_read=_count(usage, "cache_read_input_tokens"),
            cache_write=_count(usage, "cache_creation_input_tokens"),
        )

    @classmethod
    def from_openai(cls, usage: object) -> Tokens:
        """From the ``usage`` of OpenAI's Chat Completions or Responses API.

        Its input counts include cached tokens and its output counts include
        reasoning ones, under names that differ between the two APIs; both are
        taken apart here.
        """
        prompt = _count(usage, "prompt_tokens", "input_tokens")
        completion = _count(usage, "completion_tokens", "output_tokens")
        prompt_details = _part(usage, "prompt_tokens_details", "input_tokens_details")
        completion_details = _part(usage, "completion_tokens_details", "output_tokens_details")
        cached = _count(prompt_details, "cached_tokens")
        reasoning = _count(completion_details, "reasoning_tokens")
        return cls(
            input=max(0, prompt - cached),
            output=max(0, completion - reasoning),
            reasoning=reasoning,
            cache_read=cached,
        )

    @classmethod
    def from_google(cls, usage: object) -> Tokens:
        """From the ``usage_metadata`` of Google's Gemini API, in snake or camel case.

        Its prompt count includes cached content, its candidates exclude thoughts, and
        what its own tools read (a search, say) is counted apart from both.
        """
        prompt = _count(usage, "prompt_token_count", "promptTokenCount")
        cached = _count(usage, "cached_content_token_count", "cachedContentTokenCount")
        by_tools = _count(usage, "tool_use_prompt_token_count", "toolUsePromptTokenCount")
        return cls(
            input=max(0, prompt - cached) + by_tools,
            output=_count(usage, "candidates_token_count", "candidatesTokenCount"),
            reasoning=_count(usage, "thoughts_token_count", "thoughtsTokenCount"),
            cache_read=cached,
        )


def _get(record: object, name: str) -> object:
    """A value of a usage record, which is a mapping or an object with attributes."""
    if isinstance(record, Mapping):
        return cast("Mapping[str, object]", record).get(name)
    return getattr(record, name, None)


def _part(record: object, *names: str) -> object:
    """The first nested record found under one of *names*, or None."""
    return next((part for name in names if (part := _get(record, name)) is not None), None)


def _count(record: object, *names: str) -> int:
    """The first count found under one of *names*; 0 where a provider gives none."""
    values = (_get(record, name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


class SessionStart(Event, frozen=True, kw_only=True):
    """A session was opened. Made by the session itself."""

    model_id: str = ""
    provider_id: str = ""
    agent: str = ""
    project_id: str = ""

    urgent: ClassVar[bool] = True


class SessionEnd(Event, frozen=True, kw_only=True):
    """A session ended, with the totals of every event that went through it.

    Made by the session itself, which fills in the totals that are left unset.
    ``total_cost`` is in the unit of the generations' costs, US dollars by convention;
    ``duration_ms`` in milliseconds.
    """

    total_cost: float | msgspec.UnsetType = UNSET
    total_tokens: int | msgspec.UnsetType = UNSET
    tool_call_count: int | msgspec.UnsetType = UNSET
    duration_ms: int | float = 0

    urgent: ClassVar[bool] = True


class Generation(Event, frozen=True, kw_only=True):
    """A model was called. ``cost`` in US dollars, ``duration_ms`` in milliseconds.

    Model, provider and agent are those of the session where they are empty.
    """

    message_id: str = ""
    model_id: str = ""
    provider_id: str = ""
    agent: str = ""
    finish_reason: str = ""
    tokens: Tokens = Tokens()
    cost: float = 0.0
    duration_ms: int | float = 0


class ToolCall(Event, frozen=True, kw_only=True):
    """A tool was called.

    ``sequence_index`` counts the session's tool calls from 0 and ``previous_tool``
    names the one before; the session fills in both, and ``tool_type`` from the
    name, where they are left unset. An empty ``tool_category`` is the type.
    ``error`` is cut at 500 characters.
    """

    tool_name: str
    message_id: str = ""
    tool_type: ToolType | msgspec.UnsetType = UNSET
    tool_category: str = ""
    status: Status = "success"
    duration_ms: int | float = 0
    sequence_index: int | msgspec.UnsetType = UNSET
    previous_tool: str | msgspec.UnsetType | None = UNSET
    error: str | msgspec.UnsetType = UNSET

    cut_fields: ClassVar[tuple[str, ...]] = ("error",)


class BridgeCall(Event, frozen=True, kw_only=True):
    """A method of a bridge process was called. ``error`` is cut at 500 characters."""

    method: str
    status: Status = "success"
    duration_ms: int | float = 0
    error: str | msgspec.UnsetType = UNSET

    cut_fields: ClassVar[tuple[str, ...]] = ("error",)


class ErrorEvent(Event, frozen=True, kw_only=True, tag="error"):
    """Something failed. ``error_message`` is cut at 500 characters."""

    error_name: str
    error_message: str = ""
    context: str = ""

    urgent: ClassVar[bool] = True
    cut_fields: ClassVar[tuple[str, ...]] = ("error_message",)


class Command(Event, frozen=True, kw_only=True):
    """A slash command was run."""

    command_name: str
    command_source: CommandSource = "unknown"
    message_id: str = ""


class ContextOverflowRecovered(Event, frozen=True, kw_only=True):
    """The model's context overflowed and the session went on.

    Model and provider are those of the session where they are empty.
    """

    model_id: str = ""
    provider_id: str = ""
    tokens_used: int = 0


class CompactionTriggered(Event, frozen=True, kw_only=True):
    """The context was compacted. ``attempt`` counts from 1."""

    trigger: CompactionTrigger
    attempt: int = 1


class ToolOutputsPruned(Event, frozen=True, kw_only=True):
    """Old tool outputs were taken out of the context."""

    count: int = 0
    tokens_pruned: int = 0


BuiltInEvent: TypeAlias = (
    SessionStart
    | SessionEnd
    | Generation
    | ToolCall
    | BridgeCall
    | ErrorEvent
    | Command
    | ContextOverflowRecovered
    | CompactionTriggered
    | ToolOutputsPruned
)
"""The closed union of what the wire defines, told apart by ``type``."""

BUILT_IN_EVENTS: Mapping[str, type[Event]] = {
    "session_start": SessionStart,
    "session_end": SessionEnd,
    "generation": Generation,
    "tool_call": ToolCall,
    "bridge_call": BridgeCall,
    "error": ErrorEvent,
    "command": Command,
    "context_overflow_recovered": ContextOverflowRecovered,
    "compaction_triggered": CompactionTriggered,
    "tool_outputs_pruned": ToolOutputsPruned,
}
"""Wire name to class."""


def read_back(values: Mapping[str, Any], kind: type[Event]) -> Event:
    """An event as it was tracked, from its JSON form: its values are of the types that its
    class declares, or what JSON makes of whatever else was put there.

    Raises:
        TypeError: there is no value for a field that needs one.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError:
        found: dict[str, Any] = {
            field.name: _value(values[field.encode_name], field.type)
            for field in msgspec.structs.fields(kind)
            if field.encode_name in values
        }
        return kind(**found)


def _value(value: object, kind: Any) -> object:  # noqa: ANN401 - an annotation may be anything
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return value
