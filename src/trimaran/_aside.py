"""Work that blocks, done beside the loop.

In: a call that blocks. Out: what it gives.
Does not know: what for.

In a thread, as long as there can be one. Python 3.12 starts none any more once the main
thread is over, which a loop in another thread, or one at the interpreter's exit, may outlive:
then it is done in the loop itself, since late is better than not at all.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio

__all__ = ["Resolver", "aside"]

_Result = TypeVar("_Result")


async def aside(
    call: Callable[[], _Result], *, limiter: trio.CapacityLimiter | None = None
) -> _Result:
    """What *call* gives, or raises. Cancelled, it is left to end by itself."""
    has_begun = False

    def begin() -> _Result:
        nonlocal has_begun
        has_begun = True
        return call()

    try:
        return await trio.to_thread.run_sync(begin, abandon_on_cancel=True, limiter=limiter)
    except RuntimeError:
        if has_begun:
            raise
        return call()


class Resolver(trio.abc.HostnameResolver):
    """Asks the operating system, as trio does, but also where there can be no thread."""

    async def getaddrinfo(self, *query: Any, **named: Any) -> Any:  # noqa: ANN401 - the socket module's
        """See :func:`socket.getaddrinfo`."""
        return await aside(partial(socket.getaddrinfo, *query, **named))

    async def getnameinfo(self, *query: Any, **named: Any) -> Any:  # noqa: ANN401 - as above
        """See :func:`socket.getnameinfo`."""
        return await aside(partial(socket.getnameinfo, *query, **named))
