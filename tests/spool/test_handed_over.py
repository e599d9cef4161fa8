"""The queue on the disk of a relay: batches of many agents, none of which makes room."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.ledger import Ledger
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.disk import in_a_thread
from trimaran._spool.file import SpoolFile
from trimaran._spool.keeper import SpoolKeeper
from trimaran._spool.lock import OwnerLock
from trimaran._spool.values import SpoolError, hands_of


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Callable[..., SpoolFile]]:
    """Opens relays' queues on one directory, by owner, and closes them in the end."""
    opened: list[SpoolFile] = []

    def make(owner: str = "relay", destination: str = "anonymous https://x.test") -> SpoolFile:
        opened.append(
            SpoolFile(
                tmp_path,
                owner=owner,
                destination=destination,
                most_bytes=100,
                most_seconds=1000.0,
                survives="kill",
                wall_clock=lambda: 5000.0,
                evicts=False,
            )
        )
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def keys(directory: Path) -> list[str]:
    """All kept keys, in order."""
    return [row.key for row in SpoolBrowser(directory).rows()]


def test_what_has_no_room_is_refused(spool: Callable[..., SpoolFile], tmp_path: Path) -> None:
    """Nothing makes room for it, and of what is put together, nothing stays."""
    relay = spool()
    relay.put("a", b"x" * 60, events=1, reports=0)

    def put_two() -> None:
        with relay.together():
            relay.put("b", b"x" * 30, events=1, reports=0)
            relay.put("c", b"x" * 30, events=1, reports=0)

    with pytest.raises(SpoolError, match="is full"):
        put_two()

    assert keys(tmp_path) == ["a"]
    relay.put("b", b"x" * 40, events=1, reports=0)
    assert keys(tmp_path) == ["a", "b"]


def test_destinations_are_known_in_their_order(spool: Callable[..., SpoolFile]) -> None:
    """Of all owners, living and dead; none where nothing is kept."""
    relay = spool()
    assert relay.destinations() == []

    other = spool("other", "anonymous https://other.test")
    other.put("a", b"{}", events=1, reports=0)
    relay.put("b", b"{}", events=1, reports=0)
    other.put("c", b"{}", events=1, reports=0)

    assert relay.destinations() == ["anonymous https://other.test", "anonymous https://x.test"]


