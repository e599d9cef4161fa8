"""A forked child has a copy of everything, and does nothing with it but count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
import trio.testing

import trimaran
from patience import PATIENCE, unmeasured
from trimaran._children import Children
from trimaran._live_session import LiveSession
from trimaran._process import ProcessListener
from trimaran._spool.lock import lives
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from children.conftest import Home

_Result = TypeVar("_Result")
HERE = Path(__file__).parent


async def at_once(call: Callable[[], _Result]) -> _Result:
    """Run what blocks right here: a virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return call()


@pytest.mark.parametrize("with_spool", [False, True])
def test_forks_of_a_program_whose_threads_track(
    with_spool: bool, home: Home, tmp_path: Path
) -> None:
    """No child hangs on a lock, wakes its parent up or sends what is the parent's; and the
    parent's books are exact.
    """
    spool = [str(tmp_path / "spool")] if with_spool else []
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", HERE / "forking.py", *spool],
        env=unmeasured(os.environ) | home.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr

    told = json.loads(ran.stdout)
    assert set(told["statuses"]) == {0}, ran.stderr
    assert told["tracked"] == told["delivered"] == told["expected"]
    assert told["from_children"] == 1
    assert (told["strays"], told["dropped"], told["told"]) == (0, {}, 0)
    if with_spool:
        assert list((tmp_path / "spool").glob("*.lock")) == []


OUTLIVED = """
import os, sys, time
import trio, trimaran
from trimaran.testing import ScriptedTransport

async def main():
    settings = trimaran.Settings(spool=trimaran.Spool(directory=sys.argv[1]))
    async with trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test", **os.environ},
        settings=settings,
        transport=ScriptedTransport([float("inf")]),
    ) as telemetry, telemetry.session() as session:
        environ = session.to_env({})
        session.error("now")
        while not session.statistics().spooled:
            await trio.sleep(0.01)
        if os.fork() == 0:
            time.sleep(100)
            os._exit(0)
        print(environ["TRIMARAN_PARENT"], flush=True)
        await trio.sleep(100)

trio.run(main)
"""


async def test_a_forked_child_does_not_stand_in_for_a_dead_parent(
    home: Home, tmp_path: Path
) -> None:
    """Neither for the lock of the spool nor for the socket: others see that it has died."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it says one line
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", OUTLIVED, tmp_path],
        env=unmeasured(os.environ) | home.environ,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        told = process.stdout.readline().decode()
        (lock,) = tmp_path.glob("*.lock")
        assert lives(tmp_path, lock.stem)
        process.kill()
        process.wait(PATIENCE)

        with trio.fail_after(PATIENCE):  # the forked child may not have run yet
            while lives(tmp_path, lock.stem):  # noqa: ASYNC110 - the kernel tells nobody
                await trio.sleep(0.01)
        direct = Capture()
        async with trimaran.attach(environ={"TRIMARAN_PARENT": told}, transport=direct) as session:
            session.error("later")
        assert session.statistics().delivered == 1
        assert len(direct.events()) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        for path in home.sockets():
            (home.directory / "trimaran" / path).unlink()


async def forget(_event: trimaran.Event, _place: object) -> None:
    """Takes everything."""
    await trio.lowlevel.checkpoint()


async def test_a_loop_that_goes_on_in_a_forked_child_lets_nobody_in(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken by who connects to the parent, finds its own copy closed, and tries no more."""
    woken = trio.Event()

    async def accept(_self: ProcessListener) -> trio.SocketStream:
        assert not woken.is_set(), "it would be tried for ever"
        await woken.wait()
        raise trio.ClosedResourceError

    monkeypatch.setattr(ProcessListener, "accept", accept)
    children = Children(
        "s",
        take=forget,
        refuse=lambda: None,
        is_withdrawn=lambda: False,
        diagnostics=None,  # type: ignore[arg-type]
        environ=home.environ,
        strict=True,
    )
    path = children.place()
    assert path is not None
    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(children.run)
                await trio.testing.wait_all_tasks_blocked()
                children.forked()
                woken.set()
    finally:
        path.unlink()


async def test_a_loop_that_goes_on_in_a_forked_child_sends_nothing(
    home: Home, capture: Capture, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Not the parent's events, nor through the parent's channel; and its disk is left alone.

    The copy is one in name only here: what runs in it is what would run in a forked child.
    """
    async with home.open(capture) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({})) as attached:
            assert isinstance(attached, LiveSession)
            attached._shared.routes[0].endpoint.forked()
            attached.error("stray")
        assert attached.statistics().dropped == {"drain_timeout": 1}

    async with trimaran.open_telemetry(
        "test",
        environ=home.environ,
        transport=capture,
        settings=trimaran.Settings(spool=trimaran.Spool(directory=str(tmp_path))),
        run_blocking=at_once,
    ) as copied:
        async with copied.session(session_id="copied", announce=False) as stray:
            stray.error("kept")
            await stray.flush()
            stray.error("stray")
            supervisor = copied._supervisor
            assert supervisor is not None
            supervisor.forked()
        async with copied.session() as opened_there:
            opened_there.error("stray")
        assert opened_there.statistics().dropped == {"closed": 1}
    assert stray.statistics().dropped == {"drain_timeout": 1}
    keeper = supervisor.shared.routes[0].keeper
    assert keeper is not None
    keeper._file.close()  # a forked child never does, and ends

    assert [event.error_name for event in capture.events(trimaran.ErrorEvent)] == ["kept"]
    assert home.sockets() == []
