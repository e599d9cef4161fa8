"""Channels of bytes between two processes, with the manners of trio's memory channels.

In: values to send, and what is answered to them. Out: the same values in the other process,
in order. Does not know: what a value means, who listens where.

Neither end has a task of its own: whoever waits does the reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
import trio

from trimaran._process.end import End, PeerClosed
from trimaran._process.frames import (
    MAX_ANSWER,
    MAX_FRAME,
    WITHDRAWN,
    Frame,
    FrameDecoder,
    FrameError,
    FrameKind,
    encode_frame,
)

__all__ = [
    "MAX_WINDOW",
    "WINDOW",
    "PeerClosed",
    "ProcessChannelStatistics",
    "ProcessReceiveChannel",
    "ProcessSendChannel",
]

WINDOW = 16
"""Values that may be on their way, unless a channel is told otherwise."""

MAX_WINDOW = 64
"""So many acknowledgements with the longest answers fit into a socket that nobody reads."""

_GONE = (trio.BrokenResourceError, "the other end is gone")


class ProcessChannelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a sending end has done so far."""

    sent: int
    """Values handed over; those that were withdrawn are not among them."""
    acknowledged: int
    """Values of which this end knows that the other took care of them."""
    in_flight: int
    """Values sent of which it does not know that yet."""


class _Asked:
    """An answer that comes, or not."""

    def __init__(self) -> None:
        self.answer: bytes | None = None


class ProcessSendChannel(End, trio.abc.SendChannel[bytes]):
    """The end of a channel that sends to another process. Any number of tasks may send.

    Args:
        stream: A connection, which is the channel's from now on.
        window: Values that may be sent and not acknowledged, as `max_buffer_size` of a
            memory channel; from 1 to 64. From 8 on, one that waits for room may wait until
            a quarter of the window is free, while the receiver has something to go on with:
            to be woken for each value costs more than the value.
        max_frame: Bytes that a value may have.
    """

    def __init__(
        self, stream: trio.SocketStream, *, window: int = WINDOW, max_frame: int = MAX_FRAME
    ) -> None:
        if not 1 <= window <= MAX_WINDOW:
            raise ValueError(f"a window of {window}; from 1 to {MAX_WINDOW} can be had")
        super().__init__(stream)
        self._window = window
        self._stride = max(1, window // 4)
        self._max_frame = max_frame
        self._decoder = FrameDecoder(
            {FrameKind.ACK: MAX_ANSWER, FrameKind.CLOSED: 0, FrameKind.LAST_CALL: 0}
        )
        self._in_flight: deque[_Asked | None] = deque()
        self._sent = 0
        self._is_last_call = False
        self._is_listening = False
        self._news = trio.lowlevel.ParkingLot()
        """Where tasks wait while another one reads."""

    def statistics(self) -> ProcessChannelStatistics:
        """What was sent so far, and what became of it as far as this end has heard."""
        return ProcessChannelStatistics(
            sent=self._sent,
            acknowledged=self._sent - len(self._in_flight),
            in_flight=len(self._in_flight),
        )

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: bytes) -> None:
        """Send *value*, when fewer than the window's values are on their way.

        Cancelled, it was not sent: what was written of it is withdrawn.

        Raises:
            ValueError: It is too long; nothing was sent.
            PeerClosed: The other end was closed.
            trio.BrokenResourceError: The other end is gone, and did not say why.
            trio.ClosedResourceError: This end was closed, before or meanwhile.
        """
        await self._send(value, None)

    @trio.lowlevel.enable_ki_protection
    async def ask(self, value: bytes) -> bytes:
        """Send *value* and wait until it is acknowledged; what was said to that.

        Cancelled while the answer is waited for, it was sent, and the answer is thrown away.
        Cancelled before, it was not sent. It raises what `send` raises; after the value was
        sent, that means that what became of it is not known.
        """
        asked = _Asked()
        await self._send(value, asked)
        await self._listen_until(lambda: asked.answer is not None)
        assert asked.answer is not None
        return asked.answer

    @trio.lowlevel.enable_ki_protection
    async def last_call(self) -> None:
        """Wait until the other end asks for what there is still to say, since it ends soon.

        Others may send meanwhile. It raises what :meth:`send` raises of the other end.
        """
        await trio.lowlevel.checkpoint()
        await self._listen_until(lambda: self._is_last_call)

    async def _send(self, value: bytes, asked: _Asked | None) -> None:
        if len(value) > self._max_frame:
            raise ValueError(
                f"a value of {len(value):,} bytes, where {self._max_frame:,} are the most"
            )
        async with self._turn:
            await self._listen_until(lambda: len(self._in_flight) < self._window)
            self._raise_if_over()
            try:
                await self._pay()
                await self._write(bytearray(encode_frame(self._frame(value, asked))))
            except OSError as error:
                self._listen()
                kind, reason = self._over or _GONE
                raise kind(reason) from error
            self._in_flight.append(asked)
            self._sent += 1

    async def _pay(self) -> None:
        """Write what is owed. A cancel leaves the rest of it to be written by the next."""
        self._write_now(self._owed)
        while self._owed:
            await self._until_writable()
            self._write_now(self._owed)

    def _frame(self, value: bytes, asked: _Asked | None) -> Frame:
        is_last_of_few = (self._sent + 1) % self._stride == 0
        return Frame(FrameKind.DATA, value, is_awaited=is_last_of_few or asked is not None)

    async def _write(self, frame: bytearray) -> None:
        """Write *frame*; when that is cut short, its rest is owed, as withdrawn."""
        length = len(frame)
        self._write_now(frame)
        while frame:
            if len(frame) < length:
                self._owed[:] = frame
                self._owed[-1:] = WITHDRAWN
            await self._until_writable()
            self._write_now(frame)
        self._owed.clear()

    async def _listen_until(self, is_reached: Callable[[], bool]) -> None:
        """Take in what the other end says until *is_reached*. One task reads, for all."""
        while not is_reached():
            self._raise_if_over()
            if self._is_listening:
                await self._news.park()
            elif not self._listen():
                self._is_listening = True
                try:  # whatever ends it, another one has to listen, or to see that it is over
                    await trio.lowlevel.wait_readable(self._socket)
                finally:
                    self._is_listening = False
                    self._news.unpark_all()

    def _listen(self) -> bool:
        """Take in what was said so far. Whether anything was."""
        heard = False
        while self._over is None and (data := self._read_now()) is not None:
            heard = True
            if not data:
                self._over = _GONE
                break
            self._decoder.feed(data)
            try:
                while (frame := self._decoder.next()) is not None:
                    self._take(frame)
            except FrameError as error:
                self._over = (trio.BrokenResourceError, str(error))
        return heard

    def _take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.CLOSED:
            self._over = (PeerClosed, "the other end was closed")
        elif frame.kind is FrameKind.LAST_CALL:
            self._is_last_call = True
        elif self._in_flight:
            asked = self._in_flight.popleft()
            if asked is not None:
                asked.answer = frame.content
        else:
            raise FrameError("an acknowledgement of nothing")

    def _last_word(self) -> bytes:
        return encode_frame(Frame(FrameKind.END))


