"""Whole programs with telemetry in a thread: how they end, in every way that a process can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from patience import LATENESS, PATIENCE, unmeasured
from plain_server import PlainEndpoint, deaf, healthy

DRAIN = 0.3
"""Seconds to drain that a program has whose endpoint never answers; others need not be quick."""

STARTING = """\
import asyncio, atexit, os, signal, sys, threading, time
import trimaran

signal.signal(signal.SIGINT, signal.default_int_handler)
settings = trimaran.Settings(drain_timeout=float(os.environ["DRAIN"]), request_timeout=60.0)


def left():
    print(f"left {time.monotonic():.3f}", flush=True)


def ready():
    print(f"ready {time.monotonic():.3f}", flush=True)


def wait():
    # In short naps: a signal between the interpreter's last look and the call that sleeps does
    # not end that call.
    for _ in range(6_000):
        time.sleep(0.01)

"""


@pytest.fixture
def endpoint() -> Iterator[PlainEndpoint]:
    """A real one."""
    with healthy() as endpoint:
        yield endpoint


class Program:
    """A program in a process group of its own."""

    def __init__(self, directory: Path, text: str, url: str, drain: float) -> None:
        path = directory / "program.py"
        path.write_text(STARTING + textwrap.dedent(text))
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            env=unmeasured(os.environ)  # some fork
            | {"APP_TELEMETRY_URL": url, "DO_NOT_TRACK": "", "DRAIN": str(drain)},
            cwd=directory,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, word: str) -> float:
        """The time (monotonic) at which it says *word*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said, *when = line.split()
            if said == word:
                return float(when[0])
        raise AssertionError(self.end())

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Its exit status, and the rest of what it said, on both streams."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@contextmanager
def running(directory: Path, text: str, url: str, *, drain: float = PATIENCE) -> Iterator[Program]:
    """A program that has so many seconds to drain; nothing of it is left."""
    program = Program(directory, text, url, drain)
    with program.process:
        try:
            yield program
        finally:
            program.process.kill()


PLAIN = """
    with trimaran.open_in_thread("app", settings=settings) as telemetry:
        try:
            with telemetry.session() as session:
                session.command("init")
                ready()
                wait()
        finally:
            left()
            atexit.register(lambda: print("books", dict(session.statistics().dropped)))
    """

ASYNCIO = """
    async def agent(telemetry):
        with telemetry.session() as session:
            atexit.register(lambda: print("books", dict(session.statistics().dropped)))
            session.command("init")
            ready()
            await asyncio.sleep(60)

    async def main():
        with trimaran.open_in_thread("app", settings=settings) as telemetry:
            try:
                await asyncio.gather(agent(telemetry))
            finally:
                left()

    asyncio.run(main())
    """


