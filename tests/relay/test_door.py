"""Where agents find a relay: also when its socket is removed while it lives."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

import trimaran
from conftest import LoopbackEndpoint
from patience import PATIENCE
from process.pairs import short_directory
from trimaran._process import ProcessError, ProcessListener, connect
from trimaran._relay.door import Door
from trimaran._relay.messages import PROTOCOL, Hello, Welcome, answer_from, encoded
from trimaran._relay.place import RelayPlace
from trimaran.cli.relay import relay as command

from .test_agents import Relayed, say
from .world import until


@pytest.fixture
async def relayed(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> Relayed:
    """A relay that runs, and looks at its door often."""
    monkeypatch.setattr("trimaran._relay.door.LOOK_INTERVAL", 0.01)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    return relayed


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with short_directory() as path:
        yield path


@pytest.mark.parametrize("what", ["the socket", "the address"])
async def test_what_leads_to_it_may_be_removed(
    relayed: Relayed, endpoint: LoopbackEndpoint, what: str
) -> None:
    """It can be found again soon, by whoever comes; agents that were there notice nothing."""
    place = RelayPlace(relayed.directory)
    problems: list[trimaran.Problem] = []
    async with relayed.agent(endpoint.url, problems=problems) as before:
        await say(before, "first")
        address = place.address()
        assert address is not None
        gone = address if what == "the socket" else relayed.directory / "relay.at"
        gone.unlink()

        async with relayed.agent(endpoint.url, problems=problems) as after:
            books = await say(after, "new")
        await say(before, "second")

        assert books.handed_over == 1
        assert gone.is_symlink() or gone.is_socket()
        assert (await relayed.report()).agents == 1
    await until(lambda: {e["session_id"] for e in endpoint.events} == {"first", "new", "second"})
    assert problems == []


async def test_a_connection_outlives_the_socket_over_which_it_was_made(relayed: Relayed) -> None:
    """What is said over it is answered as before."""
    place = RelayPlace(relayed.directory)
    hello = Hello(protocol=PROTOCOL, agent="a", destination="anonymous http://127.0.0.1")
    async with relayed.speaking() as channel:
        address = place.address()
        assert address is not None
        address.unlink()
        await until(address.exists)

        assert isinstance(answer_from(await channel.ask(encoded(hello))), Welcome)


async def test_it_moves_where_the_directory_of_its_socket_is_gone(
    short: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``$XDG_RUNTIME_DIR`` is for who logged out: to the next place that there is."""
    monkeypatch.setattr("trimaran._relay.door.LOOK_INTERVAL", 0.01)
    environ = {}
    for number, variable in enumerate(("XDG_RUNTIME_DIR", "TMPDIR")):
        environ[variable] = str(short / str(number))
        (short / str(number)).mkdir()
    place, met = RelayPlace(short), list[trio.SocketStream]()

    async def meet(stream: trio.SocketStream) -> None:
        await trio.lowlevel.checkpoint()
        met.append(stream)

    with Door(place, environ) as door:
        assert place.address() == short / "0" / "trimaran" / f"{os.getpid()}.relay"
        async with trio.open_nursery() as receiving:
            receiving.start_soon(partial(door.receive, meet, connections=nursery))
            shutil.rmtree(short / "0")
            there = short / "1" / f"trimaran-{os.geteuid()}" / f"{os.getpid()}.relay"
            await until(lambda: place.address() == there)
            async with await connect(there):
                await until(lambda: len(met) == 1)
            receiving.cancel_scope.cancel()

    await met[0].aclose()
    assert place.address() is None
    assert not there.exists()


