"""A session as a whole: its own events, to the last one, whatever happens to the others."""

from __future__ import annotations

import gc
import math
import sys
import threading
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import structlog
import trio
import trio.testing

import trimaran
from patience import PATIENCE
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.batcher import Bundle
from trimaran._pipeline.entry import Chunk, Flush
from trimaran._pipeline.fan_out import _Part
from trimaran._pipeline.mailbox import Mailbox
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import LoopbackEndpoint

SECRET = "ghp_" + "aB3" * 12
"""Of the shape of a token, which is known wherever it stands."""
CALL = trimaran.ToolCall(tool_name="bash")


def numbered(number: int) -> trimaran.ToolCall:
    """A tool call that can be told from others."""
    return trimaran.ToolCall(tool_name="bash", sequence_index=number, previous_tool=None)


def adds_up(books: trimaran.Statistics) -> bool:
    """The ledger's equation."""
    return books.tracked == books.delivered + books.dropped_total + books.pending


@pytest.mark.parametrize("sessions", [2, 200])
async def test_concurrent_sessions_keep_to_themselves(
    sessions: int, endpoint: LoopbackEndpoint
) -> None:
    """Interleaved events arrive once, in order, with their own session's id and project."""
    patient = trimaran.Settings(drain_timeout=60)
    async with (
        trimaran.open_telemetry("test", environ=endpoint.environ(), settings=patient) as telemetry,
        trio.open_nursery() as nursery,
    ):

        async def one(name: int) -> None:
            async with telemetry.session(session_id=f"s{name}", project_id=f"p{name}") as session:
                for number in range(20):
                    session.track(numbered(number))
                    assert trimaran.current_session() is session
                    await trio.lowlevel.checkpoint()

        for name in range(sessions):
            nursery.start_soon(one, name)

    for request in endpoint.requests:
        name = request.batch["session_id"][1:]
        assert request.batch["project_id"] == f"p{name}"
        assert {event["session_id"] for event in request.events} == {f"s{name}"}
    for name in range(sessions):
        events = endpoint.of(f"s{name}")
        assert events[0]["type"] == "session_start"
        assert events[-1]["type"] == "session_end"
        assert [event["sequence_index"] for event in events[1:-1]] == list(range(20))


@pytest.mark.parametrize("waiting", [1, 100, 199])
async def test_a_backlog_smaller_than_a_batch_neither_delays_nor_loses(
    waiting: int, autojump_clock: trio.testing.MockClock
) -> None:
    """No event waits for others that have no room to come, and leaving takes no time."""
    capture = Capture()
    settings = trimaran.Settings(mailbox_events=100, backlog_events=waiting)
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
        for number in range(500):
            await session.send(numbered(number))

    assert trio.current_time() == 0
    books = session.statistics()
    assert (books.delivered, books.dropped) == (books.tracked, {})
    assert [call.sequence_index for call in capture.events(trimaran.ToolCall)] == list(range(500))


async def test_a_session_that_ends_breaks_or_is_cancelled_leaves_the_rest_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the event: one ends, one is cancelled, one's sender fails, the fourth has it all."""
    capture = Capture()
    capture_not_strict = trimaran.open_telemetry(
        "test", environ={"TEST_TELEMETRY_URL": "https://x.test"}, transport=capture
    )
    with structlog.testing.capture_logs():
        async with capture_not_strict as telemetry, trio.open_nursery() as nursery:
            cancelled = trio.CancelScope()

            async def ends() -> None:
                async with telemetry.session(session_id="ends") as session:
                    session.track(CALL)

            async def is_cancelled() -> None:
                with cancelled:
                    async with telemetry.session(session_id="cancelled") as session:
                        session.track(CALL)
                        await trio.sleep_forever()

            async def breaks() -> None:
                async with telemetry.session(session_id="breaks") as session:

                    async def broken(_receive: object) -> None:
                        raise ZeroDivisionError

                    monkeypatch.setattr(session.ends.each[0]._sender, "run", broken)  # type: ignore[attr-defined]
                    session.track(CALL)
                    await trio.testing.wait_all_tasks_blocked()

            async with telemetry.session(session_id="rest") as rest:
                for task in (ends, is_cancelled, breaks):
                    nursery.start_soon(task)
                for number in range(100):
                    rest.track(numbered(number))
                    await trio.lowlevel.checkpoint()
                cancelled.cancel()
                await trio.testing.wait_all_tasks_blocked()
                rest.track(numbered(100))

    arrived = capture.sessions()
    assert [event.sequence_index for event in arrived["rest"][1:-1]] == list(range(101))  # type: ignore[attr-defined]
    assert len(arrived["ends"]) == 3
    assert len(arrived["cancelled"]) == 3
    assert "breaks" not in arrived
    assert rest.statistics().dropped == {}


