from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
import trio

import trimaran
from patience import LATENESS, PATIENCE
from plain_server import PlainEndpoint, deaf, healthy
from trimaran._in_thread import LEAVING_GRACE
from trimaran._telemetry import Telemetry
from trimaran._thread_session import ANSWER_GRACE
from trimaran.testing import Capture

COMMAND = trimaran.Command(command_name="init")
SHORT = trimaran.Settings(drain_timeout=0.2, request_timeout=PATIENCE, account_timeout=PATIENCE)
CROWDED = trimaran.Settings(
    drain_timeout=0.2, memory_bytes=8_000, batch_bytes=8_000, event_bytes=4_000
)
"""Room for so little that who sends soon waits."""


def environ(url: str = "https://capture.invalid") -> dict[str, str]:
    """An environment that switches the app's anonymous events on."""
    return {"APP_TELEMETRY_URL": url}


def ours() -> list[threading.Thread]:
    """The threads of ours that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("trimaran ")]


@contextmanager
def opened(capture: Capture, **named: Any) -> Generator[trimaran.ThreadTelemetry]:
    """A telemetry that ends in memory."""
    with trimaran.open_in_thread("app", environ=environ(), transport=capture, **named) as telemetry:
        yield telemetry


class Hanging(Capture):
    """An endpoint that never answers."""

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        await trio.sleep_forever()
        raise AssertionError


@contextmanager
def in_time(seconds: float) -> Generator[None]:
    """The block takes so long at most; and more for the machine's sake."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds + LATENESS


class Interrupter:
    """Sends Ctrl-C to the main thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def after(self, *pauses: float) -> None:
        """From now on, after each of these *pauses* (seconds)."""
        main = threading.get_ident()

        def interrupt() -> None:
            for pause in pauses:
                time.sleep(pause)
                signal.pthread_kill(main, signal.SIGINT)

        self._thread = threading.Thread(target=interrupt)
        self._thread.start()

    def join(self) -> None:
        """Wait until all were sent."""
        if self._thread is not None:
            self._thread.join()


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """Nothing of it is left for the next test."""
    interrupter = Interrupter()
    yield interrupter
    interrupter.join()


@pytest.fixture
def endpoint() -> Iterator[PlainEndpoint]:
    """A real one."""
    with healthy() as endpoint:
        yield endpoint


def adds_up(books: trimaran.Statistics) -> bool:
    """Whether every event has a fate."""
    return books.pending == 0 and books.tracked == books.delivered + books.dropped_total


# What it takes is what the other takes.


@pytest.mark.parametrize(
    ("plain", "native"),
    [
        (trimaran.open_in_thread, trimaran.open_telemetry),
        (trimaran.ThreadTelemetry.session, Telemetry.session),
        (trimaran.ThreadSession.track, trimaran.Session.track),
        (trimaran.ThreadSession.send, trimaran.Session.send),
        (trimaran.ThreadSession.command, trimaran.Session.command),
        (trimaran.ThreadSession.error, trimaran.Session.error),
        (trimaran.ThreadSession.tool_call, trimaran.Session.tool_call),
        (trimaran.ThreadSession.generation, trimaran.Session.generation),
        (trimaran.ThreadSession.bridge_call, trimaran.Session.bridge_call),
    ],
)
def test_it_takes_what_its_native_counterpart_takes(
    plain: Callable[..., object], native: Callable[..., object]
) -> None:
    """The same parameters, in the same order, with the same defaults."""
    expected = inspect.signature(native).parameters

    assert dict(inspect.signature(plain).parameters) == dict(expected)


def test_a_session_in_a_plain_program(endpoint: PlainEndpoint) -> None:
    """Everything that it says arrives at a real endpoint, in order, once."""
    with trimaran.open_in_thread("app", environ=environ(endpoint.url)) as telemetry:
        assert telemetry.decision.tier is trimaran.Tier.ANONYMOUS
        assert "anonymous" in repr(telemetry)
        with telemetry.session(agent="build", model_id="m", session_id="ses_1") as session:
            assert session.id == "ses_1"
            session.command("init")
            with session.tool_call("bash"), session.bridge_call("sql.execute"):
                pass
            with session.generation() as generation:
                generation.finish("stop")
            session.error("odd", context="prompt")
            session.track(COMMAND)
            session.send(COMMAND)
            flushed = session.flush(timeout=PATIENCE)
            assert flushed
            assert "ses_1" in repr(session)

    types = [event["type"] for event in endpoint.of("ses_1")]
    assert types == [
        "session_start",
        "command",
        "bridge_call",
        "tool_call",
        "generation",
        "error",
        "command",
        "command",
        "session_end",
    ]
    assert session.statistics().delivered == len(types)
    assert adds_up(session.statistics())
    assert telemetry.leftovers() == trimaran.Statistics()
    assert ours() == []


def test_nothing_is_left_of_it() -> None:
    """Neither a thread nor a call at the interpreter's exit; also after many."""
    for _ in range(20):
        with opened(Capture()) as telemetry, telemetry.session():
            assert len(ours()) == 1

    assert ours() == []


