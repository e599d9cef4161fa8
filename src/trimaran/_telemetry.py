"""A telemetry: from the decision to the last event, under one supervisor.

In: an app's name, an account, settings. Out: sessions.
Does not know: stages, batches, HTTP.

The stages live in one supervisor task that holds a shielded cancel scope. They outlive
a body that is cancelled, and end, whatever they are doing, at the scope's deadline,
which is set when the body is left.

All tasks of ours are protected from Ctrl-C: it goes to the host's code, as it would
without us, and reaches us as the exception that the block is left with.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from random import Random

import trio

from trimaran._account import Account, AccountProvider, CredentialsError
from trimaran._current import current
from trimaran._decision import Decision, Tier, opted_out, resolve
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import Endpoint, TokenKeeper, is_usable_token
from trimaran._pipeline.encoder import jsonable
from trimaran._pipeline.mailbox import MemoryBudget
from trimaran._pipeline.redact import mask_text
from trimaran._pipeline.wire import Context
from trimaran._session import SILENT, LiveSession, Session, SessionContext
from trimaran._settings import Settings
from trimaran._transport import Transport

__all__ = ["Telemetry", "open_telemetry", "run_telemetry"]


def random_id() -> str:
    """32 hexadecimal digits from the operating system: unique for all practical purposes."""
    return os.urandom(16).hex()


class Telemetry:
    """What :func:`open_telemetry` gives: the decision, and sessions."""

    def __init__(self, decision: Decision, harbour: _Harbour | None) -> None:
        self._decision = decision
        self._harbour = harbour

    def __repr__(self) -> str:
        return f"<Telemetry: {self._decision.tier}, {self._decision.reason}>"

    @property
    def decision(self) -> Decision:
        """Which tier was chosen, why, and by which switch."""
        return self._decision

    def session(
        self,
        *,
        project_id: str = "",
        agent: str = "",
        model_id: str = "",
        provider_id: str = "",
        session_id: str | None = None,
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
            session_id: a new one, if None.
            announce: False makes neither ``session_start`` nor ``session_end``; for the
                replay of a recorded session, whose own are among its events. What a
                ``session_end`` tracked there leaves unset is filled in as ever.
        """
        if self._harbour is None:
            return _entered(SILENT)
        return self._harbour.session(
            SessionContext(
                session_id=self._harbour.new_id() if session_id is None else _text(session_id),
                project_id=_text(project_id),
                agent=_text(agent),
                model_id=_text(model_id),
                provider_id=_text(provider_id),
            ),
            announce=announce,
        )


