"""Where sockets live, who may listen there, and who may connect.

In: the environment, a name. Out: a listener, a connection. Does not know: what is said there.

A socket is a file in a directory that only its user can enter, and both ends look at the uid
of the other. Nothing listens on an address of the network; on a system without Unix sockets
there is no place, and that is said.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

__all__ = [
    "ProcessError",
    "ProcessListener",
    "connect",
    "listening",
    "peer_uid",
    "socket_directory",
]

LONGEST_NAME = 40
"""Bytes that the name of a socket's file may have."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BUSY_WAIT = 0.01
"""Seconds until a listener with a full backlog is asked again."""


class ProcessError(Exception):
    """There is no way to the other process; the message says why, for people."""


def longest_path(platform: str = sys.platform) -> int:
    """Bytes that the path of a socket may have on *platform*, with the NUL behind it taken off."""
    return 107 if platform == "linux" else 103


def peer_uid(connection: trio.socket.SocketType) -> int:
    """Who is at the other end of a Unix socket: the uid that its process had in effect."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return uid_of_ucred(credentials)
    # BSD and macOS: SOL_LOCAL and LOCAL_PEERCRED, which Python does not name everywhere.
    return uid_of_xucred(connection.getsockopt(0, 1, struct.calcsize("2I")))  # pragma: no cover


def uid_of_ucred(credentials: bytes) -> int:
    """The uid in Linux's `struct ucred`: pid, uid, gid."""
    uid: int = struct.unpack("iIi", credentials)[1]
    return uid


def uid_of_xucred(credentials: bytes) -> int:
    """The uid in the `struct xucred` of BSD and macOS, which starts with version and uid."""
    uid: int = struct.unpack("2I", credentials[:8])[1]
    return uid


def socket_directory(environ: Mapping[str, str]) -> Path:
    """The user's directory for sockets: `$XDG_RUNTIME_DIR/trimaran`, else
    `$TMPDIR/trimaran-<uid>`, else `/tmp/trimaran-<uid>`. Made if it is not there.

    Raises:
        ProcessError: There is none that is this user's alone and has a path that is short
            enough for a socket.
    """
    _require_unix_sockets()
    uid = os.geteuid()
    runtime, temporary = environ.get("XDG_RUNTIME_DIR"), environ.get("TMPDIR")
    places = [Path(runtime, "trimaran")] if runtime else []
    places += [Path(temporary, f"trimaran-{uid}")] if temporary else []
    places += [Path("/tmp", f"trimaran-{uid}")]  # noqa: S108 - whose it is, is looked at
    reasons: list[str] = []
    for directory in places:
        reason = _why_not(directory, uid)
        if reason is None:
            return directory
        reasons.append(reason)
    raise ProcessError(f"no directory for sockets: {'; '.join(reasons)}")


def _why_not(directory: Path, uid: int) -> str | None:
    """Make *directory*. Why it is no place for sockets; None if it is one."""
    if not directory.is_absolute():
        return f"{directory} is not an absolute path"
    if len(os.fsencode(directory)) + 1 + LONGEST_NAME > longest_path():
        return f"{directory} is too long for the path of a socket"
    try:
        around = directory.parent.stat()
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except OSError as error:
        return str(error)
    if around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX:
        return f"{directory.parent} can be written by others"
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is a link or a file, not a directory"
    if found.st_uid != uid:
        return f"{directory} belongs to another user (uid {found.st_uid})"
    if found.st_mode & 0o077:
        return f"{directory} is open to others (mode {stat.S_IMODE(found.st_mode):o}, not 700)"
    return None


