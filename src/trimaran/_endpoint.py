"""What all sessions of a telemetry share on the way out: token, consent, transport.

In: a request without credentials. Out: the endpoint's answer.
Does not know: batches, sessions, when to try again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from trimaran._account import AccountProvider
from trimaran._decision import Decision, Tier, opted_out
from trimaran._diagnostics import Diagnostics
from trimaran._settings import Settings
from trimaran._transport import Answer, Request, Transport, TransportError

__all__ = ["Endpoint", "TokenKeeper", "is_usable_token"]

CLOSE_GRACE = 0.1
"""Seconds that closing the connections may take once everything else is over."""

_UNAUTHORIZED = 401


class Endpoint:
    """The one way to the network, for all sessions.

    Args:
        decision: an enabled one.
        transport: the host's own, which is not closed; None opens one for HTTP at the
            first request.
        tokens: where the token comes from; None sends none.
        app: names the switches that are looked at before every request.
        environ: the live environment, so that a switch set later is seen.
        settings: limits.
        diagnostics: where a transport that cannot be made is told.
    """

    def __init__(
        self,
        decision: Decision,
        *,
        transport: Transport | None,
        tokens: TokenKeeper | None,
        app: str,
        environ: Mapping[str, str],
        settings: Settings,
        diagnostics: Diagnostics,
    ) -> None:
        assert decision.url is not None
        self.url = decision.url
        self._tokens = tokens
        self._transport = transport
        self._owned: Transport | None = None
        self._opening = trio.Lock()
        self._app = app
        self._environ = environ
        self._timeout = settings.request_timeout
        self._slots = trio.CapacityLimiter(settings.max_requests)
        self._diagnostics = diagnostics

    @property
    def with_token(self) -> bool:
        """Whether requests carry a token, and a 401 is about that token."""
        return self._tokens is not None

    def withdrawn(self) -> bool:
        """Whether a switch says by now that nothing may be sent any more."""
        return opted_out(self._app, self._environ) is not None

    async def attempt(self, request: Request) -> Answer:
        """Make one attempt, and after a 401 one more with a fresh token.

        Without a usable token no request is made and the answer is a 401.

        Raises:
            TransportError: there is no answer, within ``request_timeout`` seconds.
        """
        async with self._slots:
            if self._tokens is None:
                return await self._post(request)
            token = await self._tokens.current()
            if token is None:
                return Answer(_UNAUTHORIZED)
            answer = await self._post(_authorized(request, token))
            if answer.status != _UNAUTHORIZED:
                return answer
            fresh = await self._tokens.renewed(after=token)
            if fresh is None or self.withdrawn():
                return answer
            return await self._post(_authorized(request, fresh))

    async def _post(self, request: Request) -> Answer:
        with trio.move_on_after(self._timeout):
            try:
                return await (await self._opened()).attempt(request)
            except TransportError:
                raise
            except Exception as error:  # noqa: BLE001 - a transport may be the host's own
                self._diagnostics.warn("telemetry transport failed", error=type(error).__name__)
                raise TransportError(type(error).__name__) from None
        raise TransportError(f"no answer within {self._timeout:g} s")

    async def _opened(self) -> Transport:
        """The transport; the first request makes it, in whichever session that is.

        In a thread, since importing an HTTP client and reading certificates take tens of
        milliseconds in which the agent should go on. No checkpoint once it is there.
        """
        if self._transport is None:
            async with self._opening:
                if self._transport is None:
                    self._owned = self._transport = await trio.to_thread.run_sync(
                        _http_transport, self._slots.total_tokens, abandon_on_cancel=True
                    )
        return self._transport

    async def aclose(self) -> None:
        """Close the connections, in at most :data:`CLOSE_GRACE` seconds."""
        if self._owned is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_GRACE):
                try:
                    await self._owned.aclose()
                except Exception as error:  # noqa: BLE001 - nothing is left to lose
                    self._diagnostics.warn(
                        "telemetry transport failed to close", error=type(error).__name__
                    )
        await trio.lowlevel.checkpoint_if_cancelled()


class TokenKeeper:
    """The token of the moment; one refresh at a time, however many sessions ask.

    Args:
        provider: the host's account.
        token: the token that the decision was made with.
        now: a monotonic clock, in seconds.
        timeout: seconds that the provider may take.
        interval: seconds between two refreshes that did not help.
        diagnostics: where a provider that fails is told.
    """

    def __init__(
        self,
        provider: AccountProvider,
        token: str,
        *,
        now: Callable[[], float],
        timeout: float,
        interval: float,
        diagnostics: Diagnostics,
    ) -> None:
        self._provider = provider
        self._token: str | None = token
        self._now = now
        self._timeout = timeout
        self._interval = interval
        self._diagnostics = diagnostics
        self._refreshing = trio.Lock()
        self._last_refresh = float("-inf")

    async def current(self) -> str | None:
        """The token; None while it is known to be refused and no refresh is due."""
        if self._token is not None:
            await trio.lowlevel.checkpoint()
            return self._token
        return await self.renewed(after=None)

    async def renewed(self, *, after: str | None) -> str | None:
        """A token other than *after*, which the endpoint refused; None if there is none.

        The provider is asked once for all sessions that saw *after* refused, and not
        again within the interval. A cancelled refresh leaves the next caller to make it.
        """
        async with self._refreshing:
            if self._token != after:
                return self._token
            if self._now() - self._last_refresh < self._interval:
                # A token that was refused right after its refresh is held back too.
                self._token = None
                return None
            token = await ask_for_token(
                self._provider, refresh=True, timeout=self._timeout, diagnostics=self._diagnostics
            )
            self._last_refresh = self._now()
            self._token = token
            return token


async def ask_for_token(
    provider: AccountProvider, *, refresh: bool, timeout: float, diagnostics: Diagnostics
) -> str | None:
    """The provider's token, or None where it has none that can be sent.

    A provider that raises, takes longer than *timeout* seconds or gives what cannot
    stand in a header is told once, without the token.
    """
    problem = f"took more than {timeout:g} s"
    with trio.move_on_after(timeout):
        try:
            token = await provider.token(refresh=refresh)
        except Exception as error:  # noqa: BLE001 - a provider is the host's own code
            problem = f"raised {type(error).__name__}"
        else:
            if token is None or is_usable_token(token):
                return token
            problem = "is not a token that can stand in a header"
    diagnostics.warn("telemetry token cannot be had", problem=problem)
    return None


def is_usable_token(token: object) -> bool:
    """Whether *token* is text that can stand in an ``Authorization`` header."""
    return (
        isinstance(token, str) and token.isascii() and token.isprintable() and
        bool(token) and " " not in token
    )


def _http_transport(max_connections: float) -> Transport:
    from trimaran._transport.http import HttpTransport  # noqa: PLC0415 - imports httpx

    return HttpTransport(max_connections=int(max_connections))


def _authorized(request: Request, token: str) -> Request:
    return Request(
        request.url, {**request.headers, "authorization": f"Bearer {token}"}, request.body
    )