class ProcessReceiveChannel(End, trio.abc.ReceiveChannel[bytes]):
    """The end of a channel that receives from another process.

    Any number of tasks may receive, in turn; acknowledging is then of use only to one.

    Args:
        stream: A connection, which is the channel's from now on.
        max_frame: Bytes that a value may have.
    """

    def __init__(self, stream: trio.SocketStream, *, max_frame: int = MAX_FRAME) -> None:
        super().__init__(stream)
        self._decoder = FrameDecoder({FrameKind.DATA: max_frame, FrameKind.END: 0})
        self._is_unanswered = False
        """Whether the value given last is not acknowledged yet."""
        self._is_awaited = False
        """Whether the sender waits for that."""

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> bytes:
        """The next value. Asking for it acknowledges the one before: at once if the sender
        waits for that, else with the next few.

        Cancelled, it loses nothing; the value before may be acknowledged then.

        Raises:
            trio.EndOfChannel: The other end was closed, and all that it sent was received.
            trio.BrokenResourceError: The other end is gone without a word, perhaps in the
                middle of a value, or speaks another language. All that it sent before was
                received.
            trio.ClosedResourceError: This end was closed, before or meanwhile.
        """
        async with self._turn:
            self._raise_if_closed()
            if self._is_unanswered:
                self._answer(b"")
            if self._is_awaited:
                self._say_now()
            while (frame := self._next()) is None:
                await self._say()
                data = self._read_now()
                if data is None:
                    await trio.lowlevel.wait_readable(self._socket)
                elif data:
                    self._decoder.feed(data)
                else:
                    self._over = _GONE
            self._is_unanswered = True
            self._is_awaited = frame.is_awaited
            return frame.content

    @trio.lowlevel.enable_ki_protection
    async def acknowledge(self, answer: bytes = b"") -> None:
        """Say that the value received last is taken care of, and *answer* to who asks.

        If the sender is gone, nobody hears it; what it sent can still be received.
        Cancelled while it waits for its turn, it did nothing; after that, the acknowledgement
        stands, and is sent with the next one.

        Raises:
            ValueError: The answer is longer than 1,024 bytes.
            RuntimeError: There is no value that is not acknowledged.
            trio.ClosedResourceError: This end was closed, before or meanwhile.
        """
        if len(answer) > MAX_ANSWER:
            raise ValueError(f"an answer of {len(answer):,} bytes; {MAX_ANSWER:,} are the most")
        self._raise_if_answered()  # at once, and not when another task has received a value
        async with self._turn:
            self._raise_if_answered()
            self._answer(answer)
            await self._say()

    def call_last(self) -> None:
        """Ask the other end, which has to know of such a call, for what there is still to say.

        Does not wait. Where the connection is filled up, it hears of that with the next
        acknowledgement; where it is gone, nobody does.
        """
        if not self._is_closed and self._over is None:
            self._owed += encode_frame(Frame(FrameKind.LAST_CALL))
            self._say_now()

    def _raise_if_answered(self) -> None:
        self._raise_if_closed()
        if not self._is_unanswered:
            raise RuntimeError("there is no value that is not acknowledged")

    def _answer(self, answer: bytes) -> None:
        self._is_unanswered = False
        self._owed += encode_frame(Frame(FrameKind.ACK, answer))

    def _say_now(self) -> None:
        try:
            self._write_now(self._owed)
        except OSError:  # there is nobody who could hear it
            self._owed.clear()

    async def _say(self) -> None:
        self._say_now()
        while self._owed:
            await self._until_writable()
            self._say_now()

    def _next(self) -> Frame | None:
        self._raise_if_over()
        try:
            frame = self._decoder.next()
        except FrameError as error:
            self._over = (trio.BrokenResourceError, str(error))
        else:
            if frame is None or frame.kind is FrameKind.DATA:
                return frame
            self._over = (trio.EndOfChannel, "the other end was closed")
        return self._next()

    def _last_word(self) -> bytes:
        return encode_frame(Frame(FrameKind.CLOSED))
