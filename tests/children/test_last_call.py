"""What a session's end is to children that go on: they are asked for what there is to say.

Parent and child are tasks of one process here, with a real socket between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import trimaran
from trimaran._children import Children
from trimaran._environment import parent_in
from trimaran._handover import ATTACHED
from trimaran._open_blocks import OpenBlocks
from trimaran._process import ProcessSendChannel, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from children.conftest import Home
    from trimaran.testing import Capture

INIT = trimaran.Command(command_name="init")


def names(capture: Capture) -> list[str]:
    """The types of the events that were delivered, in order."""
    return [type(event).__name__ for event in capture.events()]


async def live(
    environ: dict[str, str],
    until: trio.Event,
    *,
    settings: trimaran.Settings | None = None,
    task_status: trio.TaskStatus[trimaran.Session],
) -> None:
    """A child that goes on until it is told otherwise."""
    async with trimaran.attach(environ=environ, settings=settings) as child:
        task_status.started(child)
        await until.wait()


async def channel_to(session: trimaran.Session) -> ProcessSendChannel:
    """A child that says what a test likes."""
    parent = parent_in(session.to_env({}))
    assert parent is not None
    assert parent.calls_last
    return ProcessSendChannel(await connect(Path(str(parent.socket))))


async def test_what_was_said_before_the_end_is_in_and_nobody_waits_for_more(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Of a child that goes on, and of one that gathers what it says for longer."""
    done = trio.Event()
    async with home.open(capture) as telemetry:
        async with telemetry.session() as session:
            environ = session.to_env({})
            child: trimaran.Session = await nursery.start(live, environ, done)
            for _ in range(30):
                child.track(INIT)
                await trio.sleep(0.1)
            child.track(INIT)
            left_at = trio.current_time()

    assert trio.current_time() - left_at < 0.04
    assert names(capture) == ["SessionStart", *["Command"] * 31, "SessionEnd"]
    assert session.statistics().from_children == 31
    child.track(INIT)
    await child.flush()
    assert (child.statistics().delivered, child.statistics().dropped) == (31, {"closed": 1})
    done.set()


