"""Agents and their relay in a world made of one seed: everything goes wrong, at any step.

In: a seed. Out: what agents were told, what the endpoint got, what is on disk. The books are
checked after every single step of every task.

A world has one endpoint, one place for a relay and several agents, all in one run of trio, as
processes that can be killed (see simulated_processes.py). Whichever agent needs a relay starts
one. When all agents are gone everything goes well: an agent of each account comes, and what
is on disk then has to be delivered.
"""

from __future__ import annotations

import math
import multiprocessing
import pathlib
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import msgspec
import structlog
import trio

import trimaran
from relay_world import (
    ACCOUNTS,
    Agent,
    ChecksEverything,
    Login,
    RelayWorld,
    relays_start_in,
    watched,
    wholes_of,
)
from simulated_endpoint import SimulatedEndpoint
from simulated_processes import Process, kernel
from simulation import (
    DRAIN,
    SHARED_MEMORY,
    Frozen,
    World,
    act,
    in_a_seeded_run,
    random_seed,
    settings_of,
)
from trimaran._pipeline.ledger import DropReason
from trimaran._relay.visit import end_relay

SLACK = 0.2
"""Seconds by which an agent may miss its deadline."""
HEALTHY_FOR = 100_000.0
"""Seconds in which a world without trouble has to come to its end."""


def simulate(seed: int, folder: pathlib.Path) -> RelayWorld:
    """Run the world of *seed* to its end, in an empty *folder*."""
    random = Random(seed)
    world = RelayWorld(
        random,
        SimulatedEndpoint(random),
        directory=folder / "spool" if random.random() < 0.3 else None,
        has_room=random.random() < 0.8,
        disk_trouble=random.choice([0.0, 0.0, 0.1]),
        folder=folder,
        relay=trimaran.Relay(
            directory=str(folder / "relay"),
            idle_timeout=random.choice([0.2, 5.0, 30.0]),
            most_bytes=random.choice([3_000, 10_000_000, 10_000_000]),
            most_seconds=random.choice([20.0, 604_800.0, 604_800.0]),
            survives=random.choice(["kill", "power_loss"]),
        ),
    )
    instrument = ChecksEverything(world)
    send_room = random.choice([2_048, 131_072])
    with kernel(send_room=send_room), watched(world):
        in_a_seeded_run(partial(_run, world, instrument), seed, instrument)
    world.checked = instrument.checked
    assert instrument.failed == [], instrument.failed[0]
    assert instrument.wrong == [], instrument.wrong[0]
    return world


async def _run(world: RelayWorld, instrument: ChecksEverything) -> None:
    random = world.random
    async with trio.open_nursery() as processes:
        with relays_start_in(processes, world):
            async with trio.open_nursery() as troubles:
                troubles.start_soon(_make_trouble, world)
                async with trio.open_nursery() as agents:
                    for number in range(random.choice([1, 2, 5])):
                        agents.start_soon(_agents, world, instrument, f"a{number}")
                troubles.cancel_scope.cancel()
            world.is_well, world.endpoint.trouble = True, 0.0
            with trio.fail_after(HEALTHY_FOR):
                await _end_well(world, instrument, "last")
                if world.disk_trouble:  # what did not say that it was there then is left
                    await _end_well(world, instrument, "very-last")


async def _end_well(world: RelayWorld, instrument: ChecksEverything, name: str) -> None:
    """Let an agent of each account come, with what is needed, and wait until all is done."""
    async with trio.open_nursery() as agents:
        for account in ACCOUNTS:
            last = Agent(world, f"{name}{account}", account)
            agents.start_soon(last.run, partial(_live, world, instrument, last))
    while not all(relay.is_over for relay in world.relays):  # noqa: ASYNC110 - no event tells
        await trio.sleep(10)


async def _agents(world: RelayWorld, instrument: ChecksEverything, name: str) -> None:
    """One agent after the other, of one account, on one machine."""
    random = world.random
    account = random.choice(ACCOUNTS)
    for life in range(random.choice([1, 2])):
        await trio.sleep(random.choice([0, 0, 0.1, 5, 40]))
        agent = Agent(
            world,
            f"{name}.{life}",
            account,
            dies_at=random.randrange(random.choice([30, 600])) + 1
            if random.random() < 0.25
            else math.inf,
            disk_trouble=world.disk_trouble,
        )
        await agent.run(partial(_live, world, instrument, agent))


