"""Public names as a user writes them: checked by mypy and pyright, never run.

Every public name stands here, spelt ``trimaran.x``, in a use whose type matters; a test
compares this file with ``__all__``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import TypeVar, assert_type

import structlog
import trio

import trimaran
import trimaran.langfuse
import trimaran.otlp
import trimaran.receiver
import trimaran.structlog
import trimaran.testing

_Result = TypeVar("_Result")

settings = trimaran.Settings(drain_timeout=1.0, mailbox_policy="drop_newest")
lasting = trimaran.Settings(spool=trimaran.Spool())
relayed = trimaran.Settings(relay=trimaran.Relay(idle_timeout=60.0))
assert_type(trimaran.__version__, str)


class Deploy(trimaran.Event, frozen=True, tag="deployment"):
    """An event of a host's own."""

    target: str


events: list[trimaran.Event] = [
    trimaran.SessionStart(agent="build"),
    trimaran.SessionEnd(total_cost=0.5),
    trimaran.Generation(tokens=trimaran.Tokens(input=1)),
    trimaran.ToolCall(tool_name="bash", status="error", error="no such file"),
    trimaran.BridgeCall(method="sql.execute"),
    trimaran.ErrorEvent(error_name="ValueError"),
    trimaran.Command(command_name="init", command_source="skill"),
    trimaran.ContextOverflowRecovered(tokens_used=1),
    trimaran.CompactionTriggered(trigger="overflow_detection"),
    trimaran.ToolOutputsPruned(count=1),
    Deploy(target="production", timestamp=1),
]


def kind_of(event: trimaran.BuiltInEvent) -> str:
    """The union is closed: a type checker knows when one is left out."""
    match event:
        case trimaran.SessionStart() | trimaran.SessionEnd():
            return "session"
        case trimaran.Generation() | trimaran.ToolCall() | trimaran.BridgeCall():
            return "call"
        case trimaran.ErrorEvent() | trimaran.Command():
            return "happening"
        case trimaran.ContextOverflowRecovered() | trimaran.CompactionTriggered():
            return "context"
        case trimaran.ToolOutputsPruned():
            return "context"


class Login:
    """A host's own account provider: nothing to inherit from."""

    async def account(self) -> trimaran.Account | None:
        """Who is logged in."""
        return trimaran.Account(url="https://example.com", email="a@example.com")

    async def token(self, *, refresh: bool) -> str | None:
        """The token of the moment."""
        return "new" if refresh else "old"


class Post:
    """A host's own transport: nothing to inherit from."""

    blueprint: trimaran.Blueprint | None = None

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        """One attempt."""
        assert_type(request.headers, Mapping[str, str])
        if not request.body:
            raise trimaran.TransportError("nothing to send")
        return trimaran.Answer(200, retry_after=None, body=b"")

    async def aclose(self) -> None:
        """Nothing is open."""


accounts: list[trimaran.AccountProvider] = [
    Login(),
    trimaran.StaticAccount("https://example.com", "token", email="a@example.com"),
    trimaran.CredentialsFile("credentials.json"),
]
transport: trimaran.Transport = Post()


over_otlp: list[trimaran.Transport] = [
    trimaran.otlp.OtlpTransport(),
    trimaran.otlp.OtlpTransport(
        trimaran.otlp.OtlpSettings(
            url="https://collector.example.com/v1/traces",
            headers={"api-key": "k"},
            encoding="json",
            dialect=trimaran.otlp.PLAIN,
            shapes={
                "deployment": trimaran.otlp.Shape(
                    name="deploy", subject="target", kind=trimaran.otlp.Kind.CLIENT
                )
            },
        ),
        max_connections=4,
    ),
    trimaran.otlp.OtlpTransport(
        trimaran.otlp.OtlpSettings.from_environ({}, endpoint="http://127.0.0.1:4318", signal="logs")
    ),
    trimaran.langfuse.langfuse_transport(environ={}),
    trimaran.otlp.OtlpTransport(trimaran.langfuse.langfuse_settings(tags=["nightly"])),
]
dialects: list[trimaran.otlp.Dialect] = [
    trimaran.otlp.LANGFUSE,
    trimaran.otlp.MLFLOW,
    trimaran.otlp.OPENINFERENCE,
]
assert_type(trimaran.otlp.MAPPING_VERSION, str)


