"""Lifetimes: what leaving the block does to it, to its exception and to what is pending."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
import trio.testing

import trimaran
from patience import PATIENCE
from trimaran._pipeline.wire import session_id_of
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conftest import LoopbackEndpoint

FOREVER = float("inf")
LOOPBACK = {"TEST_TELEMETRY_URL": "http://127.0.0.1:9"}
CALL = trimaran.ToolCall(tool_name="bash")


def books_add_up(books: trimaran.Statistics) -> bool:
    """Whether every event has exactly one fate."""
    return books.tracked == books.delivered + books.dropped_total + books.pending


class Login:
    """An account whose parts may be missing, slow or broken."""

    def __init__(
        self,
        *,
        account: trimaran.Account | Exception | None = None,
        token: str | Exception | None = "secret-token",  # noqa: S107 - a test's token
        delay: float = 0.0,
    ) -> None:
        self._account = account
        self._token = token
        self._delay = delay
        self.asked = 0

    async def account(self) -> trimaran.Account | None:
        self.asked += 1
        await trio.sleep(self._delay)
        if isinstance(self._account, Exception):
            raise self._account
        return self._account

    async def token(self, *, refresh: bool) -> str | None:
        assert not refresh
        if isinstance(self._token, Exception):
            raise self._token
        return self._token


async def test_leaving_the_block_delivers_what_is_pending() -> None:
    """Everything tracked before the end is delivered, start and end included."""
    capture = Capture()

    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(CALL)

    assert [type(event) for event in capture.events()] == [
        trimaran.SessionStart,
        trimaran.ToolCall,
        trimaran.SessionEnd,
    ]
    assert session.statistics().pending == 0


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), StopAsyncIteration()]
)
async def test_an_exception_comes_out_as_the_same_object(error: BaseException) -> None:
    """No group around it, nothing in its place, and the events are delivered all the same."""
    capture = Capture()

    with pytest.raises(type(error)) as caught:
        async with capture.open() as telemetry, telemetry.session():
            raise error

    assert caught.value is error
    assert len(capture.events(trimaran.SessionEnd)) == 1


async def test_an_exception_group_of_the_block_comes_out_as_the_same_object() -> None:
    """A group that the host raises is the host's, and is not taken apart."""
    group = ExceptionGroup("mine", [ValueError("one")])

    with pytest.raises(ExceptionGroup) as caught:
        async with Capture().open():
            raise group

    assert caught.value is group


