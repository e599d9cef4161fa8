from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Generator
from typing import Any

import msgspec
import pytest
import structlog
import trio

import trimaran
from trimaran import (
    Answer,
    BridgeCall,
    CompactionTriggered,
    ErrorEvent,
    Generation,
    SessionEnd,
    SessionStart,
    Tokens,
    ToolCall,
)
from trimaran.structlog import TelemetryProcessor
from trimaran.testing import Capture


class Rollout(trimaran.Event, frozen=True, rename="camel"):
    """An event of the host's own, whose fields have other names on the wire."""

    target_name: str
    replica_count: int = 1


class Rejected(trimaran.Event, frozen=True, tag="telemetry rejected"):
    """An event that is called like a line of the library's own."""


@pytest.fixture(autouse=True)
def unconfigured() -> Generator[None]:
    """Structlog as it is in a process that never configured it, before and after."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def output() -> io.StringIO:
    """Where the host's log goes."""
    return io.StringIO()


@pytest.fixture
def log(output: io.StringIO) -> Any:
    """A logger of a host whose chain is what the documentation says, rendered as JSON."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            TelemetryProcessor(events=[Rollout, Rejected]),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(output),
    )
    return structlog.get_logger()


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    """What the host's log says."""
    return [json.loads(line) for line in output.getvalue().splitlines()]


async def recorded(record: Callable[[], object], *, dropped: int = 0) -> list[trimaran.Event]:
    """The events that a session gets while *record* runs in it, without its start and end."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        record()
    books = session.statistics()
    assert (books.pending, books.dropped_total) == (0, dropped)
    assert books.dropped.get("encode_error", 0) == dropped
    return [
        msgspec.structs.replace(event, timestamp=msgspec.UNSET, session_id=msgspec.UNSET)
        for event in capture.events()
        if not isinstance(event, (SessionStart, SessionEnd))
        and not (isinstance(event, ErrorEvent) and event.context == "telemetry")
    ]


def fail(error: Exception) -> None:
    """Raise *error*."""
    raise error


# Records that are events.


async def test_a_record_becomes_an_event(log: Any, output: io.StringIO) -> None:
    """By its name, with the fields of that event; the log says what it always said."""
    [event] = await recorded(
        lambda: log.info("tool_call", tool_name="bash", duration_ms=12, user="ada")
    )

    assert event == ToolCall(
        tool_name="bash",
        tool_type="standard",
        tool_category="standard",
        duration_ms=12,
        sequence_index=0,
        previous_tool=None,
    )
    [line] = lines(output)
    assert line.pop("timestamp").startswith("20")
    assert line.pop("session_id")
    assert line == {
        "event": "tool_call",
        "level": "info",
        "tool_name": "bash",
        "duration_ms": 12,
        "user": "ada",
    }


async def test_every_event_of_the_wire_can_be_a_record(log: Any) -> None:
    """All ten names are known, whatever the level."""

    def record() -> None:
        log.debug("session_start", agent="build")
        log.info("session_end", total_cost=1.5, duration_ms=5)
        log.info("generation", finish_reason="stop", cost=0.5)
        log.info("tool_call", tool_name="bash")
        log.warning("bridge_call", method="sql.execute", status="error")
        log.error("error", error_name="E")
        log.info("command", command_name="init", command_source="skill")
        log.info("context_overflow_recovered", tokens_used=5)
        log.info("compaction_triggered", trigger="error_recovery")
        log.critical("tool_outputs_pruned", count=3)

    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        record()
        await session.flush()

    kinds = [type(event).__name__ for event in capture.events()]
    assert kinds == ["SessionStart", *(kind.__name__ for kind in trimaran_events()), "SessionEnd"]


def trimaran_events() -> list[type[trimaran.Event]]:
    """The ten, in the order of the wire."""
    return [
        SessionStart,
        SessionEnd,
        Generation,
        ToolCall,
        BridgeCall,
        ErrorEvent,
        trimaran.Command,
        trimaran.ContextOverflowRecovered,
        CompactionTriggered,
        trimaran.ToolOutputsPruned,
    ]


@pytest.mark.parametrize(
    "tokens",
    [Tokens(input=900, output=120), {"input": 900, "output": 120}, {"input": "900", "output": 120}],
)
async def test_a_part_of_an_event_may_be_given_in_several_ways(log: Any, tokens: object) -> None:
    """As the object, as a mapping, and with numbers as text, which a log often has."""
    [event] = await recorded(lambda: log.info("generation", tokens=tokens))

    assert event == Generation(tokens=Tokens(input=900, output=120))


async def test_an_event_of_the_hosts_own(log: Any) -> None:
    """A record names its fields as the code does, whatever they are called on the wire."""
    [event] = await recorded(
        lambda: log.info("rollout", target_name="prod", replica_count=3, targetName="no")
    )

    assert event == Rollout(target_name="prod", replica_count=3)


async def test_the_session_stamps_the_event(log: Any) -> None:
    """A record's time is in the host's format, and its session may be somebody else's."""
    capture = Capture()

    async with capture.open() as telemetry, telemetry.session(session_id="mine"):
        log.info("command", command_name="init", session_id="other", timestamp="yesterday")

    [event] = capture.events(trimaran.Command)
    assert event.session_id == "mine"
    assert isinstance(event.timestamp, int)