async def test_totals_count_every_event_whatever_its_source() -> None:
    """Measured, tracked, sent, from a thread or by a log record: session_end counts them."""
    from trimaran.structlog import TelemetryProcessor

    tokens = trimaran.Tokens(input=900, output=120, reasoning=30, cache_read=300, cache_write=50)
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        with session.generation() as generation:
            generation.finish("stop", tokens=tokens, cost=0.25)
        session.track(trimaran.Generation(tokens=tokens, cost=0.5))
        with session.tool_call("bash"):
            pass
        await session.send(CALL)
        await trio.to_thread.run_sync(session.track, CALL)
        TelemetryProcessor()(None, "info", {"event": "tool_call", "tool_name": "grep"})

    [end] = capture.events(trimaran.SessionEnd)
    assert end.total_tokens == 2 * 1400
    assert end.total_cost == 0.75
    assert end.tool_call_count == 4
    assert [call.sequence_index for call in capture.events(trimaran.ToolCall)] == [0, 1, 2, 3]
    assert [call.previous_tool for call in capture.events(trimaran.ToolCall)] == [
        None,
        "bash",
        "bash",
        "bash",
    ]


async def test_current_session_in_nested_tasks() -> None:
    """A task has the session of the code that started it; outside there is a silent one."""
    capture = Capture()

    async def tool() -> None:
        trimaran.current_session().command("nested")

    async with capture.open() as telemetry:
        async with telemetry.session(), trio.open_nursery() as nursery:
            nursery.start_soon(tool)
        trimaran.current_session().command("outside")

    assert [event.command_name for event in capture.events(trimaran.Command)] == ["nested"]
    assert trimaran.current_session().statistics() == trimaran.Statistics()


async def test_a_session_binds_its_id_for_structlog() -> None:
    """merge_contextvars adds it inside, and what was bound outside is back afterwards."""
    structlog.contextvars.bind_contextvars(session_id="outer")
    try:
        async with Capture().open() as telemetry, telemetry.session(session_id="inner"):
            inside = structlog.contextvars.get_contextvars()["session_id"]
        after = structlog.contextvars.get_contextvars()["session_id"]
    finally:
        structlog.contextvars.clear_contextvars()

    assert (inside, after) == ("inner", "outer")


async def test_a_session_left_in_another_context_ends_all_the_same() -> None:
    """Entered in one task, left in another: an async generator does that to its blocks."""
    capture = Capture()
    async with capture.open() as telemetry:
        block = telemetry.session()

        async def enter() -> None:
            await block.__aenter__()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enter)
        await block.__aexit__(None, None, None)

    assert len(capture.events(trimaran.SessionEnd)) == 1


