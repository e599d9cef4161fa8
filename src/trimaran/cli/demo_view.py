"""The agents of the demonstration at work, live on a terminal, in plain lines elsewhere.

In: their reports, looked at again and again. Out: a table that keeps up, or lines.
Does not know: where reports come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trimaran.cli._terminal import new_table, printable
from trimaran.cli.demo_report import Report

__all__ = ["Board", "View", "branch", "name_of"]

LIVE_INTERVAL = 0.1
"""Seconds between two looks on a terminal."""

PLAIN_INTERVAL = 1.0
"""Seconds between two looks where each one leaves lines behind."""

AGENT_WIDTH, DOING_WIDTH = 8, 22
"""Characters; the table does not change its shape with what the agents do, and has room on
a terminal of 80."""


class Board:
    """The last report of each agent and, below each, of its sub-agents.

    Args:
        beginnings: a report of each agent from before it is heard of.
    """

    def __init__(self, beginnings: list[Report]) -> None:
        self._agents: list[dict[str, Report]] = [{"": report} for report in beginnings]

    def put(self, number: int, report: Report) -> None:
        """Keep *report*, which came from the agent of that number or by way of it."""
        key = report.session_id if report.parent_session_id else ""
        if report.session_id:
            self._agents[number][key] = report

    def __iter__(self) -> Iterator[tuple[int, Report]]:
        """The number of each agent, with a report of its own or of a sub-agent's."""
        for number, reports in enumerate(self._agents):
            for report in reports.values():
                yield number, report


class View:
    """Shows what *board* has on *where* while its block lasts."""

    def __init__(self, board: Board, where: Console) -> None:
        self._board = board
        self._where = where
        self._live = Live(console=where, auto_refresh=False) if where.is_terminal else None
        self._said: dict[str, str] = {}

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
        """Show how far the agents are now."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for number, report in self._board:
            line = _line(number, report)
            if report.session_id and self._said.get(report.session_id) != line:
                self._said[report.session_id] = line
                self._where.print(line)

    def _table(self) -> Table:
        with_relay = any(report.statistics.handed_over for _, report in self._board)
        table = new_table(
            *("Agent", "Doing", "Tools", "Failed", "Tracked", "Children"),
            f"{'To relay' if with_relay else 'Delivered':>9}",
            numbers=5,
        )
        agent, doing = table.columns[:2]
        agent.width = AGENT_WIDTH
        doing.width, doing.no_wrap, doing.overflow = DOING_WIDTH, True, "ellipsis"
        for number, report in self._board:
            books = report.statistics
            table.add_row(
                branch(report, str(number + 1)),
                Text(printable(report.doing), style="green" if report.is_done else ""),
                *(
                    f"{count:,}"
                    for count in (
                        *(report.tool_calls, report.failures),
                        *(books.tracked, books.from_children),
                        books.handed_over if with_relay else books.delivered,
                    )
                ),
            )
        return table


def branch(report: Report, name: str) -> str:
    """*name* for an agent, with a place below its parent for a sub-agent."""
    return (
        f"\N{BOX DRAWINGS LIGHT UP AND RIGHT} {report.agent}" if report.parent_session_id else name
    )


def name_of(report: Report, agent: int) -> str:
    """What to call the agent of that number, or a sub-agent of it."""
    name = f"agent {agent}"
    return f"{report.agent} of {name}" if report.parent_session_id else name


def _line(number: int, report: Report) -> str:
    books = report.statistics
    return printable(
        f"{name_of(report, number + 1)}: {report.doing}; {report.tool_calls:,} tools used, {report.failures:,} failed; "
        f"{books.tracked:,} events, {books.from_children:,} of them from children, "
        f"{books.delivered:,} delivered, {books.handed_over:,} handed over"
    )
