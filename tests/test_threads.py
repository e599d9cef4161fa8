"""Events from threads: under load none is lost, and none holds up another."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
import trio

import trimaran
from patience import PATIENCE, untraced
from plain_server import PlainEndpoint, healthy
from trimaran._pipeline.inbox import Inbox
from trimaran._pipeline.ledger import Ledger
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.memory import MemoryBudget
from trimaran.testing import Capture

THREADS = 8
EACH = 5_000
MANY = 20_000
"""Of one thread, untraced: so that it is interrupted often."""
ENVIRON = {"APP_TELEMETRY_URL": "https://capture.invalid"}
ROOMY = trimaran.Settings(
    mailbox_events=THREADS * EACH,
    memory_bytes=1 << 30,
    drain_timeout=2 * PATIENCE,  # it is much, and a machine with one core is slow
    strict=True,
)
"""Room for all of them at once."""


class Mark(trimaran.Event, frozen=True, tag="thread_mark"):
    """An event that says which thread said it, and as which of its own."""

    thread: int = 0
    number: int = 0


def track_all(session: trimaran.Session | trimaran.ThreadSession, thread: int) -> None:
    """What each thread does."""
    for number in range(EACH):
        session.track(Mark(thread=thread, number=number))


def in_threads(work: Callable[[int], object]) -> None:
    """``work(0)``, ``work(1)``... at the same time, each in a thread."""
    barrier = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        barrier.wait()
        work(thread)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def assert_all_arrived_in_order(capture: Capture) -> None:
    """Each thread's events arrived once, in its order."""
    arrived: dict[int, list[int]] = {}
    for mark in capture.events(Mark):
        arrived.setdefault(mark.thread, []).append(mark.number)
    assert arrived == {thread: list(range(EACH)) for thread in range(THREADS)}


@pytest.fixture
def endpoint() -> Iterator[PlainEndpoint]:
    """A real one."""
    with healthy() as endpoint:
        yield endpoint


@contextmanager
def switching_often() -> Generator[None]:
    """Let threads interrupt each other wherever they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


async def test_threads_lose_nothing_while_the_loop_is_the_hosts() -> None:
    """Every event arrives, in the order of its thread; the books are exact at every look."""
    capture = Capture()
    looks: list[trimaran.Statistics] = []
    async with capture.open(settings=ROOMY) as telemetry, telemetry.session() as session:
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                while True:
                    looks.append(session.statistics())
                    await trio.sleep(0.002)

            def track(thread: int) -> None:
                for number in range(EACH):
                    session.track(Mark(thread=thread, number=number))
                    if number % (EACH // 10) == 0:
                        seen = len(looks)
                        while len(looks) == seen:
                            time.sleep(0.001)

            nursery.start_soon(look)
            await trio.to_thread.run_sync(in_threads, track)
            nursery.cancel_scope.cancel()

    books = session.statistics()
    assert books.tracked == books.delivered == THREADS * EACH + 2
    assert books.dropped_total == books.pending == 0
    assert len(looks) >= 10
    for seen in looks:
        assert seen.tracked == seen.delivered + seen.dropped_total + seen.pending
    assert_all_arrived_in_order(capture)


def test_threads_lose_nothing_while_the_loop_is_in_a_thread() -> None:
    """The same where the loop is ours, and the main thread one of the threads."""
    capture = Capture()
    with (
        trimaran.open_in_thread(
            "app", environ=ENVIRON, transport=capture, settings=ROOMY
        ) as telemetry,
        telemetry.session() as session,
    ):
        in_threads(lambda thread: track_all(session, thread))
        seen = session.statistics().tracked
        assert THREADS * EACH <= seen <= THREADS * EACH + 1  # one may just be moving over

    books = session.statistics()
    assert books.tracked == books.delivered == THREADS * EACH + 2
    assert_all_arrived_in_order(capture)


def test_what_there_is_no_room_for_is_counted_to_the_event(endpoint: PlainEndpoint) -> None:
    """Over HTTP, with a mailbox that is far too small: what arrived is what is delivered."""
    settings = trimaran.Settings(mailbox_events=100, drain_timeout=PATIENCE)

    def say(thread: int) -> None:
        for _ in range(2000):
            session.command(f"{thread}")

    with (
        switching_often(),
        trimaran.open_in_thread(
            "app", environ={"APP_TELEMETRY_URL": endpoint.url}, settings=settings
        ) as telemetry,
        telemetry.session() as session,
    ):
        in_threads(say)

    books = session.statistics()
    assert books.tracked == THREADS * 2000 + 2
    assert books.pending == 0
    assert books.delivered == books.tracked - books.dropped["mailbox_full"]
    reports = [e for e in endpoint.events if e.get("error_name") == "TelemetryBufferOverflow"]
    assert len(endpoint.events) == books.delivered + len(reports)
    told = sum(int(report["error_message"].split()[0]) for report in reports)
    assert told == books.dropped_total


def test_threads_of_many_sessions_keep_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session for each thread, opened and ended while the others work."""
    monkeypatch.setattr("trimaran._in_thread.ENTERING_PATIENCE", PATIENCE)
    capture = Capture()
    settings = trimaran.Settings(drain_timeout=PATIENCE, strict=True)

    def work(thread: int) -> None:
        for turn in range(10):
            with telemetry.session(session_id=f"{thread}/{turn}"):
                for number in range(20):
                    trimaran.current_session().track(Mark(thread=thread, number=number))

    with trimaran.open_in_thread(
        "app", environ=ENVIRON, transport=capture, settings=settings
    ) as telemetry:
        in_threads(work)

    sessions = capture.sessions()
    assert len(sessions) == THREADS * 10
    for name, (start, *marks, end) in sessions.items():
        thread = int(name.split("/")[0])
        assert isinstance(start, trimaran.SessionStart)
        assert isinstance(end, trimaran.SessionEnd)
        said = [(mark.thread, mark.number) for mark in marks if isinstance(mark, Mark)]
        assert said == [(thread, number) for number in range(20)]


