"""Every foreseeable error is one line: what was wrong; what to do.

In: whatever ended a command. Out: a line, and an exit status.
Does not know: the commands.
"""

from __future__ import annotations

import errno
from typing import cast

import click

__all__ = ["FAILED", "WRONG_USE", "Failure", "alone", "line_of"]

FAILED = 1
WRONG_USE = 2


class Failure(Exception):
    """A command cannot do what it was asked; the text says why, and what to do."""


def alone(error: BaseException) -> BaseException:
    """The one exception in groups of one: nurseries are no concern of a person."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    first, *others = group.exceptions
    return group if others else alone(first)


def line_of(error: BaseException) -> tuple[str, int] | None:
    """What to say of *error*, and the exit status; None for a bug."""
    match error:
        case Failure():
            return str(error), FAILED
        case click.UsageError():
            where = f"{error.ctx.command_path} --help" if error.ctx else "trimaran --help"
            return f"{_sentence(error.format_message())}; see: {where}", WRONG_USE
        case click.ClickException():
            return _sentence(error.format_message()), error.exit_code
        case OSError():
            return _of_system(error), FAILED
        case _:
            return None


def _sentence(text: str) -> str:
    """A message of click's as the middle of a line."""
    return (text[:1].lower() + text[1:]).rstrip(".?")


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    what = _sentence(error.strerror) if error.strerror else str(error) or type(error).__name__
    return f"{where}{what}{_ADVICE.get(error.errno or 0, '')}"


_ADVICE = {
    errno.ENOENT: "; check the path",
    errno.EACCES: "; see who may read and write it",
    errno.EISDIR: "; name a file in it",
    errno.ENOSPC: "; make room",
}