async def test_send_waits_for_room_and_loses_nothing(endpoint: LoopbackEndpoint) -> None:
    """50,000 events through send(): all delivered, never more waiting than there is room."""
    settings = trimaran.Settings(drain_timeout=30, mailbox_events=1000)
    async with (
        trimaran.open_telemetry("test", environ=endpoint.environ(), settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(50_000):
            await session.send(CALL)
        assert await session.flush(timeout=30)

    books = session.statistics()
    assert books.delivered == 50_002
    assert books.peak_waiting <= 1000
    assert len(endpoint.events) == 50_002


async def test_a_burst_delivers_the_mailboxs_worth_and_reports_the_rest() -> None:
    """50,000 calls without a checkpoint: 20,000 delivered, 30,000 counted and told."""
    capture = Capture()
    settings = trimaran.Settings(drain_timeout=PATIENCE)
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
        assert await session.flush()
        for number in range(50_000):
            session.track(numbered(number))

    arrived = [event.sequence_index for event in capture.events(trimaran.ToolCall)]
    assert arrived == list(range(30_000, 50_000))
    assert session.statistics().dropped == {"mailbox_full": 30_000}
    assert [event.error_message for event in capture.events(trimaran.ErrorEvent)] == [
        "30000 events dropped due to buffer overflow"
    ]


async def test_an_outage_of_ten_seconds_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """2,000 calls a second for 20 s, 503 from second 5 to 15, with default settings."""

    class Outage(Capture):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            given = await super().attempt(request)
            if 5 <= trio.current_time() - began < 15:
                self.taken.pop()
                return trimaran.Answer(503)
            return given

    capture = Outage()
    began = trio.current_time()
    async with capture.open() as telemetry, telemetry.session() as session:
        for number in range(40_000):
            session.track(numbered(number))
            if number % 20 == 0:
                await trio.sleep(0.01)

    assert session.statistics().delivered == 40_002
    assert [e.sequence_index for e in capture.events(trimaran.ToolCall)] == list(range(40_000))


async def test_track_from_many_threads_is_exact() -> None:
    """Ten threads at once: every event is counted once and arrives once."""
    capture = Capture()
    settings = trimaran.Settings(drain_timeout=30)
    async with capture.open(settings=settings) as telemetry, telemetry.session() as session:

        def tool(_thread: int) -> None:
            for number in range(1000):
                session.track(numbered(number))

        async with trio.open_nursery() as nursery:
            for thread in range(10):
                nursery.start_soon(trio.to_thread.run_sync, tool, thread)

    books = session.statistics()
    assert books.tracked == 10_002
    assert books.delivered == 10_002
    assert len(capture.events(trimaran.ToolCall)) == 10_000


def test_track_from_a_thread_after_the_run_is_counted_as_closed() -> None:
    """A thread that outlives the trio run gets no exception."""
    kept: list[trimaran.Session] = []

    async def main() -> None:
        async with Capture().open() as telemetry, telemetry.session() as session:
            kept.append(session)

    trio.run(main)
    thread = threading.Thread(target=kept[0].track, args=(CALL,))
    thread.start()
    thread.join()

    assert kept[0].statistics().dropped == {"closed": 1}
    assert adds_up(kept[0].statistics())


async def test_track_never_waits() -> None:
    """No checkpoint: a plain call, whatever the state of the pipeline."""
    async with Capture().open() as telemetry, telemetry.session() as session:
        with trio.testing.assert_no_checkpoints():
            session.track(CALL)
            session.command("x")
            session.error(ValueError("x"))
            with session.tool_call("bash"), session.bridge_call("x"), session.generation():
                pass


class Hostile:
    """Fails in whatever it is asked."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class NamelessKind(type):
    """Classes that fail where they are asked for their name."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class NamelessError(Exception, metaclass=NamelessKind):
    """Keeps its name to itself."""


async def test_an_error_of_any_kind_is_taken() -> None:
    """An exception is named without its help; what is none costs only itself."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.error(NamelessError("wrong"))
        session.error(Hostile())  # type: ignore[arg-type]

    named, marked = capture.events(trimaran.ErrorEvent)
    assert (named.error_name, named.error_message) == ("NamelessError", "wrong")
    assert marked.error_name == "<Hostile>"


@pytest.mark.parametrize("last", ["word", SECRET, "x" * 5000])
async def test_an_error_may_be_a_text_of_any_length(last: str) -> None:
    """Its beginning is sent, of which nothing ends with half a secret; only that is encoded."""
    capture = Capture()
    text = "word " * 818 + last + " word" * 4_000_000
    async with capture.open() as telemetry, telemetry.session() as session:
        tracemalloc.start()
        try:
            session.error(text)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    [error] = capture.events(trimaran.ErrorEvent)

    assert error.error_name == ("word " * 819 if last == "word" else "word " * 818)[:4096]
    assert error.error_message == ("word " * 100)[:500]
    assert peak < 1_000_000


class Strange(trimaran.Event, frozen=True):
    """An event of a host that checks nothing."""

    value: object


class Panic(BaseException):
    """What an extension raises where it must not go on: no ``Exception``."""


class PanickingModel:
    """A model that cannot be dumped."""

    def model_dump(self) -> object:
        """Fail."""
        raise Panic


class PanickingError(Exception):
    """An exception that cannot be asked for its text."""

    def __str__(self) -> str:
        raise Panic


class PanickingEvent(trimaran.Event, frozen=True):
    """An event whose class fails when it is asked."""

    urgent: ClassVar[Any] = type(
        "Never", (), {"__bool__": lambda _: PanickingModel().model_dump()}
    )()


async def test_a_panic_in_a_value_costs_the_value_only() -> None:
    """The agent goes on, an exception of its own comes out as itself, and so does the next event."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(Strange(value=PanickingModel()))
        session.command(PanickingModel())  # type: ignore[arg-type]
        session.error(PanickingError(), context="c")
        session.error("e", context=PanickingModel())  # type: ignore[arg-type]
        with pytest.raises(PanickingError), session.tool_call("bash"):
            raise PanickingError
        await session.send(Strange(value=[PanickingModel()]))

    assert not session.statistics().dropped
    assert [event.value for event in capture.events(Strange)] == [
        "<PanickingModel>",
        ["<PanickingModel>"],
    ]
    assert [event.error_message for event in capture.events(trimaran.ErrorEvent)] == ["", "e"]
    assert [event.error for event in capture.events(trimaran.ToolCall)] == ["PanickingError"]


async def test_a_panic_in_the_class_of_an_event_costs_that_event() -> None:
    """From the session's thread and from others; the books are right, and other sessions whole."""
    transport = ScriptedTransport()
    async with (
        trimaran.open_telemetry(
            "app", environ={"APP_TELEMETRY_URL": "https://app.invalid"}, transport=transport
        ) as telemetry,
        telemetry.session() as session,
        telemetry.session() as other,
    ):
        session.track(PanickingEvent())
        await session.send(PanickingEvent())
        await trio.to_thread.run_sync(session.track, PanickingEvent())
        session.command("after")
        other.command("untouched")

    books = session.statistics()
    assert (books.tracked, books.delivered, books.dropped) == (6, 3, {"bug": 3})
    assert (other.statistics().delivered, other.statistics().dropped) == (3, {})


class EndingEvent(trimaran.Event, frozen=True):
    """An event whose class ends the program."""

    urgent: ClassVar[Any] = type("Never", (), {"__bool__": lambda _: sys.exit()})()


async def test_what_ends_a_program_goes_through() -> None:
    """As where a signal's handler raises it while an event is taken; the books are right."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        with pytest.raises(SystemExit):
            session.track(EndingEvent())
        with pytest.raises(SystemExit):
            await session.send(EndingEvent())
        session.command("after")

    books = session.statistics()
    assert (books.tracked, books.delivered, books.dropped) == (4, 3, {"bug": 1})


async def test_what_ends_a_program_once_an_event_was_taken_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handler of a signal came between; the event is on its way, and is counted once."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        put = Mailbox.put

        def put_and_end(*given: Any, **named: Any) -> None:
            put(*given, **named)
            sys.exit()

        with monkeypatch.context() as patched:
            patched.setattr(Mailbox, "put", put_and_end)
            with pytest.raises(SystemExit):
                session.track(CALL)
        books = session.statistics()
        assert (books.tracked, books.pending, books.dropped) == (2, 2, {})

    books = session.statistics()
    assert (books.tracked, books.delivered, books.dropped) == (3, 3, {})


async def test_what_ends_a_program_when_a_session_ends_goes_through() -> None:
    """It comes of what a thread has left; the session ends all the same, and with the rest."""

    def leave(session: trimaran.Session) -> None:
        thread = threading.Thread(target=session.track, args=(EndingEvent(),))
        thread.start()
        thread.join(PATIENCE)

    capture = Capture()
    async with capture.open() as telemetry:
        with pytest.raises(SystemExit):
            async with telemetry.session() as session:
                leave(session)

    books = session.statistics()
    assert (books.tracked, books.delivered, books.dropped) == (3, 2, {"bug": 1})


def must_be_a_list(event: Any) -> None:
    """What a host's class checks when one of its events is made."""
    if type(event.labels) is not list:
        raise TypeError("labels must be a list")


class CheckedGeneration(trimaran.Generation, frozen=True, kw_only=True):
    """A generation that checks what it is made of."""

    labels: list[str]

    def __post_init__(self) -> None:
        must_be_a_list(self)


class CheckedCall(trimaran.ToolCall, frozen=True, kw_only=True):
    """A tool call that does."""

    labels: list[str]

    def __post_init__(self) -> None:
        must_be_a_list(self)


class CheckedOverflow(trimaran.ContextOverflowRecovered, frozen=True, kw_only=True):
    """A recovery that does."""

    labels: list[str]

    def __post_init__(self) -> None:
        must_be_a_list(self)


class CheckedError(trimaran.ErrorEvent, frozen=True, kw_only=True):
    """An error that does, and has a text that may be cut."""

    labels: list[str]

    def __post_init__(self) -> None:
        must_be_a_list(self)


class CheckedEnd(trimaran.SessionEnd, frozen=True, kw_only=True):
    """An end that does."""

    labels: list[str]

    def __post_init__(self) -> None:
        must_be_a_list(self)


@pytest.mark.parametrize("stamps", [{}, {"timestamp": 5, "session_id": "s"}])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CheckedGeneration, {"finish_reason": "stop"}),
        (CheckedCall, {"tool_name": "bash"}),
        (CheckedOverflow, {}),
        (
            CheckedError,
            {"error_name": "E", "error_message": "a " * 30_000, "context": "b " * 5_000},
        ),
        (CheckedEnd, {"duration_ms": 1}),
    ],
)
async def test_a_class_checks_an_event_once(
    kind: Any, fields: dict[str, Any], stamps: dict[str, Any]
) -> None:
    """When it is made; not again when the session fills it in, in the form in which it waits."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session(model_id="m") as session:
        session.track(kind(**fields, **stamps, labels=["a"]))
        await trio.to_thread.run_sync(session.track, kind(**fields, **stamps, labels=["a"]))

    assert not session.statistics().dropped
    assert [event.labels for event in capture.events(kind)] == [["a"]] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: 1,
        lambda: "tool_call",
        dict,
        object,
        Hostile,
        lambda: trimaran.ToolCall,
        lambda: Strange,
    ],
)
async def test_track_raises_for_nothing_that_is_no_event(make: Callable[[], object]) -> None:
    """It is counted as what could not be encoded, and the next event arrives."""
    given = make()
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(given)  # type: ignore[arg-type]
        await session.send(given)  # type: ignore[arg-type]
        session.command("after")

    assert session.statistics().dropped == {"encode_error": 2}
    assert len(capture.events(trimaran.Command)) == 1


@pytest.mark.parametrize(
    "make",
    [
        Hostile,
        lambda: [Hostile()],
        lambda: {"a": Hostile()},
        lambda: {Hostile: 1},
        lambda: b"\xff",
        lambda: math.nan,
        lambda: 10**400,
        lambda: "\ud800",
        object,
        lambda: {(1, 2): 3},
        lambda: {1, 2},
        lambda: len,
    ],
)
async def test_an_event_of_any_content_arrives_or_is_dropped_alone(
    make: Callable[[], object],
) -> None:
    """Its neighbours arrive, its fate is counted."""
    value = make()
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.command("before")
        session.track(Strange(value=value))
        session.command("after")

    books = session.statistics()
    assert len(capture.events(trimaran.Command)) == 2
    assert len(capture.events(Strange)) + books.dropped_total == 1
    assert set(books.dropped) <= {"encode_error", "too_large"}


@pytest.mark.parametrize("stamp", ["now", math.nan, -1, 10**400, None, True])
async def test_a_strange_timestamp_is_replaced(stamp: object) -> None:
    """What is no time becomes the time of tracking."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(trimaran.Command(command_name="x", timestamp=stamp))  # type: ignore[arg-type]

    [command] = capture.events(trimaran.Command)
    assert isinstance(command.timestamp, int)
    assert command.timestamp > 1_600_000_000_000 or stamp is True