def test_events_around_the_end_are_delivered_or_closed() -> None:
    """Threads that go on while the telemetry ends: each event has one fate, and none hangs."""
    capture = Capture()
    settings = trimaran.Settings(drain_timeout=PATIENCE, strict=True)
    tracked: list[int] = []
    stop = threading.Event()
    with (
        switching_often(),
        trimaran.open_in_thread(
            "app", environ=ENVIRON, transport=capture, settings=settings
        ) as telemetry,
    ):
        with telemetry.session() as session:

            def work() -> None:
                count = 0
                while not stop.is_set():
                    session.track(Mark(number=count))
                    count += 1
                    if count % 100 == 0:
                        time.sleep(0.001)  # or nothing else runs on a machine with one core
                tracked.append(count)

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.05)
        time.sleep(0.05)
        telemetry.close()
        time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()

    books = session.statistics()
    assert books.tracked == sum(tracked) + 2
    assert "closed" in books.dropped
    assert books.dropped.keys() <= {"closed", "mailbox_full"}
    assert books.pending == 0
    assert books.delivered + books.loss_reports == len(capture.events())


def test_tasks_of_asyncio_lose_nothing() -> None:
    """Many tasks, which track and wait for room in turns."""
    capture = Capture()

    async def agent(task: int) -> None:
        session = trimaran.current_session()
        for number in range(200):
            event = Mark(thread=task, number=number)
            if number % 10:
                session.track(event)
            else:
                await session.send(event)

    async def main() -> None:
        with (
            trimaran.open_in_thread("app", environ=ENVIRON, transport=capture) as telemetry,
            telemetry.session(),
        ):
            await asyncio.gather(*(agent(task) for task in range(20)))
            assert await trimaran.current_session().flush(timeout=PATIENCE)

    asyncio.run(main())

    counts = Counter(mark.thread for mark in capture.events(Mark))
    assert counts == dict.fromkeys(range(20), 200)


