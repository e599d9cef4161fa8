"""Recorded events go back into sessions: one for each id, as many at once as there are.

In: events with the ids of their sessions, in the order in which they were recorded.
Out: the same events in sessions of a telemetry; what became of them.
Does not know: where the events come from, how they are sent.

A recording has the start and the end of its sessions among its events, so the sessions
here announce neither themselves. Where a recording lacks one, it is made, with the time
of the first or the last event. A session that is closed for want of room has not ended by
that: it goes on as what it was when its next event comes.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import msgspec
import trio

from trimaran._events import UNSET, Event, Generation, SessionEnd, SessionStart, ToolCall
from trimaran._pipeline.collector import Totals
from trimaran._pipeline.ledger import Statistics
from trimaran._session import Session
from trimaran._telemetry import Telemetry

__all__ = ["Books", "RecordedSessions"]

MOST_OPEN = 1_000
"""Sessions that are open or not yet delivered at once at most. When another one comes, some
are closed that had no event for longest, those first that have ended."""

_CLOSED_AT_ONCE = 50
"""Many, so that their last batches are delivered side by side, and not one by one."""

_MOST_ROWS = 20
"""Sessions that are told one by one at the end; a person reads no more."""

LAST_WORD = 2.0
"""Seconds that the end of a session may wait for room when the command is cut short."""


class Books:
    """What became of events, for each session and in all."""

    def __init__(self) -> None:
        self.total: Statistics = Statistics()
        self.rows: dict[str, Statistics] = {}
        """By session id, of as many sessions as a person reads."""
        self.sessions: int = 0
        """How many there were; each once, however often it was put aside."""

    def add(self, session_id: str, statistics: Statistics) -> None:
        """A session came to this."""
        self.total = _sum(self.total, statistics)
        known = self.rows.get(session_id)
        if known is not None or len(self.rows) < _MOST_ROWS:
            self.rows[session_id] = _sum(known or Statistics(), statistics)


def _sum(one: Statistics, other: Statistics) -> Statistics:
    dropped = dict(one.dropped)
    for reason, count in other.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    return Statistics(
        tracked=one.tracked + other.tracked,
        from_children=one.from_children + other.from_children,
        delivered=one.delivered + other.delivered,
        pending=one.pending + other.pending,
        dropped=dropped,
        batches=one.batches + other.batches,
        attempts=one.attempts + other.attempts,
        retries=one.retries + other.retries,
        loss_reports=one.loss_reports + other.loss_reports,
        peak_waiting=max(one.peak_waiting, other.peak_waiting),
    )


class _Course:
    """What a session came to so far, for as long as the recording is read."""

    __slots__ = ("_first", "_last", "_totals", "has_ended", "project_id", "session_id")

    def __init__(self, session_id: str | None, project_id: str) -> None:
        self.session_id = session_id
        """None until it is open, where the recording names none."""
        self.project_id = project_id
        self.has_ended = False
        self._first: int | None = None
        self._last: int | None = None
        self._totals = Totals()

    def add(self, event: Event) -> None:
        """*event* was handed over."""
        if isinstance(event, (SessionStart, SessionEnd)):
            self.has_ended = isinstance(event, SessionEnd)
        elif isinstance(event, Generation):
            self._totals.count_generation(event)
        elif isinstance(event, ToolCall):
            self._totals.tool_calls += 1
        if event.timestamp is not UNSET:
            self._last = event.timestamp
            if self._first is None:
                self._first = event.timestamp

    def complete(self, end: SessionEnd) -> SessionEnd:
        """*end* with the totals so far in place of those that it leaves unset."""
        return self._totals.complete(end)

    def end(self) -> SessionEnd:
        """The end that the recording lacks."""
        if self._first is None or self._last is None:
            return SessionEnd()
        duration = max(0, self._last - self._first)
        return SessionEnd(timestamp=self._last, duration_ms=duration)


class _Recorded:
    """One session while it is open."""

    def __init__(self, session: Session, course: _Course) -> None:
        self.session = session
        self.course = course
        self.is_over = False
        """Whether no event will come any more."""
        self.leave = trio.Event()
        self.left = trio.Event()

    async def send(self, event: Event) -> None:
        """Hand *event* over, waiting for room; a cancel leaves it untracked."""
        if isinstance(event, SessionEnd):
            # The pipeline knows only what came since the session was put aside.
            event = self.course.complete(event)
        await self.session.send(event)
        self.course.add(event)


class RecordedSessions:
    """Sessions by their recorded id.

    Args:
        telemetry: an enabled one.
        nursery: where each session has a task, and with it a context of its own.
        session_id: the one for everything, whatever the events say; None for one each.
        parent_session_id: the session that all of them worked for, if there is one.
        project_id: of all; None takes that of each session's start.
        most_open: sessions open, or not yet delivered, at once.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        nursery: trio.Nursery,
        *,
        session_id: str | None = None,
        parent_session_id: str | None = None,
        project_id: str | None = None,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._telemetry = telemetry
        self._nursery = nursery
        self._only_id = session_id
        self._parent_id = parent_session_id
        self._project_id = project_id
        self._places = trio.Semaphore(most_open)
        self._open: OrderedDict[str | None, _Recorded] = OrderedDict()
        self._courses: dict[str | None, _Course] = {}
        """Of all sessions that were open once."""
        self._leaving: dict[str | None, trio.Event] = {}
        self._unsettled: set[Session] = set()
        self._books = Books()
        self.is_waiting = False
        """Whether an event waits for the endpoint to make room."""
        self.made = 0
        """Starts and ends that the recording lacks."""

    async def send(self, event: Event, session_id: str | None) -> None:
        """Hand *event* over to its session, which is opened for it; waits for room.

        A cancel leaves the event untracked.
        """
        key = session_id if self._only_id is None else self._only_id
        if isinstance(event, SessionStart) and self._project_id is not None:
            event = msgspec.structs.replace(event, project_id=self._project_id)
        self.is_waiting = True
        recorded = self._open.get(key)
        if recorded is None:
            recorded = await self._open_for(event, key)
        else:
            self._open.move_to_end(key)
        await recorded.send(event)
        self.is_waiting = False

    async def _open_for(self, event: Event, key: str | None) -> _Recorded:
        """Open the session that *event* is of; makes its start, if that is its first, and none."""
        course = self._courses.get(key)
        if course is not None:
            return await self._reopened(key, course)
        start = event if isinstance(event, SessionStart) else None
        project_id = self._project_id or (start.project_id if start else "")
        course = self._courses[key] = _Course(key, project_id)
        recorded = await self._reopened(key, course)
        if start is None:
            self.made += 1
            await recorded.send(SessionStart(timestamp=event.timestamp, project_id=project_id))
        return recorded

    async def _reopened(self, key: str | None, course: _Course) -> _Recorded:
        """Open a session, for the first time or to go on with *course*."""
        if key in self._leaving:
            # The same session, closed before for want of room: its events keep their order.
            await self._leaving[key].wait()
        if self._places.value == 0:
            self._close_some()
        await self._places.acquire()
        recorded: _Recorded = await self._nursery.start(self._keep, key, course)
        self._open[key] = recorded
        return recorded

    async def _keep(
        self, key: str | None, course: _Course, *, task_status: trio.TaskStatus[_Recorded]
    ) -> None:
        """Keep a session open until it is closed, and then until it is delivered."""
        async with self._telemetry.session(
            session_id=course.session_id,
            parent_session_id=self._parent_id,
            project_id=course.project_id,
            announce=False,
        ) as session:
            course.session_id = session.id
            self._unsettled.add(session)
            recorded = _Recorded(session, course)
            task_status.started(recorded)
            try:
                await recorded.leave.wait()
                if recorded.is_over:
                    await self._end(recorded)
            except trio.Cancelled:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WORD):
                    await self._end(recorded)
                raise
        await session.flush(timeout=math.inf)
        self._unsettled.remove(session)
        self._books.add(session.id, session.statistics())
        self._places.release()
        recorded.left.set()
        self._leaving.pop(key)

    async def _end(self, recorded: _Recorded) -> None:
        """Make the end that the recording lacks."""
        if not recorded.course.has_ended:
            await recorded.send(recorded.course.end())
            self.made += 1

    def _close_some(self) -> None:
        """Close those that have ended, or had no event for longest."""
        by_use = sorted(self._open, key=lambda key: not self._open[key].course.has_ended)
        for key in by_use[:_CLOSED_AT_ONCE]:
            self._close(key, is_over=False)

    def _close(self, key: str | None, *, is_over: bool) -> None:
        recorded = self._open.pop(key)
        recorded.is_over = is_over
        self._leaving[key] = recorded.left
        recorded.leave.set()

    async def close(self) -> None:
        """Close all, with the ends that the recording lacks; their tasks end when they are
        delivered. A cancel leaves those without an end that were closed before.
        """
        without_end = [
            key
            for key, course in self._courses.items()
            if key not in self._open and not course.has_ended
        ]
        for key in list(self._open):
            self._close(key, is_over=True)
        self.is_waiting = True
        for key in without_end:
            await self._reopened(key, self._courses[key])
            self._close(key, is_over=True)
        self.is_waiting = False

    def books(self) -> Books:
        """What became of everything up to this moment; final when the telemetry is left."""
        books = Books()
        books.total, books.rows = self._books.total, dict(self._books.rows)
        books.sessions = len(self._courses)
        for session in self._unsettled:
            books.add(session.id, session.statistics())
        return books
