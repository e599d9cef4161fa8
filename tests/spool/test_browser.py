"""The queue as a person sees it: a look disturbs nobody, and only the dead are cleared away."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from trimaran._spool.browser import SpoolBrowser, _tidy
from trimaran._spool.file import SpoolFile
from trimaran._spool.values import SpoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

SECRET = b"what nobody is to find again"

CHILD = """
import pathlib, sys
from trimaran._spool.file import SpoolFile
spool = SpoolFile(
    pathlib.Path(sys.argv[1]), owner="child", destination="d", most_bytes=10**6,
    most_seconds=10.0**6, survives="kill", wall_clock=lambda: 5000.0,
)
spool.put("k1", b"{}", events=3, reports=1)
print("put", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spool(tmp_path: Path) -> Generator[Callable[[str], SpoolFile]]:
    """Opens the queue for an owner, which lives until it is closed."""
    opened: list[SpoolFile] = []

    def make(owner: str) -> SpoolFile:
        opened.append(
            SpoolFile(
                tmp_path,
                owner=owner,
                destination="d",
                most_bytes=10_000_000,
                most_seconds=math.inf,
                survives="kill",
                wall_clock=lambda: 5000.0,
            )
        )
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_where_there_is_nothing(tmp_path: Path) -> None:
    """No directory, no file, a file with nothing in it yet: nothing waits, nothing is made."""
    nowhere, browser = SpoolBrowser(tmp_path / "none"), SpoolBrowser(tmp_path)
    assert (nowhere.rows(), nowhere.read("k1"), nowhere.remove([])) == ([], None, [])
    assert (browser.rows(), browser.read("k1"), browser.remove([])) == ([], None, [])
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "spool.db").touch()
    assert (browser.rows(), browser.read("k1"), browser.remove([])) == ([], None, [])


def test_all_that_waits_is_seen(tmp_path: Path, spool: Callable[[str], SpoolFile]) -> None:
    """Of the living and the dead, in order; events without reports of losses; bodies whole."""
    spool("live").put("k1", b"\xff\x00", events=3, reports=1)
    dead = spool("dead")
    dead.put("k2", b"{}", events=1, reports=0)
    dead.close()
    browser = SpoolBrowser(tmp_path)

    rows = browser.rows()

    assert [(row.key, row.owner, row.is_owner_alive) for row in rows] == [
        ("k1", "live", True),
        ("k2", "dead", False),
    ]
    assert [(row.events, row.size, row.destination, row.created) for row in rows] == [
        (2, 2, "d", 5000.0),
        (1, 2, "d", 5000.0),
    ]
    assert browser.read("k1") == b"\xff\x00"
    assert browser.read("k3") is None


def test_who_is_killed_is_dead(tmp_path: Path) -> None:
    """A real process, and SIGKILL: seen alive before, dead after, with what it left."""
    browser = SpoolBrowser(tmp_path)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"put\n"
        assert [row.is_owner_alive for row in browser.rows()] == [True]
        child.kill()

    assert [(row.key, row.is_owner_alive) for row in browser.rows()] == [("k1", False)]
    assert len(browser.remove(browser.rows())) == 1
    assert browser.rows() == []


def test_an_owner_whose_lock_file_is_gone_is_dead(
    tmp_path: Path, spool: Callable[[str], SpoolFile]
) -> None:
    """Whoever removed it: nobody holds a lock on what is not there."""
    dead = spool("dead")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.close()
    (tmp_path / "dead.lock").unlink()
    browser = SpoolBrowser(tmp_path)

    assert [row.is_owner_alive for row in browser.rows()] == [False]
    assert not (tmp_path / "dead.lock").exists()
    assert len(browser.remove(browser.rows())) == 1
    assert not (tmp_path / "dead.lock").exists()


def test_a_look_takes_nothing(tmp_path: Path, spool: Callable[[str], SpoolFile]) -> None:
    """While somebody writes, it sees what was there before; what the dead left can be taken."""
    dead, live = spool("dead"), spool("live")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.close()
    live.put("k2", b"{}", events=1, reports=0)
    browser = SpoolBrowser(tmp_path)
    writer = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM batches")

        assert [row.key for row in browser.rows()] == ["k1", "k2"]
        assert browser.read("k2") == b"{}"
    finally:
        writer.close()

    assert [row.key for row in live.take_over()[0]] == ["k1"]


