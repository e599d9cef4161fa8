"""An agent that is to be killed: ``python -m kill.agent ORDERS``.

In: orders, as JSON; the endpoint's URL, in its environment. Out: a line when it begins,
and then, in a file, what it knows to be safe, as soon as it knows it: a session and the
number of its first events that are delivered or on disk.
Does not know: the network between it and the endpoint, the other agents.

Its sessions track numbered events, in order. A session's batches are put on disk and
delivered in order too, so what ``statistics()`` calls delivered and spooled are the first
so many of its events: ``session_start``, then the numbers from 0 on.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import structlog
import trio

import trimaran
from trimaran._spool.disk import in_a_thread
from trimaran._transport import wants_spans
from trimaran._transport.http import HttpTransport
from trimaran.otlp import OtlpTransport

__all__ = ["BEGUN", "LONG_ENOUGH", "Orders", "Survivor", "Wire"]

Wire: TypeAlias = Literal["origin", "otlp"]
"""How batches go out."""

BEGUN = b"begun\n"
"""What it prints before it opens its telemetry."""

LONG_ENOUGH = 120.0
"""Seconds for the last one to deliver everything; it takes one or two."""

_Result = TypeVar("_Result")


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is to do."""

    life: str
    """Unique over all agents; its sessions are named after it."""
    seed: int
    directory: str
    """Of the spool."""
    claims: str
    """The file for what is safe."""
    dies_at: Literal["any time", "the network", "the disk"] = "any time"
    """Where it kills itself, unless that is left to others."""
    after: int = 0
    """How many times it gets there first; each request and each use of the disk has a
    moment before and one after it."""
    wire: Wire = "origin"
    is_last: bool = False
    """Whether it does nothing but deliver what others left, and then says what that was."""


class Survivor(msgspec.Struct, frozen=True, kw_only=True):
    """What the last one found, and what became of it."""

    tracked: int
    delivered: int


class Doom:
    """Kills this process at its hour."""

    def __init__(self, orders: Orders) -> None:
        self._place = orders.dies_at
        self._left = orders.after

    def pass_by(self, place: str) -> None:
        """Be at *place* once more, for the last time perhaps."""
        if place == self._place:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def transport_over(wire: Wire) -> trimaran.Transport:
    """One to the endpoint."""
    return OtlpTransport() if wire == "otlp" else HttpTransport(max_connections=16)


class DoomedTransport:
    """Another one, and perhaps death before a request or after its answer."""

    def __init__(self, doom: Doom, inner: trimaran.Transport) -> None:
        self._doom = doom
        self._inner = inner
        self.wants_spans: bool = wants_spans(inner)

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        """One attempt."""
        self._doom.pass_by("the network")
        try:
            return await self._inner.attempt(request)
        finally:
            self._doom.pass_by("the network")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def doomed_disk(doom: Doom) -> Callable[[Callable[[], Any]], Any]:
    """A thread for the disk, and perhaps death before it did something or right after."""
    run = in_a_thread()

    async def doomed(call: Callable[[], _Result]) -> _Result:
        def there() -> _Result:
            doom.pass_by("the disk")
            try:
                return call()
            finally:
                doom.pass_by("the disk")

        return await run(there)

    return doomed


class Claims:
    """Writes down what is safe. What is written is there when the process is killed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._claimed: dict[str, int] = {}
        self._is_in_doubt = False

    def hear(self, problem: trimaran.Problem) -> None:
        """A disk that fails once leaves a gap: what is on it are not the first events then."""
        if problem.name == "telemetry spool failed":
            self._doubt()

    def _doubt(self) -> None:
        if not self._is_in_doubt:
            self._is_in_doubt = True
            self._write("doubt", 0)

    def claim(self, session: trimaran.Session) -> None:
        """Write down how much of *session* is safe, if that is more than before."""
        books = session.statistics()
        if books.dropped:
            self._doubt()
        safe = books.delivered + books.spooled
        if safe > self._claimed.get(session.id, 0) and not self._is_in_doubt:
            self._claimed[session.id] = safe
            self._write(session.id, safe)

    def _write(self, what: str, count: int) -> None:
        os.write(self._file, f"{what} {count}\n".encode())


def settings_of(random: Random, directory: str) -> trimaran.Settings:
    """Batches of all sizes, of which the receiver takes not all whole; little patience."""
    return trimaran.Settings(
        batch_events=random.choice([3, 40, 400]),
        flush_interval=random.choice([0.01, 0.1, 5.0]),
        memory_bytes=random.choice([2_000_000, 64_000_000]),
        request_timeout=random.choice([0.3, 10.0]),
        retry_initial=0.01,
        retry_max=0.1,
        retry_budget=1000.0,
        spool=trimaran.Spool(
            directory=directory, survives=random.choice(["kill", "kill", "power_loss"])
        ),
    )


class Agent:
    """Tracks events until killed."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._random = Random(orders.seed)
        self._claims = Claims(orders.claims)
        self._sessions: list[trimaran.Session] = []

    async def run(self) -> None:
        """Open a telemetry, host sessions, say what is safe."""
        random, doom = self._random, Doom(self._orders)
        print(BEGUN.decode(), end="", flush=True)
        async with (
            trimaran.open_telemetry(
                "kill",
                settings=settings_of(random, self._orders.directory),
                transport=DoomedTransport(doom, transport_over(self._orders.wire)),
                run_blocking=doomed_disk(doom),
                on_problem=self._claims.hear,
            ) as telemetry,
            trio.open_nursery() as nursery,
        ):
            for name in range(random.choice([1, 1, 3])):
                nursery.start_soon(self._host, telemetry, f"{self._orders.life}.{name}")
            while True:
                # Also of sessions that ended, while their last events are under way.
                await trio.sleep(0.005)
                for session in self._sessions:
                    self._claims.claim(session)

    async def _host(self, telemetry: trimaran.Telemetry, name: str) -> None:
        for number in itertools.count():
            async with telemetry.session(session_id=f"{name}.{number}") as session:
                self._sessions.append(session)
                numbers = map(str, itertools.count())
                for _ in range(self._random.choice([1, 10, 100])):
                    await self._act(session, numbers)
                    self._claims.claim(session)

    async def _act(self, session: trimaran.Session, numbers: Iterator[str]) -> None:
        random = self._random
        match random.randrange(6):
            case 0:
                await trio.sleep(random.choice([0, 0.001, 0.02]))
            case 1:
                session.error(next(numbers))
            case 2:
                await session.flush(timeout=random.choice([0.001, 0.1]))
            case 3:
                for _ in range(random.choice([1, 10, 300])):
                    await session.send(trimaran.Command(command_name=next(numbers)))
            case _:
                session.command(next(numbers))


async def survive(orders: Orders) -> None:
    """Deliver what all others left, and leave nothing."""
    settings = trimaran.Settings(
        drain_timeout=LONG_ENOUGH, spool=trimaran.Spool(directory=orders.directory), strict=True
    )
    transport = transport_over(orders.wire)
    async with trimaran.open_telemetry("kill", settings=settings, transport=transport) as telemetry:
        pass
    await transport.aclose()
    left = telemetry.leftovers()
    survivor = Survivor(tracked=left.tracked, delivered=left.delivered)
    print(msgspec.json.encode(survivor).decode(), flush=True)


def _drop_line(*_arguments: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    structlog.configure(processors=[_drop_line])
    given = msgspec.json.decode(sys.argv[1], type=Orders)
    if given.is_last:
        trio.run(survive, given)
    else:
        trio.run(Agent(given).run)