# The current session.


def test_the_current_session_is_that_of_the_block() -> None:
    """Inside it is the session, outside there is none; nested, the innermost."""
    capture = Capture()
    with opened(capture) as telemetry:
        with telemetry.session(session_id="outer"):
            with telemetry.session(session_id="inner"):
                trimaran.current_session().command("in")
                assert trimaran.current_session().id == "inner"
            trimaran.current_session().error("out")
            with trimaran.current_session().tool_call("bash"):
                pass
            with trimaran.current_session().bridge_call("sql"):
                pass
            with trimaran.current_session().generation():
                pass
            assert "outer" in repr(trimaran.current_session())
        assert trimaran.current_session().id == ""

    sessions = capture.sessions()
    assert [type(event) for event in sessions["inner"]][1:-1] == [trimaran.Command]
    assert [type(event) for event in sessions["outer"]][1:-1] == [
        trimaran.ErrorEvent,
        trimaran.ToolCall,
        trimaran.BridgeCall,
        trimaran.Generation,
    ]


def test_log_records_belong_to_the_session() -> None:
    """Records of structlog have its id inside of the block, and none after it."""
    with opened(Capture()) as telemetry:
        with telemetry.session(session_id="ses_1"):
            assert structlog.contextvars.get_contextvars() == {"session_id": "ses_1"}
        assert structlog.contextvars.get_contextvars() == {}


def test_tasks_of_asyncio_keep_their_sessions_apart() -> None:
    """Each task finds its own, and so do the tasks and threads that it starts."""
    capture = Capture()

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        trimaran.current_session().command(f"{name} task")
        await asyncio.to_thread(lambda: trimaran.current_session().command(f"{name} thread"))

    async def agent(telemetry: trimaran.ThreadTelemetry, name: str) -> None:
        with telemetry.session(session_id=name) as session:
            await asyncio.gather(child(name), child(name))
            assert await asyncio.to_thread(session.flush)
            assert trimaran.current_session().id == name

    async def main() -> None:
        with opened(capture) as telemetry:
            await asyncio.gather(*(agent(telemetry, f"agent {n}") for n in range(5)))

    asyncio.run(main())

    for name, events in capture.sessions().items():
        said = [event.command_name for event in events if isinstance(event, trimaran.Command)]
        assert sorted(said) == [f"{name} task"] * 2 + [f"{name} thread"] * 2


