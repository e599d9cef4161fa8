"""How a session with children ends, and how a child's part of it does.

Parent and child are tasks of one process here, with a real socket between them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from msgspec.structs import replace

import trimaran
from patience import PATIENCE
from trimaran import _children
from trimaran._children import Children
from trimaran._environment import Parent, parent_in, with_parent
from trimaran._handover import frame_of
from trimaran._live_session import LiveSession
from trimaran._pipeline import batcher
from trimaran._process import ProcessListener, ProcessSendChannel, connect
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from children.conftest import Home

INIT = trimaran.Command(command_name="init")


def parent_of(session: trimaran.Session) -> Parent:
    """What the session's children are told."""
    parent = parent_in(session.to_env({}))
    assert parent is not None
    return parent


def told(parent: Parent) -> dict[str, str]:
    """An environment that speaks of *parent*."""
    environ = with_parent({}, parent)
    assert environ is not None
    return environ


def names(capture: Capture) -> list[str]:
    """The types of the events that were delivered, in order; without reports of losses."""
    return [
        type(event).__name__
        for event in capture.events()
        if not isinstance(event, trimaran.ErrorEvent)
    ]


class Child:
    """A child in a task of its own, which leaves when it is told to."""

    def __init__(self, session: trimaran.Session) -> None:
        self.session = session
        self._leave = trio.Event()
        self._left = trio.Event()

    @classmethod
    async def of(cls, environ: dict[str, str], nursery: trio.Nursery) -> Child:
        """One that has attached."""
        child: Child = await nursery.start(cls._live, environ)
        return child

    @classmethod
    async def _live(cls, environ: dict[str, str], *, task_status: trio.TaskStatus[Child]) -> None:
        async with trimaran.attach(environ=environ) as session:
            child = cls(session)
            task_status.started(child)
            await child._leave.wait()
        child._left.set()

    async def leave(self) -> trimaran.Statistics:
        """What its books say when it has left."""
        self._leave.set()
        await self._left.wait()
        return self.session.statistics()


