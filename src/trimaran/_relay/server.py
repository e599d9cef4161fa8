"""The relay as a whole: agents that come and go, and the outlets that they fill.

In: connections of agents. Out: answers; calls for tokens; an end, when nothing is left to do.
Does not know: how batches are kept and sent.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import trio

from trimaran._diagnostics import Diagnostics
from trimaran._process import ProcessReceiveChannel, ProcessSendChannel
from trimaran._relay.door import Door
from trimaran._relay.messages import (
    LISTENS,
    SPEAKS,
    Batches,
    Call,
    End,
    Hello,
    Listener,
    Message,
    MessageError,
    NewToken,
    Refusal,
    Refused,
    Report,
    Spectator,
    Taken,
    Welcome,
    Withdraw,
    answer_to,
    encoded,
    message_from,
    role_from,
)
from trimaran._relay.orders import Orders
from trimaran._relay.outlet import Circumstances, Outlet, decision_of, problem_with
from trimaran._relay.place import RelayPlace
from trimaran._spool.values import SpoolError
from trimaran._transport import Transport
from trimaran._version import __version__

__all__ = ["DRAIN", "Idleness", "Noted", "RelayServer"]

DRAIN = 1.0
"""Seconds that requests under way have to end in, when the relay ends. All is on disk."""

_HELLO_PATIENCE = 5.0
"""Seconds for a connection to say what it is for."""

_CALL_PATIENCE = 15.0
"""Seconds for an agent to come up with a token; its own provider has ten by default."""


def random_id() -> str:
    """32 hexadecimal digits from the operating system."""
    return os.urandom(16).hex()


class Idleness:
    """When a relay that has nothing to do is to end. Pure: the time comes in, in seconds.

    Args:
        timeout: seconds for which it stays without need.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._since: float | None = None

    def ends_at(self, now: float, *, agents: int, can_deliver: bool) -> float:
        """When it ends, if nothing changes until then; infinity while it is needed.

        It is needed while an agent is connected, or something can be delivered. What waits
        for a token waits on disk, for an agent that brings one and starts a relay.
        """
        if agents or can_deliver:
            self._since = None
            return math.inf
        if self._since is None:
            self._since = now
        return self._since + self._timeout


class Noted(Diagnostics):
    """Keeps the last thing that is wrong, for who asks.

    Args:
        is_silent: whether nobody is there who could read a log.
    """

    def __init__(self, *, is_silent: bool) -> None:
        super().__init__(time.monotonic)
        self._is_silent = is_silent
        self.problem: str = ""

    def warn(self, problem: str, /, **facts: object) -> None:
        """Note *problem*."""
        told = ", ".join(f"{name}: {fact}" for name, fact in facts.items())
        self.problem = f"{problem} ({told})" if told else problem
        if not self._is_silent:
            super().warn(problem, **facts)


