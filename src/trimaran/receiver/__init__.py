"""The server end: takes batches over HTTP, keeps them in SQLite, shows what is there.

The data goes down the list: ``server`` (connections), ``app`` (requests), ``access``
(tokens), ``encoding`` and ``ingest`` (a body becomes a batch), ``summary`` (totals),
``store`` and ``database`` (SQLite); ``pages`` shows it to a person. This file joins
them into :func:`run_receiver`.

Needs the extra ``receiver``: ``pip install 'trimaran[receiver]'``.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from trimaran._diagnostics import Diagnostics
from trimaran.receiver.access import TokenFileError, is_loopback, read_token_file
from trimaran.receiver.app import MAX_BODY, create_app
from trimaran.receiver.server import serve
from trimaran.receiver.store import Store, StoreError, StoreUnavailable, open_store

__all__ = [
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

    database: Path
    """The file of its store."""

    open_to_network: bool
    """Whether other machines may be able to reach it."""


async def run_receiver(
    *,
    host: str = "127.0.0.1",
    port: int = 8474,
    database: str | os.PathLike[str],
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
    file is closed; every batch that was answered with a 200 is in it.

    Args:
        host: A name or address to listen on. On a loopback address, only requests to
            ``localhost`` or a number are answered, so that no page of the web can
            read along through a name of its own.
        port: 0 takes any that is free.
        database: The SQLite file, made if it is not there.
        tokens: Who may post and read; without one, everybody who can reach it.
        max_body: Bytes of a body, as it comes and when it is decompressed.
        grace: Seconds.
        task_status: Gets the :class:`Receiver` once it listens.

    Raises:
        StoreError: The file cannot be used.
        OSError: The address cannot be listened on.
    """
    async with open_store(database) as store:
        listeners = await _listen(host, port)
        addresses = [listener.socket.getsockname()[:2] for listener in listeners]
        open_to_network = not all(is_loopback(address) for address, _ in addresses)
        if open_to_network and not tokens:
            Diagnostics(trio.current_time).warn(
                "receiver_without_tokens", hint="whoever reaches it can post and read", host=host
            )
        app = create_app(store, tokens=tokens, max_body=max_body, local_only=not open_to_network)
        task_status.started(Receiver(_url(*addresses[0]), store.path, open_to_network))
        await serve(app, listeners, grace=grace)


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
