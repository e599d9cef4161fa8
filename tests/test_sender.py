"""What an answer does to a batch: delivered, tried again, halved, held or given up."""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
import structlog
import trio

import trimaran
from trimaran._pipeline import wire
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.retry import backoff
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio.testing

    Step = trimaran.Answer | trimaran.TransportError | float

CALL = trimaran.ToolCall(tool_name="bash")
BROKEN = trimaran.TransportError("ReadError")


def answer(status: int, **named: object) -> trimaran.Answer:
    """An answer with nothing but a status, unless told more."""
    return msgspec.structs.replace(trimaran.Answer(status), **named)


async def deliver(
    script: Sequence[Step],
    *,
    events: int = 1,
    settings: trimaran.Settings | None = None,
    account: trimaran.AccountProvider | None = None,
    seconds: float = 10_000,
) -> tuple[trimaran.Statistics, Capture]:
    """Run a session over *script* that tracks start, *events* and end; give it *seconds*."""
    capture = Capture(script)
    chosen = trimaran.Settings() if settings is None else settings
    chosen = msgspec.structs.replace(chosen, drain_timeout=seconds)
    async with capture.open(settings=chosen, account=account) as telemetry:
        async with telemetry.session() as session:
            for _ in range(events):
                session.track(CALL)
    books = session.statistics()
    assert books.pending == 0
    assert books.tracked == books.delivered + books.dropped_total == events + 2
    return books, capture


def keys(capture: ScriptedTransport) -> list[str]:
    """The idempotency key of each request."""
    return [request.headers["idempotency-key"] for request in capture.requests]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_success_delivers(status: int) -> None:
    """Any 2xx is a delivery."""
    books, _ = await deliver([answer(status)])

    assert books.delivered == 3
    assert books.attempts == 1


