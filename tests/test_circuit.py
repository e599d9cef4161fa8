"""The endpoint's health, shared by all sessions."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import TYPE_CHECKING

import pytest
import structlog
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._endpoint import Endpoint
from trimaran._endpoint.circuit import FAILURES_TO_OPEN, Circuit, RetryBudget
from trimaran._endpoint.token import expiry_of
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    import trio.testing

CALL = trimaran.ToolCall(tool_name="bash")
ENVIRON = {"TEST_TELEMETRY_URL": "https://x.test"}


def circuit() -> Circuit:
    """Waits as many seconds as there were failures."""
    return Circuit(float)


def test_a_circuit_opens_after_a_run_of_failures() -> None:
    """Fewer, or with a success in between, leave it closed."""
    tried = circuit()
    for _ in range(FAILURES_TO_OPEN - 1):
        tried.failed(0.0, pause=None, is_probe=False)
    tried.succeeded()
    for _ in range(FAILURES_TO_OPEN - 1):
        tried.failed(0.0, pause=None, is_probe=False)
    assert not tried.is_open
    assert not tried.holds(0.0)

    tried.failed(10.0, pause=None, is_probe=False)

    assert tried.is_open
    assert tried.next_at() == 10.0 + FAILURES_TO_OPEN


def test_only_a_probe_lengthens_the_wait_of_an_open_circuit() -> None:
    """What was under way when it opened says nothing new."""
    tried = circuit()
    for _ in range(16):
        tried.failed(0.0, pause=None, is_probe=False)
    assert tried.next_at() == FAILURES_TO_OPEN

    tried.failed(5.0, pause=None, is_probe=True)

    assert tried.next_at() == 5.0 + FAILURES_TO_OPEN + 1


def test_a_pause_that_the_endpoint_asks_for_holds_a_closed_circuit_too() -> None:
    """One Retry-After holds everybody, and hurrying does not shorten it."""
    tried = circuit()
    tried.failed(0.0, pause=30.0, is_probe=False)
    tried.failed(1.0, pause=5.0, is_probe=False)

    tried.hurry()

    assert tried.holds(29.9)
    assert not tried.holds(30.0)
    assert tried.next_at() == 30.0


def test_a_closed_circuit_waits_for_nothing_but_that_pause() -> None:
    """The pause between probes is for one that is open."""
    tried = circuit()
    tried.failed(0.0, pause=None, is_probe=False)
    assert tried.next_at() == float("-inf")

    tried.failed(0.0, pause=0.5, is_probe=False)

    assert tried.next_at() == 0.5


def test_a_success_ends_that_pause() -> None:
    """It was under way when the endpoint asked for the pause, and says that it works."""
    tried = circuit()
    tried.failed(0.0, pause=30.0, is_probe=False)

    tried.succeeded()

    assert not tried.holds(1.0)


def test_hurrying_allows_a_probe_at_once() -> None:
    """Time runs out: the wait between probes is skipped once."""
    tried = circuit()
    for _ in range(FAILURES_TO_OPEN):
        tried.failed(0.0, pause=None, is_probe=False)

    tried.hurry()

    assert tried.is_open
    assert tried.next_at() == float("-inf")


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=200),
    st.floats(0.1, 50),
)
def test_a_retry_budget_is_never_overdrawn(moments: list[float], per_second: float) -> None:
    """In no stretch of time are more repeats let through than its rate and its depth allow."""
    budget = RetryBudget(per_second)
    moments.sort()
    used = sorted(moment + budget.take(moment) for moment in moments)
    most = max(1.0, 10 * per_second)
    for first in range(len(used)):
        span = used[-1] - used[first]
        assert len(used) - first <= most + per_second * span + 1e-6 * len(used) + 1


class Counts(ScriptedTransport):
    """Counts requests, and how many were under way at once."""

    def __init__(self, *, down_for: float, pause: str | None = None) -> None:
        super().__init__()
        self._down_for = down_for
        self._pause = pause
        self.moments: list[float] = []

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        self.moments.append(trio.current_time())
        await trio.sleep(0.1)
        if trio.current_time() < self._down_for:
            return trimaran.Answer(503, retry_after=self._pause)
        return await super().attempt(request)


async def run_sessions(transport: ScriptedTransport, count: int) -> list[trimaran.Statistics]:
    """Open *count* sessions at once, each with three events, and deliver all."""
    sessions: list[trimaran.Session] = []
    settings = trimaran.Settings(drain_timeout=10_000, strict=True)
    async with (
        trimaran.open_telemetry(
            "test", environ=ENVIRON, transport=transport, settings=settings
        ) as telemetry,
        trio.open_nursery() as nursery,
    ):

        async def one() -> None:
            async with telemetry.session() as session:
                sessions.append(session)
                session.track(CALL)

        for _ in range(count):
            nursery.start_soon(one)
    return [session.statistics() for session in sessions]


async def test_a_thousand_sessions_make_the_requests_of_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Ten minutes of outage: a first handful in parallel, then a probe every five seconds."""
    start = trio.current_time()
    one = Counts(down_for=start + 600)
    await run_sessions(one, 1)
    begun = trio.current_time()
    thousand = Counts(down_for=begun + 600)

    books = await run_sessions(thousand, 1000)

    during_one = sum(moment < start + 600 for moment in one.moments)
    during = sum(moment < begun + 600 for moment in thousand.moments)
    assert during_one > 100
    assert during <= during_one * 1.1 + trimaran.Settings().max_requests
    assert all(book.delivered == 3 for book in books)


