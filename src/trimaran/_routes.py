"""The ways to the destinations, made of what the host gave.

In: a decision, an account, a destination, a host's arguments. Out: routes, on which nothing is
open yet.
Does not know: sessions, how many destinations there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from msgspec.structs import replace

from trimaran._account import Account, AccountProvider
from trimaran._decision import Decision, Tier
from trimaran._destination import ENDPOINT, Destination
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import Endpoint, WayOut
from trimaran._endpoint.consent import Consent
from trimaran._endpoint.outages import Outages
from trimaran._endpoint.token import TokenKeeper, Tokens
from trimaran._hooks import Hooks
from trimaran._pipeline.memory import MemoryBudget
from trimaran._settings import Settings, Spool
from trimaran._shared import Route
from trimaran._spool.disk import RunBlocking, in_a_thread
from trimaran._spool.keeper import SpoolKeeper
from trimaran._spool.values import (
    Binding,
    SpoolError,
    bound_to,
    destination_of,
    given_destination,
)
from trimaran._transport import Transport, blueprint_of, wants_spans

if TYPE_CHECKING:
    from trimaran._relay.way_out import RelayedWayOut

__all__ = [
    "Host",
    "consent_of",
    "consent_to",
    "decided_route",
    "endpoint_of",
    "given_route",
    "token_keeper",
]

_Introduction: TypeAlias = tuple[Binding, Tokens | None]
"""What a relay is told: what batches are bound to, and whence it gets what is secret."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a host gave, with every default in its place."""

    app: str
    version: str
    provider: AccountProvider | None
    settings: Settings
    environ: Mapping[str, str]
    transport: Transport | None
    """Its own; None is HTTP."""
    destinations: tuple[Destination, ...]
    """Where events go beside the endpoint."""
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


def decided_route(
    decision: Decision,
    account: Account | None,
    token: str | None,
    share: int,
    host: Host,
    *,
    user_email: str,
) -> Route:
    """The way to the endpoint.

    Args:
        decision: where that is.
        account: who events are sent for; None sends anonymously.
        token: the account's token of the moment.
        share: bytes of events that may be on this way.
        host: the rest.
        user_email: of the account.
    """
    if host.destinations:
        host = replace(host, diagnostics=host.diagnostics.about(ENDPOINT))
    return _route(
        ENDPOINT,
        decision,
        share,
        host,
        transport=host.transport,
        tokens=token_keeper(token, host),
        consent=consent_to(decision, account, host),
        binding=bound_to(decision, user_email, token, with_spans=wants_spans(host.transport)),
        folder=None,
    )


def given_route(destination: Destination, share: int, host: Host) -> Route:
    """The way to a destination that the host named. The account has no part in it.

    *share* is the bytes of events that may be on this way.
    """
    name, url = destination.name, destination.url
    host = replace(host, diagnostics=host.diagnostics.about(name))
    decision = Decision(tier=Tier.ANONYMOUS, reason="given in code", source="code", url=url)
    binding = destination_of(decision, "")
    if destination.transport is not None:
        # Whom that speaks to is not known here.
        binding = given_destination(name, url, with_spans=wants_spans(destination.transport))
    return _route(
        name,
        decision,
        share,
        host,
        transport=destination.transport,
        tokens=None,
        consent=consent_of(None, None, host),
        binding=binding,
        folder=name,
    )


def _route(
    name: str,
    decision: Decision,
    share: int,
    host: Host,
    *,
    transport: Transport | None,
    tokens: TokenKeeper | None,
    consent: Consent,
    binding: Binding,
    folder: str | None,
) -> Route:
    """A way out, with the relay and the spool that the settings ask for."""
    outages = Outages(host.diagnostics, host.now)
    endpoint: WayOut = endpoint_of(
        decision, host, transport=transport, tokens=tokens, consent=consent, outages=outages
    )
    ahead = beside = None
    if host.settings.relay is not False:
        introduction = _introduction(name, transport, binding, tokens)
        relayed = _relayed(endpoint, introduction, consent, host)
        if relayed is not None:
            endpoint, ahead, beside = relayed, relayed.hand_over, relayed.run
    return Route(
        name=name,
        endpoint=endpoint,
        consent=consent,
        outages=outages,
        diagnostics=host.diagnostics,
        budget=MemoryBudget(share),
        keeper=_spool_keeper(binding, folder, consent, host),
        wants_spans=wants_spans(transport),
        ahead=ahead,
        beside=beside,
    )


