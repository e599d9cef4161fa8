"""The promises in worlds made of seeds; any seed that fails replays exactly."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimaran._pipeline.sender import Sender
from trimaran._spool.file import SpoolFile
from trimaran._spool.keeper import SpoolKeeper

if TYPE_CHECKING:
    from types import ModuleType

    from trimaran._pipeline.batch import Batch
    from trimaran._pipeline.ledger import DropReason


def _load(name: str) -> ModuleType:
    """A module that stands beside this file; the tests are no package."""
    spec = importlib.util.spec_from_file_location(
        name, pathlib.Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


simulation: Any = _load("simulation")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_in_any_world(seed: int) -> None:
    """After every step of every task the books add up, and at the end all the rest holds."""
    simulation.check(simulation.simulate(seed))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_with_a_disk_and_crashes(seed: int) -> None:
    """What was called safe reaches the endpoint in the life after, and is counted once."""
    with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
        simulation.check(simulation.simulate(seed, pathlib.Path(directory) / "spool"))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_for_each_of_two_destinations(seed: int) -> None:
    """With luck of its own each, and a full set of books."""
    simulation.check(simulation.simulate(seed, beside=True))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=0)
def test_the_promises_hold_for_each_of_two_destinations_with_a_disk_and_crashes(seed: int) -> None:
    """Each has its own place on the disk, and finds there what is its own."""
    with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
        disk = pathlib.Path(directory) / "spool"
        simulation.check(simulation.simulate(seed, disk, beside=True))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), beside=st.booleans(), has_disk=st.booleans())
@example(seed=0, beside=False, has_disk=False)
@example(seed=0, beside=False, has_disk=True)
@example(seed=0, beside=True, has_disk=True)
def test_the_promises_hold_over_otlp(seed: int, *, beside: bool, has_disk: bool) -> None:
    """With a disk and crashes or without, for the endpoint or a second destination: all that
    holds elsewhere, and whatever is sent again is the same spans.
    """
    with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
        disk = pathlib.Path(directory) / "spool" if has_disk else None
        wire = simulation.WIRES["otlp"]
        simulation.check(simulation.simulate(seed, disk, beside=beside, wire=wire))


@pytest.mark.parametrize("wire", simulation.WIRES)
def test_a_seed_replays_exactly(wire: str) -> None:
    """The same world twice: the same attempts, the same fates."""

    def run() -> object:
        with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
            disk = pathlib.Path(directory) / "spool"
            world = simulation.simulate(12345, disk, wire=simulation.WIRES[wire])
        return world.endpoint.attempts, [s.statistics() for s in world.sessions]

    assert run() == run()


@pytest.mark.parametrize("wire", simulation.WIRES)
def test_the_worlds_are_not_all_alike(wire: str) -> None:
    """Across a few seeds there are deliveries, retries, crashes and drops of most reasons."""
    reasons: set[str] = set()
    delivered = retries = checked = safe = 0
    for seed in range(60):
        with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
            disk = pathlib.Path(directory) / "spool"
            for place in (None, disk):
                world = simulation.simulate(seed, place, wire=simulation.WIRES[wire])
                checked += world.checked
                safe += len(world.safe)
                for session in world.sessions:
                    books = session.statistics()
                    reasons |= set(books.dropped)
                    delivered += books.delivered
                    retries += books.retries

    assert delivered > 100
    assert retries > 10
    assert safe > 10
    assert checked > 10_000
    assert reasons >= {
        "mailbox_full",
        "rejected",
        "drain_timeout",
        "encode_error",
        "retries_exhausted",
        "consent_withdrawn",
        "spool_full",
    }


def test_a_world_that_breaks_a_promise_is_told_with_its_seed() -> None:
    """The check can fail: an endpoint that forgets what it took is found out."""
    world = simulation.simulate(3)
    assert any(session.statistics().delivered for session in world.sessions)

    world.endpoint.taken.clear()

    with pytest.raises(AssertionError):
        simulation.check(world)


def test_spans_that_are_made_anew_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: another id at each attempt is found out."""
    numbers = itertools.count(1)
    monkeypatch.setattr(
        "trimaran.otlp.spans._Mapping._id_of", lambda *_given: f"{next(numbers):016x}"
    )
    worlds = [simulation.simulate(seed, wire=simulation.WIRES["otlp"]) for seed in range(20)]

    assert {wrong for world in worlds for wrong in world.endpoint.wrong} >= {
        "an event is another's span",
        "one key, two batches",
    }


def test_spans_that_are_taken_for_others_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: one id for all spans is found out."""
    monkeypatch.setattr("trimaran.otlp.spans._Mapping._id_of", lambda *_given: "1" * 16)
    world = simulation.simulate(5, wire=simulation.WIRES["otlp"])

    assert "one id, two spans" in world.endpoint.wrong
    with pytest.raises(AssertionError):
        simulation.check(world)


def _is_noticed(what: str) -> bool:
    """Whether some world of a few fails for that."""
    for seed in range(100):
        with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
            try:
                simulation.check(simulation.simulate(seed, pathlib.Path(directory) / "spool"))
            except AssertionError as error:
                if what in str(error):
                    return True
            except BaseExceptionGroup as errors:
                if what in str(errors.exceptions):
                    return True
    return False


def test_a_disk_that_keeps_what_was_withdrawn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a keeper that only says that it emptied the disk is found out."""

    async def says_so(_keeper: SpoolKeeper, _handed_by: str | None) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    monkeypatch.setattr(SpoolKeeper, "_withdraw", says_so)
    monkeypatch.setattr(SpoolFile, "withdraw", lambda _file: None)

    assert _is_noticed("on disk without consent")


def test_leftovers_that_are_lost_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a batch of an earlier life that leaves the disk as delivered, though
    it was given up, is found out.
    """
    drop = Sender._drop

    def delivered(sender: Sender, batch: Batch, reason: DropReason) -> bool:
        if batch.body is not None or batch.kept is None:
            return drop(sender, batch, reason)
        sender._ledger.deliver(batch.tracked)
        batch.kept.decided(batch.tracked)
        return True

    monkeypatch.setattr(Sender, "_drop", delivered)

    assert _is_noticed("Statistics(")


def test_what_was_safe_and_never_arrives_is_noticed() -> None:
    """The check can fail: an endpoint that forgets what came from the disk is found out."""
    found = 0
    for seed in range(30):
        with tempfile.TemporaryDirectory(dir=simulation.SHARED_MEMORY) as directory:
            world = simulation.simulate(seed, pathlib.Path(directory) / "spool")
        arrived = {
            key for _, key in world.safe.keys() - world.unbooked
        } & world.endpoint.taken.keys()
        # What the endpoint turned away at some time, or a life gave up, need not be there.
        arrived -= world.endpoint.turned_away
        if arrived and world.has_room and not world.dropped_later.get("endpoint"):
            for key in arrived:
                del world.endpoint.taken[key]
            with pytest.raises(AssertionError):
                simulation.check_safe(world, "endpoint", world.endpoint)
            found += 1

    assert found > 2