async def test_the_exception_is_the_same_against_a_hung_endpoint(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The deadline cuts the drain; it does not replace the exception."""
    error = ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        async with Capture([FOREVER]).open() as telemetry, telemetry.session():
            raise error

    assert caught.value is error


async def test_a_cancelled_block_still_delivers(autojump_clock: trio.testing.MockClock) -> None:
    """The stages outlive the body: what it tracked in its last moment goes out too."""
    capture = Capture()

    with trio.move_on_after(1) as scope:
        async with capture.open() as telemetry, telemetry.session() as session:
            try:
                await trio.sleep_forever()
            finally:
                session.command("undo")

    assert scope.cancelled_caught
    assert [type(event) for event in capture.events()] == [
        trimaran.SessionStart,
        trimaran.Command,
        trimaran.SessionEnd,
    ]


@pytest.mark.parametrize("how", ["normally", "by exception", "by cancellation"])
async def test_a_hung_endpoint_ends_at_the_deadline(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Leaving takes drain_timeout at most, and what was pending is counted."""
    settings = trimaran.Settings(drain_timeout=2.0)
    left = 0.0
    sessions: list[trimaran.Session] = []

    with trio.CancelScope() as scope:
        try:
            async with (
                Capture([FOREVER]).open(settings=settings) as telemetry,
                telemetry.session() as session,
            ):
                sessions.append(session)
                session.track(CALL)
                await trio.sleep(1)  # the request is under way by now
                left = trio.current_time()
                if how == "by exception":
                    raise KeyError(how)  # noqa: TRY301 - from inside is the point
                if how == "by cancellation":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        except KeyError:
            pass

    assert trio.current_time() - left == pytest.approx(2.0)
    assert sessions[0].statistics().dropped == {"drain_timeout": 3}
    assert books_add_up(sessions[0].statistics())


async def test_a_sleeping_retry_ends_at_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A backoff longer than the drain does not hold up the exit."""
    refusal = trimaran.Answer(503, retry_after="60")

    began = trio.current_time()
    async with Capture([refusal] * 9).open() as telemetry, telemetry.session() as session:
        pass

    assert trio.current_time() - began == pytest.approx(2.0)
    assert session.statistics().dropped == {"drain_timeout": 2}


async def test_a_drain_timeout_of_zero_leaves_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Zero seconds is a choice: nothing is waited for, everything is counted."""
    began = trio.current_time()

    async with (
        Capture([FOREVER]).open(settings=trimaran.Settings(drain_timeout=0)) as telemetry,
        telemetry.session() as session,
    ):
        pass

    assert trio.current_time() == began
    assert books_add_up(session.statistics())
    assert session.statistics().pending == 0


async def test_cancelled_before_it_is_open_it_does_not_hang() -> None:
    """A scope that is cancelled already lets nothing start, and nothing is left behind."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with Capture().open() as telemetry, telemetry.session():
            pass

    assert scope.cancelled_caught


async def test_cancelled_while_it_drains_it_still_drains(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The host's cancellation during the drain neither cuts nor prolongs it."""
    capture = Capture([1.0])

    with trio.move_on_after(0.5) as scope:
        async with capture.open() as telemetry, telemetry.session() as session:
            pass

    assert scope.cancelled_caught
    assert session.statistics().dropped_total == 0
    assert len(capture.events()) == 2


async def test_sessions_left_open_by_other_tasks_are_ended(nursery: trio.Nursery) -> None:
    """Leaving the telemetry ends every session; what comes later is counted as closed."""
    capture = Capture()
    opened: list[trimaran.Session] = []

    async def other_task(telemetry: trimaran.Telemetry) -> None:
        async with telemetry.session(session_id="other") as session:
            opened.append(session)
            await trio.sleep_forever()

    async with capture.open() as telemetry:
        nursery.start_soon(other_task, telemetry)
        await trio.testing.wait_all_tasks_blocked()

    opened[0].track(CALL)
    await opened[0].send(CALL)
    assert [type(event) for event in capture.sessions()["other"]] == [
        trimaran.SessionStart,
        trimaran.SessionEnd,
    ]
    assert opened[0].statistics().dropped == {"closed": 2}
    assert books_add_up(opened[0].statistics())


@pytest.mark.parametrize("lingers", [0.05, 0.099])
async def test_sessions_of_other_tasks_may_end_by_themselves_in_a_moment(
    lingers: float, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """What they say in it is delivered, and leaving takes no longer than they do."""
    capture = Capture()

    async def other_task(telemetry: trimaran.Telemetry) -> None:
        async with telemetry.session(session_id="other") as session:
            await leaving.wait()
            await trio.sleep(lingers)
            session.command("undo")

    leaving = trio.Event()
    async with capture.open() as telemetry:
        nursery.start_soon(other_task, telemetry)
        await trio.testing.wait_all_tasks_blocked()
        leaving.set()
        began = trio.current_time()

    assert trio.current_time() - began == pytest.approx(lingers)
    assert [type(event) for event in capture.sessions()["other"]] == [
        trimaran.SessionStart,
        trimaran.Command,
        trimaran.SessionEnd,
    ]


async def test_sessions_of_other_tasks_are_not_waited_for_longer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A tenth of a second, out of the time for draining; then they are ended for them."""
    capture = Capture()
    opened: list[trimaran.Session] = []

    async def other_task(telemetry: trimaran.Telemetry) -> None:
        async with telemetry.session(session_id="other") as session:
            opened.append(session)
            await leaving.wait()
            await trio.sleep(0.101)
            session.command("undo")

    leaving = trio.Event()
    async with capture.open() as telemetry:
        nursery.start_soon(other_task, telemetry)
        await trio.testing.wait_all_tasks_blocked()
        leaving.set()
        began = trio.current_time()

    assert trio.current_time() - began == pytest.approx(0.1)
    await trio.sleep(1)
    assert opened[0].statistics().dropped == {"closed": 1}
    assert opened[0].statistics().delivered == 2


async def test_nothing_of_a_session_that_is_over_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A telemetry may live for as long as its host, and have a session for each request."""
    capture = Capture()
    async with capture.open() as telemetry:
        assert telemetry._supervisor is not None
        supervisor = telemetry._supervisor
        for _ in range(10):
            async with telemetry.session() as session:
                session.track(CALL)
            assert await session.flush()
        await trio.testing.wait_all_tasks_blocked()
        outages = supervisor.shared.routes[0].outages

        assert outages.totals() == (30, 0, 0)
        assert not outages._running
        assert not supervisor._open
        assert supervisor.shared.budget.used == 0


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        (KeyError("secret"), "KeyError"),
        (
            ExceptionGroup("secret", [KeyError("a"), ExceptionGroup("b", [OSError(), KeyError()])]),
            "KeyError, OSError, KeyError",
        ),
        (trio.BrokenResourceError("secret"), "BrokenResourceError"),
    ],
)
async def test_a_bug_is_told_by_its_kinds(
    bug: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says may quote an event; a group says which kinds there are in it."""

    async def broken(*_arguments: object, **_named: object) -> None:
        raise bug

    monkeypatch.setattr("trimaran._live_session.collect", broken)
    with structlog.testing.capture_logs() as logs:
        async with (
            trimaran.open_telemetry(
                "test", environ=LOOPBACK, transport=ScriptedTransport()
            ) as telemetry,
            telemetry.session() as session,
        ):
            await trio.testing.wait_all_tasks_blocked()

    assert session.statistics().dropped["bug"] >= 1
    assert [(line["event"], line["error"]) for line in logs] == [("telemetry failed", told)]


async def test_a_bug_is_told_without_what_followed_from_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A stage whose channel broke since the next one failed is not to blame."""

    async def broken(receive: trio.abc.ReceiveChannel[object]) -> None:
        async with receive:
            await receive.receive()
        with trio.CancelScope(shield=True):  # the break of its channel cancels this one
            await trio.sleep(1)
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as logs:
        async with (
            trimaran.open_telemetry(
                "test", environ=LOOPBACK, transport=ScriptedTransport()
            ) as telemetry,
            telemetry.session() as session,
        ):
            monkeypatch.setattr(session.ends.each[0]._sender, "run", broken)  # type: ignore[attr-defined]
            for _ in range(3):
                session.error("urgent")
                await trio.sleep(0.1)
            await trio.sleep(2)

    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry failed", "ZeroDivisionError")
    ]


