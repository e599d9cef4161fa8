"""Where sockets live, and who may meet there."""

import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from patience import status_of, untraced
from trimaran._process import ProcessError, ProcessListener, connect, listening, socket_directory
from trimaran._process import peer_uid as real_peer_uid
from trimaran._process.place import longest_path, uid_of_ucred, uid_of_xucred

UID = os.geteuid()


@pytest.fixture
def environ(directory: Path) -> dict[str, str]:
    """Where sockets can live."""
    return {"XDG_RUNTIME_DIR": str(directory)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The directory


def test_the_directory_is_the_users_alone(directory: Path, environ: dict[str, str]) -> None:
    """Made at first, then found."""
    for _ in range(2):
        assert socket_directory(environ) == directory / "trimaran"
    assert mode(directory / "trimaran") == 0o700


def test_without_a_runtime_directory(directory: Path) -> None:
    """The one for temporary files, which others share."""
    environ = {"TMPDIR": str(directory), "XDG_RUNTIME_DIR": ""}

    assert socket_directory(environ) == directory / f"trimaran-{UID}"


def test_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where temporary files are if nobody says anything."""
    assert socket_directory({}) == Path(f"/tmp/trimaran-{UID}")  # noqa: S108 - it is what is tested


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.symlink_to(path.parent), "is a link or a file, not a directory"),
        (lambda path: path.write_text(""), "is a link or a file, not a directory"),
        (lambda path: path.mkdir(0o755), "is open to others (mode 755, not 700)"),
        (lambda path: (path.mkdir(0o700), path.chmod(0o720)), "is open to others (mode 720"),
        (lambda path: path.parent.chmod(0o777), "can be written by others"),
        (lambda path: path.parent.rmdir(), "No such file or directory"),
    ],
)
def test_a_directory_that_is_not_safe_is_not_used(
    directory: Path, spoil: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is, if there is one; else it is said what is wrong with each."""
    bad, good = directory / "bad", directory / "good"
    bad.mkdir()
    good.mkdir()
    environ = {"XDG_RUNTIME_DIR": str(bad), "TMPDIR": str(good)}
    spoil(bad / "trimaran")
    assert socket_directory(environ) == good / f"trimaran-{UID}"

    spoil_all_but(bad, good, monkeypatch)
    with pytest.raises(ProcessError) as caught:
        socket_directory(environ)
    assert str(caught.value).startswith("no directory for sockets: ")
    assert said in str(caught.value)
    assert f"{good}/trimaran-{UID} is open to others" in str(caught.value)


def spoil_all_but(bad: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the directory that every process can fall back to."""
    (good / f"trimaran-{UID}").chmod(0o701)
    lstat = Path.lstat

    def everything_else_is_open(path: Path) -> os.stat_result:
        found = lstat(path)
        if bad not in path.parents and good not in path.parents:
            return os.stat_result((found.st_mode | 0o007, *found[1:]))
        return found

    monkeypatch.setattr(Path, "lstat", everything_else_is_open)


def test_a_directory_of_another_user(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told whose it is."""
    owner = socket_directory(environ).stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(ProcessError, match=rf"belongs to another user \(uid {owner}\)"):
        socket_directory({**environ, "TMPDIR": "relative"})


def test_a_path_that_is_too_long_for_a_socket(directory: Path) -> None:
    """The next place is taken: the limit is the kernel's, and short."""
    long = directory / ("x" * 60)
    long.mkdir()

    environ = {"XDG_RUNTIME_DIR": str(long), "TMPDIR": str(directory)}

    assert socket_directory(environ) == directory / f"trimaran-{UID}"


def test_a_path_that_is_not_absolute(directory: Path) -> None:
    """Another process would look for it elsewhere."""
    environ = {"XDG_RUNTIME_DIR": "run", "TMPDIR": str(directory)}

    assert socket_directory(environ) == directory / f"trimaran-{UID}"


def test_the_longest_path() -> None:
    """The kernel of this machine agrees."""
    path = "/tmp/" + "x" * (longest_path() - 5)  # noqa: S108 - nothing is made there
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(FileNotFoundError):
        one.connect(path)
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="path too long"):
        one.connect(path + "x")
    assert longest_path("darwin") == 103


async def test_a_system_without_unix_sockets(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is refused, with the reason."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ProcessError, match="this system has no Unix sockets"):
        listening("x", environ)
    with pytest.raises(ProcessError, match="this system has no Unix sockets"):
        await connect(Path("/nowhere"))


# Listening


async def test_listening_and_connecting(environ: dict[str, str]) -> None:
    """A socket of this process's, for its user; its file goes with it, connections stay."""
    with listening("session-1", environ) as listener:
        assert listener.path == socket_directory(environ) / f"{os.getpid()}.session-1"
        assert mode(listener.path) == 0o600
        here = await connect(listener.path)
        there = await listener.accept()
    listener.close()

    assert list(socket_directory(environ).iterdir()) == []
    async with here, there:
        await here.send_all(b"hello")
        assert await there.receive_some() == b"hello"
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_cancelled_accept_loses_nothing(environ: dict[str, str]) -> None:
    """The connection is there for the next."""
    with listening("x", environ) as listener:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.accept)
                await wait_all_tasks_blocked()
                scope.cancel()
        async with await connect(listener.path), await listener.accept():
            pass


async def test_closing_ends_an_accept(environ: dict[str, str]) -> None:
    """And is a checkpoint."""
    listener = listening("x", environ)

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        with assert_checkpoints():
            await listener.aclose()


def test_listening_needs_no_trio(environ: dict[str, str]) -> None:
    """It can be called from a plain function, before anything runs."""
    listener = listening("x", environ)

    async def use() -> None:
        with listener:
            async with await connect(listener.path), await listener.accept():
                pass

    trio.run(use)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "x" * 31, "ü"])