async def test_a_timestamp_of_its_own_is_kept_and_a_session_id_is_not() -> None:
    """A replay keeps its times; an event belongs to the session that tracks it."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session(session_id="mine") as session:
        session.track(trimaran.Command(command_name="x", timestamp=1234, session_id="other"))

    [command] = capture.events(trimaran.Command)
    assert (command.timestamp, command.session_id) == (1234, "mine")


async def test_what_the_session_knows_is_filled_into_what_is_tracked() -> None:
    """As a measured block does; a log record is tracked in the same way."""
    capture = Capture()
    async with (
        capture.open() as telemetry,
        telemetry.session(agent="build", model_id="m", provider_id="v") as session,
    ):
        with session.generation() as generation:
            generation.finish("stop")
        session.track(trimaran.Generation(finish_reason="stop"))
        session.track(trimaran.ContextOverflowRecovered())

    measured, tracked = capture.events(trimaran.Generation)
    [recovered] = capture.events(trimaran.ContextOverflowRecovered)
    for event in (measured, tracked):
        assert (event.agent, event.model_id, event.provider_id) == ("build", "m", "v")
    assert (recovered.model_id, recovered.provider_id) == ("m", "v")


class State(trimaran.Event, frozen=True, kw_only=True):
    """What an agent says again and again of the same dict."""

    state: Any = None


async def test_each_event_says_what_it_said_when_it_was_tracked() -> None:
    """However often the agent uses the same dict, and however large it gets afterwards."""
    capture = Capture()
    state: dict[str, Any] = {"step": 0}

    async with capture.open() as telemetry, telemetry.session() as session:
        for step in range(5):
            state["step"] = step
            session.track(State(state=state))
        state["late"] = ["x" * 60_000] * 10
        await session.send(State(state=[step]))
    said = [event.state for event in capture.events(State)]

    assert said == [*({"step": step} for step in range(5)), [4]]


async def test_an_event_that_is_too_large_is_dropped_alone() -> None:
    """Its size is measured when it is tracked; error text is cut, not refused."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.track(Strange(value="x" * 10_000_000))
        session.track(Strange(value=[0] * 1_000_000))
        session.error(ValueError("y" * 10_000_000), context="prompt")
        session.track(trimaran.BridgeCall(method="m", error="z" * 10_000_000))

    assert session.statistics().dropped == {"too_large": 2}
    errors = {event.context: event.error_message for event in capture.events(trimaran.ErrorEvent)}
    assert len(errors["prompt"]) == 500
    assert [len(str(call.error)) for call in capture.events(trimaran.BridgeCall)] == [500]