async def test_a_session_opened_after_the_end_counts_and_sends_nothing() -> None:
    """A telemetry that was left still gives sessions; their events are closed out."""
    capture = Capture()
    async with capture.open() as telemetry:
        pass

    async with telemetry.session() as session:
        session.track(CALL)
        await session.send(CALL)
        assert await session.flush(timeout=1)

    books = session.statistics()
    assert books.pending == 0
    assert books.dropped == {"closed": books.tracked}
    assert capture.requests == []


async def test_embedded_in_a_nursery_of_the_host(autojump_clock: trio.testing.MockClock) -> None:
    """nursery.start() gives the telemetry; cancelling the nursery drains it."""
    transport = ScriptedTransport()

    async with trio.open_nursery() as nursery:
        telemetry: trimaran.Telemetry = await nursery.start(
            partial(trimaran.run_telemetry, "test", environ=LOOPBACK, transport=transport)
        )
        async with telemetry.session() as session:
            session.track(CALL)
        nursery.cancel_scope.cancel()

    assert session.statistics().delivered == 3


async def test_what_a_sibling_says_while_all_are_cancelled_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The host's nursery cancels the telemetry and the agent together, in whichever order."""
    for _ in range(20):
        transport = ScriptedTransport()
        opened: list[trimaran.Session] = []

        async def agent(
            telemetry: trimaran.Telemetry, opened: list[trimaran.Session] = opened
        ) -> None:
            async with telemetry.session() as session:
                opened.append(session)
                try:
                    await trio.sleep_forever()
                finally:
                    session.command("undo")

        async with trio.open_nursery() as nursery:
            telemetry: trimaran.Telemetry = await nursery.start(
                partial(trimaran.run_telemetry, "test", environ=LOOPBACK, transport=transport)
            )
            nursery.start_soon(agent, telemetry)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

        assert opened[0].statistics().delivered == 3


