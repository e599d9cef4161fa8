"""The command in processes of its own, and the receiver that it talks to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import trio

from otlp.systems import TestAgent, running_test_agent
from patience import PATIENCE
from trimaran.receiver import Receiver, run_receiver

LONG = 2 * PATIENCE
"""Seconds until a test gives up; a busy machine takes some for each process."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class Running:
    """A command that runs, and what it has said so far."""

    def __init__(self, process: trio.Process, nursery: trio.Nursery) -> None:
        self.process = process
        self._out = bytearray()
        self._err = bytearray()
        self._news = trio.Event()
        self._open = 2
        nursery.start_soon(self._collect, process.stdout, self._out)
        nursery.start_soon(self._collect, process.stderr, self._err)

    async def _collect(self, stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
        assert stream is not None
        async for chunk in stream:
            into += chunk
            self._tell()
        self._open -= 1
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self._out.decode()

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return self._err.decode()

    async def says(self, text: str) -> None:
        """Wait until it has said *text*."""
        with trio.fail_after(LONG):
            while text not in self.out and text not in self.err:
                assert self._open, f"it ended without {text!r}: {self.out}{self.err}"
                await self._news.wait()

    async def write(self, content: bytes) -> None:
        """Give it *content* on its standard input."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(content)

    async def end_input(self) -> None:
        """Close its standard input."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def ends(self, number: signal.Signals | None = None) -> Ended:
        """Wait until it has ended, after a signal if *number* is given."""
        if number is not None:
            self.process.send_signal(number)
        with trio.fail_after(LONG):
            status = await self.process.wait()
            while self._open:
                await self._news.wait()
        return Ended(status, self.out, self.err)


class Command:
    """``trimaran``, with an environment that switches nothing."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self._nursery = nursery
        self.directory = directory
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if "TELEMETRY" not in name
            and not name.startswith(("OTEL_", "LANGFUSE_"))
            and name not in {"DO_NOT_TRACK", "COLUMNS", "LINES"}
        }

    def line(self, *arguments: object) -> list[str]:
        """The words of a command line."""
        return [sys.executable, "-m", "trimaran.cli", *map(str, arguments)]

    async def __call__(
        self, *arguments: object, stdin: bytes = b"", environ: Mapping[str, str] | None = None
    ) -> Ended:
        """Run it to its end."""
        with trio.fail_after(LONG):
            done = await trio.run_process(
                self.line(*arguments),
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=self.directory,
                env={**self.environ, **(environ or {})},
            )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def start(self, *arguments: object, environ: Mapping[str, str] | None = None) -> Running:
        """Start it; it is killed at the end of the test at the latest."""
        process: trio.Process = await self._nursery.start(
            partial(
                trio.run_process,
                self.line(*arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                cwd=self.directory,
                env={**self.environ, **(environ or {})},
            )
        )
        return Running(process, self._nursery)


@pytest.fixture
async def command(nursery: trio.Nursery, tmp_path: Path) -> Command:
    """The command, started in a directory of its own."""
    return Command(nursery, tmp_path)


@pytest.fixture
async def receiver(nursery: trio.Nursery, tmp_path: Path) -> Receiver:
    """A receiver on loopback."""
    database = tmp_path / "receiver.sqlite"
    started: Receiver = await nursery.start(partial(run_receiver, port=0, database=database))
    return started


@pytest.fixture(scope="session")
def test_agent() -> Iterator[TestAgent]:
    """A system that takes OTLP and keeps it by the token that came along, for all tests."""
    with running_test_agent() as agent:
        yield agent


class Stored(Protocol):
    """Asks a receiver for the events of a session."""

    async def __call__(self, receiver: Receiver, session_id: str) -> list[dict[str, Any]]:
        """The events in order; none of a session that is not there."""
        ...


@pytest.fixture
def stored() -> Stored:
    """What a receiver has."""

    async def ask(receiver: Receiver, session_id: str) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
            answer = await client.get(f"{receiver.url}/api/sessions/{session_id}/events")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return []
        events: list[dict[str, Any]] = answer.raise_for_status().json()["events"]
        return events

    return ask


_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes a terminal the one of a process, so that Ctrl-C on it is a signal there."""


class OnTerminal(Protocol):
    """Starts the command on a terminal."""

    def __call__(self, *arguments: object) -> AbstractAsyncContextManager[Terminal]:
        """For the length of a block; it is killed at its end at the latest."""
        ...


@pytest.fixture
def on_terminal(command: Command) -> OnTerminal:
    """The command on a terminal."""

    @asynccontextmanager
    async def start(*arguments: object) -> AsyncGenerator[Terminal]:
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, "-c", _TAKE_TERMINAL, *command.line(*arguments)],
                    stdin=theirs,
                    stdout=theirs,
                    stderr=theirs,
                    check=False,
                    start_new_session=True,
                    cwd=command.directory,
                    env={**command.environ, "TERM": "xterm"},
                )
            )
            os.close(theirs)
            terminal = Terminal(process, ours)
            nursery.start_soon(terminal.collect)
            yield terminal
            nursery.cancel_scope.cancel()
        os.close(ours)

    return start


class Terminal:
    """A command on a terminal of 80 characters by 24."""

    def __init__(self, process: trio.Process, descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._shown = bytearray()
        self._news = trio.Event()
        self._over = False

    async def collect(self) -> None:
        """Read what is shown, until nobody has the terminal open any more."""
        while True:
            try:
                chunk = await trio.to_thread.run_sync(os.read, self._descriptor, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                chunk = b""
            self._shown += chunk
            self._over = not chunk
            self._news.set()
            self._news = trio.Event()
            if self._over:
                return

    @property
    def shown(self) -> str:
        """Everything that was shown, with all control sequences."""
        return self._shown.decode()

    async def says(self, text: str) -> None:
        """Wait until *text* was shown."""
        with trio.fail_after(LONG):
            while text not in self.shown:
                assert not self._over, f"it ended without {text!r}: {self.shown}"
                await self._news.wait()

    async def types(self, text: str) -> None:
        """Type *text*."""
        await trio.to_thread.run_sync(os.write, self._descriptor, text.encode())

    async def ends(self) -> int:
        """Wait until it has ended; its exit status."""
        with trio.fail_after(LONG):
            status = await self._process.wait()
            while not self._over:
                await self._news.wait()
        return status
