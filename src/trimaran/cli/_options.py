"""The options that several commands share.

In: a command's function. Out: the same with options.
Does not know: what the options mean to a command.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from trimaran._decision import url_problem
from trimaran.cli._input import STANDARD_INPUT
from trimaran.cli._system import system_of

__all__ = ["app_option", "check_directory", "destination_options", "replay_options", "to_option"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _check_app(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not any(letter.isalnum() for letter in value):
        raise click.BadParameter("it must have a letter or a digit in it")
    return value


def _check_url(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and (problem := url_problem(value, with_token=False)):
        raise click.BadParameter(f"it {problem}")
    return value


def check_directory(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    """A directory that is named has a name."""
    if value == "":
        raise click.BadParameter("it is empty")
    return value


def _check_session(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    if value == "":
        raise click.BadParameter("it is empty")
    return value


def _check_system(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    """What is named can be sent to, as things are; the command reads it again."""
    if value is not None:
        try:
            system_of(value, os.environ, app="trimaran")
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


def app_option(function: _Function) -> _Function:
    """``--app``."""
    return click.option(
        "--app",
        default="trimaran",
        show_default=True,
        callback=_check_app,
        help="The program that the events are of; its switches are named after it, as in "
        "MYAGENT_TELEMETRY_URL.",
    )(function)


def destination_options(function: _Function) -> _Function:
    """Where events go, and as whom: ``--url`` and ``--credentials``."""
    return click.option(
        "--url",
        callback=_check_url,
        help="The endpoint; without it, that of the account or of {APP}_TELEMETRY_URL.",
    )(
        click.option(
            "--credentials",
            metavar="FILE",
            type=click.Path(),
            help='Send as the account in this file: {"url", "token", "email"}, mode 0600.',
        )(function)
    )


def to_option(function: _Function) -> _Function:
    """``--to``: where sessions go as traces."""
    return click.option(
        "--to",
        metavar="DESTINATION",
        callback=_check_system,
        help="Another system, which gets sessions as traces: otlp+http://HOST:PORT, "
        "otlp+https://HOST:PORT, otlp (where OTEL_EXPORTER_OTLP_ENDPOINT says) or langfuse (by "
        "LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_BASE_URL).",
    )(function)


def replay_options(function: _Function) -> _Function:
    """What ``pipe`` and ``show`` take."""
    for option in reversed(
        (
            click.argument("path", metavar="[FILE]", default=STANDARD_INPUT),
            app_option,
            destination_options,
            click.option(
                "--session",
                "session_id",
                metavar="ID",
                callback=_check_session,
                help="Put everything into this one session, whatever the lines say.",
            ),
            click.option(
                "--parent-session",
                "parent_session_id",
                metavar="ID",
                help="The session for which all of these worked, as those of sub-agents.",
            ),
            click.option("--project-id", metavar="ID", help="The project, whatever the lines say."),
            click.option(
                "--app-version",
                metavar="VERSION",
                default="",
                help="The version of the program that the events are of.",
            ),
            click.option(
                "--event",
                "names",
                metavar="NAME",
                multiple=True,
                help="Take log records of this name for events too; may be repeated.",
            ),
        )
    ):
        function = option(function)
    return function