async def test_two_apps_in_one_process_do_not_meet() -> None:
    """Each has its own decision, sessions and delivery; current_session() is the innermost."""
    one, two = Capture(), Capture()

    async with one.open("one") as first, two.open("two") as second:
        async with first.session(session_id="a") as a:
            async with second.session(session_id="b"):
                trimaran.current_session().command("inner")
            trimaran.current_session().command("outer")
        assert a.id == "a"

    assert [event.command_name for event in one.events(trimaran.Command)] == ["outer"]
    assert [event.command_name for event in two.events(trimaran.Command)] == ["inner"]


async def test_a_disabled_app_inside_an_enabled_one_does_not_leak_into_it() -> None:
    """Inside a session of a disabled telemetry, the current one does nothing."""
    capture = Capture()

    async with (
        capture.open("one") as on,
        trimaran.open_telemetry("two", environ={}) as off,
        on.session(),
        off.session(),
    ):
        trimaran.current_session().command("private")

    assert capture.events(trimaran.Command) == []


@pytest.mark.parametrize("app", ["", " ", None, 7])
async def test_an_app_without_a_name_is_the_callers_mistake(app: Any) -> None:
    """The message says what a name is."""
    with pytest.raises(ValueError, match="the app's name must be text"):
        async with trimaran.open_telemetry(app):
            pass


