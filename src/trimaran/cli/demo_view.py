"""The agents of the demonstration at work, live on a terminal, in plain lines elsewhere.

In: their reviews, looked at again and again. Out: a table that keeps up, or lines.
Does not know: what a review is beyond how far it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trimaran._pipeline.ledger import Statistics
from trimaran.cli._terminal import new_table, printable
from trimaran.cli.demo_agent import Review

__all__ = ["View"]

LIVE_INTERVAL = 0.1
"""Seconds between two looks on a terminal."""

PLAIN_INTERVAL = 1.0
"""Seconds between two looks where each one leaves lines behind."""

DOING_WIDTH = 26
"""Characters; the table does not change its shape with what the agents do, and has room on
a terminal of 80."""


class View:
    """Shows *tasks* on *where* while its block lasts."""

    def __init__(self, tasks: Sequence[Review], where: Console) -> None:
        self._tasks = tasks
        self._where = where
        self._live = Live(console=where, auto_refresh=False) if where.is_terminal else None
        self._said: dict[int, str] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.look()
        if self._live is not None:
            self._live.stop()

    async def keep_up(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await trio.sleep(PLAIN_INTERVAL if self._live is None else LIVE_INTERVAL)

    def look(self) -> None:
        """Show how far the tasks are now."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for number, task in enumerate(self._tasks, start=1):
            line = _line(number, task)
            if task.session is not None and self._said.get(number) != line:
                self._said[number] = line
                self._where.print(line)

    def _table(self) -> Table:
        table = new_table(
            "Agent", "Doing", "Tools", "Failed", "Tracked", "Delivered", "Waiting", numbers=5
        )
        doing = table.columns[1]
        doing.width, doing.no_wrap, doing.overflow = DOING_WIDTH, True, "ellipsis"
        for number, task in enumerate(self._tasks, start=1):
            books = _books(task)
            counts = (task.tool_calls, task.failures, books.tracked, books.delivered, books.pending)
            table.add_row(
                str(number),
                Text(printable(task.doing), style="green" if task.is_done else ""),
                *(f"{count:,}" for count in counts),
            )
        return table


def _line(number: int, task: Review) -> str:
    books = _books(task)
    return printable(
        f"agent {number}: {task.doing}; {task.tool_calls:,} tools used, {task.failures:,} failed; "
        f"{books.tracked:,} events, {books.delivered:,} delivered"
    )


def _books(task: Review) -> Statistics:
    return Statistics() if task.session is None else task.session.statistics()
