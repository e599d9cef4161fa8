"""Recorded events go back into sessions, with one start and one end each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import MockClock

import trimaran
from trimaran import Answer, Request, SessionEnd, SessionStart, ToolCall
from trimaran.cli import _recorded
from trimaran.cli._recorded import Books, RecordedSessions
from trimaran.testing import Capture

Make = Callable[[trimaran.Telemetry, trio.Nursery], RecordedSessions]


def call(number: int) -> ToolCall:
    """A tool call that can be told from others, *number* seconds after the epoch."""
    return ToolCall(tool_name=f"t{number}", timestamp=number * 1_000)


async def replayed(
    events: Sequence[tuple[trimaran.Event, str | None]], make: Make = RecordedSessions
) -> tuple[dict[str, list[trimaran.Event]], RecordedSessions]:
    """What arrives of *events*, by session."""
    capture = Capture()
    async with capture.open() as telemetry:
        async with trio.open_nursery() as nursery:
            sessions = make(telemetry, nursery)
            for event, session_id in events:
                await sessions.send(event, session_id)
            await sessions.close()
    return capture.sessions(), sessions


def shape(events: list[trimaran.Event]) -> list[tuple[str, object]]:
    """Types and times, in order."""
    return [(type(event).__name__, event.timestamp) for event in events]


async def test_a_whole_recording_is_sent_as_it_is() -> None:
    """With its own start and end, and nothing made."""
    arrived, sessions = await replayed(
        [
            (SessionStart(agent="build", project_id="p", timestamp=1_000), "s"),
            (call(2), "s"),
            (SessionEnd(total_cost=1.5, duration_ms=7, timestamp=3_000), "s"),
        ]
    )

    start, _, end = arrived["s"]
    assert isinstance(start, SessionStart)
    assert (start.agent, start.project_id, start.timestamp) == ("build", "p", 1_000)
    assert isinstance(end, SessionEnd)
    assert (end.total_cost, end.duration_ms, end.tool_call_count) == (1.5, 7, 1)
    assert sessions.made == 0
    assert sessions.books().total.delivered == 3


async def test_what_a_recording_lacks_is_made() -> None:
    """A start at the first event, an end at the last, with the totals of what was between."""
    arrived, sessions = await replayed([(call(2), "s"), (call(5), "s")])

    assert shape(arrived["s"]) == [
        ("SessionStart", 2_000),
        ("ToolCall", 2_000),
        ("ToolCall", 5_000),
        ("SessionEnd", 5_000),
    ]
    end = arrived["s"][-1]
    assert isinstance(end, SessionEnd)
    assert (end.duration_ms, end.tool_call_count) == (3_000, 2)
    assert sessions.made == 2


async def test_events_without_times_are_of_now() -> None:
    """So is what is made for them."""
    arrived, _ = await replayed([(ToolCall(tool_name="t"), "s")])

    start, tool_call, end = arrived["s"]
    assert isinstance(tool_call.timestamp, int)
    assert tool_call.timestamp > 1_700_000_000_000
    assert start.timestamp == tool_call.timestamp
    assert isinstance(end, SessionEnd)
    assert end.duration_ms == 0


async def test_a_session_that_was_resumed_ends_once_more() -> None:
    """An end counts until the next start; what comes late after it needs no second one."""
    whole: list[tuple[trimaran.Event, str | None]] = [
        (SessionStart(), "s"),
        (SessionEnd(), "s"),
        (call(1), "s"),
    ]
    resumed = [*whole, (SessionStart(), "s"), (call(2), "s")]

    arrived, sessions = await replayed(whole)
    assert [name for name, _ in shape(arrived["s"])] == ["SessionStart", "SessionEnd", "ToolCall"]
    assert sessions.made == 0

    arrived, sessions = await replayed(resumed)
    assert shape(arrived["s"])[-1][0] == "SessionEnd"
    assert sessions.made == 1


async def test_sessions_keep_to_themselves() -> None:
    """Interleaved events land in their own session, in order, with its own project."""
    capture = Capture()
    ids = [f"s{number}" for number in range(30)]
    async with capture.open() as telemetry:
        async with trio.open_nursery() as nursery:
            sessions = RecordedSessions(telemetry, nursery)
            for session_id in ids:
                await sessions.send(SessionStart(project_id=f"p-{session_id}"), session_id)
            for number in range(20):
                for session_id in ids:
                    await sessions.send(call(number), session_id)
            await sessions.close()

    for session_id, events in capture.sessions().items():
        names = [event.tool_name for event in events if isinstance(event, ToolCall)]
        assert names == [f"t{number}" for number in range(20)], session_id
    assert {(batch.session_id, batch.project_id) for batch in capture.batches()} == {
        (session_id, f"p-{session_id}") for session_id in ids
    }


async def test_lines_that_name_no_session_share_a_new_one() -> None:
    """Its id is made by the telemetry."""
    arrived, _ = await replayed([(call(1), None), (call(2), None)])

    ((session_id, events),) = arrived.items()
    assert len(session_id) == 32
    assert len(events) == 4


async def test_one_session_for_everything() -> None:
    """Whatever the events say; the project too."""
    capture = Capture()
    async with capture.open() as telemetry:
        async with trio.open_nursery() as nursery:
            sessions = RecordedSessions(telemetry, nursery, session_id="one", project_id="mine")
            await sessions.send(SessionStart(project_id="theirs"), "a")
            await sessions.send(call(1), "b")
            await sessions.send(call(2), None)
            await sessions.close()

    (batch, *more) = capture.batches()
    assert {(b.session_id, b.project_id) for b in [batch, *more]} == {("one", "mine")}
    (start,) = capture.events(SessionStart)
    assert start.project_id == "mine"


async def test_a_project_of_the_persons_own_is_the_made_starts_too() -> None:
    """Where the recording has no start."""
    arrived, _ = await replayed(
        [(call(1), "s")], lambda t, n: RecordedSessions(t, n, project_id="mine")
    )

    start = arrived["s"][0]
    assert isinstance(start, SessionStart)
    assert start.project_id == "mine"


async def test_sessions_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is made by closing those that ended, then those that had no event for longest."""
    monkeypatch.setattr(_recorded, "_CLOSED_AT_ONCE", 1)
    open_at_once = 0

    def counted(telemetry: trimaran.Telemetry, nursery: trio.Nursery) -> RecordedSessions:
        sessions = RecordedSessions(telemetry, nursery, most_open=2)

        class Watched(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal open_at_once
                open_at_once = max(open_at_once, len(nursery.child_tasks))

        trio.lowlevel.add_instrument(Watched())
        return sessions

    arrived, sessions = await replayed(
        [
            (call(1), "old"),
            (SessionStart(), "ended"),
            (SessionEnd(), "ended"),
            (call(2), "third"),  # for which "ended" goes
            (call(3), "fourth"),  # for which "old" goes
            (call(4), "old"),  # goes on, when what it had is delivered
        ],
        counted,
    )

    assert open_at_once == 2
    for name, calls in {"old": 2, "third": 1, "fourth": 1}.items():
        first, *called, last = arrived[name]
        assert isinstance(first, SessionStart)
        assert isinstance(last, SessionEnd)
        assert len(called) == last.tool_call_count == calls
    assert [name for name, _ in shape(arrived["ended"])] == ["SessionStart", "SessionEnd"]
    books = sessions.books()
    assert books.sessions == 4
    assert books.rows["old"].delivered == 4
    assert sessions.made == 6


class SlowFor(Capture):
    """An endpoint that is slow for one session."""

    def __init__(self, session_id: str) -> None:
        super().__init__()
        self._session_id = session_id

    async def attempt(self, request: Request) -> Answer:
        """Take it, after a while if it is of that session."""
        if f'"session_id":"{self._session_id}"'.encode() in request.body:
            await trio.sleep(1)
        return await super().attempt(request)


async def test_a_session_that_comes_back_waits_for_what_it_had(autojump_clock: MockClock) -> None:
    """Its old events arrive before the new ones, however long the endpoint takes."""
    capture = SlowFor("a")
    async with capture.open() as telemetry, trio.open_nursery() as nursery:
        sessions = RecordedSessions(telemetry, nursery, most_open=2)
        for number, session_id in enumerate("abca"):
            await sessions.send(call(number), session_id)
        await sessions.close()

    assert [(type(event).__name__, event.timestamp) for event in capture.sessions()["a"]] == [
        *(("SessionStart", 0), ("ToolCall", 0), ("ToolCall", 3_000), ("SessionEnd", 3_000)),
    ]


async def test_a_cancel_still_ends_the_sessions(autojump_clock: MockClock) -> None:
    """What was sent before is delivered, and the end that the recording lacks."""
    capture = Capture()
    async with capture.open() as telemetry:
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                sessions = RecordedSessions(telemetry, nursery)
                await sessions.send(call(1), "s")
                await trio.sleep_forever()

    assert scope.cancelled_caught
    assert [name for name, _ in shape(capture.sessions()["s"])] == [
        *("SessionStart", "ToolCall", "SessionEnd"),
    ]
    assert sessions.books().total.delivered == sessions.books().total.tracked == 3


async def test_a_cancel_does_not_wait_for_room_for_long(autojump_clock: MockClock) -> None:
    """With a full mailbox and an endpoint that hangs, the end is given up in time."""
    capture = Capture([float("inf")])
    settings = trimaran.Settings(
        mailbox_events=2, backlog_events=1, batch_events=1, drain_timeout=1.0
    )
    began = trio.current_time()
    async with capture.open(settings=settings) as telemetry:
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                sessions = RecordedSessions(telemetry, nursery)
                for number in range(100):
                    await sessions.send(call(number), "s")
        assert sessions.is_waiting

    assert trio.current_time() - began == pytest.approx(5 + _recorded.LAST_WORD + 1, abs=0.1)
    total = sessions.books().total
    assert total.pending == 0
    assert total.tracked == total.dropped_total > 0


async def test_books_are_kept_while_it_lasts(autojump_clock: MockClock) -> None:
    """Of sessions that are open, of those that are delivered, and of both together."""
    capture = Capture([Answer(503)])
    async with capture.open() as telemetry:
        async with trio.open_nursery() as nursery:
            sessions = RecordedSessions(telemetry, nursery)
            await sessions.send(call(1), "s")
            assert sessions.books().total.pending == 2
            assert sessions.books().rows.keys() == {"s"}
            await sessions.close()
    assert sessions.books().total.delivered == 3
    assert sessions.books().sessions == 1


def test_only_as_many_rows_as_a_person_reads() -> None:
    """The rest is in the total, and counted."""
    books = Books()
    for number in range(30):
        books.add(f"s{number}", trimaran.Statistics(tracked=2, dropped={"rejected": 1}))
    books.add("s0", trimaran.Statistics(tracked=1, dropped={"rejected": 1, "closed": 2}))

    assert len(books.rows) == 20
    assert books.rows["s0"].dropped == {"rejected": 2, "closed": 2}
    assert books.total.tracked == 61
    assert books.total.dropped == {"rejected": 31, "closed": 2}


async def test_a_session_that_was_put_aside_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it has no row of its own."""
    monkeypatch.setattr(_recorded, "_MOST_ROWS", 1)
    events = [(call(number), session_id) for number, session_id in enumerate("abcabc")]

    arrived, sessions = await replayed(events, lambda t, n: RecordedSessions(t, n, most_open=1))

    assert len(arrived) == sessions.books().sessions == 3
    assert len(sessions.books().rows) == 1
    assert sessions.made == 6


async def test_a_session_that_was_put_aside_goes_on_as_what_it_was() -> None:
    """With its id, also where the recording names none, and with all that it came to."""
    end = SessionEnd(timestamp=9_000)

    arrived, sessions = await replayed(
        [(call(1), None), (call(2), "s"), (call(3), None), (end, "s")],
        lambda t, n: RecordedSessions(t, n, most_open=1),
    )

    assert len(arrived) == sessions.books().sessions == 2
    ends = [
        event for events in arrived.values() for event in events if isinstance(event, SessionEnd)
    ]
    assert {one.tool_call_count for one in ends} == {1, 2}
