"""The way out of a process that takes part in another's session: through that process.

In: a request. Out: the parent's word that it has the events; when the parent is gone, the
endpoint's answer.
Does not know: batches, sessions, what an answer means for them.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio
from msgspec.structs import replace

from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import Endpoint
from trimaran._endpoint.consent import Consent, ConsentWithdrawn
from trimaran._endpoint.pauses import Pauses
from trimaran._environment import Parent
from trimaran._handover import ATTACHED, SAID_ALL, WITHDRAWN, frame_of
from trimaran._pipeline import wire
from trimaran._pipeline.ledger import DropReason
from trimaran._process import PeerClosed, ProcessError, ProcessSendChannel, connect
from trimaran._transport import Answer, GivenUp, Request, TransportError

__all__ = ["ThroughParent"]

_TAKEN = Answer(200)
_TOO_LARGE = Answer(413)

HANDOVER_INTERVAL = 0.05
"""Seconds that an event waits for others, at most, on its way to the parent: handing over costs
little, and what the parent has is not lost with this process, nor by the session's end."""


class ParentGone(Exception):
    """There is nobody to hand over to; says why."""


class ThroughParent:
    """Hands requests over to the parent, as long as it lives.

    Args:
        parent: whom to hand over to.
        direct: the endpoint itself, for when the parent is gone; None where nobody may send
            there.
        takes_spans: whether that takes more than the origin's wire, as the parent may.
        consent: asked before every request.
        flush_interval: seconds that an event waits for others on its way to the endpoint.
        diagnostics: where a parent that is gone is told.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        direct: Endpoint | None,
        takes_spans: bool,
        consent: Consent,
        flush_interval: float,
        diagnostics: Diagnostics,
    ) -> None:
        self._parent = parent
        self._direct = direct
        self._strips = parent.wants_spans and not takes_spans
        self._consent = consent
        self._flush_interval = flush_interval
        self._diagnostics = diagnostics
        self._pauses = Pauses()
        self._connecting = trio.Lock()
        self._channel: ProcessSendChannel | None = None
        self._latest: ProcessSendChannel | None = None
        self._is_new = trio.Event()
        """Whether nobody waits for the last call of the channel that was made latest."""
        self._say_all: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._is_over = parent.is_over
        self._is_gone = False
        self._is_refused = False
        """Whether the last that was heard of the parent is that nothing may be sent."""
        self._is_forked = False

    @property
    def url(self) -> str:
        """Where events go when the parent is gone; "" where nowhere."""
        return "" if self._direct is None else self._direct.url

    @property
    def with_token(self) -> bool:
        """Whether requests carry a token: the parent's do, but that is the parent's affair."""
        return self._is_gone and self._direct is not None and self._direct.with_token

    @property
    def is_withdrawn(self) -> bool:
        """Whether nothing may be sent any more, as far as this process and its parent know."""
        return self._is_refused or self._consent.is_withdrawn

    def next_refresh_at(self) -> float:
        """When a token that was refused may be renewed, by trio's clock."""
        return float("-inf") if self._direct is None else self._direct.next_refresh_at()

    def flush_interval(self) -> float:
        """Seconds that an event waits for others, at most, on the way that it would take now."""
        longest = self._flush_interval
        return longest if self._is_gone else min(HANDOVER_INTERVAL, longest)

    def hurry(self) -> None:
        """Time runs out: whoever waits may try once, now."""
        self._pauses.hurry()
        if self._direct is not None:
            self._direct.hurry()

    def nudge(self) -> None:
        """Somebody waits for what is pending: if nobody else did so lately, it is tried now."""
        if self._direct is not None:
            self._direct.nudge()

    @property
    def is_down(self) -> bool:
        """Whether the endpoint counts as down, which was told; a parent never does."""
        return self._direct is not None and self._direct.is_down

    async def pause_until(self, time: float) -> None:
        """Sleep until *time*, by trio's clock, or until time runs out for the first time."""
        await self._pauses.until(time)

    async def arrive(self, timeout: float) -> None:
        """Connect, so that the parent knows of this process; a parent that is gone shows later."""
        with trio.move_on_after(timeout), suppress(ParentGone, GivenUp, TransportError):
            await self._connected()

    def answer_last_call(self, say_all: Callable[[], Awaitable[None]]) -> None:
        """From now on there may be something to say; *say_all* waits until it has been said."""
        self._say_all = say_all

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Answer the parent's last call, so that it need not wait; until cancelled."""
        while True:
            await self._is_new.wait()
            self._is_new = trio.Event()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._answer(self._latest)

    async def _answer(self, channel: ProcessSendChannel | None) -> None:
        assert channel is not None
        await channel.last_call()
        await self._say_all()
        await channel.send(SAID_ALL)

    async def attempt(
        self, request: Request, *, is_repeated: bool, made: Callable[[], None]
    ) -> Answer:
        """Hand *request* over, waiting for as long as the parent has no room.

        Raises:
            TransportError: the parent broke off, and may or may not have taken it; or what
                the endpoint itself raises.
            GivenUp: the parent's session is over, the parent is gone and nobody may send in
                its place, or consent was withdrawn: here, or there while it lived.
        """
        if self._is_forked:
            await trio.sleep_forever()  # the parent of this copy sends it
        if not self._is_gone:
            await self._consent.require()
            try:
                return await self._handed_over(request, made)
            except ParentGone as gone:
                self._is_gone = True
                self._diagnostics.warn("telemetry parent gone", reason=str(gone))
        if self._is_refused:
            raise ConsentWithdrawn
        if self._direct is None:
            raise GivenUp(DropReason.UNAUTHORIZED)
        if self._strips:
            request = _without_spans(request)
        return await self._direct.attempt(request, is_repeated=is_repeated, made=made)

    async def _handed_over(self, request: Request, made: Callable[[], None]) -> Answer:
        frame = frame_of(request.headers["idempotency-key"], request.body)
        for _ in range(2):  # a connection that was broken off shows only when it is used
            channel = await self._connected()
            made()
            try:
                answer = await channel.ask(frame)
            except ValueError:
                return _TOO_LARGE
            except PeerClosed:
                self._is_over = True
                raise GivenUp(DropReason.CLOSED) from None
            except trio.BrokenResourceError:
                channel.close()
                self._channel = None
            else:
                self._is_refused = answer == WITHDRAWN
                if self._is_refused:
                    raise ConsentWithdrawn
                return _TAKEN
        raise TransportError("the parent broke off")

    async def _connected(self) -> ProcessSendChannel:
        """The channel to the parent; no checkpoint once it is there.

        Raises:
            ParentGone: there is no parent any more.
            GivenUp: its session is over.
            TransportError: it cannot be told.
        """
        async with self._connecting:
            if self._is_over:
                raise GivenUp(DropReason.CLOSED)
            if self._parent.socket is None or not self._parent.is_reachable:
                raise ParentGone("it can be reached nowhere")
            if self._channel is None:
                try:
                    stream = await connect(Path(self._parent.socket))
                except ProcessError as error:
                    # A session that ends takes its socket with it; a process that dies does not.
                    ended = isinstance(error.__cause__, FileNotFoundError)
                    if ended and _is_alive(self._parent.pid):
                        self._is_over = True
                        raise GivenUp(DropReason.CLOSED) from None
                    raise ParentGone(str(error)) from None
                except OSError as error:
                    raise TransportError(str(error)) from None
                self._channel = await self._introduced(ProcessSendChannel(stream))
                self._latest = self._channel
                self._is_new.set()
            return self._channel

    async def _introduced(self, channel: ProcessSendChannel) -> ProcessSendChannel:
        """Tell the parent that its last call is answered, if it makes one; gives *channel*."""
        if self._parent.calls_last:
            try:
                with suppress(trio.BrokenResourceError):  # which shows again when it is used
                    await channel.send(ATTACHED)
            except BaseException:
                channel.close()
                raise
        return channel

    async def aclose(self) -> None:
        """Take leave of the parent, and close what is open to the endpoint."""
        if self._channel is not None and not self._is_forked:
            self._channel.close()
        if self._direct is not None:
            await self._direct.aclose()
        await trio.lowlevel.checkpoint_if_cancelled()

    def forked(self) -> None:
        """This is a forked child's copy: the connections are the parent's."""
        self._is_forked = True
        if self._channel is not None:
            self._channel.let_go()
        if self._direct is not None:
            self._direct.forked()


def _without_spans(request: Request) -> Request:
    """*request* as the origin's endpoint takes it."""
    headers = {**request.headers}
    for name in wire.trace_headers(wire.traceparent_of(headers)):
        del headers[name]
    return replace(request, headers=headers, body=wire.without_members(request.body))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
