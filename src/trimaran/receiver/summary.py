"""What a session comes to: the totals of its events, kept up batch by batch.

In: the summary so far and one more batch.
Out: the summary with that batch added.
Does not know: the store, time, how a summary is shown.

Everything is counted from the events that were stored, never taken from what a
sender says of its own totals, so that the two can be held against each other.
"""

from collections import Counter

import msgspec

from trimaran._events import (
    Generation,
    SessionEnd,
    SessionStart,
    Tokens,
)
from trimaran._exact_sum import ExactSum
from trimaran.receiver.ingest import Batch, GoodEvent
from trimaran.receiver.wire import MAX_NUMBER

__all__ = ["Summary", "add", "failed"]

_TELLING = frozenset({"generation", "session_start", "session_end"})


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of one session. Times are in ms since the epoch, by the sender's clock.

    ``project``, ``version`` and ``user`` are those of the last batch that named them;
    ``agent``, ``model`` and ``provider`` those of the last ``session_start``, or of
    the first generation where that says nothing.
    """

    project: str = ""
    version: str = ""
    user: str = ""
    agent: str = ""
    model: str = ""
    provider: str = ""

    start: int | None = None
    """The earliest event."""

    last: int | None = None
    """The latest event."""

    end: int | None = None
    """The ``session_end``; None while there is none, or after the session was resumed."""

    duration_ms: int | float | None = None
    """What ``session_end`` measured, by a clock that does not jump."""

    event_count: int = 0
    events_by_type: dict[str, int] = {}

    tokens: Tokens = Tokens()
    """Of all generations."""

    cost: float = 0.0
    """Of all generations, in US dollars."""

    cost_rest: float = 0.0
    """What the cost is short of, in digits that it does not have; see :class:`ExactSum`."""

    errors: int = 0
    """Events that tell of a failure: ``error``, and tool and bridge calls that failed."""

    received: int = 0
    """When the last batch came in, in ms since the epoch, by the receiver's clock."""

    @property
    def elapsed_ms(self) -> int | float:
        """How long the session took; while it lasts, from its first event to its last."""
        if self.duration_ms is not None:
            return self.duration_ms
        return (self.last or 0) - (self.start or 0)


def add(summary: Summary, batch: Batch, *, received: int) -> Summary:
    """*summary* with *batch*, which came in at *received*, added.

    Counts stop at 2**53 - 1, the last integer that every reader of JSON keeps exact.
    """
    timestamps = [event.timestamp for event in batch.events]
    summary = msgspec.structs.replace(
        summary,
        project=batch.project_id or summary.project,
        version=batch.cli_version or summary.version,
        user=batch.user_email or summary.user,
        start=_least(summary.start, timestamps),
        last=_greatest(summary.last, timestamps),
        event_count=summary.event_count + len(batch.events),
        events_by_type=dict(
            Counter(summary.events_by_type) + Counter(event.type for event in batch.events)
        ),
        errors=summary.errors + sum(map(failed, batch.events)),
        received=received,
    )
    for good in batch.events:
        if good.type not in _TELLING:  # spares almost every event the looks below
            continue
        match good.event:
            case Generation() as generation:
                summary = _add_generation(summary, generation)
            case SessionStart() as start:
                summary = _begin(summary, start)
            case SessionEnd() as end:
                summary = msgspec.structs.replace(
                    summary, end=good.timestamp, duration_ms=end.duration_ms or None
                )
            case _:
                pass
    return summary


def failed(good: GoodEvent) -> bool:
    """Whether it is an error, or a call that did not succeed."""
    return good.type == "error" or getattr(good.event, "status", None) == "error"


def _begin(summary: Summary, start: SessionStart) -> Summary:
    return msgspec.structs.replace(
        summary,
        project=summary.project or start.project_id,
        agent=start.agent or summary.agent,
        model=start.model_id or summary.model,
        provider=start.provider_id or summary.provider,
        end=None,
        duration_ms=None,
    )


def _add_generation(summary: Summary, generation: Generation) -> Summary:
    ours, more = summary.tokens, generation.tokens
    cost = ExactSum(summary.cost, summary.cost_rest).plus(generation.cost)
    return msgspec.structs.replace(
        summary,
        agent=summary.agent or generation.agent,
        model=summary.model or generation.model_id,
        provider=summary.provider or generation.provider_id,
        tokens=Tokens(
            input=min(ours.input + more.input, MAX_NUMBER),
            output=min(ours.output + more.output, MAX_NUMBER),
            reasoning=min(ours.reasoning + more.reasoning, MAX_NUMBER),
            cache_read=min(ours.cache_read + more.cache_read, MAX_NUMBER),
            cache_write=min(ours.cache_write + more.cache_write, MAX_NUMBER),
        ),
        cost=cost.value,
        cost_rest=cost.rest,
    )


def _least(known: int | None, more: list[int]) -> int | None:
    return min(more if known is None else [known, *more], default=None)


def _greatest(known: int | None, more: list[int]) -> int | None:
    return max(more if known is None else [known, *more], default=None)
