"""A session whose socket somebody removed, as logging out does with all of a user's.

Parent and child are tasks of one process here, with a real socket between them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import trimaran
from patience import PATIENCE, status_of, untraced
from trimaran._endpoint import through_parent
from trimaran._environment import Parent, parent_in
from trimaran._process import ProcessSendChannel, connect

if TYPE_CHECKING:
    from children.conftest import Home
    from trimaran.testing import Capture

INIT = trimaran.Command(command_name="init")


def parent_of(session: trimaran.Session) -> Parent:
    """What the session's children are told."""
    parent = parent_in(session.to_env({}))
    assert parent is not None
    return parent


@pytest.mark.parametrize("with_its_directory", [False, True])
@pytest.mark.parametrize("in_a_thread", [False, True])
async def test_children_are_let_in_at_a_new_one(
    in_a_thread: bool, with_its_directory: bool, home: Home, capture: Capture
) -> None:
    """The next time that a child is to be started; who is connected goes on."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        before = session.to_env({})
        async with trimaran.attach(environ=before) as first:
            for _ in range(2):
                if with_its_directory:
                    shutil.rmtree(home.directory / "trimaran")
                else:
                    Path(str(parent_of(session).socket)).unlink()
                if in_a_thread:
                    environ = await trio.to_thread.run_sync(session.to_env, {})
                else:
                    environ = session.to_env({})
                assert environ == before
                assert len(home.sockets()) == 1
                async with trimaran.attach(environ=environ) as child:
                    child.track(INIT)
                assert child.statistics().delivered == 1
                first.track(INIT)
                assert await first.flush(timeout=PATIENCE)

    assert (session.statistics().from_children, first.statistics().delivered) == (4, 2)


async def test_who_was_about_to_come_in_comes_again(
    home: Home, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it hands over is in, over a connection to the new socket."""
    connected: list[Path] = []

    async def connect_in_vain_at_first(path: Path) -> trio.SocketStream:
        stream = await connect(path)
        if not connected:  # nobody had a turn to let it in
            path.unlink()
            session.to_env({})
        connected.append(path)
        return stream

    monkeypatch.setattr(through_parent, "connect", connect_in_vain_at_first)
    async with home.open(capture) as telemetry, telemetry.session() as session:
        environ = session.to_env({})
        await trio.testing.wait_all_tasks_blocked()
        async with trimaran.attach(environ=environ) as child:
            child.track(INIT)

    assert child.statistics().delivered == 1
    assert len(connected) == 2


async def test_without_a_place_for_a_new_one_children_are_told_of_none(
    home: Home, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once; as soon as there is a place again, they are told of that."""
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test", environ=home.environ, transport=capture, on_problem=problems.append
        ) as telemetry,
        telemetry.session() as session,
    ):
        place = Path(str(parent_of(session).socket))
        place.unlink()
        place.mkdir()
        for _ in range(2):
            assert parent_of(session).socket is None
        place.rmdir()
        assert parent_of(session).socket == str(place)

    assert [problem.name for problem in problems] == ["telemetry takes no children"]


async def test_before_its_stages_run_a_session_may_lose_its_socket_too(
    home: Home, capture: Capture
) -> None:
    """And with it is abandoned whatever it still had open."""
    async with home.open(capture) as telemetry:
        async with telemetry.session() as session:
            place = Path(str(parent_of(session).socket))
            place.unlink()
            assert parent_of(session).socket == str(place)
            assert len(home.sockets()) == 1

    assert home.sockets() == []


async def test_a_forked_child_lets_go_of_a_lost_one_as_well(home: Home, capture: Capture) -> None:
    """So that its parent's death is noticed; the parent is none the worse."""
    async with home.open(capture) as telemetry:
        async with telemetry.session() as session:
            place = Path(str(parent_of(session).socket))
            place.unlink()
            children = session._children  # type: ignore[attr-defined]
            assert children.place() == place
            (lost,) = children._lost
            with untraced():
                pid = os.fork()
            if pid == 0:
                os._exit(lost._socket.fileno() != -1 or children._listener._socket.fileno() != -1)
            assert await status_of(pid) == 0
            with ProcessSendChannel(await connect(place)):
                pass

    assert home.sockets() == []
