"""Whether events may still be sent: looked at before every single request.

In: the environment, the host's own switch, its account. Out: yes or no, now.
Does not know: what is dropped when the answer is no.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping

import trio

from trimaran._account import Account, AccountProvider
from trimaran._decision import opted_out
from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.ledger import DropReason
from trimaran._transport import GivenUp, TransportError

__all__ = ["Consent", "ConsentWithdrawn"]

_ACCOUNT_INTERVAL = 1.0
"""Seconds for which an account that was there counts as there: looking it up may read a
file, and a thousand sessions may ask at once."""


class ConsentWithdrawn(GivenUp):
    """Nothing may be sent any more."""

    def __init__(self) -> None:
        super().__init__(DropReason.CONSENT_WITHDRAWN)


class Consent:
    """The switches of one telemetry, as they are at this moment.

    Args:
        app: names the switches of the environment.
        environ: the live environment.
        ask: the host's own switch; what it raises counts as no.
        provider: where the account comes from; None where events are anonymous.
        account: the account that events are sent for. Gone, or another one in its place,
            there is no consent: its token must not go to this one's endpoint.
        now: a monotonic clock, in seconds.
        timeout: seconds that looking up the account may take.
        diagnostics: where a switch or an account that fails is told.
    """

    def __init__(
        self,
        *,
        app: str,
        environ: Mapping[str, str],
        ask: Callable[[], bool] | None,
        provider: AccountProvider | None,
        account: Account | None,
        now: Callable[[], float],
        timeout: float,
        diagnostics: Diagnostics,
    ) -> None:
        self._app = app
        self._environ = environ
        self._ask = ask
        self._provider = provider
        self._account = account
        self._now = now
        self._timeout = timeout
        self._diagnostics = diagnostics
        self._looking = trio.Lock()
        self._looked_at = now()
        self._is_gone = False

    async def require(self, *, token_is_new: bool = False) -> None:
        """Return if a request may be made now. A checkpoint only where an account is asked.

        Args:
            token_is_new: whether a token is to be sent for the first time: whose it is has
                to be known then, not remembered.

        Raises:
            ConsentWithdrawn: it may not.
            TransportError: whose the new token is could not be found out.
        """
        if not self._is_given():
            raise ConsentWithdrawn
        if self._provider is not None:
            is_known = await self._look_up_account(self._provider, at_once=token_is_new)
            if self.is_withdrawn:
                raise ConsentWithdrawn
            if token_is_new and not is_known:
                raise TransportError("the account of a new token cannot be looked up")

    async def look(self) -> None:
        """Ask the account anew, for :attr:`is_withdrawn`. A checkpoint only where there is one."""
        if self._provider is not None:
            await self._look_up_account(self._provider, at_once=True)

    @property
    def is_withdrawn(self) -> bool:
        """Whether nothing may be sent any more, as far as is known without asking an account."""
        return self._is_gone or not self._is_given()

    def _is_given(self) -> bool:
        if opted_out(self._app, self._environ) is not None:
            return False
        if self._ask is None:
            return True
        try:
            answer = self._ask()
            if inspect.isawaitable(answer):
                _let_go(answer)
                raise TypeError  # noqa: TRY301 - what it would say is not known
            return bool(answer)
        except Exception as error:  # noqa: BLE001 - the switch is the host's own code
            self._diagnostics.warn("telemetry consent failed", error=type(error).__name__)
            return False

    async def _look_up_account(self, provider: AccountProvider, *, at_once: bool) -> bool:
        """Keep whether the account is still there; says whether that is known.

        One that cannot be asked is taken to be as before.
        """
        async with self._looking:
            if not at_once and self._now() - self._looked_at < _ACCOUNT_INTERVAL:
                return True
            is_known = False
            with trio.move_on_after(self._timeout):
                try:
                    self._is_gone = await provider.account() != self._account
                    is_known = True
                except Exception as error:  # noqa: BLE001 - a provider is the host's own code
                    self._diagnostics.warn("telemetry account failed", error=type(error).__name__)
            self._looked_at = self._now()
            return is_known


def _let_go(answer: Awaitable[object]) -> None:
    """Nobody will await *answer*, of which Python need not complain."""
    if isinstance(answer, Coroutine):
        answer.close()
