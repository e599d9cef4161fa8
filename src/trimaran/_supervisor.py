"""What keeps the stages of all sessions alive, and ends them at a deadline.

In: sessions to run; the moment at which the host leaves. Out: nothing that outlives the
deadline.
Does not know: the tier, accounts, what a stage does.

The stages live in one task that holds a shielded cancel scope. They outlive a body that
is cancelled, and end, whatever they are doing, at the scope's deadline.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from trimaran._current import current, entered
from trimaran._endpoint.consent import Consent
from trimaran._forked import tell_if_forked
from trimaran._live_session import LiveSession
from trimaran._log_context import named_in_logs
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.sender import Sender
from trimaran._shared import Route, SessionContext, Shared
from trimaran._spool.keeper import SpoolKeeper

__all__ = ["Supervisor"]


LEAVING_GRACE = 0.1
"""Seconds, out of those for draining, in which sessions of other tasks may still end by
themselves."""


_LOOK_INTERVAL = 0.05
"""Seconds between two looks, while the last sessions end, whether they put something on disk."""


CHILDRENS_SHARE = 0.5
"""Of the time for draining: as long as that children may still hand events over."""


class Supervisor:
    """The running half of a telemetry.

    Args:
        shared: what its sessions have in common.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared: Shared = shared
        # A dict for its order, which a run with the same seeds repeats.
        self._open: dict[LiveSession, None] = {}
        self._running: dict[LiveSession, None] = {}
        """The sessions whose stages run: those that are open, and those that drain."""
        self._left = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope(shield=True)
        self._stages: trio.Nursery | None = None
        self._closing = trio.Event()
        self._is_forked = False
        self.leftovers: dict[str, Ledger] = {route.name: Ledger() for route in shared.routes}
        """The books of what earlier processes left on disk, by destination."""
        self.is_ready: trio.Event = trio.Event()
        """Sessions can be opened."""
        tell_if_forked(self)

    @asynccontextmanager
    async def session(
        self, context: SessionContext, *, announce: bool
    ) -> AsyncGenerator[LiveSession]:
        """A session whose stages run here. Neither end is a checkpoint."""
        session = LiveSession(context, self.shared, announce=announce)
        if self._is_forked:
            session.forked()
        elif self._stages is None or self._closing.is_set():
            session.abandon()
        else:
            self._open[session] = self._running[session] = None
            self._stages.start_soon(self._run, session, name=f"trimaran session {session.id}")
        try:
            with entered(session), named_in_logs(session.id):
                yield session
        finally:
            session.close()
            self._open.pop(session, None)
            self._left.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def _run(self, session: LiveSession) -> None:
        # A forked child's copy of the session gets other books.
        books = [(end.route.outages, end.ledger) for end in session.ends.each]
        for outages, ledger in books:
            outages.join(ledger)
        try:
            await session.run()
        finally:
            for outages, ledger in books:
                outages.leave(ledger)
            del self._running[session]

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Run the stages of all sessions until :meth:`close`, and then to the deadline."""
        try:
            with self._scope:
                async with trio.open_nursery() as beside:
                    for route in self.shared.routes:
                        if route.beside is not None:
                            beside.start_soon(self._run_beside, route, route.beside)
                    async with trio.open_nursery() as self._stages:
                        for route in self.shared.routes:
                            if route.keeper is not None:
                                self._stages.start_soon(
                                    self._deliver_leftovers, route, route.keeper
                                )
                        self.is_ready.set()
                        await self._closing.wait()
                        for route in self.shared.routes:
                            if route.keeper is not None:
                                look = partial(_ask_once_more, route.consent, route.keeper)
                                beside.start_soon(self._run_beside, route, look)
                        await self._let_sessions_leave()
                    beside.cancel_scope.cancel()
        except BaseException:
            # A bug that strict settings let out: it is to come out, not a cancellation.
            with trio.CancelScope(shield=True):
                await self._let_go()
            raise
        await self._let_go()

    @trio.lowlevel.enable_ki_protection
    async def _run_beside(self, route: Route, run: Callable[[], Awaitable[object]]) -> None:
        """*run*; if that fails, the sessions go on without it."""
        try:
            await run()
        except Exception as bug:
            route.diagnostics.warn("telemetry failed", error=type(bug).__name__)
            if self.shared.settings.strict:
                raise

    async def _let_go(self) -> None:
        """Close what is open, on all ways at once; each is bounded by itself."""
        async with trio.open_nursery() as nursery:
            for route in self.shared.routes:
                nursery.start_soon(_closed, route)

    @trio.lowlevel.enable_ki_protection
    async def _deliver_leftovers(self, route: Route, keeper: SpoolKeeper) -> None:
        """Deliver what earlier processes left on disk; what is not delivered stays there."""
        shared, books = self.shared, self.leftovers[route.name]
        current.set(None)
        route.outages.join(books)
        reason = DropReason.DRAIN_TIMEOUT
        try:
            batches = await keeper.take_over(books)
            send, receive = trio.open_memory_channel[Batch](len(batches))
            with send:
                for batch in batches:
                    send.send_nowait(batch)
            await Sender(
                endpoint=route.endpoint,
                settings=shared.settings,
                ledger=books,
                keeper=keeper,
                settled=lambda _size: route.outages.settled(),
                hold=lambda _reason: None,
                diagnostics=route.diagnostics,
                random=shared.random,
                wall_clock=shared.wall_clock,
            ).run(receive)
        except Exception as bug:
            reason = DropReason.BUG
            route.diagnostics.warn("telemetry failed", error=type(bug).__name__)
            if shared.settings.strict:
                raise
        finally:
            if reason is DropReason.DRAIN_TIMEOUT and route.consent.is_withdrawn:
                reason = DropReason.CONSENT_WITHDRAWN
            route.outages.leave(books)
            books.close(reason)

    async def _let_sessions_leave(self) -> None:
        """End all sessions, after giving the tasks that hold them a moment to do so.

        A host that is cancelled as a whole cancels those tasks together with us: what they
        say in their last moment still belongs to their sessions.
        """
        with trio.move_on_after(LEAVING_GRACE):
            while self._open:
                await self._left.park()
        for session in list(self._open):
            session.close()

    def close(self) -> None:
        """Open no session any more; what is pending has ``drain_timeout`` seconds from now."""
        now, drain_timeout = trio.current_time(), self.shared.settings.drain_timeout
        self._scope.deadline = now + drain_timeout
        for session in list(self._running):
            # What children hand over at the last moment has to get out, too.
            session.hurry(now + drain_timeout * CHILDRENS_SHARE)
        self._closing.set()
        for route in self.shared.routes:
            route.endpoint.hurry()

    def forked(self) -> None:
        """This is a forked child's copy: it sends nothing, and leaves the disk alone."""
        self._is_forked = True
        for route in self.shared.routes:
            route.endpoint.forked()
            if route.keeper is not None:
                route.keeper.forked()


@trio.lowlevel.enable_ki_protection
async def _ask_once_more(consent: Consent, keeper: SpoolKeeper) -> None:
    """What is on disk outlives us: if it may not be sent, it leaves the disk before we do.

    Those who send may come to no request any more that would ask for it. Not before something is
    there: they wait for an account that is being asked, and one that hangs would keep them from
    sending the last of it.
    """
    while not keeper.is_in_use:  # noqa: ASYNC110 - it ends with the sessions, which is soon
        await trio.sleep(_LOOK_INTERVAL)
    await consent.look()
    if consent.is_withdrawn:
        await keeper.withdraw()


@trio.lowlevel.enable_ki_protection
async def _closed(route: Route) -> None:
    try:
        await route.endpoint.aclose()
    finally:
        # Also when the host was cancelled, which ends the call above.
        if route.keeper is not None:
            await route.keeper.aclose()
