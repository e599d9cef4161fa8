"""Serves the spool to the tasks of one telemetry, and keeps the books of what is on disk.

In: batches of any session. Out: places on disk, bodies; drops, in the session's ledger.
Does not know: SQL, sending. A disk that fails costs durability, never an event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio
from msgspec.structs import replace

from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.batch import Batch, KeptBatch
from trimaran._pipeline.ledger import Ledger
from trimaran._spool.values import Evicted, SpoolError

if TYPE_CHECKING:
    from trimaran._spool.file import SpoolFile

__all__ = ["RunBlocking", "SpoolKeeper", "in_a_thread"]

_Result = TypeVar("_Result")

CLOSE_GRACE = 0.1
"""Seconds that closing the file may take once everything else is over."""


class RunBlocking(Protocol):
    """Runs what blocks, aside. One call at a time is made."""

    def __call__(self, call: Callable[[], _Result], /) -> Awaitable[_Result]:
        """Run *call* and give what it returns. Cancelled, it is left to end by itself."""
        ...


def in_a_thread() -> RunBlocking:
    """Runs calls in a thread, one after the other."""
    limiter = trio.CapacityLimiter(1)

    async def run(call: Callable[[], _Result], /) -> _Result:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)

    return run


class SpoolKeeper:
    """The spool of one telemetry.

    Args:
        file: the queue on disk.
        run: runs what blocks, aside.
        diagnostics: where a disk that fails is told.
    """

    def __init__(self, file: SpoolFile, *, run: RunBlocking, diagnostics: Diagnostics) -> None:
        self._file = file
        self._run = run
        self._diagnostics = diagnostics
        self._kept: dict[str, KeptBatch] = {}
        self._to_remove: list[str] = []

    async def keep(self, batch: Batch, ledger: Ledger) -> Batch:
        """*batch* with its place on disk; unchanged where there is none to be had.

        A cancel leaves open whether it is on disk: it counts as not.
        """
        body = batch.body
        assert body is not None
        try:
            evicted = await self._run(
                lambda: self._file.put(
                    batch.key, body, events=batch.events, reports=batch.reports
                )
            )
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return batch
        self._kept[batch.key] = kept = KeptBatch(ledger, batch.tracked)
        if any(gone.key == batch.key for gone in evicted):
            # No room even for itself: it goes on from memory, as if there were no spool.
            kept.is_being_sent = True
            self._book(evicted)
            return batch
        self._book(evicted)
        return replace(batch, kept=kept)

    async def body_of(self, batch: Batch) -> bytes | None:
        """The body of a batch that is sent now; None when its fate is known already."""
        kept = batch.kept
        assert kept is not None
        if kept.is_on_disk and batch.body is None:
            kept.is_being_sent = True
            try:
                body = await self._run(lambda: self._file.read(batch.key))
            except SpoolError as error:
                self._diagnostics.warn("telemetry spool failed", error=str(error))
                body = None
            kept.is_being_sent = body is not None
            return body
        kept.is_being_sent = kept.is_on_disk
        return batch.body if kept.is_on_disk else None

    async def remove(self, batch: Batch) -> None:
        """The fate of *batch* is known. A cancel leaves it on disk, to be sent once more."""
        self._kept.pop(batch.key, None)
        self._to_remove.append(batch.key)
        keys = list(self._to_remove)
        try:
            await self._run(lambda: self._file.remove(keys))
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
        else:
            del self._to_remove[: len(keys)]

    async def take_over(self, ledger: Ledger) -> list[Batch]:
        """What dead processes left, as batches in *ledger*; in the order it was put."""
        try:
            taken, evicted = await self._run(self._file.take_over)
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return []
        for gone in evicted:
            if gone.key not in self._kept:
                ledger.track(gone.events)
                ledger.drop(gone.reason, gone.events)
        self._book(evicted)
        batches: list[Batch] = []
        for row in taken:
            tracked = row.events - row.reports
            ledger.track(tracked)
            self._kept[row.key] = kept = KeptBatch(ledger, tracked)
            batches.append(
                Batch(key=row.key, body=None, events=row.events, reports=row.reports, kept=kept)
            )
        return batches

    async def withdraw(self) -> None:
        """Consent is gone: nothing stays on disk."""
        try:
            self._book(await self._run(self._file.withdraw))
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))

    async def aclose(self) -> None:
        """Let go of the file, in at most :data:`CLOSE_GRACE` seconds. What is kept stays."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE):
            await self._run(self._file.close)
        await trio.lowlevel.checkpoint_if_cancelled()

    def _book(self, evicted: list[Evicted]) -> None:
        for gone in evicted:
            kept = self._kept.pop(gone.key, None)
            if kept is not None:
                kept.evicted(gone.reason)
