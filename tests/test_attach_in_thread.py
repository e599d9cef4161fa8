from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest

import trimaran
from attached_workers import say, say_and_die, say_task
from patience import LATENESS, PATIENCE, untraced
from trimaran._in_thread import LEAVING_GRACE
from trimaran.testing import Capture

ENVIRON = {"APP_TELEMETRY_URL": "https://capture.invalid"}
SHORT = trimaran.Settings(drain_timeout=0.3)


@contextmanager
def parent(capture: Capture) -> Generator[trimaran.ThreadSession]:
    """A session in this process, for others to take part in."""
    with (
        trimaran.open_in_thread("app", environ=ENVIRON, transport=capture) as telemetry,
        telemetry.session(session_id="ses_1") as session,
    ):
        yield session


@pytest.fixture(autouse=True)
def _forking_beside_threads() -> Iterator[None]:
    """Python 3.12 and later warn of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def said(capture: Capture) -> Counter[str]:
    """How often each command was said, in the one session that there is."""
    assert list(capture.sessions()) == ["ses_1"]
    return Counter(event.command_name for event in capture.events(trimaran.Command))


def ours() -> list[threading.Thread]:
    """The threads of ours that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("trimaran ")]


def test_it_takes_what_its_native_counterpart_takes() -> None:
    """The same parameters, in the same order, with the same defaults."""
    expected = inspect.signature(trimaran.attach).parameters

    assert dict(inspect.signature(trimaran.attach_in_thread).parameters) == dict(expected)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("work", [say, say_and_die])
def test_children_of_multiprocessing_deliver(method: str, work: object) -> None:
    """However they are started, and although they end without ``atexit``, or by ``_exit``."""
    capture = Capture()
    context: multiprocessing.context.SpawnContext = multiprocessing.get_context(method)  # type: ignore[assignment]
    with parent(capture) as session:
        environ = session.to_env({})
        children = [
            context.Process(target=work, args=(environ, f"child {n}", 50))  # type: ignore[arg-type]
            for n in range(2)
        ]
        with untraced():  # the loop's thread may hold the tracer's lock
            for child in children:
                child.start()
        for child in children:
            child.join(PATIENCE)
            assert child.exitcode == 0
        assert session.statistics().from_children == 2 * 51

    assert said(capture) == {"child 0": 50, "child 1": 50}
    assert {call.sequence_index for call in capture.events(trimaran.ToolCall)} == {0, 1}
    assert session.statistics().delivered == session.statistics().tracked == 2 * 51 + 2


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_tasks_of_a_process_pool_deliver(method: str) -> None:
    """Each attaches for itself, several in one process, one after the other."""
    capture = Capture()
    with parent(capture) as session:
        tasks = [(session.to_env({}), f"task {n}", 20) for n in range(6)]
        with (
            untraced(),  # as above
            ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool,
        ):
            assert list(pool.map(say_task, tasks, timeout=PATIENCE)) == ["ses_1"] * 6

    assert said(capture) == {f"task {n}": 20 for n in range(6)}


SCRIPT = """
import trimaran

with trimaran.attach_in_thread() as session:
    session.command("script")
    assert session.flush()
"""

ASYNCIO_SCRIPT = """
import asyncio, trimaran

async def main():
    with trimaran.attach_in_thread():
        trimaran.current_session().command("script")
        assert await trimaran.current_session().flush()

asyncio.run(main())
"""


@pytest.mark.parametrize("script", [SCRIPT, ASYNCIO_SCRIPT], ids=["plain", "asyncio"])
def test_a_script_takes_part(script: str) -> None:
    """Its parent is given to it by the environment."""
    capture = Capture()
    with parent(capture) as session:
        subprocess.run(
            [sys.executable, "-c", script], env=session.to_env(), check=True, timeout=PATIENCE
        )
        assert session.statistics().from_children == 1

    assert said(capture) == {"script": 1}


