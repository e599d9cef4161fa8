"""The command line as a whole: its parts, its version, and how it ends.

In: the words of a command line. Out: an exit status.
Does not know: what the commands do.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import cast

import click

from trimaran._version import __version__
from trimaran.cli._errors import FAILED, alone, line_of
from trimaran.cli._terminal import console, say
from trimaran.cli.demo import demo
from trimaran.cli.pipe import pipe
from trimaran.cli.relay import relay
from trimaran.cli.serve import serve
from trimaran.cli.show import show
from trimaran.cli.spool import spool
from trimaran.cli.status import status

__all__ = ["app", "run"]

INTERRUPTED = 130
"""The exit status of what Ctrl-C ended: 128 and the signal's number."""


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context) -> None:
    """Telemetry for AI-agent sessions.

    \b
    See it work, with agents and a receiver of its own:
      trimaran demo
    Receive, and look at http://127.0.0.1:8474 what came:
      trimaran serve --database telemetry.sqlite
    Send what was recorded as lines of JSON:
      trimaran pipe events.jsonl --app myagent --url http://127.0.0.1:8474

    Exit status: 0 for success, 1 for a failure, 2 for a wrong use.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (demo, serve, pipe, show, status, spool, relay):
    app.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Run the command; every foreseeable error becomes one line on stderr."""
    # A name may have in it what the output's encoding has not.
    cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="replace")
    try:
        status = app.main(list(arguments), prog_name="trimaran", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - a bug is raised again
        return _ended_by(alone(error))
    return status if isinstance(status, int) else 0


def _ended_by(error: BaseException) -> int:
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has seen enough. What is still buffered has no reader, and
        # would be complained about when Python closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    told = line_of(error)
    if told is None:
        raise error
    line, exit_status = told
    say(console(stderr=True), line)
    return exit_status