async def test_a_session_waits_for_the_children_that_are_there(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """In the background, while they have something to say; its end comes after theirs."""
    async with home.open(capture, drain_timeout=10.0) as telemetry:
        async with telemetry.session() as session:
            child = await Child.of(session.to_env({}), nursery)
        left_at = trio.current_time()
        session.track(INIT)
        await session.send(INIT)
        await trio.sleep(3)
        child.session.track(INIT)
        assert (await child.leave()).delivered == 1
        await session.flush()
        assert trio.current_time() - left_at == pytest.approx(3, abs=0.5)

    assert names(capture) == ["SessionStart", "Command", "SessionEnd"]
    (end,) = capture.events(trimaran.SessionEnd)
    assert end.duration_ms == pytest.approx(3000, abs=500)
    assert session.statistics().dropped == {"closed": 2}


async def test_a_child_that_goes_on_has_its_events_counted_as_closed(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Once the session's time for it is over, in every way to come later."""
    async with home.open(capture, drain_timeout=10.0) as telemetry:
        async with telemetry.session() as session:
            environ = session.to_env({})
            child = await Child.of(environ, nursery)
            child.session.track(INIT)
            await child.session.flush()
        await trio.sleep(9)
        assert names(capture) == ["SessionStart", "Command"]
        await trio.sleep(2)
        child.session.track(INIT)
        books = await child.leave()
        for late in environ, session.to_env({}):
            async with trimaran.attach(environ=late) as another:
                another.track(INIT)
            assert another.statistics().dropped == {"closed": 1}

    assert names(capture) == ["SessionStart", "Command", "SessionEnd"]
    assert (books.delivered, books.dropped) == (1, {"closed": 1})


async def test_children_have_half_of_the_time_in_which_the_telemetry_drains(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """While they are in the middle of something; so that what they hand over at the last moment
    gets out, too.
    """
    async with home.open(capture, drain_timeout=10.0) as telemetry:
        async with telemetry.session() as session:
            child = await Child.of(session.to_env({}), nursery)
        child.session.track(INIT)
        await child.session.flush()
        call = child.session.bridge_call("endless")
        call.__enter__()
        left_at = trio.current_time()

    assert trio.current_time() - left_at == pytest.approx(5, abs=0.5)
    assert names(capture) == ["SessionStart", "Command", "SessionEnd"]
    child.session.track(INIT)
    assert (await child.leave()).dropped == {"closed": 1}


async def test_a_session_that_is_open_when_the_telemetry_is_left_waits_no_longer(
    home: Home, capture: Capture, autojump_clock: trio.testing.MockClock
) -> None:
    """Its children have the same half."""
    left_at = 0.0
    async with trio.open_nursery() as nursery:
        async with home.open(capture, drain_timeout=10.0) as telemetry:

            async def use(*, task_status: trio.TaskStatus[None]) -> None:
                async with telemetry.session() as session:
                    async with trimaran.attach(environ=session.to_env({})) as child:
                        with child.bridge_call("long"):
                            task_status.started()
                            await trio.sleep(100)

            await nursery.start(use)
            left_at = trio.current_time()
        assert trio.current_time() - left_at == pytest.approx(5, abs=0.5)
        nursery.cancel_scope.cancel()

    assert names(capture) == ["SessionStart", "SessionEnd"]


async def test_without_children_nobody_waits(
    home: Home, capture: Capture, autojump_clock: trio.testing.MockClock
) -> None:
    """Neither for those that never came, nor for those that have left."""
    async with home.open(capture) as telemetry:
        async with telemetry.session() as never:
            never.to_env({})
        async with telemetry.session() as left:
            async with trimaran.attach(environ=left.to_env({})):
                pass

    assert trio.current_time() < 0.5
    assert names(capture).count("SessionEnd") == 2


async def test_the_socket_goes_with_a_session_that_is_cut_off(
    home: Home, autojump_clock: trio.testing.MockClock
) -> None:
    """By the deadline of a telemetry whose endpoint hangs; the fixture looks for what is left."""
    async with home.open(ScriptedTransport([float("inf")]), drain_timeout=1.0) as telemetry:
        async with telemetry.session() as session:
            async with trimaran.attach(environ=session.to_env({})) as child:
                child.track(INIT)
        assert home.sockets() == []

    books = session.statistics()
    assert books.dropped == {"drain_timeout": 3}
    assert books.from_children == 1


async def test_the_socket_goes_with_a_bug(
    home: Home, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stage of the session; its children are told that it is over."""

    def bug(*_args: object, **_named: object) -> None:
        raise RuntimeError("mine")

    settings = trimaran.Settings()
    async with (
        trimaran.open_telemetry(
            "test", environ=home.environ, settings=settings, transport=capture
        ) as telemetry,
        telemetry.session() as session,
    ):
        async with trimaran.attach(environ=session.to_env({})) as child:
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(batcher, "body", bug)
            session.track(INIT)
            await session.flush()
            assert home.sockets() == []
            monkeypatch.undo()
            child.track(INIT)

    assert session.statistics().dropped["bug"] >= 1
    assert child.statistics().dropped == {"closed": 1}


async def test_a_session_opened_too_late_takes_no_children(home: Home, capture: Capture) -> None:
    """Its telemetry is over; no socket is made for it."""
    async with home.open(capture) as telemetry:
        pass
    async with telemetry.session() as session:
        parent = parent_of(session)
        assert (parent.is_over, parent.socket) == (True, None)
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.track(INIT)

    assert child.statistics().dropped == {"closed": 1}


async def pid_of_nobody() -> int:
    """Of a process that has ended."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, ["true"])
    pid: int = process.pid
    return pid


async def gone(session: trimaran.Session) -> Parent:
    """A parent that has died, and whose socket nobody listens at: the file is still there."""
    program = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "import os; os.kill(os.getpid(), 9)"
    )
    parent = parent_of(session)
    path = f"{parent.socket}x"
    with trio.fail_after(PATIENCE):
        await trio.run_process([sys.executable, "-c", program, path], check=False)
    return replace(parent, socket=path)


@pytest.mark.parametrize("is_found", [True, False])
async def test_when_the_parent_has_died_an_anonymous_child_delivers_itself(
    is_found: bool, home: Home, capture: Capture
) -> None:
    """Under the session's id, and as its own host: whether a socket was left or not."""
    direct = Capture()
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test", version="1.2", environ=home.environ, transport=capture
        ) as telemetry,
        telemetry.session(project_id="p", parent_session_id="whole") as session,
    ):
        parent = await gone(session)
        if not is_found:
            Path(str(parent.socket)).unlink()
            parent = replace(parent, pid=await pid_of_nobody())
        async with trimaran.attach(
            environ=told(parent), transport=direct, on_problem=problems.append
        ) as child:
            with child.tool_call("bash"):
                pass
        if is_found:
            Path(str(parent.socket)).unlink()

    (batch,) = direct.batches()
    assert (batch.session_id, batch.cli_version, batch.project_id) == (session.id, "1.2", "p")
    assert direct.requests[0].headers["trimaran-parent-session"] == "whole"
    (call,) = direct.events(trimaran.ToolCall)
    assert call.sequence_index == 0
    assert [problem.name for problem in problems] == ["telemetry parent gone"]
    assert child.statistics().delivered == 1


ACCOUNT = trimaran.StaticAccount("https://account.test", "secret", email="a@b.test")


class Fails:
    """An account that cannot be looked up."""

    async def account(self) -> trimaran.Account | None:
        raise OSError("no such disk")

    async def token(self, *, refresh: bool) -> str | None:
        return None


@pytest.mark.parametrize(
    ("tier", "account", "becomes"),
    [
        ("authenticated", None, "unauthorized"),
        ("authenticated", ACCOUNT, "https://account.test"),
        ("authenticated", Fails(), "unauthorized"),
        ("anonymous", ACCOUNT, "https://account.test"),
        ("anonymous", Fails(), "unauthorized"),
        ("anonymous", None, "https://x.test"),
    ],
)
async def test_who_may_deliver_when_there_is_no_parent(
    tier: str, account: trimaran.AccountProvider | None, becomes: str
) -> None:
    """Whoever is logged in, and else what the parent's tier says; never the tier below."""
    direct = Capture()
    parent = Parent(
        tier=trimaran.Tier(tier),
        app="test",
        session_id="s",
        url="https://x.test" if tier == "anonymous" else None,
    )
    environ = told(parent) | {"TEST_TELEMETRY_URL": "https://other.test"}
    async with trimaran.attach(environ=environ, account=account, transport=direct) as child:
        child.track(INIT)

    if becomes == "unauthorized":
        assert child.statistics().dropped == {"unauthorized": 1}
        assert direct.requests == []
    else:
        (request,) = direct.requests
        assert request.url.startswith(becomes)
        assert request.headers.get("authorization") == (
            "Bearer secret" if account is ACCOUNT else None
        )
        (batch,) = direct.batches()
        assert batch.user_email == ("a@b.test" if account is ACCOUNT else "")


async def test_a_connection_that_is_broken_off_is_made_again(home: Home, capture: Capture) -> None:
    """The child sees it when it hands over the next batch, and loses nothing."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.track(INIT)
            await child.flush()
            assert isinstance(session, LiveSession)
            (channel,) = session._children._channels
            channel._socket.shutdown(2)
            child.track(INIT)
            await child.flush()

    assert child.statistics().delivered == 2
    assert session.statistics().from_children == 2


async def sending(session: trimaran.Session) -> ProcessSendChannel:
    """A channel to a session, to say there what one likes."""
    return ProcessSendChannel(await connect(Path(str(parent_of(session).socket))))


def batch(*commands: str) -> bytes:
    """The body of a batch."""
    events = ",".join(f'{{"type":"command","command_name":"{name}"}}' for name in commands)
    return f'{{"events":[{events}]}}'.encode()


async def test_a_batch_that_is_handed_over_again_is_taken_once(
    home: Home, capture: Capture
) -> None:
    """Over the same connection, and over another one."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        with await sending(session) as first, await sending(session) as second:
            for key, name in ("a-0", "a"), ("a-0", "a"), ("a-1", "b"), ("b-1", "c"):
                assert await first.ask(frame_of(key, batch(name))) == b""
            assert await second.ask(frame_of("a-1", batch("b"))) == b""
            assert await second.ask(frame_of("a-2", batch("d"))) == b""

    assert [event.command_name for event in capture.events(trimaran.Command)] == list("abcd")


async def test_a_batch_that_is_asked_for_again_while_it_is_taken_is_taken_once(
    home: Home, autojump_clock: trio.testing.MockClock
) -> None:
    """The second connection waits for the first, which still has it in hand."""
    transport = Capture([5.0])
    async with (
        home.open(transport, mailbox_events=1, backlog_events=1, batch_events=1) as telemetry,
        telemetry.session() as session,
        trio.open_nursery() as nursery,
    ):
        channels = [await sending(session) for _ in range(2)]
        for channel in channels:
            nursery.start_soon(channel.ask, frame_of("a-0", batch(*"abcdefgh")))
        await trio.sleep(20)
        await channels[1].ask(frame_of("a-1", batch("i")))
        for channel in channels:
            channel.close()

    assert [event.command_name for event in transport.events(trimaran.Command)] == list("abcdefghi")


@pytest.mark.parametrize(
    "said", [b"nonsense", b"trimaran 2 a-0\n{}", frame_of("a-0", b"{"), frame_of("a-0", b"[]")]
)
async def test_what_is_no_batch_costs_the_child_its_connection(
    said: bytes, home: Home, capture: Capture
) -> None:
    """And nobody else anything; it is told once."""
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test", environ=home.environ, transport=capture, on_problem=problems.append
        ) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(2):
            with await sending(session) as channel, pytest.raises(trio.BrokenResourceError):
                await channel.ask(said)
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.track(INIT)

    assert [problem.name for problem in problems] == ["telemetry child cut off"]
    assert names(capture) == ["SessionStart", "Command", "SessionEnd"]


