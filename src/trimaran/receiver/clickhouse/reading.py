"""What a store in ClickHouse is asked.

In: a database, which session or how many. Out: sessions, events.
Does not know: how they came there, HTTP, how any of it is shown.

A batch may be there twice for a while, under one key: the first one counts. A session is known
by its batches; ``arrivals`` and ``children`` only say where to look, and may say too much.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from trimaran._events import Tokens
from trimaran.receiver.clickhouse.client import ClickHouse, literal
from trimaran.receiver.clickhouse.rows import ENDED
from trimaran.receiver.limits import MAX_ANCESTORS, MAX_CHILDREN, MAX_FAMILY, MAX_PAGE_BYTES
from trimaran.receiver.summary import Summary
from trimaran.receiver.values import Ancestor, EventPage, Family, SessionPage, StoredSession
from trimaran.receiver.wire import MAX_NUMBER

__all__ = ["events", "family", "listed", "names", "session", "sessions"]

_TOKENS = ("input", "output", "reasoning", "cache_read", "cache_write")


def _last(column: str) -> str:
    return f"argMaxIf({column}, number, {column} != '') AS last_{column}"


def _first(column: str) -> str:
    return f"argMinIf({column}, number, {column} != '') AS first_{column}"


def _capped(column: str) -> str:
    return (
        f"if(sum(toFloat64({column})) >= {MAX_NUMBER}, toUInt64({MAX_NUMBER}), sum({column}))"
        f" AS all_{column}"
    )


_TOTALS = ", ".join(
    (
        "session_id",
        "min(number) AS first_number",
        *map(_last, ("parent", "project", "app_version", "user")),
        *map(_first, ("started_project", "agent", "model", "provider")),
        *map(_last, ("started_agent", "started_model", "started_provider")),
        "min(first_time) AS start",
        "max(last_time) AS last",
        "argMaxIf(outcome, number, outcome != 0) AS last_outcome",
        "argMaxIf(ended, number, outcome != 0) AS last_ended",
        # Not as it is: where the last one says NULL, the one before would be taken.
        "argMaxIf(ifNull(duration_ms, 0), number, outcome != 0) AS last_duration_ms",
        "sum(accepted) AS event_count",
        *map(_capped, _TOKENS),
        "sum(cost) AS all_cost",
        "sum(errors) AS all_errors",
        "max(received) AS last_received",
    )
)

_USED = (
    "session_id, batch_key, number, received, accepted, parent, project, app_version, user,"
    " started_project, started_agent, started_model, started_provider, agent, model, provider,"
    " first_time, last_time, outcome, ended, duration_ms, input, output, reasoning, cache_read,"
    " cache_write, cost, errors"
)


class _Totals(msgspec.Struct):
    """What the batches of a session come to."""

    session_id: str
    first_number: int
    last_parent: str
    last_project: str
    last_app_version: str
    last_user: str
    first_started_project: str
    first_agent: str
    first_model: str
    first_provider: str
    last_started_agent: str
    last_started_model: str
    last_started_provider: str
    start: int
    last: int
    last_outcome: int
    last_ended: int
    last_duration_ms: int | float
    event_count: int
    all_input: int
    all_output: int
    all_reasoning: int
    all_cache_read: int
    all_cache_write: int
    all_cost: float
    all_errors: int
    last_received: int

    def summary(self, types: dict[str, int]) -> Summary:
        """The same, as every store says it."""
        has_ended = self.last_outcome == ENDED
        return Summary(
            project=self.last_project or self.first_started_project,
            version=self.last_app_version,
            user=self.last_user,
            agent=self.last_started_agent or self.first_agent,
            model=self.last_started_model or self.first_model,
            provider=self.last_started_provider or self.first_provider,
            start=self.start,
            last=self.last,
            end=self.last_ended if has_ended else None,
            duration_ms=(self.last_duration_ms or None) if has_ended else None,
            event_count=self.event_count,
            events_by_type=types,
            tokens=Tokens(**{name: getattr(self, f"all_{name}") for name in _TOKENS}),
            cost=self.all_cost,
            errors=self.all_errors,
            received=self.last_received,
        )


class _Arrival(msgspec.Struct):
    number: int
    session_id: str


class _TypeCount(msgspec.Struct):
    session_id: str
    type: str
    total: int


class _Child(msgspec.Struct):
    session_id: str
    above: str
    first_number: int


class _Name(msgspec.Struct):
    session_id: str


class _Above(msgspec.Struct):
    above: str


class _Head(msgspec.Struct):
    batch_key: str
    accepted: int
    size: int


class _Texts(msgspec.Struct):
    batch_key: str
    texts: list[str]


def listed(values: Iterable[str]) -> str:
    """*values* as what IN is followed by; there has to be one."""
    return f"({', '.join(map(literal, values))})"


async def session(clickhouse: ClickHouse, session_id: str) -> StoredSession | None:
    """The session of that id, or None."""
    found = await _complete(clickhouse, await _totals(clickhouse, listed([session_id])))
    return found[0] if found else None


async def sessions(
    clickhouse: ClickHouse, *, before: int, limit: int, parent: str | None
) -> SessionPage:
    """Up to *limit* sessions whose number is less than *before*, the newest first.

    With a *parent*, those which say that they work for it.
    """
    if parent is None:
        found = await _newest(clickhouse, before=before, limit=limit + 1)
    else:
        found = await _totals(
            clickhouse,
            f"(SELECT session_id FROM children WHERE parent = {literal(parent)})",
            f"HAVING last_parent = {literal(parent)} AND first_number < {before}"
            f" ORDER BY first_number DESC LIMIT {limit + 1}",
        )
    page = await _complete(clickhouse, found[:limit])
    return SessionPage(page, page[-1].number if len(found) > limit else None)


async def _newest(clickhouse: ClickHouse, *, before: int, limit: int) -> list[_Totals]:
    """Those that came last, by their arrivals."""
    found: list[_Totals] = []
    while len(found) < limit:
        arrivals = await clickhouse.rows(
            _Arrival,
            f"SELECT number, session_id FROM arrivals WHERE number < {before}"
            f" ORDER BY number DESC LIMIT {limit}",
        )
        if not arrivals:
            break
        before = arrivals[-1].number
        numbers = {(each.session_id, each.number) for each in arrivals}
        totals = await _totals(clickhouse, listed({each.session_id for each in arrivals}))
        # An arrival that was noted, and not its batch, or that two receivers noted.
        found += [each for each in totals if (each.session_id, each.first_number) in numbers]
    found.sort(key=lambda each: -each.first_number)
    return found[:limit]


async def _totals(clickhouse: ClickHouse, among: str, rest: str = "") -> list[_Totals]:
    return await clickhouse.rows(
        _Totals,
        f"SELECT {_TOTALS} FROM (SELECT {_USED} FROM batches WHERE session_id IN {among}"
        " ORDER BY number LIMIT 1 BY session_id, batch_key)"
        f" GROUP BY session_id {rest}",
    )


async def _complete(clickhouse: ClickHouse, totals: Sequence[_Totals]) -> tuple[StoredSession, ...]:
    """Sessions, with what other tables and sessions say of them."""
    if not totals:
        return ()
    ids = listed(each.session_id for each in totals)
    types: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in await clickhouse.rows(
        _TypeCount,
        "SELECT session_id, type, sum(count) AS total FROM (SELECT session_id, types, counts"
        f" FROM batches WHERE session_id IN {ids} ORDER BY number LIMIT 1 BY session_id,"
        " batch_key) ARRAY JOIN types AS type, counts AS count GROUP BY session_id, type"
        " ORDER BY type",
    ):
        types[row.session_id][row.type] = row.total
    children: defaultdict[str, list[str]] = defaultdict(list)
    for child in await _children(clickhouse, ids, most=MAX_CHILDREN):
        children[child.above].append(child.session_id)
    parents = {each.last_parent for each in totals} - {""}
    stored = await names(clickhouse, parents)
    return tuple(
        StoredSession(
            each.first_number,
            each.session_id,
            each.summary(types[each.session_id]),
            each.last_parent or None,
            each.last_parent in stored,
            tuple(children[each.session_id]),
        )
        for each in totals
    )


async def names(clickhouse: ClickHouse, ids: Iterable[str]) -> frozenset[str]:
    """Those of *ids* of which there is a session."""
    among = sorted(ids)
    if not among:
        return frozenset()
    sql = f"SELECT DISTINCT session_id FROM batches WHERE session_id IN {listed(among)}"
    return frozenset(row.session_id for row in await clickhouse.rows(_Name, sql))


async def _children(clickhouse: ClickHouse, ids: str, *, most: int) -> list[_Child]:
    """Up to *most* of each, in the order of first arrival."""
    return await clickhouse.rows(
        _Child,
        "SELECT session_id, argMaxIf(parent, number, parent != '') AS above,"
        " min(number) AS first_number FROM batches WHERE session_id IN"
        f" (SELECT session_id FROM children WHERE parent IN {ids})"
        f" GROUP BY session_id HAVING above IN {ids} ORDER BY first_number LIMIT {most} BY above",
    )


async def family(clickhouse: ClickHouse, of: StoredSession) -> Family:
    """The sessions above and below that one."""
    below: list[str] = []
    seen = {of.id}
    level = [of.id]
    while level and len(below) <= MAX_FAMILY:
        found = await _children(clickhouse, listed(level), most=MAX_FAMILY + 1)
        level = [child.session_id for child in found if child.session_id not in seen]
        seen.update(level)
        below += level
    totals = await _totals(clickhouse, listed(below[: MAX_FAMILY + 1])) if below else []
    totals.sort(key=lambda each: each.first_number)
    members = await _complete(clickhouse, totals[:MAX_FAMILY])
    return Family(await _above(clickhouse, of), members, len(below) > MAX_FAMILY)


async def _above(clickhouse: ClickHouse, of: StoredSession) -> tuple[Ancestor, ...]:
    found: list[Ancestor] = []
    seen = {of.id}
    parent = of.parent
    while parent is not None and parent not in seen and len(found) < MAX_ANCESTORS:
        seen.add(parent)
        rows = await clickhouse.rows(
            _Above,
            "SELECT argMaxIf(parent, number, parent != '') AS above FROM batches"
            f" WHERE session_id = {literal(parent)} GROUP BY session_id",
        )
        found.append(Ancestor(parent, bool(rows)))
        parent = (rows[0].above or None) if rows else None
    return tuple(reversed(found))


async def events(clickhouse: ClickHouse, session_id: str, *, first: int, limit: int) -> EventPage:
    """Up to *limit* events from position *first* on, and so many that they have 4 MiB."""
    heads = await clickhouse.rows(
        _Head,
        f"SELECT batch_key, accepted, size FROM batches WHERE session_id = {literal(session_id)}"
        " ORDER BY number, batch_key LIMIT 1 BY batch_key",
    )
    wanted: list[_Head] = []
    begin = position = size = 0
    for head in heads:
        if position + head.accepted <= first:
            begin = position + head.accepted
        elif position < first + limit and size <= MAX_PAGE_BYTES:
            wanted.append(head)
            # Of the first one, the page may begin behind most of it.
            size += head.size if position >= first else 0
        position += head.accepted
    texts = await _texts(clickhouse, session_id, wanted)
    found: list[msgspec.Raw] = []
    size = 0
    for text in texts[first - begin :]:
        size += len(text)
        if len(found) == limit or (found and size > MAX_PAGE_BYTES):
            break
        found.append(msgspec.Raw(text))
    end = first + len(found)
    return EventPage(first, tuple(found), end if end < position else None)


async def _texts(clickhouse: ClickHouse, session_id: str, heads: Sequence[_Head]) -> list[bytes]:
    """The events of those batches, in their order."""
    if not heads:
        return []
    rows = await clickhouse.rows(
        _Texts,
        f"SELECT batch_key, texts FROM batches WHERE session_id = {literal(session_id)}"
        f" AND batch_key IN {listed(head.batch_key for head in heads)}"
        " ORDER BY number LIMIT 1 BY batch_key",
    )
    by_key = {row.batch_key: row.texts for row in rows}
    return [text.encode() for head in heads for text in by_key[head.batch_key]]
