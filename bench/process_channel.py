"""What a value costs from one process to another.

In: how many values of which size. Out: rows.
Does not know: what is in a value.

The floor is the same frames over the same kind of socket with nobody who counts them: no
acknowledgements, no window. ``python -m bench.process_channel WAY COUNT SIZE`` measures one
round, in two processes of its own (one, for a memory channel); the processor time is that of
both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import trio

from bench.rounds import samples
from bench.rows import Aim, Row
from bench.send import Spent
from trimaran._process import ProcessReceiveChannel, ProcessSendChannel, connect, listening
from trimaran._process.channel import WINDOW
from trimaran._process.frames import Frame, FrameKind, encode_frame

__all__ = ["process_channel"]

_WAYS = ("memory", "bare", "process")
_SIZES = {"a value of 300 bytes": 300, "a value of 50,000 bytes": 50_000}
"""About an event, and about a batch of 200."""
_MOST_FLOORS = 3.0


async def process_channel(*, rounds: int, values: int) -> list[Row]:
    """Send *values* in each of the ways in turn."""
    rows: list[Row] = []
    for what, size in _SIZES.items():
        count = values if size < 1_000 else values // 10
        spent = await samples(
            {way: partial(_measure, way, count, size) for way in _WAYS}, rounds=rounds
        )
        cpu = {way: median(one.cpu for one in taken) for way, taken in spent.items()}
        wall = {way: median(one.wall for one in taken) for way, taken in spent.items()}
        for name, seconds in (("processor time", cpu), ("wall time", wall)):
            for way, floor, aim in (
                ("process", seconds["bare"], Aim("ratio", _MOST_FLOORS)),
                ("memory", None, None),
            ):
                rows.append(
                    Row(
                        group=f"{what}, floor: a bare socket",
                        name=f"{name}, {way} channel",
                        unit="us",
                        value=seconds[way] / count * 1e6,
                        floor=None if floor is None else floor / count * 1e6,
                        aim=aim,
                    )
                )
    return rows


async def _measure(way: str, count: int, size: int) -> Spent:
    command = [sys.executable, "-m", "bench.process_channel", way, str(count), str(size)]
    done = await trio.run_process(command, capture_stdout=True)
    return msgspec.json.decode(done.stdout, type=Spent)


class _Watch:
    """Seconds since it was made: of the clock, and of this process."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def spent(self) -> Spent:
        return Spent(cpu=time.process_time() - self._cpu, wall=time.perf_counter() - self._wall)


async def _memory(count: int, size: int) -> Spent:
    """Two tasks."""
    send, receive = trio.open_memory_channel[bytes](WINDOW)
    watch = _Watch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_all, send, count, size)
        assert await _receive_all(receive) == count
    return watch.spent()


async def _two_processes(way: str, count: int, size: int) -> Spent:
    """The receiving one of two."""
    with (
        tempfile.TemporaryDirectory(prefix="tri-") as directory,
        listening("bench", {"XDG_RUNTIME_DIR": directory}) as listener,
    ):
        command = [sys.executable, "-m", "bench.process_channel", way, str(count), str(size)]
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, [*command, listener.path], stdout=subprocess.PIPE)
            sender: trio.Process = await nursery.start(start)
            stream = await listener.accept()
            watch = _Watch()
            if way == "bare":
                received = await _receive_bare(stream, size)
            else:
                with ProcessReceiveChannel(stream) as channel:
                    received = await _receive_all(channel)
            mine = watch.spent()
            assert received == count
            assert sender.stdout is not None
            said = b"".join([part async for part in sender.stdout])
    return Spent(cpu=mine.cpu + msgspec.json.decode(said, type=Spent).cpu, wall=mine.wall)


async def _send(way: str, count: int, size: int, path: Path) -> Spent:
    """The sending one of two."""
    stream = await connect(path)
    watch = _Watch()
    if way == "bare":
        frame = encode_frame(Frame(FrameKind.DATA, bytes(size)))
        async with stream:
            for _ in range(count):
                await stream.send_all(frame)
    else:
        await _send_all(ProcessSendChannel(stream), count, size)
    return watch.spent()


async def _send_all(channel: trio.abc.SendChannel[bytes], count: int, size: int) -> None:
    value = bytes(size)
    async with channel:
        for _ in range(count):
            await channel.send(value)


async def _receive_all(channel: trio.abc.ReceiveChannel[bytes]) -> int:
    received = 0
    async for _ in channel:
        received += 1
    return received


async def _receive_bare(stream: trio.SocketStream, size: int) -> int:
    """Cut off one frame after the other, all of which have the same length."""
    length = len(encode_frame(Frame(FrameKind.DATA, bytes(size))))
    received = 0
    pending = bytearray()
    async with stream:
        async for data in stream:
            pending += data
            while len(pending) >= length:
                _value = bytes(pending[:length])
                del pending[:length]
                received += 1
    return received


def _main(way: str, count: str, size: str, *path: str) -> None:
    if path:
        run = partial(_send, way, int(count), int(size), Path(*path))
    elif way == "memory":
        run = partial(_memory, int(count), int(size))
    else:
        run = partial(_two_processes, way, int(count), int(size))
    sys.stdout.buffer.write(msgspec.json.encode(trio.run(run)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
