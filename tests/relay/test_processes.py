"""Agents and their relay as processes: who waits for whom, who is there, what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio

from conftest import LoopbackEndpoint
from faults.served import LONG, environment, line_of, rest_of
from patience import PATIENCE

from .world import World, hung_endpoint, refused_url, until

AT_ONCE = 50
IN_A_ROW = 500


async def test_an_exit_waits_for_no_network(
    world: World, endpoint: LoopbackEndpoint, nursery: trio.Nursery
) -> None:
    """Up, hung or down: the agent leaves as soon as the relay has its events, which are on
    disk then; those for the endpoint that is up arrive.
    """
    world.idle_timeout = LONG
    urls = {
        "up": endpoint.url,
        "hung": await hung_endpoint(nursery),
        "down": refused_url(),
    }
    for name, url in urls.items():
        ended = await world.agent(url, name=name, request_timeout=PATIENCE)

        assert ended.leaving < PATIENCE / 3, "the network takes a minute, or for ever"
        assert (ended.tracked, ended.handed_over, ended.pending) == (8, 8, 8)
        assert (ended.dropped, ended.problems) == ({}, [])
    await until(lambda: len(endpoint.of("up")) == 8)
    assert [event.get("command_name") for event in endpoint.of("up")] == [
        None, "0", "1", "2", "3", "4", "last", None,
    ]  # fmt: skip
    assert len(world.relays()) == 1


async def test_fifty_agents_make_one_relay(world: World, endpoint: LoopbackEndpoint) -> None:
    """They start together, and find or start the same one; all that they say arrives."""
    world.idle_timeout = LONG  # however long they keep each other from the processor
    seen: set[int] = set()
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                seen.update(world.relays())
                await trio.sleep(0.01)

        async with trio.open_nursery() as agents:
            nursery.start_soon(watch)
            for number in range(AT_ONCE):
                agents.start_soon(_agent_that_hands_over, world, endpoint.url, f"a{number}")
        nursery.cancel_scope.cancel()
    await until(lambda: len(endpoint.events) >= 8 * AT_ONCE)

    assert seen == set(world.relays())
    assert len(seen) == 1
    for number in range(AT_ONCE):
        assert len(endpoint.of(f"a{number}")) == 8


async def _agent_that_hands_over(world: World, url: str, name: str) -> None:
    # On a busy machine fifty interpreters take their time, also from the endpoint.
    ended = await world.agent(url, name=name, drain_timeout=LONG, request_timeout=LONG)
    assert (ended.handed_over, ended.problems) == (8, [])


async def test_many_agents_in_a_row_leave_nothing(world: World, endpoint: LoopbackEndpoint) -> None:
    """However many, one process serves them, and that ends by itself: no process, lock, socket
    or batch stays, and no descriptor or thread with whoever runs them.
    """
    code = _MANY.format(count=IN_A_ROW)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", code, msgspec.json.encode(world.orders(endpoint.url)).decode()],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        assert await line_of(process) == b"still there\n"
        left = world.relays()
        socket = os.readlink(world.directory / "relay.at")  # noqa: PTH115 - it may be gone
        assert len(left) == 1
        assert Path(socket).name == f"{left[0]}.relay"
    finally:
        await process.stdin.aclose()
        with trio.fail_after(LONG):
            await rest_of(process)
            assert await process.wait() == 0

    await world.gone()

    assert len({request.batch["session_id"] for request in endpoint.requests}) == IN_A_ROW
    assert len(endpoint.events) == 3 * IN_A_ROW
    assert not Path(socket).exists()
    assert world.files() == {"spool.db"}


_MANY = """
import os, sys, threading
import msgspec, trio
from relay.agent import Orders, be_patient, main
be_patient()
orders = msgspec.json.decode(sys.argv[1], type=Orders)
before = None
for number in range({count}):
    orders = msgspec.structs.replace(
        orders, name=str(number), events=0, is_watched=number == {count} - 1
    )
    ended = trio.run(main, orders)
    assert (ended.handed_over, ended.problems) == (3, []), ended
    held = (len(os.listdir("/dev/fd")), threading.active_count())
    before = before or held  # what the first left was imported
    # A thread that trio keeps for its next call ends when that does not come for a while.
    assert held[0] == before[0] and held[1] <= before[1], (number, held, before)