destinations: list[trimaran.Destination] = [
    trimaran.Destination(name="langfuse", transport=over_otlp[0]),
    trimaran.Destination(name="mirror", url="https://telemetry.example.com"),
]


def hear(told: trimaran.Dropped) -> None:
    """A host's hook for losses."""
    assert_type(told.destination, str)
    assert_type(told.reason, trimaran.DropReason)
    assert_type(told.count, int)


def warn(told: trimaran.Problem) -> None:
    """A host's hook for trouble."""
    assert_type(told.facts, Mapping[str, object])


def agrees() -> bool:
    """A host's own switch."""
    return True


async def at_once(call: Callable[[], _Result], /) -> _Result:
    """A host's own way to run what blocks."""
    return call()


run_blocking: trimaran.RunBlocking = at_once


async def record(telemetry: trimaran.Telemetry) -> None:
    """Everything that a session takes."""
    async with telemetry.session(
        project_id="p",
        agent="build",
        model_id="m",
        provider_id="v",
        session_id=None,
        parent_session_id="ses_1",
        traceparent=None,
    ) as session:
        assert_type(session, trimaran.Session)
        assert_type(session.id, str)
        session.command("init", source="command", message_id="msg_1")
        with session.generation(message_id="msg_1") as generation:
            assert_type(generation, trimaran.GenerationMeasure)
            generation.finish("stop", tokens=trimaran.Tokens.from_openai({}), cost=0.0123)
        with session.tool_call("bash", message_id="msg_1", category="shell") as tool:
            assert_type(tool, trimaran.ToolMeasure)
        with session.bridge_call("sql.execute") as bridge:
            assert_type(bridge, trimaran.BridgeMeasure)
        session.error(ValueError("no"), context="prompt")
        session.track(events[0])
        await session.send(Deploy(target="production"))
        assert_type(await session.flush(timeout=2), trimaran.Flushed)
    assert_type(session.statistics(), trimaran.Statistics)
    assert_type(session.statistics().destinations["langfuse"], trimaran.Statistics)
    assert_type(session.statistics().dropped.get(trimaran.DropReason.CLOSED, 0), int)
    assert_type(trimaran.current_session(), trimaran.Session)
    assert_type(trimaran.current_session().to_env({"PATH": ""}), dict[str, str])
    async with trimaran.attach(account=accounts[0], settings=settings) as participant:
        assert_type(participant, trimaran.Session)


def record_plainly(session: trimaran.ThreadSession) -> None:
    """Everything that a session takes, where nothing is awaited."""
    assert_type(session.id, str)
    session.command("init", source="command", message_id="msg_1")
    with session.generation(message_id="msg_1") as generation:
        assert_type(generation, trimaran.GenerationMeasure)
    with session.tool_call("bash", message_id="msg_1", category="shell") as tool:
        assert_type(tool, trimaran.ToolMeasure)
    with session.bridge_call("sql.execute") as bridge:
        assert_type(bridge, trimaran.BridgeMeasure)
    session.error(ValueError("no"), context="prompt")
    session.track(events[0])
    session.send(Deploy(target="production"))
    assert_type(session.flush(timeout=2), trimaran.Flushed)
    assert_type(session.statistics(), trimaran.Statistics)
    assert_type(session.to_env(), dict[str, str])


