"""A whole telemetry in a world made of one seed: sessions, endpoint, disk, crashes, time.

In: a seed. Out: what the sessions say became of their events, what the endpoint got, what
is on disk. The books are checked after every single step of every task.

A world has one endpoint, or a destination beside it as well, one disk and several lives of one
process. A life ends by itself,
or in a crash: from that moment on nothing of it reaches the network or the disk, and the
kernel closes its files. The last life is healthy and has time.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import pathlib
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import mock

import structlog
import trio
import trio.testing

import trimaran
from simulated_collector import SimulatedCollector
from simulated_endpoint import SimulatedEndpoint
from trimaran._spool.file import SpoolFile
from trimaran._spool.values import SpoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Wire: TypeAlias = type[SimulatedEndpoint]
"""How batches go out."""
WIRES: Mapping[str, Wire] = {"origin": SimulatedEndpoint, "otlp": SimulatedCollector}

DRAIN = 2.0
SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108
"""Where the disks of many worlds cost no disk."""
URL = "https://endpoint.test"
ENVIRON = {"SIM_TELEMETRY_URL": URL}


class Crash(Exception):
    """The process is killed."""


class ChecksBooks(trio.abc.Instrument):
    """Checks the books of all sessions after each step that any task makes."""

    def __init__(self, sessions: list[trimaran.Session]) -> None:
        self._sessions = sessions
        self.checked = 0
        self.wrong: list[trimaran.Statistics] = []
        """Books that did not add up; trio swallows what an instrument raises."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        for books in each_books(self._sessions):
            adds_up = books.tracked == books.delivered + books.dropped_total + books.pending
            elsewhere = (books.spooled, books.handed_over)
            if not adds_up or min(elsewhere) < 0 or sum(elsewhere) > books.pending:
                self.wrong.append(books)
            self.checked += 1


def by_destination(books: trimaran.Statistics) -> dict[str, trimaran.Statistics]:
    """The books of each destination; of the one and only, where none is named."""
    return dict(books.destinations) or {"endpoint": books}


def each_books(sessions: Iterable[trimaran.Session | Frozen]) -> Iterator[trimaran.Statistics]:
    """The books of every session, for every destination."""
    for session in sessions:
        yield from by_destination(session.statistics()).values()


class SimulatedDisk:
    """Runs the spool's work on a real file, at once, unless the seed or a crash forbids it."""

    def __init__(
        self,
        random: Random,
        trouble: float,
        is_dead: Callable[[], bool],
        *,
        slowness: float = 0.5,
    ) -> None:
        self._random = random
        self._trouble = trouble
        self._slowness = slowness
        self._is_dead = is_dead
        self._busy = trio.Lock()
        self.did_all = True
        """Whether it did all that it was told, in time."""

    async def __call__(self, call: Callable[[], Any], /) -> Any:
        is_done = False
        try:
            async with self._busy:
                result = await self._run(call)
                is_done = True
                return result
        finally:
            self.did_all = self.did_all and is_done

    async def _run(self, call: Callable[[], Any]) -> Any:
        await trio.sleep(self._random.choice([0, 0, 0.01, self._slowness]))
        if self._is_dead():
            await trio.sleep_forever()
        if self._random.random() < self._trouble:
            if self._random.random() < 0.5:
                call()
            raise SpoolError("the disk failed")
        result = call()
        await trio.sleep(self._random.choice([0, 0, 0.1]))
        if self._is_dead():
            await trio.sleep_forever()
        return result


class SimulatedUser:
    """An account that somebody may log out of, and whose tokens come as the seed wants them."""

    def __init__(self, random: Random, trouble: float) -> None:
        self._random = random
        self._trouble = trouble
        self._tokens = 0
        self.is_logged_in = True

    async def account(self) -> trimaran.Account | None:
        """Who is logged in; the first time somebody is."""
        await trio.lowlevel.checkpoint()
        return trimaran.Account(URL, "user@sim.test") if self.is_logged_in else None

    async def token(self, *, refresh: bool) -> str | None:
        """A token, or another one; none when it pleases the seed."""
        await trio.sleep(self._random.choice([0, 0.1]) if refresh else 0)
        if refresh and self._random.random() < self._trouble:
            return None
        self._tokens += refresh
        return f"token-{self._tokens}"


