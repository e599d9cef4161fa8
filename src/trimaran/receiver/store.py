"""What keeps batches, whichever way: the seam between requests and storage.

In and out: values. Does not know: SQL, files, HTTP.
"""

from typing import Protocol

from trimaran.receiver.ingest import Batch
from trimaran.receiver.limits import EVENTS_PAGE, MAX_CURSOR, SESSIONS_PAGE
from trimaran.receiver.values import EventPage, Family, Receipt, SessionPage, StoredSession

__all__ = ["Keeper", "Store", "StoreError", "StoreUnavailable"]


class StoreError(Exception):
    """A store cannot be used. The message names it and says why."""


class StoreUnavailable(StoreError):
    """A store cannot be read or written at the moment: full, locked, or not there.

    What was asked for has not been done, and may be asked for again.
    """


class Keeper(Protocol):
    """Takes batches and answers for them. Every async method is a checkpoint."""

    @property
    def where(self) -> str:
        """Where batches go, for a person; no password is in it."""
        ...

    async def append(
        self, batch: Batch, key: str | None = None, *, parent: str | None = None
    ) -> Receipt:
        """Keep *batch*, unless its session has one of the same idempotency *key*.

        *parent* is the id of the session that this one works for; without one it keeps the
        parent that it has, and itself is none. Once this has returned, the batch is safe.
        A cancel leaves it kept whole or not at all.

        Raises:
            StoreUnavailable: Nothing can be relied on to be kept.
        """
        ...

    async def check(self) -> None:
        """See whether it can be used.

        Raises:
            StoreUnavailable: It cannot.
        """
        ...


class Store(Keeper, Protocol):
    """Gives back what it took, too. All of its methods may raise StoreUnavailable."""

    async def sessions(
        self,
        *,
        before: int = MAX_CURSOR,
        limit: int = SESSIONS_PAGE,
        parent: str | None = None,
    ) -> SessionPage:
        """Up to *limit* sessions whose number is less than *before*, the newest first.

        With a *parent*, those which say that they work for the session of that id.
        """
        ...

    async def session(self, session_id: str) -> StoredSession | None:
        """The session of that id, or None."""
        ...

    async def family(self, session: StoredSession) -> Family:
        """The sessions above *session*, and those below it."""
        ...

    async def events(
        self, session: StoredSession, *, first: int = 0, limit: int = EVENTS_PAGE
    ) -> EventPage:
        """Up to *limit* events of *session* from position *first* on.

        A page is shorter where its events would be more than 4 MiB together.
        """
        ...