class RelayServer:
    """A relay, in whichever process it is.

    Args:
        orders: where it is, and its limits.
        environ: where the place of its socket comes from; ``os.environ``, if None.
        transport: makes requests; HTTP, if None.
        wall_clock: seconds since the epoch.
        random: where jitter comes from.
        is_silent: False logs trouble, as an agent does; it is kept for who asks in any case.
    """

    def __init__(
        self,
        orders: Orders,
        *,
        environ: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        wall_clock: Callable[[], float] = time.time,
        random: Random | None = None,
        is_silent: bool = True,
    ) -> None:
        self.place: RelayPlace = RelayPlace(Path(orders.directory))
        self._orders = orders
        self._environ = os.environ if environ is None else environ
        self._transport = transport
        self._wall_clock = wall_clock
        self._random = Random() if random is None else random  # noqa: S311 - jitter is no secret
        self._notes = Noted(is_silent=is_silent)
        self._began = wall_clock()
        self._outlets: dict[str, Outlet] = {}
        self._agents: dict[str, _Guest] = {}
        self._changes = trio.lowlevel.ParkingLot()
        self._over = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve agents until nothing is left to do, SIGTERM, Ctrl-C, or an agent says so; or
        until no agent can find it any more.

        Whoever calls it holds the lock of the place.

        Raises:
            ProcessError: there is no place for its socket.
        """
        try:
            async with trio.open_nursery() as lanes:
                circumstances = Circumstances(
                    self._orders,
                    nursery=lanes,
                    diagnostics=self._notes,
                    random=self._random,
                    wall_clock=self._wall_clock,
                    new_id=random_id,
                    transport=self._transport,
                    changed=self._changes.unpark_all,
                )
                await self._adopt(circumstances)
                with Door(self.place, self._environ) as door:
                    await self._serve(door, circumstances, task_status)
                for outlet in self._outlets.values():
                    outlet.end()
                lanes.cancel_scope.deadline = trio.current_time() + DRAIN
        finally:
            # Each of them closes, also when this is cancelled, which ends their waiting.
            async with trio.open_nursery() as closing:
                for outlet in self._outlets.values():
                    closing.start_soon(outlet.aclose)

    async def _adopt(self, circumstances: Circumstances) -> None:
        """Take over what a relay that was killed left, whatever its destination."""
        file = circumstances.file_for("")

        def destinations() -> list[str]:
            try:
                return file.destinations()
            finally:
                file.close()

        try:
            found = await trio.to_thread.run_sync(destinations)
        except SpoolError as error:
            self._notes.warn("telemetry spool failed", error=str(error))
            return
        for destination in found:
            if decision_of(destination) is not None:
                outlet = self._outlets[destination] = Outlet(destination, circumstances)
                await outlet.adopt()
        self.place.sweep()

    async def _serve(
        self, door: Door, circumstances: Circumstances, task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as connections:
            connections.start_soon(self._end_on_signal)
            connections.start_soon(self._receive, door, connections, circumstances)
            task_status.started()
            await self._until_over()
            # Whoever is hung up looks for a relay at once, and is not to find this one.
            door.retract()
            connections.cancel_scope.cancel()

    async def _receive(
        self, door: Door, connections: trio.Nursery, circumstances: Circumstances
    ) -> None:
        meet = partial(self._meet, circumstances=circumstances)
        reason = await door.receive(meet, connections=connections)
        self._notes.warn("telemetry relay cannot be found", reason=reason)
        self.end()

    async def _end_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._over.set()
                self._changes.unpark_all()

    async def _until_over(self) -> None:
        idleness = Idleness(self._orders.idle_timeout)
        while not self._over.is_set():
            ends_at = idleness.ends_at(
                trio.current_time(),
                agents=len(self._agents),
                can_deliver=any(outlet.can_deliver for outlet in self._outlets.values()),
            )
            if trio.current_time() >= ends_at:
                break
            with trio.move_on_at(ends_at):
                await self._changes.park()

    async def _meet(self, stream: trio.SocketStream, circumstances: Circumstances) -> None:
        """A connection, until it ends in whichever way."""
        try:
            with suppress(trio.BrokenResourceError, MessageError):
                role = b""
                with trio.move_on_after(_HELLO_PATIENCE):
                    role = await stream.receive_some(1)
                if role == SPEAKS:
                    with ProcessReceiveChannel(stream) as channel:
                        await _Guest(self, channel, circumstances).hear()
                elif role == LISTENS:
                    with ProcessSendChannel(stream) as line:
                        await self._speak(line)
        finally:
            stream.socket.close()

    async def _speak(self, line: ProcessSendChannel) -> None:
        """Call an agent when its token is wanted, or tell a person how things are."""
        match role_from(await line.ask(b"")):
            case Spectator():
                await line.ask(encoded(self._report()))
            case Listener(agent=agent):
                guest = self._agents.get(agent)
                if guest is not None:
                    await guest.call_over(line)

    def _report(self) -> Report:
        return Report(
            pid=os.getpid(),
            version=__version__,
            began=self._began,
            agents=len(self._agents),
            directory=self._orders.directory,
            outlets=[outlet.report() for outlet in self._outlets.values()],
            problem=self._notes.problem,
        )

    async def forget_older(self, agent: str) -> None:
        """An agent that comes once more has given up on its last connection: do nothing more
        that is said there, and finish what is being done. So what it says now comes after.
        """
        guest = self._agents.get(agent)
        if guest is not None:
            await guest.stop_hearing()

    def join(self, agent: str, guest: _Guest) -> None:
        """An agent is there; perhaps once more, over another connection."""
        self._agents[agent] = guest
        self._changes.unpark_all()

    def leave(self, agent: str, guest: _Guest) -> bool:
        """A connection of an agent is over; whether it was the last."""
        if self._agents.get(agent) is not guest:
            return False
        del self._agents[agent]
        self._changes.unpark_all()
        return True

    def outlet_for(self, destination: str, circumstances: Circumstances) -> Outlet:
        """The way to a destination, as :func:`decision_of` understands it."""
        outlet = self._outlets.get(destination)
        if outlet is None:
            outlet = self._outlets[destination] = Outlet(destination, circumstances)
        return outlet

    def end(self) -> None:
        """Take nothing any more, and end."""
        self._over.set()
        self._changes.unpark_all()


class _Guest:
    """The connection over which an agent speaks."""

    def __init__(
        self, server: RelayServer, channel: ProcessReceiveChannel, circumstances: Circumstances
    ) -> None:
        self._server = server
        self._channel = channel
        self._circumstances = circumstances
        self._agent = ""
        self._outlet: Outlet | None = None
        self._gone = trio.Event()
        self._doing = trio.Lock()
        self._is_heard = True

    async def hear(self) -> None:
        """Do what it says, until it goes."""
        try:
            async for data in self._channel:
                message = _understood(data)
                async with self._doing:
                    if not self._is_heard:
                        return
                    answer = (
                        Refused(why=Refusal.MEANING, reason="it does not understand that")
                        if message is None
                        else await self._answered(message)
                    )
                await self._channel.acknowledge(encoded(answer))
                if isinstance(message, End):
                    self._server.end()
        finally:
            self._gone.set()
            if self._outlet is not None and self._server.leave(self._agent, self):
                if self._outlet.wallet is not None:
                    self._outlet.wallet.leave(self._agent)
                self._outlet.tidy()

    async def stop_hearing(self) -> None:
        """Do nothing more of what it says here; returns when what is being done is done."""
        self._is_heard = False
        async with self._doing:
            pass

    async def call_over(self, line: ProcessSendChannel) -> None:
        """Let the account's wallet call the agent over *line*, until it goes."""
        wallet = None if self._outlet is None else self._outlet.wallet
        if wallet is None:
            return

        async def call(after: str | None) -> None:
            # When the agent goes, its line is closed under the hands of who calls.
            with (
                trio.move_on_after(_CALL_PATIENCE),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await line.ask(encoded(Call(after=after)))

        wallet.listen(self._agent, call)
        try:
            await self._gone.wait()
        finally:
            wallet.hang_up(self._agent, call)

    def _join(self, hello: Hello) -> None:
        self._agent = hello.agent
        self._outlet = self._server.outlet_for(hello.destination, self._circumstances)
        self._server.join(hello.agent, self)
        if self._outlet.wallet is not None:
            self._outlet.wallet.join(hello.agent, hello.token)

    async def _answered(self, message: Message) -> Welcome | Taken | Refused:
        outlet = self._outlet
        match message:
            case End():
                return Taken()
            case Hello() if outlet is None:
                answer = answer_to(
                    message, version=__version__, problem=problem_with(message.destination)
                )
                if isinstance(answer, Welcome):
                    await self._server.forget_older(message.agent)
                    self._join(message)
                return answer
            case Batches(batches=batches) if outlet is not None:
                if await outlet.take(self._agent, batches):
                    return Taken()
                return Refused(why=Refusal.DISK, reason="it cannot keep more on its disk")
            case Withdraw() if outlet is not None:
                if await outlet.withdraw(self._agent):
                    return Taken()
                return Refused(why=Refusal.DISK, reason="its disk does not obey")
            case NewToken(token=token) if outlet is not None and outlet.wallet is not None:
                outlet.wallet.bring(self._agent, token)
                return Taken()
            case _:
                return Refused(why=Refusal.MEANING, reason="this is not the time to say that")


def _understood(data: bytes) -> Message | None:
    try:
        return message_from(data)
    except MessageError:
        return None