@dataclass
class World:
    """What outlives a process."""

    random: Random
    endpoint: SimulatedEndpoint
    directory: pathlib.Path | None
    """Where the spool lies; None in a world without one."""
    has_room: bool = True
    """Whether the disk has room for everything."""
    disk_trouble: float = 0.0
    """How likely the disk is to fail at something."""
    disk_slowness: float = 0.5
    """Seconds that the disk takes for a call at most, before it does it."""
    has_account: bool = False
    """Whether somebody is logged in; of the endpoint, not of the second destination."""
    disk_failed: bool = False
    """Whether somebody was told that it did, or that it takes too long."""
    beside: SimulatedEndpoint | None = None
    """A second destination, if there is one."""
    sessions: list[Frozen] = field(default_factory=list)
    """Of all lives, as they were left."""
    safe: dict[tuple[str, str], int] = field(default_factory=dict)
    """What was on disk at the end of some life: destinations and keys, with their events."""
    dropped_later: dict[str, int] = field(default_factory=dict)
    """Events that leftovers() called dropped, by destination."""
    unbooked: set[tuple[str, str]] = field(default_factory=set)
    """What a life found that took back its consent, or was over before anybody could ask it."""
    checked: int = 0
    drained_for: list[float] = field(default_factory=list)

    @property
    def endpoints(self) -> dict[str, SimulatedEndpoint]:
        """By the names of the destinations."""
        given = {"endpoint": self.endpoint}
        return given if self.beside is None else {**given, "beside": self.beside}

    def destinations(self) -> list[trimaran.Destination]:
        """Where events go beside the endpoint."""
        if self.beside is None:
            return []
        return [trimaran.Destination(name="beside", transport=self.beside.transport())]

    def on_disk(self) -> dict[tuple[str, str], int]:
        """What is in the spool: destinations and keys, with their numbers of events."""
        return {
            (name, key): events
            for name in (self.endpoints if self.directory is not None else ())
            for key, events in self._on_disk_for(self.folder_of(name) / "spool.db")
        }

    def folder_of(self, name: str) -> pathlib.Path:
        """Where the spool of a destination lies."""
        assert self.directory is not None
        return self.directory if name == "endpoint" else self.directory / name

    def _on_disk_for(self, file: pathlib.Path) -> list[tuple[str, int]]:
        if not file.exists():
            return []
        with closing(sqlite3.connect(file)) as database:
            return database.execute("SELECT key, events - reports FROM batches").fetchall()


def settings_of(world: World) -> trimaran.Settings:
    """Limits small enough to be met often."""
    random = world.random
    return trimaran.Settings(
        mailbox_events=random.choice([3, 20, 20_000]),
        mailbox_policy=random.choice(["drop_oldest", "drop_newest"]),
        backlog_events=random.choice([2, 20, 20_000]),
        batch_events=random.choice([1, 2, 7, 200]),
        batch_bytes=8_000,
        event_bytes=4_000,
        memory_bytes=random.choice([8_000, 64 * 1024 * 1024]),
        flush_interval=random.choice([0.01, 1.0, 5.0]),
        retry_timeout=random.choice([1.0, 20.0, 3600.0]),
        max_requests=random.choice([1, 16]),
        drain_timeout=DRAIN,
        strict=True,
        spool=spool_of(world),
    )


def spool_of(world: World) -> trimaran.Spool | bool:
    """The world's spool, sometimes with little room."""
    if world.directory is None:
        return False
    return trimaran.Spool(
        directory=str(world.directory),
        most_bytes=10_000_000 if world.has_room else 1_500,
        survives=world.random.choice(["kill", "power_loss"]),
    )


def simulate(
    seed: int,
    directory: pathlib.Path | None = None,
    *,
    beside: bool = False,
    wire: Wire = SimulatedEndpoint,
) -> World:
    """Run the world of *seed* to its end; with a *directory* it has a disk, and crashes.

    *beside*, there is a second destination, with luck of its own. The *wire* is that of the
    endpoint, or of the second destination where there is one.
    """
    random = Random(seed)
    if beside:
        world = World(random, SimulatedEndpoint(random), directory, beside=wire(random))
    else:
        world = World(random, wire(random), directory)
    lives = 1
    if directory is not None:
        lives = random.choice([1, 2, 3])
        world.has_room = random.random() < 0.7
        world.disk_trouble = random.choice([0.0, 0.0, 0.1])
        world.disk_slowness = random.choice([0.5, 0.5, 5.0])
    world.has_account = random.random() < 0.3
    world.endpoint.with_token = world.has_account
    for number in range(lives):
        live(world, seed + number)
    if directory is not None:
        live_healthily(world, seed)
    return world


