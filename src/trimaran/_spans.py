"""Which span an event is, below which, and when: what a session keeps beside its events.

In: a text that is unique to a pipeline; blocks that are entered and left. Out: ids, and times.
Does not know: events, sessions, what a destination makes of an id.

An id is a number of 64 bits that is not 0. Those of a pipeline are spread from one beginning,
so that giving one costs a multiplication, and they can be worked out later, by whoever wants
them, from a number that counts.

Which block is the innermost, a task inherits from the code that started it. The block itself
says whose it is and whether it was left, so that sessions may be interleaved in any way, and
blocks be left in any order, in any context, or never.

When a block begins that is in no other, the wall clock says. What comes after that in it, and
in the blocks inside, a clock says that nobody sets: so what is inside never sticks out.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeAlias

from trimaran._pipeline.encoder import STOPS

__all__ = ["Block", "Place", "Spans", "nanoseconds", "span_number", "span_time", "untimed"]

Place: TypeAlias = tuple[int, int, int, int]
"""The id of a span, that of the one that it stands below, when it began and when it ended.

0 for the first: it follows from the number of the event. 0 for the second: it stands where the
pipeline does. Times are nanoseconds since the epoch; 0 for one that the event itself says."""

_IDS = 2**64

_STEP = 0x9E37_79B9_7F4A_7C15
"""From one id to the next: an odd number comes back to the first after all others, and this
one, the golden ratio's, spreads few of them well."""

_DIGITS = 16

_LATEST = 2**63
"""Nanoseconds since the epoch that are too many: nothing takes such a time."""

_NOWHERE: Place = (0, 0, 0, 0)

_LONGEST_TIME = 19
"""Digits of the latest time."""

_LOOKS = 3
"""How often two clocks are read to see how far they are apart, at most."""

_AT_ONCE = 0.000_002
"""Seconds from one reading to the next, where nothing came between them."""

_NOT_SET = 100_000
"""Nanoseconds that two clocks may seem to have moved apart, and nobody has set one of them:
blocks one after the other are not to overlap for what is lost in reading."""


class Block:
    """A block of an agent's code that is a span.

    Entered again, it stays where it is: it could come to stand inside itself, and who looks
    for the block around it would look for ever.
    """

    __slots__ = ("above", "ahead", "id", "is_left", "outer", "spans")

    def __init__(self, spans: Spans) -> None:
        self.spans: Spans = spans
        self.outer: Block | None = None
        self.id: int = 0
        self.above: int = 0
        """The id of the block around it."""
        self.ahead: int | None = None
        """Nanoseconds that the wall clock is ahead of the other one; None if it fails."""
        self.is_left: bool = False

    def enter(self) -> None:
        """What happens from now on, here and in what is started here, is inside."""
        if self.id:
            return
        outer = _open(_innermost.get())
        if outer is not None:
            outer.outer = _open(outer.outer)  # blocks that overlap for ever make no chain
        self.outer = outer
        around = self.spans.innermost()
        self.id = self.spans.next_id()
        if around is None:
            self.ahead = self.spans.ahead()
        else:
            self.above, self.ahead = around.id, around.ahead
        _innermost.set(self)

    def leave(self, begun: float, ended: float) -> Place:
        """Nothing is inside any more; gives where the block stands itself.

        Left again, it gives another place: no two events are the same span.

        Args:
            begun: when it began, in seconds by the clock that nobody sets.
            ended: when it was over.
        """
        own, above = self.id, self.above
        if self.is_left:
            own, above = self.spans.next_id(), self.spans.above_here()
        else:
            self.is_left = True
            if _innermost.get() is self:
                _innermost.set(_open(self.outer))
        if self.ahead is None:
            return own, above, 0, 0
        start, end = self.ahead + nanoseconds(begun), self.ahead + nanoseconds(ended)
        return (own, above, start, end) if 0 < start <= end < _LATEST else (own, above, 0, 0)

    def done(self) -> None:
        """What it came to is tracked, or lost: nothing to a span."""


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
        now: seconds by a clock that nobody sets.
        wall_clock: seconds since the epoch; the host's own code, perhaps.
    """

    def __init__(
        self,
        seed: str,
        below: int = 0,
        *,
        now: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        digest = hashlib.blake2b(
            f"trimaran spans {seed}".encode(errors="surrogatepass"), digest_size=8
        )
        self._base = int.from_bytes(digest.digest())
        self._below = below
        self._now = now
        self._wall_clock = wall_clock
        self._ahead: int | None = None
        self._blocks = itertools.count()  # from any thread

    def block(self) -> Block:
        """A block to enter."""
        return Block(self)

    def next_id(self) -> int:
        """The id of a block that no other has."""
        return self._id(2 * next(self._blocks) + 1)

    def ahead(self) -> int | None:
        """Nanoseconds that the wall clock is ahead of the other one; None if it fails.

        Another thread, or process, may have its turn between two readings; so they are
        repeated where they took long, and the quickest count.
        """
        quickest, ahead = math.inf, None
        try:
            for _ in range(_LOOKS):
                before, wall, after = self._now(), self._wall_clock(), self._now()
                if after - before < quickest:
                    quickest = after - before
                    ahead = nanoseconds(wall) - nanoseconds((before + after) / 2)
                if quickest <= _AT_ONCE:
                    break
        except STOPS:
            raise
        except BaseException:  # noqa: BLE001 - a clock is the host's own code
            return None
        kept = self._ahead
        if ahead is None or (kept is not None and abs(ahead - kept) <= _NOT_SET):
            return kept
        self._ahead = ahead
        return ahead

    def here(self) -> Place | None:
        """Where an event stands that happens here and now; None for outside of all blocks."""
        block = self.innermost()
        if block is None:
            return None
        time = 0 if block.ahead is None else block.ahead + nanoseconds(self._now())
        return 0, block.id, 0, time if 0 < time < _LATEST else 0

    def above(self) -> int:
        """What a pipeline that is started here and now stands below; 0 for the root."""
        return self.above_here() or self._below

    def ids(self, number: int, place: Place | None) -> tuple[int, int]:
        """The id of an event, and of what it stands below, or 0 for the root.

        Args:
            number: counts the events of the pipeline from 1.
            place: where it stands.
        """
        own, above, _, _ = _NOWHERE if place is None else place
        return own or self._id(2 * number), above or self._below

    def innermost(self) -> Block | None:
        """The innermost block of this pipeline, here and now."""
        block = _innermost.get()
        while block is not None and (block.is_left or block.spans is not self):
            block = block.outer
        return block

    def above_here(self) -> int:
        """The id of the innermost block, here and now; 0 outside of all of them."""
        block = self.innermost()
        return 0 if block is None else block.id

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


def untimed(place: Place | None) -> Place | None:
    """*place* for an event that says itself when it was, unless another process has said it."""
    return place if place is None or place[0] else (0, place[1], 0, 0)


def nanoseconds(seconds: float) -> int:
    """*seconds* as they are counted in spans."""
    return int(seconds * 1e9)


def span_time(text: object) -> int:
    """A time from its digits, in nanoseconds since the epoch; 0 for anything else."""
    if (
        type(text) is not str
        or len(text) > _LONGEST_TIME
        or not (text.isascii() and text.isdigit())
    ):
        return 0
    time = int(text)
    return time if time < _LATEST else 0