def endpoint_of(
    decision: Decision,
    host: Host,
    *,
    transport: Transport | None,
    tokens: TokenKeeper | None,
    consent: Consent,
    outages: Outages,
) -> Endpoint:
    """What speaks to where *decision* says, with the settings and the chance of *host*."""
    return Endpoint(
        decision,
        transport=transport,
        tokens=tokens,
        consent=consent,
        settings=host.settings,
        diagnostics=host.diagnostics,
        random=host.random,
        wall_clock=host.wall_clock,
        on_change=outages.change,
    )


def _introduction(
    name: str, transport: Transport | None, binding: Binding, tokens: TokenKeeper | None
) -> _Introduction | None:
    """What a relay is told; None where it could not send as *transport* does."""
    if transport is None:
        return binding, tokens
    blueprint = blueprint_of(transport)
    if blueprint is None:
        return None
    from trimaran._relay.made import described  # noqa: PLC0415 - only with a relay

    # It has credentials of its own: an account's token is not for it.
    return described(name, *blueprint)


def _relayed(
    endpoint: WayOut,
    introduction: _Introduction | None,
    consent: Consent,
    host: Host,
) -> RelayedWayOut | None:
    """The way out through a relay; None where there can be none, which is told. Starts none yet."""
    from trimaran._relay.way_out import relayed  # noqa: PLC0415 - sqlite3

    # What the host's own transport does with a batch is not known: it may keep it.
    reason = "the transport is the host's own"
    if introduction is not None:
        destination, tokens = introduction
        try:
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
        except (SpoolError, OSError) as error:
            reason = str(error)
    host.diagnostics.warn("telemetry relay not available", reason=reason)
    return None


def consent_to(decision: Decision, account: Account | None, host: Host) -> Consent:
    """What is asked before something is sent where *decision* says."""
    is_authenticated = decision.tier is Tier.AUTHENTICATED
    return consent_of(host.provider if is_authenticated else None, account, host)


def consent_of(provider: AccountProvider | None, account: Account | None, host: Host) -> Consent:
    """What is asked before something is sent; without a *provider*, of no account."""
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


def _spool_keeper(
    binding: Binding, folder: str | None, consent: Consent, host: Host
) -> SpoolKeeper | None:
    """None where nothing is to be written to disk, or there is no place for it, which is told.
    Opens nothing yet.

    A *folder* of its own keeps a destination's batches, and the room that they take, apart.
    """
    if host.settings.spool is False:
        return None
    from trimaran._spool.file import SpoolFile, spool_directory  # noqa: PLC0415 - sqlite3

    spool = Spool() if host.settings.spool is True else host.settings.spool
    try:
        directory = spool_directory(host.app, spool)
    except SpoolError as error:
        host.diagnostics.warn("telemetry spool failed", error=str(error))
        return None
    return SpoolKeeper(
        SpoolFile(
            directory if folder is None else directory / folder,
            owner=host.new_id(),
            destination=binding,
            most_bytes=spool.most_bytes,
            most_seconds=spool.most_seconds,
            survives=spool.survives,
            wall_clock=host.wall_clock,
        ),
        run=in_a_thread() if host.run_blocking is None else host.run_blocking,
        now=host.now,
        diagnostics=host.diagnostics,
        is_withdrawn=lambda: consent.is_withdrawn,
    )


def token_keeper(token: str | None, host: Host) -> TokenKeeper | None:
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
