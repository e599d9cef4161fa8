"""Stage 2½, where there is a spool: a batch is on disk before its first attempt.

In: finished batches. Out: the same batches, each with its place on disk; their bodies
only while the sender keeps up.
Does not know: sending, where the disk is.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from msgspec.structs import replace
from trio.abc import ReceiveChannel

from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import Ledger
from trimaran._spool.keeper import SpoolKeeper

__all__ = ["MOST_WAITING", "spool_batches"]

MOST_WAITING = 10_000
"""Batches of a session that wait on disk at most before the batcher is held up. What is
left of one in memory takes a few hundred bytes."""


@trio.lowlevel.enable_ki_protection
async def spool_batches(
    receive: ReceiveChannel[Batch],
    send: trio.MemorySendChannel[Batch],
    *,
    keeper: SpoolKeeper,
    ledger: Ledger,
    release: Callable[[int], None],
) -> None:
    """Run the stage until its input ends; both its ends are closed then.

    *release* is told the bytes that are free since a body is on disk only. A cancel
    leaves what is on disk there, and the rest to the session, which counts it.
    """
    async with receive, send:
        async for finished in receive:
            batch = finished
            if batch.events:
                batch = await keeper.keep(batch, ledger)
                if batch.kept is not None and send.statistics().current_buffer_used > 0:
                    release(batch.size)
                    batch = replace(batch, body=None, size=0)
            await send.send(batch)
