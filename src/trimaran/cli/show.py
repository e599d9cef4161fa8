"""``trimaran show``: what ``pipe`` would send, to the byte; nothing is sent.

In: a file or the standard input. Out: requests, as text on stdout.
Does not know: HTTP. Everything but the last step is what ``pipe`` uses.
"""

from __future__ import annotations

import math
import os
import sys
from functools import partial

import click
import msgspec
import trio

from trimaran._decision import switch_name
from trimaran._transport import Answer, Request
from trimaran.cli._options import replay_options
from trimaran.cli._progress import Display
from trimaran.cli._replay import Options, replay
from trimaran.cli._signals import Interrupt, run_interruptible
from trimaran.cli._terminal import console, say, tell_diagnostics
from trimaran.cli.pipe import PIPE_SETTINGS, exit_status
from trimaran.cli.serve import DEFAULT_HOST, DEFAULT_PORT

__all__ = ["PrintingTransport", "as_text", "show"]

SHOW_SETTINGS = msgspec.structs.replace(
    PIPE_SETTINGS,
    # Who reads the output may take a pause; that is no reason to try again.
    request_timeout=math.inf,
    drain_timeout=0.0,
)

_HERE = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
"""Where a receiver of this machine is, which is shown when nothing says where to send."""


@click.command()
@replay_options
def show(**given: object) -> int:
    """Show what "pipe" would send, and send nothing.

    For each batch: the request without its token, and its body byte for byte, masked as it
    would go out. FILE and the options are those of "pipe". Where nothing says who to send to,
    it is a receiver on this machine.

    \b
    Examples:
      trimaran show events.jsonl
      trimaran show events.jsonl | grep '^{' | python -m json.tool --json-lines

    Exit status: 0, or 1 if there were lines and none was an event.
    """  # noqa: D301 - \b is click's: the lines below stay as they are
    return run_interruptible(
        partial(_show, msgspec.convert({**given, "timeout": math.inf}, Options))
    )


async def _show(options: Options, interrupt: Interrupt) -> int:
    stderr = console(stderr=True)
    tell_diagnostics(stderr)
    transport = PrintingTransport(sys.stdout.fileno(), interrupt)
    outcome = await replay(
        options,
        interrupt,
        Display(stderr, bar=False),
        environ={switch_name(options.app, "URL"): _HERE, **os.environ},
        transport=transport,
        settings=SHOW_SETTINGS,
    )
    if transport.failure is not None:
        raise transport.failure
    total = outcome.books.total
    say(stderr, f"{total.delivered:,} events in {total.batches:,} batches; nothing was sent")
    return exit_status(outcome, interrupt, stderr)


class PrintingTransport:
    """Writes requests where others send them, one at a time; all are taken.

    Args:
        descriptor: an open file to write to.
        interrupt: stopped when that fails, since there is nothing left to do then.
    """

    def __init__(self, descriptor: int, interrupt: Interrupt) -> None:
        self._descriptor = descriptor
        self._interrupt = interrupt
        self._turn = trio.Lock()
        self.failure: OSError | None = None
        """Why it could not be written."""

    async def attempt(self, request: Request) -> Answer:
        """Write *request*, in a thread: who reads may be slow, and a signal must come through.

        Where it cannot be written, it waits to be cancelled.
        """
        async with self._turn:
            try:
                await trio.to_thread.run_sync(
                    _write, self._descriptor, as_text(request), abandon_on_cancel=True
                )
            except OSError as error:
                self.failure = error
                self._interrupt.stop()
                await trio.sleep_forever()
        return Answer(200)

    async def aclose(self) -> None:
        """Nothing is open. A checkpoint."""
        await trio.lowlevel.checkpoint()


def as_text(request: Request) -> bytes:
    """*request* as HTTP writes it, without its token."""
    lines = [f"POST {request.url}"]
    for name, value in request.headers.items():
        lines.append(f"{name}: {'Bearer [token]' if name.lower() == 'authorization' else value}")
    return "\n".join([*lines, "", ""]).encode() + request.body + b"\n\n"


def _write(descriptor: int, text: bytes) -> None:
    # Not through sys.stdout: a thread that is left behind in there would hold its lock, and
    # Python waits for that at its end.
    while text:
        text = text[os.write(descriptor, text) :]
