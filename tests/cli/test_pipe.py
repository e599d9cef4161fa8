"""``trimaran pipe`` in a process of its own, against a real receiver."""

from __future__ import annotations

import json
import math
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from otlp.systems import TOKEN, TestAgent
from patience import PATIENCE
from trimaran._trace import trace_of
from trimaran.receiver import Receiver, run_receiver

if TYPE_CHECKING:
    from cli.conftest import Command, OnTerminal, Stored
    from conftest import LoopbackEndpoint


def line(**fields: object) -> str:
    """A line of JSON."""
    return json.dumps(fields) + "\n"


def total(out: str) -> list[str]:
    """Tracked, delivered and what was dropped, of the table's last row."""
    (row,) = [row for row in out.splitlines() if row.strip().startswith("All ")]
    return row.split()[1:]


CALL = line(type="tool_call", tool_name="bash", session_id="s", timestamp=1_700_000_002_000)


async def test_events_arrive_as_they_were_recorded(
    command: Command, receiver: Receiver, stored: Stored
) -> None:
    """Both kinds of lines, in their own sessions, with their own times; bad lines are told."""
    (command.directory / "events.jsonl").write_text(
        line(type="session_start", session_id="a", project_id="p", timestamp=1_700_000_000_000)
        + line(event="tool_call", tool_name="grep", session_id="b", level="info", timestamp=1.5)
        + "\n"
        + line(type="tool_call", session_id="a")
        + line(event="request handled", session_id="a")
        + "no JSON\n"
        + line(type="deployment", target="prod", session_id="a", timestamp=1_700_000_000_509)
        + line(type="session_end", duration_ms=900, session_id="a", timestamp=1_700_000_000_900)
    )

    ended = await command("pipe", "events.jsonl", "--app", "mine", "--url", receiver.url)

    assert ended.status == 0
    assert total(ended.out) == ["6", "6", "0"]
    assert "Lines: 7 read, 4 events, 1 log records that are no events, 2 bad." in ended.out
    assert "Made: 2 starts and ends of sessions that were not recorded." in ended.out
    assert ended.err.splitlines() == [
        "trimaran: events.jsonl, line 4: tool_call: Object missing required field `tool_name`",
        "trimaran: events.jsonl, line 6: not JSON (JSON is malformed: invalid character (byte 4))",
    ]
    assert [(event["type"], event["timestamp"]) for event in await stored(receiver, "a")] == [
        ("session_start", 1_700_000_000_000),
        ("deployment", 1_700_000_000_509),
        ("session_end", 1_700_000_000_900),
    ]
    assert [(event["type"], event["timestamp"]) for event in await stored(receiver, "b")] == [
        ("session_start", 1_500),
        ("tool_call", 1_500),
        ("session_end", 1_500),
    ]


async def test_everything_into_one_session(
    command: Command, receiver: Receiver, stored: Stored
) -> None:
    """``--session`` and ``--project-id`` go before what the lines say; ``-`` is stdin."""
    ended = await command(
        *("pipe", "-", "--url", receiver.url, "--session", "one", "--project-id", "mine"),
        *("--app-version", "1.2", "--event", "note"),
        stdin=(CALL + line(event="note", text="hi", session_id="t")).strip().encode(),
    )

    assert ended.status == 0
    events = await stored(receiver, "one")
    assert [event["type"] for event in events] == [
        *("session_start", "tool_call", "note", "session_end")
    ]
    assert events[0]["project_id"] == "mine"
    assert events[2]["text"] == "hi"