async def test_a_bug_in_a_stage_ends_one_session_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent sees nothing of it, the other session everything of its own."""
    transport = ScriptedTransport()

    async with (
        trimaran.open_telemetry("test", environ=LOOPBACK, transport=transport) as telemetry,
        telemetry.session(session_id="bad") as bad,
        telemetry.session() as good,
    ):

        async def broken(_receive: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(bad.ends.each[0]._sender, "run", broken)  # type: ignore[attr-defined]
        with structlog.testing.capture_logs() as logs:
            bad.track(CALL)
            good.track(CALL)
            assert await good.flush(timeout=1)
            assert await bad.flush(timeout=1)
            bad.track(CALL)

    assert good.statistics().delivered == 3
    assert bad.statistics().dropped == {"bug": 2, "closed": 2}
    assert books_add_up(bad.statistics())
    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry failed", "ZeroDivisionError")
    ]


class InterruptsTheDrain(ScriptedTransport):
    """A real Ctrl-C in the middle of the first request, which then hangs."""

    def __init__(self) -> None:
        super().__init__([FOREVER])

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        signal.raise_signal(signal.SIGINT)
        return await super().attempt(request)


def test_ctrl_c_while_it_drains_comes_out_alone() -> None:
    """Not in a group, at the latest with the deadline; what pends is counted."""
    opened: list[trimaran.Session] = []

    async def main() -> None:
        async with (
            trimaran.open_telemetry(
                "test", environ=LOOPBACK, transport=InterruptsTheDrain()
            ) as telemetry,
            telemetry.session() as session,
        ):
            opened.append(session)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert books_add_up(opened[0].statistics())
    assert opened[0].statistics().pending == 0


def test_a_second_ctrl_c_while_it_drains_comes_out_alone_too() -> None:
    """The first one left the block; the exit is no longer for the second."""
    opened: list[trimaran.Session] = []

    async def main() -> None:
        async with (
            trimaran.open_telemetry(
                "test",
                environ=LOOPBACK,
                transport=InterruptsTheDrain(),
                settings=trimaran.Settings(drain_timeout=2.0),
            ) as telemetry,
            telemetry.session(announce=False) as session,
        ):
            opened.append(session)
            session.track(CALL)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert caught.value.__cause__ is None
    assert opened[0].statistics().dropped == {"drain_timeout": 1}


def test_ctrl_c_while_a_cancelled_host_drains_comes_out_alone() -> None:
    """The cancellation of the host is no part of it: it has its own way out."""

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with (
                trimaran.open_telemetry(
                    "test", environ=LOOPBACK, transport=InterruptsTheDrain()
                ) as telemetry,
                telemetry.session(),
            ):
                scope.cancel()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_ctrl_c_while_a_failed_block_drains_comes_out_in_its_place() -> None:
    """As it would from any code that cleans up: whoever pressed it wants to be out."""

    async def main() -> None:
        async with (
            trimaran.open_telemetry(
                "test", environ=LOOPBACK, transport=InterruptsTheDrain()
            ) as telemetry,
            telemetry.session(),
        ):
            raise KeyError

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("where", ["in the block", "while it drains"])
def test_a_bug_that_a_cancelled_host_meets_comes_out_without_the_cancellation(where: str) -> None:
    """Strict settings let it out; what beside it was cancelled is not told with it."""

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with Capture().open() as telemetry, telemetry.session() as session:
                scope.cancel()
                session.ends.each[0]._sender.run = broken  # type: ignore[attr-defined]
                if where == "in the block":
                    await trio.lowlevel.checkpoint()

    async def broken(receive: trio.abc.ReceiveChannel[object]) -> None:
        async with receive:
            if where == "while it drains":
                await trio.sleep(1)  # the cancellation is there before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert caught.value.__suppress_context__


async def test_a_stage_that_breaks_another_ones_channel_comes_out_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bug is told, not what followed from it."""

    async def broken(receive: trio.abc.ReceiveChannel[object]) -> None:
        async with receive:
            await receive.receive()
        await trio.testing.wait_all_tasks_blocked()
        raise ZeroDivisionError

    async def fail() -> None:
        async with Capture().open() as telemetry, telemetry.session() as session:
            monkeypatch.setattr(session.ends.each[0]._sender, "run", broken)  # type: ignore[attr-defined]
            for _ in range(3):
                session.error("urgent")
                await trio.testing.wait_all_tasks_blocked()

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_strict_lets_a_bug_out_of_a_waiting_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug cancels the block, and comes out in the place of that cancellation."""

    async def broken(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("trimaran._live_session.collect", broken)

    with pytest.raises(ZeroDivisionError):
        async with Capture().open() as telemetry, telemetry.session():
            await trio.sleep_forever()


async def test_strict_lets_a_bug_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run strict and see the exception itself."""

    async def broken(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("trimaran._live_session.collect", broken)

    with pytest.raises(ZeroDivisionError):
        async with Capture().open() as telemetry, telemetry.session():
            pass


async def test_disabled_makes_no_call_and_starts_no_task() -> None:
    """Proved against a listening socket: nobody connects, no task is added."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        environ = {
            "TEST_TELEMETRY_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "DO_NOT_TRACK": "1",
        }
        before = trio.lowlevel.current_statistics().tasks_living
        async with trimaran.open_telemetry("test", environ=environ) as telemetry:
            assert telemetry.decision.tier is trimaran.Tier.DISABLED
            async with telemetry.session() as session:
                session.track(CALL)
                with session.tool_call("bash"), session.bridge_call("x"), session.generation() as g:
                    g.finish("stop")
                session.command("x")
                session.error(ValueError("x"))
                await session.send(CALL)
                assert await session.flush()
                assert trio.lowlevel.current_statistics().tasks_living == before
                assert session.statistics() == trimaran.Statistics()
                assert session.id == ""
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_disabled_imports_and_creates_nothing(tmp_path: Any) -> None:
    """In a process of its own: no httpx, no structlog, no file."""
    script = textwrap.dedent(
        """
        import sys, trio, trimaran
        async def main():
            async with trimaran.open_telemetry("test", environ={}) as telemetry:
                async with telemetry.session() as session:
                    session.command("x")
        trio.run(main)
        print([name for name in ("httpx", "structlog", "truststore") if name in sys.modules])
        """
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )

    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


async def test_a_disabling_switch_asks_no_account() -> None:
    """With a switch set the login is left alone."""
    login = Login(account=trimaran.Account("https://example.test"))

    async with trimaran.open_telemetry("test", account=login, environ={"DO_NOT_TRACK": "1"}) as off:
        assert off.decision.source == "DO_NOT_TRACK"

    assert login.asked == 0


@pytest.mark.parametrize(
    ("login", "environ", "reason"),
    [
        (Login(account=OSError("disk")), LOOPBACK, "could not be looked up: OSError"),
        (
            Login(account=trimaran.Account("https://x.test"), token=OSError("disk")),
            LOOPBACK,
            "could not be looked up: OSError",
        ),
        (Login(delay=FOREVER), LOOPBACK, "took more than 2 s"),
        (
            Login(account=trimaran.Account("https://x.test"), token="two\nlines"),
            LOOPBACK,
            "cannot stand in a header",
        ),
        (
            Login(account=trimaran.Account("http://example.test")),
            LOOPBACK,
            "plain http to another machine",
        ),
        (Login(account=trimaran.Account("nonsense")), LOOPBACK, "does not start with http"),
        (None, {"TEST_TELEMETRY_URL": "ftp://example.test"}, "does not start with http"),
    ],
)
async def test_what_is_wrong_disables_with_one_warning(
    login: Login | None,
    environ: Mapping[str, str],
    reason: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It fails closed: never the anonymous tier, the reason in the decision and one line."""
    with structlog.testing.capture_logs() as logs:
        async with trimaran.open_telemetry("test", account=login, environ=environ) as telemetry:
            assert telemetry.decision.tier is trimaran.Tier.DISABLED

    assert reason in telemetry.decision.reason
    assert [line["event"] for line in logs] == ["telemetry disabled"]
    assert "secret-token" not in repr(logs)


@pytest.mark.parametrize(
    "login",
    [Login(account=None), Login(account=trimaran.Account("https://x.test"), token=None), None],
)
async def test_without_a_login_or_token_events_go_out_anonymously(
    login: Login | None, endpoint: LoopbackEndpoint
) -> None:
    """No token, no e-mail, to the URL from the environment."""
    async with (
        trimaran.open_telemetry(
            "test",
            account=login,
            environ=endpoint.environ(),
            version="1.2",
            settings=trimaran.Settings(drain_timeout=PATIENCE),
        ) as telemetry,
        telemetry.session(project_id="p"),
    ):
        assert telemetry.decision.tier is trimaran.Tier.ANONYMOUS

    assert endpoint.requests
    assert all("authorization" not in request.headers for request in endpoint.requests)
    assert endpoint.requests[0].batch["user_email"] == ""


async def test_an_account_without_a_token_is_not_told_of(endpoint: LoopbackEndpoint) -> None:
    """Whoever is logged out, and is still known by name, sends as anybody else does."""
    known = trimaran.Account("https://x.test", "me@example.test")
    async with (
        trimaran.open_telemetry(
            "test",
            account=Login(account=known, token=None),
            environ=endpoint.environ(),
            settings=trimaran.Settings(drain_timeout=PATIENCE),
        ) as telemetry,
        telemetry.session() as session,
    ):
        assert telemetry.decision.tier is trimaran.Tier.ANONYMOUS
        assert telemetry.decision.url == endpoint.url
        assert await session.flush()

    assert endpoint.requests
    assert b"me@example.test" not in b"".join(request.body for request in endpoint.requests)
    assert {request.batch["user_email"] for request in endpoint.requests} == {""}


async def test_with_an_account_events_carry_its_token_and_email(
    endpoint: LoopbackEndpoint,
) -> None:
    """The origin's wire, whole: path, headers, envelope, stamps."""
    account = trimaran.StaticAccount(endpoint.url, "secret-token", email="me@example.test")

    async with (
        trimaran.open_telemetry(
            "test", account=account, environ={}, version="0.5.7", wall_clock=lambda: 1_700_000_000.5
        ) as telemetry,
        telemetry.session(
            session_id="ses_1", project_id="p", agent="build", model_id="m", provider_id="v"
        ) as session,
    ):
        assert await session.flush()

    request = endpoint.requests[0]
    assert request.target == "/api/observability/ingest"
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["content-type"] == "application/json"
    assert request.batch == {
        "session_id": "ses_1",
        "cli_version": "0.5.7",
        "user_email": "me@example.test",
        "project_id": "p",
        "timestamp": 1_700_000_000_500,
        "events": [
            {
                "type": "session_start",
                "timestamp": 1_700_000_000_500,
                "session_id": "ses_1",
                "model_id": "m",
                "provider_id": "v",
                "agent": "build",
                "project_id": "p",
            }
        ],
    }


SIGNALLED = """
import signal, sys, trio, trimaran

async def main():
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            async def cancel_on_signal():
                async for _ in signals:
                    nursery.cancel_scope.cancel()
            nursery.start_soon(cancel_on_signal)
            patient = trimaran.Settings(drain_timeout=30)
            async with trimaran.open_telemetry("test", settings=patient) as telemetry:
                async with telemetry.session(session_id="signalled"):
                    print("ready", flush=True)
                    await trio.sleep_forever()

try:
    trio.run(main)
except* KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_ends_in_time_with_the_end_delivered(
    number: signal.Signals, status: int, endpoint: LoopbackEndpoint
) -> None:
    """A real process, a real signal, a healthy endpoint: session_end arrives."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", SIGNALLED],
        stdout=subprocess.PIPE,
        env={**endpoint.environ(), "PATH": "/usr/bin:/bin"},
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(PATIENCE):
            assert (await process.stdout.receive_some()).strip() == b"ready"

            process.send_signal(number)
            assert await process.wait() == status
    finally:
        process.kill()
        await process.stdout.aclose()

    assert [event["type"] for event in endpoint.of("signalled")] == [
        "session_start",
        "session_end",
    ]


