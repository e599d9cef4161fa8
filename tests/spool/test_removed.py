"""Somebody removes the spool's files while they are in use: nothing there is called safe."""

from __future__ import annotations

import math
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest
import structlog
import trio

import trimaran
from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._spool.file import SpoolFile
from trimaran._spool.keeper import SpoolKeeper
from trimaran._spool.values import SpoolError
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import trio.testing

_Result = TypeVar("_Result")

DOWN = trimaran.TransportError("down")


async def at_once(call: Callable[[], _Result], /) -> _Result:
    """Run what blocks right here: a virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return call()


def opened(
    directory: Path, transport: trimaran.Transport
) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A telemetry whose spool lies in *directory*."""
    return trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test"},
        transport=transport,
        settings=trimaran.Settings(spool=trimaran.Spool(directory=str(directory)), strict=True),
        run_blocking=at_once,
    )


def rows(directory: Path) -> list[str]:
    """The keys on disk."""
    with closing(sqlite3.connect(directory / "spool.db")) as database:
        return [key for (key,) in database.execute("SELECT key FROM batches ORDER BY position")]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    """A hold on a queue below the temporary directory."""
    made = SpoolFile(
        tmp_path / "state",
        owner="me",
        destination="anonymous https://x.test",
        most_bytes=10_000,
        most_seconds=1000.0,
        survives="kill",
        wall_clock=lambda: 5000.0,
    )
    yield made
    made.close()


@pytest.mark.parametrize("whole", [True, False])
async def test_only_what_a_later_process_finds_is_called_safe(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, *, whole: bool
) -> None:
    """The directory is removed, or the files in it; what comes after that is in new ones."""
    state = tmp_path / "state"
    with structlog.testing.capture_logs() as logs:
        async with opened(state, ScriptedTransport([math.inf])) as telemetry:
            async with telemetry.session(announce=False) as session:
                session.command("before")
                await session.flush(timeout=1)
                assert session.statistics().spooled == 1
                if whole:
                    shutil.rmtree(state)
                else:
                    for path in state.iterdir():
                        path.unlink()
                for number in range(5):
                    session.command("after")
                    flushed = await session.flush(timeout=1)
                    assert (flushed.pending, flushed.spooled) == (2 + number, 1 + number)

    books = session.statistics()
    assert (books.pending, books.spooled, books.dropped) == (5, 5, {"drain_timeout": 1})
    assert [line["error"] for line in logs if line["event"] == "telemetry spool failed"] == [
        "somebody removed its file"
    ]
    async with opened(state, Capture()) as later:
        await trio.sleep(1)
    assert later.leftovers().delivered == 5


