"""What the sessions of one telemetry share, made of what the host gave.

In: a decision, an account, a host's arguments. Out: one :class:`Shared`, in which nothing
is open yet.
Does not know: lifetimes, sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING

import msgspec
import trio

from trimaran._account import Account, AccountProvider, CredentialsError
from trimaran._decision import Decision, Tier
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import Endpoint, WayOut
from trimaran._endpoint.consent import Consent
from trimaran._endpoint.outages import Outages
from trimaran._endpoint.through_parent import ThroughParent
from trimaran._endpoint.token import TokenKeeper, is_usable_token
from trimaran._environment import Parent
from trimaran._hooks import Hooks
from trimaran._pipeline.encoder import jsonable
from trimaran._pipeline.mailbox import MemoryBudget
from trimaran._settings import Settings, Spool
from trimaran._shared import ENDPOINT, Route, Shared
from trimaran._spool.keeper import RunBlocking, SpoolKeeper, in_a_thread
from trimaran._spool.values import destination_of
from trimaran._trace import TRACEPARENT, usable_traceparent
from trimaran._transport import Transport, wants_spans

if TYPE_CHECKING:
    from trimaran._relay.way_out import RelayedWayOut

__all__ = ["Host", "assemble", "assemble_in_session", "look_up", "text_of", "traceparent_of"]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a host gave, with every default in its place."""

    app: str
    version: str
    provider: AccountProvider | None
    settings: Settings
    environ: Mapping[str, str]
    transport: Transport | None
    """Its own; None is HTTP."""
    consent: Callable[[], bool] | None
    hooks: Hooks
    diagnostics: Diagnostics
    now: Callable[[], float]
    """Trio's clock."""
    wall_clock: Callable[[], float]
    """Seconds since the epoch."""
    random: Random
    new_id: Callable[[], str]
    run_blocking: RunBlocking | None
    """Runs the spool's work on the disk; None is a thread."""


def assemble(decision: Decision, account: Account | None, token: str | None, host: Host) -> Shared:
    """What the sessions of an enabled telemetry share.

    Args:
        decision: where events go.
        account: who they are sent for; None sends anonymously.
        token: the account's token of the moment.
        host: the rest.
    """
    outages = Outages(host.diagnostics, host.now)
    user_email = "" if account is None else text_of(account.email)
    with_spans = wants_spans(host.transport)
    destination = destination_of(decision, user_email, with_spans=with_spans)
    tokens, consent = _token_keeper(token, host), _consent_to(decision, account, host)
    endpoint: WayOut = _endpoint(decision, tokens, consent, host, outages)
    ahead = beside = None
    if host.settings.relay is not False and host.transport is not None:
        # What the host's own transport does with a batch is not known here: it may keep it.
        host.diagnostics.warn(
            "telemetry relay not available", reason="the transport is the host's own"
        )
    elif host.settings.relay is not False:
        endpoint = relayed = _relayed(endpoint, destination, tokens, consent, host)
        ahead, beside = relayed.hand_over, relayed.run
    route = Route(
        name=ENDPOINT,
        endpoint=endpoint,
        outages=outages,
        diagnostics=host.diagnostics,
        budget=MemoryBudget(host.settings.memory_bytes),
        keeper=_spool_keeper(destination, host),
        wants_spans=with_spans,
        ahead=ahead,
        beside=beside,
    )
    return _shared(
        route,
        host,
        tier=decision.tier,
        user_email=user_email,
        traceparent=traceparent_of(host.environ.get(TRACEPARENT), host.diagnostics),
        parent=None,
    )


def assemble_in_session(
    parent: Parent, decision: Decision, account: Account | None, token: str | None, host: Host
) -> tuple[Shared, ThroughParent]:
    """What a process needs that takes part in another's session; and the way to that.

    Args:
        parent: whose session it is.
        decision: where events go once the parent is gone; disabled, they go nowhere then, nor
            where the parent has a transport of its host's own and this process has not.
        account: as in :func:`assemble`, and so for the next two.
        token: the account's token of the moment.
        host: the rest.
    """
    outages = Outages(host.diagnostics, host.now)
    is_direct = decision.enabled and not (parent.has_own_transport and host.transport is None)
    endpoint = ThroughParent(
        parent,
        direct=_endpoint(
            decision,
            _token_keeper(token, host),
            _consent_to(decision, account, host),
            host,
            outages,
        )
        if is_direct
        else None,
        takes_spans=wants_spans(host.transport),
        consent=_consent(None, None, host),
        diagnostics=host.diagnostics,
    )
    route = Route(
        name=ENDPOINT,
        endpoint=endpoint,
        outages=outages,
        diagnostics=host.diagnostics,
        budget=MemoryBudget(host.settings.memory_bytes),
        keeper=None,
        wants_spans=parent.wants_spans,
        ahead=None,
        beside=None,
    )
    user_email = "" if account is None else text_of(account.email)
    shared = _shared(
        route,
        host,
        tier=parent.tier,
        user_email=user_email,
        traceparent=parent.traceparent,
        parent=parent,
    )
    return shared, endpoint


