"""How long the disk is waited for, and when it is left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
import trio.testing

import trimaran
from patience import PATIENCE as VERY_LONG
from trimaran._spool.disk import PATIENCE, REST, Disk
from trimaran._spool.file import BUSY_TIMEOUT
from trimaran._spool.values import SpoolBusy, SpoolError
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_Result = TypeVar("_Result")


class Platter:
    """Runs calls one after the other, each in so many seconds; or is busy for as long."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.failure: SpoolError | None = None
        self.began: list[float] = []
        self._turn = trio.Lock()

    async def __call__(self, call: Callable[[], _Result], /) -> _Result:
        """Run *call*. A checkpoint."""
        async with self._turn:
            self.began.append(trio.current_time())
            await trio.sleep(self.seconds)
            if self.failure is not None:
                raise self.failure
            return call()


@pytest.fixture
def platter() -> Platter:
    """One that is well."""
    return Platter()


@pytest.fixture
def disk(platter: Platter) -> Disk:
    """What stands before the *platter*."""
    return Disk(platter, trio.current_time)


async def seconds_for(call: Callable[[], object], disk: Disk) -> tuple[float, object]:
    """How long *call* took, and what came of it."""
    began = trio.current_time()
    try:
        result: object = await disk.do_soon(call)
    except SpoolError as error:
        result = error
    return trio.current_time() - began, result


async def all_of(number: int, disk: Disk) -> list[tuple[float, object]]:
    """As :func:`seconds_for`, so many times at once; in the order in which they end."""
    ended: list[tuple[float, object]] = []

    async def one() -> None:
        ended.append(await seconds_for(lambda: "done", disk))

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
    return ended


async def test_one_waits_for_a_disk_that_is_busy_and_nobody_after_it(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """Those behind it go on when it does, and those who come later at once."""
    platter.seconds, platter.failure = 1.0, SpoolBusy("locked")

    ended = await all_of(20, disk)

    assert {round(seconds, 3) for seconds, _ in ended} == {1.0}
    assert {str(error) for _, error in ended} == {"locked"}
    assert len(platter.began) == 1
    await trio.sleep(REST / 2)
    seconds, error = await seconds_for(lambda: "done", disk)
    assert seconds == 0.0
    assert isinstance(error, SpoolBusy)
    assert len(platter.began) == 1


async def test_after_a_rest_one_tries_for_all(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """Until that one is through, the others do without; if it is well, all may again."""
    platter.seconds, platter.failure = 1.0, SpoolBusy("locked")
    await seconds_for(lambda: "done", disk)
    await trio.sleep(REST)

    ended = await all_of(20, disk)
    assert [seconds for seconds, _ in ended] == pytest.approx([0.0] * 19 + [1.0])
    assert len(platter.began) == 2

    await trio.sleep(REST)
    platter.failure = None
    assert (await all_of(3, disk))[-1][1] == "done"
    assert {result for _, result in await all_of(2, disk)} == {"done"}


async def test_a_disk_that_hangs_is_left_alone_and_so_is_who_waits_for_it(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """What it was doing is under way; what others wanted is not."""
    platter.seconds = 1000.0

    ended = await all_of(5, disk)

    assert {round(seconds, 3) for seconds, _ in ended} == {PATIENCE}
    under_way = [getattr(error, "is_under_way", None) for _, error in ended]
    assert sorted(under_way, key=bool) == [False] * 4 + [True]
    assert (await seconds_for(lambda: "done", disk))[0] == 0.0


async def test_nobody_waits_behind_what_may_take_long(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """As taking over a large spool may, which itself is waited for."""
    platter.seconds = 4.0
    done: list[str] = []

    async def long() -> None:
        done.append(await disk.do(lambda: "done"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(long)
        await trio.sleep(1)
        seconds, error = await seconds_for(lambda: "done", disk)
        assert seconds == pytest.approx(PATIENCE)
        assert isinstance(error, SpoolBusy)
        assert done == []
    assert done == ["done"]
    platter.seconds = 0.0
    await trio.sleep(REST)
    assert await seconds_for(lambda: "done", disk) == (0.0, "done")


async def test_a_disk_with_much_to_do_is_not_left_alone(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """Who waits for too long does without it, but it went on all the time."""
    platter.seconds = 0.4

    ended = await all_of(10, disk)

    assert max(seconds for seconds, _ in ended) < PATIENCE + platter.seconds
    assert [result for _, result in ended].count("done") == 4
    assert (await seconds_for(lambda: "done", disk))[1] == "done"


async def test_a_fault_that_shows_at_once_costs_no_rest(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """Such as a disk without room, which has some when something leaves it."""
    platter.failure = SpoolError("is full")
    with pytest.raises(SpoolError, match="is full"):
        await disk.do_soon(lambda: None)
    platter.failure = None

    assert await disk.do_soon(lambda: "done") == "done"


async def test_a_fault_at_once_ends_the_trouble(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """It shows that nothing is waited for any more: nobody needs to try for the others."""
    platter.failure = SpoolBusy("locked")
    await seconds_for(lambda: "done", disk)
    await trio.sleep(REST)
    platter.failure = SpoolError("is full")
    await seconds_for(lambda: "done", disk)
    platter.seconds, platter.failure = 0.1, None

    assert [result for _, result in await all_of(3, disk)] == ["done"] * 3


async def test_a_forked_child_never_gets_an_answer(
    disk: Disk, platter: Platter, autojump_clock: trio.testing.MockClock
) -> None:
    """The disk is its parent's."""
    disk.forked()

    with trio.move_on_after(1000) as scope:
        await disk.do(lambda: "done")

    assert scope.cancelled_caught
    assert platter.began == []


async def test_a_locked_file_costs_sessions_no_event(tmp_path: Path) -> None:
    """The way it runs for users: somebody holds the file, and the endpoint is well."""
    settings = trimaran.Settings(
        spool=trimaran.Spool(directory=str(tmp_path)), drain_timeout=VERY_LONG, strict=True
    )
    environ = {"TEST_TELEMETRY_URL": "https://x.test"}
    capture = Capture()

    async with trimaran.open_telemetry(
        "test", environ=environ, settings=settings, transport=capture
    ) as telemetry:
        async with telemetry.session(announce=False) as session:
            session.command("first")
    sessions: list[trimaran.Session] = []
    with closing(sqlite3.connect(tmp_path / "spool.db", isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        began = trio.current_time()
        async with trimaran.open_telemetry(
            "test", environ=environ, settings=settings, transport=capture
        ) as telemetry:
            for _ in range(60):
                async with telemetry.session() as session:
                    session.command("init")
                sessions.append(session)
        took = trio.current_time() - began

    assert {session.statistics().delivered for session in sessions} == {3}
    # One after the other they would have waited for a minute and more.
    assert took < 60 * BUSY_TIMEOUT / 2
