"""Pure: a stream of bytes is cut into frames, however it was cut on its way.

In: bytes, in pieces of any size. Out: frames, whole. Does not know: sockets, what is in a frame.

A frame is one byte for its kind, four for the length of its content (big-endian), and the
content. DATA has one more byte behind it, which says whether it holds: what could be written
only in part before the sender was cancelled is finished as withdrawn, and the stream is in
step again. The same byte says whether the acknowledgement is waited for.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "MAX_ANSWER",
    "MAX_FRAME",
    "WITHDRAWN",
    "Frame",
    "FrameDecoder",
    "FrameError",
    "FrameKind",
    "encode_frame",
]

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of content in a DATA frame, at most, unless a channel is told otherwise. A batch has
half a mebibyte; this is only what nobody reaches who is not broken."""

MAX_ANSWER = 1024
"""Bytes of content in an ACK frame, at most: all those of a window have to fit into a socket,
so that the one who acknowledges never waits for the other to read them."""

WITHDRAWN = b"\x00"
"""Behind the content of a DATA frame that the other end has to forget."""

_HOLDS = b"\x01"
_IS_AWAITED = b"\x02"
_MARKS = (WITHDRAWN, _HOLDS, _IS_AWAITED)
_HEAD = struct.Struct(">BI")


class FrameError(Exception):
    """The other end does not speak this language: the message says what it sent."""


class FrameKind(enum.IntEnum):
    """What a frame is for, and who sends it."""

    DATA = 1
    """From the sender: a value."""
    ACK = 2
    """From the receiver: the oldest value that was not acknowledged yet is taken care of."""
    END = 3
    """From the sender: there is no more."""
    CLOSED = 4
    """From the receiver: it wants no more."""
    LAST_CALL = 5
    """From the receiver: it soon wants no more; what there is to say is to be said now."""


class Frame(NamedTuple):
    """One frame."""

    kind: FrameKind
    content: bytes = b""
    is_awaited: bool = False
    """Of DATA: whether it is to be acknowledged as soon as it can be, and not with others."""


def encode_frame(frame: Frame) -> bytes:
    """The bytes of *frame*. One of DATA holds; to withdraw it, replace its last byte."""
    head = _HEAD.pack(frame.kind, len(frame.content))
    if frame.kind is not FrameKind.DATA:
        return head + frame.content
    return b"".join((head, frame.content, _IS_AWAITED if frame.is_awaited else _HOLDS))


class FrameDecoder:
    """Gives the frames of a stream, one by one; those that were withdrawn are left out.

    Args:
        expected: The kinds that may come, with the bytes of content that each may have at most.
    """

    def __init__(self, expected: Mapping[FrameKind, int]) -> None:
        self._expected = {int(kind): (kind, most) for kind, most in expected.items()}
        self._pending: bytearray = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what came next."""
        self._pending += data

    def next(self) -> Frame | None:
        """The next frame; None as long as it has not come as a whole.

        Raises:
            FrameError: It is of a kind that is not expected here, or too long, or nothing says
                whether it holds. It is raised as soon as that can be seen, and again from then on.
        """
        while len(self._pending) >= _HEAD.size:
            head: tuple[int, int] = _HEAD.unpack_from(self._pending)
            number, length = head
            kind, most = self._expected.get(number, (None, 0))
            if kind is None:
                raise FrameError(f"a frame of kind {number}, which is not expected here")
            if length > most:
                raise FrameError(f"{kind.name} of {length:,} bytes, where {most:,} are the most")
            end = _HEAD.size + length
            whole = end + (kind is FrameKind.DATA)
            if len(self._pending) < whole:
                return None
            mark = bytes(self._pending[end:whole]) or _HOLDS
            if mark not in _MARKS:
                raise FrameError(f"{mark[0]} where it should say whether a value holds")
            with memoryview(self._pending) as view:
                content = b"" if mark == WITHDRAWN else bytes(view[_HEAD.size : end])
            del self._pending[:whole]
            if mark != WITHDRAWN:
                return Frame(kind, content, mark == _IS_AWAITED)
        return None
