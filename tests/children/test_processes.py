"""Sessions of real processes: whatever becomes of one, the session has what it had handed over."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

import attached_workers
import trimaran
from children import worker
from patience import PATIENCE, untraced

if TYPE_CHECKING:
    from children.conftest import Home
    from conftest import LoopbackEndpoint

trio_parallel: Any = import_module("trio_parallel")  # it has no types
PROGRAM = Path(__file__).parent / "worker.py"
ENDS = ["end"] * 12 + ["crash"] * 4 + ["kill"] * 4

StartAll: TypeAlias = Callable[[dict[str, str], str, dict[str, str]], Awaitable[None]]
"""Runs children: their environment, where they note, what each is called and how it ends."""


async def by_run_process(environ: dict[str, str], notes: str, ends: dict[str, str]) -> None:
    """Children that are trio programs."""

    async def run(name: str, end: str) -> None:
        command = [sys.executable, str(PROGRAM), notes, name, end]
        with trio.fail_after(2 * PATIENCE):
            await trio.run_process(command, env=environ, check=False, stderr=subprocess.DEVNULL)

    async with trio.open_nursery() as nursery:
        for name, end in ends.items():
            nursery.start_soon(run, name, end)


async def by_subprocess(environ: dict[str, str], notes: str, ends: dict[str, str]) -> None:
    """The same ones, started and waited for by the standard library."""

    def run(name: str, end: str) -> None:
        command = [sys.executable, str(PROGRAM), notes, name, end]
        subprocess.run(
            command, env=environ, check=False, stderr=subprocess.DEVNULL, timeout=2 * PATIENCE
        )

    async with trio.open_nursery() as nursery:
        for name, end in ends.items():
            nursery.start_soon(trio.to_thread.run_sync, run, name, end)


def by_multiprocessing(method: str) -> StartAll:
    """Plain functions, each in a process of its own."""

    async def run(environ: dict[str, str], notes: str, ends: dict[str, str]) -> None:
        context: Any = multiprocessing.get_context(method)
        processes = [
            context.Process(
                target=worker.live_plainly, args=(environ, notes, name, end), daemon=True
            )
            for name, end in ends.items()
        ]
        with untraced():
            for process in processes:
                process.start()
        for process in processes:
            await trio.to_thread.run_sync(process.join, 2 * PATIENCE)
            assert process.exitcode is not None
            process.close()

    return run


async def by_executor(environ: dict[str, str], notes: str, ends: dict[str, str]) -> None:
    """Jobs in a pool; its processes take part for the time of a job. None of them is killed:
    a pool of the standard library does not survive that.
    """
    context = multiprocessing.get_context("spawn")

    def run() -> None:
        with ProcessPoolExecutor(4, mp_context=context) as pool:
            jobs = [
                pool.submit(worker.live_plainly, environ, notes, name, end)
                for name, end in ends.items()
            ]
        for job in jobs:
            job.exception(timeout=2 * PATIENCE)

    await trio.to_thread.run_sync(run)


async def by_trio_parallel(environ: dict[str, str], notes: str, ends: dict[str, str]) -> None:
    """Jobs in the processes of trio-parallel, which starts others for those that are killed."""

    async def run(workers: Any, name: str, end: str) -> None:
        with suppress(trio_parallel.BrokenWorkerError, worker.Crash):
            await workers.run_sync(worker.live_plainly, environ, notes, name, end)

    async with trio_parallel.open_worker_context() as workers:
        async with trio.open_nursery() as nursery:
            for name, end in ends.items():
                nursery.start_soon(run, workers, name, end)


KINDS: dict[str, StartAll] = {
    "run_process": by_run_process,
    "subprocess": by_subprocess,
    "spawn": by_multiprocessing("spawn"),
    "forkserver": by_multiprocessing("forkserver"),
    "fork": by_multiprocessing("fork"),
    "executor": by_executor,
    "trio_parallel": by_trio_parallel,
}


def descriptors() -> set[str]:
    """What is open in this process."""
    found: set[str] = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue  # the descriptor with which the directory is read
    return found


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_of_many_processes(
    kind: str, home: Home, endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """What was acknowledged has arrived, once, in order, under the one id; the totals are those
    of all processes; and nothing is left.
    """
    chosen = ENDS[:]
    random.Random(kind).shuffle(chosen)
    if kind == "executor":
        chosen = ["end" if end == "kill" else end for end in chosen]
    ends = {f"child {number}": end for number, end in enumerate(chosen)}
    before = descriptors()

    async with trimaran.open_telemetry(
        "test",
        environ=home.environ | {"TEST_TELEMETRY_URL": endpoint.url},
        settings=trimaran.Settings(strict=True, drain_timeout=PATIENCE),
    ) as telemetry:
        async with telemetry.session() as session:
            await KINDS[kind](session.to_env(), str(tmp_path), ends)
    after = descriptors()

    books = session.statistics()
    assert books.dropped == {}
    assert books.tracked == books.delivered == books.from_children + 2
    events = endpoint.events
    assert {event["session_id"] for event in events} == {session.id}
    assert len(events) == books.delivered
    for name, end in ends.items():
        numbers = [
            int(event["message_id"]) for event in events if event.get("command_name") == name
        ]
        acknowledged = int((tmp_path / name).read_text())
        assert numbers == list(range(len(numbers)))
        assert acknowledged <= len(numbers) <= worker.EVENTS
        assert acknowledged == worker.EVENTS or end != "end"
    generations = sum(event["type"] == "generation" for event in events)
    last = events[-1]
    assert last["type"] == "session_end"
    assert last["total_cost"] == generations * worker.COST
    assert generations == chosen.count("end")
    left = {name for name in after - before if "socket" in name}
    assert len(left) <= 1, left  # the endpoint's own connection, which it closes in its time
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
async def test_workers_that_attach_for_as_long_as_they_live(
    method: str, home: Home, endpoint: LoopbackEndpoint
) -> None:
    """All that they say arrives, in whichever way they end: nothing is left of it in a block that
    nobody leaves.
    """

    def run(environ: dict[str, str]) -> None:
        context: Any = multiprocessing.get_context(method)
        with (
            untraced(),
            ProcessPoolExecutor(
                2,
                mp_context=context,
                initializer=attached_workers.attach_for_good,
                initargs=(environ,),
            ) as pool,
        ):
            list(pool.map(attached_workers.say_in_passing, map(str, range(30)), timeout=PATIENCE))

    async with trimaran.open_telemetry(
        "test",
        environ=home.environ | {"TEST_TELEMETRY_URL": endpoint.url},
        settings=trimaran.Settings(strict=True, drain_timeout=PATIENCE),
    ) as telemetry:
        async with telemetry.session() as session:
            await trio.to_thread.run_sync(run, session.to_env())

    commands = [event["command_name"] for event in endpoint.events if event["type"] == "command"]
    assert sorted(commands, key=int) == [str(number) for number in range(30)]
    assert session.statistics().from_children == 30


ENDLESS = """
import os, sys
import trio, trimaran