def run_plainly() -> None:
    """Around a plain block, with telemetry in a thread."""
    with trimaran.open_in_thread(
        "altimate",
        version="0.5.7",
        account=accounts[0],
        settings=settings,
        environ={},
        transport=transport,
        destinations=destinations,
        consent=agrees,
        on_drop=hear,
        on_problem=warn,
        random=Random(0),
        run_blocking=run_blocking,
    ) as telemetry:
        assert_type(telemetry, trimaran.ThreadTelemetry)
        assert_type(telemetry.decision, trimaran.Decision)
        assert_type(telemetry.leftovers(), trimaran.Statistics)
        assert_type(telemetry.destinations, tuple[str, ...])
        with telemetry.session(agent="build", parent_session_id="ses_1", traceparent="") as session:
            assert_type(session, trimaran.ThreadSession)
            record_plainly(session)
        telemetry.close()
    with trimaran.attach_in_thread(account=accounts[0], settings=settings) as attached:
        assert_type(attached, trimaran.ThreadSession)


async def embed() -> None:
    """Around a block, and in a nursery of the host's."""
    async with trimaran.open_telemetry(
        "altimate",
        version="0.5.7",
        account=accounts[0],
        settings=settings,
        environ={},
        transport=transport,
        destinations=destinations,
        consent=agrees,
        on_drop=hear,
        on_problem=warn,
        run_blocking=run_blocking,
    ) as telemetry:
        assert_type(telemetry, trimaran.Telemetry)
        assert_type(telemetry.decision, trimaran.Decision)
        assert_type(telemetry.decision.tier, trimaran.Tier)
        assert_type(telemetry.leftovers(), trimaran.Statistics)
        assert_type(telemetry.destinations, tuple[str, ...])
        await record(telemetry)
    async with trio.open_nursery() as nursery:
        started: trimaran.Telemetry = await nursery.start(trimaran.run_telemetry, "altimate")
        await record(started)
        await nursery.start(
            partial(
                trimaran.run_telemetry,
                "altimate",
                destinations=destinations,
                consent=agrees,
                on_drop=hear,
                on_problem=warn,
                random=Random(0),
                run_blocking=run_blocking,
            )
        )


def decide() -> str:
    """What would happen, with nothing opened."""
    decision = trimaran.resolve("altimate", None, {"DO_NOT_TRACK": "1"})
    return f"{decision.tier} because of {decision.source}, {decision.reason}"


async def read_credentials() -> str:
    """What is wrong with a file of credentials."""
    try:
        await trimaran.CredentialsFile("credentials.json").account()
    except trimaran.CredentialsError as error:
        return str(error)
    return ""


async def receive() -> None:
    """The server end, embedded."""
    try:
        tokens = trimaran.receiver.read_token_file("tokens")
    except trimaran.receiver.TokenFileError:
        return
    async with trio.open_nursery() as nursery:
        running: trimaran.receiver.Receiver = await nursery.start(
            partial(trimaran.receiver.run_receiver, port=0, database="t.db", tokens=tokens)
        )
        assert_type(running.url, str)
        settings = trimaran.otlp.OtlpSettings()
        forward = trimaran.receiver.Forward(settings=settings, spool="waiting", most_bytes=1)
        await nursery.start(partial(trimaran.receiver.run_receiver, port=0, forward=forward))


async def store() -> None:
    """The server end, part by part."""
    try:
        async with trimaran.receiver.open_store("t.db") as opened:
            assert_type(opened, trimaran.receiver.Store)
            trimaran.receiver.create_app(opened)
        async with trimaran.receiver.open_store("clickhouse+http://127.0.0.1/t") as shared:
            assert_type(shared.where, str)
    except (trimaran.receiver.StoreUnavailable, trimaran.receiver.StoreError):
        return


async def captured() -> None:
    """A host's own tests."""
    capture = trimaran.testing.Capture()
    async with capture.open() as telemetry:
        await record(telemetry)
    assert_type(capture.events(trimaran.ToolCall), list[trimaran.ToolCall])
    assert_type(capture.events(), list[trimaran.Event])
    assert_type(capture.batches(), list[trimaran.testing.CapturedBatch])
    script: trimaran.Transport = trimaran.testing.ScriptedTransport([trimaran.Answer(503)])
    await script.aclose()


def configure() -> None:
    """Before the renderer."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            trimaran.structlog.TelemetryProcessor(events=[Deploy]),
            structlog.processors.JSONRenderer(),
        ]
    )
