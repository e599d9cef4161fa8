"""``trimaran serve``: a receiver until Ctrl-C.

In: an address and files. Out: a receiver, and a line that says where it is.
Does not know: how events are received.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

import click
import trio

from trimaran.cli._errors import Failure
from trimaran.cli._signals import Interrupt, run_interruptible
from trimaran.cli._terminal import console, leave_line, printable, tell_diagnostics
from trimaran.cli.serve_place import Place, place_of, place_options

if TYPE_CHECKING:
    from trimaran.receiver import Receiver

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "cannot_listen", "serve", "start_receiver"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8474


@click.command()
@click.option(
    "--host", default=DEFAULT_HOST, show_default=True, help="The name or address to listen on."
)
@click.option(
    "--port",
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes any that is free.",
)
@place_options
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(),
    help="Take only what comes with one of the tokens in this file, one a line.",
)
@click.option(
    "--max-body",
    metavar="BYTES",
    type=click.IntRange(min=1),
    help="What a request may have, also decompressed.  [default: 1 MiB]",
)
def serve(
    *,
    host: str,
    port: int,
    database: str | None,
    store: str | None,
    forward: str | None,
    spool: str | None,
    spool_bytes: int | None,
    token_file: str | None,
    max_body: int | None,
) -> int:
    """Receive events, keep them, and show them; or pass them on.

    Programs send to POST /api/observability/ingest; a person looks at the address itself; what
    there is can be read as JSON at /api/sessions. A batch is confirmed when it is on disk. What is
    passed on is to be looked at where it goes.

    \b
    Examples:
      trimaran serve --database telemetry.sqlite
      trimaran serve --database t.sqlite --host 0.0.0.0 --token-file tokens.txt
      trimaran serve --store clickhouse+http://127.0.0.1:8123/telemetry
      trimaran serve --forward otlp+http://127.0.0.1:4318 --spool waiting

    Ctrl-C and SIGTERM end it, after the requests under way; exit status 0 then.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    try:
        place = place_of(
            os.environ,
            database=database,
            store=store,
            forward=forward,
            spool=spool,
            spool_bytes=spool_bytes,
        )
    except ModuleNotFoundError as missing:
        raise _without_extra(missing) from None
    return run_interruptible(
        partial(
            _serve,
            host=host,
            port=port,
            place=place,
            token_file=token_file,
            max_body=max_body,
        )
    )


async def _serve(
    interrupt: Interrupt,
    *,
    host: str,
    port: int,
    place: Place,
    token_file: str | None,
    max_body: int | None,
) -> int:
    tell_diagnostics(console(stderr=True))
    stdout = console()
    with interrupt.ends():
        async with trio.open_nursery() as nursery:
            receiver = await start_receiver(
                nursery,
                host=host,
                port=port,
                place=place,
                token_file=token_file,
                max_body=max_body,
            )
            stdout.print(
                f"Receiving on {receiver.url}, into {printable(receiver.where)} (Ctrl-C ends)",
                soft_wrap=True,
            )
    leave_line(stdout)
    return 0


async def start_receiver(
    nursery: trio.Nursery,
    *,
    place: Place,
    host: str = DEFAULT_HOST,
    port: int = 0,
    token_file: str | None = None,
    max_body: int | None = None,
) -> Receiver:
    """Start a receiver in *nursery*; it runs until that is cancelled.

    Raises:
        Failure: it cannot be started; says why, and what to do.
    """
    try:
        from trimaran.receiver import (  # noqa: PLC0415 - an extra of its own
            StoreError,
            TokenFileError,
            read_token_file,
            run_receiver,
        )
        from trimaran.receiver.app import MAX_BODY  # noqa: PLC0415 - an extra of its own
    except ModuleNotFoundError as missing:
        raise _without_extra(missing) from None
    try:
        tokens = frozenset[str]() if token_file is None else read_token_file(token_file)
        started: Receiver = await nursery.start(
            partial(
                run_receiver,
                host=host,
                port=port,
                database=place.database,
                forward=place.forward,
                tokens=tokens,
                max_body=MAX_BODY if max_body is None else max_body,
            )
        )
    except TokenFileError as error:
        raise Failure(f"{error}; name another one with --token-file") from None
    except StoreError as error:
        raise Failure(f"{error}; {place.advice}") from None
    except OSError as error:
        raise Failure(cannot_listen(host, port, error)) from None
    return started


def _without_extra(missing: ModuleNotFoundError) -> Failure:
    return Failure(
        f"a receiver needs the extra 'receiver' ({missing.name} is not there); "
        "run: pip install 'trimaran[all]'"
    )


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Why *error* came of listening there, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use; end the program that has it, "
            "or choose another one with --port"
        )
    if error.errno == errno.EACCES:
        return f"port {port} may not be used; choose one from 1024 on with --port"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; choose another one with --host"
    return f"cannot listen on {host}, port {port}: {error.strerror or error}; see --host and --port"
