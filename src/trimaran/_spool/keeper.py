"""Serves the spool to the tasks of one telemetry, and keeps the books of what is on disk.

In: batches of any session. Out: places on disk, bodies; drops, in the session's ledger.
Does not know: SQL, sending. A disk that fails costs durability, never an event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio
from msgspec.structs import replace

from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.batch import Batch, KeptBatch
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._spool.disk import Disk, RunBlocking
from trimaran._spool.values import AND, Evicted, SpoolBusy, SpoolError, hands_of

if TYPE_CHECKING:
    from trimaran._spool.file import SpoolFile

__all__ = ["SpoolKeeper"]

CLOSE_GRACE = 0.1
"""Seconds that closing the file may take once everything else is over."""

_MOST_DECIDED = 8
"""Batches whose fate is known that stay on disk at most, to leave it together: it costs less.
A process that is killed sends them again, with the same keys."""


class SpoolKeeper:
    """The spool of one telemetry.

    Args:
        file: the queue on disk.
        run: runs what blocks, aside.
        now: a monotonic clock, in seconds.
        diagnostics: where a disk that fails is told.
        is_withdrawn: whether nothing may be sent any more; then nothing is put on disk either,
            and what is there goes as soon as that is noticed.
    """

    def __init__(
        self,
        file: SpoolFile,
        *,
        run: RunBlocking,
        now: Callable[[], float],
        diagnostics: Diagnostics,
        is_withdrawn: Callable[[], bool] = lambda: False,
    ) -> None:
        self._file = file
        self._disk = Disk(run, now)
        self._diagnostics = diagnostics
        self._is_withdrawn = is_withdrawn
        self._kept: dict[str, KeptBatch] = {}
        self._lost: dict[str, KeptBatch] = {}
        """What somebody removed with the file, and whose fate is open: it goes on from memory."""
        self._decided: dict[str, None] = {}
        """Keys of batches whose fate is known, and which are still on disk; in their order."""
        self._evicted: list[Evicted] = []
        """What left the disk and is in no book yet; filled by the thread that found out."""
        self._withdrawals = 0
        self._losses = 0
        """How often the file was removed, as far as is booked."""

    async def keep(self, batches: Sequence[Batch], ledger: Ledger) -> list[Batch]:
        """*batches* with their places on disk; unchanged where there is none to be had.

        Those that another process has there are left out: it, or its heir, delivers them.
        A cancel leaves open whether they are on disk: they count as not. Without consent they
        go on from memory, to the sender, who asks for it; what was there before is withdrawn.
        """
        if self._is_withdrawn():
            if self.is_in_use:
                await self.withdraw()
            return list(batches)
        withdrawals = self._withdrawals
        try:
            elsewhere, decided, losses = await self._disk.do_soon(
                lambda: self._put(batches, withdrawals)
            )
        except SpoolError as error:
            if isinstance(error, SpoolBusy) and error.is_under_way:
                # They go on from memory, and are not to stay there should they come there yet.
                self._decided.update(dict.fromkeys(batch.key for batch in batches))
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return list(batches)
        self._removed(decided)
        self._book_losses()
        batches = [batch for batch in batches if batch.key not in elsewhere]
        places = [
            self._place(batch.key, ledger, batch.tracked, batch.handed_by) for batch in batches
        ]
        # Should there be no room even for one of them, it goes on from memory.
        for place in places:
            place.is_being_sent = True
        self._book()
        self._book_withdrawal_since(withdrawals, *(batch.key for batch in batches))
        for batch, place in zip(batches, places, strict=True):
            place.is_being_sent = False
            if losses != self._losses and place.is_on_disk:
                del self._kept[batch.key]
                place.lost()
        return [
            replace(batch, kept=place) if place.is_on_disk else batch
            for batch, place in zip(batches, places, strict=True)
        ]

    def _put(self, batches: Sequence[Batch], withdrawals: int) -> tuple[set[str], list[str], int]:
        """Put *batches* on disk, and take those off whose fate is known; beside the tasks.

        Nothing is put if consent was withdrawn meanwhile. Gives the keys that are elsewhere,
        those that were taken off, and how often the file had been removed until then.
        """
        evicted: list[Evicted] = []
        elsewhere: set[str] = set()
        with self._file.together():
            decided = self._take_off()
            for batch in batches if self._withdrawals == withdrawals else ():
                if self._file.is_elsewhere(batch.key):
                    elsewhere.add(batch.key)
                    continue
                evicted += self._file.put(
                    batch.key,
                    batch.body or b"",
                    events=batch.events,
                    reports=batch.reports,
                    handed_by=batch.handed_by,
                    parent_session_id=batch.parent_session_id,
                    traceparent=batch.traceparent,
                )
        self._evicted += evicted
        return elsewhere, decided, self._file.losses

    def _take_off(self) -> list[str]:
        """Take those off the disk whose fate is known; beside the tasks. Gives their keys.

        Known now: while its turn was waited for, one may have been handed over and put again.
        """
        decided = list(self._decided)
        self._file.remove(decided)
        return decided

    @property
    def is_in_use(self) -> bool:
        """Whether something of ours is on disk, as far as is known."""
        return bool(self._kept or self._decided)

    def keeps(self, key: str) -> bool:
        """Whether the batch of that key is on disk, and its fate open."""
        return key in self._kept

    async def body_of(self, batch: Batch) -> bytes | None:
        """The body of a batch that is sent now; None when there is nothing to send.

        Then it left the disk, and that was its fate; or it cannot be read, and stays for
        a later process.
        """
        kept = batch.kept
        assert kept is not None
        body = batch.body
        if body is None and kept.is_on_disk:
            body = await self._read(batch.key, kept)
        if kept.is_lost:
            if body is None:
                self._lost.pop(batch.key, None)
                kept.ledger.drop(DropReason.CONSENT_WITHDRAWN, kept.events)  # as in _read()
            return body
        kept.is_left = body is None and kept.is_on_disk
        kept.is_being_sent = body is not None and kept.is_on_disk
        return body if kept.is_being_sent else None

    async def _read(self, key: str, kept: KeptBatch) -> bytes | None:
        try:
            body = await self._disk.do(lambda: self._file.read(key))
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return None
        self._book_losses()
        if body is None and kept.is_on_disk:
            # Nobody else evicts what is ours: a person emptied the spool.
            self._kept.pop(key, None)
            kept.evicted(DropReason.CONSENT_WITHDRAWN)
        return body

    async def split(self, whole: Batch, first: Batch, second: Batch) -> tuple[Batch, Batch]:
        """*first* and *second*, each with a place on disk instead of that of *whole*.

        A cancel leaves either the whole or the halves on disk, never both.
        """
        kept = whole.kept
        assert kept is not None
        halves = [
            (part.key, part.body or b"", part.events, part.reports) for part in (first, second)
        ]
        try:
            was_there = await self._disk.do_soon(lambda: self._file.split(whole.key, halves))
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return first, second
        self._book()
        self._book_losses()
        if not was_there:
            self._evict(whole.key, DropReason.CONSENT_WITHDRAWN)  # as in body_of()
        if not kept.is_on_disk:
            return first, second
        self._kept.pop(whole.key, None)
        kept.decided(kept.events)
        parts: list[Batch] = []
        for part in (first, second):
            place = self._place(part.key, kept.ledger, part.tracked, kept.handed_by)
            place.is_being_sent = True
            parts.append(replace(part, kept=place))
        return parts[0], parts[1]

    async def remove(self, batch: Batch) -> None:
        """The fate of *batch* is known: it leaves the disk.

        One that was delivered may do so a little later, while others wait there: with the
        next that is put, or with the eighth that is decided. One that was dropped does so
        at once, since it is not to be delivered after others of its session in a later
        life. A cancel, or a disk that fails, puts it off.
        """
        self._kept.pop(batch.key, None)
        self._lost.pop(batch.key, None)
        self._decided[batch.key] = None
        is_delivered = batch.kept is not None and batch.kept.is_delivered
        if is_delivered and self._kept and len(self._decided) < _MOST_DECIDED:
            await trio.lowlevel.checkpoint()
            return
        try:
            decided = await self._disk.do_soon(self._take_off)
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
        else:
            self._removed(decided)
            self._book_losses()

    async def take_over(self, ledger: Ledger) -> list[Batch]:
        """What dead processes left, as batches in *ledger*; in the order it was put."""
        withdrawals = self._withdrawals
        try:
            taken, too_old = await self._disk.do(self._file.take_over)
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return []
        self._book_losses()
        for gone in too_old:
            if gone.key in self._kept:
                self._evict(gone.key, gone.reason)
            else:
                ledger.track(gone.events)
                ledger.drop(gone.reason, gone.events)
        batches: list[Batch] = []
        for row in taken:
            tracked = row.events - row.reports
            ledger.track(tracked)
            kept = self._place(row.key, ledger, tracked, row.handed_by)
            batches.append(
                Batch(
                    key=row.key,
                    body=None,
                    events=row.events,
                    reports=row.reports,
                    kept=kept,
                    handed_by=row.handed_by,
                    parent_session_id=row.parent_session_id,
                    traceparent=row.traceparent,
                )
            )
        self._book_withdrawal_since(withdrawals, *(row.key for row in taken))
        return batches

    async def withdraw(self) -> None:
        """Consent is gone: nothing stays on disk, and nothing of it is sent.

        Booked before it is done, since consent is gone whether the disk obeys or not; where it
        does not, or a cancel comes between, it is done with the next that leaves.
        """
        self._evict_all()
        decided = list(self._decided)
        if await self._withdraw(None):
            self._removed(decided)

    def _evict_all(self) -> None:
        self._withdrawals += 1
        kept, self._kept = self._kept, {}
        for key, batch in kept.items():
            batch.evicted(DropReason.CONSENT_WITHDRAWN)
            self._decided[key] = None  # should the disk not obey now

    async def also_handed_by(self, handed_by: str, keys: Sequence[str]) -> bool:
        """Somebody hands over once more what is kept: it is theirs too, to be taken back.

        Whether the disk obeyed; not a checkpoint where it is known to be theirs.
        """

        def not_theirs() -> list[KeptBatch]:
            return [
                kept
                for key, kept in (*self._kept.items(), *self._lost.items())
                if any(key == whole or key.startswith(f"{whole}.") for whole in keys)
                and handed_by not in hands_of(kept.handed_by)
            ]

        if keys and not_theirs():
            try:
                await self._disk.do_soon(lambda: self._file.also_handed_by(handed_by, keys))
            except SpoolError as error:
                self._diagnostics.warn("telemetry spool failed", error=str(error))
                return False
            # Looked for again: a batch may have been split meanwhile.
            for kept in not_theirs():
                kept.handed_by += AND + handed_by
        return True

    async def withdraw_of(self, handed_by: str) -> bool:
        """As :meth:`withdraw`, for what a process handed over; nothing may be kept meanwhile.

        Whether the disk obeyed.
        """
        for key, kept in list(self._kept.items()):
            if handed_by in hands_of(kept.handed_by):
                self._evict(key, DropReason.CONSENT_WITHDRAWN)
        for kept in self._lost.values():
            if handed_by in hands_of(kept.handed_by):
                kept.is_withdrawn = True
        return await self._withdraw(handed_by)

    async def _withdraw(self, handed_by: str | None) -> bool:
        try:
            await self._disk.do(lambda: self._file.withdraw(handed_by))
        except SpoolError as error:
            self._diagnostics.warn("telemetry spool failed", error=str(error))
            return False
        return True

    def forked(self) -> None:
        """This is a forked child's copy: what is on disk is the parent's."""
        self._disk.forked()
        self._file.forked()

    async def aclose(self) -> None:
        """Let go of the file, in at most :data:`CLOSE_GRACE` seconds. Nothing is sent any more;
        what is kept stays, unless consent is gone. Where the disk hangs, it is let go of when
        that is over.
        """
        is_to_go = self.is_in_use and self._is_withdrawn()
        if is_to_go:
            for kept in self._kept.values():
                kept.is_being_sent = False
            self._evict_all()

        def close() -> None:
            try:
                if is_to_go:
                    self._file.withdraw()
                elif self._decided:
                    self._take_off()
            finally:
                self._file.close()

        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE):
            try:
                await self._disk.do_last(close)
            except SpoolError as error:
                self._diagnostics.warn("telemetry spool failed", error=str(error))
        self._book()
        for kept in self._book_losses():
            kept.ledger.drop(DropReason.DRAIN_TIMEOUT, kept.events)  # nobody sends any more
        await trio.lowlevel.checkpoint_if_cancelled()

    def _place(self, key: str, ledger: Ledger, events: int, handed_by: str) -> KeptBatch:
        self._kept[key] = kept = KeptBatch(ledger, events, handed_by)
        return kept

    def _removed(self, decided: Sequence[str]) -> None:
        for key in decided:
            self._decided.pop(key, None)

    def _book_withdrawal_since(self, withdrawals: int, *keys: str) -> None:
        """If consent went while the disk was busy, it took these batches with it."""
        if self._withdrawals != withdrawals:
            for key in keys:
                self._evict(key, DropReason.CONSENT_WITHDRAWN)

    def _book_losses(self) -> list[KeptBatch]:
        """If somebody removed the file, nothing that was kept before is safe; gives that."""
        if self._file.losses == self._losses:
            return []
        self._losses = self._file.losses
        self._diagnostics.warn("telemetry spool failed", error="somebody removed its file")
        lost, self._kept = self._kept, {}
        for kept in lost.values():
            kept.lost()
        self._lost |= {key: kept for key, kept in lost.items() if not kept.is_left}
        return list(lost.values())

    def _book(self) -> None:
        """Book what had to leave the disk; also what a call that nobody waited for evicted."""
        while self._evicted:
            gone = self._evicted.pop()
            self._evict(gone.key, gone.reason)

    def _evict(self, key: str, reason: DropReason) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.evicted(reason)
