"""What the receiver answers in JSON, as types.

In: what the store gives.
Out: values that msgspec encodes as they are.
Does not know: HTTP, which answer goes with which request.

What the receiver says of itself to other programs is made from these types, so the two
cannot come apart.
"""

from typing import Annotated, Literal

import msgspec

from trimaran.receiver.ingest import Rejection
from trimaran.receiver.limits import MAX_CHILDREN
from trimaran.receiver.values import StoredSession

__all__ = ["Events", "Health", "Problem", "Session", "Sessions", "Taken", "Totals", "session_of"]

_Milliseconds = Annotated[int, msgspec.Meta(description="ms since the epoch")]


class Taken(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a batch: how many events are stored, and which are not, and why."""

    accepted: int
    rejected: tuple[Rejection, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and where, if that is somewhere in the body."""

    error: str
    at: str | msgspec.UnsetType = msgspec.UNSET


class Health(msgspec.Struct, frozen=True):
    """The store can be read."""

    status: Literal["ok"]


class Totals(msgspec.Struct, frozen=True):
    """Token counts of all generations of a session, in parts that do not overlap."""

    input: int
    output: int
    reasoning: int
    cache_read: int
    cache_write: int
    total: int


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session, as its events tell it."""

    id: str
    parent_session_id: Annotated[
        str | None,
        msgspec.Meta(
            description="The session that it works for as a sub-agent, which need not be"
            " known here; null if it never named one"
        ),
    ]
    children: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description=f"Its sub-agents' sessions, the first {MAX_CHILDREN} in the order of"
            " arrival; `/api/sessions?parent=` gives all of them"
        ),
    ]
    project: str
    agent: str
    model: str
    provider: str
    version: str
    user: str
    start: _Milliseconds | None
    end: Annotated[
        int | None, msgspec.Meta(description="ms since the epoch; null while the session goes on")
    ]
    duration_ms: int | float
    event_count: int
    events_by_type: dict[str, int]
    tokens: Totals
    cost: Annotated[float, msgspec.Meta(description="US dollars")]
    errors: int


class Sessions(msgspec.Struct, frozen=True):
    """Some sessions, the newest first."""

    sessions: tuple[Session, ...]
    next: Annotated[
        int | None, msgspec.Meta(description="`after` of the next page; null on the last")
    ]


class Events(msgspec.Struct, frozen=True):
    """Some events of one session, each as it came, in the order of arrival."""

    events: tuple[msgspec.Raw, ...]
    next: Annotated[
        int | None, msgspec.Meta(description="`after` of the next page; null on the last")
    ]


def session_of(stored: StoredSession) -> Session:
    """*stored* as it is answered."""
    summary, tokens = stored.summary, stored.summary.tokens
    return Session(
        id=stored.id,
        parent_session_id=stored.parent,
        children=stored.children,
        project=summary.project,
        agent=summary.agent,
        model=summary.model,
        provider=summary.provider,
        version=summary.version,
        user=summary.user,
        start=summary.start,
        end=summary.end,
        duration_ms=summary.elapsed_ms,
        event_count=summary.event_count,
        events_by_type=summary.events_by_type,
        tokens=Totals(**msgspec.structs.asdict(tokens), total=tokens.total),
        cost=summary.cost,
        errors=summary.errors,
    )
