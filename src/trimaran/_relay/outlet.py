"""What a relay does for one destination: keep batches on disk, deliver them in order.

In: batches of any agent that sends there. Out: requests; the fate of each event, in the
relay's books.
Does not know: connections, other destinations.

A session's batches are sent one after the other, and several sessions at a time: each is in
one of a few lanes, by the part that the keys of its batches have in common.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import trio
from msgspec.structs import replace

from trimaran._decision import Decision, Tier, url_problem
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import Endpoint
from trimaran._endpoint.consent import Consent
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import Ledger
from trimaran._pipeline.sender import Sender
from trimaran._relay.made import made_from, made_transport, problem_with_made, shown
from trimaran._relay.messages import HandedBatch, OutletReport
from trimaran._relay.orders import Orders
from trimaran._relay.wallet import Wallet
from trimaran._spool.disk import in_a_thread
from trimaran._spool.file import SpoolFile
from trimaran._spool.keeper import SpoolKeeper
from trimaran._spool.values import account_in
from trimaran._transport import Transport

__all__ = ["Circumstances", "Outlet", "decision_of", "problem_with"]

LANES = 16
"""Requests under way at once, by default; sessions that share a lane wait for each other."""

_MOST_KNOWN = 10_000
"""Keys that are remembered: an agent that did not hear that a batch was taken hands it over
again soon, or never."""


class Circumstances:
    """What the outlets of a relay have in common.

    Args:
        orders: their limits.
        nursery: where their lanes run.
        diagnostics: where trouble is told.
        random: where jitter comes from.
        wall_clock: seconds since the epoch.
        new_id: gives a text that is unique for all time.
        transport: makes requests; HTTP, if None.
        changed: told whenever there is more or less to deliver.
    """

    def __init__(
        self,
        orders: Orders,
        *,
        nursery: trio.Nursery,
        diagnostics: Diagnostics,
        random: Random,
        wall_clock: Callable[[], float],
        new_id: Callable[[], str],
        transport: Transport | None,
        changed: Callable[[], object],
    ) -> None:
        self.orders: Orders = orders
        self.nursery: trio.Nursery = nursery
        self.diagnostics: Diagnostics = diagnostics
        self.random: Random = random
        self.wall_clock: Callable[[], float] = wall_clock
        self.new_id: Callable[[], str] = new_id
        self.transport: Transport | None = transport
        self.changed: Callable[[], object] = changed
        self._wallets: dict[str, Wallet] = {}

    def wallet_of(self, account: str) -> Wallet:
        """What outlets to one account have in common."""
        wallet = self._wallets.get(account)
        if wallet is None:
            wallet = self._wallets[account] = Wallet(
                interval=self.orders.unauthorized_interval, changed=self.changed
            )
        return wallet

    def file_for(self, destination: str) -> SpoolFile:
        """A hold on the queue on disk."""
        return SpoolFile(
            Path(self.orders.directory),
            owner=self.new_id(),
            destination=destination,
            most_bytes=self.orders.most_bytes,
            most_seconds=self.orders.most_seconds,
            survives=self.orders.survives,
            wall_clock=self.wall_clock,
            evicts=False,
        )


class Outlet:
    """The way to one destination, as :func:`decision_of` understands it."""

    def __init__(self, destination: str, circumstances: Circumstances) -> None:
        decision = decision_of(destination)
        assert decision is not None
        self.destination: str = destination
        self.wallet: Wallet | None = None
        """Of the account; None where events go out without a token."""
        self._circumstances = circumstances
        self._settings = circumstances.orders.settings()
        made = made_from(destination)
        if decision.tier is Tier.AUTHENTICATED:
            # What an agent calls a place, or says of itself there, is no other account.
            account = destination if made is None else f"{made.blueprint.url} {made.account}"
            self.wallet = circumstances.wallet_of(account)
        self._endpoint = Endpoint(
            decision,
            transport=circumstances.transport,
            tokens=self.wallet,
            consent=_given_consent(circumstances.diagnostics),
            settings=self._settings,
            diagnostics=circumstances.diagnostics,
            random=circumstances.random,
            wall_clock=circumstances.wall_clock,
            on_change=lambda _is_lost: None,
            make=None
            if made is None
            else partial(made_transport, made, max_connections=self._settings.max_requests),
        )
        self._keeper = SpoolKeeper(
            circumstances.file_for(destination),
            run=in_a_thread(),
            now=trio.current_time,
            diagnostics=circumstances.diagnostics,
        )
        self._books = Ledger()
        self._turn = trio.Lock()
        self._known: dict[str, None] = {}
        self._lanes: dict[int, _Lane] = {}
        self._waiting = 0
        self._ended = False

    @property
    def can_deliver(self) -> bool:
        """Whether there is something to deliver, and no token is missing for it."""
        return self._waiting > 0 and (self.wallet is None or self.wallet.held is not None)

    async def adopt(self) -> None:
        """Take over what a relay that was killed left for this destination."""
        async with self._turn:
            for batch in await self._keeper.take_over(self._books):
                self._admit(batch)

    async def take(self, agent: str, batches: Sequence[HandedBatch]) -> bool:
        """Keep *batches* of an agent; whether they are on disk, or were before. It may take
        them back from then on.

        A cancel leaves open which: they will be handed over again, with the same keys.
        """
        async with self._turn:
            # By their keys, of which each is taken once.
            new = {batch.key: batch for batch in batches if not self._knows(batch.key)}
            if self._ended:
                return False
            # An agent that is gone may have handed them over, too, and have heard no answer.
            again = [batch.key for batch in batches if batch.key not in new]
            if not await self._keeper.also_handed_by(agent, again):
                return False
            if not new:
                return True
            kept = await self._keeper.keep(
                [
                    Batch(
                        key=batch.key,
                        body=batch.body,
                        events=batch.events,
                        reports=batch.reports,
                        parent_session_id=batch.parent_session_id,
                        traceparent=batch.traceparent,
                        handed_by=agent,
                    )
                    for batch in new.values()
                ],
                self._books,
            )
            if any(batch.kept is None for batch in kept):
                return False
            self._books.track(sum(batch.tracked for batch in kept))
            for batch in kept:
                self._admit(batch)
            return True

    async def withdraw(self, agent: str) -> bool:
        """Remove what an agent handed over, and send nothing of it any more. Whether the disk
        obeyed.
        """
        async with self._turn:
            return await self._keeper.withdraw_of(agent)

    def tidy(self) -> None:
        """Forget a token that nothing needs."""
        if self.wallet is not None:
            self.wallet.tidy()

    def report(self) -> OutletReport:
        """What became of the batches so far."""
        books = self._books.statistics()
        return OutletReport(
            destination=shown(self.destination),
            waiting=self._waiting,
            events=books.pending,
            delivered=books.delivered,
            dropped=dict(books.dropped),
            waits_for_token=self.wallet is not None and self.wallet.held is None,
        )

    def end(self) -> None:
        """Begin nothing new: what is not under way stays on disk."""
        self._ended = True
        self._endpoint.hurry()
        for lane in self._lanes.values():
            lane.close()

    async def aclose(self) -> None:
        """Let go of the network and of the disk, soon."""
        try:
            await self._endpoint.aclose()
        finally:
            await self._keeper.aclose()

    def _knows(self, key: str) -> bool:
        return key in self._known or self._keeper.keeps(key)

    def _admit(self, batch: Batch) -> None:
        """Put a batch that is on disk into its lane."""
        self._known[batch.key] = None
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        session = batch.key.rpartition("-")[0] or batch.key
        number = zlib.crc32(session.encode()) % LANES
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = _Lane()
            self._circumstances.nursery.start_soon(self._sender().run, lane.receive)
        self._wait_for(1)
        lane.put(batch)
        self._circumstances.changed()

    def _sender(self) -> Sender:
        circumstances = self._circumstances
        return Sender(
            endpoint=self._endpoint,
            settings=self._settings,
            ledger=self._books,
            keeper=self._keeper,
            settled=self._settled,
            hold=lambda _reason: None,
            diagnostics=circumstances.diagnostics,
            random=circumstances.random,
            wall_clock=circumstances.wall_clock,
        )

    def _settled(self, _size: int) -> None:
        self._wait_for(-1)
        self.tidy()
        self._circumstances.changed()

    def _wait_for(self, batches: int) -> None:
        self._waiting += batches
        if self.wallet is not None:
            self.wallet.wanted += batches


class _Lane:
    """Batches that are sent one after the other."""

    def __init__(self) -> None:
        # On disk there is room for all of them; what is left of one here is small.
        self._send, self.receive = trio.open_memory_channel[Batch](math.inf)
        self._spare = self.receive.clone()

    def put(self, batch: Batch) -> None:
        """Put one behind the others; its body only if it is the next."""
        if self._send.statistics().current_buffer_used:
            batch = replace(batch, body=None)
        self._send.send_nowait(batch)

    def close(self) -> None:
        """Give out no more; what was given out is not called back."""
        self._send.close()
        try:
            while True:
                self._spare.receive_nowait()
        except (trio.EndOfChannel, trio.WouldBlock):
            self._spare.close()


def decision_of(destination: str) -> Decision | None:
    """Where batches that are bound to *destination* go; None if that cannot be understood.

    Those that are bound to no account, and need a token, can only wait until they are too old:
    see :func:`problem_with`.
    """
    if _problem_with_place(destination) is not None:
        return None
    made = made_from(destination)
    if made is None:
        tier, _, rest = destination.partition(" ")
        url, _, _email = rest.partition(" ")
    else:
        tier, url = Tier.AUTHENTICATED if made.account else Tier.ANONYMOUS, made.blueprint.url
    return Decision(tier=Tier(tier), reason="handed over", source="relay", url=url)


def problem_with(destination: str) -> str | None:
    """What is wrong with a destination that an agent names; None for nothing.

    One that does not say whose events are sent with a token is: any account's would do then.
    """
    problem = _problem_with_place(destination)
    if problem is None and destination.startswith(f"{Tier.AUTHENTICATED} "):
        return None if account_in(destination) else "it is not said whose the events are"
    return problem


def _problem_with_place(destination: str) -> str | None:
    made = made_from(destination)
    if made is not None:
        return problem_with_made(made)
    tier, _, rest = destination.partition(" ")
    url, _, _email = rest.partition(" ")
    if tier not in {Tier.ANONYMOUS, Tier.AUTHENTICATED}:
        return "it does not know the tier"
    problem = url_problem(url, with_token=tier == Tier.AUTHENTICATED)
    return None if problem is None else f"the URL {problem}"


def _given_consent(diagnostics: Diagnostics) -> Consent:
    """That of the agent, which looked at it before it handed a batch over."""
    return Consent(
        app="relay",
        environ={},
        ask=None,
        provider=None,
        account=None,
        now=trio.current_time,
        timeout=1.0,
        diagnostics=diagnostics,
    )
