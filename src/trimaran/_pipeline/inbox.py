"""The way in for other threads: they leave events here, the session's own takes them.

In: events, from any thread. Out: the same events, in the mailbox.
Does not know: stages.

The session's thread holds the lock only while it moves events over, and no thread
waits for anything else with it, so nobody is held up for longer than that.
"""

from __future__ import annotations

import threading
from collections import deque
from types import MappingProxyType

import trio
from msgspec.structs import replace

from trimaran._events import Event
from trimaran._pipeline.ledger import DropReason, Ledger, Statistics
from trimaran._pipeline.mailbox import Mailbox

__all__ = ["Inbox"]


class Inbox:
    """Bounded; what it has to refuse is counted.

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
        # Reentrant: a finalizer that logs may run while this very thread holds it.
        self._lock = threading.RLock()
        self._events: deque[tuple[Event, float]] = deque()
        self._refused: dict[DropReason, int] = {}
        self._ended = False

    def put(self, event: Event, time: float) -> None:
        """Leave *event*, tracked at *time* (since the epoch); from any thread, never raises."""
        with self._lock:
            # Who finds something here finds that the call for it is out: each costs a thread
            # three times what leaving the event does. It comes first, so that an exception in
            # between, a Ctrl-C say, leaves nothing that nobody comes for.
            if not self._events and not self._refused:
                self._call_for_events()
            if self._ended:
                self._refuse(DropReason.CLOSED)
            elif len(self._events) >= self._capacity:
                self._refuse(DropReason.MAILBOX_FULL)
            else:
                self._events.append((event, time))

    def lose(self, reason: DropReason) -> None:
        """Count an event that could not be left here; from any thread, never raises."""
        with self._lock:
            if not self._events and not self._refused:  # as in put()
                self._call_for_events()
            self._refuse(reason)

    def _call_for_events(self) -> None:
        if self._token is None:
            return
        try:
            self._token.run_sync_soon(self.empty, idempotent=True)
        except trio.RunFinishedError:
            self.end()

    def _refuse(self, reason: DropReason) -> None:
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def empty(self) -> None:
        """Move everything into the mailbox and the books; on the session's thread."""
        with self._lock:
            while self._events:
                event, time = self._events.popleft()
                try:
                    self._mailbox.put(event, time)
                except Exception:  # noqa: BLE001 - raised here, it would end the whole trio run
                    self._ledger.drop(DropReason.BUG)
            while self._refused:
                reason, count = self._refused.popitem()
                self._ledger.track(count)
                self._ledger.drop(reason, count)

    def end(self) -> None:
        """Take nothing more; what is still here is closed out."""
        with self._lock:
            self._ended = True
            while self._events:
                self._events.popleft()
                self._refuse(DropReason.CLOSED)

    def counts(self) -> tuple[int, dict[DropReason, int]]:
        """Events that wait here, and events refused here that no book has yet, by reason."""
        with self._lock:
            return len(self._events), dict(self._refused)

    def statistics(self) -> Statistics:
        """The books, and what waits or was refused here and is in no book yet; from any thread."""
        with self._lock:  # nothing moves over meanwhile, to be counted twice
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