async def act(random: Random, session: trimaran.Session, name: str) -> None:
    """Something that an agent may do; a command that it tracks has this *name*."""
    event = trimaran.Command(command_name=name)
    match random.randrange(9):
        case 0 | 1 | 2:
            session.track(event)
        case 3:
            await session.send(event)
        case 4:
            session.error("sometimes")
        case 5:
            with session.tool_call("bash"):
                await trio.sleep(random.choice([0, 0.2, 4]))
        case 6:
            await session.flush(timeout=random.choice([0, 0.1, 20]))
        case 7:
            session.track(None)  # type: ignore[arg-type]
        case _:
            await trio.sleep(random.choice([0, 0.01, 1, 7]))


def live(world: World, seed: int) -> None:
    """One life of the process, with everything that may happen in it."""
    random = world.random
    environ = dict(ENVIRON)
    sessions: list[trimaran.Session] = []
    instrument = ChecksBooks(sessions)
    left = ended = math.nan
    dead = False
    switch = {"is on": True}
    left_before = world.on_disk()
    telemetry: trimaran.Telemetry | None = None
    for endpoint in world.endpoints.values():
        endpoint.trouble = random.choice([0.0, 0.2, 0.9, 1.0])
        endpoint.is_withdrawn = lambda: "DO_NOT_TRACK" in environ or not switch["is on"]
        endpoint.is_dead = lambda: dead
    disk = SimulatedDisk(random, world.disk_trouble, lambda: dead, slowness=world.disk_slowness)
    user = SimulatedUser(random, random.choice([0.0, 0.5])) if world.has_account else None

    async def agent(name: int) -> None:
        assert telemetry is not None
        await trio.sleep(random.choice([0, 0.01, 2]))
        with trio.move_on_after(random.choice([0.0, 0.5, 5, 60])):
            async with telemetry.session(session_id=f"s{seed}.{name}") as session:
                sessions.append(session)
                for number in range(random.choice([0, 3, 30])):
                    await act(random, session, f"{seed}.{name}:{number}")

    async def crash_at_some_time(scope: trio.CancelScope) -> None:
        nonlocal dead
        await trio.sleep(random.choice([0, 0.05, 1, 3, 10]))
        dead = True
        on_disk = world.on_disk()
        world.safe |= on_disk
        assert telemetry is not None
        said = spooled(sessions, telemetry)
        assert said <= sum(on_disk.values()) or not world.has_room, "called safe, but not on disk"
        check_leftovers(world, telemetry, left_before)
        world.sessions += [Frozen(session.id, session.statistics()) for session in sessions]
        sessions.clear()
        scope.cancel()

    def withdraw() -> None:
        world.unbooked |= left_before.keys()
        match random.randrange(3):
            case 0:
                environ["DO_NOT_TRACK"] = "1"
            case 1 if user is not None:
                user.is_logged_in = False
            case _:
                switch["is on"] = False

    def tell_problem(problem: trimaran.Problem) -> None:
        world.disk_failed = world.disk_failed or problem.name == "telemetry spool failed"

    async def main() -> None:
        nonlocal left, ended, telemetry
        with trio.move_on_after(random.choice([0.0, 0.3, 4, 40, 400])) as scope:
            async with trimaran.open_telemetry(
                "sim",
                account=user,
                environ=environ,
                consent=lambda: switch["is on"],
                transport=world.endpoint.transport(),
                destinations=world.destinations(),
                settings=settings_of(world),
                random=random,
                wall_clock=lambda: 1_700_000_000 + trio.current_time(),
                new_id=lambda: f"{random.getrandbits(64):016x}",
                run_blocking=disk,
                on_problem=tell_problem,
            ) as telemetry:
                try:
                    async with trio.open_nursery() as nursery:
                        if world.directory is not None and random.random() < 0.5:
                            nursery.start_soon(crash_at_some_time, scope)
                        for name in range(random.choice([1, 2, 6])):
                            nursery.start_soon(agent, name)
                        if random.random() < 0.15:
                            await trio.sleep(random.choice([0, 0.5, 3]))
                            withdraw()
                finally:
                    left = trio.current_time()
        ended = trio.current_time()

    with files_of_a_process():
        in_a_seeded_run(main, seed, instrument)
    assert instrument.wrong == [], instrument.wrong[0]
    world.checked += instrument.checked
    world.drained_for.append(0.0 if math.isnan(left) else ended - left)
    world.sessions += [Frozen(session.id, session.statistics()) for session in sessions]
    if telemetry is None:
        world.unbooked |= left_before.keys()
    elif not dead:
        on_disk = world.on_disk()
        assert spooled(sessions, telemetry) <= sum(on_disk.values()), "called safe, but not on disk"
        world.safe |= on_disk
        check_leftovers(world, telemetry, left_before)
        if world.endpoint.is_withdrawn() and disk.did_all:
            assert on_disk == {}, "on disk without consent"


