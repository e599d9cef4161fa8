"""Real connections between two ends, over a socket in a directory with a short path."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from trimaran._process import connect, listening


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory of its own; what pytest makes is often too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="tri-") as path:
        yield Path(path)


async def connection(directory: Path) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a connection, and the listener is gone."""
    with listening("pair", {"XDG_RUNTIME_DIR": str(directory)}) as listener:
        return await connect(listener.path), await listener.accept()
