"""What agents, their relay and the endpoint are in a simulated world, and what is noted of them.

In: chance, a folder. Out: what was acknowledged, taken back, given up; which promises broke.
Does not know: what happens when.
"""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import msgspec
import trio

import trimaran
from simulated_processes import Process, running
from simulation import ChecksBooks, World
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import DropReason
from trimaran._pipeline.sender import Sender
from trimaran._relay.client import RelayClient
from trimaran._relay.messages import HandedBatch
from trimaran._relay.orders import Orders
from trimaran._relay.outlet import Outlet
from trimaran._relay.place import RelayPlace
from trimaran._relay.server import RelayServer
from trimaran._relay.way_out import RelayedWayOut
from trimaran._spool.values import Evicted
from trimaran._transport import HANDED_OVER

__all__ = [
    "ACCOUNTS",
    "Agent",
    "ChecksEverything",
    "Login",
    "RelayWorld",
    "relays_start_in",
    "watched",
    "wholes_of",
]

URL = "https://endpoint.test"
NOBODY = ""
ACCOUNTS = (NOBODY, "ann", "bob")


@dataclass
class RelayWorld(World):
    """What outlives a process."""

    folder: pathlib.Path = pathlib.Path()
    relay: trimaran.Relay = field(default_factory=trimaran.Relay)
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 1))
    """The number of the token that the endpoint takes, by account."""
    is_well: bool = False
    """Everything goes well from now on."""
    relays: list[Process] = field(default_factory=list)
    servers: dict[Process, RelayServer] = field(default_factory=dict)
    overdue: list[str] = field(default_factory=list)
    """Agents that ended too late."""
    acknowledged: dict[str, trimaran.Request] = field(default_factory=dict)
    """Batches of which an agent was told that they are safe, by key."""
    taken_of: dict[str, set[str]] = field(default_factory=dict)
    """Keys that any relay may have on its disk, by agent."""
    kept_of: dict[str, set[str]] = field(default_factory=dict)
    """Keys that a relay said it has there, by agent."""
    sent_directly: set[str] = field(default_factory=set)
    """Keys that an agent tried to deliver by itself."""
    brought_by: dict[str, str] = field(default_factory=dict)
    """The agent that wanted to hand a key over last, by key. It may have found it in the spool
    of another one that is gone: then it is its consent that counts.
    """
    withdrawn: set[tuple[str, str]] = field(default_factory=set)
    """Agents, and keys that a relay has promised each of them not to send any more."""
    taken_back: set[str] = field(default_factory=set)
    """Keys that it was asked not to send any more, whether it promised or died over it."""
    given_up: dict[str, DropReason] = field(default_factory=dict)
    """Keys that a relay gave up, and why."""
    seen: Counter[str] = field(default_factory=Counter)
    """What happened, for who wonders whether it does."""

    def wall_clock(self) -> float:
        """Seconds since the epoch."""
        return 1_700_000_000 + trio.current_time()

    def new_id(self) -> str:
        """Unique in this world."""
        return f"{self.random.getrandbits(64):016x}"

    @property
    def place(self) -> RelayPlace:
        """Where the relay is."""
        return RelayPlace(self.folder / "relay")

    def is_to_blame(self, process: Process, request: trimaran.Request) -> str | None:
        """Which promise it breaks that a process makes this request, if any."""
        key = request.headers["idempotency-key"]
        batch = msgspec.json.decode(request.body)
        account = str(batch["user_email"]).partition("@")[0]
        authorization = request.headers.get("authorization", "")
        if (account == NOBODY) != (authorization == ""):
            return f"the wrong tier: {account!r} with {authorization!r}"
        if not authorization.startswith(f"Bearer token-of-{account}-" if account else ""):
            return f"the token of another account: {account!r} with {authorization!r}"
        if process in self.relays:
            brought = [whole for whole in wholes_of(key) if whole in self.brought_by][-1]
            is_withdrawn = (self.brought_by[brought], brought) in self.withdrawn
            return f"{key} was withdrawn, and is sent" if is_withdrawn else None
        self.sent_directly.add(key)
        if "DO_NOT_TRACK" in environ_of(process):
            return "a request after consent was withdrawn"
        return None

    def takes_token(self, request: trimaran.Request) -> bool:
        """Whether the endpoint does."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            return True
        account, _, number = authorization.removeprefix("Bearer token-of-").rpartition("-")
        return int(number) == self.tokens[account]

    def check_for_tokens(self) -> None:
        """No token may be on disk."""
        for path in self.folder.rglob("*"):
            assert not path.is_file() or b"token-of-" not in path.read_bytes(), path

    def token_of(self, account: str) -> str:
        """The one that the endpoint takes at this moment."""
        return f"token-of-{account}-{self.tokens[account]}"


def wholes_of(key: str) -> list[str]:
    """The keys of all batches that one is a part of, its own among them."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


