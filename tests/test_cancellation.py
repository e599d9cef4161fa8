"""What a cancel leaves behind, call by call; all points of a run are in another file."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

import trimaran
from trimaran.testing import Capture, ScriptedTransport

FOREVER = float("inf")
ENVIRON = {"TEST_TELEMETRY_URL": "https://endpoint.test"}
CALL = trimaran.ToolCall(tool_name="bash")


async def test_a_cancelled_send_that_waits_for_room_leaves_its_event_untracked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It takes no room and no place: what is sent after it goes out as if it had never been."""
    settings = trimaran.Settings(mailbox_events=1, backlog_events=1, drain_timeout=60)
    capture = Capture([5.0])
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
        with trio.move_on_after(1) as scope:
            for number in range(100):
                await session.send(trimaran.Command(command_name=str(number)))
        tracked = session.statistics().tracked
        await session.send(trimaran.Command(command_name="after"))

    assert scope.cancelled_caught
    assert 1 < tracked < 100
    sent = [event.command_name for event in capture.events(trimaran.Command)]
    assert sent == [*map(str, range(tracked - 1)), "after"]  # one of them is the session's start
    assert session.statistics().dropped == {}


async def test_a_cancelled_send_with_room_leaves_its_event_untracked() -> None:
    """It looks before it takes, also where it would not have had to wait."""
    async with Capture().open() as telemetry, telemetry.session() as session:
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.send(CALL)

        assert scope.cancelled_caught
        assert session.statistics().tracked == 1


async def test_a_send_that_returns_has_tracked_its_event_and_one_that_raises_has_not() -> None:
    """So also for the calls, one in 128, that let other tasks run after the event is in."""
    async with Capture().open() as telemetry, telemetry.session() as session:
        returned = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at_once, nursery.cancel_scope)
            for _ in range(1000):
                await session.send(CALL)
                returned += 1

        assert returned in {128, 256}  # the one that cancels had its turn in the first or second
        assert session.statistics().tracked == 1 + returned


async def cancel_at_once(scope: trio.CancelScope) -> None:
    scope.cancel()
    await trio.lowlevel.checkpoint()


async def test_a_cancelled_flush_leaves_everything_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing is dropped, nothing sent twice, and the next flush is a flush like others."""
    capture = Capture([5.0])
    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(CALL)
        with trio.move_on_after(1) as scope:
            await session.flush(timeout=60)
        assert scope.cancelled_caught
        assert session.statistics().pending == 2

        flushed = await session.flush(timeout=60)

        assert flushed.complete
        assert (flushed.delivered, flushed.dropped) == (2, 0)
    assert len(capture.requests) == 2  # the end has one of its own


async def test_entering_a_session_is_no_point_of_cancellation() -> None:
    """In a cancelled scope it is entered all the same, and its start and end are delivered."""
    capture = Capture()
    async with capture.open() as telemetry:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with telemetry.session(session_id="s") as session:
                assert trimaran.current_session() is session
                await trio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert [type(event) for event in capture.sessions()["s"]] == [
        trimaran.SessionStart,
        trimaran.SessionEnd,
    ]


async def test_leaving_a_session_is_no_point_of_cancellation() -> None:
    """What comes after it in the same step is still done; nothing is current any more."""
    async with Capture().open() as telemetry:
        with trio.CancelScope() as scope:
            async with telemetry.session() as session:
                scope.cancel()
            reached = True
            assert trimaran.current_session() is not session

        assert reached
        assert not scope.cancelled_caught
        assert await session.flush()
        assert session.statistics().delivered == 2


async def test_a_cancelled_session_leaves_its_sibling_and_its_telemetry_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The one is ended and delivered in the background; the other goes on recording."""
    capture = Capture([1.0])
    async with capture.open() as telemetry, telemetry.session(session_id="other") as other:
        with trio.move_on_after(2):
            async with telemetry.session(session_id="cut") as cut:
                await trio.sleep_forever()
        assert cut.statistics().pending == 1  # its end, which nobody waits for
        await trio.sleep(1)
        assert cut.statistics().delivered == 2
        other.track(CALL)

    assert other.statistics().delivered == 3
    assert [type(event) for event in capture.sessions()["cut"]] == [
        trimaran.SessionStart,
        trimaran.SessionEnd,
    ]


