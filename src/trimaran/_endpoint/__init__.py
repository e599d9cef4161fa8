"""What all sessions of a telemetry share on the way out: health, token, consent, client.

In: a request without credentials. Out: the endpoint's answer.
Does not know: batches, sessions, what an answer means for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol

import trio
from msgspec.structs import replace

from trimaran._aside import aside
from trimaran._decision import Decision, loopback_host
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint.circuit import Circuit, RetryBudget
from trimaran._endpoint.consent import Consent
from trimaran._endpoint.pauses import Pauses
from trimaran._endpoint.token import Tokens
from trimaran._pipeline.retry import backoff, is_failing, retry_after_seconds
from trimaran._settings import Settings
from trimaran._transport import Answer, GivenUp, Request, Transport, TransportError

__all__ = ["Endpoint", "WayOut"]

CLOSE_GRACE = 0.1
"""Seconds that closing the connections may take once everything else is over."""

_NUDGE_INTERVAL = 1.0
"""Seconds: a thousand sessions may be flushed at once, or one in every turn of an agent."""

_UNAUTHORIZED = 401


class WayOut(Protocol):
    """Where a sender's requests go: an endpoint, or what stands before one."""

    @property
    def url(self) -> str:
        """Where events end up."""
        ...

    @property
    def with_token(self) -> bool:
        """Whether requests carry a token, and a 401 is about that token."""
        ...

    def next_refresh_at(self) -> float:
        """When a token that was refused may be renewed, by trio's clock."""
        ...

    def hurry(self) -> None:
        """Time runs out: whoever waits may try once, now."""
        ...

    def nudge(self) -> None:
        """Somebody waits for what is pending: if nobody else did so lately, it is tried now."""
        ...

    @property
    def is_down(self) -> bool:
        """Whether it counts as down, which was told."""
        ...

    async def pause_until(self, time: float) -> None:
        """Sleep until *time*, by trio's clock, or until it is worth an earlier look."""
        ...

    async def attempt(
        self, request: Request, *, is_repeated: bool, made: Callable[[], None]
    ) -> Answer:
        """Make one attempt; see :meth:`Endpoint.attempt`."""
        ...

    async def aclose(self) -> None:
        """Close what is open, soon."""
        ...

    def forked(self) -> None:
        """This is a forked child's copy: it sends nothing any more."""
        ...


