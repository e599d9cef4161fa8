"""A session whose loop is in another thread, for code of every other kind.

In: what plain code, asyncio or another trio run says of it. Out: the same, in the session.
Does not know: how a session comes to be, how its thread is kept in check.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import trio

from trimaran._current import entered
from trimaran._events import CommandSource, Event
from trimaran._live_session import LiveSession
from trimaran._log_context import named_in_logs
from trimaran._pipeline.ledger import Statistics
from trimaran._recording import BridgeMeasure, GenerationMeasure, ToolMeasure
from trimaran._session import Flushed, Session
from trimaran._thread import BlockInThread, NoAnswer

__all__ = ["ANSWER_GRACE", "DistantSession", "ThreadSession", "entered_from_afar"]

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")

ANSWER_GRACE = 0.1
"""Seconds beside its own timeout in which a flush may answer, and leaving a session."""


class DistantSession(Session):
    """A session whose trio loop is in another thread; for any code but that loop's.

    Awaited from asyncio, or from another trio run.

    Args:
        session: in the loop.
        loop: where it lives.
    """

    def __init__(self, session: LiveSession, loop: BlockInThread[_Value]) -> None:
        self._session = session
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._session)

    @property
    def id(self) -> str:
        """See :attr:`Session.id`."""
        return self._session.id

    def track(self, event: Event) -> None:
        """See :meth:`Session.track`."""
        self._session.track(event)

    async def send(self, event: Event) -> None:
        """See :meth:`Session.send`."""
        try:
            await _awaited(
                self._loop.submit(partial(self._session.send, event, self._session.here()))
            )
        except NoAnswer:
            self.track(event)  # counted as closed

    async def flush(self, *, timeout: float = 2.0) -> Flushed:
        """See :meth:`Session.flush`."""
        before = self.statistics()
        try:
            return await _awaited(self._loop.submit(partial(self._session.flush, timeout=timeout)))
        except NoAnswer:
            return self._flushed_since(before)

    def send_blocking(self, event: Event) -> None:
        """As :meth:`send`, holding up the thread."""
        try:
            self._loop.wait(
                self._loop.submit(partial(self._session.send, event, self._session.here()))
            )
        except NoAnswer:
            self.track(event)

    def flush_blocking(self, timeout: float) -> Flushed:
        """As :meth:`flush`, holding up the thread."""
        before = self.statistics()
        try:
            return self._loop.wait(
                self._loop.submit(partial(self._session.flush, timeout=timeout)),
                max(0.0, timeout) + ANSWER_GRACE,
            )
        except NoAnswer:
            return self._flushed_since(before)

    def _flushed_since(self, before: Statistics) -> Flushed:
        """How a flush ended that the loop did not answer."""
        after = self.statistics()
        return Flushed(
            complete=all(
                books.pending == books.spooled + books.handed_over
                for books in (after, *after.destinations.values())
            ),
            delivered=after.delivered - before.delivered,
            dropped=after.dropped_total - before.dropped_total,
            pending=after.pending,
            spooled=after.spooled,
            handed_over=after.handed_over,
        )

    def statistics(self) -> Statistics:
        """See :meth:`Session.statistics`."""
        return self._session.statistics()

    def to_env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """See :meth:`Session.to_env`."""
        return self._session.to_env(base)

    def generation(
        self,
        *,
        message_id: str = "",
        model_id: str | None = None,
        provider_id: str | None = None,
        agent: str | None = None,
    ) -> GenerationMeasure:
        """See :meth:`Session.generation`."""
        return self._session.generation(
            message_id=message_id, model_id=model_id, provider_id=provider_id, agent=agent
        )

    def tool_call(
        self, tool_name: str, *, message_id: str = "", category: str | None = None
    ) -> ToolMeasure:
        """See :meth:`Session.tool_call`."""
        return self._session.tool_call(tool_name, message_id=message_id, category=category)

    def bridge_call(self, method: str) -> BridgeMeasure:
        """See :meth:`Session.bridge_call`."""
        return self._session.bridge_call(method)


async def _awaited(future: Future[_Result]) -> _Result:
    """Wait for *future* in whichever loop runs here; a cancel cancels it."""
    if trio.lowlevel.in_trio_run():
        try:
            return await trio.to_thread.run_sync(future.result, abandon_on_cancel=True)
        except trio.Cancelled:
            future.cancel()
            raise
    import asyncio  # noqa: PLC0415 - only where it is the host's own

    return await asyncio.wrap_future(future)


class ThreadSession:
    """A session as :class:`Session`, for code that cannot await: no call is async.

    What it has in common with that is the same: plain calls, from any thread, which never
    wait and never raise. :meth:`send` and :meth:`flush` hold up the thread that calls them.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        return repr(self._session)

    @property
    def id(self) -> str:
        """See :attr:`Session.id`."""
        return self._session.id

    def track(self, event: Event) -> None:
        """See :meth:`Session.track`."""
        self._session.track(event)

    def command(
        self, command_name: str, *, source: CommandSource = "unknown", message_id: str = ""
    ) -> None:
        """See :meth:`Session.command`."""
        self._session.command(command_name, source=source, message_id=message_id)

    def error(self, error: BaseException | str, *, context: str = "") -> None:
        """See :meth:`Session.error`."""
        self._session.error(error, context=context)

    def tool_call(
        self, tool_name: str, *, message_id: str = "", category: str | None = None
    ) -> ToolMeasure:
        """See :meth:`Session.tool_call`."""
        return self._session.tool_call(tool_name, message_id=message_id, category=category)

    def generation(
        self,
        *,
        message_id: str = "",
        model_id: str | None = None,
        provider_id: str | None = None,
        agent: str | None = None,
    ) -> GenerationMeasure:
        """See :meth:`Session.generation`."""
        return self._session.generation(
            message_id=message_id, model_id=model_id, provider_id=provider_id, agent=agent
        )

    def bridge_call(self, method: str) -> BridgeMeasure:
        """See :meth:`Session.bridge_call`."""
        return self._session.bridge_call(method)

    def to_env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """See :meth:`Session.to_env`."""
        return self._session.to_env(base)

    def send(self, event: Event) -> None:
        """Hand over an event, holding up the thread until there is room for it.

        An exception while it waits, ``KeyboardInterrupt`` say, takes the event back, unless
        it is in already. After the end of the session the event is counted as ``closed``.
        """
        if isinstance(self._session, DistantSession):
            self._session.send_blocking(event)

    def flush(self, timeout: float = 2.0) -> Flushed:
        """Hold up the thread until all that was tracked before is delivered or dropped.

        Args:
            timeout: seconds to wait at most; ``math.inf`` waits as long as it takes.

        Returns:
            How it ended, which is false in a condition when the time ran out before.
        """
        if isinstance(self._session, DistantSession):
            return self._session.flush_blocking(timeout)
        return Flushed(complete=True)

    def statistics(self) -> Statistics:
        """See :meth:`Session.statistics`."""
        return self._session.statistics()


@contextmanager
def entered_from_afar(
    session: Session, loop: BlockInThread[_Value] | None = None
) -> Generator[ThreadSession]:
    """Make *session*, which lives in *loop*, the current one of a plain block.

    One that does nothing lives nowhere.
    """
    if loop is None or not isinstance(session, LiveSession):
        with entered(session):
            yield ThreadSession(session)
        return
    distant = DistantSession(session, loop)
    with entered(distant), named_in_logs(session.id):
        yield ThreadSession(distant)
