"""Several destinations of one telemetry: what one does is nothing to the others.

With real servers where the network matters, and a virtual clock where time does.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
import trio

import trimaran
from conftest import LoopbackEndpoint, Reply
from trimaran.otlp import OtlpSettings, OtlpTransport
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import trio.testing

CALL = trimaran.ToolCall(tool_name="bash")
ENVIRON = {"TEST_TELEMETRY_URL": "https://x.test"}
SWIFT: dict[str, Any] = {
    "flush_interval": 0.01,
    "request_timeout": 0.3,
    "retry_initial": 0.02,
    "retry_timeout": 1.0,
    "drain_timeout": 2.0,
}
"""For real servers: what is lost is lost soon."""


class Hung(ScriptedTransport):
    """A destination that never answers."""

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        self.requests.append(request)
        await trio.sleep_forever()


def beside_of(transport: trimaran.Transport, name: str = "beside") -> trimaran.Destination:
    """A second destination."""
    return trimaran.Destination(name=name, transport=transport)


def opened(
    first: trimaran.Transport, *others: trimaran.Transport, **named: Any
) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A strict telemetry with *first* at the endpoint and *others* beside it."""
    settings = {"strict": True, **named.pop("settings", {})}
    names = ["beside", "third", "fourth"]
    return trimaran.open_telemetry(
        "test",
        environ=named.pop("environ", ENVIRON),
        transport=first,
        destinations=[beside_of(other, name) for other, name in zip(others, names, strict=False)],
        settings=trimaran.Settings(**settings),
        **named,
    )


def adds_up(books: trimaran.Statistics) -> bool:
    """The ledger's equation, for every destination."""
    return all(
        each.tracked == each.delivered + each.dropped_total + each.pending
        and each.spooled + each.handed_over <= each.pending
        for each in (books, *books.destinations.values())
    )


def names_in(requests: list[trimaran.Request]) -> list[str]:
    """The commands that were sent, in order."""
    return [
        event["command_name"]
        for request in requests
        for event in msgspec.json.decode(request.body)["events"]
        if event["type"] == "command"
    ]


async def record(session: trimaran.Session, number: int = 10) -> None:
    """Commands by number, with waiting for room."""
    for each in range(number):
        await session.send(trimaran.Command(command_name=str(each)))


# What a destination is.


@pytest.mark.parametrize(
    "given",
    [
        {"name": "", "transport": Capture()},
        {"name": "endpoint", "transport": Capture()},
        {"name": "Langfuse", "transport": Capture()},
        {"name": "../up", "transport": Capture()},
        {"name": "a" * 65, "transport": Capture()},
        {"name": None, "transport": Capture()},
        {"name": "a"},
        {"name": "a", "url": "ftp://x.test"},
        {"name": "a", "url": "https://user:secret@x.test", "transport": Capture()},
    ],
)
def test_a_destination_of_no_use_is_not_made(given: dict[str, Any]) -> None:
    """The message says what is wrong, and quotes no URL."""
    with pytest.raises(ValueError, match="Destination") as raised:
        trimaran.Destination(**given)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [[beside_of(Capture()), beside_of(Capture())], [Capture()], [None]],
    ids=["one name", "a transport", "nothing"],
)
async def test_destinations_that_cannot_be_told_apart_are_refused(given: list[Any]) -> None:
    """At once, whether telemetry is on or off, and in a thread as well."""
    with pytest.raises(ValueError, match="destinations"):
        async with trimaran.open_telemetry("test", environ={}, destinations=given):
            raise AssertionError
    with (
        pytest.raises(ValueError, match="destinations"),
        trimaran.open_in_thread("test", environ={}, destinations=given),
    ):
        raise AssertionError


# Each gets everything.


