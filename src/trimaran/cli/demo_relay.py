"""How long agents take to leave: by themselves and by way of a relay, with the network up and down.

In: a receiver that can be taken away and brought back, the directory of a relay. Out: agents
that leave; a table of how long it took, and of what arrived when the network was back.
Does not know: how a relay works.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trio
from rich.console import Console

from trimaran._relay.place import RelayPlace
from trimaran._relay.visit import end_relay, report_of
from trimaran.cli._terminal import dropped, new_table
from trimaran.cli.demo_books import LOOK_INTERVAL, entry_of
from trimaran.cli.demo_process import run_agent
from trimaran.cli.demo_report import Assignment, Report
from trimaran.cli.serve import start_receiver
from trimaran.cli.serve_place import Place

__all__ = ["ARRIVAL_PATIENCE", "Exit", "Network", "print_exits", "stopped", "watch_exits"]

ARRIVAL_PATIENCE = 30.0
"""Seconds for what a relay has to arrive, once there is a network."""

DRAIN_TIMEOUT = 2.0
"""Seconds that the agents have to leave, which is what agents have who say nothing else."""


LAST_DELIVERY = 2.0
"""Seconds that a relay has to deliver what it has when it is about to be stopped."""

STOP_PATIENCE = 5.0
"""Seconds that a relay has to end."""


class Network:
    """A receiver that can be taken away, and brought back where it was.

    Args:
        nursery: where it runs.
        database: where it keeps the events.
    """

    def __init__(self, nursery: trio.Nursery, database: str | os.PathLike[str]) -> None:
        self._nursery = nursery
        self._database = database
        self._port = 0
        self._scope = trio.CancelScope()
        self._is_down = trio.Event()
        self.url: str = ""

    async def up(self) -> None:
        """Let there be a receiver."""
        await self._nursery.start(self._run)

    async def down(self) -> None:
        """Let nobody listen at its port."""
        self._scope.cancel()
        await self._is_down.wait()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        self._is_down = trio.Event()
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    receiver = await start_receiver(
                        nursery, port=self._port, place=Place(database=self._database)
                    )
                    self.url = receiver.url
                    self._port = urlsplit(receiver.url).port or 0
                    task_status.started()
        finally:
            self._is_down.set()


class Exit(msgspec.Struct, frozen=True):
    """How an agent left."""

    has_relay: bool
    is_up: bool
    """Whether there was a network."""
    report: Report

    @property
    def text(self) -> str:
        """How long it took, and what became of its events."""
        books = self.report.statistics
        fates = [
            f"{count:,} {fate}"
            for count, fate in ((books.delivered, "delivered"), (books.handed_over, "handed over"))
            if count
        ]
        if books.dropped:
            fates.append(f"lost: {dropped(books.dropped)}")
        return f"{1000 * (self.report.leaving or 0):,.0f} ms; {', '.join(fates)}"


async def watch_exits(task: Assignment, network: Network, relay: str) -> Sequence[Exit]:
    """Let agents that are alike leave, one after the other; the network is down in the end."""
    exits: list[Exit] = []
    for is_up in (True, False):
        if not is_up:
            await network.down()
        for has_relay in (False, True):
            alike = msgspec.structs.replace(
                task,
                agent="writer",
                files=(),
                is_careless=False,
                workspace=f"{task.workspace}-leaves-{len(exits) + 1}",
                relay=relay if has_relay else None,
                drain_timeout=DRAIN_TIMEOUT,
            )
            reports = [Report(agent="writer")]
            await run_agent(alike, network.url, reports.append)
            exits.append(Exit(has_relay, is_up, reports[-1]))
    return exits


async def print_exits(exits: Sequence[Exit], network: Network, stdout: Console) -> bool:
    """How they left and, when the network is back, what arrives of what the relay has.

    Whether all of that arrived.
    """
    table = new_table("Leaving took", "Network up", "Network down")
    for has_relay in (False, True):
        table.add_row(
            "with a relay" if has_relay else "on its own",
            *(each.text for each in exits if each.has_relay is has_relay),
        )
    stdout.print(table)
    await network.up()
    begun = trio.current_time()
    (waiting,) = (each.report for each in exits if each.has_relay and not each.is_up)
    entry = await entry_of(0, waiting, network.url, patience=ARRIVAL_PATIENCE)
    stdout.print(
        f"The network is back: {trio.current_time() - begun:.1f} s later the receiver has "
        f"{entry.stored:,} of the {waiting.statistics.handed_over:,} events that waited in the relay."
    )
    return entry.adds_up


@asynccontextmanager
async def stopped(directory: str) -> AsyncGenerator[None]:
    """See to it that no relay of *directory* is left when the block is.

    What it has can still be delivered, if there is a network: the directory may be about to go.
    """
    place = RelayPlace(Path(directory))
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(LAST_DELIVERY):
                await _emptied(place)
            with trio.move_on_after(STOP_PATIENCE):
                await end_relay(place)


async def _emptied(place: RelayPlace) -> None:
    """Wait until the relay, if there is one, has delivered all that it has."""
    while (  # noqa: ASYNC110 - another process is waited for
        report := await report_of(place)
    ) and any(each.waiting for each in report.outlets):
        await trio.sleep(LOOK_INTERVAL)