async def _live(world: RelayWorld, instrument: ChecksEverything, agent: Agent) -> None:
    """The life of one agent; under *world.is_well* it does little, and without haste."""
    random = world.random
    left = math.nan

    def freeze() -> None:
        world.sessions.extend(Frozen(each.id, each.statistics()) for each in agent.sessions)
        if agent.telemetry is not None:  # it got as far as that
            said = sum(each.statistics().handed_over for each in agent.sessions)
            said += agent.telemetry.leftovers().handed_over
            assert said == agent.handed_over, f"{agent}: {said} != {agent.handed_over}"
        for session in agent.sessions:
            instrument.sessions.remove(session)
        agent.sessions.clear()

    def die() -> None:
        world.seen["agent killed"] += 1
        freeze()

    agent.dies = die
    settings = msgspec.structs.replace(
        settings_of(world),
        relay=world.relay,
        drain_timeout=random.choice([0.5, DRAIN]),
        unauthorized_interval=random.choice([1.0, 60.0]),
    )

    async def session_of(number: int) -> None:
        assert agent.telemetry is not None
        name = f"{agent.name}.{number}"
        await trio.sleep(random.choice([0, 0.01, 2]))
        with trio.move_on_after(random.choice([0.0, 0.5, 5, 60])):
            async with agent.telemetry.session(session_id=f"s{name}") as session:
                agent.sessions.append(session)
                instrument.sessions.append(session)
                for action in range(random.choice([0, 3, 12])):
                    await act(random, session, f"{name}:{action}")

    async def work() -> None:
        assert agent.telemetry is not None
        if world.is_well:
            async with agent.telemetry.session(session_id=f"s{agent.name}") as session:
                agent.sessions.append(session)
                instrument.sessions.append(session)
                await trio.sleep(1_000)
            return
        async with trio.open_nursery() as nursery:
            for number in range(random.choice([1, 2, 3])):
                nursery.start_soon(session_of, number)
            if random.random() < 0.2:
                await trio.sleep(random.choice([0, 0.5, 3]))
                agent.environ["DO_NOT_TRACK"] = "1"

    with trio.move_on_after(math.inf if world.is_well else random.choice([0.0, 4, 40, 400])):
        async with trimaran.open_telemetry(
            "sim",
            account=Login(world, agent.account) if agent.account else None,
            environ=agent.environ,
            settings=settings,
            random=random,
            wall_clock=world.wall_clock,
            new_id=world.new_id,
        ) as agent.telemetry:
            try:
                await work()
            finally:
                left = trio.current_time()
    if not agent.is_dead:
        if not math.isnan(left):
            took = trio.current_time() - left
            if took > settings.drain_timeout + SLACK:
                world.overdue.append(f"{agent}: {took} s")
        freeze()
        if agent.client is not None and "DO_NOT_TRACK" in agent.environ:
            world.seen["withdrawn"] += 1
            if not agent.client._has_handed_over:  # the relay was told of all that it has
                mine = agent.client._agent
                world.withdrawn |= {(mine, key) for key in world.taken_of.get(mine, ())}


async def _make_trouble(world: RelayWorld) -> None:
    """Let things happen to the endpoint, the relay and the accounts, for as long as it takes."""
    random = world.random
    world.endpoint.trouble = random.choice([0.0, 0.2, 0.9, 1.0])
    while True:
        await trio.sleep(random.choice([0.01, 0.1, 1, 5, 20]))
        relay = world.relays[-1] if world.relays else None
        match random.randrange(8):
            case 0 | 1:
                world.endpoint.trouble = random.choice([0.0, 0.2, 0.9, 1.0])
            case 2 if relay is not None:
                relay.kill()
            case 3 if relay is not None and not relay.is_over:
                world.seen["relay terminated"] += 1
                relay.terminate()
            case 4:
                await Process("person", random=random).run(partial(_stop_relay, world))
            case 5 | 6:
                world.tokens[random.choice(ACCOUNTS[1:])] += 1
            case 7 if relay is not None and not relay.is_over:
                address = world.place.address()
                if address is not None and address.exists():
                    world.seen["socket removed"] += 1
                    address.unlink()
            case _:
                pass


