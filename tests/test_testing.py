from __future__ import annotations

import math
import socket
from collections.abc import Generator
from typing import Any, ClassVar

import msgspec
import pytest
import trio
import trio.testing

import trimaran
from patience import PATIENCE
from trimaran import Answer, Request, StaticAccount, Tokens, TransportError
from trimaran._host_events import HostEvents
from trimaran.otlp import OtlpSettings, OtlpTransport
from trimaran.testing import Capture, CapturedBatch, ScriptedTransport

pytest_plugins = ["pytester"]

REQUEST = Request("https://collect.example", {}, b"{}")
REFUSED = TransportError("ConnectError")


class Shipment(trimaran.Event, frozen=True, rename="camel"):
    """An event of the host's own, whose fields have other names on the wire."""

    target_name: str
    replica_count: int = 1
    parts: tuple[str, ...] = ()


class Unnamed(trimaran.Event, frozen=True, tag=False):
    """An event that is declared to have no ``type``."""

    text: str = ""


class Urgent(Shipment, frozen=True):
    """An event below another one of the host's own."""

    urgent: ClassVar[bool] = True


# A transport that follows a script.


async def answers(transport: ScriptedTransport, count: int) -> list[object]:
    """What *count* attempts give, and when."""
    given: list[object] = []
    for _ in range(count):
        try:
            given.append((await transport.attempt(REQUEST)).status)
        except TransportError as error:
            given.append(error)
    return given


async def test_a_script_is_followed_step_by_step() -> None:
    """Answers are given, errors raised; after the last step, everything succeeds."""
    transport = ScriptedTransport([Answer(503), REFUSED, Answer(207, body=b"{}"), Answer(400)])

    assert await answers(transport, 6) == [503, REFUSED, 207, 400, 200, 200]
    assert len(transport.requests) == 6
    assert len(transport.taken) == 3