async def test_without_a_place_for_another_socket_it_ends(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """Its whole directory was removed: it leaves that to the next one."""
    async with relayed.agent(endpoint.url) as telemetry:
        await say(telemetry, "s")
        shutil.rmtree(relayed.directory)
        await relayed.ended()

    assert not relayed.directory.exists()


async def test_where_somebody_else_is_the_relay_it_ends(relayed: Relayed) -> None:
    """As when its lock was removed, and somebody got another one. That one's address stays."""
    place = RelayPlace(relayed.directory)
    place.announce(Path("/somebody/else"))

    await relayed.ended()

    assert place.address() == Path("/somebody/else")


@pytest.mark.parametrize(
    ("number", "is_survived"), [(errno.EMFILE, True), (errno.ENOBUFS, True), (errno.EIO, False)]
)
async def test_without_descriptors_an_agent_is_let_in_later(
    short: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, is_survived: bool
) -> None:
    """What else goes wrong there is a bug, and comes out."""
    place, accept, failed = RelayPlace(short), ProcessListener.accept, list[int]()

    async def failing(listener: ProcessListener) -> trio.SocketStream:
        if len(failed) < 2:
            await trio.lowlevel.checkpoint()
            failed.append(number)
            raise OSError(number, os.strerror(number))
        return await accept(listener)

    monkeypatch.setattr(ProcessListener, "accept", failing)
    with Door(place, {"XDG_RUNTIME_DIR": str(short)}) as door:
        address = place.address()
        assert address is not None
        met = trio.Event()

        async def meet(stream: trio.SocketStream) -> None:
            await stream.aclose()
            met.set()

        async def let_in() -> None:
            async with trio.open_nursery() as connections:
                connections.start_soon(partial(door.receive, meet, connections=connections))
                async with await connect(address):
                    await met.wait()
                connections.cancel_scope.cancel()

        with trio.fail_after(PATIENCE):
            if is_survived:
                await let_in()
            else:
                with pytest.RaisesGroup(OSError, flatten_subgroups=True):
                    await let_in()

    assert len(failed) == (2 if is_survived else 1)


def test_a_door_that_cannot_be_announced_is_none(short: Path) -> None:
    """Its directory is gone, or there is no place for its socket: no socket is left."""
    environ = {"XDG_RUNTIME_DIR": str(short)}
    with pytest.raises(FileNotFoundError):
        Door(RelayPlace(short / "missing"), environ)
    assert list((short / "trimaran").iterdir()) == []

    (short / "trimaran" / f"{os.getpid()}.relay").mkdir()
    with pytest.raises(ProcessError, match="cannot listen"):
        Door(RelayPlace(short), environ)


def test_a_relay_that_does_not_answer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its process: it has the lock, so it lives, and its user has to end it."""
    monkeypatch.setattr("trimaran.cli.relay._PATIENCE", 0.1)
    place, words = RelayPlace(tmp_path), ["--directory", str(tmp_path)]
    lock = place.lock()
    assert lock is not None
    try:
        assert command.main(["status", *words], standalone_mode=False) == 1
        assert command.main(["stop", *words], standalone_mode=False) == 1
        said = capsys.readouterr()
        is_there = f"A relay (pid {os.getpid()}) is there for {tmp_path}, and does not answer.\n"
        assert said.out == is_there
        assert said.err.endswith(
            f"the relay (pid {os.getpid()}) for {tmp_path} does not end; kill it\n"
        )
        with pytest.raises(Exception, match=rf"\(pid {os.getpid()}\), and it cannot be reached"):
            command.main(words, standalone_mode=False)

        (tmp_path / "relay.lock").write_text("")  # the disk did not take it
        assert command.main(["status", *words], standalone_mode=False) == 1
        assert capsys.readouterr().out.startswith("A relay is there for ")
    finally:
        lock.release(remove=True)
    assert command.main(["stop", *words], standalone_mode=False) == 0


def test_a_place_that_cannot_be_looked_at_is_said(tmp_path: Path) -> None:
    """A file where the directory would be."""
    (tmp_path / "taken").write_text("")

    for what in ("status", "stop"):
        with pytest.raises(Exception, match=r"no relay can be here: .*Not a directory"):
            command.main(
                [what, "--directory", str(tmp_path / "taken")],
                standalone_mode=False,
            )
