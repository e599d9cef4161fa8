"""Telemetry for hosts that are not trio: it runs in a thread, and is used with plain calls.

In: what :func:`~trimaran.open_telemetry` takes. Out: sessions for plain code, for asyncio,
for any thread.
Does not know: how a thread is kept in check, what a session does.

A session is the same as any other, and lives in the thread. What is tracked goes there by
the way that every session has for other threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TypeVar

import trio

from trimaran._account import AccountProvider
from trimaran._current import entered
from trimaran._decision import Decision, Tier, opted_out, resolve
from trimaran._diagnostics import Diagnostics
from trimaran._events import CommandSource, Event
from trimaran._hooks import Hooks, OnDrop, OnProblem
from trimaran._pipeline.ledger import Statistics
from trimaran._recording import BridgeMeasure, GenerationMeasure, ToolMeasure
from trimaran._session import SILENT, Flushed, Session, SilentSession
from trimaran._settings import Settings
from trimaran._spool.keeper import RunBlocking
from trimaran._supervisor import named_in_logs
from trimaran._telemetry import Telemetry, is_name, open_telemetry, random_id
from trimaran._thread import BlockInThread, NoAnswer, NoThread
from trimaran._transport import Transport

__all__ = ["ThreadSession", "ThreadTelemetry", "open_in_thread"]

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")

LEAVING_GRACE = 0.2
"""Seconds beside those for draining in which the thread may end: twice what closing the
connections takes at most, and then the spool."""

ENTERING_PATIENCE = 2.0
"""Seconds that entering a session waits for the thread, which answers within one thousandth
unless code of the host's own holds it up."""

ANSWER_GRACE = 0.1
"""Seconds beside its own timeout in which a flush may answer, and leaving a session."""


class DistantSession(Session):
    """A session whose trio loop is in another thread; for any code but that loop's.

    Awaited from asyncio, or from another trio run.

    Args:
        session: in the loop.
        loop: where it lives.
    """

    def __init__(self, session: Session, loop: BlockInThread[_Value]) -> None:
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
            await _awaited(self._loop.submit(partial(self._session.send, event)))
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
            self._loop.wait(self._loop.submit(partial(self._session.send, event)))
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
            complete=after.pending == after.spooled + after.handed_over,
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

    def __init__(self, session: DistantSession | SilentSession) -> None:
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


class ThreadTelemetry:
    """What :func:`open_in_thread` gives: the decision, and sessions."""

    def __init__(self, telemetry: Telemetry, loop: BlockInThread[Telemetry] | None) -> None:
        self._telemetry = telemetry
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._telemetry)

    @property
    def decision(self) -> Decision:
        """Which tier was chosen, why, and by which switch."""
        return self._telemetry.decision

    def leftovers(self) -> Statistics:
        """See :meth:`Telemetry.leftovers`."""
        return self._telemetry.leftovers()

    @contextmanager
    def session(
        self,
        *,
        project_id: str = "",
        agent: str = "",
        model_id: str = "",
        provider_id: str = "",
        session_id: str | None = None,
        parent_session_id: str | None = None,
        announce: bool = True,
    ) -> Generator[ThreadSession]:
        """Open a session: ``with telemetry.session(...) as session``.

        The arguments are those of :meth:`Telemetry.session`, and so is what it does.
        Inside, :func:`current_session` gives it too, also in asyncio tasks started there,
        and in threads that run in a copy of the context, as ``asyncio.to_thread`` does.

        Once the telemetry has ended, the session does nothing.
        """
        if self._loop is None:
            with entered(SILENT):
                yield ThreadSession(SILENT)
            return
        opened = partial(
            self._telemetry.session,
            project_id=project_id,
            agent=agent,
            model_id=model_id,
            provider_id=provider_id,
            session_id=session_id,
            parent_session_id=parent_session_id,
            announce=announce,
        )
        with self._loop.held(opened, entering=ENTERING_PATIENCE, leaving=ANSWER_GRACE) as live:
            if live is None:
                with entered(SILENT):
                    yield ThreadSession(SILENT)
                return
            session = DistantSession(live, self._loop)
            with entered(session), named_in_logs(live.id):
                yield ThreadSession(session)

    def close(self) -> None:
        """End all sessions, and drain: what leaving the block does, which then finds it done.

        Waits for ``drain_timeout`` seconds at most. From asyncio, before the block is left:
        ``await asyncio.to_thread(telemetry.close)``.
        """
        if self._loop is not None:
            self._loop.close()


