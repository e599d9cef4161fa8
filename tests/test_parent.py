"""A sub-agent's session says whose it is, by whatever way its batches go out."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from patience import PATIENCE
from trimaran._pipeline.wire import LONGEST_PARENT, parent_headers
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.file import SpoolFile
from trimaran.receiver.wire import parent_of
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import LoopbackEndpoint
    from trimaran.receiver import Receiver

HEADER = "trimaran-parent-session"
COMMAND = trimaran.Command(command_name="init")


def parents_in(requests: list[trimaran.Request]) -> list[str | None]:
    """What each request says of its parent."""
    return [request.headers.get(HEADER) for request in requests]


def telemetry_at(url: str, **named: Any) -> Any:
    """A telemetry that delivers there."""
    chosen = {"settings": trimaran.Settings(drain_timeout=PATIENCE), **named}
    return trimaran.open_telemetry("test", environ={"TEST_TELEMETRY_URL": url}, **chosen)


def spool_file(directory: Path, owner: str) -> SpoolFile:
    """A process's hold on the spool there."""
    return SpoolFile(
        directory,
        owner=owner,
        destination="d",
        most_bytes=1000,
        most_seconds=1000.0,
        survives="kill",
        wall_clock=lambda: 1.0,
    )


async def stored(receiver: Receiver, session_id: str) -> dict[str, Any]:
    """What the receiver says of a session."""
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        answer = await client.get(f"/api/sessions/{quote(session_id, safe='')}")
    found: dict[str, Any] = answer.json()
    return found


async def test_every_request_of_a_session_names_its_parent() -> None:
    """In a header, since the body has no key for it; other sessions' requests do not."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session(session_id="main") as main:
        async with telemetry.session(session_id="sub", parent_session_id=main.id) as sub:
            await sub.flush()
            sub.track(COMMAND)

    parents = {
        (json.loads(request.body)["session_id"], request.headers.get(HEADER))
        for request in capture.requests
    }
    assert parents == {("main", None), ("sub", "main")}
    assert len(capture.requests) >= 4
    for request in capture.requests:
        body = json.loads(request.body)
        assert set(body) == {
            *("session_id", "cli_version", "user_email", "project_id", "timestamp", "events")
        }
        assert not any("parent" in key for event in body["events"] for key in event)


@pytest.mark.parametrize("parent", [None, ""])
async def test_a_session_without_a_parent_says_nothing_of_one(parent: str | None) -> None:
    """There is no empty header."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session(parent_session_id=parent):
        pass

    assert set(parents_in(capture.requests)) == {None}


@pytest.mark.parametrize(
    "parent",
    [
        "ses_1",
        "a b",
        "ä/日本 😀",
        "50%",
        "a%20b",
        'x"y',
        "tr\N{RIGHT-TO-LEFT OVERRIDE}ue",
        "'",
        ".x",
    ],
)
async def test_the_receiver_has_the_parent_as_it_was_named(receiver: Receiver, parent: str) -> None:
    """Over real HTTP, whatever characters are in it; the parent has its child."""
    async with telemetry_at(receiver.url) as telemetry:
        async with telemetry.session(session_id=parent):
            pass
        async with telemetry.session(session_id="sub", parent_session_id=parent):
            pass

    assert (await stored(receiver, "sub"))["parent_session_id"] == parent
    assert (await stored(receiver, parent))["children"] == ["sub"]


@pytest.mark.parametrize(
    "parent", ["a\r\nAuthorization: Bearer x", "\0", "a\n", "\x7f", "\ud800", "x" * 257]
)
async def test_no_parent_can_break_a_request(receiver: Receiver, parent: str) -> None:
    """What no session can be called is not taken for a parent, and costs no event."""
    async with telemetry_at(receiver.url) as telemetry:
        async with telemetry.session(session_id="sub", parent_session_id=parent) as sub:
            sub.track(COMMAND)

    assert sub.statistics().delivered == 3
    found = await stored(receiver, "sub")
    assert found["event_count"] == 3
    assert found["parent_session_id"] in {None, "\N{REPLACEMENT CHARACTER}", "?"}


@given(st.text(min_size=1, max_size=LONGEST_PARENT))
def test_any_text_stands_in_a_header(parent: str) -> None:
    """As printable ASCII of a bounded length; the receiver reads what was written."""
    parent = parent.encode(errors="replace").decode()
    (header,) = parent_headers(parent).values()

    assert header.isascii()
    assert header.isprintable()
    assert " " not in header
    assert len(header) <= 12 * LONGEST_PARENT
    assert parent_of(header) in {parent, None}
    if parent.isprintable():
        assert parent_of(header) == parent


@pytest.mark.parametrize(("length", "is_named"), [(LONGEST_PARENT, True), (257, False)])
async def test_a_parent_that_is_too_long_is_left_out(length: int, is_named: bool) -> None:
    """With one warning that does not quote it; nothing else is missing."""
    capture = Capture()
    with structlog.testing.capture_logs() as logs:
        async with capture.open() as telemetry:
            async with telemetry.session(parent_session_id="x" * length):
                pass

    assert set(parents_in(capture.requests)) == {"x" * length if is_named else None}
    warning = {
        "event": "telemetry parent session not named",
        "log_level": "warning",
        "characters": length,
    }
    assert logs == ([] if is_named else [warning])
    assert len(capture.events()) == 2


