"""What sessions share on the way out: the token, consent, the transport."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
import trio.testing

import trimaran
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import CLOSE_GRACE, Endpoint
from trimaran._endpoint.consent import Consent, ConsentWithdrawn
from trimaran._endpoint.token import is_usable_token
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = trimaran.ToolCall(tool_name="bash")
FOREVER = float("inf")


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


class Owned(ScriptedTransport):
    """A transport that is opened for the telemetry, and so closed by it."""

    def __init__(self, *, closing_takes: float = 0.0, failure: Exception | None = None) -> None:
        super().__init__()
        self._closing_takes = closing_takes
        self._failure = failure
        self.closed_at: float | None = None

    async def aclose(self) -> None:
        await trio.sleep(self._closing_takes)
        if self._failure is not None:
            raise self._failure
        self.closed_at = trio.current_time()


async def opened_endpoint(
    transport: Owned, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str] | None = None
) -> Endpoint:
    """An endpoint that has opened *transport* for a first request."""

    async def run_sync(call: Callable[..., object], *arguments: object, **_named: object) -> object:
        return call(*arguments)

    monkeypatch.setattr("trimaran._endpoint._http_transport", lambda _url, _most: transport)
    # A virtual clock does not wait for threads.
    monkeypatch.setattr("trio.to_thread.run_sync", run_sync)
    endpoint = endpoint_of(None, environ=environ)
    answer = await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)
    assert answer.status == 200
    return endpoint


def endpoint_of(
    transport: trimaran.Transport | None,
    *,
    environ: dict[str, str] | None = None,
    settings: trimaran.Settings | None = None,
    on_change: Callable[[bool], None] = lambda _is_lost: None,
) -> Endpoint:
    """An anonymous endpoint by itself, without jitter."""
    environ = {} if environ is None else environ
    diagnostics = Diagnostics(trio.current_time)
    return Endpoint(
        trimaran.resolve("test", None, {"TEST_TELEMETRY_URL": "https://x.test"}),
        transport=transport,
        tokens=None,
        consent=Consent(
            app="test",
            environ=environ,
            ask=None,
            provider=None,
            account=None,
            now=trio.current_time,
            timeout=1.0,
            diagnostics=diagnostics,
        ),
        settings=trimaran.Settings() if settings is None else settings,
        diagnostics=diagnostics,
        random=Even(),
        wall_clock=trio.current_time,
        on_change=on_change,
    )


REQUEST = trimaran.Request("https://x.test", {}, b"{}")


class Even(Random):
    """No jitter: always the middle of what could be drawn."""

    def random(self) -> float:
        return 0.5


async def test_a_transport_that_was_opened_is_closed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It may take a moment for that, which nobody cuts short."""
    transport = Owned(closing_takes=0.05)
    endpoint = await opened_endpoint(transport, monkeypatch)
    began = trio.current_time()

    await endpoint.aclose()

    assert transport.closed_at == pytest.approx(began + 0.05)


async def test_a_transport_that_does_not_close_is_left(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A tenth of a second after the last deadline the host goes on."""
    transport = Owned(closing_takes=FOREVER)
    endpoint = await opened_endpoint(transport, monkeypatch)
    began = trio.current_time()

    await endpoint.aclose()

    assert trio.current_time() - began == pytest.approx(CLOSE_GRACE)


async def test_a_transport_is_closed_also_when_the_host_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Its connections would stay open else; the cancellation takes its way after that."""
    transport = Owned(closing_takes=0.05)
    endpoint = await opened_endpoint(transport, monkeypatch)
    with trio.CancelScope() as scope:
        scope.cancel()
        await endpoint.aclose()
        raise AssertionError("a cancelled scope was left as if nothing had been")

    assert scope.cancelled_caught
    assert transport.closed_at is not None


async def test_a_transport_that_fails_to_close_is_told_of(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing is left to lose, so it is a line and nothing more."""
    endpoint = await opened_endpoint(Owned(failure=OSError("secret")), monkeypatch)

    with structlog.testing.capture_logs() as logs:
        await endpoint.aclose()

    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry transport failed to close", "OSError")
    ]


async def test_a_request_that_consent_forbids_is_not_counted_as_made(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Attempts are requests that were really made, no more and no fewer."""
    environ: dict[str, str] = {}
    transport = ScriptedTransport()
    endpoint = endpoint_of(transport, environ=environ)
    made: list[str] = []

    await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: made.append("first"))
    environ["DO_NOT_TRACK"] = "1"
    with pytest.raises(ConsentWithdrawn):
        await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: made.append("second"))

    assert made == ["first"]
    assert len(transport.requests) == 1