@contextmanager
def open_in_thread(
    app: str,
    *,
    version: str = "",
    account: AccountProvider | None = None,
    settings: Settings | None = None,
    environ: Mapping[str, str] | None = None,
    transport: Transport | None = None,
    consent: Callable[[], bool] | None = None,
    on_drop: OnDrop | None = None,
    on_problem: OnProblem | None = None,
    wall_clock: Callable[[], float] = time.time,
    random: Random | None = None,
    new_id: Callable[[], str] = random_id,
    run_blocking: RunBlocking | None = None,
) -> Generator[ThreadTelemetry]:
    """Run telemetry in a thread around a plain block, for programs that are not trio.

    As :func:`open_telemetry`, whose arguments it takes, in all that is promised there. The
    account's methods, the transport and *run_blocking* are awaited by trio, and those and
    the hooks run in the thread.

    Entering waits until the decision is made. Leaving, in whichever way, waits until what
    is pending is delivered, for ``settings.drain_timeout`` seconds at most; a Ctrl-C
    meanwhile comes out after that. A block that is never left is left when the interpreter
    exits. A forked child has no part in it: leaving the block there does nothing, and what it
    tracks is counted there as ``closed``.

    Disabled telemetry starts no thread. Only an account has to be asked in one, which ends
    at once if nothing is to be sent.

    Raises:
        ValueError: *app* is no name.
    """
    if not is_name(app):
        raise ValueError(
            f"open_in_thread({app!r}): the app's name must be text with a letter in it"
        )
    settings = Settings() if settings is None else settings
    found = os.environ if environ is None else environ
    diagnostics = Diagnostics(time.monotonic, Hooks(on_drop, on_problem))
    if account is None or opted_out(app, found, enabled=settings.enabled) is not None:
        decision = resolve(app, None, found, enabled=settings.enabled)
        if not decision.enabled:
            if decision.is_fault:
                diagnostics.warn("telemetry disabled", reason=decision.reason)
            yield ThreadTelemetry(Telemetry(decision, None), None)
            return
    loop = BlockInThread(
        partial(
            open_telemetry,
            app,
            version=version,
            account=account,
            settings=settings,
            environ=environ,
            transport=transport,
            consent=consent,
            on_drop=on_drop,
            on_problem=on_problem,
            wall_clock=wall_clock,
            random=random,
            new_id=new_id,
            run_blocking=run_blocking,
        ),
        name=f"trimaran {app}",
        patience=settings.drain_timeout + LEAVING_GRACE,
    )
    try:
        telemetry = loop.open()
    except NoThread as error:
        decision = Decision(
            tier=Tier.DISABLED, reason=f"no thread: {error}", source="thread", is_fault=True
        )
        diagnostics.warn("telemetry disabled", reason=decision.reason)
        yield ThreadTelemetry(Telemetry(decision, None), None)
        return
    if not telemetry.decision.enabled:
        loop.close()
        yield ThreadTelemetry(telemetry, None)
        return
    with _left_in_time(loop, diagnostics, strict=settings.strict):
        yield ThreadTelemetry(telemetry, loop)


@contextmanager
def _left_in_time(
    loop: BlockInThread[_Value], diagnostics: Diagnostics, *, strict: bool
) -> Generator[None]:
    """Leave the loop's block when this one is left, and say how that went."""
    try:
        yield
    finally:
        loop.close()
        if not loop.has_ended:
            # Without the hooks: what does not end may be one of them.
            Diagnostics(time.monotonic).warn("telemetry thread did not end")
        elif loop.failure is not None and not strict:
            diagnostics.warn("telemetry failed", error=type(loop.failure).__name__)
    if loop.failure is not None and strict:
        raise loop.failure
