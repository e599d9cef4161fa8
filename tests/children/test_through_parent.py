"""The way to a parent that is not as it should be, and to the endpoint when there is none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from msgspec.structs import replace

import trimaran
from trimaran._endpoint import through_parent
from trimaran._environment import PROTOCOL, Parent, parent_in, with_parent
from trimaran._handover import ATTACHED
from trimaran._process import ProcessReceiveChannel, connect, listening
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from pathlib import Path

    from children.conftest import Home

INIT = trimaran.Command(command_name="init")


def told(
    socket: str | None, *, pid: int = 1, tier: str = "anonymous", calls_last: bool = False
) -> dict[str, str]:
    """An environment that speaks of a parent at *socket*."""
    parent = Parent(
        protocol=PROTOCOL,
        tier=trimaran.Tier(tier),
        app="test",
        session_id="s",
        pid=pid,
        socket=socket,
        calls_last=calls_last,
        url="https://x.test" if tier == "anonymous" else None,
    )
    environ = with_parent({}, parent)
    assert environ is not None
    return environ


@pytest.mark.parametrize("calls_last", [False, True])
async def test_a_parent_that_breaks_off_is_asked_again(
    calls_last: bool,
    home: Home,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """At once, and then after a pause, as an endpoint that breaks off. One that makes a last call
    is told at first that it is answered; another one would not understand that.
    """
    taken: list[bytes] = []
    with listening("parent", home.environ) as listener:

        async def serve() -> None:
            for _ in range(5):
                await (await listener.accept()).aclose()
            with ProcessReceiveChannel(await listener.accept()) as channel:
                taken.extend([frame async for frame in channel])

        nursery.start_soon(serve)
        async with trimaran.attach(
            environ=told(str(listener.path), calls_last=calls_last),
            settings=trimaran.Settings(drain_timeout=10.0),
        ) as child:
            child.error("now")
            await child.flush(timeout=math.inf)
        await trio.testing.wait_all_tasks_blocked()

    assert child.statistics().delivered == 1
    assert len(taken) == 1 + calls_last
    assert taken[:-1] == [ATTACHED] * calls_last


async def test_a_child_without_descriptors_tries_again(
    home: Home,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """That says nothing of the parent."""
    failures = iter([OSError(24, "Too many open files")] * 3)

    async def fails_at_first(path: Path) -> trio.SocketStream:
        for failure in failures:
            raise failure
        return await connect(path)

    monkeypatch.setattr(through_parent, "connect", fails_at_first)
    with listening("parent", home.environ) as listener:

        async def serve() -> None:
            with ProcessReceiveChannel(await listener.accept()) as channel:
                async for _ in channel:
                    pass

        nursery.start_soon(serve)
        async with trimaran.attach(environ=told(str(listener.path))) as child:
            child.error("now")
            await child.flush(timeout=math.inf)

    assert child.statistics().delivered == 1


async def test_a_parent_that_lets_nobody_in_does_not_hold_up_the_child(
    home: Home, autojump_clock: trio.testing.MockClock
) -> None:
    """One that is stopped, say: the block is entered, and left in time."""
    with listening("parent", home.environ) as listener:
        async with trimaran.attach(environ=told(str(listener.path))) as child:
            child.error("now")
        await trio.lowlevel.checkpoint()

    assert trio.current_time() < 2.5
    assert child.statistics().dropped == {"drain_timeout": 1}


@pytest.mark.parametrize(
    ("pid", "becomes"), [(1, {"closed": 1}), (1 << 60, {"closed": 1}), ((1 << 31) - 1, {})]
)
async def test_a_socket_that_is_gone_says_that_the_session_is_over(
    pid: int, becomes: dict[str, int], home: Home
) -> None:
    """As long as its process lives; without that, that it has died."""
    direct = Capture()
    environ = told(f"{home.directory}/gone", pid=pid)
    async with trimaran.attach(environ=environ, transport=direct) as child:
        child.track(INIT)

    books = child.statistics()
    assert (books.dropped, books.delivered) == (becomes, 1 - len(becomes))


async def test_a_token_that_is_refused_on_the_direct_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Is held against the child's own account, as in any telemetry."""
    transport = ScriptedTransport([trimaran.Answer(401)] * 1000)
    async with trimaran.attach(
        environ=told(None, tier="authenticated"),
        account=trimaran.StaticAccount("https://account.test", "secret"),
        transport=transport,
    ) as child:
        child.error("now")

    assert child.statistics().dropped == {"unauthorized": 1}
    assert transport.requests


async def test_a_child_goes_no_other_way_than_its_parents_host_has_chosen(
    home: Home, capture: Capture
) -> None:
    """Where that brought a transport, what the library itself would send is not wanted."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        parent = parent_in(session.to_env({}))
    assert parent is not None
    assert parent.has_own_transport
    alone = with_parent({}, replace(parent, socket=None))
    async with trimaran.attach(environ=alone) as child:
        child.track(INIT)
    async with trimaran.attach(environ=alone, transport=capture) as equipped:
        equipped.track(INIT)

    assert child.statistics().dropped == {"unauthorized": 1}
    assert equipped.statistics().delivered == 1


async def test_a_child_gathers_events_for_the_endpoint_and_hardly_for_its_parent(
    home: Home, capture: Capture, autojump_clock: trio.testing.MockClock
) -> None:
    """A request costs more than a handover; less is never made of what the settings say."""
    direct = Capture()
    async with home.open(capture) as telemetry, telemetry.session() as session:
        settings = trimaran.Settings(flush_interval=0.01)
        async with (
            trimaran.attach(environ=session.to_env({})) as slow,
            trimaran.attach(environ=session.to_env({}), settings=settings) as quick,
        ):
            for child in slow, quick:
                child.track(INIT)
            await trio.sleep(0.02)
            assert session.statistics().from_children == 1
            await trio.sleep(0.04)
            assert session.statistics().from_children == 2
    async with trimaran.attach(environ=told(None), transport=direct) as alone:
        alone.track(INIT)
        await trio.sleep(0.06)
        assert len(direct.requests) == 1
        alone.track(INIT)
        await trio.sleep(4.9)
        assert len(direct.requests) == 1
        await trio.sleep(0.2)
        assert len(direct.requests) == 2


async def test_an_account_that_nobody_needs_is_told_of_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A batch that nobody may send is given up without a wait."""
    problems: list[trimaran.Problem] = []
    async with trimaran.attach(
        environ=told(None, tier="authenticated"), on_problem=problems.append
    ) as child:
        for _ in range(3):
            child.error("now")
            await child.flush()

    assert trio.current_time() < 0.1
    assert child.statistics().dropped == {"unauthorized": 3}
    assert [problem.name for problem in problems] == ["telemetry parent gone"]
