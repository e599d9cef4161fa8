"""Which blocks of a session are under way: what it will say something of.

In: blocks that are entered, left and done with, in any thread. Out: whether one is open.
Does not know: what is measured in a block, which span it is.
"""

from __future__ import annotations

from trimaran._spans import Block, Place

__all__ = ["OpenBlocks", "WatchedBlock"]


class OpenBlocks:
    """The blocks of one session that were entered, and whose event is not tracked yet."""

    def __init__(self) -> None:
        # By identity; adding and discarding are single steps, from any thread.
        self._open: set[WatchedBlock] = set()

    def __bool__(self) -> bool:
        return bool(self._open)

    def block(self, span: Block | None) -> WatchedBlock:
        """A block to enter, which may be a *span* as well."""
        return WatchedBlock(self._open, span)


class WatchedBlock:
    """A block of which is known whether it is open."""

    __slots__ = ("_open", "_span")

    def __init__(self, open_ones: set[WatchedBlock], span: Block | None) -> None:
        self._open = open_ones
        self._span = span

    def enter(self) -> None:
        """See :meth:`Block.enter`."""
        self._open.add(self)
        if self._span is not None:
            self._span.enter()

    def leave(self, begun: float, ended: float) -> Place | None:
        """See :meth:`Block.leave`; None where it is no span."""
        return None if self._span is None else self._span.leave(begun, ended)

    def done(self) -> None:
        """See :meth:`Block.done`; only now is it open no more."""
        self._open.discard(self)
