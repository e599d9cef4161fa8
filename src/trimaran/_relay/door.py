"""Where agents find a relay: its socket, which is announced, and looked after.

In: the place of a relay, which is this process's. Out: connections of agents.
Does not know: what is said over them, when a relay ends.

The socket lies in a directory that others empty: a system does so with ``$XDG_RUNTIME_DIR`` when
its user logs out, though what runs in tmux lives on. A relay that cannot be found would still hold
its lock, and so keep every agent from starting another.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

import trio

from trimaran._process import ProcessError, ProcessListener, listening
from trimaran._relay.place import RelayPlace

__all__ = ["LOOK_INTERVAL", "Door"]

LOOK_INTERVAL = 2.0
"""Seconds between two looks whether the socket can still be found. One costs microseconds, and
an agent waits longer for a relay, unless it leaves just then."""

_ACCEPT_PAUSE = 0.1
"""Seconds until the next try when there are no descriptors left; trio's choice too."""

_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_Meet: TypeAlias = Callable[[trio.SocketStream], Awaitable[object]]


class Door:
    """A relay's socket, and the address that leads agents there.

    Args:
        place: the relay's; whoever makes a door holds its lock.
        environ: where the place of the socket comes from.

    Raises:
        ProcessError: there is no place for the socket.
        OSError: it cannot be announced.
    """

    def __init__(self, place: RelayPlace, environ: Mapping[str, str]) -> None:
        self._place = place
        self._environ = environ
        self._listener = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def receive(self, meet: _Meet, *, connections: trio.Nursery) -> str:
        """*Meet* each agent in a task of *connections*.

        A socket that cannot be found any more is replaced; connections stay. Returns only when
        there is no place for another one, or somebody else is the relay here, and says so.
        """
        while True:
            await self._accept_while_found(meet, connections)
            if self._place.address() not in {None, self._listener.path}:
                return "somebody else is the relay here"
            self._close()
            try:
                self._listener = self._opened()
            except (ProcessError, OSError) as error:
                return str(error)

    def retract(self) -> None:
        """Lead nobody here any more. Whoever is on the way is still let in."""
        self._place.retract(self._listener.path)

    def _opened(self) -> ProcessListener:
        listener = listening("relay", self._environ)
        try:
            self._place.announce(listener.path)
        except BaseException:
            listener.close()
            raise
        return listener

    def _close(self) -> None:
        self.retract()
        self._listener.close()

    async def _accept_while_found(self, meet: _Meet, connections: trio.Nursery) -> None:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(_accept, self._listener, meet, connections)
            while self._is_found():  # noqa: ASYNC110 - no event tells that a file is gone
                await trio.sleep(LOOK_INTERVAL)
            accepting.cancel_scope.cancel()

    def _is_found(self) -> bool:
        return self._listener.is_there() and self._place.address() == self._listener.path


async def _accept(listener: ProcessListener, meet: _Meet, connections: trio.Nursery) -> None:
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _LACKS:
                raise
            await trio.sleep(_ACCEPT_PAUSE)
        else:
            connections.start_soon(meet, stream)