async def test_the_halves_of_a_batch_name_the_parent_too() -> None:
    """What is too large goes out in parts, each with the header."""
    capture = Capture([trimaran.Answer(413)])
    async with capture.open() as telemetry:
        async with telemetry.session(parent_session_id="main") as session:
            for _ in range(9):
                session.track(COMMAND)

    assert len(capture.requests) > len(capture.taken) >= 2
    assert set(parents_in(capture.requests)) == {"main"}


async def test_a_session_in_a_thread_names_its_parent() -> None:
    """The plain way to open one takes the same argument."""
    capture = Capture()

    def work() -> None:
        with trimaran.open_in_thread(
            "test", environ={"TEST_TELEMETRY_URL": "https://x.test"}, transport=capture
        ) as telemetry:
            with telemetry.session(parent_session_id="main") as session:
                session.track(COMMAND)

    await trio.to_thread.run_sync(work)
    assert set(parents_in(capture.requests)) == {"main"}


async def test_what_is_left_on_disk_names_the_parent_later(tmp_path: Path) -> None:
    """Also in halves: the process that finds it knows nothing of the session."""
    settings = trimaran.Settings(
        drain_timeout=1.0, spool=trimaran.Spool(directory=str(tmp_path / "state")), strict=True
    )
    down = ScriptedTransport([trimaran.TransportError("down")] * 1000)
    async with telemetry_at("https://x.test", transport=down, settings=settings) as telemetry:
        async with (
            telemetry.session(session_id="sub", parent_session_id="ä", announce=False) as sub,
            telemetry.session(session_id="main", announce=False) as main,
        ):
            for session in (sub, main):
                for _ in range(2):
                    session.track(COMMAND)
                await session.flush(timeout=0)
                with trio.fail_after(PATIENCE):
                    while session.statistics().spooled < 2:  # noqa: ASYNC110 - no event for it
                        await trio.sleep(0.01)

    capture = Capture([trimaran.Answer(413)])
    async with telemetry_at("https://x.test", transport=capture, settings=settings) as telemetry:
        with trio.fail_after(PATIENCE):
            while telemetry.leftovers().delivered < 4:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)

    assert sorted(
        (json.loads(request.body)["session_id"], request.headers.get(HEADER))
        for request in capture.taken
    ) == [("main", None), ("sub", "%C3%A4"), ("sub", "%C3%A4")]


def test_halves_on_disk_keep_the_parent(tmp_path: Path) -> None:
    """For the process that finds them, should this one end before it has sent them."""
    spool = spool_file(tmp_path, "one")
    spool.put("k", b"{}", events=2, reports=0, parent_session_id="main")
    assert spool.split("k", [("k.0", b"{}", 1, 0), ("k.1", b"{}", 1, 0)])
    spool.close()

    later = spool_file(tmp_path, "two")
    kept, _ = later.take_over()
    later.close()

    assert [(each.key, each.parent_session_id) for each in kept] == [
        ("k.0", "main"),
        ("k.1", "main"),
    ]


async def test_a_killed_process_leaves_the_name_of_the_parent(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """The next process delivers what it had on disk, and says whose it was."""
    endpoint.always(503)
    program = f"""
import os, trio, trimaran
async def main():
    settings = trimaran.Settings(spool=trimaran.Spool(directory={str(tmp_path / "state")!r}))
    async with trimaran.open_telemetry("test", settings=settings) as telemetry:
        async with telemetry.session(session_id="sub", parent_session_id="main") as session:
            while not session.statistics().spooled:
                await trio.sleep(0.01)
            os.kill(os.getpid(), 9)
trio.run(main)
"""
    with trio.fail_after(PATIENCE):
        killed = await trio.run_process(
            [sys.executable, "-c", program],
            env={"TEST_TELEMETRY_URL": endpoint.url},
            check=False,
            capture_stderr=True,
        )
    assert killed.returncode == -9, killed.stderr

    endpoint.always(200)
    settings = trimaran.Settings(spool=trimaran.Spool(directory=str(tmp_path / "state")))
    before = len(endpoint.requests)
    async with telemetry_at(endpoint.url, settings=settings) as telemetry:
        with trio.fail_after(PATIENCE):
            while not telemetry.leftovers().delivered:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)

    later = endpoint.requests[before:]
    assert later
    assert {request.headers[HEADER] for request in later} == {"main"}


def test_a_spool_from_before_there_were_parents_is_read_on(tmp_path: Path) -> None:
    """Its batches have none; a person can look at it before anybody has opened it to send."""
    old = spool_file(tmp_path, "old")
    old.put("k1", b"{}", events=2, reports=1)
    old.close()
    with closing(sqlite3.connect(tmp_path / "spool.db", isolation_level=None)) as database:
        for column in ("handed_by", "parent_session_id", "traceparent"):
            database.execute(f"ALTER TABLE batches DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 1")

    assert [row.key for row in SpoolBrowser(tmp_path).rows()] == ["k1"]

    new = spool_file(tmp_path, "new")
    (kept,), _ = new.take_over()
    assert (kept.key, kept.parent_session_id) == ("k1", "")
    new.put("k2", b"{}", events=1, reports=0, parent_session_id="main")
    new.close()
    assert [row.key for row in SpoolBrowser(tmp_path).rows()] == ["k1", "k2"]