def test_a_host_of_asyncio_has_children() -> None:
    """``to_env()`` waits for nothing, and the children are taken while the loop goes on."""
    capture = Capture()

    async def main() -> None:
        with parent(capture) as session:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SCRIPT, env=trimaran.current_session().to_env()
            )
            assert await child.wait() == 0
            assert session.statistics().from_children == 1

    asyncio.run(main())

    assert said(capture) == {"script": 1}


def test_an_interrupted_child_delivers() -> None:
    """Ctrl-C leaves its block as anything does."""
    capture = Capture()
    script = """
import signal, time, trimaran

signal.signal(signal.SIGINT, signal.default_int_handler)
with trimaran.attach_in_thread() as session:
    session.command("script")
    print("ready", flush=True)
    for _ in range(6_000):
        time.sleep(0.01)  # not for long: a signal just before the call would not end it
"""
    with parent(capture) as session:
        child = subprocess.Popen(
            [sys.executable, "-c", script],
            env=session.to_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            os.killpg(child.pid, signal.SIGINT)
            assert child.wait(PATIENCE) == -signal.SIGINT

    assert said(capture) == {"script": 1}


def test_a_parent_that_hangs_is_not_waited_for() -> None:
    """Leaving ends in time; what it did not take is counted."""
    hangs, let_go = threading.Event(), threading.Event()

    def on_drop(_dropped: trimaran.Dropped) -> None:
        hangs.set()
        let_go.wait(PATIENCE)

    with trimaran.open_in_thread(
        "app", environ=ENVIRON, transport=Capture(), settings=SHORT, on_drop=on_drop
    ) as telemetry:
        with telemetry.session() as session:
            environ = session.to_env({})
            session.track("no event")  # type: ignore[arg-type]
            assert hangs.wait(PATIENCE)
            settings = trimaran.Settings(drain_timeout=0.2, account_timeout=0.1)
            with trimaran.attach_in_thread(environ=environ, settings=settings) as attached:
                attached.command("child")
                left = time.monotonic()
            took = time.monotonic() - left
            let_go.set()

    assert took < 0.2 + LEAVING_GRACE + LATENESS
    assert attached.statistics().dropped == {"drain_timeout": 1}


def test_after_its_end_the_session_takes_nothing() -> None:
    """It is counted, as everywhere; and there is no current session any more."""
    capture = Capture()
    with parent(capture) as session:
        with trimaran.attach_in_thread(environ=session.to_env({})) as attached:
            assert attached.id == trimaran.current_session().id == "ses_1"
            attached.command("child")
        attached.command("late")
        assert attached.statistics().dropped == {"closed": 1}

    assert trimaran.current_session().id == ""
    assert said(capture) == {"child": 1}


@pytest.mark.parametrize("more", [{}, {"DO_NOT_TRACK": "1"}, {"APP_TELEMETRY_DISABLED": "1"}])
def test_without_a_parent_no_thread_is_started(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    """Nor with telemetry switched off: nothing is said, and that goes on to children."""
    with parent(Capture()) as session:
        environ = session.to_env({}) | more if more else {}
    monkeypatch.setattr(threading.Thread, "start", None)

    with trimaran.attach_in_thread(environ=environ) as attached:
        attached.command("child")
        attached.send(trimaran.Command(command_name="child"))
        assert attached.flush()
        assert attached.id == trimaran.current_session().id == ""
        assert ("DO_NOT_TRACK" in attached.to_env({})) == bool(more)


def test_where_there_can_be_no_thread_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told, and the child goes on."""
    problems: list[trimaran.Problem] = []
    with parent(Capture()) as session:
        environ = session.to_env({})

        def start(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with trimaran.attach_in_thread(environ=environ, on_problem=problems.append) as attached:
                assert attached.id == ""

    assert [problem.name for problem in problems] == ["telemetry disabled"]


def test_an_exception_comes_out_as_itself() -> None:
    """The same object, with nothing of ours left."""
    error = ValueError("the child's")

    def child(environ: dict[str, str]) -> None:
        with trimaran.attach_in_thread(environ=environ):
            raise error

    with parent(Capture()) as session:
        with pytest.raises(ValueError, match="the child's") as caught:
            child(session.to_env({}))
        assert len(ours()) == 1

    assert caught.value is error
    assert ours() == []