def check_leftovers(
    world: World, telemetry: trimaran.Telemetry, left: Mapping[tuple[str, str], int]
) -> None:
    """What must hold of what a life found on disk, and keep what it gave up of that."""
    for name, books in by_destination(telemetry.leftovers()).items():
        endpoint = world.endpoints[name]
        confirmed = sum(
            len(confirmed_in(endpoint, key))
            for key in endpoint.taken
            if any((name, whole) in left for whole in wholes_of(key))
        )
        assert books.delivered <= confirmed, (books, confirmed)
        world.dropped_later[name] = world.dropped_later.get(name, 0) + books.dropped_total


def wholes_of(key: str) -> list[str]:
    """The keys of what a batch may be a part of, and its own."""
    parts = key.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts) + 1)]


def confirmed_in(endpoint: SimulatedEndpoint, key: str) -> list[Mapping[str, object]]:
    """The host's own events that the endpoint took and did not refuse, in the batch of *key*."""
    return [
        event
        for index, event in enumerate(endpoint.taken[key])
        if not str(event.get("error_name", "")).startswith("Telemetry")
        and index not in endpoint.refused[key]
    ]


def spooled(sessions: list[trimaran.Session], telemetry: trimaran.Telemetry) -> int:
    """Events that are called safe on disk, over all destinations."""
    of_sessions = sum(books.spooled for books in each_books(sessions))
    leftovers = by_destination(telemetry.leftovers()).values()
    return of_sessions + sum(books.spooled for books in leftovers)


def live_healthily(world: World, seed: int) -> None:
    """The last life: it finds what is left, and has a healthy endpoint and time."""
    for endpoint in world.endpoints.values():
        endpoint.trouble = 0.0
        endpoint.is_withdrawn = endpoint.is_dead = lambda: False
    disk = SimulatedDisk(world.random, 0.0, lambda: False)
    left = world.on_disk()

    async def main() -> None:
        async with trimaran.open_telemetry(
            "sim",
            account=SimulatedUser(world.random, 0.0) if world.has_account else None,
            environ=ENVIRON,
            transport=world.endpoint.transport(),
            destinations=world.destinations(),
            settings=trimaran.Settings(
                strict=True, spool=trimaran.Spool(directory=str(world.directory))
            ),
            wall_clock=lambda: 1_700_000_000 + trio.current_time(),
            new_id=lambda: "last",
            run_blocking=disk,
        ) as telemetry:
            await trio.sleep(10_000)
        each = by_destination(telemetry.leftovers())
        # What an earlier life was told is too large, or bad, still is: such events are given up.
        assert all(books.dropped.keys() <= {"too_large", "rejected"} for books in each.values()), (
            each
        )
        decided = sum(books.delivered + books.dropped_total for books in each.values())
        assert decided == sum(books.tracked for books in each.values()) == sum(left.values()), each
        check_leftovers(world, telemetry, left)

    with files_of_a_process():  # a disk that is slow at the end leaves them to the kernel
        in_a_seeded_run(main, seed)
    assert world.on_disk() == {}
    for name, key in left:
        endpoint = world.endpoints[name]
        assert key in endpoint.taken or key in endpoint.too_large  # taken apart, it had other keys


@dataclass(frozen=True)
class Frozen:
    """A session as it was left."""

    id: str
    books: trimaran.Statistics

    def statistics(self) -> trimaran.Statistics:
        """The books at that moment."""
        return self.books


