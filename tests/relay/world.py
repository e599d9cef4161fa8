"""What a test sees of agents and their relay.

In: a directory for the relay. Out: agents that are run, relays that are there.
Does not know: how either works.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from faults.served import LONG, environment

from .agent import Ended, Orders

__all__ = ["World", "hung_endpoint", "open_world", "refused_url", "until"]


class World:
    """A relay's directory, and those who use it.

    Args:
        directory: nobody else's.
        idle_timeout: seconds for which its relay stays without need.
    """

    def __init__(self, directory: Path, *, idle_timeout: float = 30.0) -> None:
        self.directory = directory
        self.idle_timeout = idle_timeout

    def orders(self, url: str, **named: Any) -> Orders:
        """What an agent here is told."""
        return Orders(
            url=url,
            directory=str(self.directory),
            idle_timeout=self.idle_timeout,
            **named,
        )

    async def agent(self, url: str, **named: Any) -> Ended:
        """Run an agent, and let it tell."""
        word = msgspec.json.encode(self.orders(url, **named)).decode()
        with trio.fail_after(LONG):
            done = await trio.run_process(
                [sys.executable, "-m", "relay.agent", word],
                capture_stdout=True,
                env=environment(),
            )
        return msgspec.json.decode(done.stdout, type=Ended)

    def processes(self) -> dict[int, bytes]:
        """Those that were told of the directory, and the words of each."""
        found: dict[int, bytes] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    words = (folder / "cmdline").read_bytes()
                    # A process that has ended has no words any more.
                    if os.fsencode(self.directory) in words:
                        found[int(folder.name)] = words
        return found

    def relays(self) -> list[int]:
        """The processes that are a relay here, or would be."""
        return [
            pid
            for pid, words in self.processes().items()
            if b"\0-m\0trimaran._relay\0" in words and b"\0-c\0" not in words
        ]

    async def gone(self, within: float = LONG) -> None:
        """Wait until no relay is here."""
        with trio.fail_after(within):
            while self.relays():  # noqa: ASYNC110 - another process is waited for
                await trio.sleep(0.1)  # to look at all processes takes a while

    def kill(self) -> int:
        """Kill whatever relay is here; how many that were."""
        relays = self.relays()
        _kill(relays)
        return len(relays)

    def end(self) -> None:
        """Kill whatever is here, or just beginning."""
        while found := self.processes():
            _kill(found)
            time.sleep(0.05)

    def files(self) -> set[str]:
        """What lies in the directory."""
        return (
            {path.name for path in self.directory.iterdir()} if self.directory.exists() else set()
        )


def _kill(processes: Iterable[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until another process made it so."""
    with trio.fail_after(LONG):
        while not is_so():  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.01)


@contextmanager
def open_world(directory: Path, **named: Any) -> Iterator[World]:
    """A world that leaves no process behind."""
    world = World(directory, **named)
    try:
        yield world
    finally:
        world.end()


async def hung_endpoint(nursery: trio.Nursery) -> str:
    """The URL of an endpoint that takes whatever comes, and never answers."""

    async def swallow(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass
            await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, swallow, listeners)
    return f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


def refused_url() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
