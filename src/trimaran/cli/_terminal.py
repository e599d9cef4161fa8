"""What a person sees: lines on stderr, tables, in the words of a command.

In: plain text and numbers. Out: a console of rich's, and text on it.
Does not know: what is told.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NoReturn

import structlog
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = [
    "console",
    "dropped",
    "leave_line",
    "new_table",
    "printable",
    "say",
    "tell_diagnostics",
]

_PLAIN_WIDTH = 160
"""Characters of a line where no terminal says how many it has, so that a table that is
read by a program is not folded."""


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr, that takes every text as it is."""
    found = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not found.is_terminal:
        found.width = _PLAIN_WIDTH
    return found


def say(where: Console, text: str) -> None:
    """One line as a command speaks: ``trimaran: text``."""
    where.print(printable(f"trimaran: {text}"), soft_wrap=True)


def leave_line(where: Console) -> None:
    """Begin a new line on a terminal, which shows ^C on the one that it is on."""
    if where.is_terminal:
        where.print()


def printable(text: str) -> str:
    """*text* without what would make a terminal do anything but show it."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def new_table(*columns: str, numbers: int = 0) -> Table:
    """A table without rows; its last *numbers* columns are set to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(columns, start=1):
        if index > len(columns) - numbers:
            table.add_column(column, justify="right")
        else:
            table.add_column(column, overflow="fold")
    return table


def dropped(reasons: Mapping[str, int]) -> str:
    """The drops of a ledger in a cell: ``3 rejected, 1 too_large``, or 0."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())) or "0"


def tell_diagnostics(where: Console) -> None:
    """Let what the library has to say of lasting trouble appear as lines of the command."""

    def tell(_logger: object, _name: str, record: MutableMapping[str, Any]) -> NoReturn:
        problem = record.pop("event")
        facts = ", ".join(f"{key}: {value}" for key, value in record.items())
        say(where, f"{problem} ({facts})" if facts else str(problem))
        raise structlog.DropEvent

    structlog.configure(processors=[tell])
