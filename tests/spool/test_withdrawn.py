"""Consent that goes while nothing is attempted: what is on disk goes with it, all the same."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio

import trimaran
from trimaran._spool.values import SpoolError
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import trio.testing

_Result = TypeVar("_Result")

ENVIRON = {"TEST_TELEMETRY_URL": "https://x.test"}
NAME = "a-name-to-look-for"
COMMAND = trimaran.Command(command_name=NAME)
ACCOUNT = trimaran.Account("https://a.test", "a@x.test")


async def at_once(call: Callable[[], _Result], /) -> _Result:
    """Run what blocks right here: a virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return call()


class User:
    """Somebody who is logged in for now."""

    def __init__(self) -> None:
        self.account_now: trimaran.Account | None = ACCOUNT
        self.delay = 0.0

    async def account(self) -> trimaran.Account | None:
        """Who is logged in."""
        await trio.sleep(self.delay)
        return self.account_now

    async def token(self, *, refresh: bool) -> str | None:
        """The one token there is."""
        await trio.lowlevel.checkpoint()
        return None if refresh else "token"


class Switch:
    """The host's own."""

    is_on = True

    def __call__(self) -> bool:
        """Whether events may be sent."""
        return self.is_on


def opened(
    directory: Path,
    transport: trimaran.Transport,
    *,
    drain_timeout: float = 2.0,
    run: Any = at_once,
    account: User | None = None,
    **given: Any,
) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A telemetry whose spool lies in *directory*."""
    return trimaran.open_telemetry(
        "test",
        environ=ENVIRON if account is None else {},
        account=account,
        transport=transport,
        settings=trimaran.Settings(
            spool=trimaran.Spool(directory=str(directory)),
            drain_timeout=drain_timeout,
            strict=True,
        ),
        run_blocking=run,
        **given,
    )


def events_on_disk(directory: Path) -> int:
    """How many events the spool holds."""
    with closing(sqlite3.connect(directory / "spool.db")) as database:
        found: int = database.execute("SELECT total(events) FROM batches").fetchone()[0]
    return found


def files_with_it(directory: Path) -> list[str]:
    """Files in which the command's name can be read."""
    return [path.name for path in directory.rglob("*") if NAME.encode() in path.read_bytes()]


@pytest.mark.parametrize("drain_timeout", [0.0, 0.5])
@pytest.mark.parametrize("answer", [math.inf, trimaran.Answer(503, retry_after="100")])
async def test_leaving_takes_it_off_the_disk(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    answer: Any,
    drain_timeout: float,
) -> None:
    """However the endpoint keeps the next request from being made, and however short the time is;
    the next process has nothing to send.
    """
    switch = Switch()
    transport = ScriptedTransport([answer] * 10)
    telemetry = opened(tmp_path, transport, drain_timeout=drain_timeout, consent=switch)
    async with telemetry as opened_one, opened_one.session() as session:
        session.track(COMMAND)
        await session.flush(timeout=1)
        assert events_on_disk(tmp_path) == session.statistics().spooled == 2
        before = len(transport.requests)
        switch.is_on = False

    assert len(transport.requests) == before
    assert session.statistics().dropped == {"consent_withdrawn": 3}
    assert session.statistics().pending == 0
    assert events_on_disk(tmp_path) == 0
    assert files_with_it(tmp_path) == []
    capture = Capture()
    async with opened(tmp_path, capture) as later:
        await trio.sleep(10)
    assert capture.requests == []
    assert later.leftovers().tracked == 0


