"""Who starts a relay, who is too late, and what is in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

import trimaran
from conftest import LoopbackEndpoint
from patience import PATIENCE
from trimaran._process import ProcessListener, ProcessSendChannel, listening
from trimaran._relay.__main__ import main
from trimaran._relay.launch import LaunchError, launch
from trimaran._relay.messages import LISTENS
from trimaran._relay.orders import Orders, orders_of, words_of
from trimaran._relay.place import RelayPlace
from trimaran._relay.visit import end_relay, report_of
from trimaran._spool.lock import OwnerLock

from .test_agents import Relayed, say


def orders_for(directory: Path) -> Orders:
    """Those of an agent with nothing else in mind."""
    return orders_of(trimaran.Relay(directory=str(directory)), trimaran.Settings())


def test_one_who_is_too_late_ends_at_once(tmp_path: Path) -> None:
    """Also as a process: somebody has the lock, and nothing is touched, nothing said."""
    place = RelayPlace(tmp_path)
    lock = place.lock()
    assert lock is not None

    main(words_of(orders_for(tmp_path)))
    assert launch(orders_for(tmp_path)) is False

    assert {path.name for path in tmp_path.iterdir()} == {"relay.lock"}
    lock.release(remove=True)


def test_one_at_a_time_starts(tmp_path: Path) -> None:
    """Whoever else wants one waits for that."""
    turn = RelayPlace(tmp_path).starting()
    assert turn is not None

    assert launch(orders_for(tmp_path)) is False

    turn.release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that does not know itself; one that is none; words that it ends with."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "")
        with pytest.raises(LaunchError, match="of its own kind"):
            launch(orders_for(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(tmp_path / "missing"))
        with pytest.raises(LaunchError, match="missing"):
            launch(orders_for(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("trimaran._relay.launch.words_of", lambda _orders: ["nonsense"])
        with pytest.raises(LaunchError, match="JSONDecodeError"):
            launch(orders_for(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_what_is_said_is_no_failure_where_a_relay_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a warning of the interpreter's."""
    place, held = RelayPlace(tmp_path), list[OwnerLock | None]()

    def start(_orders: Orders) -> str:
        held.append(place.lock())
        return "a warning"

    monkeypatch.setattr("trimaran._relay.launch._start", start)

    assert launch(orders_for(tmp_path)) is True

    (lock,) = held
    assert lock is not None
    lock.release(remove=True)


def test_a_relay_is_started_without_what_is_its_agents_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in the environment would be there for as long as the relay is."""
    given: list[Mapping[str, str]] = []

    def run(
        words: list[str], *, env: Mapping[str, str], **_named: object
    ) -> subprocess.CompletedProcess[bytes]:
        given.append(env)
        return subprocess.CompletedProcess(words, 0, stderr=b"")

    monkeypatch.setenv("TEST_TOKEN", "s3same-0pen")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test")
    monkeypatch.setattr("trimaran._relay.launch.subprocess.run", run)

    assert launch(orders_for(tmp_path)) is True

    (environ,) = given
    assert "TEST_TOKEN" not in environ
    assert environ["HTTPS_PROXY"] == "http://proxy.test"


async def test_a_relay_that_ends_while_it_is_looked_at_is_none(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """It takes leave, and gives no report."""

    async def take_leave(listener: ProcessListener) -> None:
        stream = await listener.accept()
        assert await stream.receive_some(1) == LISTENS
        with ProcessSendChannel(stream) as line:
            await line.ask(b"")

    with listening("ends", os.environ) as listener:
        place = RelayPlace(tmp_path)
        place.announce(listener.path)
        nursery.start_soon(take_leave, listener)

        with trio.fail_after(PATIENCE):
            assert await report_of(place) is None


async def test_a_place_where_nobody_is_can_be_visited(tmp_path: Path) -> None:
    """There is no address, or one at which nobody listens any more."""
    place = RelayPlace(tmp_path)
    assert await report_of(place) is None

    place.announce(tmp_path / "nobody")

    assert await report_of(place) is None
    assert await end_relay(place) is False


async def test_an_end_is_waited_for(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Until the lock is free, which is the last thing that it lets go of."""
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    place = RelayPlace(relayed.directory)

    assert await end_relay(place) is True
    assert not place.is_held()
    await relayed.ended()


async def test_a_broken_file_stops_no_relay(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """It cannot take anything, and says so; the agent sends for itself."""
    relayed = Relayed(tmp_path / "relay", nursery)
    relayed.directory.mkdir(mode=0o700)
    (relayed.directory / "spool.db").write_text("no database" * 1000)
    await relayed.start()

    async with relayed.agent(endpoint.url) as telemetry:
        books = await say(telemetry, "s")

    assert books.delivered == 1
    assert "not a database" in (await relayed.report()).problem
