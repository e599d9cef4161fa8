"""run_telemetry(): what open_telemetry() does, as a task of the host's nursery."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio

import trimaran
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import trio.testing

_Result = TypeVar("_Result")

ENVIRON = {"TEST_TELEMETRY_URL": "https://x.test"}


async def one_session(**arguments: Any) -> trimaran.Statistics:
    """What became of a session of nothing but its start and its end."""
    async with trio.open_nursery() as nursery:
        telemetry: trimaran.Telemetry = await nursery.start(
            partial(trimaran.run_telemetry, "test", environ=ENVIRON, **arguments)
        )
        async with telemetry.session() as session:
            pass
        nursery.cancel_scope.cancel()
    return session.statistics()


def test_it_takes_what_open_telemetry_takes() -> None:
    """Each argument of the one is one of the other: same name, same kind, same default."""
    ours = dict(inspect.signature(trimaran.run_telemetry).parameters)

    assert ours.pop("task_status").default is trio.TASK_STATUS_IGNORED
    assert ours == dict(inspect.signature(trimaran.open_telemetry).parameters)


async def test_the_hosts_switch_and_hooks_are_asked_and_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A no stops the sending; drops and problems come to the host's ears."""
    drops: list[trimaran.Dropped] = []
    problems: list[trimaran.Problem] = []
    refusing = Capture([trimaran.Answer(403)])

    switched_off = await one_session(
        transport=Capture(), consent=lambda: False, on_drop=drops.append
    )
    await one_session(transport=refusing, on_drop=drops.append, on_problem=problems.append)

    assert switched_off.dropped == {"consent_withdrawn": 2}
    assert [dropped.reason for dropped in drops] == ["consent_withdrawn", "rejected"]
    assert [problem.name for problem in problems] == ["telemetry rejected"]


async def test_time_chance_and_ids_come_from_the_host(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Stamps by its clock, names by its counter, waits by its dice."""

    class Least(Random):
        def random(self) -> float:
            return 0.0

    names = (f"id-{number}" for number in count())
    capture = Capture([trimaran.Answer(503)])
    began = trio.current_time()
    await one_session(
        transport=capture,
        wall_clock=lambda: 1234.5,
        new_id=lambda: next(names),
        random=Least(),
        settings=trimaran.Settings(drain_timeout=10),
    )

    assert {event.timestamp for event in capture.events()} == {1_234_500}
    assert all(session.startswith("id-") for session in capture.sessions())
    assert {request.headers["idempotency-key"][:3] for request in capture.requests} == {"id-"}
    assert trio.current_time() - began == pytest.approx(0.5 * 0.75)  # the least of a wait


async def test_the_disk_is_used_in_the_hosts_way(tmp_path: Path) -> None:
    """What blocks is run by what the host gives for it."""
    calls = 0

    async def at_once(call: Callable[[], _Result], /) -> _Result:
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        return call()

    books = await one_session(
        transport=Capture(),
        run_blocking=at_once,
        settings=trimaran.Settings(spool=trimaran.Spool(directory=str(tmp_path / "spool"))),
    )

    assert books.delivered == 2
    assert calls > 0
    assert (tmp_path / "spool" / "spool.db").exists()