async def test_cancelled_blocks_are_recorded_and_not_taken_for_failures(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each says that it was cancelled and how long it had taken, and is delivered."""
    capture = Capture()
    with trio.move_on_after(3) as scope:
        async with capture.open() as telemetry, telemetry.session() as session:
            with session.generation(), session.tool_call("bash"), session.bridge_call("sql"):
                await trio.sleep_forever()

    assert scope.cancelled_caught
    [tool_call] = capture.events(trimaran.ToolCall)
    [bridge_call] = capture.events(trimaran.BridgeCall)
    [generation] = capture.events(trimaran.Generation)
    assert (tool_call.status, tool_call.error) == ("success", "cancelled")
    assert (bridge_call.status, bridge_call.error) == ("success", "cancelled")
    assert generation.finish_reason == "cancelled"
    assert {e.duration_ms for e in (tool_call, bridge_call, generation)} == {3000}


class SlowLogin:
    """An account that never comes."""

    async def account(self) -> trimaran.Account | None:
        """Never."""
        await trio.sleep_forever()

    async def token(self, *, refresh: bool) -> str | None:
        """Without an account nobody asks."""
        raise AssertionError("there is no account to have a token")


async def test_a_cancelled_opening_starts_and_sends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While the account is looked up there is no task, and no request, to leave behind."""
    living = trio.lowlevel.current_statistics().tasks_living
    transport = ScriptedTransport()
    with trio.move_on_after(1) as scope:
        async with trimaran.open_telemetry(
            "test", account=SlowLogin(), environ=ENVIRON, transport=transport
        ):
            raise AssertionError("it is not open")

    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1)
    assert trio.lowlevel.current_statistics().tasks_living == living
    assert transport.requests == []


async def test_run_telemetry_cancelled_before_it_has_started(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``nursery.start()`` ends with the cancellation, and the nursery holds nothing."""
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:
            await nursery.start(
                partial(
                    trimaran.run_telemetry,
                    "test",
                    account=SlowLogin(),
                    environ=ENVIRON,
                    transport=ScriptedTransport(),
                )
            )

        assert scope.cancelled_caught
        assert not nursery.child_tasks


async def test_run_telemetry_cancelled_while_it_runs_drains_to_its_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The sessions are ended for their tasks, and what an endpoint holds up is counted."""
    async with trio.open_nursery() as nursery:
        telemetry: trimaran.Telemetry = await nursery.start(
            partial(
                trimaran.run_telemetry,
                "test",
                environ=ENVIRON,
                transport=ScriptedTransport([FOREVER]),
                settings=trimaran.Settings(drain_timeout=2.0),
            )
        )
        async with telemetry.session() as session:
            session.track(CALL)
            await trio.sleep(1)
        cancelled_at = trio.current_time()
        nursery.cancel_scope.cancel()

    assert trio.current_time() - cancelled_at == pytest.approx(2.0)
    assert session.statistics().dropped == {"drain_timeout": 3}
    assert session.statistics().pending == 0


def test_a_cancelled_drain_where_nurseries_raise_what_they_are_given() -> None:
    """A host may still run trio so, in which a lone exception is in no group."""
    sessions: list[trimaran.Session] = []

    async def main() -> None:
        with trio.move_on_after(1) as scope:
            async with trimaran.open_telemetry(
                "test", environ=ENVIRON, transport=ScriptedTransport([FOREVER])
            ) as telemetry:
                async with telemetry.session() as session:
                    sessions.append(session)
        assert scope.cancelled_caught

    with pytest.warns(trio.TrioDeprecationWarning, match="strict_exception_groups"):
        trio.run(
            main,
            clock=trio.testing.MockClock(autojump_threshold=0),
            strict_exception_groups=False,
        )

    assert sessions[0].statistics().dropped == {"drain_timeout": 2}