async def test_what_a_record_leaves_out_has_its_default(log: Any) -> None:
    """Only what an event cannot do without is needed."""
    [event] = await recorded(lambda: log.info("compaction_triggered", trigger="error_recovery"))

    assert event == CompactionTriggered(trigger="error_recovery", attempt=1)


@pytest.mark.parametrize("name", ["tool", "TOOL_CALL", "tool call", "", "telemetry"])
async def test_other_records_are_none(log: Any, output: io.StringIO, name: str) -> None:
    """Nothing is counted for them; they are logged as ever."""
    assert await recorded(lambda: log.info(name, tool_name="bash")) == []

    assert [line["event"] for line in lines(output)] == [name]


@pytest.mark.parametrize(
    "record",
    [
        {"event": "tool_call"},
        {"event": "tool_call", "tool_name": 7},
        {"event": "tool_call", "tool_name": "bash", "status": "failed"},
        {"event": "tool_call", "tool_name": "bash", "duration_ms": "long"},
        {"event": "generation", "tokens": {"input": [1]}},
        {"event": "generation", "cost": object()},
        {"event": "error"},
        {"event": "error", "exc_info": False},
        {"event": "error", "exc_info": (None, None, None)},
        {"event": "command"},
    ],
)
async def test_a_bad_record_is_counted(record: dict[str, object]) -> None:
    """It lacks a field or has one of another kind: that is a loss, and no error."""
    assert await recorded(lambda: TelemetryProcessor()(None, "info", record), dropped=1) == []


@pytest.mark.parametrize("name", [None, 7, ["tool_call"], {"tool_call": 1}, b"tool_call"])
async def test_an_event_that_is_no_text_is_none(name: object) -> None:
    """Structlog takes anything for the name of a record."""
    processor = TelemetryProcessor()

    assert await recorded(lambda: processor(None, "info", {"event": name})) == []
    assert processor(None, "info", {}) == {}