async def main():
    noted = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with trimaran.attach() as session:
        number = 0
        while True:
            for number in range(number, number + 300):
                session.command(sys.argv[1], message_id=str(number))
            number += 1
            if await session.flush(timeout=60):
                os.write(noted, b"%d\\n" % number)

trio.run(main)
"""


async def test_children_that_are_killed_at_any_moment(
    home: Home, endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Of each, an unbroken beginning of what it said has arrived, with all that was acknowledged."""
    chance = random.Random("killed")
    notes = [tmp_path / str(number) for number in range(6)]

    async def kill(note: Path, environ: dict[str, str]) -> None:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", ENDLESS, str(note)], env=environ
        )
        try:
            with trio.fail_after(PATIENCE):
                while not note.exists():  # noqa: ASYNC110 - a file tells nobody
                    await trio.sleep(0.01)
            await trio.sleep(chance.random() * 0.4)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async with trimaran.open_telemetry(
        "test",
        environ=home.environ | {"TEST_TELEMETRY_URL": endpoint.url},
        settings=trimaran.Settings(strict=True, drain_timeout=PATIENCE),
    ) as telemetry:
        async with telemetry.session() as session:
            async with trio.open_nursery() as nursery:
                for note in notes:
                    nursery.start_soon(kill, note, session.to_env())

    books = session.statistics()
    assert books.tracked == books.delivered == len(endpoint.events)
    for note in notes:
        numbers = [
            int(event["message_id"])
            for event in endpoint.events
            if event.get("command_name") == str(note)
        ]
        acknowledged = max(map(int, note.read_text().split()), default=0)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= acknowledged