def _endpoint(
    decision: Decision,
    tokens: TokenKeeper | None,
    consent: Consent,
    host: Host,
    outages: Outages,
) -> Endpoint:
    return Endpoint(
        decision,
        transport=host.transport,
        tokens=tokens,
        consent=consent,
        settings=host.settings,
        diagnostics=host.diagnostics,
        random=host.random,
        wall_clock=host.wall_clock,
        on_change=outages.change,
    )


def _relayed(
    endpoint: WayOut,
    destination: str,
    tokens: TokenKeeper | None,
    consent: Consent,
    host: Host,
) -> RelayedWayOut:
    """The way out through a relay. Starts none yet."""
    from trimaran._relay.way_out import relayed  # noqa: PLC0415 - sqlite3

    return relayed(
        endpoint,
        app=host.app,
        settings=host.settings,
        agent=host.new_id(),
        destination=destination,
        tokens=tokens,
        consent=consent,
        diagnostics=host.diagnostics,
    )


def _consent_to(decision: Decision, account: Account | None, host: Host) -> Consent:
    """What is asked before something is sent where *decision* says."""
    is_authenticated = decision.tier is Tier.AUTHENTICATED
    return _consent(host.provider if is_authenticated else None, account, host)


def _consent(provider: AccountProvider | None, account: Account | None, host: Host) -> Consent:
    return Consent(
        app=host.app,
        environ=host.environ,
        ask=host.consent,
        provider=provider,
        account=account,
        now=host.now,
        timeout=host.settings.account_timeout,
        diagnostics=host.diagnostics,
    )


def _shared(
    route: Route,
    host: Host,
    *,
    tier: Tier,
    user_email: str,
    traceparent: str,
    parent: Parent | None,
) -> Shared:
    return Shared(
        routes=(route,),
        settings=host.settings,
        budget=route.budget,
        diagnostics=host.diagnostics,
        hooks=host.hooks,
        app=text_of(host.app),
        tier=tier,
        environ=host.environ,
        has_own_transport=host.transport is not None,
        traceparent=traceparent,
        parent=parent,
        version=text_of(host.version),
        user_email=user_email,
        home=host.environ.get("HOME") or host.environ.get("USERPROFILE"),
        random=host.random,
        wall_clock=host.wall_clock,
        new_id=host.new_id,
    )


def _spool_keeper(destination: str, host: Host) -> SpoolKeeper | None:
    """None where nothing is to be written to disk. Opens nothing yet."""
    if host.settings.spool is False:
        return None
    from trimaran._spool.file import SpoolFile, spool_directory  # noqa: PLC0415 - sqlite3

    spool = Spool() if host.settings.spool is True else host.settings.spool
    return SpoolKeeper(
        SpoolFile(
            spool_directory(host.app, spool),
            owner=host.new_id(),
            destination=destination,
            most_bytes=spool.most_bytes,
            most_seconds=spool.most_seconds,
            survives=spool.survives,
            wall_clock=host.wall_clock,
        ),
        run=in_a_thread() if host.run_blocking is None else host.run_blocking,
        diagnostics=host.diagnostics,
    )


def _token_keeper(token: str | None, host: Host) -> TokenKeeper | None:
    """None where events go out without a token."""
    if host.provider is None or token is None:
        return None
    return TokenKeeper(
        host.provider,
        token,
        now=host.now,
        wall_clock=host.wall_clock,
        timeout=host.settings.request_timeout,
        interval=host.settings.unauthorized_interval,
        diagnostics=host.diagnostics,
    )


async def look_up(
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


def text_of(value: object) -> str:
    """A word of the host's context as text, whatever it gave."""
    plain = jsonable(value)
    return plain if isinstance(plain, str) else "" if plain is None else str(plain)


def traceparent_of(value: object, diagnostics: Diagnostics) -> str:
    """*value*, which came as a ``TRACEPARENT``; "" where it is none, which is told."""
    text = text_of(value)
    usable = usable_traceparent(text)
    if text.strip() and not usable:
        diagnostics.warn("telemetry traceparent ignored", reason="not as W3C Trace Context has it")
    return usable
