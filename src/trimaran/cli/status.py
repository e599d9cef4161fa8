"""``trimaran status``: whether events are sent, by which switch, and where to.

In: an app's name, the environment, perhaps a file with an account.
Out: a table of the switches. Nothing is sent.
Does not know: how it is decided; it asks who decides for the app itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import click
import structlog
import trio

from trimaran._account import CredentialsError, CredentialsFile
from trimaran._decision import Decision, opted_out, switch_name
from trimaran._pipeline.redact import mask_text
from trimaran._pipeline.wire import endpoint_url
from trimaran._telemetry import open_telemetry
from trimaran.cli._errors import FAILED
from trimaran.cli._options import app_option
from trimaran.cli._terminal import console, new_table, printable

__all__ = ["Switch", "status", "switches"]


class Switch(NamedTuple):
    """One of the things that decide, in order."""

    name: str
    """As a decision calls it."""
    value: str
    effect: str
    """What it does if it applies."""


@click.command()
@app_option
@click.option(
    "--credentials",
    metavar="FILE",
    type=click.Path(),
    help="The file with the account, where the program has one.",
)
def status(app: str, credentials: str | None) -> int:
    """Say whether events are sent, why, and where to.

    Nothing is sent by this. What decides is listed in the order in which it is looked at; the
    first that applies wins. The program may also be told in its own code to be silent, which cannot be seen from here.

    \b
    Examples:
      trimaran status --app myagent
      trimaran status --app myagent --credentials ~/.myagent/credentials.json

    Exit status: 0 if events are sent, 1 if not.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    return trio.run(_status, app, credentials)


async def _status(app: str, credentials: str | None) -> int:
    structlog.configure(processors=[_keep_silent])  # the table says it
    provider = None if credentials is None else CredentialsFile(credentials)
    async with open_telemetry(app, account=provider) as telemetry:
        decision = telemetry.decision
    account = "no file is named, see --credentials"
    if provider is not None:
        account = "not looked at, since telemetry is switched off"
        if opted_out(app, os.environ) is None:
            account = await _describe(provider)
    _print(app, decision, switches(app, os.environ, account))
    return 0 if decision.enabled else FAILED


def _keep_silent(_logger: object, _name: str, _record: object) -> NoReturn:
    raise structlog.DropEvent


async def _describe(provider: CredentialsFile) -> str:
    """What is in the file, the token masked."""
    try:
        account = await provider.account()
    except CredentialsError as error:
        return str(error)
    if account is None:
        return "nobody is logged in: there is no such file"
    return f"{account.url}, {account.email or 'no e-mail'}, token [masked]"


def switches(app: str, environ: Mapping[str, str], account: str) -> list[Switch]:
    """What decides for *app*, in order; *account* is what is known of its account."""
    disabled, url = switch_name(app, "DISABLED"), switch_name(app, "URL")
    return [
        Switch("DO_NOT_TRACK", _shown(environ.get("DO_NOT_TRACK")), "switches off"),
        Switch(disabled, _shown(environ.get(disabled)), "switches off"),
        Switch("account", account, "sends with its token"),
        Switch(url, _shown(environ.get(url)), "sends anonymously"),
        Switch("default", "", "off"),
    ]


def _shown(value: str | None) -> str:
    """The value of a variable, which may hold anything."""
    return "not set" if value is None else mask_text(value)


def _print(app: str, decision: Decision, found: Sequence[Switch]) -> None:
    stdout = console()
    table = new_table("", "Switch", "Value", "If it applies")
    for switch in found:
        wins = switch.name == decision.source
        table.add_row(
            ">" if wins else "",
            *(printable(cell) for cell in switch),
            style="bold" if wins else None,
        )
    stdout.print(printable(f"Telemetry of {app}: {decision.tier}, {decision.reason}."))
    if decision.url is None:
        stdout.print("Nothing is sent, and nobody is contacted.")
    else:
        stdout.print(f"Events go to: POST {endpoint_url(decision.url)}", soft_wrap=True)
    stdout.print(table)