class Faceless:
    """Fails where it is asked what it is, or whether."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError


async def test_values_of_a_hostile_class_cost_only_themselves() -> None:
    """A logging call never raises, whatever it is given."""
    processor = TelemetryProcessor()

    assert await recorded(lambda: processor(None, "info", {"event": Faceless()})) == []
    for given in (Faceless(), (Faceless(),)):
        record = {"event": "error", "exc_info": given}
        assert await recorded(lambda: processor(None, "info", record), dropped=1) == []  # noqa: B023


async def test_the_record_is_handed_on_as_it_is() -> None:
    """The very same object, with the very same content, also where it is a bad one."""
    processor = TelemetryProcessor()
    tokens = {"input": 1}

    def record() -> None:
        for given in (
            {"event": "generation", "tokens": tokens},
            {"event": "error", "exc_info": ValueError("wrong")},
            {"event": "tool_call"},
            {"event": "other"},
        ):
            before = dict(given)
            assert processor(None, "info", given) is given
            assert given == before

    await recorded(record, dropped=1)
    assert tokens == {"input": 1}


# Exceptions.


async def test_an_exception_is_an_error_event(log: Any, output: io.StringIO) -> None:
    """Its kind and its text; what renders exceptions for the log still gets it."""

    def record() -> None:
        try:
            fail(KeyError("column"))
        except KeyError:
            log.exception("error", context="prompt")

    [event] = await recorded(record)

    assert event == ErrorEvent(error_name="KeyError", error_message="'column'", context="prompt")
    assert "Traceback" in lines(output)[0]["exception"]


@pytest.mark.parametrize("form", ["object", "tuple", "true"])
async def test_an_exception_may_be_given_in_several_forms(log: Any, form: str) -> None:
    """All those that structlog takes."""

    def record() -> None:
        try:
            fail(ValueError("wrong"))
        except ValueError as error:
            forms: dict[str, object] = {
                "object": error,
                "tuple": (ValueError, error, error.__traceback__),
                "true": True,
            }
            log.warning("error", exc_info=forms[form])

    [event] = await recorded(record)

    assert event == ErrorEvent(error_name="ValueError", error_message="wrong")


async def test_what_a_record_says_of_an_error_comes_first(log: Any) -> None:
    """The exception fills in what is missing."""

    def record() -> None:
        log.error("error", error_name="Timeout", exc_info=ValueError("wrong"))
        log.error("error", error_name="Timeout", error_message="slow", exc_info=ValueError())
        log.error("error", error_name="Timeout")

    assert await recorded(record) == [
        ErrorEvent(error_name="Timeout", error_message="wrong"),
        ErrorEvent(error_name="Timeout", error_message="slow"),
        ErrorEvent(error_name="Timeout"),
    ]


@pytest.mark.parametrize(
    "renderer", [structlog.processors.format_exc_info, structlog.processors.dict_tracebacks]
)
async def test_an_exception_that_was_rendered_already_is_found(renderer: Any) -> None:
    """A chain where the processor comes late loses no error that is logged where it is handled."""
    structlog.configure(
        processors=[renderer, TelemetryProcessor(), structlog.processors.JSONRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )

    def record() -> None:
        try:
            fail(ValueError("wrong"))
        except ValueError:
            structlog.get_logger().exception("error")

    [event] = await recorded(record)

    assert event == ErrorEvent(error_name="ValueError", error_message="wrong")


class HostileError(Exception):
    """Fails where it is asked for its text."""

    def __str__(self) -> str:
        raise RuntimeError


async def test_an_exception_that_fails_to_speak_is_still_an_error() -> None:
    """Its kind is known."""
    processor = TelemetryProcessor()

    [event] = await recorded(
        lambda: processor(None, "error", {"event": "error", "exc_info": HostileError()})
    )

    assert event == ErrorEvent(error_name="HostileError")


# Which session.


def test_outside_of_a_session_nothing_happens(log: Any, output: io.StringIO) -> None:
    """The same code runs in a program without telemetry."""
    log.info("tool_call", tool_name="bash")

    assert lines(output)[0]["tool_name"] == "bash"


async def test_a_disabled_telemetry_gets_nothing(log: Any, output: io.StringIO) -> None:
    """Its sessions do nothing, so a record is a record."""
    capture = Capture()

    async with capture.open(environ={}) as telemetry, telemetry.session():
        log.info("tool_call", tool_name="bash")

    assert capture.requests == []
    assert "session_id" not in lines(output)[0]


async def test_records_are_named_after_their_session(log: Any, output: io.StringIO) -> None:
    """Whatever is logged in it has its id, by ``merge_contextvars``; what is outside has none."""
    capture = Capture()

    async with capture.open() as telemetry:
        log.info("before")
        async with telemetry.session(session_id="outer"):
            log.info("in outer")
            async with telemetry.session(session_id="inner"):
                log.info("in inner")
            log.info("in outer")
        log.info("after")

    ids = [line.get("session_id") for line in lines(output)]
    assert ids == [None, "outer", "inner", "outer", None]


async def test_concurrent_sessions_get_their_own(log: Any, output: io.StringIO) -> None:
    """One bound logger for all of them: the session is where the call stands, not the logger."""
    capture = Capture()
    shared = log.bind(message_id="msg_1")

    async def work(telemetry: trimaran.Telemetry, name: str) -> None:
        async with telemetry.session(session_id=name), trio.open_nursery() as nursery:
            nursery.start_soon(call, name, "a")
            nursery.start_soon(call, name, "b")

    async def call(name: str, task: str) -> None:
        bound = shared.bind(tool_name=f"{name}.{task}")
        for _ in range(20):
            bound.info("tool_call")
            await trio.lowlevel.checkpoint()

    names = [f"s{number}" for number in range(10)]
    async with capture.open() as telemetry, trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(work, telemetry, name)

    assert len(capture.events(ToolCall)) == 10 * 40
    assert all(call.message_id == "msg_1" for call in capture.events(ToolCall))
    for name, events in capture.sessions().items():
        calls = [event for event in events if isinstance(event, ToolCall)]
        assert {call.tool_name for call in calls} == {f"{name}.a", f"{name}.b"}
        assert [call.sequence_index for call in calls] == list(range(40))
    assert all(line["session_id"] == line["tool_name"][:2] for line in lines(output))


async def test_a_thread_of_a_session_records_into_it(log: Any) -> None:
    """Trio's threads inherit the context of who started them."""
    capture = Capture()

    async with capture.open() as telemetry, telemetry.session():
        await trio.to_thread.run_sync(lambda: log.info("tool_call", tool_name="bash"))

    assert [call.tool_name for call in capture.events(ToolCall)] == ["bash"]