def test_sends_and_tracks_of_a_thread_keep_their_order() -> None:
    """An event that waited for room does not overtake, nor is it overtaken."""
    capture = Capture()
    with (
        trimaran.open_in_thread("app", environ=ENVIRON, transport=capture) as telemetry,
        telemetry.session() as session,
    ):
        for number in range(300):
            say = session.send if number % 3 == 0 else session.track
            say(Mark(number=number))

    assert [mark.number for mark in capture.events(Mark)] == list(range(300))


# In the middle of a call, on the same thread.


def test_a_signal_handler_may_track_in_the_middle_of_a_track() -> None:
    """Whenever it comes: nothing hangs, and no event is lost or counted twice."""
    capture = Capture()
    handled, is_over = 0, False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal handled
        session.track(Mark(thread=1, number=handled))
        handled += 1
        # Not by an interval: on a slow machine, the handler would interrupt itself for ever.
        if not is_over:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with (
            untraced(),
            trimaran.open_in_thread(
                "app", environ=ENVIRON, transport=capture, settings=ROOMY
            ) as telemetry,
            telemetry.session() as session,
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            count = 0
            while count < MANY or handled <= 10:
                session.track(Mark(number=count))
                count += 1
            is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert session.statistics().delivered == count + handled + 2
    marks = capture.events(Mark)
    assert [mark.number for mark in marks if not mark.thread] == list(range(count))
    assert [mark.number for mark in marks if mark.thread] == list(range(handled))


def test_a_finalizer_may_track_in_the_middle_of_a_track() -> None:
    """In the thread that tracks, and in the one that takes over: the collector runs in both."""
    capture = Capture()
    finalized = 0

    class Knot:
        """Found by the garbage collector, wherever that runs."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            nonlocal finalized
            finalized += 1
            session.track(Mark(thread=1))

    thresholds = gc.get_threshold()
    try:
        with (
            untraced(),
            trimaran.open_in_thread(
                "app", environ=ENVIRON, transport=capture, settings=ROOMY
            ) as telemetry,
            telemetry.session() as session,
        ):
            gc.set_threshold(20)
            for number in range(2000):
                Knot()
                session.track(Mark(number=number))
            gc.set_threshold(*thresholds)
            gc.collect()
    finally:
        gc.set_threshold(*thresholds)

    assert finalized == 2000
    assert session.statistics().delivered == 4000 + 2


# How the session's thread is called.


class CountingToken:
    """Stands in for a trio run that is busy: it keeps count of the calls."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.interrupted = False

    def run_sync_soon(self, call: Callable[[], object], *, idempotent: bool) -> None:
        self.calls.append(call)
        if self.interrupted:
            raise KeyboardInterrupt


def inbox_of(token: CountingToken) -> tuple[Inbox, Ledger]:
    ledger = Ledger()
    mailbox = Mailbox(
        trimaran.Settings(), ledger=ledger, budget=MemoryBudget(1 << 30), wall_clock=time.time
    )
    return Inbox(token, mailbox=mailbox, ledger=ledger, capacity=10), ledger  # type: ignore[arg-type]


def test_one_call_is_enough_for_many_events() -> None:
    """The session's thread is called when there is something new, not for each event."""
    token = CountingToken()
    inbox, ledger = inbox_of(token)
    for _ in range(20):
        inbox.put(Mark(), 0.0)
    assert len(token.calls) == 1

    token.calls.pop()()
    assert ledger.tracked == 20
    assert ledger.dropped == {"mailbox_full": 10}

    inbox.put(Mark(), 0.0)
    assert len(token.calls) == 1


def test_ctrl_c_in_the_middle_leaves_no_event_that_nobody_comes_for() -> None:
    """It falls where the event is there and the call is not out; the next one calls again."""
    token = CountingToken()
    inbox, ledger = inbox_of(token)
    token.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        inbox.put(Mark(), 0.0)
    assert inbox.statistics().tracked == 1

    token.interrupted = False
    inbox.put(Mark(), 0.0)
    assert len(token.calls) == 2
    token.calls.pop()()
    assert ledger.tracked == 2
