"""A process that takes part in another one's session: from its environment to its last event.

In: what the environment says of a parent. Out: a session, with the parent's id.
Does not know: stages, batches, how a parent is reached.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random

import trio
from msgspec.structs import replace

from trimaran._account import Account, AccountProvider
from trimaran._assembly import assemble_in_session, look_up
from trimaran._current import entered
from trimaran._decision import opted_out, resolve, switch_name
from trimaran._diagnostics import Diagnostics
from trimaran._environment import Parent, parent_in
from trimaran._hooks import Hooks, OnDrop, OnProblem
from trimaran._lifetime import running
from trimaran._routes import Host
from trimaran._session import OPTED_OUT, SILENT, Session, SilentSession
from trimaran._settings import Settings
from trimaran._shared import SessionContext
from trimaran._supervisor import Supervisor
from trimaran._telemetry import random_id
from trimaran._transport import Transport

__all__ = ["attach", "silent_for"]


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def attach(
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
) -> AsyncGenerator[Session]:
    """Take part in the session of the process that started this one.

    That process gave this one the environment of :meth:`Session.to_env`. The session here has
    the same id and the same calls, and a ledger of its own, in which ``delivered`` says that
    the parent has it: from there on, it is in the parent's. It makes neither ``session_start``
    nor ``session_end``, which are the parent's.

    Leaving the block, in whichever way, hands over what is pending within
    ``settings.drain_timeout`` seconds and drops the rest as ``drain_timeout``. An exception of
    the block comes out as it is. Cancelled, what was tracked before is still handed over.

    - When the parent's session ends, it takes what was tracked before, and what a block comes to
      that is under way, within its own time to drain; what comes later is dropped here as
      ``closed``.
    - When the parent dies, what it did not take goes to the endpoint directly, if the parent
      was anonymous, or *account* says who is logged in; else it is dropped as
      ``unauthorized``. So it is where the parent's host brought a *transport* or a *consent*
      of its own, and none is given here. What the parent was taking at that moment may arrive
      twice.
    - When consent is withdrawn in the parent, the parent takes nothing, and what is dropped here
      for that, as ``consent_withdrawn``, goes no other way.
    - Without a parent in the environment, or with telemetry switched off there or by a switch
      of this process's own, the session does nothing, no task is started and nothing opened.

    Args:
        environ: where the parent and the switches are looked up; ``os.environ``, if None.
        account: who is logged in; asked for at the start, used when the parent has died.
        settings: the limits, of this process; ``spool`` and ``relay`` are the parent's affair.
        transport: makes the requests when the parent has died; HTTP, if None.
        consent: the host's own switch, asked before every batch.
        on_drop: told of events that were given up here.
        on_problem: told of what is logged as a warning here.
        wall_clock: seconds since the epoch, for stamps.
        random: where the jitter of retries comes from.
        new_id: gives a text that is unique over all processes.
    """
    environ = os.environ if environ is None else environ
    settings = Settings() if settings is None else settings
    parent = parent_in(environ)
    silent = silent_for(parent, environ, settings)
    if silent is not None:
        with entered(silent):
            yield silent
        return
    assert parent is not None
    now = trio.lowlevel.current_clock().current_time
    hooks = Hooks(on_drop, on_problem)
    host = Host(
        app=parent.app,
        version=parent.version,
        provider=account,
        settings=replace(settings, spool=False, relay=False),
        environ=environ,
        transport=transport,
        destinations=(),
        consent=consent,
        hooks=hooks,
        diagnostics=Diagnostics(now, hooks),
        now=now,
        wall_clock=wall_clock,
        random=Random() if random is None else random,  # noqa: S311 - jitter is no secret
        new_id=new_id,
        run_blocking=None,
    )
    found, token = None, None
    if account is not None:
        found, token = await look_up(account, settings.account_timeout)
    # By the parent's decision, not by what this environment says: a session whose events go to
    # an account does not become anonymous in one of its processes.
    anonymous = {} if parent.url is None else {switch_name(parent.app, "URL"): parent.url}
    decision = resolve(parent.app, found, anonymous)
    shared, way_out = assemble_in_session(
        parent, decision, found if isinstance(found, Account) else None, token, host
    )
    await way_out.arrive(settings.account_timeout)
    context = SessionContext(
        session_id=parent.session_id,
        project_id=parent.project_id,
        agent=parent.agent,
        model_id=parent.model_id,
        provider_id=parent.provider_id,
        parent_session_id=parent.parent_session_id,
        traceparent=parent.traceparent,
        span_id=parent.span_id,
    )
    supervisor = Supervisor(shared)
    async with running(supervisor), supervisor.session(context, announce=False) as session:
        way_out.answer_last_call(session.say_all)
        yield session


def silent_for(
    parent: Parent | None, environ: Mapping[str, str], settings: Settings
) -> SilentSession | None:
    """What is attached to where there is nothing to take part in; None where there is."""
    if parent is None:
        return SILENT
    is_off = opted_out(parent.app, environ, enabled=settings.enabled) is not None
    return OPTED_OUT if is_off or not parent.is_on else None