async def test_without_consent_nothing_comes_onto_the_disk(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Not even a file; with a yes that comes later, it is kept as usual."""
    switch = Switch()
    switch.is_on = False
    directory = tmp_path / "state"
    async with opened(directory, ScriptedTransport([math.inf]), consent=switch) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            assert await session.flush()
            assert session.statistics().dropped == {"consent_withdrawn": 2}
            assert not directory.exists()
            switch.is_on = True
            session.track(COMMAND)
            await session.flush(timeout=1)
            assert session.statistics().spooled == 1


async def test_what_is_tracked_after_the_no_takes_the_rest_off_the_disk(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """While the one request of the session hangs, so that nobody asks for another."""
    switch = Switch()
    async with opened(tmp_path, ScriptedTransport([math.inf]), consent=switch) as telemetry:
        async with telemetry.session(announce=False) as session:
            session.track(COMMAND)
            await session.flush(timeout=1)
            assert events_on_disk(tmp_path) == 1
            switch.is_on = False
            session.track(COMMAND)
            await session.flush(timeout=1)

            assert events_on_disk(tmp_path) == 0
            assert files_with_it(tmp_path) == []
            assert session.statistics().spooled == 0
    assert session.statistics().dropped == {"consent_withdrawn": 2}


async def test_who_logs_out_while_a_token_is_refused_is_heard(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """No request is made without a token, but who would want it is asked for as before one."""
    user = User()
    transport = ScriptedTransport([trimaran.Answer(401)] * 1000)
    async with opened(tmp_path, transport, account=user) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            await session.flush(timeout=10)
            assert session.statistics().spooled == 2
            user.account_now = None
            assert await session.flush(timeout=100)

            assert session.statistics().dropped == {"consent_withdrawn": 2}
            assert events_on_disk(tmp_path) == 0
    assert files_with_it(tmp_path) == []


async def test_the_account_is_looked_up_once_more_on_leaving(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The last request hangs since before the user logged out."""
    user = User()
    async with opened(tmp_path, ScriptedTransport([math.inf]), account=user) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            await session.flush(timeout=0.1)
            user.account_now = None

    assert session.statistics().dropped == {"consent_withdrawn": 3}
    assert events_on_disk(tmp_path) == 0


async def test_it_is_looked_up_also_where_nothing_is_on_disk_yet(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """All was delivered before the user logged out; the session's end is all that is left."""
    user = User()
    transport = ScriptedTransport([trimaran.Answer(200), math.inf])
    async with opened(tmp_path, transport, account=user) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            assert await session.flush(timeout=1)
            assert session.statistics().spooled == 0
            user.account_now = None

    assert session.statistics().dropped == {"consent_withdrawn": 1}
    assert events_on_disk(tmp_path) == 0


@pytest.mark.parametrize(("answer", "seconds"), [(math.inf, 2.0), (trimaran.Answer(200), 0.0)])
async def test_an_account_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, answer: Any, seconds: float
) -> None:
    """Neither past the deadline, nor where all that is on disk is delivered before that."""
    user = User()
    async with opened(tmp_path, ScriptedTransport([answer] * 9), account=user) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            await session.flush(timeout=0.1)
            user.delay = math.inf
        began = trio.current_time()

    assert trio.current_time() - began == pytest.approx(seconds)
    books = session.statistics()
    assert books.pending == books.spooled == books.tracked - books.delivered


async def test_a_disk_that_does_not_obey_is_told_once_more_at_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It counts as withdrawn from the start."""
    switch = Switch()
    fails = False

    async def run(call: Callable[[], _Result], /) -> _Result:
        await trio.lowlevel.checkpoint()
        if fails:
            raise SpoolError("the disk failed")
        return call()

    async with opened(
        tmp_path, ScriptedTransport([math.inf]), consent=switch, run=run
    ) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            await session.flush(timeout=1)
            switch.is_on, fails = False, True
            session.track(COMMAND)
            await session.flush(timeout=1)
            assert session.statistics().spooled == 0
            assert events_on_disk(tmp_path) == 2
            fails = False

    assert events_on_disk(tmp_path) == 0
    assert session.statistics().dropped == {"consent_withdrawn": 4}


async def test_leftovers_go_too(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Those that wait behind a request that hangs, and those in it."""
    for _ in range(2):
        async with opened(tmp_path, ScriptedTransport([math.inf] * 2)) as telemetry:
            async with telemetry.session(announce=False) as session:
                session.track(COMMAND)
        assert session.statistics().spooled == 1
    switch = Switch()
    transport = ScriptedTransport([math.inf])
    async with opened(tmp_path, transport, consent=switch) as telemetry:
        await trio.sleep(1)
        assert telemetry.leftovers().spooled == 2
        switch.is_on = False

    books = telemetry.leftovers()
    assert (books.tracked, books.pending, books.dropped) == (2, 0, {"consent_withdrawn": 2})
    assert len(transport.requests) == 1
    assert events_on_disk(tmp_path) == 0


async def test_every_destination_of_several_is_emptied(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """And what had not come to them yet is counted for that reason, too."""
    switch = Switch()
    beside = trimaran.Destination(name="beside", transport=ScriptedTransport([math.inf]))
    async with opened(
        tmp_path,
        ScriptedTransport([math.inf]),
        destinations=[beside],
        consent=switch,
        drain_timeout=0.0,
    ) as telemetry:
        async with telemetry.session() as session:
            session.track(COMMAND)
            await session.flush(timeout=1)
            assert events_on_disk(tmp_path) == events_on_disk(tmp_path / "beside") == 2
            switch.is_on = False
            session.track(COMMAND)

    for books in session.statistics().destinations.values():
        assert (books.pending, books.dropped) == (0, {"consent_withdrawn": 4})
    assert events_on_disk(tmp_path) == events_on_disk(tmp_path / "beside") == 0
