"""The way in for other threads: they leave events here, the session's own takes them.

In: events, from any thread. Out: the same events, in the mailbox.
Does not know: stages.

There is no lock. A finalizer or a signal handler may run at any moment, and any code of the
host's in it: were a lock of ours held then, and one of the host's waited for, two threads
could wait for each other. What threads do here at the same time is done in single steps of a
deque, which nobody can come between.
"""

from __future__ import annotations

from collections import deque
from types import MappingProxyType

import trio
from msgspec.structs import replace

from trimaran._events import Event
from trimaran._pipeline.encoder import STOPS
from trimaran._pipeline.ledger import DropReason, Ledger, Statistics
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.settled import TooLarge, settled
from trimaran._spans import Place

__all__ = ["Inbox"]

_MOST_AT_ONCE = 1_000
"""Events that are moved over in one go while the session's thread has other things to do."""

_MOST_REFUSALS = 1_000
"""Refusals that are noted one by one before they are summed up."""


_MOST_LOOKS = 10
"""At the books, by a thread that is in the middle of a look whenever some of it moves."""


class Inbox:
    """Bounded, give or take one for each thread; what it has to refuse is counted.

    Args:
        token: of the session's trio run; None where there is nobody to call.
        mailbox: where events go.
        ledger: the session's books, written on the session's thread only.
        capacity: events that wait here at most.
    """

    def __init__(
        self,
        token: trio.lowlevel.TrioToken | None,
        *,
        mailbox: Mailbox,
        ledger: Ledger,
        capacity: int,
    ) -> None:
        self._token = token
        self._mailbox = mailbox
        self._ledger = ledger
        self._capacity = capacity
        self._events: deque[tuple[Event, float, Place | None]] = deque()
        self._refused: deque[tuple[DropReason, int]] = deque()
        """What was refused and is in no book yet; each is in one place, or in a thread's hand."""
        self._is_called = False
        """Whether somebody comes for what is here. Down before anything is taken, and up only
        after something was left, so that what was left is never overlooked."""
        self._ended = False

    def put(self, event: Event, time: float, place: Place | None = None) -> None:
        """Leave *event*, tracked at *time* (since the epoch) in that *place* among the spans;
        from any thread, never raises.
        """
        if self._ended:
            self._refuse(DropReason.CLOSED)
        elif len(self._events) >= self._capacity:
            self._refuse(DropReason.MAILBOX_FULL)
        else:
            self._leave(event, time, place)
        self._call_for_events()

    def _leave(self, event: Event, time: float, place: Place | None) -> None:
        try:
            # By its very type, as the mailbox does; what is no event is refused there.
            if issubclass(type(event), Event):  # pyright: ignore[reportUnnecessaryIsInstance] - any caller
                event = settled(event, self._mailbox.event_bytes)
        except TooLarge:
            self._refuse(DropReason.TOO_LARGE)
        except STOPS:
            raise
        except BaseException:  # noqa: BLE001 - its class is the host's own code
            self._refuse(DropReason.BUG)
        else:
            self._events.append((event, time, place))
            if self._ended:  # meanwhile
                self._close_out()

    def lose(self, reason: DropReason) -> None:
        """Count an event that could not be left here; from any thread, never raises."""
        self._refuse(reason)
        self._call_for_events()

    def _call_for_events(self) -> None:
        """Have the session's thread come, unless it comes already: a call costs a thread three
        times what leaving an event does.
        """
        if self._is_called or self._token is None:
            return
        try:
            self._is_called = True
            self._token.run_sync_soon(self._come, idempotent=True)
        except trio.RunFinishedError:
            self.end()
        except BaseException:
            self._is_called = False  # a Ctrl-C, say, came between
            raise

    def _refuse(self, reason: DropReason) -> None:
        self._refused.append((reason, 1))
        if len(self._refused) > _MOST_REFUSALS:
            self._refused.extend(self._take_refused().items())

    def _take_refused(self) -> dict[DropReason, int]:
        counts: dict[DropReason, int] = {}
        for _ in range(len(self._refused)):
            try:
                reason, count = self._refused.popleft()
            except IndexError:  # another thread was faster
                break
            counts[reason] = counts.get(reason, 0) + count
        return counts

    def _come(self) -> None:
        """Move some of it over, and come again if there is more: others want a turn."""
        self._is_called = False
        self._move(min(len(self._events), _MOST_AT_ONCE))
        if self._events:
            self._call_for_events()

    def empty(self) -> None:
        """Move everything into the mailbox and the books; on the session's thread.

        What threads leave meanwhile is moved later, or they could hold that thread up for ever.
        """
        self._is_called = False
        self._move(len(self._events))
        if self._events:
            self._call_for_events()

    def _move(self, most: int) -> None:
        for _ in range(most):
            try:
                event, time, place = self._events.popleft()
            except IndexError:  # closed out meanwhile
                break
            try:
                self._mailbox.put(event, time, place)
            except STOPS:
                raise  # the event is in the books, and what is behind it has its turn later
            except BaseException:  # noqa: BLE001 - raised here, it would end the whole trio run
                self._ledger.drop(DropReason.BUG)
        for reason, count in self._take_refused().items():
            self._ledger.track(count)
            self._ledger.drop(reason, count)

    def end(self) -> None:
        """Take nothing more; what is still here is closed out."""
        self._ended = True
        self._close_out()

    def _close_out(self) -> None:
        while True:
            try:
                self._events.popleft()
            except IndexError:
                return
            self._refuse(DropReason.CLOSED)

    def counts(self) -> tuple[int, dict[DropReason, int]]:
        """Events that wait here, and events refused here that no book has yet, by reason."""
        waiting = len(self._events)
        refused: dict[DropReason, int] = {}
        for reason, count in self._refused.copy():  # in one step
            refused[reason] = refused.get(reason, 0) + count
        return waiting, refused

    def statistics(self) -> Statistics:
        """The books, and what waits or was refused here and is in no book yet; from any thread.

        Another thread may leave out what is in the session's thread's hand just then: one event
        that waited, or what was refused. Nothing is counted twice.
        """
        books = self._ledger.statistics()
        waiting, refused = self.counts()
        for _ in range(_MOST_LOOKS):
            if self._ledger.tracked == books.tracked:
                break  # else some moved over between the two looks, and is in neither
            books = self._ledger.statistics()
            waiting, refused = self.counts()
        dropped = dict(books.dropped)
        for reason, count in refused.items():
            dropped[reason] = dropped.get(reason, 0) + count
        return replace(
            books,
            tracked=books.tracked + waiting + sum(refused.values()),
            pending=books.pending + waiting,
            dropped=MappingProxyType(dropped),
        )
