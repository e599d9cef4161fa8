"""Sessions with a spool: what is safe, what a later process delivers, what a bad disk costs."""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pytest
import structlog
import trio

import trimaran
from patience import PATIENCE
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import trio.testing

_Result = TypeVar("_Result")

CALL = trimaran.ToolCall(tool_name="bash")
ENVIRON = {"TEST_TELEMETRY_URL": "https://x.test"}
DOWN = trimaran.TransportError("down")


async def at_once(call: Callable[[], _Result]) -> _Result:
    """Run what blocks right here: a virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return call()


def adds_up(books: trimaran.Statistics) -> bool:
    """The ledger's equation, the spool included."""
    return (
        books.tracked == books.delivered + books.dropped_total + books.pending
        and 0 <= books.spooled <= books.pending
    )


@pytest.fixture
def open_spooled(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]]:
    """Opens telemetries that share one spool."""

    def make(
        transport: trimaran.Transport,
        *,
        settings: trimaran.Settings | None = None,
        environ: dict[str, str] | None = None,
        **spool: object,
    ) -> AbstractAsyncContextManager[trimaran.Telemetry]:
        chosen = trimaran.Settings() if settings is None else settings
        return trimaran.open_telemetry(
            "test",
            environ=ENVIRON if environ is None else environ,
            transport=transport,
            settings=msgspec.structs.replace(
                chosen,
                strict=True,
                spool=trimaran.Spool(directory=str(tmp_path / "state"), **spool),  # type: ignore[arg-type]
            ),
            run_blocking=at_once,
        )

    return make


def spooled_rows(tmp_path: Path) -> list[tuple[str, bytes]]:
    """Keys and bodies on disk."""
    with sqlite3.connect(tmp_path / "state" / "spool.db") as database:
        rows = database.execute("SELECT key, body FROM batches ORDER BY position, key").fetchall()
    database.close()
    return rows


async def test_delivered_nothing_is_left(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]], tmp_path: Path
) -> None:
    """With a healthy endpoint the spool changes nothing that one can see."""
    capture = Capture()
    async with open_spooled(capture) as telemetry, telemetry.session() as session:
        session.track(CALL)
        flushed = await session.flush()

    assert (flushed.complete, flushed.spooled) == (True, 0)
    assert session.statistics().delivered == 3
    assert spooled_rows(tmp_path) == []


