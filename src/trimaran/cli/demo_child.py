"""A process that the demonstration starts: lines to it, lines from it, and its end.

In: a module to run, the environment to run it in. Out: its lines; a process that is gone when
the block is left, in whichever way. And that process's own side of the same.
Does not know: what the lines say.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import trio

from trimaran.cli._errors import FAILED
from trimaran.cli._signals import Interrupt, run_interruptible

__all__ = ["Child", "Lines", "listen", "run_child", "say", "started"]


class Lines:
    """The lines that come out of *stream*."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._rest = bytearray()

    async def next(self) -> bytes | None:
        """The next one, without its end; None when no more will come.

        Cancelled, it has taken nothing. A checkpoint, but where a line is already here.
        """
        while (end := self._rest.find(b"\n")) < 0:
            chunk = await self._stream.receive_some()
            if not chunk:
                return None
            self._rest += chunk
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line


class Child:
    """A process that runs, between its two pipes."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._process = process
        self.lines: Lines = Lines(process.stdout)
        """What it writes."""

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    async def tell(self, line: bytes) -> None:
        """Write *line* to it.

        Raises:
            trio.BrokenResourceError: it does not read any more.
        """
        assert self._process.stdin is not None
        await self._process.stdin.send_all(line + b"\n")

    async def leave(self) -> None:
        """Let it know that nothing more will be written to it, which tells it to end."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    def kill(self) -> None:
        """End it here and now, with SIGKILL."""
        self._process.kill()

    async def wait(self) -> int:
        """Its exit status, when it has ended."""
        return await self._process.wait()


@asynccontextmanager
async def started(
    module: str, *arguments: str, environ: Mapping[str, str], patience: float
) -> AsyncGenerator[Child]:
    """Run *module* in another Python for the length of a block.

    At the end of the block its input ends, and it is waited for. After an exception or a
    cancellation it gets a SIGTERM too. In both cases it is killed *patience* seconds later.

    It is no part of the terminal's foreground: Ctrl-C is for the process that a person started,
    which ends the others in order.
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    )
    try:
        yield Child(process)
    except BaseException:
        process.terminate()
        raise
    finally:
        with trio.CancelScope(shield=True):
            await _ended(process, patience)


async def _ended(process: trio.Process, patience: float) -> None:
    """Wait for its end, *patience* seconds at most, and then bring it about."""
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.aclose()
    with trio.move_on_after(patience):
        # Who writes to a full pipe does not end.
        with suppress(trio.BrokenResourceError):
            while await process.stdout.receive_some():
                pass
        await process.wait()
    process.kill()
    await process.wait()
    await process.stdout.aclose()


def run_child(work: Callable[[Interrupt], Awaitable[int]]) -> int:
    """Be the process at the other end: run *work*; the exit status.

    Who has nobody any more to tell anything ends, whatever it is doing.
    """
    status = FAILED
    try:
        status = run_interruptible(work)
    except* BrokenPipeError:
        pass
    return status


@asynccontextmanager
async def listen() -> AsyncGenerator[Lines]:
    """The lines that come to this process, for the length of a block."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        yield Lines(stream)


def say(line: bytes) -> None:
    """Write *line* to who started this process, who reads at all times."""
    with open(1, "wb", closefd=False) as stdout:
        stdout.write(line + b"\n")
