"""A relay that is killed, again and again, while agents send.

In: a seed, for how long or how often. Out: what agents called safe, what the receiver has.
Does not know: how a relay works.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import httpx
import msgspec
import trio

from faults.served import LONG, environment, rest_of
from kill.gate import TROUBLE, WELL, Gate
from kill.worlds import is_whole, stored_in
from trimaran.receiver import Receiver, run_receiver

from .steady import Said, SteadyOrders
from .world import World, open_world

__all__ = ["Killed", "faults_of", "kill_relays"]

AGENTS = 10
MAX_BODY = 10_000
"""Bytes that the receiver takes, so that a full batch has to be halved."""
LONGEST_LIFE = 0.6
"""Seconds of a relay, from when it is seen."""


@dataclass
class Killed:
    """What came of it."""

    kills: int = 0
    said: list[Said] = field(default_factory=list)
    stored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The names of each session's events at the receiver, in order."""
    left_on_disk: int = 0
    left: set[str] = field(default_factory=set)
    """Files in the relay's directory when all is over."""


async def kill_relays(seed: int, folder: Path, *, kills: int, seconds: float = 0.0) -> Killed:
    """Kill *kills* relays at least, and for so many *seconds*; then let one live."""
    random = Random(seed)
    killed = Killed()
    database = folder / "receiver.sqlite"
    with open_world(folder / "relay", idle_timeout=1.0) as world:
        async with trio.open_nursery() as outside:
            receiver: Receiver = await outside.start(
                partial(run_receiver, port=0, database=database, max_body=MAX_BODY)
            )
            port = httpx.URL(receiver.url).port
            assert port is not None
            gate: Gate = await outside.start(Gate(random, port).run)
            url = f"http://127.0.0.1:{gate.port}"
            agents = [
                await _start(world, url, name=f"{seed}a{number}", seed=random.getrandbits(32))
                for number in range(AGENTS)
            ]
            until = trio.current_time() + seconds
            with trio.fail_after(seconds + kills * LONG):
                while killed.kills < kills or trio.current_time() < until:
                    gate.moods = random.choice(TROUBLE)
                    await trio.sleep(random.random() * random.choice([0.02, 0.2, LONGEST_LIFE]))
                    killed.kills += world.kill()
            gate.moods = WELL
            killed.kills += world.kill()  # the next one has not learned to be patient
            async with trio.open_nursery() as nursery:
                for agent in agents:
                    nursery.start_soon(_stop, agent, killed)
            # Somebody has to start the last one, should all have been killed.
            await world.agent(url, name="last", events=0)
            await world.gone(within=4 * LONG)
            outside.cancel_scope.cancel()
        killed.left = world.files()
        with closing(sqlite3.connect(world.directory / "spool.db")) as spool:
            killed.left_on_disk = spool.execute("SELECT count(*) FROM batches").fetchone()[0]
    killed.stored = stored_in(database)
    return killed


async def _start(world: World, url: str, *, name: str, seed: int) -> trio.Process:
    orders = SteadyOrders(agent=world.orders(url, name=name, drain_timeout=LONG), seed=seed)
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "relay.steady", msgspec.json.encode(orders).decode()],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def _stop(agent: trio.Process, killed: Killed) -> None:
    assert agent.stdin is not None
    await agent.stdin.aclose()
    with trio.fail_after(2 * LONG):
        killed.said.append(msgspec.json.decode(await rest_of(agent), type=Said))
        await agent.wait()


def faults_of(killed: Killed) -> list[str]:
    """What is wrong; nothing, if all promises were kept."""
    faults: list[str] = []
    if killed.left_on_disk:
        faults.append(f"{killed.left_on_disk} batches are left on disk")
    if killed.left - {"spool.db"}:
        faults.append(f"there are still {killed.left}")
    for said in killed.said:
        faults += [f"dropped: {said.dropped}"] if said.dropped else []
        for session, safe in said.safe.items():
            names = killed.stored.get(session, [])
            if len(names) < safe:
                faults.append(f"session {session}: {safe} events were safe, {len(names)} arrived")
            # Who had to send for itself may have overtaken what a relay had then.
            ordered = sorted(names, key=_order) if said.problems else list(names)
            if names and not is_whole(ordered):
                faults.append(f"session {session}: not once each and in order: {list(names)}")
    return faults


def _order(name: str) -> int:
    return {"session_start": -1, "session_end": sys.maxsize}.get(name) or int(name)