class _Harbour:
    """The running half of a telemetry: what its sessions share, and their supervisor."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        settings: Settings,
        diagnostics: Diagnostics,
        version: str,
        user_email: str,
        home: str | None,
        wall_clock: Callable[[], float],
        random: Random,
        new_id: Callable[[], str],
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._diagnostics = diagnostics
        self._version = version
        self._user_email = user_email
        self._home = home
        self._wall_clock = wall_clock
        self._random = random
        self.new_id = new_id
        self._budget = MemoryBudget(settings.memory_bytes)
        # A dict for its order, which a run with the same seeds repeats; so elsewhere.
        self._open: dict[LiveSession, None] = {}
        self._scope = trio.CancelScope(shield=True)
        self._stages: trio.Nursery | None = None
        self._closing = trio.Event()
        self.is_ready = trio.Event()
        """The supervisor runs, and sessions can be opened."""

    @asynccontextmanager
    async def session(self, context: SessionContext, *, announce: bool) -> AsyncIterator[Session]:
        """A session whose stages run under the supervisor. Neither end is a checkpoint."""
        session = LiveSession(
            context,
            wire_context=Context(
                session_id=context.session_id,
                cli_version=self._version,
                user_email=self._user_email,
                project_id=mask_text(context.project_id, self._home),
            ),
            endpoint=self._endpoint,
            settings=self._settings,
            budget=self._budget,
            diagnostics=self._diagnostics,
            home=self._home,
            random=self._random,
            wall_clock=self._wall_clock,
            key_prefix=self.new_id(),
            announce=announce,
        )
        if self._stages is None or self._closing.is_set():
            session.abandon()
        else:
            self._open[session] = None
            self._stages.start_soon(session.run, name=f"trimaran session {session.id}")
        try:
            with _named_in_logs(session.id):
                async with _entered(session):
                    yield session
        finally:
            session.close()
            self._open.pop(session, None)

    @trio.lowlevel.enable_ki_protection
    async def supervise(self) -> None:
        """Run the stages of all sessions until :meth:`close`, and then to the deadline."""
        with self._scope:
            async with trio.open_nursery() as self._stages:
                self.is_ready.set()
                await self._closing.wait()
        await self._endpoint.aclose()

    def close(self) -> None:
        """End all sessions; what is pending has ``drain_timeout`` seconds from now."""
        self._scope.deadline = trio.current_time() + self._settings.drain_timeout
        self._closing.set()
        for session in list(self._open):
            session.close()


@asynccontextmanager
async def _entered(session: Session) -> AsyncIterator[Session]:
    """Make *session* the current one of the block. Neither end is a checkpoint."""
    entered = current.set(session)
    try:
        yield session
    finally:
        # Left in another context than it was entered in, there is nothing to undo here.
        with suppress(ValueError):
            current.reset(entered)


@contextmanager
def _named_in_logs(session_id: str) -> Iterator[None]:
    """Let structlog's ``merge_contextvars`` add the session's id to the block's records."""
    from structlog.contextvars import (  # noqa: PLC0415 - tens of milliseconds
        bind_contextvars,
        reset_contextvars,
    )

    bound = bind_contextvars(session_id=session_id)
    try:
        yield
    finally:
        with suppress(ValueError):
            reset_contextvars(**bound)


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
    wall_clock: Callable[[], float] = time.time,
    random: Random | None = None,
    new_id: Callable[[], str] = random_id,
) -> AsyncIterator[Telemetry]:
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
        transport: makes the requests; HTTP, if None. One that is given is not closed.
        wall_clock: seconds since the epoch, for stamps. Durations and deadlines go by
            trio's clock.
        random: where the jitter of retries comes from.
        new_id: gives a unique text for each session and pipeline.

    Raises:
        ValueError: *app* is no name. Nothing else: what is wrong with an account or a
            URL disables telemetry, with the reason in its decision and one warning.
    """
    if not isinstance(app, str) or not any(letter.isalnum() for letter in app):  # pyright: ignore[reportUnnecessaryIsInstance]
        message = f"open_telemetry({app!r}): the app's name must be text with a letter in it"
        raise ValueError(message)
    settings = Settings() if settings is None else settings
    environ = os.environ if environ is None else environ
    diagnostics = Diagnostics(trio.lowlevel.current_clock().current_time)

    found, token = None, None
    if account is not None and opted_out(app, environ, enabled=settings.enabled) is None:
        found, token = await _look_up(account, settings.account_timeout)
    decision = resolve(app, found, environ, enabled=settings.enabled)
    if not decision.enabled:
        if decision.is_fault:
            diagnostics.warn("telemetry disabled", reason=decision.reason)
        yield Telemetry(decision, None)
        return

    # Here rather than in the first session: it takes tens of milliseconds. Not in a
    # thread: a clock that jumps ahead while nothing runs does not wait for threads.
    import structlog.contextvars  # noqa: F401, PLC0415

    tokens = None
    user_email = ""
    if decision.tier is Tier.AUTHENTICATED:
        assert account is not None
        assert token is not None
        assert isinstance(found, Account)
        user_email = _text(found.email)
        tokens = TokenKeeper(
            account,
            token,
            now=trio.lowlevel.current_clock().current_time,
            timeout=settings.request_timeout,
            interval=settings.unauthorized_interval,
            diagnostics=diagnostics,
        )
    harbour = _Harbour(
        endpoint=Endpoint(
            decision,
            transport=transport,
            tokens=tokens,
            app=app,
            environ=environ,
            settings=settings,
            diagnostics=diagnostics,
        ),
        settings=settings,
        diagnostics=diagnostics,
        version=_text(version),
        user_email=user_email,
        home=environ.get("HOME") or environ.get("USERPROFILE"),
        wall_clock=wall_clock,
        random=Random() if random is None else random,  # noqa: S311 - jitter is no secret
        new_id=new_id,
    )
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            # Not nursery.start(): cancelled in the middle, it would wait for a supervisor
            # that no cancellation reaches.
            nursery.start_soon(harbour.supervise)
            try:
                await harbour.is_ready.wait()
                yield Telemetry(decision, harbour)
            except BaseException as error:  # noqa: BLE001 - raised again below, as it is
                failure = error
            harbour.close()
    except BaseException as ended:  # noqa: BLE001 - raised again, or outranked by the block's own
        own = _other_than_cancelled(ended)
        if isinstance(own, KeyboardInterrupt) or (
            own is not None and (failure is None or isinstance(failure, trio.Cancelled))
        ):
            # A Ctrl-C while it drained, or a bug that strict settings let out. The block's
            # Cancelled, if there is one, came from the nursery that it broke.
            raise own from None
        if failure is None:
            raise
    if failure is not None:
        raise failure


def _other_than_cancelled(error: BaseException) -> BaseException | None:
    """What is in *error* beside cancellations; one exception stands alone.

    The nursery is a detail of ours: a Ctrl-C is to come out as ``KeyboardInterrupt``.
    """
    if isinstance(error, BaseExceptionGroup):
        error_without = error.split(trio.Cancelled)[1]
        while isinstance(error_without, BaseExceptionGroup) and len(error_without.exceptions) == 1:
            error_without = error_without.exceptions[0]
        return error_without
    return None if isinstance(error, trio.Cancelled) else error


async def _look_up(
    provider: AccountProvider, timeout: float
) -> tuple[Account | Exception | None, str | None]:
    """The account and its token; an error in place of an account that cannot be had."""
    with trio.move_on_after(timeout):
        try:
            found = await provider.account()
            if found is None:
                return None, None
            token = await provider.token(refresh=False)
        except Exception as error:  # noqa: BLE001 - a provider is the host's own code
            return error, None
        if token is None:
            return None, None
        if not is_usable_token(token):
            return CredentialsError("its token cannot stand in a header"), None
        return found, token
    return CredentialsError(f"it took more than {timeout:g} s"), None


async def run_telemetry(
    app: str,
    *,
    version: str = "",
    account: AccountProvider | None = None,
    settings: Settings | None = None,
    environ: Mapping[str, str] | None = None,
    transport: Transport | None = None,
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
    ) as telemetry:
        task_status.started(telemetry)
        await trio.sleep_forever()


def _text(value: object) -> str:
    """A word of the host's context as text, whatever it gave."""
    plain = jsonable(value)
    return plain if isinstance(plain, str) else "" if plain is None else str(plain)
