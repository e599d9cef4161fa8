"""Stage 2½, where there is a spool: a batch is on disk before its first attempt.

In: finished batches. Out: the same batches, each with its place on disk; their bodies
only while the sender keeps up, or there is room for them in memory.
Does not know: sending, where the disk is.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from msgspec.structs import replace

from trimaran._pipeline.batch import MOST_TOGETHER, Batch, ready
from trimaran._pipeline.ledger import Ledger
from trimaran._spool.keeper import SpoolKeeper

__all__ = ["MOST_WAITING", "spool_batches"]

MOST_WAITING = 10_000
"""Batches of a session that wait on disk at most before the batcher is held up. What is
left of one in memory takes a few hundred bytes."""


@trio.lowlevel.enable_ki_protection
async def spool_batches(
    receive: trio.MemoryReceiveChannel[Batch],
    send: trio.MemorySendChannel[Batch],
    *,
    keeper: SpoolKeeper,
    ledger: Ledger,
    is_memory_short: Callable[[], bool],
    release: Callable[[int], None],
) -> None:
    """Run the stage until its input ends; both its ends are closed then.

    *release* is told the bytes that are free since a body is on disk only. A cancel
    leaves what is on disk there, and the rest to the session, which counts it.
    """

    async def spool(finished: list[Batch]) -> None:
        with_events = [each for each in finished if each.events]
        kept = await keeper.keep(with_events, ledger) if with_events else []
        by_key = {batch.key: batch for batch in kept}
        for each in finished:
            batch = by_key.get(each.key, each)
            is_waiting = send.statistics().current_buffer_used > 0
            if batch.kept is not None and is_waiting and is_memory_short():
                release(batch.size)
                batch = replace(batch, body=None, size=0)
            await send.send(batch)

    async with receive, send:
        async for first in receive:
            await spool([first, *ready(receive, MOST_TOGETHER - 1)])
            # A session that waits for its next event keeps nothing of the last ones.
            del first