async def test_a_child_that_says_nothing_costs_no_time(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nor do many of them; also where the session is still open when the telemetry is left."""
    done = trio.Event()

    async def use(
        telemetry: trimaran.Telemetry, *, task_status: trio.TaskStatus[trimaran.Session]
    ) -> None:
        async with telemetry.session() as session:
            task_status.started(session)
            await done.wait()

    async with home.open(capture) as telemetry:
        longer: trimaran.Session = await nursery.start(use, telemetry)
        async with telemetry.session() as session:
            for each in longer, session:
                for _ in range(5):
                    await nursery.start(live, each.to_env({}), done)
        left_at = trio.current_time()

    assert trio.current_time() - left_at == pytest.approx(0.1)  # for the task of the other session
    assert names(capture).count("SessionEnd") == 2
    done.set()


def model_call(child: trimaran.Session) -> trimaran.GenerationMeasure:
    return child.generation()


def tool_call(child: trimaran.Session) -> trimaran.ToolMeasure:
    return child.tool_call("bash")


def bridge_call(child: trimaran.Session) -> trimaran.BridgeMeasure:
    return child.bridge_call("sql.execute")


@pytest.mark.parametrize("block", [model_call, tool_call, bridge_call])
async def test_a_child_in_the_middle_of_something_is_waited_for(
    block: Callable[
        [trimaran.Session],
        trimaran.GenerationMeasure | trimaran.ToolMeasure | trimaran.BridgeMeasure,
    ],
    home: Home,
    capture: Capture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it comes to is in the session, and then nobody waits for more."""
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        async with home.open(capture, drain_timeout=10.0) as telemetry:
            async with telemetry.session() as session:
                child: trimaran.Session = await nursery.start(live, session.to_env({}), done)

                async def work() -> None:
                    with block(child):
                        child.track(INIT)
                        await trio.sleep(3)

                nursery.start_soon(work)
                await trio.testing.wait_all_tasks_blocked()
            left_at = trio.current_time()

        assert trio.current_time() - left_at == pytest.approx(3, abs=0.1)
        assert session.statistics().from_children == 2
        assert names(capture)[-1] == "SessionEnd"
        done.set()


@pytest.mark.parametrize("is_for", [(-1.0, 0.5), (0.5, 2.0)])
async def test_what_ends_while_the_rest_is_handed_over_is_in(
    is_for: tuple[float, float],
    home: Home,
    capture: Capture,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The parent takes its time: what a child was in the middle of when it was asked ends
    meanwhile; or it begins something then that is under way when the parent has it all.
    """
    take, done = Children._take, trio.Event()
    begins, ends = is_for

    async def take_late(self: Children, child: str, key: str, body: bytes) -> None:
        await trio.sleep(1)
        await take(self, child, key, body)

    async def work(child: trimaran.Session, asked_at: float) -> None:
        await trio.sleep_until(asked_at + begins)
        with child.tool_call("bash"):
            await trio.sleep_until(asked_at + ends)

    monkeypatch.setattr(Children, "_take", take_late)
    async with trio.open_nursery() as nursery:
        async with home.open(capture, drain_timeout=10.0) as telemetry:
            async with telemetry.session() as session:
                child: trimaran.Session = await nursery.start(live, session.to_env({}), done)
                asked_at = trio.current_time() + 2
                nursery.start_soon(work, child, asked_at)
                await trio.sleep_until(asked_at)
                child.track(INIT)
        done.set()

    assert names(capture) == ["SessionStart", "Command", "ToolCall", "SessionEnd"]
    assert child.statistics().dropped == {}


def test_a_block_is_open_until_its_event_is_tracked() -> None:
    """Who looks from another thread meanwhile would think that all had been said."""
    blocks, seen = OpenBlocks(), list[bool]()

    def track(_event: trimaran.Event, _place: object = None) -> None:
        seen.append(bool(blocks))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with trimaran.BridgeMeasure(track, lambda: 0.0, "sql.execute", blocks.block(None)):
            pass

    assert seen == [True]
    assert not blocks


async def test_a_child_that_cannot_say_it_all_is_waited_for_in_vain_no_longer_than_before(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """One that does not answer, and one of a version that knows nothing of a last call."""
    for introduction in [ATTACHED], []:
        async with home.open(capture, drain_timeout=10.0) as telemetry:
            async with telemetry.session() as session:
                channel = await channel_to(session)
                for word in introduction:
                    await channel.send(word)
                await trio.testing.wait_all_tasks_blocked()
            left_at = trio.current_time()

        assert trio.current_time() - left_at == pytest.approx(5, abs=0.1)
        with channel, pytest.raises(trio.BrokenResourceError):
            await channel.ask(b"")


async def test_a_child_that_comes_with_the_end_is_asked_as_well(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """It was let in, and says only then that it can answer."""
    async with home.open(capture, drain_timeout=10.0) as telemetry:
        async with telemetry.session() as session:
            channel = await channel_to(session)
            await trio.testing.wait_all_tasks_blocked()

        async def introduce() -> None:
            await trio.sleep(1)
            await channel.send(ATTACHED)
            await channel.last_call()
            channel.close()

        nursery.start_soon(introduce)
        left_at = trio.current_time()

    assert trio.current_time() - left_at == pytest.approx(1, abs=0.1)


async def test_while_the_telemetry_is_open_children_may_go_on(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nobody waits for the session's end then: they are asked when somebody does."""
    done = trio.Event()
    async with home.open(capture, drain_timeout=10.0) as telemetry:
        async with telemetry.session() as session:
            child: trimaran.Session = await nursery.start(live, session.to_env({}), done)
        await trio.sleep(3)
        child.track(INIT)
        left_at = trio.current_time()

    assert trio.current_time() - left_at < 0.04
    assert names(capture) == ["SessionStart", "Command", "SessionEnd"]
    done.set()


async def test_a_call_that_is_broken_off_is_answered_over_the_next_connection(
    home: Home, capture: Capture, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A child that has lost its first connection is not waited for either."""
    done = trio.Event()
    async with home.open(capture, drain_timeout=10.0) as telemetry:
        async with telemetry.session() as session:
            child: trimaran.Session = await nursery.start(live, session.to_env({}), done)
            (channel,) = session._children._channels  # type: ignore[attr-defined]
            channel._socket.shutdown(2)
            await trio.testing.wait_all_tasks_blocked()
            child.track(INIT)
            await child.flush()
        left_at = trio.current_time()

    assert trio.current_time() - left_at < 0.04
    assert session.statistics().from_children == 1
    done.set()