async def test_only_repeated_requests_draw_on_the_budget_of_retries(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Any number of new ones goes out at once; of the others, one in ten seconds here."""
    endpoint = endpoint_of(ScriptedTransport(), settings=trimaran.Settings(retry_budget=0.1))
    began = trio.current_time()

    for _ in range(20):
        await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)
    assert trio.current_time() == began
    moments: list[float] = []
    for _ in range(3):
        await endpoint.attempt(REQUEST, is_repeated=True, made=lambda: None)
        moments.append(trio.current_time() - began)

    assert moments == pytest.approx([0, 10, 20])


async def test_batches_that_were_tried_before_are_repeated_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The sender says so of each: two that failed at once are not both repeated at once."""
    capture = Capture([trimaran.TransportError("reset")] * 2)
    settings = trimaran.Settings(retry_budget=0.01, drain_timeout=1000)
    sessions: list[trimaran.Session] = []
    async with capture.open(settings=settings) as telemetry:
        began = trio.current_time()
        for _ in range(2):
            async with telemetry.session(announce=False) as session:
                session.track(CALL)
                sessions.append(session)
        assert await sessions[0].flush(timeout=1000)
        assert await sessions[1].flush(timeout=1000)

    assert 99 < trio.current_time() - began < 102
    assert [session.statistics().delivered for session in sessions] == [1, 1]


async def test_a_loss_and_a_restoration_are_told_once_each(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """On the way down and on the way up: neither with each failure nor with each success."""
    changes: list[tuple[float, bool]] = []
    began = trio.current_time()
    transport = ScriptedTransport([trimaran.Answer(503)] * 5)
    endpoint = endpoint_of(
        transport,
        on_change=lambda is_lost: changes.append((trio.current_time() - began, is_lost)),
    )

    for _ in range(10):
        await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)

    # open with the third failure; probes 2, 4 and 5 seconds after the failure before them
    assert changes == [(0, True), (11, False)]
    assert len(transport.requests) == 10


async def test_the_pause_between_probes_doubles(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever makes them: it is the endpoint that is down, not one session's batch."""
    moments: list[float] = []

    class Timed(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            moments.append(trio.current_time() - began)
            return await super().attempt(request)

    endpoint = endpoint_of(
        Timed([trimaran.TransportError("down")] * 8), settings=trimaran.Settings(retry_max=20)
    )
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            with suppress(trimaran.TransportError):
                await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)

        for _ in range(3):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            nursery.start_soon(one)

    waits = [0, 0, 0, 2, 4, 8, 16, 20]  # the last one fails once more, and then all go
    assert moments == [*accumulate(waits), *[sum(waits) + 20] * 5]


async def test_probes_are_made_one_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """The next waits for how the one before it ends, however long that takes."""
    running, most = 0, 0

    class Slow(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            nonlocal running, most
            if trio.current_time() > began:
                running += 1
                most = max(most, running)
                await trio.sleep(9)
                running -= 1
            return await super().attempt(request)

    began = trio.current_time()
    endpoint = endpoint_of(Slow([trimaran.Answer(503)] * 6))
    for _ in range(3):
        await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(
                partial(endpoint.attempt, REQUEST, is_repeated=False, made=lambda: None)
            )

    assert most == 1
    assert trio.current_time() - began == 2 + 9 + 4 + 9 + 5 + 9


async def test_probes_and_other_requests_share_the_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A success of what was under way before closes the circuit, while a probe still hangs."""
    running, most = 0, 0

    class Scripted(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            nonlocal running, most
            running += 1
            most = max(most, running)
            number = len(self.requests)
            self.requests.append(request)
            await trio.sleep({0: 9.0, 4: 8.0}.get(number, 1.0))
            running -= 1
            return trimaran.Answer(503 if number in {1, 2, 3} else 200)

    transport = Scripted()
    endpoint = endpoint_of(transport, settings=trimaran.Settings(max_requests=2))
    began = trio.current_time()
    attempt = partial(endpoint.attempt, REQUEST, is_repeated=False, made=lambda: None)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(attempt)
        await trio.sleep(10)
        for _ in range(3):
            nursery.start_soon(attempt)

    # failures at 1, 2 and 3, the probe from 5 to 13, a success at 9 beside it; then the rest,
    # one after the other in the slot that the probe leaves
    assert most == 2
    assert len(transport.requests) == 8
    assert trio.current_time() - began == 13


async def test_when_time_runs_out_a_probe_is_made_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once: who is refused then waits as before, and does not hammer what is down."""
    settings = trimaran.Settings(retry_initial=100, retry_max=1000)
    transport = ScriptedTransport([trimaran.Answer(503)] * 4)
    endpoint = endpoint_of(transport, settings=settings)
    for _ in range(3):
        await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(
                partial(endpoint.attempt, REQUEST, is_repeated=False, made=lambda: None)
            )
        await trio.sleep(10)
        assert len(transport.requests) == 3

        endpoint.hurry()
        await trio.sleep(1)
        assert len(transport.requests) == 4

    # the first of the two was that probe; the fourth failure asks for 800 seconds
    assert trio.current_time() - began == 10 + 800
    assert len(transport.requests) == 5


async def test_a_success_ends_the_pause_that_a_failure_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What was under way meanwhile and is taken says more than the answer before it."""
    endpoint = endpoint_of(
        ScriptedTransport([2.0, trimaran.Answer(503, retry_after="100"), trimaran.Answer(200)])
    )
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(
                partial(endpoint.attempt, REQUEST, is_repeated=False, made=lambda: None)
            )
    await endpoint.attempt(REQUEST, is_repeated=False, made=lambda: None)

    assert trio.current_time() - began == 2


async def test_a_token_is_new_until_it_was_sent_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After that whose it is is known, and the account is asked once a second, not each time."""

    class Counting(RenewingLogin):
        asked = 0

        async def account(self) -> trimaran.Account:
            self.asked += 1
            return await super().account()

    login, capture = Counting("new"), TakesTokens("new")
    async with capture.open(account=login) as telemetry, telemetry.session() as session:
        assert await session.flush()
        asked = login.asked
        for _ in range(5):
            session.track(CALL)
            assert await session.flush()
        assert asked == 2  # at the opening, and for the new token
        assert login.asked == asked
    assert capture.tokens == ["old", *["new"] * 7]
