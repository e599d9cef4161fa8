"""An agent's connection to its relay: made when needed, made again when it breaks.

In: batches to hand over. Out: the knowledge that a relay has them on its disk, or that none
is to be had.
Does not know: where batches come from, what becomes of one that is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import trio

from trimaran._aside import aside
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint.consent import Consent, ConsentWithdrawn
from trimaran._endpoint.token import Tokens
from trimaran._process import (
    ProcessError,
    ProcessReceiveChannel,
    ProcessSendChannel,
    connect,
)
from trimaran._relay.launch import LaunchError, NoInterpreterError
from trimaran._relay.messages import (
    LISTENS,
    PROTOCOL,
    SPEAKS,
    Answer,
    Batches,
    End,
    HandedBatch,
    Hello,
    Listener,
    Message,
    MessageError,
    NewToken,
    Refused,
    Taken,
    Welcome,
    Withdraw,
    answer_from,
    call_from,
    encoded,
    should_retire,
)
from trimaran._relay.place import RelayPlace
from trimaran._spool.values import Binding
from trimaran._transport import TransportError
from trimaran._version import __version__

__all__ = ["RelayClient", "RelayUnavailable"]

_Channel = TypeVar("_Channel")

PATIENCE = 5.0
"""Seconds for a relay to take something, its start included; that takes half of one."""

RESTART_INTERVAL = 1.0
"""Seconds between two starts by one agent."""

UNAVAILABLE_FOR = 10.0
"""Seconds for which an agent sends for itself, once no relay was to be had."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.05
"""Seconds between two looks for a relay that is just starting, or ending."""


class RelayUnavailable(Exception):
    """No relay takes it; the message says why."""


