"""The host's own ears: what they are told, and that nothing depends on them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
import trio.testing

import trimaran
from trimaran._hooks import Hooks
from trimaran.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = trimaran.ToolCall(tool_name="bash")
DROPPED = trimaran.Dropped(session_id="s", reason=trimaran.DropReason.BUG, count=1)
PROBLEM = trimaran.Problem(name="trouble", count=1, facts={})


def test_without_hooks_nobody_listens() -> None:
    """Telling is free of charge, and of effects."""
    hooks = Hooks()

    hooks.dropped(DROPPED)
    hooks.problem(PROBLEM)

    assert not hooks.wants_drops


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(1), KeyboardInterrupt()])
def test_what_a_hook_raises_is_told_by_its_kind(error: BaseException) -> None:
    """Whatever it is: raised in trio's own code it would end the run."""

    def failing(_told: object) -> None:
        raise error

    hooks = Hooks(failing, failing)
    kinds: list[str] = []
    hooks.fail = kinds.append

    hooks.dropped(DROPPED)
    hooks.problem(PROBLEM)

    assert kinds == [type(error).__name__] * 2


async def test_each_hook_is_told_its_own_outside_of_any_session() -> None:
    """A hook that logs, or tracks, does not do so into the session that it hears of."""
    told: list[tuple[str, object, trimaran.Session]] = []

    def note(who: str, what: object) -> None:
        told.append((who, what, trimaran.current_session()))

    hooks = Hooks(partial(note, "drops"), partial(note, "problems"))
    async with (
        trimaran.open_telemetry(
            "test",
            environ={"TEST_TELEMETRY_URL": "https://x.test"},
            transport=ScriptedTransport(),
        ) as telemetry,
        telemetry.session() as session,
    ):
        hooks.dropped(DROPPED)
        hooks.problem(PROBLEM)
        assert trimaran.current_session() is session

    assert hooks.wants_drops
    assert [(who, what) for who, what, _ in told] == [("drops", DROPPED), ("problems", PROBLEM)]
    assert [around.id for _, _, around in told] == ["", ""]


@pytest.mark.parametrize("fails", [False, True])
async def test_every_loss_is_told_once(fails: bool, autojump_clock: trio.testing.MockClock) -> None:
    """Whatever it is lost for, and whatever the hook makes of it: the sums are exact."""
    told: list[trimaran.Dropped] = []

    def on_drop(dropped: trimaran.Dropped) -> None:
        told.append(dropped)
        if fails:
            raise ZeroDivisionError

    settings = trimaran.Settings(
        mailbox_events=10, backlog_events=10, batch_events=5, drain_timeout=1, retry_timeout=3
    )
    sessions: list[trimaran.Session] = []

    async def one(telemetry: trimaran.Telemetry, number: int) -> None:
        async with telemetry.session(session_id=str(number)) as session:
            sessions.append(session)
            for _ in range(20):
                for _ in range(7 + number):
                    session.track(CALL)
                session.track(None)  # type: ignore[arg-type]
                await trio.sleep(0.5)
        session.track(CALL)

    script = [
        *[trimaran.Answer(200)] * 5,
        *[trimaran.Answer(400)] * 5,
        *[trimaran.Answer(503)] * 99,
    ]
    with structlog.testing.capture_logs():
        async with (
            trimaran.open_telemetry(
                "test",
                environ={"TEST_TELEMETRY_URL": "https://x.test"},
                transport=ScriptedTransport(script),
                settings=settings,
                on_drop=on_drop,
            ) as telemetry,
            trio.open_nursery() as nursery,
        ):
            for number in range(3):
                nursery.start_soon(one, telemetry, number)
        await trio.testing.wait_all_tasks_blocked()

    for session in sessions:
        sums: Counter[str] = Counter()
        for each in told:
            assert each.count > 0
            if each.session_id == session.id:
                sums[each.reason] += each.count
        assert sums == session.statistics().dropped
    reasons = {each.reason for each in told}
    assert {"mailbox_full", "encode_error", "rejected", "drain_timeout", "closed"} <= reasons
    assert len(told) < sum(session.statistics().dropped_total for session in sessions) / 3


def outcome(books: trimaran.Statistics) -> tuple[int, dict[str, int], int]:
    """What must not depend on a hook."""
    return books.delivered, dict(books.dropped), books.attempts


async def test_a_hook_that_fails_changes_nothing_and_is_told_of_once_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The same events have the same fate as with a hook that does not fail, or with none."""

    def failing(_dropped: trimaran.Dropped) -> None:
        raise ZeroDivisionError

    async def run(hook: Callable[[trimaran.Dropped], object] | None) -> trimaran.Statistics:
        async with (
            trimaran.open_telemetry(
                "test",
                environ={"TEST_TELEMETRY_URL": "https://x.test"},
                transport=ScriptedTransport([trimaran.Answer(400), trimaran.Answer(200)] * 10),
                on_drop=hook,
            ) as telemetry,
            telemetry.session() as session,
        ):
            for _ in range(20):
                session.track(CALL)
                assert await session.flush()
                await trio.sleep(5)
        return session.statistics()

    with structlog.testing.capture_logs() as logs:
        books = outcome(await run(None))
        assert [line for line in logs if line["event"] == "telemetry hook failed"] == []
        assert outcome(await run(lambda _dropped: None)) == books
        assert outcome(await run(failing)) == books

    failed = [line for line in logs if line["event"] == "telemetry hook failed"]
    assert [line["error"] for line in failed] == ["ZeroDivisionError"] * 2
    assert failed[1]["repeated"] == 5  # every other batch was refused, one in ten seconds
