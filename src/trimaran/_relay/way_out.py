"""Stands in the endpoint's place where there is a relay.

In: requests without credentials. Out: the answer that a relay has them on its disk; where
none is to be had, the endpoint's own.
Does not know: how a relay is reached, how an endpoint is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import WayOut
from trimaran._endpoint.consent import Consent, ConsentWithdrawn
from trimaran._endpoint.token import Tokens
from trimaran._pipeline import wire
from trimaran._relay.client import RelayClient, RelayUnavailable
from trimaran._relay.launch import launch
from trimaran._relay.messages import HandedBatch
from trimaran._relay.orders import orders_of
from trimaran._relay.place import RelayPlace, relay_of
from trimaran._settings import Settings
from trimaran._spool.values import Binding
from trimaran._transport import HANDED_OVER, Answer, GivenUp, Request, TransportError

__all__ = ["RelayedWayOut", "batch_of", "relayed"]


class RelayedWayOut:
    """The way to the relay first, and else to the endpoint.

    Args:
        client: the way to the relay.
        endpoint: the way to the network.
        consent: asked before a batch is handed over.
        diagnostics: where lasting trouble is told.
    """

    def __init__(
        self,
        client: RelayClient,
        *,
        endpoint: WayOut,
        consent: Consent,
        diagnostics: Diagnostics,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._consent = consent
        self._diagnostics = diagnostics

    @property
    def url(self) -> str:
        """Where events end up."""
        return self._endpoint.url

    @property
    def with_token(self) -> bool:
        """Whether requests carry a token, and a 401 is about that token."""
        return self._endpoint.with_token

    def next_refresh_at(self) -> float:
        """When a token that was refused may be renewed, by trio's clock."""
        return self._endpoint.next_refresh_at()

    def hurry(self) -> None:
        """Time runs out: whoever waits may try once, now."""
        self._client.hurry()
        self._endpoint.hurry()

    def nudge(self) -> None:
        """Somebody waits for what is pending: if nobody else did so lately, it is tried now."""
        self._endpoint.nudge()

    @property
    def is_down(self) -> bool:
        """Whether the endpoint counts as down, which was told."""
        return self._endpoint.is_down

    async def pause_until(self, time: float) -> None:
        """Sleep until *time*, by trio's clock, or until it is worth an earlier look."""
        await self._endpoint.pause_until(time)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Meet the relay, and do what it wants of its agents, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._client.meet)
            await self._client.answer_calls()

    async def hand_over(self, requests: Sequence[Request]) -> bool:
        """Hand all of *requests* over, in one go; False if the relay does not have them all.

        What is wrong is found out and told where they are attempted one by one.
        """
        try:
            await self._consent.require()
            await self._client.hand_over([batch_of(request) for request in requests])
        except (RelayUnavailable, GivenUp, TransportError):
            return False
        return not self._consent.is_withdrawn

    async def attempt(
        self, request: Request, *, is_repeated: bool, made: Callable[[], None]
    ) -> Answer:
        """Hand *request* over; where that cannot be done, see :meth:`Endpoint.attempt`.

        Raises:
            TransportError: there is no answer.
            GivenUp: nothing may be sent any more.
        """
        try:
            await self._consent.require()
            try:
                await self._client.hand_over([batch_of(request)])
            except RelayUnavailable as error:
                self._diagnostics.warn("telemetry relay not available", reason=str(error))
            else:
                # What was handed over while another session withdrew is to be taken back, too.
                if self._consent.is_withdrawn:
                    raise ConsentWithdrawn
                return HANDED_OVER
            return await self._endpoint.attempt(request, is_repeated=is_repeated, made=made)
        except ConsentWithdrawn:
            await self._client.withdraw()
            raise

    async def aclose(self) -> None:
        """Hang up, and close the connections."""
        self._client.close()
        await self._endpoint.aclose()

    def forked(self) -> None:
        """This is a forked child's copy: it sends nothing any more."""
        self._client.forked()
        self._endpoint.forked()


def relayed(
    endpoint: WayOut,
    *,
    app: str,
    settings: Settings,
    agent: str,
    destination: Binding,
    tokens: Tokens | None,
    consent: Consent,
    diagnostics: Diagnostics,
) -> RelayedWayOut:
    """The way out through the relay that *settings* ask for. Starts none yet.

    For *destination* and *tokens* see :class:`RelayClient`.

    Raises:
        SpoolError: there is no directory for it; see :func:`relay_of`.
        OSError: its directory is in the current one, which is gone.
    """
    relay = relay_of(app, settings)
    assert relay is not None
    orders = orders_of(relay, settings)
    client = RelayClient(
        RelayPlace(Path(orders.directory)),
        start=partial(launch, orders),
        agent=agent,
        destination=destination,
        tokens=tokens,
        consent=consent,
        drain_timeout=settings.drain_timeout,
        diagnostics=diagnostics,
    )
    return RelayedWayOut(client, endpoint=endpoint, consent=consent, diagnostics=diagnostics)


def batch_of(request: Request) -> HandedBatch:
    """What is handed over of a request: all that is not the relay's own to say."""
    return HandedBatch(
        key=request.headers["idempotency-key"],
        body=request.body,
        events=request.events,
        reports=request.reports,
        parent_session_id=wire.parent_of(request.headers),
        traceparent=wire.traceparent_of(request.headers),
    )