def test_only_what_is_asked_for_is_removed(
    tmp_path: Path, spool: Callable[[str], SpoolFile]
) -> None:
    """And nothing of an owner that lives; a dead one that has more keeps its lock file."""
    dead, live = spool("dead"), spool("live")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.put("k2", b"{}", events=1, reports=0)
    dead.close()
    live.put("k3", b"{}", events=1, reports=0)
    browser = SpoolBrowser(tmp_path)

    removed = browser.remove([row for row in browser.rows() if row.key != "k2"])

    assert [row.key for row in removed] == ["k1"]
    assert [row.key for row in browser.rows()] == ["k2", "k3"]
    assert (tmp_path / "dead.lock").exists()


def test_what_was_taken_over_since_is_not_removed(
    tmp_path: Path, spool: Callable[[str], SpoolFile]
) -> None:
    """Between the look and the removal a process began, and it will send the batch."""
    dead, live = spool("dead"), spool("live")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.close()
    browser = SpoolBrowser(tmp_path)
    seen = browser.rows()
    live.take_over()

    browser.remove(seen)

    assert live.read("k1") == b"{}"


@pytest.mark.parametrize("others", [0, 1])
def test_what_is_removed_is_not_on_the_disk_any_more(
    others: int, tmp_path: Path, spool: Callable[[str], SpoolFile]
) -> None:
    """Its bytes are in no file of the directory, whether others keep something there or not."""
    live, dead = spool("live"), spool("dead")
    live.put("k0", b"{}", events=1, reports=0)
    if not others:
        live.remove(["k0"])
    for number in range(50):
        dead.put(f"k{number + 1}", SECRET * 100, events=1, reports=0)
    dead.close()
    assert any(SECRET in path.read_bytes() for path in tmp_path.iterdir())
    browser = SpoolBrowser(tmp_path)

    removed = browser.remove(browser.rows())

    assert len(removed) == 50
    assert not any(SECRET in path.read_bytes() for path in tmp_path.iterdir())
    assert ((tmp_path / "spool.db").stat().st_size < 50_000) == (not others)


def test_somebody_who_reads_is_not_waited_for(
    tmp_path: Path, spool: Callable[[str], SpoolFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are gone all the same; tidying up is left to who closes the file."""
    monkeypatch.setattr("trimaran._spool.browser.BUSY_TIMEOUT", 0.0)
    dead = spool("dead")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.close()
    browser = SpoolBrowser(tmp_path)
    reader = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    try:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM batches").fetchone() == (1,)

        assert len(browser.remove(browser.rows())) == 1
    finally:
        reader.close()
    assert browser.rows() == []


def test_somebody_who_writes_goes_first(tmp_path: Path, spool: Callable[[str], SpoolFile]) -> None:
    """To make the file smaller is not worth an error."""
    live = spool("live")
    live.put("k1", b"{}", events=1, reports=0)
    live.remove(["k1"])
    database = sqlite3.connect(tmp_path / "spool.db", isolation_level=None, timeout=0)
    writer = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")

        _tidy(database)

        writer.execute("COMMIT")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        writer.close()
        database.close()


def test_a_removal_that_fails_removes_nothing(
    tmp_path: Path, spool: Callable[[str], SpoolFile]
) -> None:
    """All or nothing, and the owner's lock is free again."""
    dead = spool("dead")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.close()
    browser = SpoolBrowser(tmp_path)
    rows = browser.rows()
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute(
            "CREATE TRIGGER kept BEFORE DELETE ON batches BEGIN SELECT raise(ABORT, 'no'); END"
        )
    database.close()

    with pytest.raises(SpoolError, match=r"spool\.db: no"):
        browser.remove(rows)

    assert [row.is_owner_alive for row in browser.rows()] == [False]


def test_what_cannot_be_opened_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is none of ours, one of a later version, a lock that cannot be looked at."""
    (tmp_path / "spool.db").write_bytes(b"no database" * 1000)
    with pytest.raises(SpoolError, match=r"spool\.db: file is not a database"):
        SpoolBrowser(tmp_path).rows()

    (tmp_path / "spool.db").unlink()
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SpoolError, match="newer version of trimaran; update this one"):
        SpoolBrowser(tmp_path).read("k1")


def test_a_lock_that_cannot_be_looked_at_is_an_error(
    tmp_path: Path, spool: Callable[[str], SpoolFile]
) -> None:
    """Nobody is taken for dead on a guess."""
    dead = spool("dead")
    dead.put("k1", b"{}", events=1, reports=0)
    dead.close()
    (tmp_path / "dead.lock").unlink()
    (tmp_path / "dead.lock").symlink_to("dead.lock")

    with pytest.raises(SpoolError, match=r"dead\.lock"):
        SpoolBrowser(tmp_path).rows()