def test_threads_keep_their_sessions_apart() -> None:
    """Each thread finds its own; one that runs in a copy of a context finds that one's."""
    capture = Capture()

    def agent(telemetry: trimaran.ThreadTelemetry, name: str) -> None:
        assert trimaran.current_session().id == ""
        with telemetry.session(session_id=name):
            context = contextvars.copy_context()
            helper = threading.Thread(
                target=context.run, args=(lambda: trimaran.current_session().command(name),)
            )
            helper.start()
            helper.join()

    with opened(capture) as telemetry:
        threads = [threading.Thread(target=agent, args=(telemetry, str(n))) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    sessions = capture.sessions()
    assert sorted(sessions) == [str(n) for n in range(5)]
    for name, events in sessions.items():
        said = [event.command_name for event in events if isinstance(event, trimaran.Command)]
        assert said == [name]


def test_the_current_session_can_be_awaited_from_asyncio() -> None:
    """What is written for a trio session works unchanged: ``await send()``, ``await flush()``."""
    capture = Capture()

    async def library() -> trimaran.Flushed:
        session = trimaran.current_session()
        await session.send(COMMAND)
        return await session.flush(timeout=PATIENCE)

    async def main() -> None:
        with opened(capture) as telemetry, telemetry.session():
            assert await library()
            assert len(capture.events(trimaran.Command)) == 1

    asyncio.run(main())


async def test_the_current_session_can_be_awaited_from_another_trio_run() -> None:
    """Also there, in the loop of a host that did open one in a thread."""
    capture = Capture()
    with opened(capture) as telemetry, telemetry.session():
        await trimaran.current_session().send(COMMAND)
        assert await trimaran.current_session().flush(timeout=PATIENCE)
        assert len(capture.events(trimaran.Command)) == 1


def test_a_cancelled_send_takes_the_event_back() -> None:
    """Cancelled by asyncio while it waits for room, an event is untracked."""

    async def main() -> None:
        with opened(Hanging(), settings=CROWDED) as telemetry, telemetry.session() as session:
            before = await fill(session)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(trimaran.current_session().send(COMMAND), 0.05)
            assert (await asyncio.to_thread(session.flush, 0.01)).complete is False
            assert session.statistics().tracked == before

    async def fill(session: trimaran.ThreadSession) -> int:
        while True:
            before = session.statistics().tracked
            try:
                await asyncio.wait_for(trimaran.current_session().send(COMMAND), 0.05)
            except TimeoutError:
                return before

    asyncio.run(main())


async def test_a_send_cancelled_by_trio_takes_the_event_back() -> None:
    """As in asyncio, from another trio run."""
    with opened(Hanging(), settings=CROWDED) as telemetry, telemetry.session() as session:
        full = False
        while not full:
            before = session.statistics().tracked
            with trio.move_on_after(0.05) as waiting:
                await trimaran.current_session().send(COMMAND)
            full = waiting.cancelled_caught
            if full:
                session.flush(0.01)
                assert session.statistics().tracked == before


# Calls that hold up the thread.


def test_send_waits_for_room_and_can_be_interrupted(interrupter: Interrupter) -> None:
    """Nothing is shed for it; a Ctrl-C takes the event back and comes out."""
    with opened(Hanging(), settings=CROWDED) as telemetry, telemetry.session() as session:
        tracked = [0]

        def fill() -> None:
            while True:
                tracked.append(session.statistics().tracked)
                session.send(COMMAND)

        interrupter.after(0.3)
        with pytest.raises(KeyboardInterrupt):
            fill()
        session.flush(0.01)
        assert session.statistics().tracked == tracked[-1]
        assert session.statistics().dropped_total == 0


def test_send_that_waits_is_counted_as_closed_when_the_telemetry_ends() -> None:
    """It returns then, in the thread that made it."""
    with opened(Hanging(), settings=CROWDED) as telemetry, telemetry.session() as session:

        def fill() -> None:
            for _ in range(30):
                session.send(COMMAND)

        thread = threading.Thread(target=fill)
        thread.start()
        time.sleep(0.1)
        with in_time(CROWDED.drain_timeout):
            telemetry.close()
            thread.join()

    assert session.statistics().tracked == 32
    assert session.statistics().dropped["closed"] >= 10
    assert adds_up(session.statistics())


@pytest.mark.parametrize("timeout", [0.05, 0.0, -1.0, math.nan])
def test_flush_obeys_its_timeout(timeout: float) -> None:
    """It is false in a condition, and says what is pending."""
    with opened(Hanging(), settings=SHORT) as telemetry, telemetry.session() as session:
        with in_time(0.05):
            flushed = session.flush(timeout)

        assert not flushed
        assert flushed.pending == 1


def test_flush_waits_as_long_as_it_takes() -> None:
    """Without end, if told so."""
    with opened(Capture()) as telemetry, telemetry.session() as session:
        assert session.flush(math.inf).complete


# Ends.


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the host's"),
        KeyboardInterrupt(),
        SystemExit(3),
        StopIteration(1),
        GeneratorExit(),
        asyncio.CancelledError(),
        ExceptionGroup("several", [ValueError()]),
    ],
    ids=repr,
)
def test_an_exception_comes_out_as_itself(error: BaseException) -> None:
    """The same object, within the deadline, also while the endpoint hangs."""
    sessions: list[trimaran.ThreadSession] = []

    def host(url: str) -> None:
        with trimaran.open_in_thread("app", settings=SHORT, environ=environ(url)) as telemetry:
            with telemetry.session() as session:
                sessions.append(session)
                session.track(COMMAND)
                raise error

    with deaf() as url, pytest.raises(type(error)) as caught, in_time(SHORT.drain_timeout):
        host(url)

    assert caught.value is error
    assert sessions[0].statistics().dropped == {"drain_timeout": 3}
    assert adds_up(sessions[0].statistics())


