"""The command in processes of its own, and the receiver that it talks to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from trimaran.receiver import Receiver, run_receiver

PATIENCE = 60.0
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
        with trio.fail_after(PATIENCE):
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
        with trio.fail_after(PATIENCE):
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
            if "TELEMETRY" not in name and name not in {"DO_NOT_TRACK", "COLUMNS", "LINES"}
        }

    def line(self, *arguments: object) -> list[str]:
        """The words of a command line."""
        return [sys.executable, "-m", "trimaran.cli", *map(str, arguments)]

    async def __call__(
        self, *arguments: object, stdin: bytes = b"", environ: Mapping[str, str] | None = None
    ) -> Ended:
        """Run it to its end."""
        with trio.fail_after(PATIENCE):
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


async def read_back(receiver_url: str, path: str = "") -> Any:
    """What the receiver says at ``/api/sessions`` and below."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{receiver_url}/api/sessions{path}")).raise_for_status().json()


@pytest.fixture
def stored() -> Any:
    """Asks a receiver for the events of a session."""

    async def events(receiver: Receiver, session_id: str) -> list[dict[str, Any]]:
        page = await read_back(receiver.url, f"/{session_id}/events?limit=1000")
        return [entry.get("event", entry) for entry in page["events"]]

    return events
