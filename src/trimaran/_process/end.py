"""What both ends of a channel are: a connection that is written to, read, and closed.

In: bytes to write, of which the kernel may take a part at first. Out: bytes that came.
Does not know: values, acknowledgements, which of the two ends it is.

Nothing is awaited between what the kernel took and what is noted of it, so that a cancel can
come at any checkpoint and leave the stream in step.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

__all__ = ["End", "PeerClosed"]

_CHUNK = 65_536
"""Bytes read at once, at most."""

_SEND_ROOM = 131_072
"""Bytes the kernel is asked to hold for each direction: macOS has 8,192 for a Unix socket,
which is less than a window of answers."""

_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""A host may have left SIGPIPE to its default, as commands do: it must not die of a peer."""


class PeerClosed(trio.BrokenResourceError):
    """The receiving end was closed on purpose: it wants no more."""


class End(trio.abc.AsyncResource):
    """One end of a connection. What it began to write can be finished by whoever writes next.

    Args:
        stream: A connection, which is this end's from now on.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.settimeout(0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_ROOM)
        self._turn = trio.StrictFIFOLock()
        """Who holds it writes."""
        self._owed: bytearray = bytearray()
        """Bytes that have to be written before anything else is."""
        self._is_closed = False
        self._over: tuple[type[Exception], str] | None = None
        """What everyone gets from now on, since nothing can come from the other end."""

    @abstractmethod
    def _last_word(self) -> bytes:
        """What to say to the other end when this one is closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Close this end without waiting. Who waits in it gets a ClosedResourceError.

        The other end hears of it unless the connection is filled up at this moment: then it
        finds a broken peer.
        """
        if not self._is_closed:
            self._part()
            self._hang_up()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close this end. Who waits in it gets a ClosedResourceError.

        Waits only as long as the connection is filled up, so that the other end gets to know
        of it. When that is cancelled, this end is closed, and the other finds a broken peer.
        """
        if not self._is_closed:
            self._part()
            try:
                while self._owed:
                    await trio.lowlevel.wait_writable(self._socket)
                    self._write_now(self._owed)
            except OSError:
                pass  # nobody is there who could be told
            finally:
                self._hang_up()
        await trio.lowlevel.checkpoint()

    def let_go(self) -> None:
        """In a forked child: close its copy, with which the parent's death would go unnoticed.

        Trio and the other end are not told of it: the connection is still the parent's.
        """
        self._is_closed = True
        self._socket.close()

    def _part(self) -> None:
        """Let nobody else use this end, and say the last word as far as the kernel takes it."""
        self._is_closed = True
        if self._over is None:
            self._owed += self._last_word()
        try:
            self._write_now(self._owed)
        except OSError:
            self._owed.clear()
        trio.lowlevel.notify_closing(self._socket)

    def _hang_up(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this end was closed")

    def _raise_if_over(self) -> None:
        self._raise_if_closed()
        if self._over is not None:
            kind, reason = self._over
            raise kind(reason)

    def _write_now(self, data: bytearray) -> None:
        """Write as much of *data* as the kernel takes, and remove it."""
        with suppress(BlockingIOError):
            while data:
                del data[: self._socket.send(data, _NO_SIGNAL)]

    async def _until_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)
        self._raise_if_closed()  # which may have happened since that was reached

    def _read_now(self) -> bytes | None:
        """What came; None if nothing did, empty if nothing ever will."""
        try:
            return self._socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""