class RelayClient:
    """One agent's way to the relay.

    Args:
        place: where the relay is.
        start: starts one unless there is one, and says whether it did; blocks. Raises
            :class:`~trimaran._relay.launch.LaunchError`.
        agent: unique over all, for all time.
        destination: what this agent's batches are bound to; worked out aside, once.
        tokens: the account's; None sends none.
        consent: asked before a token is given away.
        drain_timeout: seconds in which it has to be over, once time runs out.
        diagnostics: where lasting trouble is told.
    """

    def __init__(
        self,
        place: RelayPlace,
        *,
        start: Callable[[], bool],
        agent: str,
        destination: Binding,
        tokens: Tokens | None,
        consent: Consent,
        drain_timeout: float,
        diagnostics: Diagnostics,
    ) -> None:
        self._place = place
        self._start = start
        self._agent = agent
        self._destination = destination
        self._naming = trio.Lock()
        self._tokens = tokens
        self._consent = consent
        self._drain_timeout = drain_timeout
        self._diagnostics = diagnostics
        self._channel: ProcessSendChannel | None = None
        self._line: ProcessReceiveChannel | None = None
        """Where the relay's calls come in."""
        self._connecting = trio.Lock()
        self._connected = trio.Event()
        self._start_not_before = -math.inf
        self._cannot_start = ""
        """Why none is to be started any more."""
        self._unavailable_until = -math.inf
        self._unavailable_because = ""
        self._waiting: set[trio.CancelScope] = set()
        self._latest = math.inf
        self._has_handed_over = False
        self._is_closed = False

    @trio.lowlevel.enable_ki_protection
    async def meet(self) -> None:
        """Have a relay at hand before there is a batch for it: to start one takes longer than an
        agent should take to leave. Where none is to be had, that is told with the first batch.
        """
        with suppress(ConsentWithdrawn, RelayUnavailable):
            await self._consent.require()
            with self._in_time():
                await self._channel_or_new()

    async def hand_over(self, batches: Sequence[HandedBatch]) -> None:
        """Return when *batches* are on the relay's disk, all of them.

        A cancel leaves open whether they are; they may be handed over again.

        Raises:
            RelayUnavailable: they are not, as far as is known.
            ConsentWithdrawn: nothing may be handed over any more.
        """
        self._has_handed_over = True
        try:
            await self._ask(Batches(batches=batches))
        finally:
            # Once more: a withdrawal meanwhile, over a new connection, may have overtaken them.
            self._has_handed_over = True

    async def withdraw(self) -> None:
        """Let the relay remove what this agent handed over since the last time."""
        if self._has_handed_over:
            try:
                await self._ask(Withdraw())
            except RelayUnavailable as error:
                self._diagnostics.warn("telemetry relay not emptied", reason=str(error))
            else:
                self._has_handed_over = False

    async def answer_calls(self) -> None:
        """Give the relay a fresh token whenever it wants one; until cancelled."""
        if self._tokens is None:
            await trio.sleep_forever()
        await self._bound_to()  # before anybody waits for it
        while True:
            await self._connected.wait()
            channel, self._connected = self._channel, trio.Event()
            # A channel that did not answer in time is closed under the hands of who speaks.
            try:
                with suppress(
                    ProcessError, trio.BrokenResourceError, trio.ClosedResourceError, MessageError
                ):
                    if channel is not None and (address := self._place.address()) is not None:
                        await self._listen(await connect(address), channel)
            except OSError:  # this process is at a limit of its own: the relay is as it was
                await trio.sleep(RESTART_INTERVAL)
                self._connected.set()

    def hurry(self) -> None:
        """Time runs out: half of it is for the relay, and the rest for another way."""
        self._latest = trio.current_time() + self._drain_timeout / 2
        for scope in self._waiting:
            scope.deadline = min(scope.deadline, self._latest)

    def close(self) -> None:
        """Hang up. What was taken stays taken."""
        self._is_closed = True
        self._drop(self._channel)

    def forked(self) -> None:
        """This is a forked child's copy: the connection is its parent's."""
        self._is_closed = True
        for end in (self._channel, self._line):
            if end is not None:
                end.let_go()

    async def _ask(self, message: Message) -> None:
        with self._in_time():
            while not self._is_closed:
                channel = await self._channel_or_new()
                # Whoever asked before may have waited for long, and over several relays.
                if isinstance(message, Batches) and self._consent.is_withdrawn:
                    raise ConsentWithdrawn
                try:
                    answer = answer_from(await channel.ask(encoded(message)))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._drop(channel)
                else:
                    if isinstance(answer, Taken):
                        return
                    raise self._unavailable(_reason_of(answer))
            raise RelayUnavailable("this agent has hung up")

    @contextmanager
    def _in_time(self) -> Generator[None]:
        """A block that waits for a relay. Raises RelayUnavailable for all that is wrong with it."""
        if trio.current_time() < self._unavailable_until:
            raise RelayUnavailable(self._unavailable_because)
        with trio.move_on_at(min(trio.current_time() + PATIENCE, self._latest)) as scope:
            self._waiting.add(scope)
            try:
                yield
            except (MessageError, LaunchError, OSError) as error:
                raise self._unavailable(str(error)) from None
            except ValueError as error:  # too long for a frame
                raise RelayUnavailable(str(error)) from None
            else:
                return
            finally:
                self._waiting.discard(scope)
        raise self._unavailable("it does not answer in time")

    def _unavailable(self, reason: str) -> RelayUnavailable:
        """No relay is asked for a while."""
        self._drop(self._channel)
        self._unavailable_because = reason
        self._unavailable_until = trio.current_time() + UNAVAILABLE_FOR
        return RelayUnavailable(reason)

    def _drop(self, channel: ProcessSendChannel | None) -> None:
        if channel is not None:
            channel.close()
            if self._channel is channel:
                self._channel = None

    async def _channel_or_new(self) -> ProcessSendChannel:
        async with self._connecting:
            pause = _FIRST_PAUSE
            token = None if self._channel is not None else await self._token()
            while self._channel is None:
                address = self._place.address()
                with suppress(ProcessError, trio.BrokenResourceError):
                    if address is not None:
                        self._channel = await self._introduced(await connect(address), token)
                if self._channel is None:
                    await self._start_if_due()
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            return self._channel

    async def _start_if_due(self) -> None:
        if self._cannot_start:
            raise LaunchError(self._cannot_start)
        if trio.current_time() >= self._start_not_before and await self._started_aside():
            self._start_not_before = trio.current_time() + RESTART_INTERVAL

    async def _started_aside(self) -> bool:
        """As :meth:`_started`. Where there can be no thread there is no relay: started in the
        loop itself, it would hold that up for seconds.
        """
        has_begun = False

        def begin() -> bool:
            nonlocal has_begun
            has_begun = True
            return self._started()

        try:
            return await trio.to_thread.run_sync(begin, abandon_on_cancel=True)
        except RuntimeError as error:
            if has_begun:
                raise
            raise LaunchError(str(error)) from None

    def _started(self) -> bool:
        """Start one, in a thread; that may outlive whoever waits for it."""
        try:
            return self._start()
        except NoInterpreterError as error:
            self._cannot_start = str(error)
            raise

    async def _introduced(
        self, stream: trio.SocketStream, token: str | None
    ) -> ProcessSendChannel | None:
        """A channel to a relay that knows this agent; None if it is about to end."""
        channel = await _opened(stream, SPEAKS, ProcessSendChannel)
        try:
            answer = answer_from(
                await channel.ask(
                    encoded(
                        Hello(
                            protocol=PROTOCOL,
                            version=__version__,
                            agent=self._agent,
                            destination=await self._bound_to(),
                            token=token,
                        )
                    )
                )
            )
            if isinstance(answer, Refused) and should_retire(answer):
                await channel.ask(encoded(End()))
                channel.close()
                return None
        except BaseException:
            channel.close()
            raise
        if not isinstance(answer, Welcome):
            channel.close()
            raise self._unavailable(_reason_of(answer))
        self._connected.set()
        return channel

    async def _bound_to(self) -> str:
        """What its batches are bound to. A checkpoint only where that is to be worked out."""
        if isinstance(self._destination, str):
            return self._destination
        async with self._naming:
            if not isinstance(self._destination, str):
                self._destination = await aside(self._destination)
            return self._destination

    async def _token(self) -> str | None:
        """The account's token, if it may be given away."""
        if self._tokens is None:
            return None
        with suppress(ConsentWithdrawn, TransportError):
            token = await self._tokens.current()
            # Only now is it known whose it is: it may just have been renewed.
            await self._consent.require(token_is_new=True)
            return token
        return None

    async def _listen(self, stream: trio.SocketStream, channel: ProcessSendChannel) -> None:
        """Answer the calls that come over *stream*; what is said to them goes over *channel*."""
        assert self._tokens is not None
        with await _opened(stream, LISTENS, ProcessReceiveChannel) as calls:
            self._line = calls
            await calls.receive()
            await calls.acknowledge(encoded(Listener(agent=self._agent)))
            async for data in calls:
                token = await self._tokens.renewed(after=call_from(data).after)
                if token is not None:
                    with suppress(ConsentWithdrawn, TransportError):
                        await self._consent.require(token_is_new=True)
                        await channel.ask(encoded(NewToken(token=token)))


async def _opened(
    stream: trio.SocketStream, role: bytes, kind: Callable[[trio.SocketStream], _Channel]
) -> _Channel:
    """A channel over a new connection, for what its first byte says."""
    try:
        await stream.send_all(role)
        return kind(stream)
    except BaseException:
        stream.socket.close()
        raise


def _reason_of(answer: Answer) -> str:
    return answer.reason if isinstance(answer, Refused) else "it speaks another language"
