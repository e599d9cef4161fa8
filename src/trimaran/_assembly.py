"""What the sessions of one telemetry share, made of what the host gave.

In: a decision, an account, a host's arguments. Out: one :class:`Shared`, in which nothing
is open yet.
Does not know: lifetimes, sessions.
"""

from __future__ import annotations

import trio

from trimaran._account import Account, AccountProvider, CredentialsError
from trimaran._decision import Decision, Tier
from trimaran._destination import ENDPOINT
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint.consent import Consent
from trimaran._endpoint.outages import Outages
from trimaran._endpoint.through_parent import ThroughParent
from trimaran._endpoint.token import is_usable_token
from trimaran._environment import Parent
from trimaran._pipeline.encoder import jsonable
from trimaran._pipeline.memory import MemoryBudget
from trimaran._routes import (
    Host,
    consent_of,
    consent_to,
    decided_route,
    endpoint_of,
    given_route,
    token_keeper,
)
from trimaran._shared import Route, Shared
from trimaran._trace import TRACEPARENT, usable_traceparent
from trimaran._transport import wants_spans

__all__ = ["assemble", "assemble_in_session", "look_up", "text_of", "traceparent_of"]


def assemble(decision: Decision, account: Account | None, token: str | None, host: Host) -> Shared:
    """What the sessions of a telemetry share that goes somewhere.

    Args:
        decision: where events go; disabled, they go to the given destinations alone.
        account: who they are sent for; None sends anonymously.
        token: the account's token of the moment.
        host: the rest.
    """
    number = len(host.destinations) + decision.enabled
    # What has passed the parting of ways is each destination's, and none takes another's room.
    share = host.settings.memory_bytes // (number + 1 if number > 1 else 1)
    is_authenticated = decision.tier is Tier.AUTHENTICATED
    user_email = text_of(account.email) if account is not None and is_authenticated else ""
    routes = [given_route(destination, share, host) for destination in host.destinations]
    if decision.enabled:
        routes.insert(
            0, decided_route(decision, account, token, share, host, user_email=user_email)
        )
    return _shared(
        tuple(routes),
        host,
        # One way is all there is to hold.
        budget=routes[0].budget if number == 1 else MemoryBudget(share),
        tier=decision.tier if decision.enabled else Tier.ANONYMOUS,
        user_email=user_email,
        traceparent=traceparent_of(host.environ.get(TRACEPARENT), host.diagnostics),
        parent=None,
        consent=consent_of(None, None, host),
    )


def assemble_in_session(
    parent: Parent, decision: Decision, account: Account | None, token: str | None, host: Host
) -> tuple[Shared, ThroughParent]:
    """What a process needs that takes part in another's session; and the way to that.

    Args:
        parent: whose session it is.
        decision: where events go once the parent is gone; disabled, they go nowhere then, nor
            where the parent has a transport or a switch of its host's own and this process
            has not.
        account: as in :func:`assemble`, and so for the next two.
        token: the account's token of the moment.
        host: the rest.
    """
    outages = Outages(host.diagnostics, host.now)
    consent = consent_of(None, None, host)
    is_direct = decision.enabled and not (
        (parent.has_own_transport and host.transport is None)
        or (parent.has_own_consent and host.consent is None)
    )
    endpoint = ThroughParent(
        parent,
        direct=endpoint_of(
            decision,
            host,
            transport=host.transport,
            tokens=token_keeper(token, host),
            consent=consent_to(decision, account, host),
            outages=outages,
        )
        if is_direct
        else None,
        takes_spans=wants_spans(host.transport),
        consent=consent,
        flush_interval=host.settings.flush_interval,
        diagnostics=host.diagnostics,
    )
    route = Route(
        name=ENDPOINT,
        endpoint=endpoint,
        consent=consent,
        outages=outages,
        diagnostics=host.diagnostics,
        budget=MemoryBudget(host.settings.memory_bytes),
        keeper=None,
        wants_spans=parent.wants_spans,
        ahead=None,
        beside=endpoint.run,
        flush_interval=endpoint.flush_interval,
    )
    user_email = "" if account is None else text_of(account.email)
    shared = _shared(
        (route,),
        host,
        budget=route.budget,
        tier=parent.tier,
        user_email=user_email,
        traceparent=parent.traceparent,
        parent=parent,
        consent=endpoint,
    )
    return shared, endpoint


def _shared(
    routes: tuple[Route, ...],
    host: Host,
    *,
    budget: MemoryBudget,
    tier: Tier,
    user_email: str,
    traceparent: str,
    parent: Parent | None,
    consent: Consent | ThroughParent,
) -> Shared:
    return Shared(
        routes=routes,
        settings=host.settings,
        budget=budget,
        diagnostics=host.diagnostics,
        hooks=host.hooks,
        app=text_of(host.app),
        tier=tier,
        names_destinations=bool(host.destinations),
        environ=host.environ,
        has_own_transport=host.transport is not None,
        has_own_consent=host.consent is not None,
        is_withdrawn=lambda: consent.is_withdrawn,
        traceparent=traceparent,
        parent=parent,
        version=text_of(host.version),
        user_email=user_email,
        home=host.environ.get("HOME") or host.environ.get("USERPROFILE"),
        random=host.random,
        wall_clock=host.wall_clock,
        new_id=host.new_id,
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
