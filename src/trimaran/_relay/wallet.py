"""The tokens of one account in a relay, for as long as they are needed.

In: what the account's agents bring. Out: a token that may be tried, when there is one.
Does not know: requests, connections. A token is nowhere but here, in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trimaran._endpoint.token import is_usable_token

__all__ = ["Wallet"]


class Wallet:
    """Holds the token of an account; asks the account's agents for another one.

    It stands where an agent has its token keeper, and differs in this: without a token it
    waits, however long, until an agent brings one.

    Args:
        interval: seconds between two calls to all agents that did not help.
        changed: told when there is a token, or none any more.
    """

    def __init__(self, *, interval: float, changed: Callable[[], object]) -> None:
        self._interval = interval
        self._tell_changed = changed
        self._token: str | None = None
        self._given: dict[str, str | None] = {}
        """The agents that are there, with the last token that each of them gave."""
        self._lines: dict[str, Callable[[str | None], Awaitable[object]]] = {}
        """How to call those of them that listen."""
        self._calling = trio.Lock()
        self._call_not_before = float("-inf")
        self._brought = trio.Event()
        self.wanted: int = 0
        """Batches that wait to go out with it."""

    @property
    def held(self) -> str | None:
        """The token as it is; None where there is none, or it was refused."""
        return self._token

    @property
    def next_refresh_at(self) -> float:
        """Any time: it is waited for in :meth:`current`."""
        return float("-inf")

    @property
    def is_attended(self) -> bool:
        """Whether an agent of the account is there."""
        return bool(self._given)

    def join(self, agent: str, token: str | None) -> None:
        """An agent of the account is there."""
        self._given[agent] = None
        self.bring(agent, token)

    def listen(self, agent: str, call: Callable[[str | None], Awaitable[object]]) -> None:
        """That agent can be called: *call*, given the token that it gave last, returns when
        it has brought another one, or has none.
        """
        self._lines[agent] = call
        self._call_not_before = float("-inf")
        self._wake()

    def bring(self, agent: str, token: str | None) -> None:
        """An agent gives a token; what can stand in no header is none."""
        if token is not None and is_usable_token(token):
            self._given[agent] = self._token = token
            self._wake()

    def hang_up(self, agent: str, call: Callable[[str | None], Awaitable[object]]) -> None:
        """That agent cannot be called so any more."""
        if self._lines.get(agent) == call:
            del self._lines[agent]

    def leave(self, agent: str) -> None:
        """An agent of the account is gone."""
        self._given.pop(agent, None)
        self._tell_changed()

    def forget(self) -> None:
        """Nothing needs the token now."""
        self._token = None

    def tidy(self) -> None:
        """Forget the token, if nothing needs it now."""
        if not self.is_attended and not self.wanted:
            self.forget()

    async def current(self) -> str:
        """The token; waits until there is one."""
        await trio.lowlevel.checkpoint()
        while self._token is None:
            brought = self._brought
            if self._lines and trio.current_time() >= self._call_not_before:
                await self.renewed(after=None)
            elif self._lines:
                with trio.move_on_at(self._call_not_before):
                    await brought.wait()
            else:
                await brought.wait()
        return self._token

    async def renewed(self, *, after: str | None) -> str | None:
        """A token other than *after*; None if no agent that is there has one now."""
        async with self._calling:
            if self._token != after or trio.current_time() < self._call_not_before:
                return self._token if self._token != after else None
            asked: list[object] = []
            # Also who begins to listen meanwhile is asked, or would not be for a whole interval.
            while waiting := [agent for agent, call in self._lines.items() if call not in asked]:
                asked.append(self._lines[waiting[0]])
                await self._call(waiting[0])
                if self._token != after:
                    return self._token
            self._call_not_before = trio.current_time() + self._interval
            return None

    async def _call(self, agent: str) -> None:
        """Call an agent, until it has answered or anybody has brought a token."""
        call, brought = self._lines.get(agent), self._brought
        if call is None:
            return
        async with trio.open_nursery() as nursery:

            async def stop_when_brought() -> None:
                await brought.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_brought)
            await call(self._given.get(agent))
            nursery.cancel_scope.cancel()

    def refuse(self, token: str) -> None:
        """The endpoint refused *token*."""
        if self._token == token:
            self._token = None
            self._tell_changed()

    def _wake(self) -> None:
        self._brought.set()
        self._brought = trio.Event()
        self._tell_changed()