async def test_many_sessions_at_once(command: Command, receiver: Receiver, stored: Stored) -> None:
    """Interleaved lines arrive in order in their own sessions; the table has its rows."""
    lines = [
        line(type="tool_call", tool_name=f"t{number}", session_id=f"s{session:02}")
        for number in range(40)
        for session in range(30)
    ]

    ended = await command("pipe", "--url", receiver.url, stdin="".join(lines).encode())

    assert ended.status == 0
    assert total(ended.out) == ["1,260", "1,260", "0"]
    assert "... and 10 more" in ended.out
    for session in (0, 17, 29):
        events = await stored(receiver, f"s{session:02}")
        assert [event.get("tool_name") for event in events[1:-1]] == [f"t{n}" for n in range(40)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_is_piped_flows_at_once_and_a_signal_ends_it(
    command: Command, receiver: Receiver, stored: Stored, number: signal.Signals
) -> None:
    """As with ``tail -f``: an event arrives while the input is open, its session's end on a signal."""
    running = await command.start("pipe", "--url", receiver.url)
    await running.write(CALL.encode())
    await eventually(partial(stored, receiver, "s"), lambda events: len(events) == 2)
    await running.write(CALL.encode() + b'{"type": "tool_')
    await eventually(partial(stored, receiver, "s"), lambda events: len(events) == 3)

    ended = await running.ends(number)

    assert ended.status == 128 + number
    assert [event["type"] for event in await stored(receiver, "s")] == [
        *("session_start", "tool_call", "tool_call", "session_end")
    ]
    assert total(ended.out) == ["4", "4", "0"]
    assert ended.err == f"trimaran: ended by {number.name}; the rest was not read\n"


async def test_a_second_signal_changes_nothing(
    command: Command, endpoint: LoopbackEndpoint
) -> None:
    """With an endpoint that accepts and never answers, the first one ends it in time."""
    endpoint.always(delay=math.inf)
    running = await command.start("pipe", "--url", endpoint.url)
    await running.write(CALL.encode())
    with trio.fail_after(PATIENCE):
        while not endpoint.requests:  # noqa: ASYNC110 - an endpoint tells nobody
            await trio.sleep(0.02)
    began = trio.current_time()
    running.process.send_signal(signal.SIGTERM)
    await trio.sleep(0.2)
    ended = await running.ends(signal.SIGINT)

    assert ended.status == 128 + signal.SIGTERM
    assert trio.current_time() - began < PATIENCE / 2
    assert total(ended.out) == ["3", "0", "3", "drain_timeout"]
    assert "Traceback" not in ended.err


async def eventually(
    look: Callable[[], Awaitable[list[Any]]], holds: Callable[[list[Any]], bool]
) -> None:
    """Wait until *holds* of what *look* sees."""
    with trio.fail_after(PATIENCE):
        while not holds(await look()):  # noqa: ASYNC110 - another process tells nobody
            await trio.sleep(0.02)


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_waits_for_an_endpoint_that_is_down(
    command: Command, nursery: trio.Nursery, tmp_path: Path, stored: Stored
) -> None:
    """It says so, and delivers everything when the endpoint is back."""
    port = free_port()
    running = await command.start("pipe", "--url", f"http://127.0.0.1:{port}")
    await running.write(CALL.encode())
    await running.end_input()
    await running.says("trimaran: telemetry endpoint not reached")

    receiver: Receiver = await nursery.start(
        partial(run_receiver, port=port, database=tmp_path / "late.sqlite")
    )
    ended = await running.ends()

    assert ended.status == 0
    assert total(ended.out) == ["3", "3", "0"]
    assert len(await stored(receiver, "s")) == 3


async def test_gives_up_on_an_endpoint_that_stays_down(command: Command) -> None:
    """After ``--timeout`` seconds, with what was lost, and why."""
    url = f"http://127.0.0.1:{free_port()}"
    ended = await command("pipe", "--url", url, "--timeout", "0.5", stdin=CALL.encode())

    assert ended.status == 1
    assert total(ended.out) == ["3", "0", "3", "drain_timeout"]
    assert f"trimaran: 3 events wait, and {url} takes none for 0.5 s; giving up\n" in ended.err
    assert ended.err.endswith(
        "trimaran: 3 events were not delivered; send them again when it works\n"
    )


async def test_tokens_come_from_a_file_and_are_never_shown(
    command: Command, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """With the right token events are delivered; with none they are refused, and that is told."""
    receiver: Receiver = await nursery.start(
        partial(
            run_receiver, port=0, database=tmp_path / "t.sqlite", tokens=frozenset({"sesame42"})
        )
    )
    credentials = command.directory / "credentials.json"
    credentials.touch(mode=0o600)
    credentials.write_text(json.dumps({"url": receiver.url, "token": "sesame42"}))

    with_token = await command("pipe", "--credentials", credentials, stdin=CALL.encode())
    without = await command("pipe", "--url", receiver.url, stdin=CALL.encode())
    credentials.write_text(json.dumps({"url": receiver.url, "token": "sesame43"}))
    with_another = await command(
        "pipe", "--credentials", credentials, "--timeout", 5, stdin=CALL.encode()
    )

    assert with_token.status == 0
    assert total(with_token.out) == ["3", "3", "0"]
    assert without.status == 1
    assert total(without.out) == ["3", "0", "3", "rejected"]
    assert "trimaran: telemetry rejected (status: 401, reason: " in without.err
    assert "3 events were not delivered; put right what it says above" in without.err
    assert with_another.status == 1
    assert total(with_another.out) == ["3", "0", "3", "unauthorized"]
    assert "its token is refused: correct the file that --credentials names" in with_another.err
    for ended in (with_token, without, with_another):
        assert "sesame4" not in ended.out + ended.err


async def test_bad_lines_alone_are_a_failure(command: Command, receiver: Receiver) -> None:
    """There is nothing to send, and something is wrong."""
    ended = await command("pipe", "--url", receiver.url, stdin=b"\x00\xff\n[1]\n")

    assert ended.status == 1
    assert ended.err.splitlines() == [
        "trimaran: standard input, line 1: not JSON (JSON is malformed: invalid character (byte 0))",
        "trimaran: standard input, line 2: a JSON array, not an object",
        "trimaran: no line was an event; see: trimaran pipe --help",
    ]


async def test_what_has_no_letters_for_it_is_replaced(command: Command, receiver: Receiver) -> None:
    """An output that is ASCII has no name in another script, and no lines of boxes."""
    lines = line(type="command", command_name="c", session_id="s\u00e9")
    ended = await command(
        "pipe", "--url", receiver.url, stdin=lines.encode(), environ={"PYTHONIOENCODING": "ascii"}
    )

    assert ended.status == 0
    assert "s? " in ended.out
    assert ended.out.isascii()


async def test_no_lines_are_no_failure(command: Command, receiver: Receiver) -> None:
    """All of nothing was delivered."""
    ended = await command("pipe", "--url", receiver.url, stdin=b"\n \n")

    assert ended.status == 0
    assert total(ended.out) == ["0", "0", "0"]
    assert ended.err == ""


async def test_a_line_without_end_is_one_bad_line(command: Command, receiver: Receiver) -> None:
    """What comes behind it is read as ever."""
    ended = await command(
        "pipe", "--url", receiver.url, stdin=b"x" * 5_000_000 + b"\n" + CALL.encode()
    )

    assert ended.status == 0
    assert total(ended.out) == ["3", "3", "0"]
    assert ended.err == "trimaran: standard input, line 1: longer than 1,048,576 bytes\n"


async def test_what_cannot_be_shown_is_not(command: Command, receiver: Receiver) -> None:
    """Neither a session id nor a reason can send a terminal what it would obey."""
    lines = line(type="command", command_name="c", session_id="\x1b[31m[bold]") + line(
        type="command", command_name="c", command_source="\x1b[2J"
    )
    ended = await command("pipe", "--url", receiver.url, stdin=lines.encode())

    assert "\x1b" not in ended.out + ended.err
    assert "Invalid enum value" in ended.err
    assert "[31m[bold]" in ended.out


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (
            ["--url", "http://127.0.0.1:1"],
            {"DO_NOT_TRACK": "1"},
            "nothing is sent: switched off by DO_NOT_TRACK; see: trimaran status --app trimaran",
        ),
        (
            ["--app", "mine"],
            {"MINE_TELEMETRY_URL": "ftp://x"},
            "nothing is sent: the URL in MINE_TELEMETRY_URL does not start with http:// or https://",
        ),
        (
            [],
            {},
            "nobody to send to; say where with --url URL, --credentials FILE or --to DESTINATION",
        ),
        (
            ["--url", "http://127.0.0.1:1", "--credentials", "nothing-here"],
            {},
            "nothing-here: no such file; log in, or name another one",
        ),
    ],
)
async def test_says_why_nothing_is_sent(
    command: Command, arguments: list[str], environ: dict[str, str], message: str
) -> None:
    """In one line, with what to do."""
    ended = await command("pipe", *arguments, stdin=CALL.encode(), environ=environ)

    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith(f"trimaran: {message}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing-here", "nothing-here: no such file or directory; check the path"),
        (".", "is a directory; name a file in it"),
    ],
)
async def test_a_file_that_cannot_be_read(command: Command, path: str, message: str) -> None:
    """One line, and no traceback."""
    ended = await command("pipe", path, "--url", "http://127.0.0.1:1")

    assert ended.status == 1
    assert ended.err == f"trimaran: {message}\n"


