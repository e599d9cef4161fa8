"""What sessions share on the way out: the token, consent, the transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog
import trio

import trimaran
from trimaran._endpoint.token import is_usable_token
from trimaran.testing import Capture

if TYPE_CHECKING:
    import trio.testing

CALL = trimaran.ToolCall(tool_name="bash")


class RenewingLogin:
    """An account whose token is renewed as told."""

    def __init__(self, *renewed: str | Exception | None, delay: float = 0.0) -> None:
        self._renewed = list(renewed)
        self._delay = delay
        self.refreshes = 0

    async def account(self) -> trimaran.Account:
        return trimaran.Account("https://x.test", "me@x.test")

    async def token(self, *, refresh: bool) -> str | None:
        if not refresh:
            return "old"
        self.refreshes += 1
        await trio.sleep(self._delay)
        token = self._renewed.pop(0) if self._renewed else None
        if isinstance(token, Exception):
            raise token
        return token


class TakesTokens(Capture):
    """An endpoint that takes some tokens and answers 401 to all others."""

    def __init__(self, *good: str) -> None:
        super().__init__()
        self.good = set(good)
        self.tokens: list[str] = []

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        token = request.headers["authorization"].removeprefix("Bearer ")
        self.tokens.append(token)
        given = await super().attempt(request)
        if token in self.good:
            return given
        self.taken.pop()
        return trimaran.Answer(401)


async def test_a_refused_token_is_refreshed_once_and_the_batch_sent_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The same batch, with the same key, and at once."""
    login, capture = RenewingLogin("new"), TakesTokens("new")
    began = trio.current_time()

    async with capture.open(account=login) as telemetry, telemetry.session() as session:
        session.track(CALL)

    assert capture.tokens == ["old", "new"]
    assert session.statistics().delivered == 3
    assert len({request.headers["idempotency-key"] for request in capture.requests}) == 1
    assert trio.current_time() == began


async def test_many_sessions_make_one_refresh(autojump_clock: trio.testing.MockClock) -> None:
    """Single flight: the first asks, the others take what it got."""
    login, capture = RenewingLogin("new", delay=0.5), TakesTokens("new")
    sessions: list[trimaran.Session] = []

    async with capture.open(account=login) as telemetry, trio.open_nursery() as nursery:

        async def one() -> None:
            async with telemetry.session() as session:
                sessions.append(session)
                assert await session.flush()

        for _ in range(50):
            nursery.start_soon(one)

    assert login.refreshes == 1
    assert all(session.statistics().delivered == 2 for session in sessions)


@pytest.mark.parametrize("renewed", [None, "worse", OSError("no disk"), "two\nlines"])
async def test_a_refresh_that_does_not_help_holds(
    renewed: str | Exception | None, autojump_clock: trio.testing.MockClock
) -> None:
    """No hot loop, never the anonymous tier: a refresh a minute, then delivered or dropped."""
    login, capture = RenewingLogin(renewed), TakesTokens("right")

    async with capture.open(account=login) as telemetry, telemetry.session() as session:
        await trio.sleep(55)
        assert login.refreshes == 1
        assert len(capture.tokens) <= 2
        assert session.statistics().pending == 1

    assert session.statistics().dropped == {"unauthorized": 2}


async def test_a_token_that_is_renewed_later_delivers_what_was_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing is lost while there is room and time."""
    login, capture = RenewingLogin(None, "new"), TakesTokens("new")

    async with capture.open(account=login) as telemetry, telemetry.session() as session:
        session.track(CALL)
        await trio.sleep(130)

    assert session.statistics().delivered == 3
    assert login.refreshes == 2


async def test_held_for_too_long_it_is_dropped_as_unauthorized(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The time that one batch is tried for covers a refused token too."""
    settings = trimaran.Settings(retry_timeout=100)
    async with (
        TakesTokens().open(account=RenewingLogin(), settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        assert await session.flush(timeout=1000)
        assert session.statistics().dropped == {"unauthorized": 1}


async def test_a_slow_refresh_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """A provider that hangs holds up no exit, and is told once."""
    began = trio.current_time()
    with structlog.testing.capture_logs() as logs:
        async with (
            TakesTokens().open(account=RenewingLogin("new", delay=10_000)) as telemetry,
            telemetry.session(),
        ):
            await trio.sleep(20)

    assert trio.current_time() - began == pytest.approx(22)
    assert "telemetry token cannot be had" in [line["event"] for line in logs]


async def test_the_token_is_in_no_log_repr_statistics_or_exception(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whatever fails, it never shows."""

    class Quotes(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            raise RuntimeError(request.headers["authorization"])

    with structlog.testing.capture_logs() as logs:
        async with (
            Quotes().open(account=trimaran.StaticAccount("https://x.test", "t0k3n")) as telemetry,
            telemetry.session() as session,
        ):
            await trio.sleep(1)
            shown = f"{telemetry!r}{session!r}{session.statistics()!r}"

    assert logs
    assert "t0k3n" not in repr(logs) + shown
    assert "t0k3n" not in repr(trimaran.Request("u", {"authorization": "t0k3n"}, b"t0k3n"))


async def test_a_switch_set_while_running_stops_sending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Consent is looked at before every send; what waits is dropped and says why."""
    capture = Capture()
    environ = {"TEST_TELEMETRY_URL": "https://x.test"}

    async with capture.open(environ=environ) as telemetry, telemetry.session() as session:
        assert await session.flush()
        environ["TEST_TELEMETRY_DISABLED"] = "yes"
        session.track(CALL)

    assert len(capture.requests) == 1
    assert session.statistics().dropped == {"consent_withdrawn": 2}


async def test_a_switch_set_during_a_refresh_stops_the_second_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The attempt after a 401 is a send as well."""
    environ: dict[str, str] = {}
    capture = TakesTokens("new")

    class Withdraws(RenewingLogin):
        async def token(self, *, refresh: bool) -> str | None:
            if refresh:
                environ["DO_NOT_TRACK"] = "1"
            return await super().token(refresh=refresh)

    async with (
        capture.open(account=Withdraws("new"), environ=environ) as telemetry,
        telemetry.session(),
    ):
        pass

    assert capture.tokens == ["old"]


async def test_requests_under_way_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """However many sessions there are; waiting for a turn is not counted as the request's time."""
    running = 0
    most = 0

    class Slow(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await trio.sleep(6)
            running -= 1
            return await super().attempt(request)

    settings = trimaran.Settings(max_requests=3, drain_timeout=1000)
    sessions: list[trimaran.Session] = []
    async with Slow().open(settings=settings) as telemetry, trio.open_nursery() as nursery:

        async def one() -> None:
            async with telemetry.session() as session:
                sessions.append(session)

        for _ in range(10):
            nursery.start_soon(one)

    assert most == 3
    assert all(session.statistics().retries == 0 for session in sessions)


async def test_a_given_transport_is_not_closed_and_serves_again() -> None:
    """It belongs to whoever made it."""

    class Closeable(Capture):
        closed = False

        async def aclose(self) -> None:
            self.closed = True
            await super().aclose()

    capture = Closeable()
    for _ in range(2):
        async with capture.open() as telemetry, telemetry.session():
            pass

    assert not capture.closed
    assert len(capture.events(trimaran.SessionEnd)) == 2


@pytest.mark.parametrize(
    ("token", "usable"),
    [
        ("abc.DEF-1_2~+/=", True),
        ("", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
        (7, False),
    ],
)
def test_a_token_that_can_stand_in_a_header(token: object, usable: bool) -> None:
    """Visible ASCII without spaces; all else would break the request, or add a header to it."""
    assert is_usable_token(token) is usable
