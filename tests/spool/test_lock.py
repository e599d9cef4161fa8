"""Whether an owner lives: locks that the kernel lets go of when a process dies."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from trimaran._spool.lock import OwnerLock, lives
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


def out_of_locks(_descriptor: int, _operation: int) -> NoReturn:
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
