"""Bytes from a file or a pipe, as numbered lines of bounded length.

In: a path, or ``-`` for the standard input.
Out: chunks as they come; lines, cut out of chunks.
Does not know: what a line means.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

__all__ = ["STANDARD_INPUT", "Line", "LineSplitter", "Source", "open_source"]

STANDARD_INPUT = "-"

LONGEST_LINE = 1024 * 1024
"""Bytes of a line at most: sixteen times what an event may have, since long error texts
are shortened before they are measured."""

_CHUNK = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line without its end."""

    number: int
    """Counts from 1."""
    content: bytes | None
    """None for a line that is too long, of which nothing is kept."""


class LineSplitter:
    """Cuts chunks into lines; pure.

    Args:
        longest: bytes of a line at most.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._pieces: list[bytes] = []
        self._size = 0
        self._number = 0

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that end in *chunk*."""
        first, *others = chunk.split(b"\n")
        self._grow(first)
        for piece in others:
            yield self._cut()
            self._grow(piece)

    def end(self) -> Iterator[Line]:
        """The last line, if it has no end of its own."""
        if self._size:
            yield self._cut()

    def _grow(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._longest:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _cut(self) -> Line:
        self._number += 1
        content = None if self._size > self._longest else b"".join(self._pieces)
        if content is not None and self._number == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        self._pieces.clear()
        self._size = 0
        return Line(self._number, content)


class Source:
    """An open file descriptor.

    Args:
        descriptor: to read from.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        """Bytes of a file; None for a pipe or a terminal, which end when they end."""
        self.is_terminal = os.isatty(descriptor)

    async def read(self) -> bytes:
        """What there is by now, as soon as there is any; nothing at the end.

        In a thread: that works for files, pipes and terminals alike, and leaves the mode
        of a terminal as it is, which other programs have open too. A cancel leaves the
        thread behind, and what it may still read is lost.
        """
        return await trio.to_thread.run_sync(
            os.read, self._descriptor, _CHUNK, abandon_on_cancel=True
        )


@asynccontextmanager
async def open_source(path: str) -> AsyncGenerator[Source]:
    """Open the file at *path*; ``-`` is the standard input, which is left open.

    Raises:
        OSError: it cannot be opened.
    """
    if path == STANDARD_INPUT:
        yield Source(0)
        return
    # In a thread: to open a named pipe waits for its other end.
    descriptor = await trio.to_thread.run_sync(
        os.open, path, os.O_RDONLY | getattr(os, "O_BINARY", 0), abandon_on_cancel=True
    )
    try:
        yield Source(descriptor)
    finally:
        os.close(descriptor)