async def test_one_agent_takes_back_its_own(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """Halves of its batches too, and what a later relay took over; nobody else's."""
    before = spool("before")
    before.put("mine-0", b"{}", events=2, reports=0, handed_by="me")
    before.split("mine-0", [("mine-0.0", b"{}", 1, 0), ("mine-0.1", b"{}", 1, 0)])
    before.put("theirs-0", b"{}", events=1, reports=0, handed_by="them")
    before.close()
    keeper = SpoolKeeper(
        spool(), run=in_a_thread(), now=trio.current_time, diagnostics=Diagnostics(lambda: 0.0)
    )
    books = Ledger()
    taken = await keeper.take_over(books)
    assert [(batch.key, batch.handed_by) for batch in taken] == [
        ("mine-0.0", "me"),
        ("mine-0.1", "me"),
        ("theirs-0", "them"),
    ]
    new = [Batch(key=f"{who}-1", body=b"{}", events=1, handed_by=who) for who in ("me", "them")]
    await keeper.keep(new, books)
    books.track(2)

    assert await keeper.withdraw_of("me")

    assert keys(tmp_path) == ["theirs-0", "them-1"]
    assert books.dropped == {"consent_withdrawn": 3}
    assert books.pending == books.spooled == 2
    assert await keeper.body_of(taken[0]) is None
    await keeper.aclose()


async def test_what_two_have_handed_over_is_each_ones(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """Also the parts of it that were made meanwhile, and what a later relay took over."""
    before = spool("before")
    keeper = SpoolKeeper(
        before, run=in_a_thread(), now=trio.current_time, diagnostics=Diagnostics(lambda: 0.0)
    )
    books = Ledger()
    whole, _ = await keeper.keep(
        [
            Batch(key=key, body=b"{}", events=2, handed_by="me")
            for key in ("k-1", "k-10")  # of which one is no part of the other
        ],
        books,
    )
    books.track(4)
    first, second = (
        Batch(key=f"k-1.{number}", body=b"{}", events=1, handed_by="me") for number in (0, 1)
    )
    parts = await keeper.split(whole, first, second)
    await keeper.remove(parts[0])

    assert await keeper.also_handed_by("my heir", ["k-1"])
    assert await keeper.also_handed_by("me", ["k-1"])

    before.close()
    later = SpoolKeeper(
        spool(), run=in_a_thread(), now=trio.current_time, diagnostics=Diagnostics(lambda: 0.0)
    )
    taken = await later.take_over(Ledger())
    assert [(batch.key, hands_of(batch.handed_by)) for batch in taken] == [
        ("k-1.1", ["me", "my heir"]),
        ("k-10", ["me"]),
    ]
    assert await keeper.withdraw_of("heir")
    assert keys(tmp_path) == ["k-1.1", "k-10"]
    assert await keeper.withdraw_of("my heir")
    assert keys(tmp_path) == ["k-10"]
    assert await keeper.body_of(parts[1]) is None
    assert await later.body_of(taken[0]) is None
    await keeper.aclose()
    await later.aclose()


async def test_who_comes_while_a_batch_is_split_has_its_halves_too(
    spool: Callable[..., SpoolFile], tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The disk has them already, and memory not yet."""

    async def slowly(call: Callable[[], Any], /) -> Any:
        result = call()
        await trio.sleep(0.5)
        return result

    keeper = SpoolKeeper(
        spool(), run=slowly, now=trio.current_time, diagnostics=Diagnostics(lambda: 0.0)
    )
    books = Ledger()
    (whole,) = await keeper.keep([Batch(key="k", body=b"{}", events=2, handed_by="me")], books)
    books.track(2)
    first, second = (replace(whole, key=f"k.{number}", events=1) for number in (0, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.split, whole, first, second)
        await trio.sleep(0.25)
        assert keys(tmp_path) == ["k.0", "k.1"]
        nursery.start_soon(keeper.also_handed_by, "my heir", ["k"])
    assert await keeper.withdraw_of("my heir")

    assert keys(tmp_path) == []
    assert books.spooled == 0
    await keeper.aclose()


async def test_a_disk_that_does_not_obey_is_told(
    spool: Callable[..., SpoolFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays, and is not sent all the same."""
    keeper = SpoolKeeper(
        spool(), run=in_a_thread(), now=trio.current_time, diagnostics=Diagnostics(lambda: 0.0)
    )
    books = Ledger()
    kept, _ = await keeper.keep(
        [
            Batch(key="k", body=b"{}", events=1, handed_by="me"),
            Batch(key="other", body=b"{}", events=1, handed_by="other"),
        ],
        books,
    )
    books.track(2)

    def fail(_file: SpoolFile, *_given: object) -> None:
        raise SpoolError("it is broken")

    with monkeypatch.context() as patched:
        patched.setattr(SpoolFile, "withdraw", fail)
        assert not await keeper.withdraw_of("me")
        patched.setattr(SpoolFile, "also_handed_by", fail)
        assert not await keeper.also_handed_by("heir", ["other"])

    assert await keeper.body_of(kept) is None
    assert keys(tmp_path) == ["k", "other"]
    assert await keeper.withdraw_of("heir")
    assert keys(tmp_path) == ["k", "other"]
    await keeper.aclose()
    await trio.lowlevel.checkpoint()


def test_a_file_of_the_first_version_is_brought_up_to_date(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """What is in it is taken over, and nobody handed it over."""
    old = spool("old")
    old.put("a", b"{}", events=1, reports=0)
    old.close()
    with closing(sqlite3.connect(tmp_path / "spool.db", isolation_level=None)) as database:
        database.execute("ALTER TABLE batches DROP COLUMN handed_by")
        database.execute("ALTER TABLE batches DROP COLUMN parent_session_id")
        database.execute("ALTER TABLE batches DROP COLUMN traceparent")
        database.execute("PRAGMA user_version = 1")

    taken, _ = spool("new").take_over()

    [row] = taken
    assert (row.key, row.handed_by, row.parent_session_id, row.traceparent) == ("a", "", "", "")


def test_a_lock_whose_file_was_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits to open it while its holder removes it gets the next one, not a file that
    nobody else will ever see.
    """
    import fcntl

    held = OwnerLock.seized(tmp_path, "a")
    assert held is not None
    flock: Any = fcntl.flock

    def too_late(descriptor: int, how: int) -> None:
        held.release(remove=True)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    got = OwnerLock.seized(tmp_path, "a")

    assert got is not None
    assert (tmp_path / "a.lock").exists()
    monkeypatch.undo()
    assert OwnerLock.seized(tmp_path, "a") is None
    got.release(remove=True)
