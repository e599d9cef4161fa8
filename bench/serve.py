"""A server in a process of its own: ``python -m bench.serve KIND DATABASE``.

In: posts. Out: its URL, as a line; then answers until it is ended.
Does not know: who posts.

``sink`` reads each body and answers 200, with as little work as that can be done, so
that it is not the bottleneck. ``receiver`` is Trimaran's own, which stores the events.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

__all__ = ["server"]

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_READ = 1 << 18
"""Bytes; a batch of 200 events takes about 60,000."""


@asynccontextmanager
async def server(kind: str) -> AsyncGenerator[str]:
    """The URL of a server that runs while the block does."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "bench.serve", kind, str(Path(directory) / "store.db")]
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
            process: trio.Process = await nursery.start(start)
            assert process.stdout is not None
            line = b""
            while not line.endswith(b"\n"):
                part = await process.stdout.receive_some()
                if not part:
                    raise RuntimeError(f"the {kind} did not start")
                line += part
            yield line.decode().strip()
            nursery.cancel_scope.cancel()


async def _answer(stream: trio.SocketStream) -> None:
    """Answer posts with a known length until the connection ends, in whichever way."""
    with suppress(trio.BrokenResourceError):
        await _answer_posts(stream)


async def _answer_posts(stream: trio.SocketStream) -> None:
    received = b""
    while True:
        while (end := received.find(b"\r\n\r\n")) < 0:
            part = await stream.receive_some(_READ)
            if not part:
                return
            received += part
        missing = end + 4 + _content_length(received[:end]) - len(received)
        while missing > 0:
            missing -= len(part := await stream.receive_some(_READ))
            if not part:
                return
        received = b""  # a client that waits for its answer has sent nothing after it
        await stream.send_all(_ANSWER)


def _content_length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0])


async def _sink(_database: str) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
    await trio.serve_listeners(_answer, listeners)


async def _receiver(database: str) -> None:
    from trimaran.receiver import run_receiver  # noqa: PLC0415 - the sink needs no extra

    async with trio.open_nursery() as nursery:
        receiver = await nursery.start(partial(run_receiver, port=0, database=Path(database)))
        print(receiver.url, flush=True)


if __name__ == "__main__":
    trio.run({"sink": _sink, "receiver": _receiver}[sys.argv[1]], sys.argv[2])
