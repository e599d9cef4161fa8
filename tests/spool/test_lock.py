"""Whether an owner lives: locks that the kernel lets go of when a process dies."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from trimaran._spool.lock import OwnerLock, holder, lives
from trimaran._spool.values import SpoolError


def open_files() -> int:
    """How many this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    """Until it is released; what it is of counts as alive for so long."""
    lock = OwnerLock.taken(tmp_path, "me")

    assert OwnerLock.seized(tmp_path, "me") is None
    assert (lives(tmp_path, "me"), lives(tmp_path, "other")) == (True, False)
    with pytest.raises(SpoolError, match=r"me\.lock: is locked already"):
        OwnerLock.taken(tmp_path, "me")

    lock.release(remove=False)
    lock.release(remove=True)  # does nothing any more

    assert (tmp_path / "me.lock").exists()
    assert not lives(tmp_path, "me")
    seized = OwnerLock.seized(tmp_path, "me")
    assert seized is not None
    seized.release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    """Once that process has signed it; what a dead one signed is overwritten."""
    (tmp_path / "me.lock").write_text("12345678901234567890")
    assert holder(tmp_path, "other") is None
    lock = OwnerLock.taken(tmp_path, "me")

    lock.sign()

    assert holder(tmp_path, "me") == os.getpid()
    (tmp_path / "me.lock").write_text("nobody")
    assert holder(tmp_path, "me") is None
    lock.release(remove=True)


def test_a_disk_that_is_full_keeps_nobody_from_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds it is not said then, and that is all."""
    lock = OwnerLock.taken(tmp_path, "me")
    monkeypatch.setattr(os, "pwrite", out_of_locks)

    lock.sign()

    assert holder(tmp_path, "me") is None
    assert lives(tmp_path, "me")
    lock.release(remove=True)


def test_somebody_elses_lock_is_left_where_it_is(tmp_path: Path) -> None:
    """Its own file was removed, and another owner made one there."""
    first = OwnerLock.taken(tmp_path, "me")
    (tmp_path / "me.lock").unlink()
    second = OwnerLock.taken(tmp_path, "me")

    first.release(remove=True)

    assert lives(tmp_path, "me")
    second.release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_two_that_look_do_not_take_each_other_for_the_owner(tmp_path: Path) -> None:
    """A look is shared; only the owner has the lock for itself."""
    OwnerLock.taken(tmp_path, "me").release(remove=False)
    with (tmp_path / "me.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)

        assert not lives(tmp_path, "me")


def test_nothing_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the lock is free, held, or cannot be had at all."""
    lock = OwnerLock.taken(tmp_path, "me")
    before = open_files()

    lives(tmp_path, "me")
    OwnerLock.seized(tmp_path, "me")
    monkeypatch.setattr(fcntl, "flock", out_of_locks)
    with pytest.raises(OSError, match="No locks available"):
        OwnerLock.seized(tmp_path, "me")
    with pytest.raises(OSError, match="No locks available"):
        lives(tmp_path, "me")

    assert open_files() == before
    lock.release(remove=True)


def out_of_locks(*_of: object) -> NoReturn:
    """What a network drive may say."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_system_without_such_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could tell who lives: nothing is kept rather than sent twice."""
    monkeypatch.setitem(sys.modules, "fcntl", None)

    for ask in (lives, OwnerLock.taken, OwnerLock.seized):
        with pytest.raises(SpoolError, match=r"me\.lock: this system has no lock"):
            ask(tmp_path, "me")
    assert list(tmp_path.iterdir()) == []
