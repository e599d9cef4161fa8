"""Telemetry for hosts that are not trio: it runs in a thread, and is used with plain calls.

In: what :func:`~trimaran.open_telemetry` takes, or :func:`~trimaran.attach`. Out: sessions
for plain code, for asyncio, for any thread.
Does not know: how a thread is kept in check, what a session does.

A session is the same as any other, and lives in the thread. What is tracked goes there by
the way that every session has for other threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TypeVar

from trimaran._account import AccountProvider
from trimaran._attached import attach, silent_for
from trimaran._decision import Decision, Tier, opted_out, resolve
from trimaran._destination import Destination, distinct
from trimaran._diagnostics import Diagnostics
from trimaran._environment import parent_in
from trimaran._hooks import Hooks, OnDrop, OnProblem
from trimaran._pipeline.ledger import Statistics
from trimaran._session import OPTED_OUT, SILENT
from trimaran._settings import Settings
from trimaran._spool.disk import RunBlocking
from trimaran._telemetry import Telemetry, is_name, is_silent, open_telemetry, random_id
from trimaran._thread import BlockInThread, NoThread
from trimaran._thread_session import ANSWER_GRACE, ThreadSession, entered_from_afar
from trimaran._transport import Transport

__all__ = ["ThreadTelemetry", "attach_in_thread", "open_in_thread"]

_Value = TypeVar("_Value")

LEAVING_GRACE = 0.2
"""Seconds beside those for draining in which the thread may end: twice what closing the
connections takes at most, and then the spool."""

ENTERING_PATIENCE = 2.0
"""Seconds that entering a session waits for the thread, which answers within one thousandth
unless code of the host's own holds it up."""


class ThreadTelemetry:
    """What :func:`open_in_thread` gives: the decision, and sessions."""

    def __init__(self, telemetry: Telemetry, loop: BlockInThread[Telemetry] | None) -> None:
        self._telemetry = telemetry
        self._loop = loop
        self._diagnostics = Diagnostics(time.monotonic)

    def __repr__(self) -> str:
        return repr(self._telemetry)

    @property
    def decision(self) -> Decision:
        """See :attr:`Telemetry.decision`."""
        return self._telemetry.decision

    @property
    def destinations(self) -> tuple[str, ...]:
        """See :attr:`Telemetry.destinations`."""
        return self._telemetry.destinations

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
        traceparent: str | None = None,
        announce: bool = True,
    ) -> Generator[ThreadSession]:
        """Open a session: ``with telemetry.session(...) as session``.

        The arguments are those of :meth:`Telemetry.session`, and so is what it does.
        Inside, :func:`current_session` gives it too, also in asyncio tasks started there,
        and in threads that run in a copy of the context, as ``asyncio.to_thread`` does.

        Once the telemetry has ended, the session does nothing; nor where the telemetry's
        thread is held up for seconds, by a hook of the host's say, which is logged.
        """
        if self._loop is None:
            with entered_from_afar(OPTED_OUT if self.decision.is_opt_out else SILENT) as session:
                yield session
            return
        opened = partial(
            self._telemetry.session,
            project_id=project_id,
            agent=agent,
            model_id=model_id,
            provider_id=provider_id,
            session_id=session_id,
            parent_session_id=parent_session_id,
            traceparent=traceparent,
            announce=announce,
        )
        with self._loop.held(opened, entering=ENTERING_PATIENCE, leaving=ANSWER_GRACE) as live:
            if live is None and not (self._loop.has_ended or self._loop.is_own_thread):
                self._diagnostics.warn("telemetry session not opened")
            with entered_from_afar(SILENT if live is None else live, self._loop) as session:
                yield session

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
    destinations: Iterable[Destination] = (),
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
        ValueError: *app* is no name, or two of *destinations* have the same one.
    """
    if not is_name(app):
        raise ValueError(
            f"open_in_thread({app!r}): the app's name must be text with a letter in it"
        )
    given = distinct(destinations)
    settings = Settings() if settings is None else settings
    found = os.environ if environ is None else environ
    diagnostics = Diagnostics(time.monotonic, Hooks(on_drop, on_problem))
    if account is None or opted_out(app, found, enabled=settings.enabled) is not None:
        decision = resolve(app, None, found, enabled=settings.enabled)
        if is_silent(decision, given):
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
            destinations=given,
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
    if not telemetry.destinations:
        loop.close()
        yield ThreadTelemetry(telemetry, None)
        return
    with _left_in_time(loop, diagnostics, strict=settings.strict):
        yield ThreadTelemetry(telemetry, loop)


@contextmanager
def attach_in_thread(
    *,
    environ: Mapping[str, str] | None = None,
    account: AccountProvider | None = None,
    settings: Settings | None = None,
    transport: Transport | None = None,
    consent: Callable[[], bool] | None = None,
    on_drop: OnDrop | None = None,
    on_problem: OnProblem | None = None,
    wall_clock: Callable[[], float] = time.time,
    random: Random | None = None,
    new_id: Callable[[], str] = random_id,
) -> Generator[ThreadSession]:
    """Take part in the parent's session around a plain block, for programs that are not trio.

    As :func:`attach`, whose arguments it takes, in a thread as :func:`open_in_thread`. Leaving
    the block is what hands everything over: children of ``multiprocessing`` end without more.

    Without a parent in *environ*, or with telemetry switched off, no thread is started.
    """
    settings = Settings() if settings is None else settings
    found = os.environ if environ is None else environ
    silent = silent_for(parent_in(found), found, settings)
    if silent is not None:
        with entered_from_afar(silent) as session:
            yield session
        return
    diagnostics = Diagnostics(time.monotonic, Hooks(on_drop, on_problem))
    loop = BlockInThread(
        partial(
            attach,
            environ=environ,
            account=account,
            settings=settings,
            transport=transport,
            consent=consent,
            on_drop=on_drop,
            on_problem=on_problem,
            wall_clock=wall_clock,
            random=random,
            new_id=new_id,
        ),
        name="trimaran attached",
        patience=settings.drain_timeout + LEAVING_GRACE,
    )
    try:
        attached = loop.open()
    except NoThread as error:
        diagnostics.warn("telemetry disabled", reason=f"no thread: {error}")
        with entered_from_afar(SILENT) as session:
            yield session
        return
    with (
        _left_in_time(loop, diagnostics, strict=settings.strict),
        entered_from_afar(attached, loop) as session,
    ):
        yield session


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