async def test_the_address_may_come_from_the_environment(
    command: Command, receiver: Receiver
) -> None:
    """From the switch of the app."""
    ended = await command(
        "pipe",
        "--app",
        "my-app",
        stdin=CALL.encode(),
        environ={"MY_APP_TELEMETRY_URL": receiver.url},
    )

    assert ended.status == 0


async def test_another_system_gets_traces(command: Command, test_agent: TestAgent) -> None:
    """Spans, by the ids of the recorded sessions, and with their times."""
    lines = line(type="session_start", session_id="a", agent="build", timestamp=1_700_000_000_000)
    lines += line(
        type="tool_call",
        tool_name="bash",
        duration_ms=500,
        session_id="a",
        timestamp=1_700_000_001_000,
    )
    ended = await command(
        *("pipe", "--app", "mine", "--to", f"otlp+{test_agent.url}"),
        stdin=lines.encode(),
        environ={"OTEL_EXPORTER_OTLP_HEADERS": f"{TOKEN}=piped"},
    )

    assert (ended.status, ended.err) == (0, "")
    assert total(ended.out) == ["3", "3", "0"]
    assert f"Look at the sessions: {test_agent.url}, or where that passes them on to" in ended.out
    spans = {span.name: span for span in test_agent.spans("piped")}
    assert set(spans) == {"session_start build", "execute_tool bash", "invoke_agent build"}
    call, root = spans["execute_tool bash"], spans["invoke_agent build"]
    assert root.span_id == trace_of("a").span_id
    assert call.parent_span_id == root.span_id
    assert (call.end - call.start) == 500_000_000
    assert {span.attributes["session.id"] for span in spans.values()} == {"a"}
    assert {span.resource["service.name"] for span in spans.values()} == {"mine"}


