"""The server end: takes batches over HTTP, keeps them, shows what is there.

The data goes down the list: ``server`` (connections), ``app`` (requests), ``access``
(tokens), ``encoding`` and ``ingest`` (a body becomes a batch), ``store`` (the seam), and what
stands behind it: ``sqlite`` (a file), ``clickhouse`` (a server that receivers share) or
``forward`` (keeps nothing but what still has to be passed on); ``pages`` shows it to a person.
This file joins them into :func:`run_receiver`.

Needs the extra ``receiver``: ``pip install 'trimaran[receiver]'``.
"""

import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio
from starlette.types import ASGIApp

from trimaran._diagnostics import Diagnostics
from trimaran.receiver.access import TokenFileError, is_loopback, read_token_file
from trimaran.receiver.app import MAX_BODY, create_app, create_forwarding_app
from trimaran.receiver.clickhouse import is_clickhouse, open_clickhouse
from trimaran.receiver.forward import Forward, open_forwarder
from trimaran.receiver.server import serve
from trimaran.receiver.sqlite import BUSY_TIMEOUT, open_sqlite
from trimaran.receiver.store import Store, StoreError, StoreUnavailable

__all__ = [
    "Forward",
    "Receiver",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "TokenFileError",
    "create_app",
    "open_store",
    "read_token_file",
    "run_receiver",
]


class Receiver(msgspec.Struct, frozen=True):
    """A receiver that is running."""

    url: str
    """Where it is reached, such as ``http://127.0.0.1:8474``: what a sender is given."""

    database: Path | None
    """The file of its store, if that is one."""

    open_to_network: bool
    """Whether other machines may be able to reach it."""

    where: str = ""
    """Where batches go: the file, the database, or the endpoint; without a password."""


async def run_receiver(
    *,
    host: str = "127.0.0.1",
    port: int = 8474,
    database: str | os.PathLike[str] | None = None,
    forward: Forward | None = None,
    tokens: frozenset[str] = frozenset(),
    max_body: int = MAX_BODY,
    grace: float = 1.0,
    task_status: trio.TaskStatus[Receiver] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Receive until cancelled.

    Made for a nursery of the caller's::

        receiver = await nursery.start(partial(run_receiver, port=0, database="t.sqlite"))
        receiver.url

    After a cancel, requests under way have *grace* seconds to be answered, then the
    store is closed; every batch that was answered with a 200 is in it.

    Args:
        host: A name or address to listen on. On a loopback address, only requests to
            ``localhost`` or a number are answered, so that no page of the web can
            read along through a name of its own.
        port: 0 takes any that is free.
        database: The SQLite file, made if it is not there; or a ClickHouse, see
            :func:`open_store`.
        forward: Where to pass on what comes, in the place of a database. There is nothing
            to be read then.
        tokens: Who may post and read; without one, everybody who can reach it.
        max_body: Bytes of a body, as it comes and when it is decompressed.
        grace: Seconds.
        task_status: Gets the :class:`Receiver` once it listens.

    Raises:
        StoreError: The file, the database or the directory cannot be used.
        OSError: The address cannot be listened on.
        ValueError: There is neither a database nor an endpoint, or both are there.
    """
    if (database is None) == (forward is None):
        raise ValueError("a receiver has either a database or an endpoint to forward to")

    async def run(app: Callable[..., ASGIApp], where: str, path: Path | None) -> None:
        listeners = await _listen(host, port)
        addresses = [listener.socket.getsockname()[:2] for listener in listeners]
        is_open = not all(is_loopback(address) for address, _ in addresses)
        if is_open and not tokens:
            Diagnostics(trio.current_time).warn(
                "receiver_without_tokens", hint="whoever reaches it can post and read", host=host
            )
        made = app(tokens=tokens, max_body=max_body, local_only=not is_open)
        task_status.started(Receiver(_url(*addresses[0]), path, is_open, where))
        await serve(made, listeners, grace=grace)

    if forward is not None:
        async with open_forwarder(forward) as forwarder:
            await run(partial(create_forwarding_app, forwarder), forwarder.where, None)
    else:
        assert database is not None
        path = None if _is_clickhouse(database) else Path(database)
        async with open_store(database) as store:
            await run(partial(create_app, store), store.where, path)


@asynccontextmanager
async def open_store(
    where: str | os.PathLike[str],
    *,
    busy_timeout: float = BUSY_TIMEOUT,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Store]:
    """Open a store, which is made if it is not there.

    Args:
        where: An SQLite file on a disk of this machine, since SQLite's WAL mode does not work
            over a network; or ``clickhouse+http://[user:password@]host[:port]/database``, or
            ``clickhouse+https``, which any number of receivers may share.
        busy_timeout: Seconds to wait for another process that holds the file.
        clock: Gives the seconds since the epoch.

    Raises:
        StoreError: It cannot be used as a store.
    """
    opened = (
        open_clickhouse(str(where), clock=clock)
        if _is_clickhouse(where)
        else open_sqlite(where, busy_timeout=busy_timeout, clock=clock)
    )
    async with opened as store:
        yield store


def _is_clickhouse(where: str | os.PathLike[str]) -> bool:
    return isinstance(where, str) and is_clickhouse(where)


async def _listen(host: str, port: int) -> Sequence[trio.SocketListener]:
    """Listen on every address of *host*; on its first only if any *port* will do.

    The addresses of a name would each get a free port of their own, and a receiver
    has one.
    """
    first, *more = await trio.open_tcp_listeners(port, host=host)
    if port != 0:
        return [first, *more]
    for listener in more:
        listener.socket.close()
    return [first]


def _url(address: str, port: int) -> str:
    """Where a receiver that listens on *address* can be reached from this machine."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - not bound
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"