async def _stop_relay(world: RelayWorld) -> None:
    with trio.move_on_after(30):
        world.seen["relay stopped"] += await end_relay(world.place)


def check(world: RelayWorld) -> None:
    """What must hold at the end of any world."""
    assert world.endpoint.wrong == [], world.endpoint.wrong
    assert world.overdue == [], world.overdue
    _check_fates(world)
    _check_what_was_acknowledged(world)
    _check_order(world)
    _check_books(world)
    _check_what_is_left(world)


def _check_fates(world: RelayWorld) -> None:
    """A relay gives up what is refused, taken back or too old, and nothing to make room."""
    allowed = {DropReason.REJECTED, DropReason.TOO_LARGE, DropReason.CONSENT_WITHDRAWN}
    if world.relay.most_seconds < HEALTHY_FOR:
        allowed |= {DropReason.EXPIRED, DropReason.RETRIES_EXHAUSTED, DropReason.UNAUTHORIZED}
    assert set(world.given_up.values()) <= allowed, world.given_up


def _check_what_was_acknowledged(world: RelayWorld) -> None:
    parts: dict[str, list[str]] = {}
    for key in world.endpoint.taken:
        for whole in wholes_of(key):
            parts.setdefault(whole, []).append(key)
    for key, batch in world.acknowledged.items():
        sent = Counter(_names_in(msgspec.json.decode(batch.body)["events"]))
        got: Counter[bytes] = Counter()
        for part in parts.get(key, ()):
            got.update(_names_in(world.endpoint.taken[part]))
        assert got <= sent, f"{key} arrived more than once"
        if got != sent:
            fates = [why for gone, why in world.given_up.items() if key in wholes_of(gone)]
            assert fates or key in world.taken_back, f"{key} was acknowledged, and is lost"


def _names_in(events: Sequence[dict[str, object]]) -> list[bytes]:
    return [msgspec.json.encode(event) for event in events]


def _check_order(world: RelayWorld) -> None:
    """Of what a session handed over. What it had to send by itself may overtake that, and a
    batch that the disk would not give back is left for a later relay.
    """
    last: dict[object, int] = {}
    if world.disk_trouble:
        return
    for key, events in world.endpoint.taken.items():
        wholes = wholes_of(key)
        if world.sent_directly.isdisjoint(wholes) and any(w in world.acknowledged for w in wholes):
            for event in events:
                owner, _, number = str(event.get("command_name", "")).rpartition(":")
                if owner:
                    assert f"s{owner}" == event["session_id"], "delivered to another session"
                    assert int(number) > last.get(owner, -1), f"{key} is out of order"
                    last[owner] = int(number)


def _check_books(world: RelayWorld) -> None:
    for session in world.sessions:
        books = session.statistics()
        assert "bug" not in books.dropped, books


def _check_what_is_left(world: RelayWorld) -> None:
    assert world.on_disk() == {}
    relay = World(world.random, world.endpoint, world.folder / "relay")
    assert relay.on_disk() == {}, "left on the relay's disk"
    for path in world.folder.rglob("*"):
        assert path.name not in {"relay.at", "relay.lock", "start.lock"}, path
        assert not path.is_socket(), path
    world.check_for_tokens()


def failure_of(seed: int) -> str | None:
    """What is wrong with the world of *seed*; None if nothing is."""
    structlog.configure(processors=[_drop_line])
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        try:
            check(simulate(seed, pathlib.Path(folder)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the seed is wanted
            return f"seed {seed}: {error!r}"
    return None


def _drop_line(*_arguments: object) -> Any:
    raise structlog.DropEvent


def main(arguments: list[str]) -> int:
    """``python tests/relay_simulation.py COUNT [FIRST [PROCESSES]]``: so many worlds."""
    count = int(arguments[0]) if arguments else 1000
    first = int(arguments[1]) if len(arguments) > 1 else random_seed()
    processes = int(arguments[2]) if len(arguments) > 2 else None
    print(f"seeds {first} to {first + count - 1}")
    failures = 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for failure in pool.imap_unordered(failure_of, range(first, first + count), chunksize=10):
            if failure is not None:
                failures += 1
                print(failure, flush=True)
    print(f"{count - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