class Endpoint:
    """The one way to the network, for all sessions.

    Args:
        decision: an enabled one.
        transport: the host's own, which is not closed; None opens one for HTTP at the
            first request.
        tokens: where the token comes from; None sends none.
        consent: asked before every request.
        settings: limits.
        diagnostics: where lasting trouble is told.
        random: where jitter comes from.
        wall_clock: seconds since the epoch.
        on_change: told when delivery is lost (True) and when it is restored (False).
        make: makes the transport that is opened, aside; HTTP to the decision's URL, if None.
    """

    def __init__(
        self,
        decision: Decision,
        *,
        transport: Transport | None,
        tokens: Tokens | None,
        consent: Consent,
        settings: Settings,
        diagnostics: Diagnostics,
        random: Random,
        wall_clock: Callable[[], float],
        on_change: Callable[[bool], None],
        make: Callable[[], Transport] | None = None,
    ) -> None:
        assert decision.url is not None
        self.url: str = decision.url
        self._tokens = tokens
        self._consent = consent
        self._settings = settings
        self._diagnostics = diagnostics
        self._wall_clock = wall_clock
        self._on_change = on_change
        self._transport = transport
        self._make = make or partial(_http_transport, decision.url, settings.max_requests)
        self._owned: Transport | None = None
        self._opening = trio.Lock()
        self._known_token = None if tokens is None else tokens.held
        """The last token that is known to belong to the account."""
        self._slots = trio.CapacityLimiter(settings.max_requests)
        self._circuit = Circuit(
            lambda failures: backoff(
                failures,
                initial=settings.retry_initial,
                maximum=settings.retry_max,
                chance=random.random(),
            )
        )
        self._budget = RetryBudget(settings.retry_budget)
        self._probe = trio.Lock()
        self._pauses = Pauses()
        self._budget_pauses = Pauses()
        self._nudged_at = float("-inf")
        self._is_forked = False

    @property
    def with_token(self) -> bool:
        """Whether requests carry a token, and a 401 is about that token."""
        return self._tokens is not None

    def next_refresh_at(self) -> float:
        """When a token that was refused may be renewed, by trio's clock."""
        return self._tokens.next_refresh_at if self._tokens is not None else float("-inf")

    def hurry(self) -> None:
        """Time runs out: whoever waits for the endpoint to recover may try once, now."""
        self._circuit.hurry()
        self._pauses.hurry()
        self._budget_pauses.hurry()

    def nudge(self) -> None:
        """Somebody waits for what is pending: let it be tried now, once a second at most.

        What the endpoint asked for by ``Retry-After`` is kept, and so is the retry budget.
        """
        now = trio.current_time()
        if now - self._nudged_at >= _NUDGE_INTERVAL:
            self._nudged_at = now
            self._circuit.hurry()
            self._pauses.nudge()

    @property
    def is_down(self) -> bool:
        """Whether it counts as down, which was told."""
        return self._circuit.is_open

    async def pause_until(self, time: float) -> None:
        """Sleep until *time*, by trio's clock, or until it is worth an earlier look."""
        await self._pauses.until(time)

    async def attempt(
        self, request: Request, *, is_repeated: bool, made: Callable[[], None]
    ) -> Answer:
        """Make one attempt, when the endpoint's health allows it.

        After a 401 one more is made with a fresh token. Without a usable token no request
        is made and the answer is a 401. While the endpoint counts as down, one attempt at
        a time goes out, and the others wait for how it ends.

        Args:
            request: what to post, without credentials.
            is_repeated: whether it was tried before, and so draws on the retry budget.
            made: told of every request, right before it is made; may raise :class:`GivenUp`.

        Raises:
            TransportError: there is no answer, within ``request_timeout`` seconds.
            GivenUp: nothing may be sent any more; no request was made.
        """
        if self._is_forked:
            await trio.sleep_forever()  # the process that this is a copy of sends it
        if is_repeated:
            now = trio.current_time()
            await self._budget_pauses.until(now + self._budget.take(now))
        while True:
            async with self._slots:
                # Looked at with the slot in hand: waiting for it, the endpoint may go down.
                if not self._circuit.holds(trio.current_time()):
                    return await self._judged(request, made, is_probe=False)
            async with self._probe:
                while (at := self._circuit.next_at()) > trio.current_time():
                    await self.pause_until(at)
                if self._circuit.is_open:
                    async with self._slots:
                        return await self._judged(request, made, is_probe=True)

    async def _judged(
        self, request: Request, made: Callable[[], None], *, is_probe: bool
    ) -> Answer:
        """One attempt, and what it says of the endpoint's health."""
        try:
            answer = await self._authorized(request, made)
        except TransportError:
            self._fail(None, is_probe=is_probe)
            raise
        if answer is None:
            return Answer(_UNAUTHORIZED)
        if is_failing(answer.status):
            pause = retry_after_seconds(
                answer.retry_after,
                now=self._wall_clock(),
                maximum=self._settings.retry_after_max,
            )
            self._fail(pause, is_probe=is_probe)
        else:
            was_open = self._circuit.is_open
            self._circuit.succeeded()
            if was_open:
                self._on_change(False)  # noqa: FBT003 - see its description
        return answer

    def _fail(self, pause: float | None, *, is_probe: bool) -> None:
        was_open = self._circuit.is_open
        self._circuit.failed(trio.current_time(), pause=pause, is_probe=is_probe)
        if self._circuit.is_open and not was_open:
            self._on_change(True)  # noqa: FBT003 - see its description

    async def _authorized(self, request: Request, made: Callable[[], None]) -> Answer | None:
        """The endpoint's answer; None where there is no token to ask it with."""
        tokens = self._tokens
        if tokens is None:
            return await self._post(request, None, made)
        token = await tokens.current()
        if token is None:
            # A batch that is held makes no request: who logs out is heard here.
            await self._consent.require()
            return None
        answer = await self._post(request, token, made)
        if answer.status != _UNAUTHORIZED:
            return answer
        fresh = await tokens.renewed(after=token)
        if fresh is not None:
            answer = await self._post(request, fresh, made)
        if answer.status == _UNAUTHORIZED:
            tokens.refuse(fresh or token)
        return answer

    async def _post(self, request: Request, token: str | None, made: Callable[[], None]) -> Answer:
        if token is not None:
            headers = {**request.headers, "authorization": f"Bearer {token}"}
            request = replace(request, headers=headers)
        timeout = self._settings.request_timeout
        with trio.move_on_after(timeout):
            try:
                transport = await self._opened()
                await self._consent.require(token_is_new=token != self._known_token)
                self._known_token = token
                made()
                return await transport.attempt(request)
            except (TransportError, GivenUp):
                raise
            except Exception as error:  # noqa: BLE001 - a transport may be the host's own
                if not self.is_down:
                    self._diagnostics.warn("telemetry transport failed", error=type(error).__name__)
                raise TransportError(type(error).__name__) from None
        raise TransportError(f"no answer within {timeout:g} s")

    async def _opened(self) -> Transport:
        """The transport; the first request makes it, in whichever session that is.

        In a thread, since importing an HTTP client and reading certificates take tens of
        milliseconds in which the agent should go on. No checkpoint once it is there.
        """
        if self._transport is None:
            async with self._opening:
                if self._transport is None:
                    self._owned = self._transport = await aside(self._make)
        return self._transport

    async def aclose(self) -> None:
        """Close the connections, in at most :data:`CLOSE_GRACE` seconds."""
        if self._owned is not None and not self._is_forked:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE):
                try:
                    await self._owned.aclose()
                except Exception as error:  # noqa: BLE001 - nothing is left to lose
                    self._diagnostics.warn(
                        "telemetry transport failed to close", error=type(error).__name__
                    )
        await trio.lowlevel.checkpoint_if_cancelled()

    def forked(self) -> None:
        """This is a forked child's copy: it sends nothing, and leaves the connections alone."""
        self._is_forked = True


def _http_transport(url: str, max_connections: int) -> Transport:
    from trimaran._transport.http import HttpTransport  # noqa: PLC0415 - imports httpx

    return HttpTransport(max_connections=max_connections, direct_to=loopback_host(url))