def test_a_name_that_cannot_be(environ: dict[str, str], name: str) -> None:
    """It would lead elsewhere, or be too long."""
    with pytest.raises(ValueError, match="is no name for a socket"):
        listening(name, environ)


def test_a_name_that_is_taken(environ: dict[str, str]) -> None:
    """By this process itself: the first listener stays."""
    with listening("x", environ) as first:
        with pytest.raises(ProcessError, match=f"cannot listen at {first.path}: Address already"):
            listening("x", environ)

        assert first.path.exists()


async def test_a_shared_name(environ: dict[str, str]) -> None:
    """The newer takes the place of the older, which does not remove what is not its own."""
    old = listening("relay", environ, is_shared=True)
    new = listening("relay", environ, is_shared=True)
    with new:
        assert old.path == new.path == socket_directory(environ) / "relay"
        old.close()
        async with await connect(new.path), await new.accept():
            pass

    assert not new.path.exists()


async def test_a_file_that_is_gone_already(environ: dict[str, str]) -> None:
    """Somebody cleaned up: closing is no error."""
    with listening("x", environ) as listener:
        listener.path.unlink()


# Leftovers


LISTENS = """
import os, sys, time
from trimaran._process import listening
listener = listening("left", os.environ)
print(listener.path, flush=True)
time.sleep(1000)
"""


def test_sockets_of_dead_processes_are_removed(environ: dict[str, str]) -> None:
    """By the next who listens; those of living ones, and what is no socket of ours, stay."""
    command = [sys.executable, "-c", LISTENS]
    environment = {**os.environ, **environ}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            left = Path(process.stdout.readline().decode().strip())
            (left.parent / "1.text").write_text("")
            (left.parent / "relay").write_text("")
            with listening("x", environ):
                assert left.exists()
        finally:
            process.kill()
    with listening("x", environ) as listener:
        assert {path.name for path in left.parent.iterdir()} == {
            listener.path.name,
            "1.text",
            "relay",
        }


def test_a_socket_of_a_dead_process_with_this_ones_id(environ: dict[str, str]) -> None:
    """Ids of processes are used again."""
    path = socket_directory(environ) / f"{os.getpid()}.x"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))

    with listening("x", environ) as listener:
        assert listener.path == path


def dead_process() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_process_that_only_seems_dead(environ: dict[str, str]) -> None:
    """One in another container has an id that says nothing here; but it listens."""
    path = socket_directory(environ) / f"{dead_process()}.x"
    with socket.socket(socket.AF_UNIX) as listens:
        listens.bind(str(path))
        listens.listen()
        with listening("x", environ):
            assert path.exists()
    with listening("x", environ):
        assert not path.exists()


def test_what_is_no_socket_stays(environ: dict[str, str]) -> None:
    """It was not made here. No process has such an id either."""
    path = socket_directory(environ) / f"{'9' * 30}.x"
    path.mkdir()
    with listening("x", environ):
        assert path.exists()


