"""``trimaran status``: whether events are sent, by which switch, and where to.

In: an app's name, the environment, perhaps a file with an account.
Out: a table of the switches, and of what a test of the destination found.
Does not know: how it is decided, for which it asks who decides for the app itself; how it is
tested.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn
from urllib.request import getproxies

import click
import structlog
import trio

from trimaran._account import CredentialsError, CredentialsFile
from trimaran._decision import Decision, Tier, opted_out, switch_name
from trimaran._pipeline.redact import mask_text
from trimaran._pipeline.wire import endpoint_url
from trimaran._telemetry import open_telemetry
from trimaran.cli._errors import FAILED, Failure
from trimaran.cli._options import app_option, to_option
from trimaran.cli._system import system_of
from trimaran.cli._terminal import console, new_table, printable
from trimaran.cli.status_probe import examine
from trimaran.cli.status_target import Target, of_endpoint, of_system

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
@to_option
@click.option("--offline", is_flag=True, help="Look at the switches alone, and contact nobody.")
def status(*, app: str, credentials: str | None, to: str | None, offline: bool) -> int:
    """Say whether events are sent, why and where to, and whether they get there.

    What decides is listed in the order in which it is looked at; the first that applies wins.
    The program may also be told in its own code to be silent, which cannot be seen from here.

    Then the destination is tested: whether its name resolves, whether somebody listens, who that
    is, and whether it takes what it is sent, which is a request without any event. With --to that
    test of another system is all that is done.

    \b
    Examples:
      trimaran status --app myagent
      trimaran status --app myagent --credentials ~/.myagent/credentials.json
      trimaran status --to otlp+http://127.0.0.1:4318
      trimaran status --to langfuse

    Exit status: 0 if events are sent, and would be taken; 1 if not.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    if to is None:
        return trio.run(_status, app, credentials, offline)
    if offline or credentials is not None:
        raise click.UsageError(
            f"--to is for a test alone: leave out {'--offline' if offline else '--credentials'}"
        )
    return trio.run(_test, of_system(system_of(to, os.environ, app=app)))


async def _status(app: str, credentials: str | None, offline: bool) -> int:  # noqa: FBT001 - trio.run takes no keywords
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
    if not decision.enabled or offline:
        return 0 if decision.enabled else FAILED
    return await _test(of_endpoint(decision, await _token(decision, provider)))


async def _token(decision: Decision, provider: CredentialsFile | None) -> str | None:
    if provider is None or decision.tier is not Tier.AUTHENTICATED:
        return None
    try:
        return await provider.token(refresh=False)
    except CredentialsError as error:  # it could be read a moment ago
        raise Failure(str(error)) from None


async def _test(target: Target) -> int:
    """Test *target*, and say what was found.

    Raises:
        Failure: something is wrong with it.
    """
    stdout = console()
    stdout.print(f"Test of {target.name}: POST {target.url}, without an event", soft_wrap=True)
    steps = await examine(target, getproxies())
    table = new_table("Step", "Found")
    for step in steps:
        table.add_row(step.name, "failed" if step.problem else printable(step.found))
    stdout.print(table)
    if problem := steps[-1].problem:
        raise Failure(f"{target.url}: {problem}")
    stdout.print("All is well: what is sent there is taken.")
    return 0


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
