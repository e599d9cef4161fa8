"""A batch as rows of tables.

In: a batch, and what its receiver says of it. Out: rows, with the columns of ``schema``.
Does not know: ClickHouse.

A row of ``batches`` says of the batch whatever it takes to know what all batches of a session
come to, in whichever order they are looked at: see ``summary`` for what that is.
"""

from collections import Counter
from collections.abc import Iterator

import msgspec

from trimaran._events import (
    BridgeCall,
    Command,
    ErrorEvent,
    Event,
    Generation,
    SessionEnd,
    SessionStart,
    Tokens,
    ToolCall,
)
from trimaran.receiver.ingest import Batch
from trimaran.receiver.line import Post
from trimaran.receiver.summary import Summary, add, failed

__all__ = ["ENDED", "GOES_ON", "BatchRow", "EventRow", "batch_row", "event_rows"]

GOES_ON, ENDED = 1, 2
"""What a batch says last of its session's end; 0 where it says nothing."""


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``batches``."""

    session_id: str
    batch_key: str
    number: int
    """When it came, in microseconds since the epoch; later than all of its session before."""
    received: int
    """The same in milliseconds, by the receiver's clock alone."""
    accepted: int
    rejected: str
    """JSON."""
    parent: str
    project: str
    app_version: str
    user: str
    started_project: str
    """Of the first ``session_start`` that names one; the other three, of the last."""
    started_agent: str
    started_model: str
    started_provider: str
    agent: str
    """Of the first generation that names one, as the other two."""
    model: str
    provider: str
    first_time: int
    last_time: int
    outcome: int
    ended: int
    duration_ms: float | None
    types: list[str]
    counts: list[int]
    input: int
    output: int
    reasoning: int
    cache_read: int
    cache_write: int
    cost: float
    errors: int
    size: int
    """Bytes of the texts."""
    texts: list[str]


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``events``."""

    type: str
    subject: str
    session_id: str
    batch_key: str
    place: int
    number: int
    timestamp: int
    project: str
    duration_ms: float = 0.0
    failed: bool = False
    input: int = 0
    output: int = 0
    reasoning: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cost: float = 0.0


def batch_row(post: Post, *, key: str, number: int, received: int) -> BatchRow:
    """The row of what was posted, under *key*."""
    batch = post.batch
    total = add(Summary(), batch, received=received)
    types = Counter(event.type for event in batch.events)
    start = _starts(batch)
    generations = [good.event for good in batch.events if isinstance(good.event, Generation)]
    outcome = _outcome(batch)
    return BatchRow(
        session_id=batch.session_id,
        batch_key=key,
        number=number,
        received=received,
        accepted=len(batch.events),
        rejected=msgspec.json.encode(batch.rejected).decode(),
        parent=post.parent or "",
        project=batch.project_id,
        app_version=batch.cli_version,
        user=batch.user_email,
        started_project=start.project,
        started_agent=start.agent,
        started_model=start.model,
        started_provider=start.provider,
        agent=next((each.agent for each in generations if each.agent), ""),
        model=next((each.model_id for each in generations if each.model_id), ""),
        provider=next((each.provider_id for each in generations if each.provider_id), ""),
        first_time=min(event.timestamp for event in batch.events),
        last_time=max(event.timestamp for event in batch.events),
        outcome=outcome,
        ended=total.end or 0,
        duration_ms=total.duration_ms,
        types=[*types],
        counts=[*types.values()],
        **msgspec.structs.asdict(total.tokens),
        cost=total.cost,
        errors=total.errors,
        size=sum(len(event.raw) for event in batch.events),
        texts=[event.raw.decode() for event in batch.events],
    )


def event_rows(post: Post, *, key: str, number: int) -> Iterator[EventRow]:
    """The rows of the events in it."""
    batch = post.batch
    for place, good in enumerate(batch.events):
        event = good.event
        tokens, cost = Tokens(), 0.0
        if isinstance(event, Generation):
            tokens, cost = event.tokens, event.cost
        yield EventRow(
            type=good.type,
            subject=_subject(event),
            session_id=batch.session_id,
            batch_key=key,
            place=place,
            number=number,
            timestamp=good.timestamp,
            project=batch.project_id,
            duration_ms=getattr(event, "duration_ms", None) or 0.0,
            failed=failed(good),
            input=tokens.input,
            output=tokens.output,
            reasoning=tokens.reasoning,
            cache_read=tokens.cache_read,
            cache_write=tokens.cache_write,
            cost=cost,
        )


def _subject(event: Event | None) -> str:
    """What it is about: a tool, a model, a method."""
    match event:
        case ToolCall():
            return event.tool_name
        case Generation() | SessionStart():
            return event.model_id
        case BridgeCall():
            return event.method
        case Command():
            return event.command_name
        case ErrorEvent():
            return event.error_name
        case _:
            return ""


class _Started(msgspec.Struct):
    project: str = ""
    agent: str = ""
    model: str = ""
    provider: str = ""


def _starts(batch: Batch) -> _Started:
    """What the batch's ``session_start`` says; there is seldom more than one."""
    found = _Started()
    for good in batch.events:
        if isinstance(event := good.event, SessionStart):
            found.project = found.project or event.project_id
            found.agent = event.agent or found.agent
            found.model = event.model_id or found.model
            found.provider = event.provider_id or found.provider
    return found


def _outcome(batch: Batch) -> int:
    for good in reversed(batch.events):
        if isinstance(good.event, SessionEnd):
            return ENDED
        if isinstance(good.event, SessionStart):
            return GOES_ON
    return 0