class Agent(Process):
    """A process with a telemetry."""

    def __init__(self, world: RelayWorld, name: str, account: str, **named: Any) -> None:
        super().__init__(name, random=world.random, is_at_ease=lambda: world.is_well, **named)
        self.account = account
        self.environ = {"SIM_TELEMETRY_URL": URL}
        self.client: RelayClient | None = None
        self.telemetry: trimaran.Telemetry | None = None
        self.sessions: list[trimaran.Session] = []
        self.handed_over = 0
        """Events of which it was told that they are safe."""


def environ_of(process: Process) -> dict[str, str]:
    """An agent's environment."""
    assert isinstance(process, Agent)
    return process.environ


class Login:
    """An account's token, as an agent knows it."""

    def __init__(self, world: RelayWorld, account: str) -> None:
        self._world = world
        self._account = account
        self._token = world.token_of(account)
        if not world.is_well and world.random.random() < 0.3:
            world.tokens[account] += 1  # what it got is refused by now
        self._is_renewable = world.is_well or world.random.random() < 0.7

    async def account(self) -> trimaran.Account | None:
        await trio.lowlevel.checkpoint()
        return trimaran.Account(URL, f"{self._account}@x.test")

    async def token(self, *, refresh: bool) -> str | None:
        if refresh and not self._world.is_well:
            await trio.sleep(self._world.random.choice([0, 0, 0.1, 20]))
        if refresh and self._is_renewable:
            self._token = self._world.token_of(self._account)
        return self._token


class Line:
    """The network, as one process has it."""

    def __init__(self, world: RelayWorld, process: Process) -> None:
        self._world = world
        self._process = process

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        if self._process.is_dead:
            await trio.sleep_forever()
        blame = self._world.is_to_blame(self._process, request)
        if blame is not None:
            self._world.endpoint.wrong.append(f"{self._process}: {blame}")
        if not self._world.takes_token(request):
            self._world.seen["token refused"] += 1
            await trio.sleep(self._world.random.choice([0, 0.1]))
            return trimaran.Answer(401)
        return await self._world.endpoint.attempt(request)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class ChecksEverything(ChecksBooks):
    """Checks the books of agents and relays after each step; counts the steps of processes."""

    def __init__(self, world: RelayWorld) -> None:
        self.sessions: list[trimaran.Session] = []
        super().__init__(self.sessions)
        self._world = world
        self.failed: list[BaseException] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        try:
            super().after_task_step(task)
            process = task.context.get(running)
            if process is not None:
                server = self._world.servers.get(process)
                if server is not None:
                    self._check(server)
                process.step()
        except BaseException as error:  # noqa: BLE001 - trio swallows it
            self.failed.append(error)

    def _check(self, server: RelayServer) -> None:
        for outlet in server._outlets.values():
            books = outlet._books.statistics()
            assert books.tracked == books.delivered + books.dropped_total + books.pending, books
            assert 0 <= books.spooled <= books.pending, books
            assert outlet._waiting >= 0