@contextmanager
def files_of_a_process() -> Iterator[None]:
    """What the kernel does to the files of a process that is gone: it closes them, no more."""
    opened: list[Any] = []

    class Remembered(SpoolFile):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            opened.append(self)

    with mock.patch("trimaran._spool.file.SpoolFile", Remembered):
        yield
    for file in opened:
        if file._database is not None:
            file._database.close()
        if file._lock is not None:
            file._lock.release(remove=False)


def in_a_seeded_run(main: Callable[[], Any], seed: int, *instruments: trio.abc.Instrument) -> None:
    """Run *main* under a virtual clock, with tasks ordered by the seed."""
    # What orders tasks that can run at the same time; pytest-trio reaches for it in the same way.
    run: Any = trio._core._run
    state, deterministic = run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING
    run._r.seed(seed)
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        trio.run(
            main,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=list(instruments),
        )
    finally:
        run._r.setstate(state)
        run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic


def check(world: World) -> None:
    """What must hold at the end of any world."""
    assert all(seconds <= DRAIN + 0.2 for seconds in world.drained_for), "past its deadline"
    for name, endpoint in world.endpoints.items():
        assert endpoint.wrong == []
        check_safe(world, name, endpoint)
        for session in world.sessions:
            check_fates(world, name, endpoint, session)


def check_safe(world: World, name: str, endpoint: SimulatedEndpoint) -> None:
    """What was on disk at the end of a life reached the endpoint, or is in a book as given up."""
    missing = {
        key: events
        for (where, key), events in world.safe.items()
        if where == name and key not in endpoint.taken and key not in endpoint.turned_away
        if (name, key) not in world.unbooked
    }
    # What makes room for others may go right before a crash, and come into no book.
    if world.has_room:
        assert sum(missing.values()) <= world.dropped_later.get(name, 0), missing


def check_fates(world: World, name: str, endpoint: SimulatedEndpoint, session: Frozen) -> None:
    """What must hold of one session at one destination."""
    books = by_destination(session.statistics())[name]
    assert "bug" not in books.dropped, books
    confirmed = 0
    last_number = -1
    for key, events in endpoint.taken.items():
        if not events or events[0]["session_id"] != session.id:
            continue
        confirmed += len(confirmed_in(endpoint, key))
        for event in events:
            command = str(event.get("command_name", ""))
            if command:
                owner, number = command.split(":")
                assert f"s{owner}" == session.id, "delivered to another session"
                # A batch that the disk would not give back, or not let go of, is left for a
                # later life.
                assert int(number) > last_number or world.disk_failed, "out of order"
                last_number = int(number)
    assert books.delivered <= confirmed, (books, confirmed)
    if world.directory is None:
        assert books.pending == 0, books


def failure_of(wire: str, seed: int) -> str | None:
    """What is wrong with the worlds of *seed*, with a disk and without, with one destination
    and with two; None if nothing is.
    """
    # Thousands of worlds would print thousands of lines of the library's own.
    structlog.configure(processors=[_drop_line])
    for beside, has_disk in itertools.product((False, True), repeat=2):
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as directory:
            disk = pathlib.Path(directory) / "spool" if has_disk else None
            try:
                check(simulate(seed, disk, beside=beside, wire=WIRES[wire]))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the seed is wanted
                return f"seed {seed}, {disk=}, {beside=}, {wire=}: {error!r}"
    return None


def _drop_line(*_arguments: object) -> Any:
    raise structlog.DropEvent


def main(arguments: list[str]) -> int:
    """Run so many worlds, from the first seed on."""
    parser = argparse.ArgumentParser(prog="python tests/simulation.py", description=main.__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="default: %(default)s")
    parser.add_argument("first", type=int, nargs="?", default=random_seed())
    parser.add_argument("--wire", choices=WIRES, default="origin", help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.first, chosen.first + chosen.count)
    print(f"seeds {seeds[0]} to {seeds[-1]}")
    failures = 0
    with multiprocessing.get_context("spawn").Pool() as pool:
        run = partial(failure_of, chosen.wire)
        for failure in pool.imap_unordered(run, seeds, chunksize=50):
            if failure is not None:
                failures += 1
                print(failure)
    print(f"{chosen.count - failures} passed, {failures} failed")
    return 1 if failures else 0


def random_seed() -> int:
    """Where to begin when nobody says."""
    return int.from_bytes(os.urandom(4))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
