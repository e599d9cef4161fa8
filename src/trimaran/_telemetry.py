"""A telemetry: from the decision to the last event.

In: an app's name, an account, settings. Out: sessions.
Does not know: stages, batches, HTTP, how it is kept running.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import trio
from msgspec.structs import replace

from trimaran._account import Account, AccountProvider
from trimaran._assembly import assemble, look_up, text_of, traceparent_of
from trimaran._current import entered
from trimaran._decision import Decision, opted_out, resolve
from trimaran._destination import ENDPOINT, Destination, distinct
from trimaran._diagnostics import Diagnostics
from trimaran._hooks import Hooks, OnDrop, OnProblem
from trimaran._lifetime import running
from trimaran._pipeline.ledger import Statistics
from trimaran._pipeline.wire import session_id_of
from trimaran._routes import Host
from trimaran._session import OPTED_OUT, SILENT, Session
from trimaran._settings import Settings
from trimaran._shared import SessionContext
from trimaran._spool.disk import RunBlocking
from trimaran._supervisor import Supervisor
from trimaran._transport import Transport

__all__ = ["Telemetry", "is_name", "is_silent", "open_telemetry", "run_telemetry"]


def random_id() -> str:
    """32 hexadecimal digits from the operating system: unique for all practical purposes."""
    return os.urandom(16).hex()


class Telemetry:
    """What :func:`open_telemetry` gives: the decision, and sessions."""

    def __init__(self, decision: Decision, supervisor: Supervisor | None) -> None:
        self._decision = decision
        self._supervisor = supervisor

    def __repr__(self) -> str:
        given = [name for name in self.destinations if name != ENDPOINT]
        beside = f"; to {', '.join(given)}" if given else ""
        return f"<Telemetry: {self._decision.tier}, {self._decision.reason}{beside}>"

    def leftovers(self) -> Statistics:
        """What became of the events that earlier processes left in the spool.

        ``tracked`` counts those that this process took over; what it does not get rid of
        is left once more. Where destinations are given, what was left for each is told by
        its name, as in :meth:`Session.statistics`.
        """
        if self._supervisor is None:
            return Statistics()
        by_name = {name: books.statistics() for name, books in self._supervisor.leftovers.items()}
        first = by_name[self.destinations[0]]
        if not self._supervisor.shared.names_destinations:
            return first
        return replace(first, destinations=by_name)

    @property
    def decision(self) -> Decision:
        """Which tier was chosen for the endpoint, why, and by which switch.

        Disabled without an opt-out, events go to the destinations that were given, if any.
        """
        return self._decision

    @property
    def destinations(self) -> tuple[str, ...]:
        """The names of where events go: ``"endpoint"``, if that is decided on, and those that
        were given. Empty where nothing is recorded.
        """
        if self._supervisor is None:
            return ()
        return tuple(route.name for route in self._supervisor.shared.routes)

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
    ) -> AbstractAsyncContextManager[Session]:
        """Open a session: ``async with telemetry.session(...) as session``.

        It tracks ``session_start`` when it is entered and ``session_end`` when it is
        left. Neither waits: what is pending then is delivered in the background while
        the telemetry is open. Left by an exception or by cancellation, it ends the same
        way, and the exception goes on as it is.

        Args:
            project_id: what the session works on.
            agent: who works, ``"build"`` say.
            model_id: the model of its generations, where they name no other.
            provider_id: who runs that model.
            session_id: any text of up to 256 characters without control characters; another
                text is changed to such a one, the same each time, which is warned about. A
                new one, if None or "".
            parent_session_id: the session that this one works for, if it is that of a
                sub-agent. Any text of up to 256 characters; a longer one is not sent, and
                warned about. It goes out in a header, for the receiver to show the tree.
            traceparent: what the session stands below in a trace of somebody else's, as W3C
                Trace Context writes it; the trace goes on in this session, for destinations
                that want spans, and in its child processes. ``TRACEPARENT`` in the
                environment, if None. One that is none is warned about, and left out.
            announce: False makes neither ``session_start`` nor ``session_end``; for the
                replay of a recorded session, whose own are among its events. What a
                ``session_end`` tracked there leaves unset is filled in as ever.
        """
        if self._supervisor is None:
            return _silent(OPTED_OUT if self._decision.is_opt_out else SILENT)
        shared = self._supervisor.shared
        named = text_of(session_id) or text_of(shared.new_id())
        usable = session_id_of(named)
        if usable != named:
            shared.diagnostics.warn("telemetry session id changed", session_id=usable)
        return self._supervisor.session(
            SessionContext(
                session_id=usable,
                parent_session_id=text_of(parent_session_id),
                project_id=text_of(project_id),
                agent=text_of(agent),
                model_id=text_of(model_id),
                provider_id=text_of(provider_id),
                traceparent=traceparent_of(traceparent, shared.diagnostics) or shared.traceparent,
            ),
            announce=announce,
        )


@asynccontextmanager
async def _silent(session: Session) -> AsyncGenerator[Session]:
    """A session that does nothing, as the current one. Neither end is a checkpoint."""
    with entered(session):
        yield session


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_telemetry(
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
) -> AsyncGenerator[Telemetry]:
    """Decide whether telemetry is on, and run it around a block.

    Leaving the block, in whichever way, ends all sessions, delivers what is pending
    within ``settings.drain_timeout`` seconds and drops the rest as ``drain_timeout``.
    An exception of the block comes out as it is, the same object. The block itself can
    be cancelled as ever; what was tracked before is still delivered.

    Disabled telemetry starts no task, opens and creates nothing, and imports no HTTP
    client; sessions do nothing then.

    Args:
        app: the host's name; its switches are named after it (``ALTIMATE_TELEMETRY_URL``).
        version: the host's version, sent as ``cli_version``.
        account: who is logged in; None sends anonymously, or not at all.
        settings: the limits; the defaults hold for an ordinary agent.
        environ: where the switches are looked up, now and before every request;
            ``os.environ``, if None.
        transport: makes the requests to the endpoint; HTTP, if None. One that is given is not
            closed.
        destinations: where all events go beside the endpoint, or without one. Opting out
            switches off all of them.
        consent: the host's own switch, asked before every request: False stops sending
            at once and drops what is kept as ``consent_withdrawn``.
        on_drop: told of events that were given up, after the fact and summed up.
        on_problem: told of what is logged as a warning. Whatever a hook raises is
            logged, and changes nothing.
        wall_clock: seconds since the epoch, for stamps. Durations and deadlines go by
            trio's clock.
        random: where the jitter of retries comes from.
        new_id: gives a unique text for each session and pipeline.
        run_blocking: runs the spool's work on the disk; in a thread, if None.

    Raises:
        ValueError: *app* is no name, or two of *destinations* have the same one. Nothing
            else: what is wrong with an account or a URL disables telemetry, or the endpoint
            where destinations are given, with the reason in its decision and one warning.
    """
    if not is_name(app):
        message = f"open_telemetry({app!r}): the app's name must be text with a letter in it"
        raise ValueError(message)
    given = distinct(destinations)
    settings = Settings() if settings is None else settings
    environ = os.environ if environ is None else environ
    now = trio.lowlevel.current_clock().current_time
    hooks = Hooks(on_drop, on_problem)
    diagnostics = Diagnostics(now, hooks)

    found, token = None, None
    if account is not None and opted_out(app, environ, enabled=settings.enabled) is None:
        found, token = await look_up(account, settings.account_timeout)
    decision = resolve(app, found, environ, enabled=settings.enabled)
    if decision.is_fault:
        voice = diagnostics.about(ENDPOINT) if given else diagnostics
        voice.warn("telemetry disabled", reason=decision.reason)
    if is_silent(decision, given):
        yield Telemetry(decision, None)
        return

    # Here rather than in the first session: it takes tens of milliseconds. Not in a
    # thread: a clock that jumps ahead while nothing runs does not wait for threads.
    import structlog.contextvars  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]

    supervisor = Supervisor(
        assemble(
            decision,
            found if isinstance(found, Account) else None,
            token,
            Host(
                app=app,
                version=version,
                provider=account,
                settings=settings,
                environ=environ,
                transport=transport,
                destinations=given,
                consent=consent,
                hooks=hooks,
                diagnostics=diagnostics,
                now=now,
                wall_clock=wall_clock,
                random=Random() if random is None else random,  # noqa: S311 - jitter is no secret
                new_id=new_id,
                run_blocking=run_blocking,
            ),
        )
    )
    async with running(supervisor):
        yield Telemetry(decision, supervisor)


def is_silent(decision: Decision, destinations: Sequence[Destination]) -> bool:
    """Whether nothing is sent to anybody."""
    return not decision.enabled and (decision.is_opt_out or not destinations)


def is_name(app: object) -> bool:
    """Whether *app* can name an app."""
    return isinstance(app, str) and any(letter.isalnum() for letter in app)


async def run_telemetry(
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
    task_status: trio.TaskStatus[Telemetry] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run telemetry as a task of a nursery that the host owns.

    ``telemetry = await nursery.start(trimaran.run_telemetry, "altimate")``. It runs until
    it is cancelled, and ends then as :func:`open_telemetry` does when its block is left.
    Arguments and errors are those of :func:`open_telemetry`.
    """
    async with open_telemetry(
        app,
        version=version,
        account=account,
        settings=settings,
        environ=environ,
        transport=transport,
        destinations=destinations,
        consent=consent,
        on_drop=on_drop,
        on_problem=on_problem,
        wall_clock=wall_clock,
        random=random,
        new_id=new_id,
        run_blocking=run_blocking,
    ) as telemetry:
        task_status.started(telemetry)
        await trio.sleep_forever()
