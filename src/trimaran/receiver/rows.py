"""How each kind of event reads in a list.

In: the JSON text of a stored event.
Out: a :class:`Row` of short texts, to be escaped by whoever puts them on a page.
Does not know: HTML.
"""

from functools import partial

import msgspec

from trimaran._events import (
    BridgeCall,
    Command,
    CompactionTriggered,
    ContextOverflowRecovered,
    ErrorEvent,
    Generation,
    SessionEnd,
    SessionStart,
    Tokens,
    ToolCall,
    ToolOutputsPruned,
)
from trimaran.receiver import words
from trimaran.receiver.ingest import parse_event

__all__ = ["Row", "row_of"]

_TITLE = 120  # characters
_NOTE = 80  # characters
_ERROR = 500  # characters; what the wire allows for the text of an error
_COMMON = frozenset({"type", "timestamp", "session_id"})
_OTHER = 300  # characters of the JSON of an event whose type is not known here


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One event, put into words."""

    type: str

    timestamp: int
    """ms since the epoch"""

    title: str
    """What happened, in a few words."""

    notes: tuple[str, ...] = ()
    """What else is known of it."""

    error: str = ""
    """The text of an error."""

    failed: bool = False
    duration_ms: float | None = None
    tokens: Tokens | None = None
    cost: float | None = None


def row_of(raw: bytes, session_id: str) -> Row:  # noqa: C901 - one case for each type
    """The event *raw* of the session *session_id*, as it reads in a list."""
    good = parse_event(raw, session_id)
    row = partial(Row, type=good.type, timestamp=good.timestamp)
    match good.event:
        case SessionStart() as event:
            return row(
                title="Session started",
                notes=_notes(event.agent, event.model_id, event.provider_id),
            )
        case SessionEnd() as event:
            return row(
                title="Session ended",
                notes=_notes(
                    _several(event.tool_call_count, "tool call"),
                    _several(event.total_tokens, "token"),
                    _cost(event.total_cost),
                ),
                duration_ms=event.duration_ms,
            )
        case Generation() as event:
            return row(
                title=_title(event.model_id or "a model"),
                notes=_notes(event.provider_id, event.agent, event.finish_reason),
                duration_ms=event.duration_ms,
                tokens=event.tokens,
                cost=event.cost,
            )
        case ToolCall() as event:
            return row(
                title=_title(event.tool_name),
                notes=_notes(event.tool_category),
                error=_error(event.error),
                failed=event.status == "error",
                duration_ms=event.duration_ms,
            )
        case BridgeCall() as event:
            return row(
                title=_title(event.method),
                error=_error(event.error),
                failed=event.status == "error",
                duration_ms=event.duration_ms,
            )
        case ErrorEvent() as event:
            return row(
                title=_title(event.error_name),
                notes=_notes(event.context),
                error=_error(event.error_message),
                failed=True,
            )
        case Command() as event:
            source = "" if event.command_source == "unknown" else event.command_source
            return row(title=_title(f"/{event.command_name}"), notes=_notes(source))
        case ContextOverflowRecovered() as event:
            return row(
                title="Context overflow recovered",
                notes=_notes(_several(event.tokens_used, "token"), event.model_id),
            )
        case CompactionTriggered() as event:
            return row(
                title="Compaction triggered",
                notes=_notes(event.trigger.replace("_", " "), f"attempt {event.attempt}"),
            )
        case ToolOutputsPruned() as event:
            return row(
                title=f"{_several(event.count, 'tool output')} pruned",
                notes=_notes(_several(event.tokens_pruned, "token")),
            )
        case _:
            return row(title=_title(good.type), notes=_rest(raw))


def _title(text: str) -> str:
    return words.cut(text, _TITLE)


def _notes(*notes: str) -> tuple[str, ...]:
    return tuple(words.cut(note, _NOTE) for note in notes if note)


def _rest(raw: bytes) -> tuple[str, ...]:
    """The JSON of an event's own fields; of all where its numbers are too large to read."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, object])
    except msgspec.ValidationError:
        return (words.cut(raw.decode(), _OTHER),)
    own = {name: value for name, value in fields.items() if name not in _COMMON}
    return (words.cut(msgspec.json.encode(own).decode(), _OTHER),) if own else ()


def _error(text: str | msgspec.UnsetType) -> str:
    return "" if text is msgspec.UNSET else words.cut(text, _ERROR)


def _cost(dollars: float | msgspec.UnsetType) -> str:
    return "" if dollars is msgspec.UNSET else words.cost(dollars)


def _several(number: int | msgspec.UnsetType, thing: str) -> str:
    """3 and "tool call" are "3 tool calls"."""
    if number is msgspec.UNSET:
        return ""
    return f"{words.count(number)} {thing}{'' if number == 1 else 's'}"