def test_a_process_that_may_not_be_asked_lives(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to somebody else by now."""
    path = socket_directory(environ) / "77777777.x"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (77777777, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    with listening("x", environ):
        assert path.exists()


async def test_a_forked_child_leaves_the_socket_alone(environ: dict[str, str]) -> None:
    """Whether it closes its copy or lets it go."""
    with listening("x", environ) as listener:
        for leave in (listener.close, listener.let_go):
            with untraced():
                child = os.fork()
                if child == 0:
                    leave()
                    os._exit(0)
            assert await status_of(child) == 0
            async with await connect(listener.path), await listener.accept():
                pass


async def test_a_listener_that_was_let_go_leaves_its_file(environ: dict[str, str]) -> None:
    """It is not its own."""
    with listening("x", environ) as listener:
        listener.let_go()
    assert listener.path.exists()


# Who may connect


async def test_connections_of_others_are_refused(environ: dict[str, str]) -> None:
    """They are closed at once; one of the user's own comes through after them."""
    uids = iter([UID + 1, UID])
    with listening("x", environ, peer_uid=lambda _: next(uids)) as listener:
        stranger, friend = await connect(listener.path), await connect(listener.path)
        async with stranger, friend, await listener.accept() as there:
            assert listener.strangers == 1
            assert await stranger.receive_some() == b""
            await friend.send_all(b"hello")
            assert await there.receive_some() == b"hello"


async def test_a_listener_of_somebody_else_is_not_talked_to(environ: dict[str, str]) -> None:
    """It could have taken the place of ours."""
    with listening("x", environ) as listener:
        with pytest.raises(ProcessError, match=f"another user listens at {listener.path}"):
            await connect(listener.path, peer_uid=lambda _: UID + 1)


async def test_a_peer_that_cannot_be_named_is_refused(environ: dict[str, str]) -> None:
    """Its socket may be gone by then."""

    def gone(_connection: trio.socket.SocketType) -> int:
        raise OSError

    with listening("x", environ) as listener:
        with pytest.raises(ProcessError, match="another user listens at"):
            await connect(listener.path, peer_uid=gone)


async def test_the_kernel_names_the_peer(environ: dict[str, str]) -> None:
    """Both see this process."""
    with listening("x", environ) as listener:
        async with await connect(listener.path) as here, await listener.accept() as there:
            assert real_peer_uid(here.socket) == real_peer_uid(there.socket) == UID


def test_credentials_of_either_kind() -> None:
    """Linux tells pid, uid, gid; BSD and macOS a version, the uid, and groups."""
    assert uid_of_ucred(struct.pack("iIi", 1, 4_000_000_000, 3)) == 4_000_000_000
    assert uid_of_xucred(struct.pack("2Ih", 0, 501, 1)) == 501


async def test_nobody_listens(environ: dict[str, str]) -> None:
    """Whether there is no file, or nobody behind it."""
    with listening("x", environ) as listener:
        path = listener.path
    with pytest.raises(ProcessError, match=f"nobody listens at {path}: .*No such file"):
        await connect(path)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with pytest.raises(ProcessError, match=f"nobody listens at {path}: .*refused"):
        await connect(path)


async def test_a_full_backlog_is_waited_for(
    environ: dict[str, str], autojump_clock: trio.testing.MockClock
) -> None:
    """Trio's own connect takes Linux's answer to that for a connection that is under way."""
    path = socket_directory(environ) / "full"
    connected: list[trio.SocketStream] = []

    async def join() -> None:
        connected.append(await connect(path))

    with socket.socket(socket.AF_UNIX) as listens:
        listens.bind(str(path))
        listens.listen(0)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(join)
            await trio.sleep(1)
            assert len(connected) == 1
            with trio.move_on_after(1):  # a cancel leaves no descriptor: a warning would fail this
                await connect(path)
            accepted = [listens.accept()[0]]
            while len(connected) < 3:
                await trio.sleep(1)
                accepted.append(listens.accept()[0])
    for stream in connected:
        await stream.aclose()
    for one in accepted:
        one.close()


async def test_handlers_of_trio_take_the_listener(environ: dict[str, str]) -> None:
    """It can be given to serve_listeners()."""
    served = trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        served.set()

    listener: ProcessListener = listening("x", environ)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        async with await connect(listener.path):
            await served.wait()
        nursery.cancel_scope.cancel()
    assert not listener.path.exists()
