"""A spool for each of several destinations: what is one's own stays apart."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

import trimaran
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import trio.testing

_Result = TypeVar("_Result")

ENVIRON = {"TEST_TELEMETRY_URL": "https://x.test"}
DOWN = trimaran.TransportError("down")


class Down(ScriptedTransport):
    """A destination that cannot be reached."""

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        raise DOWN


async def at_once(call: Callable[[], _Result]) -> _Result:
    """Run what blocks right here: a virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return call()


@asynccontextmanager
async def opened(
    directory: Path,
    first: trimaran.Transport,
    *others: trimaran.Destination,
    environ: dict[str, str] = ENVIRON,
    consent: Callable[[], bool] | None = None,
    most_bytes: int = 10_000_000,
) -> AsyncIterator[trimaran.Telemetry]:
    """A telemetry with *others* beside the endpoint, and its spool in *directory*."""
    async with trimaran.open_telemetry(
        "test",
        environ=environ,
        transport=first,
        destinations=others,
        settings=trimaran.Settings(
            strict=True, spool=trimaran.Spool(directory=str(directory), most_bytes=most_bytes)
        ),
        consent=consent,
        run_blocking=at_once,
    ) as telemetry:
        yield telemetry


def at(transport: trimaran.Transport, name: str = "beside") -> trimaran.Destination:
    """A second destination."""
    return trimaran.Destination(name=name, transport=transport)


def rows(directory: Path) -> list[tuple[str, str, int]]:
    """Keys, destinations and numbers of events on disk."""
    with closing(sqlite3.connect(directory / "spool.db")) as database:
        return database.execute(
            "SELECT key, destination, events - reports FROM batches ORDER BY position, key"
        ).fetchall()


async def test_what_one_cannot_have_waits_for_it_alone(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """In a folder of its own; a later process delivers it there, and nowhere else."""
    first, down = Capture(), Down()
    async with opened(tmp_path, first, at(down)) as telemetry, telemetry.session() as session:
        session.command("init")

    books = session.statistics()
    assert books.delivered == 3
    waiting = books.destinations["beside"]
    assert (waiting.delivered, waiting.pending, waiting.spooled) == (0, 3, 3)
    assert rows(tmp_path) == []
    kept = rows(tmp_path / "beside")
    assert {destination for _, destination, _ in kept} == {"given beside"}
    assert sum(events for *_, events in kept) == 3

    again, other, stranger = Capture(), Capture(), Capture()
    async with opened(tmp_path, again, at(stranger, "stranger"), at(other)) as telemetry:
        await trio.sleep(10)
        left = telemetry.leftovers()

    assert again.requests == stranger.requests == []
    assert [request.headers["idempotency-key"] for request in other.taken] == [
        key for key, *_ in kept
    ]
    assert other.sessions() == first.sessions()
    assert (left.tracked, left.delivered) == (0, 0)
    assert {
        name: (books.tracked, books.delivered) for name, books in left.destinations.items()
    } == {
        "endpoint": (0, 0),
        "stranger": (0, 0),
        "beside": (3, 3),
    }
    assert rows(tmp_path / "beside") == []


async def test_what_one_leaves_on_disk_takes_no_room_from_another(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The bounds are each one's own."""
    down, other = Down(), Down()
    async with opened(tmp_path, down, at(other), most_bytes=20_000) as telemetry:
        async with telemetry.session() as session:
            await session.flush(timeout=0)
            await trio.sleep(1)
            for _ in range(20):
                for _ in range(20):
                    await session.send(trimaran.Command(command_name="x" * 50))
                await trio.sleep(6)

    each = session.statistics().destinations
    assert each["endpoint"].spooled > 50
    assert each["beside"].spooled > 50
    assert each["endpoint"].dropped["spool_full"] > 50
    assert each["beside"].dropped["spool_full"] > 50


async def test_withdrawn_consent_empties_every_spool(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Also what an earlier process left for a destination that is down."""
    async with opened(tmp_path, Down(), at(Down())) as telemetry:
        async with telemetry.session() as session:
            session.command("init")
    assert session.statistics().spooled == 3

    agreed = True
    async with opened(tmp_path, Down(), at(Down()), consent=lambda: agreed) as telemetry:
        async with telemetry.session() as session:
            session.command("init")
            await trio.sleep(1)
            agreed = False

    for books in session.statistics().destinations.values():
        assert books.dropped == {"consent_withdrawn": 3}
    for books in telemetry.leftovers().destinations.values():
        assert books.dropped == {"consent_withdrawn": 3}
    assert rows(tmp_path) == rows(tmp_path / "beside") == []


async def test_without_an_endpoint_each_still_has_its_own_folder(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """What is left for a destination is found again once there is an endpoint."""
    async with opened(tmp_path, Down(), at(Down()), environ={}) as telemetry:
        async with telemetry.session() as session:
            session.command("init")
    assert not (tmp_path / "spool.db").exists()
    assert session.statistics().spooled == 3

    first, other = Capture(), Capture()
    async with opened(tmp_path, first, at(other)) as telemetry:
        await trio.sleep(10)

    assert first.requests == []
    assert len(other.events()) == 3
    assert telemetry.leftovers().destinations["beside"].delivered == 3


async def test_what_is_spooled_says_spans_where_they_are_wanted(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It is bound to who takes them, as it is at the endpoint."""

    class WantsSpans(Down):
        wants_spans = True

    async with opened(tmp_path, Down(), at(WantsSpans())) as telemetry:
        async with telemetry.session() as session:
            session.command("init")
    assert session.statistics().destinations["beside"].spooled == 3

    ((_, bound, _), *_) = rows(tmp_path / "beside")
    assert bound == "given beside with spans"
    for directory, is_wanted in ((tmp_path, False), (tmp_path / "beside", True)):
        with closing(sqlite3.connect(directory / "spool.db")) as database:
            bodies = [body for (body,) in database.execute("SELECT body FROM batches")]
        assert {
            "span_id" in event for body in bodies for event in msgspec.json.decode(body)["events"]
        } == {is_wanted}
