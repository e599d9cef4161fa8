"""Which span an event is, and below which: ids that a session keeps beside its events.

In: a text that is unique to a pipeline; blocks that are entered and left. Out: ids.
Does not know: events, sessions, what a destination makes of an id.

An id is a number of 64 bits that is not 0. Those of a pipeline are spread from one beginning,
so that giving one costs a multiplication, and they can be worked out later, by whoever wants
them, from a number that counts.

Which block is the innermost, a task inherits from the code that started it. The block itself
says whose it is and whether it was left, so that sessions may be interleaved in any way, and
blocks be left in any order, in any context, or never.
"""

from __future__ import annotations

import hashlib
import itertools
from contextvars import ContextVar
from typing import TypeAlias

__all__ = ["Block", "Place", "Spans", "span_number"]

Place: TypeAlias = tuple[int, int]
"""The id of a span, and of the one that it stands below. 0 for the first: it follows from the
number of the event. 0 for the second: it stands where the pipeline does."""

_IDS = 2**64

_STEP = 0x9E37_79B9_7F4A_7C15
"""From one id to the next: an odd number comes back to the first after all others, and this
one, the golden ratio's, spreads few of them well."""

_DIGITS = 16


class Block:
    """A block of an agent's code that is a span.

    Entered again, it stays where it is: it could come to stand inside itself, and who looks
    for the block around it would look for ever.
    """

    __slots__ = ("is_left", "outer", "place", "spans")

    def __init__(self, spans: Spans) -> None:
        self.spans: Spans = spans
        self.outer: Block | None = None
        self.place: Place = (0, 0)
        self.is_left: bool = False

    def enter(self) -> None:
        """What happens from now on, here and in what is started here, is inside."""
        if self.place[0]:
            return
        outer = _open(_innermost.get())
        if outer is not None:
            outer.outer = _open(outer.outer)  # blocks that overlap for ever make no chain
        self.outer = outer
        self.place = self.spans.next_block()
        _innermost.set(self)

    def leave(self) -> Place:
        """Nothing is inside any more; gives where the block stands itself.

        Left again, it gives another place: no two events are the same span.
        """
        if self.is_left:
            return self.spans.next_block()
        self.is_left = True
        if _innermost.get() is self:
            _innermost.set(_open(self.outer))
        return self.place


_innermost: ContextVar[Block | None] = ContextVar("trimaran_block", default=None)
"""The block of this context that was entered last, of whichever session."""


def _open(block: Block | None) -> Block | None:
    """The innermost block from *block* on that was not left."""
    while block is not None and block.is_left:
        block = block.outer
    return block


class Spans:
    """The spans of one pipeline.

    Args:
        seed: unique over all pipelines, for all time.
        below: what the pipeline stands below as a whole; 0 for the session's root.
    """

    def __init__(self, seed: str, below: int = 0) -> None:
        digest = hashlib.blake2b(
            f"trimaran spans {seed}".encode(errors="surrogatepass"), digest_size=8
        )
        self._base = int.from_bytes(digest.digest())
        self._below = below
        self._blocks = itertools.count()  # from any thread

    def block(self) -> Block:
        """A block to enter."""
        return Block(self)

    def next_block(self) -> Place:
        """Where a block stands that is entered here and now."""
        return self._id(2 * next(self._blocks) + 1), self._innermost()

    def here(self) -> Place | None:
        """Where an event stands that happens here and now; None for outside of all blocks."""
        innermost = self._innermost()
        return (0, innermost) if innermost else None

    def above(self) -> int:
        """What a pipeline that is started here and now stands below; 0 for the root."""
        return self._innermost() or self._below

    def ids(self, number: int, place: Place | None) -> Place:
        """The id of an event, and of what it stands below, or 0 for the root.

        Args:
            number: counts the events of the pipeline from 1.
            place: where it stands.
        """
        own, above = (0, 0) if place is None else place
        return own or self._id(2 * number), above or self._below

    def _innermost(self) -> int:
        block = _innermost.get()
        while block is not None and (block.is_left or block.spans is not self):
            block = block.outer
        return 0 if block is None else block.place[0]

    def _id(self, number: int) -> int:
        return (self._base + number * _STEP) % _IDS or 1


def span_number(text: object) -> int:
    """An id from its 16 hexadecimal digits; 0 for anything else."""
    if type(text) is not str or len(text) != _DIGITS or not (text.isascii() and text.isalnum()):
        return 0
    try:
        return int(text, 16)
    except ValueError:
        return 0
