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
from trimaran._relay.launch import LaunchError, NoInterpreterError, launch
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


def script(path: Path, does: str) -> Path:
    """A program that says that it was started, in a file of its own, and *does* something."""
    path.write_text(f"#!/bin/sh\necho started >> {path}.log\n{does}\n")
    path.chmod(0o755)
    return path


def starts_of(program: Path) -> int:
    """How often it was started."""
    log = Path(f"{program}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_frozen_program_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its executable is the program itself, not Python."""
    program = script(tmp_path / "program", "exit 0")
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys, "frozen", True, raising=False)

    with pytest.raises(LaunchError, match="frozen") as caught:
        launch(orders_for(tmp_path / "relay"))

    assert not isinstance(caught.value, NoInterpreterError), "a relay of others may come"
    assert starts_of(program) == 0


@pytest.mark.parametrize("does", ["exit 0", "echo no >&2; exit 2", "echo hello"])
def test_what_is_no_interpreter_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """It does not say the word."""
    program = script(tmp_path / "program", does)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("trimaran._relay.launch._PATIENCE", PATIENCE)

    with pytest.raises(NoInterpreterError, match="program is no interpreter"):
        launch(orders_for(tmp_path / "relay"))

    assert starts_of(program) == 1
    assert list((tmp_path / "relay").iterdir()) == []


@pytest.mark.parametrize(("said", "is_one"), [(b"python", True), (b"hello", False), (None, False)])
def test_what_stays_is_an_interpreter_if_it_has_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes | None, *, is_one: bool
) -> None:
    """It hangs, and may have better luck the next time; what it said until it was ended counts."""

    def run(
        words: list[str], *, timeout: float, **_named: object
    ) -> subprocess.CompletedProcess[bytes]:
        raise subprocess.TimeoutExpired(words, timeout, output=said)

    monkeypatch.setattr("trimaran._relay.launch.subprocess.run", run)

    with pytest.raises(LaunchError, match="timed out" if is_one else "no interpreter") as caught:
        launch(orders_for(tmp_path / "relay"))

    assert isinstance(caught.value, NoInterpreterError) != is_one
    assert list((tmp_path / "relay").iterdir()) == []


def test_an_interpreter_that_is_killed_is_still_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have better luck the next time."""
    monkeypatch.setattr("trimaran._relay.launch._PATIENCE", PATIENCE)
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "killed", "kill -9 $$")))

    assert launch(orders_for(tmp_path / "relay")) is True


async def test_what_is_no_interpreter_is_started_once(
    tmp_path: Path, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its agent looks for a relay; one that somebody else starts is taken."""
    program = script(tmp_path / "program", "exit 0")
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("trimaran._relay.client.UNAVAILABLE_FOR", 0.0)
    async with trio.open_nursery() as nursery:
        relayed = Relayed(tmp_path / "relay", nursery)
        async with relayed.agent(endpoint.url, starts=launch) as telemetry:
            alone = [await say(telemetry, f"s{number}") for number in range(3)]
            await relayed.start()
            joined = await say(telemetry, "joined")
        nursery.cancel_scope.cancel()

    assert [books.delivered for books in alone] == [1, 1, 1]
    assert joined.handed_over == 1
    assert starts_of(program) == 1


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
        return subprocess.CompletedProcess(words, 0, stdout=b"python", stderr=b"")

    monkeypatch.setenv("TEST_TOKEN", "s3same-0pen")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test")
    monkeypatch.setattr("trimaran._relay.launch.subprocess.run", run)

    assert launch(orders_for(tmp_path)) is True

    (environ,) = given
    assert "TEST_TOKEN" not in environ
    assert environ["HTTPS_PROXY"] == "http://proxy.test"


async def test_an_agent_meets_its_relay_before_it_has_anything_to_say(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """It starts one with its telemetry, in the background: there is none to wait for later."""
    relayed, started = Relayed(tmp_path / "relay", nursery), trio.Event()

    def start(_orders: Orders) -> bool:
        trio.from_thread.run_sync(started.set)
        return True

    async with relayed.agent(endpoint.url, starts=start):
        with trio.fail_after(PATIENCE):
            await started.wait()
            await relayed.start()
            while (await relayed.report()).agents == 0:  # noqa: ASYNC110 - the relay is asked
                await trio.sleep(0.01)

    assert endpoint.requests == []


async def test_nobody_waits_for_a_relay_that_has_nothing_to_take(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent leaves while it is still looked for; that none can be had is told with the
    first batch that wants one.
    """
    monkeypatch.setattr("trimaran._relay.client.PATIENCE", 100 * PATIENCE)
    relayed, asked = Relayed(tmp_path / "relay", nursery), trio.Event()

    def start(_orders: Orders) -> bool:
        trio.from_thread.run_sync(asked.set)
        return False

    def fail(_orders: Orders) -> bool:
        raise LaunchError("there is no room")

    with trio.fail_after(PATIENCE):
        async with relayed.agent(endpoint.url, starts=start, drain_timeout=100 * PATIENCE):
            await asked.wait()

    problems: list[trimaran.Problem] = []
    async with relayed.agent(endpoint.url, starts=fail, problems=problems) as telemetry:
        await trio.sleep(0.1)
        assert problems == []
        books = await say(telemetry, "s")
    assert books.delivered == 1
    assert [problem.facts["reason"] for problem in problems] == ["there is no room"]


async def test_without_consent_no_relay_is_started(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """Neither with the telemetry nor with an event."""
    relayed, starts = Relayed(tmp_path / "relay", nursery), list[Orders]()

    def start(orders: Orders) -> bool:
        starts.append(orders)
        return False

    async with relayed.agent(endpoint.url, starts=start, consent=lambda: False) as telemetry:
        await trio.sleep(0.1)
        books = await say(telemetry, "s")

    assert books.dropped == {"consent_withdrawn": 1}
    assert starts == []


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