def listening(
    name: str,
    environ: Mapping[str, str],
    *,
    is_shared: bool = False,
    peer_uid: Callable[[trio.socket.SocketType], int] = peer_uid,
) -> ProcessListener:
    """Listen at a socket of this process; whoever knows its path can connect.

    Does not wait. Sockets of processes that are dead are removed on the way.

    Args:
        name: Letters, digits, `_`, `-`: 30 at most. The file is called `<pid>.<name>`.
        environ: Where the directory's place comes from.
        is_shared: The file is called `<name>`, and takes the place of one that is there: for
            who holds a lock which says that nobody else listens there.
        peer_uid: Who is at the other end.

    Raises:
        ProcessError: There is no place for it, or it is taken.
        ValueError: Of a wrong name.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME - 10:
        raise ValueError(f"{name!r} is no name for a socket")
    directory = socket_directory(environ)
    _remove_stale(directory)
    path = directory / (name if is_shared else f"{os.getpid()}.{name}")
    if is_shared or _is_deserted(path):
        path.unlink(missing_ok=True)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        here.bind(os.fspath(path))
        path.chmod(0o600)
        here.listen(socket.SOMAXCONN)
    except OSError as error:
        here.close()
        raise ProcessError(f"cannot listen at {path}: {error.strerror}") from error
    here.settimeout(0)
    return ProcessListener(here, path, peer_uid)


class ProcessListener(trio.abc.Listener[trio.SocketStream]):
    """Takes connections of the same user; those of others are closed at once, and counted.

    When it is closed, its file is removed, unless that was replaced by another's. In a forked
    child, closing it leaves the file alone.
    """

    def __init__(
        self, here: socket.socket, path: Path, peer_uid: Callable[[trio.socket.SocketType], int]
    ) -> None:
        self.path = path
        """Where to connect to."""
        self.strangers = 0
        """Connections of other users that were refused."""
        self._pid = os.getpid()
        self._file = path.stat().st_ino
        self._socket = here
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(here))
        self._peer_uid = peer_uid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @trio.lowlevel.enable_ki_protection
    async def accept(self) -> trio.SocketStream:
        """The next connection. A cancel loses none.

        Raises:
            trio.ClosedResourceError: The listener was closed.
            OSError: There are no descriptors left.
        """
        while True:
            stream = await self._listener.accept()
            if is_ours(stream, self._peer_uid):
                return stream
            self.strangers += 1
            stream.socket.close()

    def is_there(self) -> bool:
        """Whether its file is: nobody can connect any more when that was removed."""
        return _file_number(self.path) == self._file

    def close(self) -> None:
        """Stop listening, and remove the file. Does not wait; connections stay.

        Can be called outside of trio too.
        """
        if self._socket.fileno() == -1:
            return
        # The file first: one that nobody listens at says that its process has died.
        if os.getpid() == self._pid and self.is_there():
            self.path.unlink(missing_ok=True)
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def let_go(self) -> None:
        """In a forked child: close its copy, with which the parent's death would go unnoticed.

        Trio, which is the parent's too, is not told of it.
        """
        self._socket.close()

    async def aclose(self) -> None:
        """Like `close`; a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()


@trio.lowlevel.enable_ki_protection
async def connect(
    path: Path, *, peer_uid: Callable[[trio.socket.SocketType], int] = peer_uid
) -> trio.SocketStream:
    """Connect to the listener at *path*. Waits while others that want to fill its backlog.

    A cancel leaves nothing behind.

    Raises:
        ProcessError: Nobody listens there, or another user does.
    """
    _require_unix_sockets()
    await trio.lowlevel.checkpoint()
    there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        there.settimeout(0)
        while not _is_connected(there, path):  # noqa: ASYNC110 - nobody says when there is room
            await trio.sleep(_BUSY_WAIT)
    except BaseException:
        there.close()
        raise
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(there))
    if not is_ours(stream, peer_uid):
        there.close()
        raise ProcessError(f"another user listens at {path}")
    return stream


def is_ours(stream: trio.SocketStream, peer_uid: Callable[[trio.socket.SocketType], int]) -> bool:
    """Whether the same user is at the other end of *stream*."""
    try:
        return peer_uid(stream.socket) == os.geteuid()
    except OSError:  # it is gone already
        return False


def _is_connected(there: socket.socket, path: Path) -> bool:
    """Whether it is now; not if the backlog is full, which Linux does not wait for."""
    try:
        there.connect(os.fspath(path))
    except BlockingIOError:
        return False
    except OSError as error:
        raise ProcessError(f"nobody listens at {path}: {error}") from error
    return True


def _remove_stale(directory: Path) -> None:
    """Remove the sockets of processes that are dead."""
    for path in directory.iterdir():
        pid, _, name = path.name.partition(".")
        if name and pid.isdecimal() and not _is_alive(int(pid)) and _is_deserted(path):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _is_deserted(path: Path) -> bool:
    """Whether it is a socket at which nobody listens: a process in another namespace of pids
    only seems dead.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        there.settimeout(0)
        try:
            there.connect(os.fspath(path))
        except ConnectionRefusedError:  # Linux says that of other files too
            return path.is_socket()
        except OSError:
            return False
        return False


def _file_number(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _require_unix_sockets() -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise ProcessError("this system has no Unix sockets, which processes are joined by")
