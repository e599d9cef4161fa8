"""Serve an ASGI application until cancelled, then end within a bounded time.

In: an application and the listeners it answers on.
Out: answered requests; after a cancel, those under way get a grace, then are cut off.
Does not know: what the application does.

The protocol is hypercorn's. Its own ``hypercorn.trio.serve`` is not used, since it
shields its writing to a client without a deadline: one client that stops reading in
the middle of a long answer keeps it from ever ending, whatever its timeouts say.
Here every write has a deadline, and what is left after the grace loses its socket.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

__all__ = ["serve"]

IDLE_TIMEOUT = 30
"""Seconds after which a connection is closed that is idle, or slow to send its headers.

Senders flush every 5 s, and should find their connection still there.
"""

WRITE_TIMEOUT = 30.0
"""Seconds that a client may take to read one piece of its answer."""

_logger = logging.getLogger(__name__)


async def serve(
    app: ASGIApp,
    listeners: Sequence[trio.SocketListener],
    *,
    grace: float,
    write_timeout: float = WRITE_TIMEOUT,
) -> None:
    """Answer requests that come in on *listeners*, until cancelled.

    After a cancel the listeners and the idle connections are closed. Requests under
    way have *grace* seconds to be answered, then their connections are closed as well.
    """
    config = _config()
    context = WorkerContext(None)
    open_streams: set[trio.SocketStream] = set()

    async def answer(stream: trio.SocketStream) -> None:
        open_streams.add(stream)
        try:
            await TCPServer(
                ASGIWrapper(cast(ASGIFramework, app)),
                config,
                context,
                ConnectionState({}),
                cast("trio.SSLStream[trio.SocketStream]", _BoundedStream(stream, write_timeout)),
            )
        except Exception:  # a bug that one client meets must not take the others down
            _logger.exception("A connection was broken off")
        finally:
            open_streams.discard(stream)

    async def cut_off(connections: trio.Nursery) -> None:
        await trio.sleep(grace)
        for stream in open_streams:
            stream.socket.close()  # ends a shielded write, which a cancel does not
        connections.cancel_scope.cancel()

    closing = trio.Event()
    async with trio.open_nursery() as outside:
        outside.start_soon(_set_when_cancelled, closing)
        with trio.CancelScope(shield=True):  # cut_off bounds it
            async with trio.open_nursery() as guard:
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as accepting:
                        accepting.start_soon(
                            partial(
                                trio.serve_listeners,
                                answer,
                                list(listeners),
                                handler_nursery=connections,
                            )
                        )
                        await closing.wait()
                        accepting.cancel_scope.cancel()
                    await context.terminated.set()
                    guard.start_soon(cut_off, connections)
                guard.cancel_scope.cancel()


async def _set_when_cancelled(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = _logger
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_TIMEOUT
    # Hypercorn would close a connection after 1,000 requests, on HTTP/2 in a way that
    # clients take for an error. It is a guard against leaks; a sender keeps one
    # connection for days, and loses an attempt each time.
    config.keep_alive_max_requests = 2**31
    return config


class _BoundedStream:
    """A stream as hypercorn uses one, with a deadline on every write."""

    def __init__(self, stream: trio.SocketStream, write_timeout: float) -> None:
        self.socket = stream.socket
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose
        self._stream = stream
        self._write_timeout = write_timeout

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self._write_timeout) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            self.socket.close()  # hypercorn would go on waiting for the next request
            raise trio.BrokenResourceError("the client does not read its answer")
