"""Processes that the demonstration starts: none of them is left, whatever it does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
import trio.testing

from trimaran.cli.demo_child import Child, Lines, started

PATIENCE = 0.2
"""Seconds that a process has to end, where it will not."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that children can run, to be written."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "child.py"


async def test_ends_when_its_input_does(module: Path) -> None:
    """And gives its lines before, however many came at once."""
    module.write_text("import sys\nprint('one\\ntwo', flush=True)\nsys.stdin.read()\n")
    async with started("child", environ=os.environ, patience=60) as child:
        assert [await child.lines.next(), await child.lines.next()] == [b"one", b"two"]

    assert await child.wait() == 0


async def test_is_killed_when_it_does_not_end(module: Path) -> None:
    """Neither when its input ends nor by a SIGTERM, which it has after an exception alone; a
    full pipe does not hold it up.
    """
    module.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'x' * 100_000))\n"
        "print(flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    begun: list[Child] = []

    async def fail() -> None:
        async with started("child", environ=os.environ, patience=PATIENCE) as child:
            await child.lines.next()
            begun.append(child)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await begun[0].wait() == -signal.SIGKILL


async def test_a_terminals_ctrl_c_is_not_for_it(module: Path) -> None:
    """It has no terminal: who started it ends it in order."""
    module.write_text("import sys\nsys.stdin.read()\n")
    async with started("child", environ=os.environ, patience=60) as child:
        assert os.getsid(child.pid) == child.pid


async def test_a_line_that_is_waited_for_in_vain_is_not_lost() -> None:
    """What came of it before the wait was cancelled is there when the rest comes."""
    send, receive = trio.testing.memory_stream_one_way_pair()
    lines = Lines(receive)
    await send.send_all(b"ha")
    with trio.move_on_after(0.01):
        await lines.next()
    await send.send_all(b"lf\nwhole\nno line")
    await send.aclose()

    assert [await lines.next(), await lines.next(), await lines.next()] == [
        *(b"half", b"whole", None),
    ]
