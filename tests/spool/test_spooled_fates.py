"""What becomes of batches that are on disk, and of what they reported and took in memory."""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING, TypeVar

import pytest
import structlog
import trio
import trio.testing

import trimaran
from trimaran._endpoint.consent import Consent
from trimaran._pipeline.sender import Sender
from trimaran._spool.keeper import SpoolKeeper
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

_Result = TypeVar("_Result")

CALL = trimaran.ToolCall(tool_name="bash")
DOWN = trimaran.TransportError("down")


async def at_once(call: Callable[[], _Result]) -> _Result:
    """Run what blocks right here: a virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return call()


def opened(
    place: Path,
    transport: trimaran.Transport,
    *,
    most_bytes: int = 256 * 1024 * 1024,
    drain_timeout: float = 2.0,
    batch_events: int = 10,
    strict: bool = True,
    consent: Callable[[], bool] | None = None,
) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A telemetry whose spool lies there."""
    return trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test"},
        transport=transport,
        consent=consent,
        settings=trimaran.Settings(
            spool=trimaran.Spool(directory=str(place), most_bytes=most_bytes),
            drain_timeout=drain_timeout,
            batch_events=batch_events,
            strict=strict,
        ),
        run_blocking=at_once,
    )


def on_disk(place: Path) -> list[str]:
    """The keys of what is on disk, in its order."""
    with sqlite3.connect(place / "spool.db") as database:
        rows = database.execute("SELECT key FROM batches ORDER BY position, key").fetchall()
    database.close()
    return [key for (key,) in rows]


async def leave_behind(place: Path, events: int, *, batch_events: int = 10) -> None:
    """What a process leaves whose endpoint takes nothing."""
    async with (
        opened(
            place, ScriptedTransport([math.inf]), drain_timeout=0.5, batch_events=batch_events
        ) as telemetry,
        telemetry.session(announce=False) as session,
    ):
        for _ in range(events):
            session.track(CALL)
    assert session.statistics().spooled == events


async def test_halves_leave_the_disk_like_a_whole(tmp_path: Path) -> None:
    """A later process delivers none of them once more."""
    async with opened(tmp_path, Capture([trimaran.Answer(413)])) as telemetry:
        async with telemetry.session(announce=False) as session:
            session.track(CALL)
            session.track(CALL)
            assert await session.flush()
            assert session.statistics().delivered == 2
            assert on_disk(tmp_path) == []


