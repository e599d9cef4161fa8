"""Processes that are simulated: several in one run of trio, each of which can be killed.

In: what a process does; when it is to die. Out: what the kernel does then.
Does not know: agents, relays, what is promised.

A process that is killed does nothing any more from that step on: its sockets and files are
closed by the kernel, its locks are let go of, and what it had said before can still be read.
Its tasks unwind meanwhile, as they have to in the process that simulates it, to no effect.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import trio

from simulation import SimulatedDisk
from trimaran._process.end import End
from trimaran._process.place import ProcessListener, connect, listening
from trimaran._relay.place import RelayPlace
from trimaran._spool.file import SpoolFile
from trimaran._spool.lock import OwnerLock
from trimaran._spool.values import Evicted, Kept, SpoolError

__all__ = ["Process", "kernel", "running"]


class Disk(SimulatedDisk):
    """A disk as a process sees it through a thread: what was begun ends also when nobody
    waits for it any more.
    """

    def __init__(self, process: Process, trouble: float) -> None:
        super().__init__(process.random, trouble, lambda: process.is_dead)
        self._process = process

    async def _run(self, call: Callable[[], Any]) -> Any:
        if self._process.is_at_ease() and not self._process.is_dead:
            await trio.lowlevel.checkpoint()
            return call()
        has_begun = False

        def begin() -> Any:
            nonlocal has_begun
            has_begun = True
            return call()

        try:
            return await super()._run(begin)
        except trio.Cancelled:
            if not has_begun and not self._process.is_dead and self._process.random.random() < 0.5:
                with suppress(SpoolError):
                    call()
            raise


class Process:
    """One of them.

    Args:
        name: for people.
        random: what chance is made of.
        dies_at: the step of its tasks after which it is killed.
        disk_trouble: how likely its disk is to fail at something.
        is_at_ease: whether everything goes well by now.
    """

    def __init__(
        self,
        name: str,
        *,
        random: Random,
        dies_at: float = float("inf"),
        disk_trouble: float = 0.0,
        is_at_ease: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.random = random
        self.dies_at = dies_at
        self.disk_trouble = disk_trouble
        self.is_at_ease = is_at_ease
        self.is_dead = False
        self.is_over = False
        self.steps = 0
        self.evicted: Callable[[Evicted], object] = lambda _gone: None
        """Told of every batch that had to leave the disk."""
        self.dies: Callable[[], object] = lambda: None
        """Told when it is killed."""
        self.ends: list[End] = []
        self.listeners: list[ProcessListener] = []
        self.files: list[SpoolFile] = []
        self.locks: list[OwnerLock] = []
        self.signals: trio.MemorySendChannel[int] | None = None
        self._scope = trio.CancelScope()
        self._disks: dict[object, Disk] = {}

    def __repr__(self) -> str:
        return f"<{self.name}>"

    async def run(self, main: Callable[[], Awaitable[object]]) -> None:
        """Be it, until *main* is over or it was killed."""
        running.set(self)
        try:
            with self._scope:
                await main()
        except Exception:
            if not self.is_dead:
                raise
        finally:
            self.is_over = True
            self._close_files()
            for end in self.ends:
                end._socket.close()

    def step(self) -> None:
        """One of its tasks made a step."""
        self.steps += 1
        if self.steps >= self.dies_at and not self.is_at_ease():
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self.is_dead or self.is_over:
            return
        self.is_dead = True
        self.dies()
        for listener in self.listeners:
            if listener._socket.fileno() != -1:
                # It raises what the task gets, where that is the one which made this step.
                with suppress(trio.ClosedResourceError):
                    trio.lowlevel.notify_closing(listener._socket)
                listener._socket.close()
        for end in self.ends:
            _cut(end)
        self._close_files()
        self._scope.cancel()

    def terminate(self) -> None:
        """SIGTERM; a process that does not wait for it yet is killed by it."""
        if self.signals is None:
            self.kill()
        else:
            self.signals.send_nowait(15)

    async def in_a_thread(
        self, call: Callable[[], Any], limiter: trio.CapacityLimiter | None
    ) -> Any:
        """Run what blocks; see :class:`Disk`."""
        if limiter not in self._disks:
            # What starts a process has errors of its own.
            self._disks[limiter] = Disk(self, 0.0 if limiter is None else self.disk_trouble)
        return await self._disks[limiter](call)

    def _close_files(self) -> None:
        for file in self.files:
            if file._database is not None:
                file._database.close()
            if file._lock is not None:
                file._lock.release(remove=False)
        for lock in self.locks:
            lock.release(remove=False)


running: ContextVar[Process] = ContextVar("running")
"""The process that a task belongs to."""


def _cut(end: End) -> None:
    # Not closed: trio may wait for it. For the other end it is the same.
    with suppress(OSError):
        end._socket.shutdown(socket.SHUT_RDWR)


class _File(SpoolFile):
    """A process's hold on a spool."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        running.get().files.append(self)

    def put(self, *given: Any, **named: Any) -> list[Evicted]:
        return self._told(super().put(*given, **named))

    def take_over(self) -> tuple[list[Kept], list[Evicted]]:
        taken, evicted = super().take_over()
        return taken, self._told(evicted)

    @staticmethod
    def _told(evicted: list[Evicted]) -> list[Evicted]:
        for gone in evicted:
            running.get().evicted(gone)
        return evicted


class _Place(RelayPlace):
    """A relay's place, in which a dead one changes nothing."""

    def retract(self, address: Path) -> None:
        if not running.get().is_dead:
            super().retract(address)


async def _connect(path: Any) -> trio.SocketStream:
    if running.get().is_dead:
        await trio.sleep_forever()
    return await connect(path)


def _listening(*given: Any, **named: Any) -> ProcessListener:
    listener = listening(*given, **named)
    running.get().listeners.append(listener)
    return listener


async def _run_sync(
    call: Callable[..., Any],
    *given: Any,
    limiter: trio.CapacityLimiter | None = None,
    **_named: Any,
) -> Any:
    return await running.get().in_a_thread(partial(call, *given), limiter)


@contextmanager
def _open_signal_receiver(*_signals: int) -> Iterator[trio.MemoryReceiveChannel[int]]:
    send, receive = trio.open_memory_channel[int](100)
    running.get().signals = send
    try:
        with send, receive:
            yield receive
    finally:
        running.get().signals = None


@contextmanager
def kernel(*, send_room: int) -> Iterator[None]:
    """Let the library's system calls be those of simulated processes.

    Args:
        send_room: bytes that a socket holds in each direction.
    """
    begin_end = End.__init__

    def begin(end: End, stream: trio.SocketStream) -> None:
        begin_end(end, stream)
        process = running.get()
        process.ends.append(end)
        if process.is_dead:
            _cut(end)

    with (
        mock.patch.object(End, "__init__", begin),
        mock.patch("trimaran._process.end._SEND_ROOM", send_room),
        mock.patch("trimaran._relay.client.connect", _connect),
        mock.patch("trimaran._relay.door.listening", _listening),
        mock.patch("trimaran._relay.server.RelayPlace", _Place),
        mock.patch("trimaran._relay.outlet.SpoolFile", _File),
        mock.patch("trimaran._spool.file.SpoolFile", _File),
        mock.patch("trio.to_thread.run_sync", _run_sync),
        mock.patch("trio.open_signal_receiver", _open_signal_receiver),
    ):
        yield