async def test_every_destination_gets_every_event(
    endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """In order, with the same bytes in every event, under keys of its own."""
    async with (
        trimaran.open_telemetry(
            "test",
            environ=endpoint.environ(),
            destinations=[trimaran.Destination(name="beside", url=beside.url)],
        ) as telemetry,
        telemetry.session(session_id="s") as session,
    ):
        assert telemetry.destinations == ("endpoint", "beside")
        assert repr(telemetry).endswith("; to beside>")
        await record(session, 1_000)
        flushed = await session.flush(timeout=60)

    assert flushed
    assert endpoint.events == beside.events
    assert len(endpoint.of("s")) == 1_002
    keys = [request.headers["idempotency-key"] for request in endpoint.requests + beside.requests]
    assert len(set(keys)) == len(keys)
    books = session.statistics()
    assert (books.tracked, books.delivered, books.pending) == (1_002, 1_002, 0)
    assert set(books.destinations) == {"endpoint", "beside"}
    assert books.destinations["endpoint"] == msgspec.structs.replace(books, destinations={})
    assert books.destinations["beside"].delivered == 1_002


async def test_without_destinations_there_are_no_books_by_name() -> None:
    """All is as it is with the endpoint alone."""
    async with opened(Capture()) as telemetry, telemetry.session() as session:
        assert telemetry.destinations == ("endpoint",)
        assert telemetry.leftovers().destinations == {}

    assert session.statistics().destinations == {}
    assert "destinations" not in repr(session.statistics())


async def test_a_token_goes_to_the_endpoint_alone(
    endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """Not even where another one asks for it; and no answer of that one renews it."""
    refreshed: list[bool] = []

    class Login(trimaran.StaticAccount):
        async def token(self, *, refresh: bool) -> str | None:
            refreshed.append(refresh)
            return await super().token(refresh=refresh)

    beside.always(401, headers=(("www-authenticate", "Bearer"),))
    async with (
        trimaran.open_telemetry(
            "test",
            account=Login(endpoint.url, "secret", email="a@b.c"),
            environ={},
            destinations=[trimaran.Destination(name="beside", url=beside.url)],
            settings=trimaran.Settings(**SWIFT),
        ) as telemetry,
        telemetry.session() as session,
    ):
        assert telemetry.decision.tier is trimaran.Tier.AUTHENTICATED

    assert [request.headers["authorization"] for request in endpoint.requests] == ["Bearer secret"]
    assert beside.requests
    for request in beside.requests:
        assert "authorization" not in request.headers
        assert b"secret" not in request.body
    assert not any(refreshed)
    each = session.statistics().destinations
    assert each["endpoint"].delivered == 2
    assert each["beside"].dropped == {"rejected": 2}


async def test_spans_go_to_who_wants_them(
    endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """Beside the endpoint, which gets the origin's wire and no more."""
    transport = OtlpTransport(
        OtlpSettings(url=f"{beside.url}/v1/traces", encoding="json", compression="none")
    )
    async with (
        trimaran.open_telemetry(
            "test", environ=endpoint.environ(), destinations=[beside_of(transport)]
        ) as telemetry,
        telemetry.session() as session,
    ):
        with session.tool_call("bash"):
            pass
    await transport.aclose()

    assert session.statistics().destinations["beside"].delivered == 3
    assert {request.target for request in beside.requests} == {"/v1/traces"}
    assert b"execute_tool bash" in b"".join(request.body for request in beside.requests)
    assert b"span_id" not in b"".join(request.body for request in endpoint.requests)


async def test_what_is_masked_is_masked_for_all(autojump_clock: trio.testing.MockClock) -> None:
    """Once, before the ways part; what has no plain JSON form is encoded all the same."""

    class Odd(trimaran.Event, frozen=True):
        value: object = None

    first, other = Capture(), Capture()
    async with (
        opened(first, other, wall_clock=lambda: 1_700_000_000.0) as telemetry,  # in the reports
        telemetry.session() as session,
    ):
        session.error(ValueError("password=hunter2"))
        session.track(Odd(value={1, 2}))
        session.track(None)  # type: ignore[arg-type]
        session.track(Odd(value="x" * 10_000_000))

    assert first.sessions() == other.sessions()
    assert all(b"hunter2" not in request.body for request in other.requests)
    for books in session.statistics().destinations.values():
        assert books.delivered == 4
        assert books.dropped == {"encode_error": 1, "too_large": 1}
    assert adds_up(session.statistics())


# One that fails is nothing to the others.


TROUBLE: dict[str, tuple[Callable[[LoopbackEndpoint], None], str]] = {
    "down": (lambda server: server.always(break_off=True), "retries_exhausted"),
    "failing": (lambda server: server.always(503), "retries_exhausted"),
    "rejecting": (lambda server: server.always(400), "rejected"),
    "refusing": (lambda server: server.always(401), "rejected"),
    "never answering": (lambda server: server.always(delay=math.inf), "retries_exhausted"),
}


@pytest.mark.parametrize("is_first", [True, False], ids=["the endpoint", "the other"])
@pytest.mark.parametrize("trouble", TROUBLE)
async def test_one_in_trouble_costs_the_other_nothing(
    endpoint: LoopbackEndpoint, beside: LoopbackEndpoint, trouble: str, *, is_first: bool
) -> None:
    """Neither an event nor time; the books of each say what became of its own."""
    make, reason = TROUBLE[trouble]
    ill, well = (endpoint, beside) if is_first else (beside, endpoint)
    ill_name, well_name = ("endpoint", "beside") if is_first else ("beside", "endpoint")
    make(ill)
    async with (
        trimaran.open_telemetry(
            "test",
            environ=endpoint.environ(),
            destinations=[trimaran.Destination(name="beside", url=beside.url)],
            settings=trimaran.Settings(**SWIFT, strict=True),
        ) as telemetry,
        telemetry.session(session_id="s") as session,
    ):
        await record(session, 500)
        with trio.fail_after(60):
            while session.statistics().destinations[well_name].delivered < 501:  # noqa: ASYNC110 - a server, not an event
                await trio.sleep(0.01)
        with trio.fail_after(60):
            assert await session.flush(timeout=60)

    assert len(well.of("s")) == 502
    books = session.statistics()
    assert adds_up(books)
    assert books.destinations[well_name].delivered == books.tracked == 502
    lost = books.destinations[ill_name]
    assert lost.delivered == 0
    assert lost.dropped_total == 502
    assert set(lost.dropped) <= {reason, "drain_timeout"}
    assert not [event for event in well.events if event.get("context") == "telemetry"]


async def test_a_hung_destination_sheds_and_holds_nobody_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``send`` gets room from the quickest; the other loses what its own mailbox cannot hold."""
    first, hung = Capture(), Hung()
    settings = {"mailbox_events": 500, "backlog_events": 200, "batch_events": 100}
    async with opened(first, hung, settings=settings) as telemetry, telemetry.session() as session:
        before = trio.current_time()
        await record(session, 5_000)
        await session.flush(timeout=0.001)
        books = session.statistics()
        assert adds_up(books)
        assert trio.current_time() - before < 1
        assert books.destinations["endpoint"].delivered == 5_001
        assert books.destinations["endpoint"].dropped == {}
        waiting = books.destinations["beside"]
        assert waiting.delivered == 0
        assert waiting.pending <= 500 + 200 + 3 * 200
        assert waiting.dropped == {"mailbox_full": 5_001 - waiting.pending}

    assert names_in(first.taken) == [str(number) for number in range(5_000)]
    assert set(session.statistics().destinations["beside"].dropped) == {
        "mailbox_full",
        "drain_timeout",
    }


async def test_memory_is_bounded_over_all_destinations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each way has its share: one that is full of what nobody takes leaves the others theirs."""
    most = 1_200_000
    settings = {"memory_bytes": most, "batch_bytes": 100_000, "event_bytes": 50_000}
    first, hung = Capture(), Hung()
    peak = 0
    async with opened(first, hung, settings=settings) as telemetry:
        supervisor = telemetry._supervisor
        assert supervisor is not None
        shared = supervisor.shared
        budgets = [shared.budget, *(route.budget for route in shared.routes)]
        assert sum(budget.limit for budget in budgets) <= most
        async with telemetry.session() as session, telemetry.session() as other:
            for _ in range(200):
                await session.send(trimaran.Command(command_name="x" * 10_000))
                await other.send(trimaran.Command(command_name="y" * 10_000))
                for budget in budgets:
                    assert budget.used <= budget.limit
                peak = max(peak, sum(budget.used for budget in budgets))
            await session.flush(timeout=0.1)
            await other.flush(timeout=0.1)
            assert session.statistics().delivered == other.statistics().delivered == 201
    assert peak > most / 4
    assert all(budget.used == 0 for budget in budgets)
    for books in (session.statistics(), other.statistics()):
        assert adds_up(books)
        assert books.destinations["endpoint"].dropped == {}
        assert books.destinations["beside"].dropped["mailbox_full"] > 50


async def test_with_room_nowhere_send_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing is shed for what can wait; as soon as one of them goes on, so does it."""
    gate = trio.Event()

    class Gated(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            await gate.wait()
            return await super().attempt(request)

    first, hung = Gated(), Hung()
    settings = {
        "mailbox_events": 100,
        "backlog_events": 100,
        "batch_events": 50,
        "request_timeout": 1000.0,
    }
    async with opened(first, hung, settings=settings) as telemetry, telemetry.session() as session:
        with trio.move_on_after(50):
            await record(session, 5_000)
        stuck = session.statistics()
        assert stuck.tracked < 1_500
        assert all(not books.dropped for books in stuck.destinations.values())
        gate.set()
        await record(session, 2_000)
        await session.flush(timeout=0.1)

    books = session.statistics()
    assert books.destinations["endpoint"].dropped == {}
    assert books.destinations["endpoint"].delivered == books.tracked
    assert books.destinations["beside"].dropped["mailbox_full"] > 1_000


async def test_a_loss_is_reported_where_it_was_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """To that destination alone, with its own numbers; one that hits all, to all."""
    slow = Capture([20.0])
    first = Capture()
    settings = {
        "mailbox_events": 300,
        "backlog_events": 100,
        "batch_events": 100,
        "request_timeout": 60.0,
    }
    async with opened(first, slow, settings=settings) as telemetry, telemetry.session() as session:
        await record(session, 2_000)
        await session.flush(timeout=100)
        assert session.statistics().dropped == {}
        lost = session.statistics().destinations["beside"].dropped["mailbox_full"]
        assert not first.events(trimaran.ErrorEvent)
        (report,) = slow.events(trimaran.ErrorEvent)
        assert report.error_message == f"{lost} events dropped due to buffer overflow"
        for _ in range(400):
            session.track(CALL)
        await session.flush(timeout=100)
        (report,) = first.events(trimaran.ErrorEvent)
        assert report.error_message == "100 events dropped due to buffer overflow"

    each = session.statistics().destinations
    assert each["endpoint"].dropped == {"mailbox_full": 100}
    assert each["beside"].dropped == {"mailbox_full": lost + 100}
    assert each["endpoint"].loss_reports == 1
    assert each["beside"].loss_reports == 2


async def test_a_bug_on_one_way_ends_that_way_alone(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """What comes to it then is lost to the bug, also a flush's mark; the rest goes on."""

    async def broken(_receive: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError

    first, other = Capture(), Capture()
    problems: list[trimaran.Problem] = []
    async with opened(
        first, other, settings={"strict": False}, on_problem=problems.append
    ) as telemetry:
        async with telemetry.session() as session:
            monkeypatch.setattr(session.ends.each[1]._sender, "run", broken)  # type: ignore[attr-defined]
            await trio.sleep(1)
            await record(session, 1_000)
            assert await session.flush()
            assert session.statistics().destinations["beside"].pending == 0
        async with telemetry.session() as healthy:
            await record(healthy)

    books = session.statistics()
    assert adds_up(books)
    assert books.destinations["endpoint"].delivered == 1_002
    assert books.destinations["beside"].dropped == {"bug": 1_002}
    assert healthy.statistics().destinations["beside"].delivered == 12
    assert [(problem.name, dict(problem.facts)) for problem in problems] == [
        ("telemetry failed", {"destination": "beside", "error": "RuntimeError"})
    ]


@pytest.mark.parametrize("lost", [{"bug": 11, "closed": 1}, {"drain_timeout": 12}])
async def test_what_is_lost_before_the_ways_part_is_lost_to_all_for_one_reason(
    lost: dict[str, int], monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """To the bug where there was one, and the session's end came after it; else to the deadline."""

    async def ends_badly(_fan_out: object, _chunk: object) -> None:
        await trio.lowlevel.checkpoint()
        if "bug" in lost:
            raise RuntimeError
        await trio.sleep_forever()

    monkeypatch.setattr("trimaran._ends.FanOut.send", ends_badly)
    async with (
        opened(Capture(), Capture(), settings={"strict": False}) as telemetry,
        telemetry.session() as session,
    ):
        await record(session, 10)
        await trio.sleep(1)

    for books in session.statistics().destinations.values():
        assert adds_up(books)
        assert books.dropped == lost


async def test_a_session_goes_on_when_no_way_is_left(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It takes events and counts them; nobody waits for room that will never be."""

    async def broken(_receive: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError

    settings = {"strict": False, "mailbox_events": 10}
    async with opened(Capture(), Capture(), settings=settings) as telemetry:
        async with telemetry.session() as session:
            for end in session.ends.each:  # type: ignore[attr-defined]
                monkeypatch.setattr(end._sender, "run", broken)
            await record(session, 1_000)
            assert await session.flush()

    for books in session.statistics().destinations.values():
        assert books.dropped == {"bug": 1_002}


async def test_strict_settings_let_a_bug_of_one_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same exception, alone."""

    async def broken(_receive: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012 - where it comes out is the point
        async with opened(Capture(), Capture()) as telemetry, telemetry.session() as session:
            monkeypatch.setattr(session.ends.each[1]._sender, "run", broken)  # type: ignore[attr-defined]
            await trio.sleep_forever()

    assert adds_up(session.statistics())
    assert session.statistics().pending == 0


# Time.


async def test_a_flush_waits_for_all(autojump_clock: trio.testing.MockClock) -> None:
    """It is complete when the slowest is."""
    async with opened(Capture(), Capture([5.0]), Capture([3.0])) as telemetry:
        async with telemetry.session() as session:
            session.track(CALL)
            assert not await session.flush(timeout=4)
            pending = {
                name: books.pending for name, books in session.statistics().destinations.items()
            }
            assert pending == {"endpoint": 0, "beside": 2, "third": 0}
            before = trio.current_time()
            assert await session.flush(timeout=10)
            assert trio.current_time() - before == pytest.approx(1)


async def test_the_time_to_drain_is_one_for_all(autojump_clock: trio.testing.MockClock) -> None:
    """Hung ones do not add up."""
    async with opened(Hung(), Hung(), Hung(), settings={"drain_timeout": 3.0}) as telemetry:
        async with telemetry.session() as session:
            await record(session)
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(3)
    for books in session.statistics().destinations.values():
        assert books.dropped == {"drain_timeout": 12}


async def test_consent_that_is_withdrawn_is_withdrawn_for_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What waits anywhere is dropped, and nobody is sent anything any more."""
    environ = dict(ENVIRON)
    first, other = Capture(), Capture([trimaran.Answer(503)])
    async with opened(first, other, environ=environ) as telemetry:
        async with telemetry.session() as session:
            await trio.sleep(0.1)
            environ["DO_NOT_TRACK"] = "1"
            await record(session)
    assert len(first.requests) == len(other.requests) == 1
    each = session.statistics().destinations
    assert each["endpoint"].dropped == {"consent_withdrawn": 11}
    assert each["beside"].dropped == {"consent_withdrawn": 12}


# With the endpoint undecided, and off.


async def test_without_an_endpoint_events_go_to_the_given_destinations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Anonymously; the decision is about the endpoint."""
    capture = Capture()
    async with (
        trimaran.open_telemetry("test", environ={}, destinations=[beside_of(capture)]) as telemetry,
        telemetry.session() as session,
    ):
        assert telemetry.decision.tier is trimaran.Tier.DISABLED
        assert telemetry.destinations == ("beside",)
        assert trimaran.current_session() is session
        await record(session)

    assert names_in(capture.taken) == [str(number) for number in range(10)]
    books = session.statistics()
    assert books.delivered == 12
    assert books.destinations == {"beside": msgspec.structs.replace(books, destinations={})}


async def test_an_account_that_fails_is_the_endpoints_affair(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is told once, of the endpoint; nothing of the account goes to anybody."""

    class Fails(trimaran.StaticAccount):
        async def account(self) -> trimaran.Account | None:
            raise OSError

    capture = Capture()
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test",
            account=Fails("https://x.test", "t", email="a@b.c"),
            environ=ENVIRON,
            destinations=[beside_of(capture)],
            on_problem=problems.append,
        ) as telemetry,
        telemetry.session(),
    ):
        assert telemetry.destinations == ("beside",)

    (problem,) = problems
    assert (problem.name, problem.facts["destination"]) == ("telemetry disabled", "endpoint")
    assert capture.taken
    assert all(batch.user_email == "" for batch in capture.batches())


@pytest.mark.parametrize("environ", [{"DO_NOT_TRACK": "1"}, {"TEST_TELEMETRY_DISABLED": "on"}, {}])
async def test_opting_out_switches_all_of_them_off(environ: dict[str, str]) -> None:
    """By a variable, or in code."""
    capture = Capture()
    async with (
        trimaran.open_telemetry(
            "test",
            environ=environ,
            destinations=[beside_of(capture)],
            settings=trimaran.Settings(enabled=bool(environ)),
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.track(CALL)
        assert telemetry.destinations == ()

    assert session.statistics() == trimaran.Statistics()
    assert capture.requests == []


def test_in_a_thread_it_is_the_same() -> None:
    """Also with the endpoint undecided; opted out, there is no thread."""
    capture, other = Capture(), Capture()
    with trimaran.open_in_thread(
        "test", environ={}, destinations=[beside_of(capture), beside_of(other, "other")]
    ) as telemetry:
        assert telemetry.destinations == ("beside", "other")
        with telemetry.session() as session:
            session.track(CALL)
            assert session.flush(timeout=60)
    with trimaran.open_in_thread(
        "test", environ={"DO_NOT_TRACK": "1"}, destinations=[beside_of(capture)]
    ) as telemetry:
        assert telemetry.destinations == ()
        assert threading.active_count() == 1 or not [
            thread for thread in threading.enumerate() if thread.name == "trimaran test"
        ]

    assert len(capture.events()) == len(other.events()) == 3
    assert session.statistics().destinations["other"].delivered == 3


def test_a_flush_that_the_thread_does_not_answer_asks_all_books(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One destination that has everything does not speak for the other."""
    with trimaran.open_in_thread(
        "test",
        environ=ENVIRON,
        transport=Capture(),
        destinations=[beside_of(Hung())],
        settings=trimaran.Settings(drain_timeout=0.1),
    ) as telemetry:
        with telemetry.session() as session:
            session.track(CALL)
            assert not session.flush(timeout=0.2)
            distant = session._session
            before = session.statistics()
            assert before.pending == 0
            assert not distant._flushed_since(before)  # type: ignore[attr-defined]
    assert distant._flushed_since(before)  # type: ignore[attr-defined]


async def test_in_a_nursery_of_the_hosts(nursery: trio.Nursery) -> None:
    """``run_telemetry`` takes them as well."""
    first, other = Capture(), Capture()

    async def run(*, task_status: trio.TaskStatus[trimaran.Telemetry]) -> None:
        await trimaran.run_telemetry(
            "test",
            environ=ENVIRON,
            transport=first,
            destinations=[beside_of(other)],
            task_status=task_status,
        )

    telemetry: trimaran.Telemetry = await nursery.start(run)
    async with telemetry.session() as session:
        await record(session)
        assert await session.flush(timeout=60)

    assert first.sessions() == other.sessions()


# Who is told what.


async def test_hooks_and_log_lines_name_the_destination(
    endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """What is lost to all is told for each; what is lost to one, for that."""
    beside.rule = lambda _request: Reply(503 if len(beside.requests) < 8 else 200)
    drops: list[trimaran.Dropped] = []
    problems: list[trimaran.Problem] = []
    with structlog.testing.capture_logs() as logs:
        async with (
            trimaran.open_telemetry(
                "test",
                environ=endpoint.environ(),
                destinations=[trimaran.Destination(name="beside", url=beside.url)],
                settings=trimaran.Settings(**SWIFT, retry_budget=1000.0),
                on_drop=drops.append,
                on_problem=problems.append,
            ) as telemetry,
            telemetry.session(session_id="s") as session,
        ):
            session.track(None)  # type: ignore[arg-type]
            with trio.fail_after(60):
                while session.statistics().destinations["beside"].batches < 1:  # noqa: ASYNC110 - as above
                    await trio.sleep(0.01)
            await session.flush(timeout=60)

    told = {(drop.destination, drop.reason, drop.session_id) for drop in drops}
    assert {("endpoint", "encode_error", "s"), ("beside", "encode_error", "s")} <= told
    for name, books in session.statistics().destinations.items():
        counted = {
            reason: sum(
                drop.count for drop in drops if (drop.destination, drop.reason) == (name, reason)
            )
            for reason in books.dropped
        }
        assert counted == books.dropped
    assert {problem.facts["destination"] for problem in problems} == {"beside"}
    assert "telemetry delivery lost" in {problem.name for problem in problems}
    restored = [line for line in logs if line["event"] == "telemetry delivery restored"]
    assert [line["destination"] for line in restored] == ["beside"]


async def test_the_same_trouble_of_two_is_told_for_each(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The minute between two lines is each destination's own."""
    problems: list[trimaran.Problem] = []
    refused = [trimaran.Answer(400)]
    async with opened(Capture(refused), Capture(refused), on_problem=problems.append) as telemetry:
        async with telemetry.session():
            pass
    assert sorted((str(problem.facts["destination"]), problem.name) for problem in problems) == [
        ("beside", "telemetry rejected"),
        ("endpoint", "telemetry rejected"),
    ]


async def test_the_books_add_up_for_another_thread() -> None:
    """Whenever it looks."""
    wrong: list[trimaran.Statistics] = []
    looks = 0
    over = threading.Event()

    def look(session: trimaran.Session) -> None:
        nonlocal looks
        while not over.is_set():
            books = session.statistics()
            looks += 1
            if not adds_up(books):
                wrong.append(books)

    async with opened(Capture(), Capture()) as telemetry, telemetry.session() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, look, session)
            rounds = 0
            while rounds < 20 or looks <= 10:
                await record(session, 200)
                await session.flush(timeout=60)
                rounds += 1
            over.set()

    assert wrong == []


async def test_a_session_of_a_telemetry_that_is_over_counts_for_all() -> None:
    """As closed."""
    async with opened(Capture(), Capture()) as telemetry:
        pass
    async with telemetry.session() as session:
        session.track(CALL)

    assert {
        name: dict(books.dropped) for name, books in session.statistics().destinations.items()
    } == {"endpoint": {"closed": 2}, "beside": {"closed": 2}}


async def test_a_forked_childs_copy_counts_once_for_each() -> None:
    """As closed, and nothing of what its parent recorded."""
    async with opened(Capture(), Capture()) as telemetry:
        pass
    async with telemetry.session() as session:
        session.forked()  # type: ignore[attr-defined]
        session.track(CALL)
        await session.flush()
        books = session.statistics()
    assert adds_up(books)
    assert {name: dict(each.dropped) for name, each in books.destinations.items()} == {
        "endpoint": {"closed": 1},
        "beside": {"closed": 1},
    }


async def test_an_abandoned_session_holds_no_share_of_the_memory() -> None:
    """One that is opened when all is over has no part in what the others may hold."""
    async with opened(Capture(), Capture()) as telemetry:
        supervisor = telemetry._supervisor
        assert supervisor is not None
    async with telemetry.session():
        pass

    for route in supervisor.shared.routes:
        assert route.budget._holders == {}


async def test_the_peak_is_that_of_the_fuller_mailbox() -> None:
    """The session's own, or that of a destination which is waited for."""
    hung = Capture([float("inf")])
    async with opened(
        Capture(), hung, settings={"drain_timeout": 0.1, "batch_events": 1, "backlog_events": 1}
    ) as telemetry:
        async with telemetry.session() as session:
            for _ in range(50):
                await session.send(CALL)
                await session.flush(timeout=0)
                await trio.testing.wait_all_tasks_blocked()

    books = session.statistics().destinations
    assert books["beside"].peak_waiting > 30
    assert books["endpoint"].peak_waiting < 30
