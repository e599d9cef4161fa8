"""Agents in processes of their own that share a spool, are killed, and start again.

In: seeds. Out: what went wrong in the world of each, and how often somebody was killed.
Does not know: how an agent works, what the network does.

The seed decides what everybody does and when they are killed. It does not decide what the
operating system makes of that: a world with the same seed is much the same, but not exactly.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import httpx
import msgspec
import trio

from faults.served import LONG, environment, line_of, rest_of
from trimaran.receiver import Receiver, run_receiver

from .agent import BEGUN, LONG_ENOUGH, Orders, Survivor, Wire
from .collector import Collector
from .gate import TROUBLE, WELL, Gate

__all__ = ["World", "faults_of", "run_worlds"]

MAX_BODY = 10_000
"""Bytes that the receiver takes, so that a full batch has to be halved."""
MAX_SPANS = 3 * MAX_BODY
"""Bytes of spans, which say more."""
LONGEST_LIFE = 0.8
"""Seconds, on a machine on which a process begins in :data:`BEGINNING`."""
LONGEST_WAIT = 3.0
"""Seconds there for an agent to reach the point where it is to kill itself."""
BEGINNING = 0.5
"""Seconds; where it takes longer, everything does."""


@dataclass
class World:
    """A directory, those who share it, and what they said before they were killed."""

    seed: int
    wire: Wire = "origin"
    claims: dict[str, int] = field(default_factory=dict)
    """How many events of a session, from the first, were called safe."""
    in_doubt: set[str] = field(default_factory=set)
    """Lives whose disk failed, or whose memory was full."""
    kills: int = 0
    failures: list[str] = field(default_factory=list)
    survivor: Survivor | None = None
    left_on_disk: int = 0
    """Batches in the spool when all is over."""


async def run_worlds(
    seeds: Iterable[int], wire: Wire = "origin"
) -> tuple[list[World], dict[str, list[str]]]:
    """Run the worlds of *seeds*, a few at a time; and what the receiver has in the end.

    The latter are the names of the events of each session, in order.
    """
    worlds: list[World] = []
    processes = trio.CapacityLimiter(2 * (os.cpu_count() or 1))
    at_once = trio.CapacityLimiter(8)

    async def run(seed: int, receiver: int, folder: Path) -> None:
        async with at_once:
            world = World(seed, wire)
            worlds.append(world)
            await _run_world(world, receiver, folder / str(seed), processes)

    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        database = folder / "receiver.sqlite"
        collector = Collector(MAX_SPANS)
        async with trio.open_nursery() as outside:
            if wire == "otlp":
                await outside.start(collector.run)
                port = collector.port
            else:
                port = await _receive(outside, database)
            async with trio.open_nursery() as nursery:
                for seed in seeds:
                    nursery.start_soon(run, seed, port, folder)
            outside.cancel_scope.cancel()
        return worlds, collector.names if wire == "otlp" else stored_in(database)


async def _receive(nursery: trio.Nursery, database: Path) -> int:
    """Run a receiver; gives its port."""
    receiver: Receiver = await nursery.start(
        partial(run_receiver, port=0, database=database, max_body=MAX_BODY)
    )
    port = httpx.URL(receiver.url).port
    assert port is not None
    return port


async def _run_world(
    world: World, receiver: int, folder: Path, processes: trio.CapacityLimiter
) -> None:
    """Let a few agents live and die, beside and after each other; the last one cleans up."""
    random = Random(world.seed)
    folder.mkdir()
    async with trio.open_nursery() as outside:
        gate: Gate = await outside.start(Gate(random, receiver).run)

        async def one_after_the_other(name: int, lives: Sequence[int]) -> None:
            for number, seed in enumerate(lives):
                gate.moods = random.choice(TROUBLE)
                async with processes:
                    await _live_and_die(world, f"{world.seed}.{name}.{number}", seed, folder, gate)

        async with trio.open_nursery() as nursery:
            for name in range(random.choice([1, 1, 2, 3])):
                lives = [random.getrandbits(32) for _ in range(random.choice([1, 2, 3]))]
                nursery.start_soon(one_after_the_other, name, lives)
        gate.moods = WELL
        async with processes:
            await _clean_up(world, folder, gate)
        outside.cancel_scope.cancel()


async def _live_and_die(world: World, life: str, seed: int, folder: Path, gate: Gate) -> None:
    random = Random(seed)
    claims = folder / f"{life}.claims"
    orders = Orders(
        life=life,
        seed=seed,
        directory=str(folder / "spool"),
        claims=str(claims),
        wire=world.wire,
        dies_at=random.choice(["any time", "any time", "the network", "the disk"]),
        after=random.choice([0, 1, 2, 3, 5, 8, 20, 50, 200]),
    )
    began = trio.current_time()
    process = await _start(orders, gate, folder)
    assert process.stdout is not None
    assert await line_of(process) == BEGUN
    slowness = max(1.0, (trio.current_time() - began) / BEGINNING)
    if orders.dies_at == "any time":
        seconds = random.random() * random.choice([0.05, 0.2, LONGEST_LIFE])
        await trio.sleep(seconds * slowness)
    else:
        with trio.move_on_after(LONGEST_WAIT * slowness):
            await process.wait()
    process.kill()
    status = await process.wait()
    world.kills += 1
    if status != -signal.SIGKILL:
        world.failures.append(f"{life} ended by itself: {_said(folder, life)}")
    await process.stdout.aclose()
    if claims.exists():
        _read_claims(world, life, claims.read_text())


async def _clean_up(world: World, folder: Path, gate: Gate) -> None:
    """The last life: what is left is delivered."""
    orders = Orders(
        life="last",
        seed=0,
        directory=str(folder / "spool"),
        claims="",
        wire=world.wire,
        is_last=True,
    )
    process = await _start(orders, gate, folder)
    with trio.fail_after(LONG_ENOUGH + LONG):
        answer = await rest_of(process)
        if await process.wait() == 0:
            world.survivor = msgspec.json.decode(answer, type=Survivor)
        else:
            world.failures.append(f"the last one failed: {_said(folder, orders.life)}")
    with closing(sqlite3.connect(folder / "spool" / "spool.db")) as database:
        world.left_on_disk = database.execute("SELECT count(*) FROM batches").fetchone()[0]


async def _start(orders: Orders, gate: Gate, folder: Path) -> trio.Process:
    url = f"http://127.0.0.1:{gate.port}"
    with (folder / f"{orders.life}.stderr").open("wb") as stderr:
        return await trio.lowlevel.open_process(
            [sys.executable, "-m", "kill.agent", msgspec.json.encode(orders).decode()],
            env=environment(KILL_TELEMETRY_URL=url, OTEL_EXPORTER_OTLP_ENDPOINT=url),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )


def _said(folder: Path, life: str) -> str:
    """What an agent wrote on standard error."""
    return (folder / f"{life}.stderr").read_text()


def _read_claims(world: World, life: str, text: str) -> None:
    """What a life wrote down; a line that it was killed in the middle of does not count."""
    for line in text.split("\n")[:-1]:
        what, _, count = line.partition(" ")
        if what == "doubt":
            world.in_doubt.add(life)
        else:
            world.claims[what] = int(count)


def stored_in(database: Path) -> dict[str, list[str]]:
    """The names of the events that a receiver has, by session, in order."""
    names: dict[str, list[str]] = {}
    with closing(sqlite3.connect(database)) as connection:
        for session, name in connection.execute(
            "SELECT session_id, coalesce(json_extract(event, '$.command_name'),"
            " json_extract(event, '$.error_name'), type) FROM events ORDER BY session_id, position"
        ):
            names.setdefault(session, []).append(name)
    return names


def faults_of(world: World, stored: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with a world that is over; nothing, if all promises were kept."""
    faults = [f"world {world.seed}: {failure}" for failure in world.failures]
    if world.left_on_disk:
        faults.append(f"world {world.seed}: {world.left_on_disk} batches are left on disk")
    if world.survivor is not None and world.survivor.tracked != world.survivor.delivered:
        faults.append(f"world {world.seed}: not all was delivered: {world.survivor}")
    for session, claimed in world.claims.items():
        have = len(stored.get(session, ()))
        if have < claimed:
            faults.append(f"session {session}: {claimed} events were safe, {have} arrived")
    for session, names in stored.items():
        if session.startswith(f"{world.seed}."):
            life = session.rsplit(".", 2)[0]
            if not is_whole(names, may_have_gaps=life in world.in_doubt):
                faults.append(f"session {session}: not once each and in order: {list(names)}")
    return faults


def is_whole(names: Sequence[str], *, may_have_gaps: bool = False) -> bool:
    """Whether *names* are a session's first events, each of them once, in order."""
    if not may_have_gaps:
        events = names[:-1] if names[-1] == "session_end" else names
        return list(events) == ["session_start", *map(str, range(len(events) - 1))]
    numbers = [int(name) for name in names if name.isdecimal()]
    return numbers == sorted(set(numbers))