@pytest.mark.parametrize("pauses", [(0.1,), (0.05, 0.05), (0.03, 0.03, 0.03)])
def test_ctrl_c_while_it_drains_comes_out_after_it(
    interrupter: Interrupter, pauses: tuple[float, ...]
) -> None:
    """Once or more often: the deadline holds, and the books are right."""
    sessions: list[trimaran.ThreadSession] = []
    left = [math.nan]

    def host(url: str) -> None:
        with trimaran.open_in_thread("app", settings=SHORT, environ=environ(url)) as telemetry:
            with telemetry.session() as session:
                sessions.append(session)
                session.track(COMMAND)
            interrupter.after(*pauses)
            left[0] = time.monotonic()

    with deaf() as url, pytest.raises(KeyboardInterrupt):
        host(url)
    took = time.monotonic() - left[0]

    assert SHORT.drain_timeout <= took < SHORT.drain_timeout + LATENESS
    assert sessions[0].statistics().dropped == {"drain_timeout": 3}
    assert ours() == []


def test_ctrl_c_while_it_is_entered_comes_out(interrupter: Interrupter) -> None:
    """An account that takes its time is not waited for."""

    class Slow:
        async def account(self) -> trimaran.Account | None:
            await trio.sleep_forever()
            raise AssertionError

        async def token(self, *, refresh: bool) -> str | None:
            raise AssertionError

    interrupter.after(0.1)
    with pytest.raises(KeyboardInterrupt), in_time(0.1):
        with trimaran.open_in_thread("app", account=Slow(), environ=environ(), settings=SHORT):
            raise AssertionError

    assert ours() == []


def test_closed_before_it_is_left() -> None:
    """``close()`` drains; after it everything is counted as closed, and nothing hangs."""
    capture = Capture()
    with opened(capture) as telemetry:
        with telemetry.session() as session:
            telemetry.close()
            assert session.statistics().delivered == 2
            session.track(COMMAND)
            session.send(COMMAND)
            assert session.flush().complete
            telemetry.close()
        with telemetry.session() as late:
            late.track(COMMAND)
            assert late.id == ""
            assert trimaran.current_session().id == ""

    assert session.statistics().dropped == {"closed": 2}
    assert adds_up(session.statistics())


def test_closed_from_asyncio_the_loop_goes_on() -> None:
    """Draining in another thread leaves the event loop to others."""

    async def main() -> int:
        turns = 0
        with deaf() as url:
            with trimaran.open_in_thread("app", settings=SHORT, environ=environ(url)) as telemetry:
                with telemetry.session() as session:
                    session.track(COMMAND)
                closing = asyncio.create_task(asyncio.to_thread(telemetry.close))
                while not closing.done():
                    await asyncio.sleep(0.01)
                    turns += 1
                assert await trimaran.current_session().flush()
                await trimaran.current_session().send(COMMAND)  # by none, and that is no error
        assert adds_up(session.statistics())
        return turns

    assert asyncio.run(main()) > 1


def test_awaited_after_the_end_it_is_counted_as_closed() -> None:
    """The session that outlives its telemetry, awaited."""

    async def main() -> None:
        with opened(Capture()) as telemetry, telemetry.session() as session:
            telemetry.close()
            await trimaran.current_session().send(COMMAND)
            assert await trimaran.current_session().flush()
            assert session.statistics().dropped == {"closed": 1}

    asyncio.run(main())


def test_a_block_that_is_forgotten_is_left() -> None:
    """When the garbage collector finds it, which is when CPython drops it."""
    capture = Capture()
    block = opened(capture)
    with block.__enter__().session():
        pass
    del block
    gc.collect()

    assert len(capture.events()) == 2
    assert ours() == []


def test_a_session_left_open_ends_with_the_telemetry() -> None:
    """Its last event is delivered too."""
    capture = Capture()
    with opened(capture) as telemetry:
        forgotten = telemetry.session()
        session = forgotten.__enter__()

    assert session.statistics().delivered == 2
    forgotten.__exit__(None, None, None)