async def test_the_names_tell_what_a_person_looks_for() -> None:
    """Repr of a telemetry and a session: the tier, the reason, the books; no token."""
    account = trimaran.StaticAccount("https://x.test", "secret-token")
    async with Capture().open(account=account) as telemetry, telemetry.session() as session:
        shown = f"{telemetry!r} {session!r} {session.statistics()!r} {account!r}"

    assert "authenticated" in shown
    assert "tracked 1" in shown
    assert "secret-token" not in shown


@pytest.mark.parametrize("given", [None, ""])
async def test_a_session_without_an_id_gets_one(given: str | None) -> None:
    """Also where the variable that was to have it is empty."""
    capture = Capture()
    with structlog.testing.capture_logs() as logs:
        async with capture.open() as telemetry, telemetry.session(session_id=given) as session:
            session.command("x")

    assert len(session.id) == 32
    assert {batch.session_id for batch in capture.batches()} == {session.id}
    assert logs == []


@pytest.mark.parametrize("given", ["a\nb", "x" * 500, "\x00"])
async def test_a_session_is_not_lost_for_what_it_is_called(given: str) -> None:
    """Receivers refuse such ids: it gets a like one, which is told once, and has it everywhere."""
    capture = Capture()
    with structlog.testing.capture_logs() as logs:
        async with capture.open() as telemetry, telemetry.session(session_id=given) as session:
            session.command("x")
        async with capture.open() as telemetry, telemetry.session(session_id=given) as again:
            pass

    assert session.id == again.id == session_id_of(given) != given
    assert {batch.session_id for batch in capture.batches()} == {session.id}
    told = {
        "event": "telemetry session id changed",
        "log_level": "warning",
        "session_id": session.id,
    }
    assert logs == [told, told]
