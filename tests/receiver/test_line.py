"""Posts that come at the same time are written together, and not too often."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from receiver.batches import batch
from trimaran.receiver.ingest import Batch
from trimaran.receiver.line import Line, Post
from trimaran.receiver.values import Receipt


async def test_writings_begin_a_gap_apart(autojump_clock: trio.testing.MockClock) -> None:
    """The first at once; who comes in between waits for the next, and so do all with him."""
    written: list[tuple[float, int]] = []
    begin = trio.current_time()

    async def write(group: Sequence[Post]) -> list[Receipt]:
        written.append((round(trio.current_time() - begin, 3), len(group)))
        await trio.sleep(0.1)
        return [Receipt(1, ())] * len(group)

    line = Line(write, gap=0.25)
    async with trio.open_nursery() as nursery:
        for time in (0.0, 0.05, 0.2, 0.24, 0.26, 2.0):

            async def come(time: float = time) -> None:
                await trio.sleep(time)
                await line.append(batch(0), None, None)

            nursery.start_soon(come)

    # At 0.25 those of 0.05, 0.2 and 0.24; at 0.5 that of 0.26; at 2.0 nobody had to wait.
    assert written == [(0.0, 1), (0.25, 3), (0.5, 1), (2.0, 1)]


async def test_a_group_has_its_bounds() -> None:
    """In posts and in bytes; one post is always written, however large."""
    groups: list[list[int]] = []

    async def write(group: Sequence[Post]) -> list[Receipt]:
        await trio.lowlevel.checkpoint()
        groups.append([len(post.batch.events[0].raw) >> 20 for post in group])
        return [Receipt(1, ())] * len(group)

    line = Line(write)

    async def together(posts: Sequence[Batch]) -> list[list[int]]:
        """The sizes of posts that come at the same time, in MiB, by group."""
        groups.clear()
        async with trio.open_nursery() as nursery:
            for post in posts:
                nursery.start_soon(line.append, post, None, None)
        return groups

    sevens = await together([batch("x" * (7 << 20))] * 5)
    assert sevens == [[7, 7], [7, 7], [7]]
    assert await together([batch("x" * (17 << 20))]) == [[17]]
    assert [len(group) for group in await together([batch(0)] * 600)] == [256, 256, 88]