async def test_secrets_do_not_leave() -> None:
    """Masked in the events and in what each batch says of its session."""
    capture = Capture()
    async with (
        capture.open(
            environ={"TEST_TELEMETRY_URL": "https://x.test", "HOME": "/srv/ann"}
        ) as telemetry,
        telemetry.session(project_id="/srv/ann/work") as session,
    ):
        session.error(
            ValueError("Authorization: Bearer abcdefghijklmnop1234"), context="/srv/ann/x"
        )
        session.command("ask ann@example.com")

    sent = b"".join(request.body for request in capture.requests)
    for secret in (b"abcdefghijklmnop1234", b"ann"):
        assert secret not in sent


async def test_flush_is_true_only_when_it_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its time runs out: false, with the number that pends; done: true."""
    async with Capture([5.0]).open() as telemetry, telemetry.session() as session:
        session.track(CALL)
        first = await session.flush(timeout=1)
        second = await session.flush(timeout=math.inf)

    assert (first.complete, bool(first), first.pending) == (False, False, 2)
    assert (second.complete, bool(second), second.delivered, second.pending) == (True, True, 2, 0)


async def test_a_flush_with_no_time_left_says_how_it_stands() -> None:
    """What is left of a deadline that has passed is below zero: no error, and no wait."""
    async with Capture().open() as telemetry, telemetry.session() as session:
        flushed = await session.flush(timeout=-1)

    assert (flushed.complete, flushed.pending) == (False, 1)


@pytest.mark.parametrize("destinations", [1, 2])
@pytest.mark.parametrize("stuck", ["sender", "collector"])
async def test_flushes_that_time_out_leave_nothing(
    destinations: int, stuck: str, autojump_clock: trio.testing.MockClock
) -> None:
    """However many there are: an agent's memory does not grow with its patience.

    Neither behind a sender that is stuck, nor when the way there is full.
    """

    class Hung(ScriptedTransport):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            await trio.sleep_forever()

    def marks() -> int:
        gc.collect()
        # By identity: other tests leave classes behind that raise whatever they are asked.
        return sum(type(each) is Flush or type(each) is _Part for each in gc.get_objects())

    settings = trimaran.Settings(strict=True, mailbox_events=10, backlog_events=1)
    async with trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": "https://x.test"},
        transport=Hung(),
        destinations=[trimaran.Destination(name="d", transport=Hung())][: destinations - 1],
        settings=settings,
    ) as telemetry:
        async with telemetry.session() as session, trio.open_nursery() as nursery:
            if stuck == "collector":
                for number in range(1_000):
                    session.track(numbered(number))
                    await trio.lowlevel.checkpoint()

            async def flushes(first: float) -> None:
                await trio.sleep(first)
                for _ in range(500):
                    assert not await session.flush(timeout=1)

            others = marks()
            for number in range(4):
                nursery.start_soon(flushes, number / 4)
            await trio.sleep(450)
            # Four at a time, each with a part for each destination, and as many that are left.
            assert marks() - others <= 2 * 4 * (1 + destinations) + 8


async def test_flush_tells_what_was_dropped() -> None:
    """Complete is not delivered: the numbers tell."""
    async with Capture([trimaran.Answer(400)]).open() as telemetry, telemetry.session() as session:
        flushed = await session.flush()

    assert (flushed.complete, flushed.delivered, flushed.dropped) == (True, 0, 1)


async def test_flush_does_not_wait_for_what_comes_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Only what was tracked before it counts."""
    capture = Capture([1.0, trimaran.Answer(200), 1000.0])
    async with capture.open() as telemetry, trio.open_nursery() as nursery:
        async with telemetry.session() as session:

            async def later() -> None:
                await trio.sleep(0.5)
                session.track(CALL)
                session.error("late")

            nursery.start_soon(later)
            began = trio.current_time()
            assert await session.flush(timeout=100)
            assert trio.current_time() - began == pytest.approx(1.0)


