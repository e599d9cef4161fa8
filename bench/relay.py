"""What leaving costs an agent, with a relay and without; what a relay costs that has nothing
to do.

In: how many rounds. Out: rows.
Does not know: how a relay works.

Each round is an agent in a process of its own, ``python -m bench.relay URL [DIRECTORY]``,
which has a session of some work, whose events had the time to be sent, and leaves it: the
clock runs from the last event to the end of its telemetry. The relay is there by then, as it
is for all agents but the first in half a minute.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

import trimaran
from bench.rounds import medians
from bench.rows import Aim, Row
from bench.serve import server
from trimaran._relay.place import RelayPlace
from trimaran._relay.visit import end_relay, report_of

__all__ = ["relay"]

_EVENTS = 1000
_MOST_MILLISECONDS = 50.0
_MOST_MEGABYTES = 60.0
_IDLE_SECONDS = 5.0
_MEGABYTE = 1_000_000


async def relay(*, rounds: int) -> list[Row]:
    """Milliseconds to leave, the network up, hung and down; the relay's memory and time."""
    with tempfile.TemporaryDirectory() as directory:
        async with server("sink") as up, _hung() as hung:
            urls = {"up": up, "hung": hung, "down": _down()}
            leaving = await medians(
                {
                    f"{name}, {way}": partial(_leave, url, *place)
                    for name, url in urls.items()
                    for way, place in (("with it", [directory]), ("without", []))
                },
                rounds=rounds,
            )
            rows = [
                Row(
                    group="leaving with a relay, floor: without",
                    name=f"from the last event on, network {name}",
                    unit="ms",
                    value=leaving[f"{name}, with it"] * 1000,
                    floor=leaving[f"{name}, without"] * 1000,
                    aim=Aim("value", _MOST_MILLISECONDS),
                )
                for name in urls
            ]
        await end_relay(RelayPlace(Path(directory)))
    return [*rows, *await _idle()]


async def _idle() -> list[Row]:
    """A relay that delivered something, and has nothing to do while an agent is connected."""
    with tempfile.TemporaryDirectory() as directory:
        place = RelayPlace(Path(directory))
        settings = trimaran.Settings(relay=directory)
        async with server("sink") as url:
            environ = {"BENCH_TELEMETRY_URL": url}
            async with (
                trimaran.open_telemetry("bench", environ=environ, settings=settings) as telemetry,
                telemetry.session() as session,
            ):
                await session.flush(timeout=10)
                report = await report_of(place)
                while report is None or not any(outlet.delivered for outlet in report.outlets):
                    await trio.sleep(0.05)
                    report = await report_of(place)
                await trio.sleep(1)
                before = _processor_seconds(report.pid)
                await trio.sleep(_IDLE_SECONDS)
                spent = _processor_seconds(report.pid) - before
                resident = _resident(report.pid)
        await end_relay(place)
    group = "a relay that has nothing to do"
    return [
        Row(
            group=group,
            name="resident memory",
            unit="MB",
            value=resident / _MEGABYTE,
            aim=Aim("value", _MOST_MEGABYTES),
        ),
        Row(
            group=group,
            name="processor time while idle",
            unit="ms/s",
            value=spent / _IDLE_SECONDS * 1000,
            aim=Aim("value", 0.0),
        ),
    ]


async def _leave(*arguments: str) -> float:
    command = [sys.executable, "-m", "bench.relay", *arguments]
    return float((await trio.run_process(command, capture_stdout=True)).stdout)


async def _agent(url: str, directory: str | None) -> float:
    """Seconds from the last event to the end of the telemetry."""
    settings = trimaran.Settings(relay=directory or False)
    environ = {"BENCH_TELEMETRY_URL": url}
    async with (
        trimaran.open_telemetry("bench", environ=environ, settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        for number in range(_EVENTS):
            await session.send(trimaran.Command(command_name=str(number)))
        await session.flush(timeout=1 if directory is None else 30)
        session.command("last")
        left_at = time.perf_counter()
    return time.perf_counter() - left_at


@asynccontextmanager
async def _hung() -> AsyncGenerator[str]:
    """The URL of a server that takes whatever comes, and never answers."""

    async def swallow(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, swallow, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def _down() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def _processor_seconds(pid: int) -> float:
    """What a process has used so far, in all of its threads; to a hundredth, where /proc is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "*"
    print(trio.run(_agent, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