async def test_a_number_hangs_before_the_next_step(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In seconds of trio's clock; several hang one after the other."""
    transport = ScriptedTransport([2, 0.5, Answer(500), 3.0])

    assert await answers(transport, 1) == [500]
    assert trio.current_time() == 2.5
    assert await answers(transport, 2) == [200, 200]
    assert trio.current_time() == 5.5


async def test_a_step_that_hangs_can_be_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """The next request goes on with the next step; the one that was cut off was made."""
    transport = ScriptedTransport([math.inf, Answer(500)])

    with trio.move_on_after(10) as scope:
        await transport.attempt(REQUEST)

    assert scope.cancelled_caught
    assert await answers(transport, 1) == [500]
    assert (len(transport.requests), transport.taken) == (2, [])


async def test_its_calls_are_checkpoints() -> None:
    """As those of a real transport."""
    transport = ScriptedTransport()

    with trio.testing.assert_checkpoints():
        await transport.attempt(REQUEST)
    with trio.testing.assert_checkpoints():
        await transport.aclose()


# A capture.


async def captured(*events: Any, **arguments: Any) -> Capture:
    """What one session delivers that tracks *events*."""
    capture = Capture()
    async with capture.open(**arguments) as telemetry:
        async with telemetry.session(session_id="s1", project_id="p") as session:
            for event in events:
                session.track(event)
    return capture


def bare(events: list[Any]) -> list[Any]:
    """Events without their stamps, without a session's start and end."""
    return [
        msgspec.structs.replace(event, timestamp=msgspec.UNSET, session_id=msgspec.UNSET)
        for event in events
        if not isinstance(event, (trimaran.SessionStart, trimaran.SessionEnd))
    ]


async def test_a_capture_gives_back_typed_events() -> None:
    """All of them, or those of one class, in the order in which they were delivered."""
    capture = await captured(
        trimaran.Command(command_name="init"),
        trimaran.ToolCall(tool_name="bash"),
        trimaran.Command(command_name="undo"),
    )

    assert [type(event).__name__ for event in capture.events()] == [
        "SessionStart",
        "Command",
        "ToolCall",
        "Command",
        "SessionEnd",
    ]
    assert [command.command_name for command in capture.events(trimaran.Command)] == [
        "init",
        "undo",
    ]
    assert capture.events(trimaran.Generation) == []
    assert capture.sessions() == {"s1": capture.events()}
    assert repr(capture) == "<Capture: 5 events>"


async def test_a_capture_gives_back_batches() -> None:
    """With what each says of its session."""
    capture = await captured(
        version="0.5.7", account=StaticAccount("https://x", "tok", email="ada@example.org")
    )

    [batch] = capture.batches()
    assert isinstance(batch, CapturedBatch)
    assert (batch.session_id, batch.project_id) == ("s1", "p")
    assert (batch.cli_version, batch.user_email) == ("0.5.7", "ada@example.org")
    assert batch.events == capture.events()
    assert isinstance(batch.timestamp, int)


async def test_sessions_are_told_apart() -> None:
    """Each has its own events."""
    capture = Capture()

    async with capture.open() as telemetry:
        for name in ("a", "b"):
            async with telemetry.session(session_id=name) as session:
                session.command(name)

    assert {
        name: [event.command_name for event in events if isinstance(event, trimaran.Command)]
        for name, events in capture.sessions().items()
    } == {"a": ["a"], "b": ["b"]}


async def test_an_event_counts_when_it_was_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After a flush, say; what was refused never does."""
    capture = Capture([Answer(503), Answer(200), Answer(400)])

    async with capture.open() as telemetry, telemetry.session() as session:
        session.command("taken")
        assert capture.events() == []
        await session.flush(timeout=60)
        assert len(capture.events()) == 2
        session.command("refused")
        await session.flush(timeout=60)

    assert [command.command_name for command in capture.events(trimaran.Command)] == ["taken"]


async def test_a_batch_that_was_sent_twice_counts_once() -> None:
    """A receiver knows it by its key; one without a key is like no other."""
    capture = await captured()
    [request] = capture.requests

    await capture.attempt(request)

    assert len(capture.taken) == 2
    assert len(capture.batches()) == 1


@pytest.mark.parametrize(
    "event",
    [
        trimaran.Generation(tokens=Tokens(input=900), cost=0.5, finish_reason="stop"),
        Shipment(target_name="prod", replica_count=3, parts=("a", "b")),
        Urgent(target_name="prod"),
        Unnamed(text="x"),
        trimaran.Event(),
    ],
)
async def test_an_event_comes_back_as_it_was_tracked(event: trimaran.Event) -> None:
    """Of its own class, with values of the types that the class declares."""
    capture = await captured(event)

    assert bare(capture.events()) == [event]
    assert bare(capture.events(type(event))) == [event]


async def test_a_declared_class_goes_before_one_made_of_what_came_in() -> None:
    """As for the events of child processes, whose classes the parent may have as well."""
    event = Shipment(target_name="prod", replica_count=3, parts=("a",))
    made = HostEvents().make("shipment", {"anything": 1}, msgspec.UNSET)

    capture = await captured(event)

    assert bare(capture.events()) == [event]
    assert type(made) not in {type(each) for each in capture.events()}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (trimaran.ToolCall, {"tool_name": 7, "status": "failed"}),
        (trimaran.Generation, {"tokens": {"input": "many"}, "cost": None}),
        (Shipment, {"target_name": ["prod"], "parts": ["a"]}),
    ],
)
async def test_odd_values_can_be_looked_at_too(event: Any, expected: dict[str, Any]) -> None:
    """Nothing is validated when an event is made, and so nothing is when it comes back."""
    capture = await captured(event(**expected), trimaran.Command(command_name="after"))

    [odd] = capture.events(event)
    assert len(capture.events(trimaran.Command)) == 1
    for name, value in expected.items():
        got = getattr(odd, name)
        assert (list(got) if isinstance(got, tuple) else got) == value


async def test_the_class_that_is_asked_for_counts() -> None:
    """A suite may have many small classes of one name; the last of them is not always meant."""

    class Small(trimaran.Event, frozen=True):
        text: str = ""

    first = Small

    class Small(trimaran.Event, frozen=True):  # type: ignore[no-redef]  # that is its point
        text: str = ""

    capture = await captured(first(text="x"))

    assert bare(capture.events(first)) == [first(text="x")]
    assert bare(capture.events(Small)) == [Small(text="x")]


async def test_a_captures_telemetry_is_strict() -> None:
    """A bug in it comes out instead of being counted; other settings stay."""
    capture = Capture([Answer(200, body=b"{}")])

    def fail(*_arguments: object) -> Any:
        raise ZeroDivisionError

    async def run() -> None:
        settings = trimaran.Settings(batch_events=1)
        async with capture.open(settings=settings) as telemetry, telemetry.session() as session:
            session.command("init")
            await session.flush()
            assert len(capture.batches()) == 2
            session._redactor.redact = fail  # type: ignore[attr-defined]  # a bug of ours
            session.command("init")

    with pytest.raises(ZeroDivisionError):
        await run()


async def test_only_the_switches_that_are_given_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is on, whatever the real environment says; off is off all the same."""
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    capture = Capture()

    async with capture.open("my-app") as telemetry:
        assert telemetry.decision.tier is trimaran.Tier.ANONYMOUS
        assert telemetry.decision.url == "https://capture.invalid"
        assert telemetry.decision.source == "MY_APP_TELEMETRY_URL"
    async with capture.open("my-app", environ={}) as telemetry:
        assert telemetry.decision.tier is trimaran.Tier.DISABLED
    async with capture.open(settings=trimaran.Settings(enabled=False)) as telemetry:
        assert telemetry.decision.source == "code"
    assert capture.requests == []


async def test_a_capture_is_a_transport() -> None:
    """For code that opens a telemetry of its own and takes a transport."""
    capture = Capture()

    async with trimaran.open_telemetry(
        "altimate",
        environ={"ALTIMATE_TELEMETRY_URL": "https://telemetry.invalid"},
        transport=capture,
    ) as telemetry:
        async with telemetry.session():
            pass

    assert len(capture.events()) == 2
    assert capture.requests[0].url.startswith("https://telemetry.invalid/")


# The fixture.


@pytest.fixture
def listener() -> Generator[socket.socket]:
    """A server that nobody should ever connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def connections(server: socket.socket) -> int:
    """How often somebody connected."""
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return 0
    return 1 + connections(server)


async def test_the_fixture_captures(trimaran_capture: Capture) -> None:
    """It is known to this very pytest, and its telemetry is on."""
    async with trimaran_capture.open() as telemetry, telemetry.session() as session:
        session.command("init")

    assert len(trimaran_capture.events(trimaran.Command)) == 1


async def test_under_the_fixture_nothing_touches_the_network(
    trimaran_capture: Capture, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A telemetry of the code's own is off, though the environment says where to send."""
    host, port = listener.getsockname()
    monkeypatch.setenv("ALTIMATE_TELEMETRY_URL", f"http://{host}:{port}")
    account = StaticAccount(f"http://{host}:{port}", "tok")

    for logged_in in (None, account):
        async with trimaran.open_telemetry("altimate", account=logged_in) as telemetry:
            assert telemetry.decision.source == "DO_NOT_TRACK"
            async with telemetry.session() as session:
                session.command("init")
    async with trimaran_capture.open(
        "altimate", account=account, environ={"ALTIMATE_TELEMETRY_URL": f"http://{host}:{port}"}
    ) as telemetry:
        async with telemetry.session() as session:
            session.command("init")

    assert connections(listener) == 0
    assert len(trimaran_capture.events(trimaran.Command)) == 1


@pytest.mark.parametrize("wire", ["origin", "otlp"])
async def test_under_the_fixture_no_environment_of_its_own_leads_to_the_network(
    wire: str, trimaran_capture: Capture, listener: socket.socket
) -> None:
    """What code was told to ignore the variables is refused, and told why."""
    host, port = listener.getsockname()
    url = f"http://{host}:{port}"
    problems: list[trimaran.Problem] = []
    transport = None if wire == "origin" else OtlpTransport(OtlpSettings(url=url))
    async with trimaran.open_telemetry(
        "altimate",
        environ={"ALTIMATE_TELEMETRY_URL": url},
        transport=transport,
        on_problem=problems.append,
    ) as telemetry:
        assert telemetry.decision.enabled
        async with telemetry.session() as session:
            session.command("init")

    assert connections(listener) == 0
    assert session.statistics().dropped == {"rejected": 3}
    assert "no network under trimaran_capture" in str([problem.facts for problem in problems])
    assert not trimaran_capture.events()


async def test_without_the_fixture_the_listener_would_notice(listener: socket.socket) -> None:
    """So that the test before proves something."""
    host, port = listener.getsockname()

    async with trimaran.open_telemetry(
        "altimate",
        settings=trimaran.Settings(drain_timeout=0),
        environ={"ALTIMATE_TELEMETRY_URL": f"http://{host}:{port}"},
    ) as telemetry:
        async with telemetry.session():
            with trio.fail_after(PATIENCE):
                connection, _ = await trio.socket.from_stdlib_socket(listener).accept()
    connection.close()


SUITE = """
    import os
    import sys

    import pytest
    import trio
    import trimaran


    async def agent(telemetry):
        async with telemetry.session() as session:
            session.command("init")


    def test_plain(trimaran_capture):
        async def main():
            async with trimaran_capture.open() as telemetry:
                await agent(telemetry)

        trio.run(main)
        assert len(trimaran_capture.events(trimaran.Command)) == 1


    @pytest.mark.trio
    async def test_async(trimaran_capture):
        async with trimaran_capture.open() as telemetry:
            await agent(telemetry)
        assert len(trimaran_capture.events()) == 3


    @pytest.mark.trio
    async def test_elsewhere(trimaran_capture):
        async with trimaran.open_telemetry("altimate") as telemetry:
            await agent(telemetry)
        assert trimaran_capture.requests == []
        assert os.environ["DO_NOT_TRACK"] == "1"


    def test_afterwards():
        assert "DO_NOT_TRACK" not in os.environ
        assert "httpx" not in sys.modules
"""


def test_a_suite_of_somebody_else(
    pytester: pytest.Pytester, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture comes with the package: plain and async tests, each with a capture of its own."""
    host, port = listener.getsockname()
    monkeypatch.setenv("ALTIMATE_TELEMETRY_URL", f"http://{host}:{port}")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    pytester.makepyfile(SUITE)

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=2 * PATIENCE)

    result.assert_outcomes(passed=4)
    assert connections(listener) == 0


def test_the_fixture_says_what_it_is_for(pytester: pytest.Pytester) -> None:
    """``pytest --fixtures`` is where people look."""
    result = pytester.runpytest_inprocess("--fixtures")

    result.stdout.fnmatch_lines(["trimaran_capture*", "*Telemetry that ends in memory*"])