@pytest.mark.parametrize("text", [PLAIN, ASYNCIO], ids=["plain", "asyncio"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_program_in_time(tmp_path: Path, text: str, times: int) -> None:
    """Once or twice, with an endpoint that never answers: as itself, with right books."""
    with deaf() as url, running(tmp_path, text, url, drain=DRAIN) as program:
        program.wait_for("ready")
        program.interrupt()
        left = program.wait_for("left")
        for _ in range(times - 1):
            time.sleep(0.1)  # while it drains
            program.interrupt()
        status, out, err = program.end()
        took = time.monotonic() - left

    assert status == -signal.SIGINT, err
    assert "KeyboardInterrupt" in err
    assert out == "books {'drain_timeout': 3}\n"
    assert took < DRAIN + LATENESS


@pytest.mark.parametrize("text", [PLAIN, ASYNCIO], ids=["plain", "asyncio"])
def test_ctrl_c_loses_nothing(tmp_path: Path, endpoint: PlainEndpoint, text: str) -> None:
    """With an endpoint that is well, everything arrives, and it costs no time."""
    with running(tmp_path, text, endpoint.url) as program:
        program.wait_for("ready")
        program.interrupt()
        left = program.wait_for("left")
        status, out, err = program.end()
        took = time.monotonic() - left

    assert status == -signal.SIGINT, err
    assert out == "books {}\n"
    assert [e["type"] for e in endpoint.events] == ["session_start", "command", "session_end"]
    assert took < LATENESS


def test_a_cancelled_task_of_asyncio_leaves_in_time(tmp_path: Path) -> None:
    """The cancellation goes on as it is."""
    text = """
        async def agent():
            with trimaran.open_in_thread("app", settings=settings) as telemetry:
                with telemetry.session() as session:
                    try:
                        await asyncio.sleep(60)
                    finally:
                        left()

        async def main():
            task = asyncio.create_task(agent())
            await asyncio.sleep(0.2)
            task.cancel("no more")
            try:
                await task
            except asyncio.CancelledError as error:
                print("cancelled", time.monotonic(), *error.args, flush=True)

        asyncio.run(main())
        """
    with deaf() as url, running(tmp_path, text, url, drain=DRAIN) as program:
        left = program.wait_for("left")
        cancelled = program.wait_for("cancelled")
        status, _, err = program.end()

    assert (status, err) == (0, "")
    assert DRAIN <= cancelled - left < DRAIN + LATENESS


NEVER_LEFT = {
    "forgotten": """
        block = trimaran.open_in_thread("app", settings=settings)
        telemetry = block.__enter__()
        opened = telemetry.session()
        opened.__enter__().command("init")
        left()
        """,
    "exit in a daemon thread": """
        def work():
            with trimaran.open_in_thread("app", settings=settings) as telemetry:
                with telemetry.session() as session:
                    session.command("init")
                    left()
                    wait()

        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
        sys.exit()
        """,
    "sys.exit in another thread": """
        def work():
            with trimaran.open_in_thread("app", settings=settings) as telemetry:
                with telemetry.session() as session:
                    session.command("init")
                    left()
                    sys.exit()

        threading.Thread(target=work).start()
        """,
    "the main thread ends first": """
        def work():
            with trimaran.open_in_thread("app", settings=settings) as telemetry:
                with telemetry.session() as session:
                    threading.main_thread().join()
                    time.sleep(0.1)
                    session.command("init")
                    left()

        threading.Thread(target=work).start()
        """,
}


@pytest.mark.parametrize("text", NEVER_LEFT.values(), ids=NEVER_LEFT)
def test_the_interpreters_exit_is_not_held_up(tmp_path: Path, text: str) -> None:
    """However the program ends without leaving the block: in time, and without a word."""
    with deaf() as url, running(tmp_path, text, url, drain=DRAIN) as program:
        left = program.wait_for("left")
        status, _, err = program.end()
        took = time.monotonic() - left

    assert (status, err) == (0, "")
    assert took < 0.3 + DRAIN + LATENESS


@pytest.mark.parametrize("text", NEVER_LEFT.values(), ids=NEVER_LEFT)
def test_a_block_that_is_never_left_is_left_at_the_exit(
    tmp_path: Path, endpoint: PlainEndpoint, text: str
) -> None:
    """With an endpoint that is well, its events arrive.

    Its name is looked up only then, where Python may start no thread any more.
    """
    url = endpoint.url.replace("127.0.0.1", "localhost")
    with running(tmp_path, text, url) as program:
        status, _, err = program.end()

    assert (status, err) == (0, "")
    assert [e["type"] for e in endpoint.events] == ["session_start", "command", "session_end"]


def test_a_forked_child_does_not_hang(tmp_path: Path, endpoint: PlainEndpoint) -> None:
    """It is forked while threads track, so that locks are held; it tracks, sends, flushes,
    and leaves the block. Nothing of that is sent, and the parent goes on.
    """
    text = """
        import warnings

        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads

        def work():
            for _ in range(2000):
                session.command("parent")

        with trimaran.open_in_thread("app") as telemetry, telemetry.session() as session:
            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            children = []
            for _ in range(10):
                with session.tool_call("fork"):
                    child = os.fork()
                    if child == 0:
                        before = session.statistics().tracked
                        session.command("child")
                        session.send(trimaran.Command(command_name="child"))
                        assert trimaran.current_session().id == ""
                        assert session.flush()
                        assert session.statistics().tracked == before + 2
                        with telemetry.session() as own:
                            own.command("child")
                        telemetry.close()
                        sys.exit(7)
                children.append(child)
            for thread in threads:
                thread.join()
            for child in children:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """
    with running(tmp_path, text, endpoint.url) as program:
        status, _, err = program.end()

    assert (status, err) == (0, "")
    assert endpoint.commands() == ["parent"] * 4000
    assert [e["type"] for e in endpoint.events].count("tool_call") == 10


def test_children_of_multiprocessing_do_not_hang(tmp_path: Path, endpoint: PlainEndpoint) -> None:
    """Forked by the pool's own thread, in the middle of a session."""
    text = """
        import multiprocessing, warnings

        warnings.simplefilter("ignore", DeprecationWarning)

        def work(number):
            session.command("child")
            trimaran.current_session().command("child")
            return number

        with trimaran.open_in_thread("app") as telemetry, telemetry.session() as session:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert sum(pool.map(work, range(20))) == 190
            session.command("parent")
        """
    with running(tmp_path, text, endpoint.url) as program:
        status, _, err = program.end()

    assert (status, err) == (0, "")
    assert endpoint.commands() == ["parent"]


TESTS = """
import asyncio, os, time
import trimaran

settings = trimaran.Settings(drain_timeout=float(os.environ["DRAIN"]), request_timeout=60.0)


def agent(telemetry):
    with telemetry.session():
        trimaran.current_session().command("init")


def test_plain():
    with trimaran.open_in_thread("app", settings=settings) as telemetry:
        agent(telemetry)


def test_asyncio():
    async def main():
        with trimaran.open_in_thread("app", settings=settings) as telemetry:
            await asyncio.to_thread(agent, telemetry)

    asyncio.run(main())


def test_captured(trimaran_capture):
    environ = {"APP_TELEMETRY_URL": "https://capture.invalid"}
    with trimaran.open_in_thread("app", environ=environ, transport=trimaran_capture) as telemetry:
        agent(telemetry)
    assert len(trimaran_capture.events()) == 3


def test_off(trimaran_capture):
    with trimaran.open_in_thread("app") as telemetry:
        assert not telemetry.decision.enabled
        agent(telemetry)


async def test_native(trimaran_capture):
    async with trimaran_capture.open() as telemetry, telemetry.session():
        trimaran.current_session().command("init")
    assert len(trimaran_capture.events()) == 3


def test_waits():
    if "WAIT" in os.environ:
        with trimaran.open_in_thread("app", settings=settings) as telemetry:
            with telemetry.session():
                os.write(int(os.environ["WAIT"]), b"ready")
                for _ in range(6_000):
                    time.sleep(0.01)  # in short naps, as above
"""


def pytest_command(directory: Path) -> list[str]:
    """A run of these tests, with no other plugins than those that they need."""
    path = directory / "test_agent.py"
    path.write_text(TESTS)
    plugins = [
        "-p",
        "trimaran._pytest_plugin",
        "-p",
        "pytest_trio.plugin",
        "-p",
        "no:cacheprovider",
    ]
    options = ["-q", "--disable-plugin-autoload", *plugins, "-o", "trio_mode=true"]
    return [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        *options,
        f"--rootdir={directory}",
        str(path),
    ]


def test_in_a_run_of_pytest(tmp_path: Path, endpoint: PlainEndpoint) -> None:
    """Beside the library's own plugin, with warnings as errors."""
    done = subprocess.run(
        pytest_command(tmp_path),
        env=os.environ
        | {"APP_TELEMETRY_URL": endpoint.url, "DO_NOT_TRACK": "", "DRAIN": str(PATIENCE)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    assert endpoint.commands() == ["init", "init"]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_run_of_pytest_in_time(tmp_path: Path, times: int) -> None:
    """It is pytest's to tell, with its own exit status."""
    told, tell = os.pipe()
    with deaf() as url:
        process = subprocess.Popen(
            [*pytest_command(tmp_path), "-k", "waits"],
            env=os.environ
            | {
                "APP_TELEMETRY_URL": url,
                "DO_NOT_TRACK": "",
                "DRAIN": str(DRAIN),
                "WAIT": str(tell),
            },
            cwd=tmp_path,
            start_new_session=True,
            pass_fds=[tell],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            os.close(tell)
            assert os.read(told, 5) == b"ready"
            os.close(told)
            begun = time.monotonic()
            for _ in range(times):
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.1)
            out, _ = process.communicate(timeout=PATIENCE)
            took = time.monotonic() - begun

    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    assert "KeyboardInterrupt" in out
    assert took < DRAIN + LATENESS