@pytest.mark.parametrize("step", [answer(s) for s in (408, 429, 500, 502, 503, 504)] + [BROKEN])
async def test_a_passing_failure_is_tried_again_with_the_same_key_and_body(
    step: Step, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing is lost, nothing is made anew: the endpoint can tell a repetition."""
    books, capture = await deliver([step, step, step])

    assert books.delivered == 3
    assert (books.attempts, books.retries, books.batches) == (4, 3, 1)
    assert len(set(keys(capture))) == 1
    assert len({request.body for request in capture.requests}) == 1


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 403, 404, 422, 501, 505])
async def test_a_lasting_refusal_is_not_tried_again(status: int) -> None:
    """Redirects are not followed, and without a token a 401 is a refusal like others."""
    books, _ = await deliver([answer(status)])

    assert books.dropped == {"rejected": 3}
    assert books.attempts == 1


async def test_a_batch_after_a_rejected_one_goes_on_and_reports_the_loss() -> None:
    """One refusal costs one batch; the next carries the number of the lost."""
    capture = Capture([answer(400)])
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        session.track(CALL)
        session.track(CALL)

    assert session.statistics().dropped == {"rejected": 1}
    assert session.statistics().loss_reports == 1
    assert [event.error_message for event in capture.events(trimaran.ErrorEvent)] == [
        "1 events dropped: 1 rejected"
    ]


async def test_a_report_that_is_lost_is_made_again(autojump_clock: trio.testing.MockClock) -> None:
    """The number is exact: what a refused batch reported is reported by the next."""
    capture = Capture([answer(400), answer(400)])
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        session.track(CALL)
        assert await session.flush()
        session.track(CALL)

    assert [event.error_message for event in capture.events(trimaran.ErrorEvent)] == [
        "2 events dropped: 2 rejected"
    ]


async def test_too_large_a_batch_is_halved_until_it_fits() -> None:
    """Each half has a key of its own, the order stays, nothing is lost."""

    class TakesThree(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            given = await super().attempt(request)
            if request.body.count(b'"type"') > 3:
                self.taken.pop()
                return answer(413)
            return given

    capture = TakesThree()
    async with capture.open() as telemetry, telemetry.session() as session:
        for number in range(10):
            session.track(trimaran.ToolCall(tool_name="bash", sequence_index=number))

    assert session.statistics().dropped_total == 0
    assert [event.sequence_index for event in capture.events(trimaran.ToolCall)] == list(range(10))
    assert isinstance(capture.events()[-1], trimaran.SessionEnd)
    assert len(set(keys(capture))) == len(keys(capture))


async def test_a_single_event_that_is_too_large_is_dropped_alone() -> None:
    """It is the only one that goes, and its reason says so."""

    class RefusesCommands(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            given = await super().attempt(request)
            if b'"command"' in request.body:
                self.taken.pop()
                return answer(413)
            return given

    capture = RefusesCommands()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(CALL)
        session.command("undo")
        session.track(CALL)

    assert session.statistics().dropped == {"too_large": 1}
    assert session.statistics().delivered == 4


async def test_a_batch_of_two_that_is_too_large_is_halved() -> None:
    """The smallest that can be: each of them alone may be taken."""
    capture = Capture([answer(413)])
    async with capture.open() as telemetry, telemetry.session(announce=False) as session:
        session.track(CALL)
        session.track(CALL)

    whole, first, second = keys(capture)
    assert (first, second) == (f"{whole}.0", f"{whole}.1")
    books = session.statistics()
    assert (books.delivered, books.dropped, books.attempts, books.batches) == (2, {}, 3, 1)


async def test_a_batch_of_one_that_is_too_large_is_given_up_at_once() -> None:
    """There is nothing to halve, and asking again would not make it smaller."""
    capture = Capture([answer(413)])
    async with capture.open() as telemetry, telemetry.session(announce=False) as session:
        session.track(CALL)

    books = session.statistics()
    assert (books.delivered, books.dropped, books.attempts) == (0, {"too_large": 1}, 1)


async def test_a_report_in_a_half_that_is_lost_is_made_again() -> None:
    """Also where the other half arrives: what the batch reported counts as told or not, whole."""
    capture = Capture([answer(400), answer(413), answer(400), answer(200)])
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        for _ in range(3):
            session.track(CALL)  # with the report before them they are two halves of two
        assert await session.flush()
        assert session.statistics().dropped == {"rejected": 2}
        assert session.statistics().loss_reports == 0

    assert [event.error_message for event in capture.events(trimaran.ErrorEvent)] == [
        "2 events dropped: 2 rejected"
    ]
    assert session.statistics().loss_reports == 1


def test_halves_share_the_reports_out() -> None:
    """Reports stand first, so they go with the first half as far as they fit into it."""
    context = wire.Context(session_id="s", project_id="p")
    whole = Batch(
        key="k",
        body=wire.body(context, [b'"r"', b'"r"', b'"a"'], timestamp=7),
        events=3,
        reports=2,
    )

    first, second = whole.halves()

    assert (first.key, first.events, first.reports, first.tracked) == ("k.0", 1, 1, 0)
    assert (second.key, second.events, second.reports, second.tracked) == ("k.1", 2, 1, 1)
    assert first.body == wire.body(context, [b'"r"'], timestamp=7)
    assert second.body == wire.body(context, [b'"r"', b'"a"'], timestamp=7)


async def test_a_partial_success_counts_what_was_refused() -> None:
    """207 names the bad ones by their index; the rest is delivered."""
    body = b'{"accepted": 2, "rejected": [{"index": 1, "reason": "no"}, {"index": 99}]}'
    books, _ = await deliver([answer(207, body=body)])

    assert books.delivered == 2
    assert books.dropped == {"rejected": 1}


async def test_a_partial_success_that_refuses_a_report_reports_again() -> None:
    """A report is no event in the ledger, but it must arrive."""
    body = b'{"rejected": [{"index": 0}]}'
    capture = Capture([answer(400), answer(207, body=body)])
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        session.track(CALL)
        assert await session.flush()

    assert session.statistics().dropped == {"rejected": 1}
    assert [event.error_message for event in capture.events(trimaran.ErrorEvent)] == [
        "1 events dropped: 1 rejected",
        "1 events dropped: 1 rejected",
    ]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("100000", 120.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
async def test_retry_after_is_a_minimum_and_is_clamped(
    value: str, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Honoured for up to two minutes; what cannot be read counts as nothing."""
    began = trio.current_time()
    await deliver([answer(429, retry_after=value)])

    waited = trio.current_time() - began
    assert max(seconds, 0.375) <= waited <= max(seconds, 0.625)


async def test_waits_grow_to_their_maximum(autojump_clock: trio.testing.MockClock) -> None:
    """0.5, 1, 2, 4, 5, 5 ... seconds, each within a quarter of that."""
    moments: list[float] = []

    class Timed(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            moments.append(trio.current_time())
            return await super().attempt(request)

    capture = Timed([BROKEN] * 7)
    settings = trimaran.Settings(drain_timeout=1000)
    async with capture.open(settings=settings) as telemetry, telemetry.session():
        pass

    waits = [later - earlier for earlier, later in itertools.pairwise(moments)]
    for expected, wait in zip([0.5, 1, 2, 4, 5, 5, 5], waits, strict=True):
        assert 0.75 * expected <= wait <= 1.25 * expected


async def test_the_jitter_is_the_injected_chance(autojump_clock: trio.testing.MockClock) -> None:
    """The same seed waits the same: nothing draws from anywhere else."""

    async def waited(seed: int) -> float:
        began = trio.current_time()
        async with (
            trimaran.open_telemetry(
                "test",
                environ={"TEST_TELEMETRY_URL": "https://x.test"},
                transport=ScriptedTransport([BROKEN] * 4),
                settings=trimaran.Settings(drain_timeout=100),
                random=Random(seed),
            ) as telemetry,
            telemetry.session(),
        ):
            pass
        return trio.current_time() - began

    assert await waited(1) == pytest.approx(await waited(1))
    assert await waited(1) != pytest.approx(await waited(2))


async def test_a_batch_is_given_up_after_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """One batch that is never taken does not hold up the session for ever."""
    settings = trimaran.Settings(retry_timeout=30)
    began = trio.current_time()
    books, _ = await deliver([answer(500)] * 50, settings=settings)

    assert books.dropped == {"retries_exhausted": 3}
    assert trio.current_time() - began <= 30


async def test_an_attempt_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """A request that hangs counts as failed after request_timeout, and is made again."""
    began = trio.current_time()
    books, _ = await deliver([10_000.0])

    assert books.delivered == 3
    assert books.retries == 1
    assert 10.3 <= trio.current_time() - began <= 10.7


async def test_order_is_kept_while_a_batch_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One batch in flight: what was tracked later never arrives earlier."""
    capture = Capture([answer(503), BROKEN, 20.0, answer(200), BROKEN])
    settings = trimaran.Settings(batch_events=3, drain_timeout=1000)
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
        for number in range(20):
            session.track(trimaran.ToolCall(tool_name="bash", sequence_index=number))
            await trio.sleep(0.1)

    assert [event.sequence_index for event in capture.events(trimaran.ToolCall)] == list(range(20))


async def test_trouble_is_told_until_delivery_counts_as_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Thirty failed attempts over minutes are one line, then one for what that comes to."""
    with structlog.testing.capture_logs() as logs:
        await deliver([answer(503)] * 30)

    assert [line["event"] for line in logs] == [
        "telemetry endpoint failing",
        "telemetry delivery lost",
        "telemetry delivery restored",
    ]
    assert logs[0]["status"] == 503
    assert logs[-1]["delivered"] == 3


class Even(Random):
    """No jitter: always the middle of what could be drawn."""

    def random(self) -> float:
        return 0.5


def test_a_wait_without_jitter_is_the_plain_one() -> None:
    """What the arithmetic of the tests below goes by."""
    assert backoff(1, initial=1.0, maximum=60.0, chance=Even().random()) == 1.0


@pytest.mark.parametrize(
    ("retry_timeout", "attempts", "given_up_after"),
    [
        (2.9, 2, 1.0),  # attempts at 0 and 1; the next would be at 3
        (3.0, 2, 1.0),
        (3.1, 3, 3.0),
    ],
)
async def test_nobody_waits_for_an_attempt_that_cannot_be_made(
    retry_timeout: float,
    attempts: int,
    given_up_after: float,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A batch whose time will be over by then is given up now; the next one gets its turn."""
    settings = trimaran.Settings(retry_initial=1.0, retry_timeout=retry_timeout)
    async with (
        trimaran.open_telemetry(
            "test",
            environ={"TEST_TELEMETRY_URL": "https://x.test"},
            transport=ScriptedTransport([answer(500)] * attempts),
            settings=settings,
            random=Even(),
        ) as telemetry,
        telemetry.session() as session,
    ):
        began = trio.current_time()
        assert await session.flush(timeout=100)
        assert trio.current_time() - began == pytest.approx(given_up_after)
        books = session.statistics()

    assert books.dropped == {"retries_exhausted": 1}
    assert books.attempts == attempts


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ([], trimaran.Settings()),
        ([answer(400)], trimaran.Settings()),
        ([answer(413)], trimaran.Settings()),
        ([answer(413)], trimaran.Settings(batch_events=1)),
        ([answer(207, body=b'{"rejected": [{"index": 0}]}')], trimaran.Settings()),
        ([answer(500)] * 20, trimaran.Settings(retry_timeout=5)),
    ],
)
async def test_a_batch_whose_fate_is_known_takes_no_memory(
    script: Sequence[Step], settings: trimaran.Settings, autojump_clock: trio.testing.MockClock
) -> None:
    """In every way that it can end: what is not given back is missing for good."""
    capture = Capture(script)
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
        assert telemetry._supervisor is not None
        budget = telemetry._supervisor.shared.budget
        for _ in range(9):
            session.track(CALL)
        assert budget.used > 0
        assert await session.flush(timeout=1000)
        assert session.statistics().pending == 0
        assert (budget.used, budget.downstream) == (0, 0)


class RefusedLogin:
    """An account whose token nobody takes, until it is renewed for the second time."""

    def __init__(self) -> None:
        self.refreshed_at: list[float] = []

    async def account(self) -> trimaran.Account:
        return trimaran.Account("https://x.test")

    async def token(self, *, refresh: bool) -> str | None:
        if refresh:
            self.refreshed_at.append(trio.current_time())
        return ["old", "worse", "new", "new"][len(self.refreshed_at)]


class TakesOnlyNew(Capture):
    """An endpoint that takes a while for each request, and one token."""

    def __init__(self, script: Sequence[Step] = (), *, delay: float = 0.0) -> None:
        super().__init__(script)
        self.delay = delay
        self.asked_at: list[float] = []

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.delay)
        if request.headers["authorization"] != "Bearer new":
            return answer(401)
        return await super().attempt(request)


async def test_a_batch_with_a_refused_token_waits_for_the_next_refresh(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Until then there is no token to try with; then it goes out at that very moment."""
    login, capture = RefusedLogin(), TakesOnlyNew()
    settings = trimaran.Settings(retry_initial=7.0, unauthorized_interval=60.0)
    began = trio.current_time()
    with structlog.testing.capture_logs():
        async with (
            capture.open(account=login, settings=settings) as telemetry,
            telemetry.session() as session,
        ):
            assert await session.flush(timeout=1000)
            assert trio.current_time() - began == 60
            assert session.statistics().delivered == 1

    assert [moment - began for moment in login.refreshed_at] == [0, 60]
    assert [moment - began for moment in capture.asked_at[:3]] == [0, 0, 60]


async def test_a_refresh_that_is_due_already_makes_no_hot_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The endpoint was so slow to refuse that the interval is over: some pause there is."""
    login, capture = RefusedLogin(), TakesOnlyNew(delay=2.0)
    settings = trimaran.Settings(retry_initial=7.0, unauthorized_interval=1.0)
    began = trio.current_time()
    with structlog.testing.capture_logs():
        async with (
            capture.open(account=login, settings=settings) as telemetry,
            telemetry.session() as session,
        ):
            assert await session.flush(timeout=1000)

    # refused at 2 and, with the fresh token, at 4; seven seconds later a third one is taken
    assert [moment - began for moment in capture.asked_at[:3]] == [0, 2, 11]


async def test_a_token_that_is_taken_again_is_no_reason_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What is given up later, or shed, has the reason that holds then."""
    login, capture = RefusedLogin(), TakesOnlyNew([answer(500)] * 1000)
    settings = trimaran.Settings(
        retry_timeout=200, mailbox_events=5, backlog_events=1, batch_events=1
    )
    with structlog.testing.capture_logs():
        async with (
            capture.open(account=login, settings=settings) as telemetry,
            telemetry.session() as session,
        ):
            await trio.sleep(100)  # the token is renewed at 60; since then it is the endpoint
            for _ in range(50):
                session.track(CALL)
            await trio.sleep(150)

    dropped = session.statistics().dropped
    assert dropped["mailbox_full"] > 40
    assert dropped["retries_exhausted"] == 1
    assert "unauthorized" not in dropped
