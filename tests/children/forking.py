"""A program whose threads track events all the time, and which forks meanwhile.

Its forked children use what they have inherited, and say by their status whether it was as it
should be. Prints what the parent's books say, and what arrived.
"""

from __future__ import annotations

import contextvars
import json
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING

import trio

import trimaran
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Callable

FORKS = 18
THREADS = 3
TIME_FOR_A_CHILD = 20
"""Seconds until one that hangs is killed."""
COMMAND = trimaran.Command(command_name="parent")
STRAY = trimaran.Command(command_name="child")


def hammer(session: trimaran.Session, stop: threading.Event, counts: list[int]) -> None:
    """Track without a pause, also by what holds other locks."""
    count = 0
    while not stop.is_set():
        session.track(COMMAND)
        with session.tool_call("bash"):
            pass
        count += 2
        if count % 100 == 0:
            time.sleep(0.001)
    counts.append(count)


def use_copy(session: trimaran.Session, kept: contextvars.Context) -> None:
    """What a forked child may do with its parent's session, which then counts, and no more."""

    def never(*_args: object, **_named: object) -> None:
        os._exit(2)  # the parent would be woken up

    trio.lowlevel.TrioToken.run_sync_soon = never  # type: ignore[method-assign]
    assert trimaran.current_session().id == ""
    kept.run(lambda: trimaran.current_session().track(STRAY))
    before = session.statistics().tracked
    assert before <= 1
    for _ in range(100):
        session.track(STRAY)
        with session.tool_call("stray"):
            pass
    others = [threading.Thread(target=session.track, args=(STRAY,)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    books = session.statistics()
    assert books.tracked == before + 203
    assert books.dropped == {"closed": before + 203}
    assert "TRIMARAN_PARENT" in session.to_env({})


def in_a_fork(work: Callable[[], None]) -> int:
    """Do *work* in a forked child; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(TIME_FOR_A_CHILD)
        work()
    except BaseException:  # noqa: BLE001 - a forked child must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


async def main(spool: str | None) -> None:
    """Fork while threads track, and see that nothing of it is felt here."""
    capture = Capture()
    drops: list[trimaran.Dropped] = []
    stop, counts = threading.Event(), list[int]()
    settings = trimaran.Settings(
        strict=True,
        mailbox_events=10_000_000,
        memory_bytes=1 << 31,
        drain_timeout=30.0,
        spool=False if spool is None else trimaran.Spool(directory=spool, most_bytes=1 << 31),
    )
    async with (
        capture.open(settings=settings) as telemetry,
        telemetry.session() as ended,
    ):
        pass
    async with trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test", **os.environ},
        settings=settings,
        transport=capture,
        on_drop=drops.append,
    ) as telemetry:
        async with telemetry.session() as session:
            environ = session.to_env({})
            kept = contextvars.copy_context()
            threads = [
                threading.Thread(target=hammer, args=(session, stop, counts))
                for _ in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            async with trimaran.attach(environ=environ) as attached:
                statuses: list[int] = []
                for number in range(FORKS):
                    copied = (session, attached, ended)[number % 3]
                    pid = in_a_fork(partial(use_copy, copied, kept))
                    await trio.sleep(0.005)
                    statuses.append(os.waitpid(pid, 0)[1])  # noqa: ASYNC222 - it ends
                attached.track(COMMAND)
            stop.set()
            for thread in threads:
                thread.join()
    books = session.statistics()
    commands = capture.events(trimaran.Command)
    result = json.dumps(
        {
            "statuses": statuses,
            "tracked": books.tracked,
            "delivered": books.delivered,
            "expected": sum(counts) + 3,
            "strays": sum(event.command_name == "child" for event in commands),
            "from_children": books.from_children,
            "dropped": dict(books.dropped),
            "told": len(drops),
        }
    )
    sys.stdout.write(result)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