async def test_langfuse_gets_traces(command: Command, endpoint: LoopbackEndpoint) -> None:
    """By its variables; where it refuses, what there is to do is said."""
    environ = {
        "LANGFUSE_PUBLIC_KEY": "pk-lf-1",
        "LANGFUSE_SECRET_KEY": "sk-lf-2",
        "LANGFUSE_BASE_URL": endpoint.url,
    }
    endpoint.always(401)
    ended = await command("pipe", "--to", "langfuse", stdin=CALL.encode(), environ=environ)

    assert ended.status == 1
    assert total(ended.out) == ["3", "0", "3", "rejected"]
    assert "Look at" not in ended.out
    assert ended.err.endswith(
        "trimaran: 3 events were not delivered; put right what it says above, or they are refused "
        "again; to find out what is wrong: trimaran status --to langfuse\n"
    )
    assert {request.target for request in endpoint.requests} == {"/api/public/otel/v1/traces"}
    assert endpoint.requests[0].headers["authorization"].startswith("Basic ")
    assert "sk-lf-2" not in ended.out + ended.err


@pytest.mark.parametrize("other", ["--url", "--credentials"])
async def test_there_is_one_place_to_send_to(command: Command, other: str) -> None:
    """Two are a wrong use."""
    ended = await command("pipe", "--to", "otlp", other, "http://127.0.0.1:1")

    assert ended.status == 2
    assert f"--to and {other} name two places to send to: leave out one" in ended.err


async def test_a_terminal_sees_how_far_it_is(
    on_terminal: OnTerminal, command: Command, receiver: Receiver
) -> None:
    """A bar with numbers while it lasts, the table at the end."""
    (command.directory / "events.jsonl").write_text(CALL * 3_000)

    async with on_terminal("pipe", "events.jsonl", "--url", receiver.url) as terminal:
        await terminal.says("events read")
        status = await terminal.ends()

    assert status == 0
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in terminal.shown
    assert "3,000 events read, 3,002 delivered, 0 waiting, 0 dropped" in terminal.shown
    assert total(terminal.shown.split("events read")[-1]) == ["3,002", "3,002", "0"]


async def test_a_person_at_a_terminal_is_told_what_is_awaited(
    on_terminal: OnTerminal, receiver: Receiver
) -> None:
    """And may type events, and end them."""
    async with on_terminal("pipe", "--url", receiver.url) as terminal:
        await terminal.says("trimaran: events are read from the terminal; Ctrl-D ends them")
        await terminal.types(CALL)
        await terminal.says("1 events read, 2 delivered")
        await terminal.types("\x04")
        status = await terminal.ends()

    assert status == 0
