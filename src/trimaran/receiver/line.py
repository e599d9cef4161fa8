"""Posts that come at the same time are written together.

In: batches, one by one. Out: groups of them, one group at a time; a receipt for each.
Does not know: how they are written.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import accumulate, takewhile

import msgspec
import trio

from trimaran.receiver.ingest import Batch
from trimaran.receiver.store import StoreUnavailable
from trimaran.receiver.values import Receipt

__all__ = ["Line", "Post"]

_MOST_POSTS = 256
"""In one group; bounds how many wait longer because of the others."""

_MOST_BYTES = 16 * 1024 * 1024
"""Of events in one group, whose first post may have any size; bounds the memory that a group
takes once more while it is written."""


class Post(msgspec.Struct, frozen=True, eq=False):
    """A batch that has events, and what came with it. No session is its own *parent*."""

    batch: Batch
    key: str | None
    parent: str | None


class _Place:
    """A post in the line: it has a receipt, a failure, or still waits."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.size = sum(len(event.raw) for event in post.batch.events)
        self.receipt: Receipt | None = None
        self.failure: StoreUnavailable | None = None

    @property
    def decided(self) -> bool:
        return self.receipt is not None or self.failure is not None


class Line:
    """Those who wait to be written, in the order in which they came.

    Args:
        write: writes a group, all or none of it, and gives the receipts; what it raises
            other than StoreUnavailable is a bug, and goes to the one who met it.
        gap: seconds from the beginning of one writing to that of the next, at least.
    """

    def __init__(
        self, write: Callable[[Sequence[Post]], Awaitable[Sequence[Receipt]]], *, gap: float = 0.0
    ) -> None:
        self._write = write
        self._gap = gap
        self._not_before = float("-inf")
        self._writing: trio.Event | None = None  # comes when what is being written is
        self.waiting: list[_Place] = []

    async def append(self, batch: Batch, key: str | None, parent: str | None) -> Receipt:
        """Wait until *batch* is written. A cancel takes it out of the line.

        Raises:
            StoreUnavailable: it was not.
        """
        if not batch.events:
            await trio.lowlevel.checkpoint()
            return Receipt(0, batch.rejected)
        place = _Place(Post(batch, key, None if parent == batch.session_id else parent))
        self.waiting.append(place)
        try:
            await trio.lowlevel.checkpoint()  # who comes at the same time is written together
            # Whoever finds that nobody writes does so for all who wait, and they are told
            # together: handed on from one to the next, the word would take its time.
            while not place.decided:
                if self._writing is not None:
                    await self._writing.wait()
                    continue
                with self.alone():
                    await self._write_waiting()
        finally:
            if place in self.waiting:
                self.waiting.remove(place)
        if place.receipt is None:
            raise StoreUnavailable(str(place.failure)) from place.failure
        return place.receipt

    async def until_written(self) -> None:
        """Wait until nobody writes; not a checkpoint if nobody does."""
        while self._writing is not None:
            await self._writing.wait()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Be the one who writes, where nobody is; then let everybody look again."""
        self._writing = written = trio.Event()
        try:
            yield
        finally:
            self._writing = None
            written.set()

    def _next_group(self) -> list[_Place]:
        """Those who have waited longest, as many as go together."""
        sizes = accumulate(place.size for place in self.waiting[:_MOST_POSTS])
        count = sum(1 for _ in takewhile(lambda size: size <= _MOST_BYTES, sizes))
        return self.waiting[: max(1, count)]

    async def _write_waiting(self) -> None:
        """Write those who have waited longest, all or none, and say so to each."""
        if self._gap:
            await trio.sleep_until(self._not_before)
            self._not_before = trio.current_time() + self._gap
        group = self._next_group()
        try:
            receipts = await self._write([place.post for place in group])
        except StoreUnavailable as failure:
            for place in group:
                place.failure = failure
        else:
            for place, receipt in zip(group, receipts, strict=True):
                place.receipt = receipt
        # Any other exception is a bug that goes to the one who met it, while the
        # others stay in line and write for themselves.
        self.waiting = [place for place in self.waiting if not place.decided]