async def test_a_batch_is_on_disk_before_its_first_attempt(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]], tmp_path: Path
) -> None:
    """The endpoint never sees what a crash could still lose."""

    class Looks(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            key = request.headers["idempotency-key"]
            assert dict(spooled_rows(tmp_path))[key] == request.body
            return await super().attempt(request)

    transport = Looks()
    async with open_spooled(transport) as telemetry, telemetry.session() as session:
        session.track(CALL)

    assert session.statistics().delivered == 3
    assert transport.requests


async def test_what_is_delivered_leaves_the_disk_in_company(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While others wait, eight at a time; the last at once."""
    left: list[int] = []

    class Looks(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            await trio.sleep(1)  # all others are put meanwhile
            left.append(len(spooled_rows(tmp_path)))
            return await super().attempt(request)

    settings = trimaran.Settings(batch_events=1)
    async with (
        open_spooled(Looks(), settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(23):
            session.track(CALL)
        await session.flush(timeout=math.inf)
        assert spooled_rows(tmp_path) == []

    assert left == [*[24] * 8, *[16] * 8, *[8] * 8, 1]


async def test_what_is_dropped_leaves_the_disk_at_once(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Before the next batch is tried, so that no later process delivers it after that."""
    on_disk: list[list[str]] = []

    class Looks(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            await trio.sleep(1)
            on_disk.append([key.rpartition("-")[2] for key, _ in spooled_rows(tmp_path)])
            return await super().attempt(request)

    transport = Looks([trimaran.Answer(200), trimaran.Answer(400)])
    settings = trimaran.Settings(batch_events=1)
    async with open_spooled(transport, settings=settings) as telemetry:
        async with telemetry.session() as session:
            for _ in range(3):
                session.track(CALL)
            await session.flush(timeout=math.inf)

    assert on_disk == [["0", "1", "2", "3"], ["0", "1", "2", "3"], ["2", "3"], ["2", "3"], ["4"]]


async def test_what_is_left_is_delivered_by_the_next_process(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With its own keys, in its order; the numbers of both processes tell."""
    dead = ScriptedTransport([DOWN] * 100)
    async with open_spooled(dead) as telemetry, telemetry.session(session_id="first") as session:
        for _ in range(500):
            session.track(CALL)
        flushed = await session.flush(timeout=1)
        assert not flushed
        assert flushed.spooled == flushed.pending == 501

    books = session.statistics()
    assert adds_up(books)
    assert (books.pending, books.spooled, books.dropped) == (502, 502, {})
    keys = [key for key, _ in spooled_rows(tmp_path)]

    capture = Capture()
    async with open_spooled(capture) as telemetry:
        await trio.sleep(1)
        leftovers = telemetry.leftovers()

    assert (leftovers.tracked, leftovers.delivered, leftovers.pending) == (502, 502, 0)
    assert [request.headers["idempotency-key"] for request in capture.requests] == keys
    assert len(capture.sessions()["first"]) == 502
    assert isinstance(capture.events()[-1], trimaran.SessionEnd)
    assert spooled_rows(tmp_path) == []


async def test_leftovers_of_another_destination_stay(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A batch is bound to its endpoint and tier."""
    async with open_spooled(ScriptedTransport([DOWN] * 100)) as telemetry, telemetry.session():
        pass

    elsewhere = Capture()
    async with open_spooled(elsewhere, environ={"TEST_TELEMETRY_URL": "https://y.test"}) as other:
        await trio.sleep(1)
        assert other.leftovers().tracked == 0

    assert elsewhere.requests == []
    assert len(spooled_rows(tmp_path)) >= 1


@pytest.mark.parametrize("email", ["", "ann@x.test"])
async def test_leftovers_of_another_account_stay(
    email: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """At the same URL, too, and without an e-mail address: with another token, it may be
    anybody. The account that left them takes them over.
    """

    def opened(
        token: str, email: str, transport: trimaran.Transport
    ) -> AbstractAsyncContextManager[trimaran.Telemetry]:
        return trimaran.open_telemetry(
            "test",
            account=trimaran.StaticAccount("https://x.test", token, email=email),
            environ={},
            settings=trimaran.Settings(
                spool=trimaran.Spool(directory=str(tmp_path / "state")), drain_timeout=0.5
            ),
            transport=transport,
            run_blocking=at_once,
        )

    down = ScriptedTransport([DOWN] * 100)
    async with opened("anns", email, down) as telemetry, telemetry.session(session_id="ann"):
        pass
    left = len(spooled_rows(tmp_path))
    capture = Capture()
    async with opened("bobs", "", capture) as telemetry:
        await trio.sleep(1)
        assert telemetry.leftovers().tracked == 0
    assert capture.requests == []
    assert len(spooled_rows(tmp_path)) == left > 0

    async with opened("anns", email, capture) as telemetry:
        await trio.sleep(1)
    assert telemetry.leftovers().delivered == 2
    assert {r.headers["authorization"] for r in capture.requests} == {"Bearer anns"}


async def test_an_outage_waits_on_disk_and_not_in_memory(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With room for 200 in memory, 5,000 survive an outage; order is kept."""
    settings = trimaran.Settings(
        mailbox_events=200, backlog_events=200, batch_events=50, drain_timeout=100
    )
    capture = Capture([DOWN] * 8)
    async with (
        open_spooled(capture, settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        for number in range(5000):
            session.track(trimaran.ToolCall(tool_name="bash", sequence_index=number))
            if number % 100 == 0:
                await trio.sleep(0.1)

    assert session.statistics().delivered == 5002
    arrived = [event.sequence_index for event in capture.events(trimaran.ToolCall)]
    assert arrived == list(range(5000))


@pytest.mark.parametrize("memory", [100_000, 64_000_000])
async def test_what_waits_is_in_memory_too_while_there_is_room(
    memory: int,
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It need not be read again then; half of the room is for what is not on disk yet."""
    settings = trimaran.Settings(
        batch_events=10, batch_bytes=20_000, event_bytes=10_000, memory_bytes=memory
    )
    capture = Capture([DOWN] * 8)
    async with open_spooled(capture, settings=settings) as telemetry:
        assert telemetry._supervisor is not None
        budget = telemetry._supervisor.shared.budget
        async with telemetry.session() as session:
            for _ in range(100):
                for _ in range(10):
                    session.track(CALL)
                await trio.sleep(0.01)
            charged = budget.used
            assert await session.flush(timeout=math.inf)

    assert session.statistics().delivered == 1002
    all_of_it = 1000 * 300
    assert charged < 60_000 if memory < all_of_it else charged > all_of_it


async def test_batches_that_come_together_are_put_together(tmp_path: Path) -> None:
    """The disk is waited for once for all of them."""
    calls = 0

    async def counted(call: Callable[[], _Result]) -> _Result:
        nonlocal calls
        calls += 1
        return await at_once(call)

    settings = trimaran.Settings(
        batch_events=1, drain_timeout=0, spool=trimaran.Spool(directory=str(tmp_path / "state"))
    )
    async with (
        trimaran.open_telemetry(
            "test",
            environ=ENVIRON,
            settings=settings,
            transport=ScriptedTransport([math.inf]),
            run_blocking=counted,
        ) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(100):
            session.track(CALL)
        await trio.testing.wait_all_tasks_blocked()
        assert session.statistics().spooled == 101

    assert len(spooled_rows(tmp_path)) == 101
    assert calls < 20


async def test_the_disk_has_a_bound_and_what_goes_is_counted(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The oldest go first, as spool_full; the newest are there for the next process."""
    settings = trimaran.Settings(batch_events=10)
    async with (
        open_spooled(
            ScriptedTransport([DOWN] * 100), settings=settings, most_bytes=10_000
        ) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(50):
            for _ in range(10):
                session.track(CALL)
            await trio.sleep(0.01)
            assert adds_up(session.statistics())

    books = session.statistics()
    assert adds_up(books)
    assert books.dropped["spool_full"] > 300
    assert books.pending == books.spooled
    assert sum(len(body) for _, body in spooled_rows(tmp_path)) <= 10_000


async def test_what_is_too_old_is_dropped_as_expired(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An age of nothing at all: whatever waits is too old for the next process."""
    async with (
        open_spooled(
            ScriptedTransport([math.inf]), settings=trimaran.Settings(drain_timeout=0.1)
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.track(CALL)
    left = session.statistics().spooled
    assert left > 0

    capture = Capture()
    async with open_spooled(capture, most_seconds=1e-9) as telemetry:
        await trio.testing.wait_all_tasks_blocked()
        leftovers = telemetry.leftovers()

    assert leftovers.dropped == {"expired": left}
    assert capture.requests == []
    assert spooled_rows(tmp_path) == []


async def test_withdrawn_consent_empties_the_disk(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No request is made after it, and nothing is kept for later."""
    environ = dict(ENVIRON)
    transport = ScriptedTransport([DOWN] * 100)
    settings = trimaran.Settings(batch_events=10)
    async with (
        open_spooled(transport, environ=environ, settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(100):
            session.track(CALL)
        await session.flush(timeout=0.2)
        assert session.statistics().spooled == 101
        environ["DO_NOT_TRACK"] = "1"
        before = len(transport.requests)

    assert len(transport.requests) == before
    assert session.statistics().dropped == {"consent_withdrawn": 102}
    assert adds_up(session.statistics())
    assert spooled_rows(tmp_path) == []


async def test_a_disk_that_cannot_be_used_costs_no_event(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A corrupt file: everything goes on from memory, and it is said once."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "spool.db").write_bytes(b"no database, but long enough " * 50)
    capture = Capture()
    with structlog.testing.capture_logs() as logs:
        async with open_spooled(capture) as telemetry, telemetry.session() as session:
            for _ in range(10):
                session.track(CALL)
                assert await session.flush()

    assert session.statistics().delivered == 12
    assert [line["event"] for line in logs] == ["telemetry spool failed"]
    assert "spool.db: file is not a database" in logs[0]["error"]


async def test_no_token_is_on_disk(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Neither in the rows nor anywhere else in the files."""
    settings = trimaran.Settings(spool=trimaran.Spool(directory=str(tmp_path)), drain_timeout=0.5)
    async with (
        trimaran.open_telemetry(
            "test",
            account=trimaran.StaticAccount("https://x.test", "s3cret-t0ken"),
            environ={},
            settings=settings,
            transport=ScriptedTransport([DOWN] * 100),
            run_blocking=at_once,
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.track(CALL)

    assert session.statistics().spooled == 3
    assert all(b"s3cret-t0ken" not in path.read_bytes() for path in tmp_path.iterdir())


async def test_a_halved_batch_is_safe_until_both_halves_are_decided(
    open_spooled: Callable[..., AbstractAsyncContextManager[trimaran.Telemetry]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A crash between the halves sends the whole again, with the same keys."""
    too_large = trimaran.Answer(413)
    transport = ScriptedTransport([too_large, trimaran.Answer(200), *[DOWN] * 100])
    async with open_spooled(transport) as telemetry, telemetry.session() as session:
        session.track(CALL)
        session.track(CALL)
        session.track(CALL)
        await session.flush(timeout=0.1)
        books = session.statistics()
        assert adds_up(books)
        assert (books.delivered, books.spooled) == (2, 2)

    keys = {request.headers["idempotency-key"] for request in transport.requests}
    assert {key.partition(".")[2] for key in keys} >= {"", "0", "1"}
    assert len(spooled_rows(tmp_path)) >= 1


async def test_without_a_spool_nothing_is_written(tmp_path: Path) -> None:
    """Opt-in means opt-in."""
    environ = {**ENVIRON, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    async with (
        trimaran.open_telemetry("test", environ=environ, transport=Capture()) as telemetry,
        telemetry.session(),
    ):
        pass

    assert list(tmp_path.iterdir()) == []


async def test_in_a_thread_it_works_as_well(tmp_path: Path) -> None:
    """The way it runs for users: the disk in a thread, a real clock."""
    settings = trimaran.Settings(
        spool=trimaran.Spool(directory=str(tmp_path)), drain_timeout=PATIENCE, strict=True
    )
    capture = Capture()
    async with (
        trimaran.open_telemetry(
            "test", environ=ENVIRON, settings=settings, transport=capture
        ) as telemetry,
        trio.open_nursery() as nursery,
    ):
        sessions: list[trimaran.Session] = []

        async def one() -> None:
            async with telemetry.session() as session:
                sessions.append(session)
                for _ in range(300):
                    await session.send(CALL)

        for _ in range(10):
            nursery.start_soon(one)

    assert [session.statistics().delivered for session in sessions] == [302] * 10


def test_the_default_place_is_the_users_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named after the app, so that two apps share nothing."""
    from trimaran._spool.file import spool_directory

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert spool_directory("altimate", trimaran.Spool()) == tmp_path / "altimate" / "telemetry"
    assert str(spool_directory("altimate", trimaran.Spool(directory="/x"))) == "/x"


async def test_the_file_is_closed_when_the_host_is_cancelled(tmp_path: Path) -> None:
    """No lock is left on it: the next telemetry of the same process takes over."""
    settings = trimaran.Settings(
        spool=trimaran.Spool(directory=str(tmp_path)), drain_timeout=0.1, strict=True
    )

    with trio.CancelScope() as scope:
        async with (
            trimaran.open_telemetry(
                "test", environ=ENVIRON, settings=settings, transport=ScriptedTransport([math.inf])
            ) as telemetry,
            telemetry.session() as session,
        ):
            with trio.fail_after(PATIENCE):
                while not session.statistics().spooled:  # noqa: ASYNC110 - as below
                    await trio.sleep(0.01)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    left = session.statistics().spooled
    assert left > 0

    async with trimaran.open_telemetry(
        "test", environ=ENVIRON, settings=settings, transport=ScriptedTransport()
    ) as telemetry:
        with trio.fail_after(PATIENCE):
            while telemetry.leftovers().delivered < left:  # noqa: ASYNC110 - a thread, not an event
                await trio.sleep(0.01)


async def test_leftovers_of_another_tier_or_account_stay(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """At the same URL: what one account left goes out with no other token, and with none."""
    settings = trimaran.Settings(
        spool=trimaran.Spool(directory=str(tmp_path / "state")), drain_timeout=0.5, strict=True
    )

    async def taken_over_by(account: trimaran.AccountProvider | None) -> int:
        transport = ScriptedTransport([DOWN] * 100)
        async with trimaran.open_telemetry(
            "test",
            environ=ENVIRON,
            account=account,
            settings=settings,
            transport=transport,
            run_blocking=at_once,
        ) as telemetry:
            await trio.sleep(1)
            return telemetry.leftovers().tracked

    ann = trimaran.StaticAccount(ENVIRON["TEST_TELEMETRY_URL"], "t", email="ann@x.test")
    async with (
        trimaran.open_telemetry(
            "test",
            environ=ENVIRON,
            account=ann,
            settings=settings,
            transport=ScriptedTransport([DOWN] * 100),
            run_blocking=at_once,
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.track(CALL)
    left = session.statistics().spooled
    assert left > 0

    bob = trimaran.StaticAccount(ENVIRON["TEST_TELEMETRY_URL"], "t", email="bob@x.test")
    assert await taken_over_by(None) == 0
    assert await taken_over_by(bob) == 0
    assert await taken_over_by(ann) == left