"""


async def test_a_killed_relay_loses_nothing(world: World, endpoint: LoopbackEndpoint) -> None:
    """What it had on its disk, the next one delivers, which the next agent starts."""
    endpoint.always(503)
    await world.agent(endpoint.url, name="first")
    assert world.kill() == 1
    await world.gone()

    endpoint.always(200)
    ended = await world.agent(endpoint.url, name="second")

    assert ended.handed_over == 8
    await world.gone()
    answered = [request for request in endpoint.requests if request.batch["session_id"] == "first"]
    assert len(answered[-1].events) + len(answered[-2].events) == 8
    assert world.files() == {"spool.db"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_time(
    world: World, nursery: trio.Nursery, number: signal.Signals
) -> None:
    """Whatever the endpoint does; all stays on disk, and nothing else of it."""
    await world.agent(await hung_endpoint(nursery), request_timeout=PATIENCE)
    (relay,) = world.relays()

    os.kill(relay, number)

    await world.gone(within=PATIENCE / 2)
    assert "relay.lock" not in world.files()
    assert "relay.at" not in world.files()


async def test_a_relay_belongs_to_nobody(world: World, endpoint: LoopbackEndpoint) -> None:
    """No terminal, no descriptor and no directory of the agent's, and nothing of its
    environment that is not needed to run.
    """
    world.idle_timeout = LONG
    orders = msgspec.json.encode(world.orders(endpoint.url)).decode()
    read, write = os.pipe()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "relay.agent", orders],
        env=environment(SECRET_OF_THE_AGENT="s3same"),
        stdout=subprocess.PIPE,
        pass_fds=[read],
    )
    with trio.fail_after(LONG):
        await process.wait()
    os.close(read)
    os.close(write)
    assert process.stdout is not None
    await process.stdout.aclose()
    (relay,) = world.relays()
    of_relay = Path(f"/proc/{relay}")

    opened: dict[int, str] = {}
    for each in (of_relay / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            opened[int(each.name)] = os.readlink(each)  # noqa: PTH115 - what it says
    assert {opened.pop(number) for number in (0, 1, 2)} == {"/dev/null"}
    assert not [name for name in opened.values() if name.startswith("pipe:")]
    assert (of_relay / "cwd").readlink() == Path("/")
    assert b"s3same" not in (of_relay / "environ").read_bytes()
    fields = (of_relay / "stat").read_text().rpartition(")")[2].split()
    session, terminal = int(fields[3]), int(fields[4])
    assert session not in {0, os.getsid(0)}
    assert terminal == 0
    os.kill(relay, signal.SIGTERM)
    await world.gone()


async def test_switched_off_nothing_is_started(world: World, endpoint: LoopbackEndpoint) -> None:
    """An agent that may not send looks for no relay, and makes no directory for one."""
    orders = msgspec.json.encode(world.orders(endpoint.url)).decode()
    with trio.fail_after(LONG):
        await trio.run_process(
            [sys.executable, "-c", _OFF, orders], env=environment(), capture_stdout=True
        )

    assert world.relays() == []
    assert not world.directory.exists()


_OFF = """
import sys, msgspec, trio, trimaran
from relay.agent import Orders
orders = msgspec.json.decode(sys.argv[1], type=Orders)
async def main():
    environ = {"RELAYED_TELEMETRY_URL": orders.url, "DO_NOT_TRACK": "1"}
    settings = trimaran.Settings(relay=orders.directory)
    async with trimaran.open_telemetry("relayed", environ=environ, settings=settings) as telemetry:
        async with telemetry.session() as session:
            session.command("x")
trio.run(main)
assert "trimaran._relay" not in sys.modules
"""