async def test_flush_after_the_end_waits_for_the_rest() -> None:
    """The session is over, its pipeline may not be yet."""
    async with Capture().open() as telemetry:
        async with telemetry.session() as session:
            session.track(CALL)
        assert await session.flush()
        assert session.statistics().delivered == 3
        assert await session.flush()


async def test_a_cancelled_flush_leaves_everything_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing is lost, and the next flush is true."""
    async with Capture([3.0]).open() as telemetry, telemetry.session() as session:
        session.track(CALL)
        with trio.move_on_after(1):
            await session.flush(timeout=10)
        assert await session.flush(timeout=10)

    assert session.statistics().delivered == 3


async def test_routine_events_wait_for_company_and_urgent_ones_do_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Five seconds for a tool call, none for an error."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        session.track(CALL)
        await trio.sleep(4.9)
        assert len(capture.events()) == 1
        await trio.sleep(0.2)
        assert len(capture.events()) == 2
        session.error("now")
        await trio.testing.wait_all_tasks_blocked()
        assert len(capture.events()) == 3


async def test_context_of_any_kind_is_taken() -> None:
    """What a host gives as ids is made text; opening a session raises for nothing."""
    capture = Capture()
    async with (
        capture.open(version=None) as telemetry,  # type: ignore[arg-type]
        telemetry.session(
            session_id=7,  # type: ignore[arg-type]
            project_id=None,  # type: ignore[arg-type]
            agent=b"build",  # type: ignore[arg-type]
            model_id="\ud800",
        ) as session,
    ):
        assert session.id == "7"

    [start] = capture.events(trimaran.SessionStart)
    assert (start.session_id, start.project_id, start.agent) == ("7", "", "build")


class Remembered(trimaran.Event, frozen=True, weakref=True):
    """An event that can be looked for."""


def in_pipelines() -> int:
    """How many things there are that only a pipeline makes; other tests may have left some."""
    gc.collect()
    kinds = (Batch, Bundle, Chunk)
    # By identity: other tests leave classes behind whose hash is not to be asked.
    return sum(any(type(each) is kind for kind in kinds) for each in gc.get_objects())


async def test_an_idle_session_keeps_nothing_of_what_it_has_delivered() -> None:
    """However large its last batch was: there may be a thousand that wait for an event."""
    capture = Capture()
    before = in_pipelines()
    async with capture.open() as telemetry, telemetry.session() as session:
        event = Remembered()
        kept = weakref.ref(event)
        session.track(event)
        del event
        assert await session.flush()
        capture.requests.clear()
        capture.taken.clear()

        assert in_pipelines() <= before
        assert kept() is None


async def test_what_a_thread_left_is_part_of_the_next_flush() -> None:
    """Tracked before it, though no turn of the loop came between."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        thread = threading.Thread(target=session.track, args=(CALL,))
        thread.start()
        thread.join()  # without a checkpoint: the loop has not seen it yet
        flushed = await session.flush()

    assert flushed.delivered == 1


async def test_what_a_thread_left_before_the_end_is_delivered() -> None:
    """It was tracked in time, though no turn of the loop came between."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        assert await session.flush()
        thread = threading.Thread(target=session.track, args=(CALL,))
        thread.start()
        thread.join()

    assert session.statistics().delivered == 3
    assert session.statistics().dropped == {}