async def test_retry_after_holds_all_sessions(autojump_clock: trio.testing.MockClock) -> None:
    """What one is told, all obey."""
    begun = trio.current_time()
    transport = Counts(down_for=begun + 1, pause="60")

    books = await run_sessions(transport, 50)

    early = [m for m in transport.moments if begun + 1 < m < begun + 60]
    assert early == []
    assert all(book.delivered == 3 for book in books)


async def test_closing_lets_everybody_go_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """After the first success nobody queues up behind the probes any more."""
    begun = trio.current_time()
    transport = Counts(down_for=begun + 20)

    await run_sessions(transport, 200)

    success = next(m for m in transport.moments if m >= begun + 19.9)
    assert trio.current_time() - success < 200 * 0.1 / 16 * 3


async def test_without_a_token_nothing_is_learnt_of_the_endpoint(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No request, no success: an endpoint that is down stays down until it answers."""

    class RefusesThenDies(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            self.requests.append(request)
            if len(self.requests) == 1:
                return trimaran.Answer(401)
            raise trimaran.TransportError("down")

    login = Login(10_000)
    with structlog.testing.capture_logs() as logs:
        async with (
            trimaran.open_telemetry(
                "test",
                environ={},
                account=login,
                transport=RefusesThenDies(),
                wall_clock=trio.current_time,
            ) as telemetry,
            telemetry.session(),
        ):
            await trio.sleep(30)
            login._renews = False
            supervisor = telemetry._supervisor
            assert supervisor is not None
            endpoint = supervisor.shared.routes[0].endpoint
            assert isinstance(endpoint, Endpoint)
            tokens = endpoint._tokens
            assert tokens is not None
            assert tokens.held is not None
            tokens.refuse(tokens.held)
            await trio.sleep(100)
            assert endpoint._circuit.is_open

    lines = [line["event"] for line in logs if "delivery" in line["event"]]
    assert lines == ["telemetry delivery lost"]


async def test_leaving_wakes_a_sleeping_wait(autojump_clock: trio.testing.MockClock) -> None:
    """The endpoint works again, and nobody waits for the next probe to find out."""
    capture = Capture([trimaran.Answer(503)] * 5)
    settings = trimaran.Settings(retry_max=1000, retry_initial=100)
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
        await trio.sleep(1)
        capture._script = iter(())
        left = trio.current_time()

    assert trio.current_time() == left
    assert session.statistics().delivered == 2


class Latest(Random):
    """The longest waits."""

    def random(self) -> float:
        return 0.999


class Recovering(ScriptedTransport):
    """An endpoint that is down until somebody says otherwise; ``times`` has its requests."""

    def __init__(self, answer: trimaran.Answer | None = None) -> None:
        super().__init__()
        self.is_well = False
        self.times: list[float] = []
        self._answer = answer

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.is_well:
            return trimaran.Answer(200)
        if self._answer is None:
            raise trimaran.TransportError("down")
        return self._answer


def recovering(transport: Recovering) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A telemetry that waits for long between two attempts."""
    settings = trimaran.Settings(
        strict=True, flush_interval=0.1, retry_initial=30.0, retry_max=60.0, retry_timeout=600.0
    )
    return trimaran.open_telemetry(
        "test", environ=ENVIRON, transport=transport, settings=settings, random=Latest()
    )


@pytest.mark.parametrize("seconds", [1, 200])
async def test_a_flush_wakes_a_sleeping_wait(
    seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """While the endpoint counts as down, and before it does: it may be well again."""
    transport = Recovering()
    async with recovering(transport) as telemetry, telemetry.session() as session:
        await trio.sleep(seconds)
        transport.is_well = True
        flushed_at = trio.current_time()
        assert (await session.flush()).complete
        assert trio.current_time() == flushed_at


async def test_flushes_of_many_sessions_make_the_requests_of_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An agent that flushes in every turn does no harm to an endpoint that is down."""
    transport = Recovering()
    async with recovering(transport) as telemetry, trio.open_nursery() as nursery:

        async def flush_often() -> None:
            async with telemetry.session() as session:
                await trio.sleep(300)
                for _ in range(100):
                    await session.flush(timeout=0.1)

        for _ in range(50):
            nursery.start_soon(flush_often)
        began = trio.current_time()
        await trio.sleep(305)
        transport.is_well = True

    assert 4 <= sum(300 <= at - began < 305 for at in transport.times) <= 6


async def test_a_flush_asks_nothing_of_an_endpoint_that_wants_a_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What it says in ``Retry-After`` is kept."""
    transport = Recovering(trimaran.Answer(503, retry_after="100"))
    async with recovering(transport) as telemetry, telemetry.session() as session:
        await trio.sleep(10)
        transport.is_well = True
        assert not (await session.flush()).complete
        assert len(transport.times) == 1
        await trio.sleep(100)
        assert (await session.flush()).complete


async def test_leaving_wakes_who_waits_for_the_retry_budget(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Everybody's batch was refused once; the endpoint takes them all when time runs out."""
    capture = Capture([trimaran.TransportError("reset"), trimaran.Answer(200)] * 20)
    settings = trimaran.Settings(retry_budget=0.01)
    sessions: list[trimaran.Session] = []
    async with capture.open(settings=settings) as telemetry:
        for _ in range(20):
            async with telemetry.session() as session:
                sessions.append(session)
                await trio.sleep(1)
        left = trio.current_time()

    assert trio.current_time() < left + settings.drain_timeout
    assert [session.statistics().delivered for session in sessions] == [2] * 20


async def test_lost_and_restored_are_told_once_each_with_the_cost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """State changes are logged, not repeats; the cost is known when the backlog is."""
    capture = Capture([trimaran.Answer(503)] * 5)
    settings = trimaran.Settings(mailbox_events=10, backlog_events=5, batch_events=5)
    with structlog.testing.capture_logs() as logs:
        async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
            for _ in range(100):
                session.track(CALL)
                await trio.sleep(0.2)

    lines = [line for line in logs if "delivery" in line["event"]]
    assert [line["event"] for line in lines] == [
        "telemetry delivery lost",
        "telemetry delivery restored",
    ]
    assert lines[1]["log_level"] == "info"
    assert lines[1]["delivered"] > 0
    assert lines[1]["dropped"] == session.statistics().dropped_total > 0


def jwt(expiry: object) -> str:
    """A token of the usual form that expires then; its signature is nonsense."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expiry}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{claims}.c2ln"


@pytest.mark.parametrize(
    ("token", "expiry"),
    [(jwt(1_700_000_000), 1_700_000_000.0), (jwt("soon"), None), ("opaque", None), ("a.!.c", None)],
)
def test_the_expiry_of_a_token(token: str, expiry: float | None) -> None:
    """Known for a JWT that says it; never an error."""
    assert expiry_of(token) == expiry


class Login:
    """An account whose tokens live for *life* seconds, and which may be gone."""

    def __init__(self, life: float, *, renews: bool = True, fresh: bool = False) -> None:
        self._life = life
        self._renews = renews
        self._fresh = fresh
        self.is_gone = False
        self.fails = False
        self.refreshes = 0

    async def account(self) -> trimaran.Account | None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise OSError
        return None if self.is_gone else trimaran.Account("https://x.test")

    async def token(self, *, refresh: bool) -> str | None:
        if refresh:
            self.refreshes += 1
            if not self._renews:
                return None
        return jwt(trio.current_time() + self._life + (self.refreshes if self._fresh else 0))


async def test_a_token_is_renewed_ahead_of_its_expiry(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The endpoint never sees an expired one, and nobody asks too early."""
    login = Login(life=300)
    seen: list[float] = []

    class Checks(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            expiry = expiry_of(request.headers["authorization"].removeprefix("Bearer "))
            assert expiry is not None
            seen.append(expiry - trio.current_time())
            return await super().attempt(request)

    async with (
        trimaran.open_telemetry(
            "test", environ={}, account=login, transport=Checks(), wall_clock=trio.current_time
        ) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(100):
            session.track(CALL)
            await trio.sleep(10)

    assert min(seen) > 0
    assert 3 <= login.refreshes <= 4


async def test_a_renewal_that_fails_leaves_the_token_in_use(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whether it is still good is for the endpoint to say; asked again once a minute."""
    login = Login(life=100, renews=False)
    transport = ScriptedTransport()

    async with (
        trimaran.open_telemetry(
            "test", environ={}, account=login, transport=transport, wall_clock=trio.current_time
        ) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(60):
            session.track(CALL)
            await trio.sleep(10)

    assert session.statistics().delivered == 62
    assert login.refreshes <= 600 / 60 + 1


@pytest.mark.parametrize("how", ["no", "raises"])
async def test_the_hosts_own_switch_stops_sending(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Asked before every request; what it raises counts as no."""
    given = True

    def consent() -> bool:
        if not given and how == "raises":
            raise OSError
        return given

    transport = ScriptedTransport()
    with structlog.testing.capture_logs():
        async with (
            trimaran.open_telemetry(
                "test", environ=ENVIRON, transport=transport, consent=consent
            ) as telemetry,
            telemetry.session() as session,
        ):
            assert await session.flush()
            given = False
            session.track(CALL)
            assert await session.flush()
            given = True
            session.track(CALL)

    assert len(transport.requests) == 2
    assert session.statistics().dropped == {"consent_withdrawn": 1}


async def test_an_account_that_is_gone_stops_sending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Logged out means out: nothing goes on, and never to the anonymous tier."""
    login = Login(life=10_000)
    transport = ScriptedTransport()
    async with (
        trimaran.open_telemetry(
            "test", environ=ENVIRON, transport=transport, account=login
        ) as telemetry,
        telemetry.session() as session,
    ):
        assert await session.flush()
        login.is_gone = True
        await trio.sleep(2)
        session.track(CALL)

    assert len(transport.requests) == 1
    assert session.statistics().dropped == {"consent_withdrawn": 2}


async def test_another_account_in_the_place_of_the_first_stops_sending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its token never goes to the first one's endpoint, not even within the same second."""

    class Switches(Login):
        account_now = trimaran.Account("https://a.test", "a@x.test")

        async def account(self) -> trimaran.Account | None:
            await trio.lowlevel.checkpoint()
            return self.account_now

        async def token(self, *, refresh: bool) -> str | None:
            return "a" if self.account_now.url == "https://a.test" else "b"

    class RefusesOnce(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            if not self.requests:
                login.account_now = trimaran.Account("https://b.test", "b@x.test")
            return await super().attempt(request)

    login = Switches(10_000)
    transport = RefusesOnce([trimaran.Answer(401)])
    async with (
        trimaran.open_telemetry(
            "test", environ=ENVIRON, transport=transport, account=login
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.track(CALL)

    assert [request.headers["authorization"] for request in transport.requests] == ["Bearer a"]
    assert session.statistics().dropped == {"consent_withdrawn": 3}


async def test_a_new_token_of_an_account_that_cannot_be_asked_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whose it is has to be known before it is sent."""
    login = Login(10_000, fresh=True)

    class RefusesOnce(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            login.fails = not self.requests
            return await super().attempt(request)

    transport = RefusesOnce([trimaran.Answer(401)])
    with structlog.testing.capture_logs():
        async with (
            trimaran.open_telemetry(
                "test",
                environ={},
                transport=transport,
                account=login,
                wall_clock=trio.current_time,
            ) as telemetry,
            telemetry.session() as session,
        ):
            await trio.sleep(3)
            assert len(transport.requests) == 1
            login.fails = False
            assert await session.flush(timeout=20)

    assert session.statistics().delivered == 2


async def test_a_hook_may_raise_what_it_likes() -> None:
    """Also what is no Exception: it ends neither the session nor the run."""

    def on_drop(_dropped: trimaran.Dropped) -> None:
        raise SystemExit

    with structlog.testing.capture_logs():
        async with (
            trimaran.open_telemetry(
                "test", environ=ENVIRON, transport=ScriptedTransport(), on_drop=on_drop
            ) as telemetry,
            telemetry.session() as session,
        ):
            session.track(None)  # type: ignore[arg-type]

    assert session.statistics().delivered == 2


async def test_an_account_that_cannot_be_asked_is_as_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A passing failure of the login loses nothing, and is told."""
    login = Login(life=10_000)
    with structlog.testing.capture_logs() as logs:
        async with (
            trimaran.open_telemetry(
                "test", environ={}, transport=ScriptedTransport(), account=login
            ) as telemetry,
            telemetry.session() as session,
        ):
            login.fails = True
            await trio.sleep(2)
            session.track(CALL)

    assert session.statistics().delivered == 3
    assert "telemetry account failed" in [line["event"] for line in logs]


async def test_hooks_are_told_what_was_dropped_and_why() -> None:
    """Summed up, after the fact, outside of track(), and without a session around them."""
    told: list[trimaran.Dropped] = []
    around: list[trimaran.Session] = []

    def on_drop(dropped: trimaran.Dropped) -> None:
        told.append(dropped)
        around.append(trimaran.current_session())

    settings = trimaran.Settings(mailbox_events=10)
    async with (
        trimaran.open_telemetry(
            "test",
            environ=ENVIRON,
            transport=ScriptedTransport(),
            settings=settings,
            on_drop=on_drop,
        ) as telemetry,
        telemetry.session(session_id="s") as session,
    ):
        assert await session.flush()
        for _ in range(30):
            session.track(CALL)
        session.track(None)  # type: ignore[arg-type]
        assert told == []
        assert await session.flush()

    assert told == [
        trimaran.Dropped(session_id="s", reason=trimaran.DropReason.MAILBOX_FULL, count=20),
        trimaran.Dropped(session_id="s", reason=trimaran.DropReason.ENCODE_ERROR, count=1),
    ]
    assert all(session.id == "" for session in around)


def test_a_drop_after_the_run_tells_nobody_and_raises_nothing() -> None:
    """There is no loop any more that could call a hook."""
    kept: list[trimaran.Session] = []

    async def main() -> None:
        async with (
            trimaran.open_telemetry(
                "test",
                environ=ENVIRON,
                transport=ScriptedTransport(),
                on_drop=lambda _dropped: None,
            ) as telemetry,
            telemetry.session() as session,
        ):
            kept.append(session)

    trio.run(main)
    kept[0].track(CALL)

    books = kept[0].statistics()
    assert (books.pending, books.dropped) == (0, {"closed": 1})


async def test_hooks_that_fail_change_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Their failure is told once, and delivery goes on."""
    problems: list[str] = []

    def on_drop(_dropped: trimaran.Dropped) -> None:
        raise ZeroDivisionError

    def on_problem(problem: trimaran.Problem) -> None:
        problems.append(problem.name)
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as logs:
        async with (
            trimaran.open_telemetry(
                "test",
                environ=ENVIRON,
                transport=ScriptedTransport([trimaran.Answer(400)]),
                on_drop=on_drop,
                on_problem=on_problem,
            ) as telemetry,
            telemetry.session() as session,
        ):
            assert await session.flush()
            session.track(CALL)

    assert session.statistics().delivered == 2
    assert problems == ["telemetry rejected"]
    assert [line["event"] for line in logs].count("telemetry hook failed") == 1


async def test_what_is_shed_while_a_token_is_refused_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No room because of a bad token is another thing than no room."""

    class Refuses(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            return trimaran.Answer(401)

    settings = trimaran.Settings(mailbox_events=5, backlog_events=5, batch_events=5)
    async with (
        Refuses().open(account=Login(10_000, renews=False), settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        await trio.sleep(1)
        for _ in range(100):
            session.track(CALL)
            await trio.lowlevel.checkpoint()

    assert set(session.statistics().dropped) == {"unauthorized"}
