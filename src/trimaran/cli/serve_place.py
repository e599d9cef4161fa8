"""Where a receiver is to put what it takes, as a command line says it.

In: options, an environment mapping. Out: what to tell a receiver, and what to tell a person
when that cannot be used.
Does not know: receivers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

if TYPE_CHECKING:
    from trimaran.receiver import Forward

__all__ = ["STORE_VARIABLE", "Place", "place_of", "place_options"]

STORE_VARIABLE = "TRIMARAN_STORE"
"""Says what ``--store`` says, where a password is not to stand on a command line."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A file or a database; or, with no such thing, an endpoint to forward to."""

    database: str | os.PathLike[str] | None = None
    forward: Forward | None = None
    advice: str = "name another file with --database"
    """What to do if it cannot be used."""


def place_options(function: _Function) -> _Function:
    """``--database``, ``--store``, ``--forward`` and what goes with them."""
    for option in reversed(
        (
            click.option(
                "--database",
                metavar="FILE",
                type=click.Path(),
                help="The SQLite file that keeps the events; made if it is not there.",
            ),
            click.option(
                "--store",
                metavar="URL",
                help="Keep the events in a ClickHouse instead, which receivers may share: "
                "clickhouse+http://[USER:PASSWORD@]HOST:PORT/DATABASE, or clickhouse+https. The "
                f"variable {STORE_VARIABLE} says the same, and keeps a password off the command "
                "line.",
            ),
            click.option(
                "--forward",
                metavar="URL",
                help="Pass everything on as spans instead, to what takes OTLP: "
                "otlp+http://HOST:4318, or otlp+https; or otlp or langfuse, as with --to of "
                '"status". The variables OTEL_EXPORTER_OTLP_* say how.',
            ),
            click.option(
                "--spool",
                metavar="DIR",
                type=click.Path(),
                help="With --forward: where events wait until they are passed on.",
            ),
            click.option(
                "--spool-bytes",
                metavar="BYTES",
                type=click.IntRange(min=1),
                help="With --forward: what may wait there.  [default: 1 GiB]",
            ),
        )
    ):
        function = option(function)
    return function


def place_of(
    environ: Mapping[str, str],
    *,
    database: str | None,
    store: str | None,
    forward: str | None,
    spool: str | None,
    spool_bytes: int | None,
) -> Place:
    """What the options say; the variable counts where they say nothing.

    Raises:
        click.UsageError: they do not say where, or say more than one thing.
    """
    named = [value for value in (database, store, forward) if value is not None]
    if len(named) > 1:
        raise click.UsageError("only one of --database, --store and --forward can be used")
    if forward is not None:
        return _forwarding(environ, forward, spool, spool_bytes)
    if spool is not None or spool_bytes is not None:
        raise click.UsageError("--spool and --spool-bytes go with --forward")
    if database is not None:
        return Place(database=database)
    name = "--store"
    if store is None:
        store, name = environ.get(STORE_VARIABLE), f"the variable {STORE_VARIABLE}"
    if not store:
        raise click.UsageError(
            "say where events go, with --database FILE, --store URL or --forward URL"
        )
    if not store.startswith(("clickhouse+http://", "clickhouse+https://")):
        raise click.UsageError(
            f"{name} takes clickhouse+http://[USER:PASSWORD@]HOST:PORT/DATABASE, or "
            "clickhouse+https; for a file there is --database"
        )
    return Place(database=store, advice=f"correct {name}, or see to the server")


def _forwarding(
    environ: Mapping[str, str], url: str, spool: str | None, spool_bytes: int | None
) -> Place:
    from trimaran.cli._system import system_of  # noqa: PLC0415 - only here, and not at once
    from trimaran.receiver import Forward  # noqa: PLC0415 - an extra of its own
    from trimaran.receiver.forward import SPOOL_BYTES  # noqa: PLC0415 - as above

    if not spool:
        raise click.UsageError("--forward needs a directory where events wait; add --spool DIR")
    try:
        # Each event's own app is the service, if no variable names one.
        settings = system_of(url, environ, app="").settings
    except ValueError as error:
        raise click.UsageError(f"--forward: {error}") from None
    return Place(
        forward=Forward(
            settings=settings,
            spool=spool,
            most_bytes=SPOOL_BYTES if spool_bytes is None else spool_bytes,
        ),
        advice="name another directory with --spool",
    )
