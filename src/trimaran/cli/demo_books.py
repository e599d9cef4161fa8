"""The books of the demonstration: each session's ledger beside what the receiver has of it.

In: the last reports of the agents, and a receiver. Out: a table, and whether all adds up.
Does not know: how the agents work.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence
from contextlib import closing
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import msgspec
import trio
from rich.console import Console

from trimaran.cli._terminal import dropped, new_table
from trimaran.cli.demo_report import Helper, Report
from trimaran.cli.demo_view import branch

__all__ = ["LOOK_INTERVAL", "Entry", "entry_of", "print_books"]


LOOK_INTERVAL = 0.05
"""Seconds between two questions to the receiver, or to a relay, where something is yet to happen."""


class Entry(msgspec.Struct, frozen=True):
    """What became of one session's events, as its ledger has it and as the receiver does."""

    agent: int
    """The number of the agent that it belongs to, from 1."""
    report: Report
    stored: int | None
    """None where nobody can be asked."""

    @property
    def adds_up(self) -> bool:
        """Whether every event of the session's, its children's included, is where it should be."""
        books = self.report.statistics
        taken = [helper.delivered for helper in self.report.helpers]
        from_the_killed = books.from_children - sum(filter(None, taken))
        return (
            self.report.is_done
            and books.tracked == books.delivered + books.handed_over
            and self.stored in {books.tracked, None}
            and books.pending == books.handed_over
            and 0 <= from_the_killed <= sum(helper.tracked for helper in self.killed)
        )

    @property
    def killed(self) -> list[Helper]:
        """Its helpers that did not come to their end."""
        return [helper for helper in self.report.helpers if helper.delivered is None]

    def losses(self) -> Iterator[str]:
        """What no ledger has, in words: the events that died with a helper."""
        survived = sum(helper.delivered or 0 for helper in self.report.helpers)
        handed_over = self.report.statistics.from_children - survived
        for helper in self.killed:
            yield (
                f"Child {helper.name!r} of agent {self.agent} (process {helper.pid}) was killed in the "
                f"middle of its work. Of {helper.tracked:,} events that it had tracked, "
                f"{handed_over:,} were handed over: they are in the session's ledger, and "
                f"{'delivered' if self.stored is None else 'stored'}. "
                f"The other {helper.tracked - handed_over:,} died with it; no ledger has them."
            )


async def entry_of(agent: int, report: Report, url: str, *, patience: float = 0.0) -> Entry:
    """The books of a session; what a relay still has may take *patience* seconds to arrive."""
    deadline = trio.current_time() + patience
    while True:
        stored = await trio.to_thread.run_sync(
            count_stored, url, report.session_id, abandon_on_cancel=True
        )
        if stored >= report.statistics.tracked or trio.current_time() >= deadline:
            return Entry(agent, report, stored)
        await trio.sleep(LOOK_INTERVAL)


def count_stored(url: str, session_id: str) -> int:
    """How many events of a session the receiver has; asked of it as anybody would."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    with closing(connection):
        connection.request("GET", f"/api/sessions/{quote(session_id)}")
        answer = connection.getresponse()
        found = msgspec.json.decode(answer.read())
        return int(found["event_count"]) if answer.status == HTTPStatus.OK else 0


def print_books(entries: Sequence[Entry], stdout: Console) -> None:
    """A row for each session, what no ledger has, and whether all of it adds up."""
    with_relay = any(entry.report.statistics.handed_over for entry in entries)
    with_store = any(entry.stored is not None for entry in entries)
    table = new_table(
        *("Agent", "Session", "Tools", "Tracked", "Children"),
        *(["To relay"] if with_relay else ["Delivered"]),
        "Dropped",
        *(["Stored"] if with_store else []),
        numbers=5 + with_store,
    )
    table.columns[0].no_wrap = True
    table.caption_justify = "left"
    table.caption = "\n".join(
        [
            "Children: how many of the tracked events came from child processes of the agent.",
            *(loss for entry in entries for loss in entry.losses()),
        ]
    )
    for entry in entries:
        report, books = entry.report, entry.report.statistics
        table.add_row(
            branch(report, str(entry.agent)),
            report.session_id[:8],
            *(f"{count:,}" for count in (report.tool_calls, books.tracked, books.from_children)),
            f"{books.handed_over if with_relay else books.delivered:,}",
            dropped(books.dropped),
            *([] if entry.stored is None else [f"{entry.stored:,}"]),
        )
    stdout.print(table)
    wrong = sum(not entry.adds_up for entry in entries)
    if wrong:
        stdout.print(f"{wrong} of {len(entries)} ledgers do not add up.")
    else:
        total = sum(entry.report.statistics.tracked for entry in entries)
        way = "handed over" if with_relay else "delivered"
        fate = f"tracked, {way} and stored" if with_store else f"tracked and {way}"
        stdout.print(f"All ledgers add up: {total:,} events were {fate}; none of them was lost.")