# The standard library's logging.


@pytest.fixture
def bridge(output: io.StringIO) -> Generator[logging.Logger]:
    """A host whose loggers of the standard library are formatted by structlog, and the reverse."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        TelemetryProcessor(),
    ]
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    logger = logging.getLogger("a.host")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


async def test_a_record_of_the_standard_library_becomes_an_event(
    bridge: logging.Logger, output: io.StringIO
) -> None:
    """Its message is the name, its ``extra`` the fields."""
    [event] = await recorded(lambda: bridge.info("tool_call", extra={"tool_name": "bash"}))

    assert isinstance(event, ToolCall)
    assert event.tool_name == "bash"
    [line] = lines(output)
    assert line.pop("session_id")
    assert line == {"event": "tool_call", "level": "info", "tool_name": "bash"}


async def test_an_exception_of_the_standard_library_becomes_an_event(
    bridge: logging.Logger, output: io.StringIO
) -> None:
    """As ``logger.exception("error")`` gives it."""

    def record() -> None:
        try:
            fail(ValueError("wrong"))
        except ValueError:
            bridge.exception("error")

    assert await recorded(record) == [ErrorEvent(error_name="ValueError", error_message="wrong")]
    assert "Traceback" in lines(output)[0]["exception"]


async def test_a_record_that_goes_through_both_is_one_event(
    bridge: logging.Logger, output: io.StringIO
) -> None:
    """Structlog in front of the standard library: the bridge does not take it twice."""
    log = structlog.get_logger("a.host")

    events = await recorded(lambda: log.info("tool_call", tool_name="bash"))

    assert [type(event) for event in events] == [ToolCall]
    assert [line["event"] for line in lines(output)] == ["tool_call"]


async def test_a_level_that_is_not_logged_is_no_event(bridge: logging.Logger) -> None:
    """What the host filters out is not recorded either."""
    assert await recorded(lambda: bridge.debug("tool_call", extra={"tool_name": "bash"})) == []


# The library's own lines.


async def test_our_own_lines_never_become_events(log: Any, output: io.StringIO) -> None:
    """Not even if the host has an event by that name: nothing feeds itself."""
    capture = Capture([Answer(400)])

    async with capture.open() as telemetry, telemetry.session() as session:
        await session.flush()
        log.info("telemetry rejected")
        await session.flush()

    assert [line["event"] for line in lines(output)] == ["telemetry rejected"] * 2
    assert lines(output)[0]["status"] == 400
    assert len(capture.events(Rejected)) == 1
    books = session.statistics()
    assert (books.tracked, books.delivered, books.dropped) == (3, 2, {"rejected": 1})