async def test_a_body_that_the_disk_garbled_costs_itself_alone(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It cannot be halved, so it goes as it came: counted, off the disk, and nothing breaks."""
    await leave_behind(tmp_path, 20)
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("UPDATE batches SET body = CAST('garbled' AS BLOB) WHERE key LIKE '%-0'")
    database.close()

    class RefusesGarbled(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            if request.body == b"garbled":
                return trimaran.Answer(413)
            return await super().attempt(request)

    capture = RefusesGarbled()
    async with opened(tmp_path, capture) as telemetry:
        await trio.sleep(1)
        books = telemetry.leftovers()

    assert (books.tracked, books.delivered) == (20, 10)
    assert books.dropped == {"too_large": 10}
    assert on_disk(tmp_path) == []


async def test_what_an_evicted_batch_reported_is_reported_by_another(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The numbers that arrive add up to what was lost, and no memory is lost with it."""
    capture = Capture([DOWN] * 8)
    async with (
        opened(tmp_path, capture, most_bytes=10_000, drain_timeout=100) as telemetry,
        telemetry.session() as session,
    ):
        assert telemetry._supervisor is not None
        budget = telemetry._supervisor.shared.budget
        for _ in range(50):
            for _ in range(10):
                session.track(CALL)
            await trio.sleep(0.01)
        lost = session.statistics().dropped["spool_full"]
        assert lost > 300
        assert await session.flush(timeout=1000)
        assert (budget.used, budget.downstream) == (0, 0)

    assert session.statistics().dropped == {"spool_full": lost}
    told = [event.error_message for event in capture.events(trimaran.ErrorEvent)]
    assert sum(int(text.partition(" ")[0]) for text in told) == lost


async def test_withdrawn_consent_takes_what_other_sessions_have_on_disk_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """They need not come to their own turn: until then a crash would leave it lying there."""
    given = True
    transport = ScriptedTransport([math.inf])
    async with opened(tmp_path, transport, consent=lambda: given) as telemetry:
        async with telemetry.session(announce=False) as hung:
            for _ in range(50):
                hung.track(CALL)
            await trio.testing.wait_all_tasks_blocked()
            assert hung.statistics().spooled == 50
            given = False
            async with telemetry.session() as session:
                assert await session.flush()
            assert session.statistics().dropped == {"consent_withdrawn": 1}

            assert on_disk(tmp_path) == []
            books = hung.statistics()
            assert (books.spooled, books.pending) == (0, 10)  # those of the request under way
            assert books.dropped == {"consent_withdrawn": 40}

    # Time ran out for the last ten, which nobody may send any more.
    assert hung.statistics().dropped == {"consent_withdrawn": 50}
    assert len(transport.requests) == 1


async def test_leftovers_that_lose_their_place_under_way_are_counted_when_time_runs_out(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """What is on disk no more cannot be left to a later process: the drain is its end."""
    await leave_behind(tmp_path, 10)

    async with opened(tmp_path, ScriptedTransport([math.inf] * 9), most_bytes=4000) as telemetry:
        async with telemetry.session(announce=False) as session:
            await trio.testing.wait_all_tasks_blocked()
            assert telemetry.leftovers().spooled == 10
            for _ in range(30):
                session.track(CALL)
            await trio.testing.wait_all_tasks_blocked()
            assert telemetry.leftovers().spooled == 0
            assert telemetry.leftovers().pending == 10

    books = telemetry.leftovers()
    assert (books.pending, books.dropped) == (0, {"drain_timeout": 10})


@pytest.mark.parametrize("strict", [False, True])
async def test_a_bug_on_the_way_of_leftovers_leaves_them_where_they_are(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions go on; what was on disk no more is counted for what it is."""
    await leave_behind(tmp_path, 20)

    async def broken(sender: Sender, receive: trio.MemoryReceiveChannel[object]) -> None:
        sender._ledger.track(1)  # one that is not on disk
        raise ZeroDivisionError

    seen: list[trimaran.Telemetry] = []

    async def work() -> None:
        async with opened(tmp_path, Capture(), strict=strict) as telemetry:
            seen.append(telemetry)
            with monkeypatch.context() as patched:
                patched.setattr(Sender, "run", broken)
                await trio.testing.wait_all_tasks_blocked()
            async with telemetry.session() as session:
                assert await session.flush()
            assert session.statistics().delivered == 1

    with structlog.testing.capture_logs() as logs:
        if strict:
            with pytest.raises(ZeroDivisionError):
                await work()
        else:
            await work()

    books = seen[0].leftovers()
    assert (books.pending, books.spooled, books.dropped) == (20, 20, {"bug": 1})
    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry failed", "ZeroDivisionError")
    ]
    # The file was let go of, in either case: the next telemetry takes over what is there.
    async with opened(tmp_path, Capture()) as telemetry:
        await trio.testing.wait_all_tasks_blocked()
        assert telemetry.leftovers().delivered == 20


@pytest.mark.parametrize("strict", [False, True])
async def test_a_bug_in_taking_leftovers_over_leaves_the_sessions_alone(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told; only strict settings let it out."""

    async def broken(_keeper: SpoolKeeper, _books: object) -> list[object]:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    monkeypatch.setattr(SpoolKeeper, "take_over", broken)

    async def work() -> None:
        async with opened(tmp_path, Capture(), strict=strict) as telemetry:
            await trio.testing.wait_all_tasks_blocked()
            async with telemetry.session() as session:
                assert await session.flush()
            assert session.statistics().delivered == 1

    with structlog.testing.capture_logs() as logs:
        if strict:
            with pytest.raises(ZeroDivisionError):
                await work()
        else:
            await work()

    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry failed", "ZeroDivisionError")
    ]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_bug_in_the_last_look_at_consent_leaves_the_end_alone(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk stays there; only strict settings let it out."""

    async def broken(_consent: Consent) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    monkeypatch.setattr(Consent, "look", broken)
    transport = ScriptedTransport([math.inf])

    async def work() -> None:
        async with opened(tmp_path, transport, strict=strict, drain_timeout=0.5) as telemetry:
            async with telemetry.session() as session:
                await session.flush(timeout=0.1)
                assert session.statistics().spooled == 1

    with structlog.testing.capture_logs() as logs:
        if strict:
            with pytest.raises(ZeroDivisionError):
                await work()
        else:
            await work()

    assert ("telemetry failed", "ZeroDivisionError") in [
        (line["event"], line.get("error")) for line in logs
    ]


async def test_leftovers_belong_to_no_session_of_the_host(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A transport of the host's own that asks which session it serves is told: none."""
    await leave_behind(tmp_path, 10)
    around: list[str] = []

    class Asks(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            around.append(trimaran.current_session().id)
            return await super().attempt(request)

    async with trimaran.open_telemetry(
        "outer", environ={"OUTER_TELEMETRY_URL": "https://x.test"}, transport=Capture()
    ) as outer:
        async with outer.session(session_id="host's"), opened(tmp_path, Asks()):
            await trio.sleep(1)

    assert around == [""]


async def test_an_outage_that_leftovers_meet_is_told_with_them(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """They are a part of the backlog: the line comes when they are through, and counts them."""
    await leave_behind(tmp_path, 10)

    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path, Capture([DOWN] * 5)) as telemetry:
            await trio.sleep(60)
            assert telemetry._supervisor is not None
            outages = telemetry._supervisor.shared.routes[0].outages
            assert outages.totals() == (10, 0, 0)
            assert not outages._running  # their books are closed, and kept nowhere

    lines = [line for line in logs if "delivery" in line["event"]]
    assert [line["event"] for line in lines] == [
        "telemetry delivery lost",
        "telemetry delivery restored",
    ]
    assert lines[0]["pending"] == 10
    assert (lines[1]["delivered"], lines[1]["dropped"]) == (10, 0)