async def test_a_frame_that_is_too_large_costs_the_child_its_connection(
    home: Home, capture: Capture
) -> None:
    """It is not even read."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        stream = await connect(Path(str(parent_of(session).socket)))
        await stream.send_all(b"\x01\xff\xff\xff\xff" + b"x" * 100)
        assert b"" in [await stream.receive_some() for _ in range(2)]
        await stream.aclose()

    assert names(capture) == ["SessionStart", "SessionEnd"]


async def test_half_a_batch_is_no_batch(home: Home, capture: Capture) -> None:
    """A child that dies in the middle of one leaves nothing of it."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        stream = await connect(Path(str(parent_of(session).socket)))
        await stream.send_all(b"\x01\x00\x00\x01\x00" + frame_of("a-0", batch("a")))
        await stream.aclose()
        await trio.sleep(0.01)

    assert names(capture) == ["SessionStart", "SessionEnd"]


async def test_without_descriptors_children_are_let_in_later(
    home: Home,
    capture: Capture,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is told; nobody is turned away."""
    problems: list[trimaran.Problem] = []
    accept = ProcessListener.accept
    failures = iter([OSError(24, "Too many open files")] * 3)

    async def fails_at_first(self: ProcessListener) -> trio.SocketStream:
        for failure in failures:
            raise failure
        return await accept(self)

    monkeypatch.setattr(ProcessListener, "accept", fails_at_first)
    async with (
        trimaran.open_telemetry(
            "test", environ=home.environ, transport=capture, on_problem=problems.append
        ) as telemetry,
        telemetry.session() as session,
    ):
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.track(INIT)

    assert child.statistics().delivered == 1
    assert [problem.name for problem in problems] == ["telemetry child not accepted"]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_bug_in_taking_costs_one_connection(
    strict: bool, home: Home, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict, it comes out."""
    problems: list[trimaran.Problem] = []

    def bug(*_args: object, **_named: object) -> None:
        raise RuntimeError("mine")

    monkeypatch.setattr(_children, "tracked_events", bug)

    async def use() -> None:
        async with (
            trimaran.open_telemetry(
                "test",
                environ=home.environ,
                transport=capture,
                settings=trimaran.Settings(strict=strict),
                on_problem=problems.append,
            ) as telemetry,
            telemetry.session() as session,
        ):
            with await sending(session) as channel, pytest.raises(trio.BrokenResourceError):
                await channel.ask(frame_of("a-0", batch("a")))

    if strict:
        with pytest.raises(RuntimeError, match="mine"):
            await use()
    else:
        await use()
        assert [problem.name for problem in problems] == ["telemetry failed"]
        assert names(capture) == ["SessionStart", "SessionEnd"]


async def forget(_event: trimaran.Event, _place: object) -> None:
    """Takes everything."""
    await trio.lowlevel.checkpoint()


def test_what_was_never_opened_is_abandoned_without_a_trace() -> None:
    """Once, and once more."""
    children = Children(
        "s",
        take=forget,
        refuse=lambda: None,
        is_withdrawn=lambda: False,
        diagnostics=None,  # type: ignore[arg-type]
        environ={},
        strict=True,
    )

    children.abandon()
    children.abandon()

    assert children.place() is None
    assert not children.is_to_run()