@contextmanager
def relays_start_in(processes: trio.Nursery, world: RelayWorld) -> Iterator[None]:
    """Let a process that is a relay be a :class:`Process`."""

    def start(orders: Orders) -> str:
        random = world.random
        if not world.is_well and random.random() < 0.1:
            world.seen["no relay to be had"] += 1
            return "there is no room for a process"
        lock = world.place.lock()
        if lock is None:
            return ""
        relay = Process(
            f"relay{len(world.relays)}",
            random=random,
            dies_at=random.randrange(random.choice([20, 200, 2_000])) + 1
            if not world.is_well and random.random() < 0.5
            else math.inf,
            disk_trouble=world.disk_trouble,
            is_at_ease=lambda: world.is_well,
        )
        relay.locks.append(lock)
        relay.evicted = partial(_evicted, world)
        relay.dies = partial(_dead_relay, world)
        world.relays.append(relay)
        processes.start_soon(relay.run, partial(serve, relay, orders))
        return ""

    async def serve(relay: Process, orders: Orders) -> None:
        world.servers[relay] = server = RelayServer(
            orders,
            environ={"XDG_RUNTIME_DIR": str(world.folder)},
            wall_clock=world.wall_clock,
            random=world.random,
        )
        try:
            await server.run()
        finally:
            if not relay.is_dead:
                relay.locks[0].release(remove=True)

    with mock.patch("trimaran._relay.launch._start", start):
        yield


def _dead_relay(world: RelayWorld) -> None:
    world.seen["relay killed"] += 1
    world.check_for_tokens()


def _evicted(world: RelayWorld, gone: Evicted) -> None:
    world.given_up[gone.key] = gone.reason


@contextmanager
def watched(world: RelayWorld) -> Iterator[None]:
    """Write down what agents are told, and what a relay takes and gives up."""

    def line(*_given: object) -> Line:
        return Line(world, running.get())

    one, several = RelayedWayOut.attempt, RelayedWayOut.hand_over
    begin, ask = RelayClient.__init__, RelayClient.hand_over
    take, withdraw, drop = Outlet.take, Outlet.withdraw, Sender._drop

    def beginning(self: RelayClient, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        agent = running.get()
        assert isinstance(agent, Agent)
        agent.client = self

    def acknowledge(request: trimaran.Request) -> None:
        agent = running.get()
        assert isinstance(agent, Agent)
        if not agent.is_dead:
            world.acknowledged[request.headers["idempotency-key"]] = request
            agent.handed_over += request.events - request.reports

    async def attempting(
        self: RelayedWayOut, request: trimaran.Request, **named: Any
    ) -> trimaran.Answer:
        answer = await one(self, request, **named)
        if answer is HANDED_OVER:
            acknowledge(request)
        return answer

    async def handing_over(self: RelayedWayOut, requests: Sequence[trimaran.Request]) -> bool:
        is_done = await several(self, requests)
        if is_done:
            world.seen["handed over together"] += 1
            for request in requests:
                acknowledge(request)
        return is_done

    async def asking(self: RelayClient, batches: Sequence[HandedBatch]) -> None:
        agent = running.get()
        if not agent.is_dead and "DO_NOT_TRACK" in environ_of(agent):
            world.endpoint.wrong.append(f"{agent}: handed over after consent was withdrawn")
        if not agent.is_dead:
            world.brought_by.update((batch.key, self._agent) for batch in batches)
        await ask(self, batches)

    async def taking(self: Outlet, agent: str, batches: Sequence[HandedBatch]) -> bool:
        world.taken_of.setdefault(agent, set()).update(batch.key for batch in batches)
        is_taken = await take(self, agent, batches)
        if is_taken and not running.get().is_dead:
            world.kept_of.setdefault(agent, set()).update(batch.key for batch in batches)
        return is_taken

    async def withdrawing(self: Outlet, agent: str) -> bool:
        before = set(world.taken_of.get(agent, ()))
        world.taken_back |= before
        is_done = await withdraw(self, agent)
        if is_done and not running.get().is_dead:
            world.withdrawn |= {(agent, key) for key in before}
        return is_done

    def dropping(self: Sender, batch: Batch, reason: DropReason) -> bool:
        if running.get() in world.relays:
            world.given_up[batch.key] = reason
        return drop(self, batch, reason)

    with (
        mock.patch.object(RelayClient, "__init__", beginning),
        mock.patch.object(RelayClient, "hand_over", asking),
        mock.patch.object(RelayedWayOut, "attempt", attempting),
        mock.patch.object(RelayedWayOut, "hand_over", handing_over),
        mock.patch.object(Outlet, "take", taking),
        mock.patch.object(Outlet, "withdraw", withdrawing),
        mock.patch.object(Sender, "_drop", dropping),
        mock.patch("trimaran._relay.server.random_id", world.new_id),
        mock.patch("trimaran._endpoint._http_transport", line),
    ):
        yield
