"""Whether an owner lives: each holds a lock on a file of its own for as long as it does.

In: a directory, an owner. Out: its lock, or the knowledge that somebody holds it.
Does not know: what an owner has. The kernel lets go of a lock in every way to die.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from trimaran._spool.values import SpoolError

__all__ = ["OwnerLock", "holder", "lives"]


class OwnerLock:
    """An owner's lock, held."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def taken(cls, directory: Path, owner: str) -> OwnerLock:
        """The lock of a new owner.

        Raises:
            SpoolError: somebody holds it, or the system has no such locks.
            OSError: its file cannot be made.
        """
        lock = cls.seized(directory, owner)
        if lock is None:
            raise SpoolError(f"{_path_of(directory, owner)}: is locked already")
        return lock

    @classmethod
    def seized(cls, directory: Path, owner: str) -> OwnerLock | None:
        """The lock of a dead owner; None while it lives. Raises what :meth:`taken` does."""
        path = _path_of(directory, owner)
        locks = _locks(path)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                locks.flock(descriptor, locks.LOCK_EX | locks.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                raise
            if _is_at(path, descriptor):
                return cls(path, descriptor)
            os.close(descriptor)  # whoever let go of it removed the file meanwhile

    def sign(self) -> None:
        """Let people know which process holds it, if the disk takes that."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self, *, remove: bool) -> None:
        """Let go; *remove* the file of an owner that left nothing. May be called again."""
        if self._descriptor >= 0:
            if remove:
                with suppress(OSError):
                    if _is_at(self._path, self._descriptor):
                        self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def forked(self) -> None:
        """This is a forked child's copy: without it, the lock is the parent's alone."""
        self.release(remove=False)


def lives(directory: Path, owner: str) -> bool:
    """Whether somebody holds the lock of *owner*. Makes no file, and keeps no owner from
    anything; who would seize the lock at this very moment finds it held.

    Raises:
        SpoolError: the system has no such locks.
        OSError: its file cannot be opened.
    """
    path = _path_of(directory, owner)
    locks = _locks(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two that look do not take each other for the owner.
        locks.flock(descriptor, locks.LOCK_SH | locks.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(directory: Path, owner: str) -> int | None:
    """Which process signed the lock of *owner* last; None if none did."""
    try:
        signed = _path_of(directory, owner).read_bytes()
    except OSError:
        return None
    return int(signed) if signed.isdigit() else None


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether that is the file at *path*, not one that was removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _path_of(directory: Path, owner: str) -> Path:
    return directory / f"{owner}.lock"


def _locks(path: Path) -> ModuleType:
    try:
        import fcntl  # noqa: PLC0415 - not on every system
    except ImportError:
        message = f"{path}: this system has no lock that a dying process lets go of"
        raise SpoolError(message) from None
    return fcntl