KILLED = """
import os, sys
import trio, trimaran

async def main():
    async with trimaran.open_telemetry("test", environ=dict(os.environ)) as telemetry:
        async with telemetry.session(session_id="s") as session:
            command = [sys.executable, "-c", sys.argv[1]]
            await trio.run_process(command, env=session.to_env(), stdin=None)

trio.run(main)
"""

OUTLIVING = """
import sys, trio, trimaran

async def main():
    async with trimaran.attach() as session:
        session.error("before")
        await session.flush()
        sys.stdout.write("attached\\n")
        sys.stdout.flush()
        if sys.stdin.read(1) != "x":
            return
        for number in range(500):
            session.command(str(number))
        flushed = await session.flush(timeout=60)
    books = session.statistics()
    sys.stdout.write(f"{dict(books.dropped)} {books.delivered}\\n")

trio.run(main)
"""


async def test_a_child_outlives_a_parent_that_is_killed(
    home: Home, endpoint: LoopbackEndpoint
) -> None:
    """It delivers by itself then, to where the parent delivered, in the same session."""
    environ = os.environ | home.environ | {"TEST_TELEMETRY_URL": endpoint.url}
    async with trio.open_nursery() as nursery:
        parent = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-c", KILLED, OUTLIVING],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        with trio.fail_after(2 * PATIENCE):
            assert await parent.stdout.receive_some() == b"attached\n"
            parent.kill()
            await parent.wait()
            await parent.stdin.send_all(b"x")
            said = await parent.stdout.receive_some()
            assert said == b"{} 501\n"
            await parent.stdout.receive_some()

    commands = [event for event in endpoint.events if event["type"] == "command"]
    assert [event["command_name"] for event in commands] == [str(n) for n in range(500)]
    assert {event["session_id"] for event in commands} == {"s"}
    for socket in home.sockets():
        (home.directory / "trimaran" / socket).unlink()


async def test_a_child_outlives_the_session(home: Home, endpoint: LoopbackEndpoint) -> None:
    """It is told that it is over, counts what it tracks as closed, and runs on."""
    async with trio.open_nursery() as nursery:
        async with trimaran.open_telemetry(
            "test",
            environ=home.environ | {"TEST_TELEMETRY_URL": endpoint.url},
            settings=trimaran.Settings(drain_timeout=4.0, strict=True),
        ) as telemetry:
            async with telemetry.session() as session:
                child = await nursery.start(
                    partial(
                        trio.run_process,
                        [sys.executable, "-c", OUTLIVING],
                        env=session.to_env(),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
                with trio.fail_after(PATIENCE):
                    assert await child.stdout.receive_some() == b"attached\n"
        await child.stdin.send_all(b"x")
        with trio.fail_after(PATIENCE):
            assert await child.stdout.receive_some() == b"{'closed': 500} 1\n"

    assert [event["type"] for event in endpoint.events] == [
        "session_start",
        "error",
        "session_end",
    ]
    assert session.statistics().from_children == 1
