"""Processes that take part in a session: the parent's side.

In: connections of children at a socket of the session's own; on each, batches. Out: their
events, one by one, handed over to the session with waiting for room.
Does not know: pipelines, what becomes of an event, how a child comes by it.

What a child says wrongly costs it the connection, never the session.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path

import trio

from trimaran._diagnostics import Diagnostics
from trimaran._events import Event
from trimaran._handover import (
    ATTACHED,
    SAID_ALL,
    WITHDRAWN,
    Unreadable,
    child_of,
    key_and_body,
    places_in,
    tracked_events,
)
from trimaran._host_events import HostEvents
from trimaran._process import ProcessError, ProcessListener, ProcessReceiveChannel, listening
from trimaran._spans import Place

__all__ = ["Children"]

_ACCEPT_PAUSE = 0.1
"""Seconds until the next try when there are no descriptors left; trio's choice too."""

_EVENTS_BETWEEN_YIELDS = 128
"""Events of a child that are taken before other tasks get a turn."""


class _Child:
    """What is remembered of a child, over all its connections."""

    def __init__(self) -> None:
        self.turn = trio.Lock()
        """Held while a batch of it is taken: it may ask again over a new connection."""
        self.last_key = ""
        """Of the batch that was taken last; it hands them over one by one."""


class Children:
    """The children of one session. Nothing is open before the first :meth:`place`.

    Args:
        name: unique over all sessions of this process.
        take: hands an event over to the session, waiting for room; with its place among the
            spans.
        refuse: told of an event of no use, which is to be counted.
        is_withdrawn: whether nothing may be sent any more: then no batch is taken.
        diagnostics: where trouble is told.
        environ: where the directory for sockets comes from.
        strict: whether a bug comes out.
        with_places: whether children say which spans their events are.
    """

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[Event, Place | None], Awaitable[None]],
        refuse: Callable[[], None],
        is_withdrawn: Callable[[], bool],
        diagnostics: Diagnostics,
        environ: Mapping[str, str],
        strict: bool,
        with_places: bool = False,
    ) -> None:
        self._name = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:24]
        self._hand_over = take
        self._refuse = refuse
        self._is_withdrawn = is_withdrawn
        self._diagnostics = diagnostics
        self._environ = environ
        self._strict = strict
        self._with_places = with_places
        self._opening = threading.Lock()
        self._listener: ProcessListener | None = None
        self._lost: list[ProcessListener] = []
        """Those that nobody can find any more, and that are still open."""
        self._scope = trio.CancelScope()
        self._channels: dict[ProcessReceiveChannel, bool] = {}
        """Those who are connected, and whether they answer a last call."""
        self._known: dict[str, _Child] = {}
        self._host_events = HostEvents()
        self._is_started = False
        self._is_copy = False
        self._is_hurried = False
        self.is_over: bool = False
        """Whether nobody is let in any more."""

    def place(self) -> Path | None:
        """Where children connect to; from any thread. None if there is no such place.

        The first call makes it, which takes microseconds and is all that waits for a disk; and
        so does one after somebody removed it, as logging out does: who is connected stays so.
        """
        with self._opening:
            here = self._listener
            if not (self.is_over or self._is_copy or (here is not None and here.is_there())):
                try:
                    self._listener = listening(self._name, self._environ)
                except (ProcessError, OSError) as error:
                    self._diagnostics.warn("telemetry takes no children", reason=str(error))
                    return None
                if here is not None:
                    self._lost.append(here)
            return None if self._listener is None else self._listener.path

    def is_to_run(self) -> bool:
        """Whether somebody may connect, and nobody is there to answer; true once.

        Where :meth:`run` does already, it goes on where children connect to now.
        """
        self._close_lost()
        if self._listener is None or self.is_over or self._is_copy or self._is_started:
            return False
        self._is_started = True
        return True

    async def run(self) -> None:
        """Take what children hand over, until :meth:`end`; then until they have left, or their
        time is over. Who is still there then is told that nothing more is taken.
        """
        assert self._listener is not None
        with self._scope:
            async with trio.open_nursery() as nursery:
                while not (self.is_over or self._is_copy):
                    await self._accept_all(self._listener, nursery)

    async def _accept_all(self, listener: ProcessListener, nursery: trio.Nursery) -> None:
        while True:
            try:
                channel = ProcessReceiveChannel(await listener.accept())
            except trio.ClosedResourceError:
                return
            except OSError as error:
                self._diagnostics.warn("telemetry child not accepted", reason=str(error))
                await trio.sleep(_ACCEPT_PAUSE)
            else:
                self._channels[channel] = False
                nursery.start_soon(self._serve, channel)

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, channel: ProcessReceiveChannel) -> None:
        """Take the batches of one connection until it ends, in whichever way."""
        child = ""
        try:
            with channel:
                async for frame in channel:
                    if frame == SAID_ALL:
                        break
                    if frame == ATTACHED:
                        self._channels[channel] = True
                        self._call_last()
                        continue
                    key, body = key_and_body(frame)
                    child = child_of(key)
                    if self._is_withdrawn():
                        await channel.acknowledge(WITHDRAWN)
                    else:
                        await self._take(child, key, body)
            # It has left in order, or is told now that it has to; and will not ask again.
            self._known.pop(child, None)
        except trio.BrokenResourceError:
            pass  # it died, and all that it handed over is in
        except Unreadable as error:
            self._diagnostics.warn("telemetry child cut off", reason=str(error))
        except Exception as bug:
            self._diagnostics.warn("telemetry failed", error=type(bug).__name__)
            if self._strict:
                raise
        finally:
            del self._channels[channel]

    async def _take(self, child: str, key: str, body: bytes) -> None:
        known = self._known.setdefault(child, _Child())
        async with known.turn:
            if key == known.last_key:
                return
            events = tracked_events(body, self._host_events, with_places=self._with_places)
            places: Iterator[Place | None] = places_in(body) if self._with_places else repeat(None)
            # The places may go on for ever.
            for number, (event, place) in enumerate(zip(events, places, strict=False), 1):
                if event is None:
                    self._refuse()
                else:
                    await self._hand_over(event, place)
                if number % _EVENTS_BETWEEN_YIELDS == 0:
                    await trio.lowlevel.checkpoint()
            known.last_key = key

    def end(self, deadline: float) -> bool:
        """Let nobody in any more. Who is there has until *deadline*, by trio's clock.

        Returns:
            Whether somebody is there; :meth:`run` ends when they have left.
        """
        self._close()
        self._scope.deadline = min(self._scope.deadline, deadline)
        self._call_last()
        return bool(self._channels)

    def hurry(self, deadline: float) -> None:
        """Somebody waits for the end, now or when it comes: who is there then is asked for what
        there is to say, and let go of with that; until *deadline* at the latest.
        """
        self._is_hurried = True
        if self.is_over:
            self._scope.deadline = min(self._scope.deadline, deadline)
            self._call_last()

    def _call_last(self) -> None:
        if self.is_over and self._is_hurried:
            for channel, answers in self._channels.items():
                if answers:
                    channel.call_last()

    def abandon(self) -> None:
        """Let nobody in any more; what runs is over, or never was. May be called again."""
        self.end(-math.inf)

    def _close(self) -> None:
        with self._opening:
            self.is_over = True
            if self._listener is not None:
                self._listener.close()
        self._close_lost()

    def _close_lost(self) -> None:
        """In the session's own thread: trio is told."""
        with self._opening:
            while self._lost:
                self._lost.pop().close()

    def forked(self) -> None:
        """This is a forked child's copy: all its connections are the parent's."""
        self._opening = threading.Lock()
        self._is_copy = True
        for listener in self._lost if self._listener is None else (*self._lost, self._listener):
            listener.let_go()
        for channel in self._channels:
            channel.let_go()
