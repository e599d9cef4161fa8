"""The token of the moment, for all sessions.

In: the host's account provider. Out: a token that may be tried, or none.
Does not know: requests, what a token means.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from trimaran._account import AccountProvider
from trimaran._diagnostics import Diagnostics

__all__ = ["TokenKeeper", "Tokens", "expiry_of", "is_usable_token"]

REFRESH_AHEAD = 60.0
"""Seconds before a known expiry at which a token is renewed; a tenth of what is left of
its life when it is shorter than ten minutes."""


class _Claims(msgspec.Struct):
    exp: float


_claims = msgspec.json.Decoder(_Claims)


class Tokens(Protocol):
    """Where an endpoint has its token from."""

    @property
    def held(self) -> str | None:
        """The token as it is; None where there is none to try."""
        ...

    @property
    def next_refresh_at(self) -> float:
        """When another one may be had, by trio's clock."""
        ...

    async def current(self) -> str | None:
        """The token to try; None where there is none for now."""
        ...

    async def renewed(self, *, after: str | None) -> str | None:
        """A token other than *after*; None if there is none."""
        ...

    def refuse(self, token: str) -> None:
        """The endpoint refused *token*."""
        ...


class TokenKeeper:
    """Holds one token; asks for another one at a time, however many sessions want it.

    Args:
        provider: the host's account.
        token: the token that the decision was made with.
        now: a monotonic clock, in seconds.
        wall_clock: seconds since the epoch, by which tokens expire.
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
        wall_clock: Callable[[], float],
        timeout: float,
        interval: float,
        diagnostics: Diagnostics,
    ) -> None:
        self._provider = provider
        self._now = now
        self._wall_clock = wall_clock
        self._timeout = timeout
        self._interval = interval
        self._diagnostics = diagnostics
        self._refreshing = trio.Lock()
        self._last_refresh = float("-inf")
        self._token: str | None = None
        self._renew_at = float("inf")
        self._keep(token)

    @property
    def held(self) -> str | None:
        """The token as it is; None while it is known to be refused."""
        return self._token

    @property
    def next_refresh_at(self) -> float:
        """When the provider may be asked again, by the monotonic clock."""
        return self._last_refresh + self._interval

    async def current(self) -> str | None:
        """The token; None while it is known to be refused and no refresh is due.

        Renewed ahead of its expiry, where that is known (the ``exp`` of a JWT, RFC 7519);
        if that fails the old one is used for as long as the endpoint takes it.
        """
        await trio.lowlevel.checkpoint()
        if self._token is None or self._wall_clock() >= self._renew_at:
            return await self.renewed(after=self._token) or self._token
        return self._token

    async def renewed(self, *, after: str | None) -> str | None:
        """A token other than *after*; None if there is none.

        The provider is asked once for all sessions that saw *after* refused, and not
        again within the interval. A cancelled refresh leaves the next caller to make it.
        """
        async with self._refreshing:
            if self._token != after:
                return self._token
            if self._now() < self.next_refresh_at:
                return None
            token = await self._ask()
            self._last_refresh = self._now()
            if token is not None:
                self._keep(token)
            return token

    def refuse(self, token: str) -> None:
        """The endpoint refused *token*: it is not tried again before the next refresh."""
        if self._token == token:
            self._token = None

    def _keep(self, token: str) -> None:
        self._token = token
        expiry = expiry_of(token)
        if expiry is None:
            self._renew_at = float("inf")
        else:
            left = max(0.0, expiry - self._wall_clock())
            self._renew_at = expiry - min(REFRESH_AHEAD, left / 10)

    async def _ask(self) -> str | None:
        """The provider's fresh token, or None where it has none that can be sent."""
        problem = f"the provider took more than {self._timeout:g} s"
        with trio.move_on_after(self._timeout):
            try:
                token = await self._provider.token(refresh=True)
            except Exception as error:  # noqa: BLE001 - a provider is the host's own code
                problem = f"the provider raised {type(error).__name__}"
            else:
                if token is not None and is_usable_token(token):
                    return token
                problem = "it cannot stand in a header" if token else "the provider has none"
        self._diagnostics.warn("telemetry token cannot be had", reason=problem)
        return None


def is_usable_token(token: object) -> bool:
    """Whether *token* is text that can stand in an ``Authorization`` header."""
    return (
        isinstance(token, str)
        and token.isascii()
        and token.isprintable()
        and bool(token)
        and " " not in token
    )


def expiry_of(token: str) -> float | None:
    """When a JWT expires, in seconds since the epoch; None for any other token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return _claims.decode(claims).exp
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        return None
