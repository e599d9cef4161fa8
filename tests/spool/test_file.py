"""The queue on disk: a real SQLite file, shared by owners that live and die."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from patience import PATIENCE
from trimaran._pipeline.ledger import DropReason
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.file import SpoolFile
from trimaran._spool.lock import OwnerLock
from trimaran._spool.values import SpoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Callable[..., SpoolFile]]:
    """Opens spools on one directory, by owner, and closes them in the end."""
    opened: list[SpoolFile] = []

    def make(owner: str = "me", **named: Any) -> SpoolFile:
        chosen: dict[str, Any] = {
            "destination": "anonymous https://x.test",
            "most_bytes": 1_000_000,
            "most_seconds": 1000.0,
            "survives": "kill",
            "wall_clock": lambda: 5000.0,
            **named,
        }
        opened.append(SpoolFile(tmp_path / "state", owner=owner, **chosen))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def put(spool: SpoolFile, *keys: str, body: bytes = b"{}") -> None:
    """Keep batches of two events, one of them a report."""
    for key in keys:
        assert spool.put(key, body, events=2, reports=1) == []


def die(spool: SpoolFile) -> None:
    """What the kernel does to a killed process: its files are closed, nothing more."""
    assert spool._database is not None
    assert spool._lock is not None
    spool._database.close()
    spool._database = None
    spool._lock.release(remove=False)
    spool._lock = None


def remove_and_put_again(spool: SpoolFile) -> None:
    """Something that works together with something that does not."""
    with spool.together():
        spool.remove(["b"])
        put(spool, "f", "taken")


def keys(spool: SpoolFile) -> list[str]:
    """All kept keys, in order."""
    return [row.key for row in SpoolBrowser(spool._directory).rows()]


def test_what_is_put_is_there_until_it_is_removed(spool: Callable[..., SpoolFile]) -> None:
    """Bodies come back byte for byte, in the order in which they were put."""
    mine = spool()
    put(mine, "a", body=b"\x00\xff")
    put(mine, "b")

    assert keys(mine) == ["a", "b"]
    assert mine.read("a") == b"\x00\xff"

    mine.remove(["a", "unknown"])

    assert mine.read("a") is None
    assert keys(mine) == ["b"]


def test_the_files_are_the_users_alone(spool: Callable[..., SpoolFile], tmp_path: Path) -> None:
    """0700 the directory, 0600 every file in it, those of SQLite's own included."""
    put(spool(), "a")

    directory = tmp_path / "state"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = {path.name for path in directory.iterdir()}
    assert {"spool.db", "spool.db-wal", "me.lock"} <= names
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_directory_that_others_can_read_is_closed_to_them(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """One that exists already is the user's to have, but not others' to read."""
    (tmp_path / "state").mkdir(mode=0o755)

    put(spool(), "a")

    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_nothing_is_taken_from_an_owner_that_lives(spool: Callable[..., SpoolFile]) -> None:
    """Two live processes never send the same batch."""
    mine, other = spool("me"), spool("other")
    put(other, "theirs")

    assert mine.take_over() == ([], [])


def test_what_a_dead_owner_left_is_taken_over_once(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """In order, with what the books need, by the first who comes."""
    dead, mine, late = spool("dead"), spool("me"), spool("late")
    put(dead, "a", "b")
    die(dead)

    taken, _ = mine.take_over()

    assert [(row.key, row.events, row.reports) for row in taken] == [("a", 2, 1), ("b", 2, 1)]
    assert late.take_over() == ([], [])
    assert {row.owner for row in SpoolBrowser(tmp_path / "state").rows()} == {"me"}


def test_a_batch_is_bound_to_its_destination(spool: Callable[..., SpoolFile]) -> None:
    """Another URL, tier or account takes nothing over."""
    dead, elsewhere = spool("dead"), spool("me", destination="anonymous https://y.test")
    put(dead, "a")
    die(dead)

    assert elsewhere.take_over() == ([], [])
    assert [row.key for row in spool("third").take_over()[0]] == ["a"]


def test_a_process_killed_for_real_leaves_its_batches(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """A real child process, SIGKILL: what it had put is there, and its lock is free."""
    script = """
import os, signal, sys, pathlib
from trimaran._spool.file import SpoolFile
from trimaran._spool.lock import OwnerLock
spool = SpoolFile(pathlib.Path(sys.argv[1]), owner="child", destination="anonymous https://x.test",
                  most_bytes=10**6, most_seconds=10.0**6, survives="kill", wall_clock=lambda: 5000.0)
spool.put("a", b"{}", events=1, reports=0)
print("put", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"put\n"
        assert spool().take_over() == ([], [])
        child.kill()

    assert [row.key for row in spool("next").take_over()[0]] == ["a"]


def test_the_oldest_make_room(spool: Callable[..., SpoolFile]) -> None:
    """Bounded by bytes; who goes is told with the number of its events."""
    mine = spool(most_bytes=250)
    put(mine, "a", "b", body=b"x" * 100)

    evicted = mine.put("c", b"x" * 100, events=2, reports=1)

    assert [(gone.key, gone.events, gone.reason) for gone in evicted] == [
        ("a", 1, DropReason.SPOOL_FULL)
    ]
    assert keys(mine) == ["b", "c"]


@pytest.mark.parametrize("most_bytes", [250, 150])
def test_others_batches_make_no_room(most_bytes: int, spool: Callable[..., SpoolFile]) -> None:
    """A process evicts its own only; with no room even so, its batch is not kept."""
    other, mine = spool("other"), spool("me", most_bytes=most_bytes)
    put(other, "a", "b", body=b"x" * 100)

    evicted = mine.put("c", b"x" * 100, events=2, reports=1)

    assert [gone.key for gone in evicted] == ["c"]
    assert keys(mine) == ["a", "b"]


def test_what_is_too_old_goes(spool: Callable[..., SpoolFile]) -> None:
    """By age, at the next put and when it is taken over."""
    now = 5000.0
    mine = spool(wall_clock=lambda: now)
    put(mine, "a")
    now = 6001.0

    evicted = mine.put("b", b"{}", events=1, reports=0)

    assert [(gone.key, gone.reason) for gone in evicted] == [("a", DropReason.EXPIRED)]


def test_leftovers_that_are_too_old_are_told_when_they_are_taken_over(
    spool: Callable[..., SpoolFile],
) -> None:
    """A laptop that slept for a month sends nothing from before."""
    dead = spool("dead")
    put(dead, "a")
    die(dead)

    taken, evicted = spool("me", wall_clock=lambda: 7000.0).take_over()

    assert taken == []
    assert [(gone.key, gone.reason) for gone in evicted] == [("a", DropReason.EXPIRED)]


def test_what_nobody_comes_for_goes_with_its_age(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """A destination that was given up does not take up the room for ever."""
    dead = spool("dead", destination="anonymous https://old.test", wall_clock=lambda: 3000.0)
    live = spool("live", destination="anonymous https://old.test", wall_clock=lambda: 3000.0)
    put(dead, "a")
    put(live, "b")
    die(dead)

    taken, evicted = spool("me").take_over()

    assert taken == []
    assert [(gone.key, gone.reason) for gone in evicted] == [("a", DropReason.EXPIRED)]
    assert keys(live) == ["b"]
    assert not (tmp_path / "state" / "dead.lock").exists()


def test_withdrawn_nothing_stays(spool: Callable[..., SpoolFile]) -> None:
    """Of this process and of dead ones; what others hold or send elsewhere is theirs."""
    dead, mine, live = spool("dead"), spool("me"), spool("live")
    put(dead, "a")
    die(dead)
    put(mine, "b")
    put(live, "c")

    mine.withdraw()

    assert keys(live) == ["c"]


def test_what_was_withdrawn_is_overwritten(spool: Callable[..., SpoolFile], tmp_path: Path) -> None:
    """Not only marked as free: no file has it any more."""
    mine = spool()
    put(mine, "a", body=b"what nobody may read" * 1000)
    assert b"nobody" in (tmp_path / "state" / "spool.db-wal").read_bytes()

    mine.withdraw()

    assert all(b"nobody" not in file.read_bytes() for file in (tmp_path / "state").iterdir())


def test_what_is_done_together_is_one_transaction(spool: Callable[..., SpoolFile]) -> None:
    """Nobody sees a part of it, and if one call fails, none of them counts."""
    mine, other = spool(), spool("other")
    put(mine, "a", "b", "c")

    with mine.together():
        mine.remove(["a", "c"])
        put(mine, "d", "e")
        assert keys(other) == ["a", "b", "c"]

    assert keys(other) == ["b", "d", "e"]
    put(other, "taken")
    with pytest.raises(SpoolError, match="another batch of that key"):
        remove_and_put_again(mine)
    assert keys(other) == ["b", "d", "e", "taken"]


def test_what_is_put_again_is_there_once(spool: Callable[..., SpoolFile]) -> None:
    """Whoever puts it did not hear of the first time; it stays in its place."""
    mine = spool(most_bytes=10)
    put(mine, "a", "b", "c", "d", body=b"{}")

    put(mine, "a", "b", body=b"{}")

    assert keys(mine) == ["a", "b", "c", "d"]
    [gone] = mine.put("e", b"1234", events=1, reports=0)  # which needs the place of but one
    assert gone.key == "a"


def test_what_another_process_has_is_elsewhere(spool: Callable[..., SpoolFile]) -> None:
    """If it is for the same destination: nobody there would send it to this one."""
    mine, other, away = spool(), spool("other"), spool("away", destination="anonymous http://y")
    put(mine, "a")

    assert [each.is_elsewhere("a") for each in (mine, other, away)] == [False, True, False]
    with pytest.raises(SpoolError, match="another batch of that key"):
        put(away, "a")


def test_two_telemetries_of_one_process_keep_each_others_hold(tmp_path: Path) -> None:
    """Opening the second lets go of no lock of the first: otherwise another process that ends
    would take itself for the last one, and remove the log in which both go on writing.
    """
    script = """
import pathlib, sys
from trimaran._spool.file import SpoolFile
from trimaran._spool.lock import OwnerLock
def spool(owner):
    return SpoolFile(pathlib.Path(sys.argv[1]), owner=owner, destination="d", most_bytes=10**6,
                     most_seconds=10.0**6, survives="kill", wall_clock=lambda: 5000.0)
"""
    two = """
first, second = spool("first"), spool("second")
first.put("a", b"{}", events=1, reports=0)
second.put("b", b"{}", events=1, reports=0)
print("put", flush=True)
sys.stdin.readline()
first.put("c", b"{}", events=1, reports=0)
second.put("d", b"{}", events=1, reports=0)
print("put", flush=True)
sys.stdin.read()
"""
    other = """
short = spool("short")
print([short.read(key) for key in "abc"])
short.close()
"""
    directory = str(tmp_path / "state")
    with subprocess.Popen(
        [sys.executable, "-c", script + two, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"put\n"
        seen = subprocess.run(
            [sys.executable, "-c", script + other, directory],
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert seen.stdout == b"[b'{}', b'{}', None]\n"
        child.stdin.write(b"go on\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"put\n"
        child.kill()

    with sqlite3.connect(tmp_path / "state" / "spool.db") as database:
        kept = database.execute("SELECT key FROM batches ORDER BY key").fetchall()
    database.close()
    assert kept == [("a",), ("b",), ("c",), ("d",)]


def test_closing_leaves_no_lock_behind_where_nothing_is_left(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """A thousand short processes leave one file, not a thousand."""
    mine = spool()
    put(mine, "a")
    mine.remove(["a"])

    mine.close()

    assert not (tmp_path / "state" / "me.lock").exists()


def test_old_locks_of_owners_that_left_nothing_are_removed(
    spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """Killed with nothing on disk, an owner leaves a file that somebody has to remove."""
    idle, mine = spool("idle"), spool("me", wall_clock=lambda: 2e10)
    put(idle, "a")
    idle.remove(["a"])
    die(idle)

    mine.take_over()

    assert not (tmp_path / "state" / "idle.lock").exists()
    assert (tmp_path / "state" / "me.lock").exists()


def test_an_old_lock_that_cannot_be_looked_into_stays_and_is_free(
    spool: Callable[..., SpoolFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken over is owned all the same; a later process may remove the file."""
    idle, mine = spool("idle"), spool("me", wall_clock=lambda: 5100.0)
    put(idle, "a")
    die(idle)
    gone = tmp_path / "state" / "gone.lock"
    gone.touch()
    os.utime(gone, (1.0, 1.0))

    class Broken:
        """A connection to a disk that fails from then on."""

        def execute(self, *_words: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("disk I/O error")

    remove_old_locks = SpoolFile._remove_old_locks

    def remove_them_from_a_broken_disk(file: SpoolFile) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(file, "_opened", Broken)
            remove_old_locks(file)

    monkeypatch.setattr(SpoolFile, "_remove_old_locks", remove_them_from_a_broken_disk)

    taken, _ = mine.take_over()

    assert [row.key for row in taken] == ["a"]
    assert gone.exists()
    free = OwnerLock.seized(gone.parent, "gone")
    assert free is not None
    free.release(remove=False)


@pytest.mark.parametrize("content", [b"this is no database, and long enough to be none" * 100])
def test_a_corrupt_file_is_an_error_that_names_it(
    content: bytes, spool: Callable[..., SpoolFile], tmp_path: Path
) -> None:
    """Where, and what SQLite says of it."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "spool.db").write_bytes(content)

    with pytest.raises(SpoolError, match=r"spool\.db: file is not a database"):
        spool().put("a", b"{}", events=1, reports=0)


def test_a_newer_schema_is_left_alone(spool: Callable[..., SpoolFile], tmp_path: Path) -> None:
    """An old version does not guess at what a new one wrote."""
    put(spool("first"), "a")
    with sqlite3.connect(tmp_path / "state" / "spool.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()

    with pytest.raises(SpoolError, match="newer version of trimaran; update this one"):
        spool("me").put("b", b"{}", events=1, reports=0)


def test_a_locked_file_is_an_error_and_not_a_wait_for_ever(
    spool: Callable[..., SpoolFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the write lock: after the busy timeout it is told."""
    monkeypatch.setattr("trimaran._spool.file.BUSY_TIMEOUT", 0.05)
    put(spool("first"), "a")
    mine = spool("me")
    holder = sqlite3.connect(tmp_path / "state" / "spool.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(SpoolError, match="locked"):
            mine.put("b", b"{}", events=1, reports=0)
    finally:
        holder.close()

    put(mine, "b")


def test_a_full_disk_is_an_error_that_leaves_the_rest(
    spool: Callable[..., SpoolFile],
) -> None:
    """What does not fit is told; what was there stays, and with room again it goes on."""
    mine = spool()
    put(mine, "a")
    database = mine._database
    assert database is not None
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + 1}")

    with pytest.raises(SpoolError, match="full"):
        mine.put("b", b"x" * 100_000, events=1, reports=0)

    assert keys(mine) == ["a"]
    database.execute("PRAGMA max_page_count = 1000000")
    put(mine, "b", body=b"x" * 100_000)


@pytest.mark.parametrize("survives", ["kill", "power_loss"])
def test_the_mode_of_writing_is_the_one_that_was_chosen(
    survives: str, spool: Callable[..., SpoolFile]
) -> None:
    """NORMAL (1) survives the process, FULL (2) the machine; both in WAL mode."""
    mine = spool(survives=survives)
    put(mine, "a")

    database = mine._database
    assert database is not None
    assert database.execute("PRAGMA synchronous").fetchone() == (
        {"kill": 1, "power_loss": 2}[survives],
    )
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_place_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A file where the directory should be, say."""
    (tmp_path / "state").write_text("")
    mine = SpoolFile(
        tmp_path / "state" / "deeper",
        owner="me",
        destination="d",
        most_bytes=1,
        most_seconds=1.0,
        survives="kill",
        wall_clock=lambda: 0.0,
    )

    with pytest.raises(SpoolError, match="Not a directory"):
        mine.put("a", b"", events=1, reports=0)
    mine.close()


def test_a_directory_of_another_user_is_refused(
    spool: Callable[..., SpoolFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns it could read what is written there."""
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(SpoolError, match="belongs to another user"):
        spool().put("a", b"", events=1, reports=0)