# Off.


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({}, "APP_TELEMETRY_URL is not set"),
        ({"DO_NOT_TRACK": "1"}, "DO_NOT_TRACK"),
        ({"APP_TELEMETRY_URL": "ftp://x"}, "http"),
    ],
)
def test_disabled_starts_no_thread(
    monkeypatch: pytest.MonkeyPatch, switches: dict[str, str], reason: str
) -> None:
    """Its sessions do nothing; something wrong is told."""
    monkeypatch.setattr(threading.Thread, "start", None)
    problems: list[trimaran.Problem] = []
    with trimaran.open_in_thread("app", environ=switches, on_problem=problems.append) as telemetry:
        assert not telemetry.decision.enabled
        assert reason in telemetry.decision.reason
        with telemetry.session(session_id="s") as session:
            session.track(COMMAND)
            session.command("init")
            session.send(COMMAND)
            assert session.flush()
            assert trimaran.current_session().id == session.id == ""
        telemetry.close()

    assert session.statistics() == trimaran.Statistics()
    assert [p.name for p in problems] == ["telemetry disabled"] * telemetry.decision.is_fault


def test_opted_out_no_account_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no thread is started to ask it in."""
    monkeypatch.setattr(threading.Thread, "start", None)
    account = trimaran.StaticAccount("https://x.invalid", "secret")
    with trimaran.open_in_thread(
        "app", account=account, environ={"DO_NOT_TRACK": "1"}
    ) as telemetry:
        assert not telemetry.decision.enabled


def test_disabled_by_its_account_the_thread_ends_at_once() -> None:
    """Only the account can say that nobody is logged in."""

    class Nobody:
        async def account(self) -> trimaran.Account | None:
            await trio.lowlevel.checkpoint()
            return None

        async def token(self, *, refresh: bool) -> str | None:
            raise AssertionError

    with trimaran.open_in_thread("app", account=Nobody(), environ={}) as telemetry:
        assert not telemetry.decision.enabled
        assert ours() == []
        with telemetry.session() as session:
            assert session.id == ""


def test_where_there_can_be_no_thread_it_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; the host goes on."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    problems: list[trimaran.Problem] = []
    with trimaran.open_in_thread("app", environ=environ(), on_problem=problems.append) as telemetry:
        assert telemetry.decision.reason == "no thread: can't start new thread"
        with telemetry.session() as session:
            assert session.id == ""

    assert [problem.name for problem in problems] == ["telemetry disabled"]


def test_a_name_without_a_letter_is_refused() -> None:
    """As everywhere: its switches could not be named."""
    with pytest.raises(ValueError, match="open_in_thread"), trimaran.open_in_thread("-"):
        raise AssertionError


# What goes wrong in the thread.


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stage have a bug."""

    async def collect(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("trimaran._live_session.collect", collect)


def test_strict_lets_a_bug_out_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As itself; nothing of it disturbs the block."""
    broken(monkeypatch)
    settings = trimaran.Settings(strict=True)
    books: list[trimaran.Statistics] = []

    def host() -> None:
        with opened(Capture(), settings=settings) as telemetry:
            with telemetry.session() as session:
                assert telemetry._loop is not None
                telemetry._loop._thread.join()
                session.track(COMMAND)
                with telemetry.session() as late:
                    assert late.id == ""
            books.append(session.statistics())

    with pytest.raises(ZeroDivisionError):
        host()

    assert books[0].dropped == {"bug": 1, "closed": 2}  # its last event, too
    assert adds_up(books[0])


def test_the_hosts_own_exception_goes_before_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's comes out, the same object."""
    broken(monkeypatch)
    error = ValueError("the host's")

    def host() -> None:
        with opened(Capture(), settings=trimaran.Settings(strict=True)) as telemetry:
            with telemetry.session():
                raise error

    with pytest.raises(ValueError, match="the host's") as caught:
        host()

    assert caught.value is error


@pytest.mark.parametrize("strict", [False, True])
def test_a_loop_that_breaks_down_is_told(strict: bool) -> None:
    """What is tracked then is counted as closed; the bug comes out only if strict."""
    problems: list[trimaran.Problem] = []
    settings = trimaran.Settings(strict=strict)

    def crash() -> None:
        raise ZeroDivisionError

    def host() -> None:
        with opened(Capture(), settings=settings, on_problem=problems.append) as telemetry:
            with telemetry.session() as session:
                loop = telemetry._loop
                assert loop is not None
                assert loop._token is not None
                loop._token.run_sync_soon(crash)
                loop._thread.join()
                session.track(COMMAND)
                session.send(COMMAND)
                assert session.flush()
            assert session.statistics().dropped["closed"] >= 2
            assert adds_up(session.statistics())

    if strict:
        with pytest.raises(trio.TrioInternalError):
            host()
        assert problems == []
    else:
        host()
        assert [problem.name for problem in problems] == ["telemetry failed"]


@pytest.mark.parametrize("hook", ["on_drop", "consent"])
def test_code_of_the_host_that_hangs_in_the_thread_holds_up_nobody(
    hook: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sessions, flushes and the exit have bounds of their own; and it is told."""
    hangs, let_go = threading.Event(), threading.Event()

    def hang(*_told: object) -> bool:
        hangs.set()
        return let_go.wait(PATIENCE)

    try:
        with in_time(SHORT.drain_timeout + LEAVING_GRACE + 5 * ANSWER_GRACE):
            with (
                opened(Capture(), settings=SHORT, **{hook: hang}) as telemetry,
                telemetry.session() as session,
            ):
                session.track("no event")  # type: ignore[arg-type]
                assert hangs.wait(PATIENCE)
                session.track(COMMAND)
                with in_time(0.05 + ANSWER_GRACE):
                    assert not session.flush(0.05)
                loop = telemetry._loop
                assert loop is not None
                more = telemetry._telemetry.session
                with loop.held(more, entering=0.05, leaving=0.05) as held:
                    assert held is None
        assert not loop.has_ended
        telemetry.close()  # does not wait once more
    finally:
        let_go.set()
        for thread in ours():
            thread.join()

    printed = capsys.readouterr()  # where to depends on what configured structlog before
    assert "telemetry thread did not end" in printed.out + printed.err


def test_a_session_that_the_thread_does_not_open_does_nothing_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code of the host's that hangs there costs what is recorded meanwhile, and a line."""
    monkeypatch.setattr("trimaran._in_thread.ENTERING_PATIENCE", 0.05)
    hangs, let_go = threading.Event(), threading.Event()

    def hang(_dropped: trimaran.Dropped) -> None:
        hangs.set()
        let_go.wait(PATIENCE)

    try:
        with opened(Capture(), settings=SHORT, on_drop=hang) as telemetry:
            with telemetry.session() as session:
                session.track("no event")  # type: ignore[arg-type]
                assert hangs.wait(PATIENCE)
                with telemetry.session() as unopened:
                    unopened.track(COMMAND)
                    assert (unopened.id, trimaran.current_session().id) == ("", "")
            let_go.set()
    finally:
        let_go.set()

    printed = capsys.readouterr()
    assert "telemetry session not opened" in printed.out + printed.err


def test_code_in_the_loop_itself_never_waits_for_it() -> None:
    """A hook may use the telemetry; what would have to wait there does nothing."""
    told: list[object] = []

    def on_drop(_dropped: trimaran.Dropped) -> None:
        if told:
            return
        session.send(COMMAND)
        told.append(session.flush().complete)
        with telemetry.session() as inner:
            told.append(inner.id)
        telemetry.close()

    with in_time(0.0), opened(Capture(), on_drop=on_drop) as telemetry:
        with telemetry.session() as session:
            session.track("no event")  # type: ignore[arg-type]
            while not told:
                time.sleep(0.01)

    assert told == [False, ""]
    assert session.statistics().delivered == 3
    assert adds_up(session.statistics())


def test_signals_stay_with_the_main_thread() -> None:
    """Neither the handler of Ctrl-C nor the descriptor that wakes a loop is touched."""
    handler = signal.getsignal(signal.SIGINT)

    async def main() -> None:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        with opened(Capture()) as telemetry, telemetry.session() as session:
            assert await asyncio.to_thread(session.flush)
            inside = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(inside)
            assert inside == wakeup

    with opened(Capture()) as telemetry, telemetry.session() as session:
        session.flush()
        assert signal.getsignal(signal.SIGINT) is handler
    asyncio.run(main())
    assert signal.getsignal(signal.SIGINT) is handler