async def test_what_is_in_memory_is_delivered_all_the_same(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The endpoint comes back after the file has gone."""
    state = tmp_path / "state"
    capture = Capture([DOWN] * 3)
    async with opened(state, capture) as telemetry:
        async with telemetry.session() as session:
            session.command("before")
            await session.flush(timeout=0.1)
            shutil.rmtree(state)
            session.command("after")
            assert await session.flush(timeout=100)

    assert session.statistics().delivered == 4
    assert rows(state) == []


async def test_a_removal_right_before_the_end_is_found_out(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing was put after it: the last look at the file is that of who closes it."""
    state = tmp_path / "state"
    async with opened(state, ScriptedTransport([math.inf])) as telemetry:
        async with telemetry.session(announce=False) as session:
            session.command("before")
            await session.flush(timeout=1)
            shutil.rmtree(state)

    books = session.statistics()
    assert (books.pending, books.spooled, books.dropped) == (0, 0, {"drain_timeout": 1})
    assert not state.exists()


async def test_what_was_on_disk_alone_is_dropped(file: SpoolFile, tmp_path: Path) -> None:
    """As what a person has cleared from there; its keeper finds out when it wants to read it."""
    keeper = SpoolKeeper(
        file, run=at_once, now=trio.current_time, diagnostics=Diagnostics(trio.current_time)
    )
    books = Ledger()
    books.track(4)
    first, second = await keeper.keep(
        [Batch(key=key, body=b"{}", events=2) for key in ("a", "b")], books
    )
    shutil.rmtree(tmp_path / "state")

    assert await keeper.body_of(msgspec.structs.replace(first, body=None)) is None
    assert await keeper.body_of(second) == b"{}"

    statistics = books.statistics()
    assert (statistics.pending, statistics.spooled) == (2, 0)
    assert statistics.dropped == {"consent_withdrawn": 2}
    await keeper.aclose()


@pytest.mark.parametrize("at_the_end", [True, False])
async def test_what_stayed_there_for_a_later_process_is_dropped(
    file: SpoolFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, at_the_end: bool
) -> None:
    """It could not be read, and its session is over: nobody else would ever book it."""
    keeper = SpoolKeeper(
        file, run=at_once, now=trio.current_time, diagnostics=Diagnostics(trio.current_time)
    )
    books = Ledger()
    books.track(2)
    [batch] = await keeper.keep([Batch(key="a", body=b"{}", events=2)], books)

    def fail(_file: SpoolFile, _key: str) -> bytes:
        raise SpoolError("it is broken")

    with monkeypatch.context() as patched:
        patched.setattr(SpoolFile, "read", fail)
        assert await keeper.body_of(msgspec.structs.replace(batch, body=None)) is None
    books.close(DropReason.DRAIN_TIMEOUT)
    assert (books.pending, books.spooled) == (2, 2)
    shutil.rmtree(tmp_path / "state")
    if not at_the_end:
        await keeper.keep([Batch(key="later", body=b"{}", events=1)], Ledger())
        assert (books.pending, books.spooled) == (0, 0)
    await keeper.aclose()

    statistics = books.statistics()
    assert (statistics.pending, statistics.spooled) == (0, 0)
    assert statistics.dropped == {"consent_withdrawn": 2}


async def test_what_goes_on_from_memory_is_taken_back_as_what_is_on_disk(
    file: SpoolFile, tmp_path: Path
) -> None:
    """By whoever handed it over, also after the removal; until its fate is known."""
    keeper = SpoolKeeper(
        file, run=at_once, now=trio.current_time, diagnostics=Diagnostics(trio.current_time)
    )
    books = Ledger()
    books.track(5)
    hands = {"sent": "me", "waits": "me", "done": "me", "read": "me", "theirs": "them"}
    batches = {
        batch.key: batch
        for batch in await keeper.keep(
            [Batch(key=key, body=b"{}", events=1, handed_by=hands[key]) for key in hands], books
        )
    }
    places = {key: batch.kept for key, batch in batches.items() if batch.kept is not None}
    assert await keeper.body_of(batches["sent"]) == b"{}"
    shutil.rmtree(tmp_path / "state")
    await keeper.keep([Batch(key="later", body=b"{}", events=1, handed_by="them")], Ledger())
    await keeper.remove(batches["done"])
    assert await keeper.body_of(msgspec.structs.replace(batches["read"], body=None)) is None

    assert await keeper.withdraw_of("me")

    assert [key for key, kept in places.items() if kept.is_withdrawn] == ["sent", "waits"]
    assert await keeper.also_handed_by("heir", ["theirs"])
    assert await keeper.withdraw_of("heir")
    assert places["theirs"].is_withdrawn
    assert rows(tmp_path / "state") == ["later"]
    statistics = books.statistics()  # the sender drops what it was to send
    assert (statistics.spooled, statistics.dropped) == (0, {"consent_withdrawn": 1})
    await keeper.aclose()


async def test_a_file_that_goes_while_a_batch_is_put_keeps_nothing(
    file: SpoolFile, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Another finds out before the one that put it hears that this is done."""
    waits = [1.0, 0.0]

    async def run(call: Callable[[], _Result], /) -> _Result:
        result = call()
        await trio.sleep(waits.pop(0))
        return result

    keeper = SpoolKeeper(
        file, run=run, now=trio.current_time, diagnostics=Diagnostics(trio.current_time)
    )
    books = Ledger()
    kept: list[Batch] = []

    async def keep() -> None:
        kept.extend(await keeper.keep([Batch(key="a", body=b"{}", events=2)], books))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await trio.sleep(0.5)
        shutil.rmtree(tmp_path / "state")
        file.put("b", b"{}", events=1, reports=0)

    assert [batch.kept for batch in kept] == [None]
    assert books.spooled == 0
    assert not keeper.is_in_use


def test_what_is_under_way_is_not_taken_apart(file: SpoolFile, tmp_path: Path) -> None:
    """Within a transaction nobody looks: it ends in the file that it began in."""
    with file.together():
        file.put("a", b"{}", events=1, reports=0)
        shutil.rmtree(tmp_path / "state")
        file.put("b", b"{}", events=1, reports=0)
    assert file.losses == 0

    file.put("c", b"{}", events=1, reports=0)

    assert file.losses == 1
    assert rows(tmp_path / "state") == ["c"]
    shutil.rmtree(tmp_path / "state")
    file.remove(["c"])
    assert not (tmp_path / "state").exists()  # nothing is made to find nothing
    assert file.losses == 2
    file.put("d", b"{}", events=1, reports=0)
    assert file.losses == 2  # it was not in use


def test_nothing_is_made_to_find_nothing(file: SpoolFile, tmp_path: Path) -> None:
    """Whoever removed the directory does not find it there again for that."""
    file.put("a", b"{}", events=2, reports=0)
    shutil.rmtree(tmp_path / "state")

    assert file.read("a") is None
    assert not file.split("a", [("a.0", b"{}", 1, 0), ("a.1", b"{}", 1, 0)])

    assert not (tmp_path / "state").exists()
    assert file.losses == 1
