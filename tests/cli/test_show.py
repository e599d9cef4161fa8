"""``trimaran show``: the bytes of ``pipe``, and no request."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from patience import PATIENCE
from trimaran import Request
from trimaran.cli._signals import Interrupt
from trimaran.cli.show import PrintingTransport, as_text

if TYPE_CHECKING:
    from cli.conftest import Command
    from conftest import LoopbackEndpoint

LINES = (
    '{"type": "session_start", "session_id": "s", "timestamp": 1700000000000}\n'
    '{"type": "deployment", "api_key": "hunter2", "session_id": "s", "timestamp": 1700000000001}\n'
    "bad\n"
)


def unstamped(body: str) -> str:
    """A body without the time at which it was made."""
    return re.sub(r'"timestamp":\d+,"events"', '"timestamp":0,"events"', body)


async def test_shows_to_the_byte_what_pipe_sends(
    command: Command, endpoint: LoopbackEndpoint
) -> None:
    """Bodies are the same, but for the time at which they were made; nothing is requested."""
    (command.directory / "events").write_text(LINES)
    shown = await command("show", "events", "--url", endpoint.url, "--app-version", "1.2")

    assert endpoint.connections == 0
    assert shown.status == 0
    await command("pipe", "events", "--url", endpoint.url, "--app-version", "1.2")

    batches = shown.out.removesuffix("\n\n").split("\n\nPOST ")
    assert len(batches) == len(endpoint.requests) == 2
    for text, request in zip(batches, endpoint.requests, strict=True):
        head, _, body = text.partition("\n\n")
        assert unstamped(body) == unstamped(request.body.decode())
        first, *headers = head.removeprefix("POST ").split("\n")
        assert first == f"{endpoint.url}/api/observability/ingest"
        names = dict(header.split(": ", 1) for header in headers)
        del names["idempotency-key"]  # a new one for every run
        assert names.items() <= request.headers.items()
    assert "hunter2" not in shown.out


async def test_shows_the_parent_that_pipe_names(
    command: Command, endpoint: LoopbackEndpoint
) -> None:
    """In the header that carries it, as it is sent."""
    (command.directory / "events").write_text(LINES)
    options = ("events", "--url", endpoint.url, "--parent-session", "a b")
    shown = await command("show", *options)
    await command("pipe", *options)

    assert shown.out.count("\ntrimaran-parent-session: a%20b\n") == len(endpoint.requests) == 2
    for request in endpoint.requests:
        assert request.headers["trimaran-parent-session"] == "a%20b"


async def test_says_what_it_showed_apart_from_it(command: Command) -> None:
    """So that the output can be read by programs; bad lines are told as by ``pipe``."""
    shown = await command("show", stdin=LINES.encode())

    assert shown.err.splitlines() == [
        "trimaran: standard input, line 3: not JSON (JSON is malformed: invalid character (byte 0))",
        "trimaran: 3 events in 2 batches; nothing was sent",
    ]
    assert shown.out.startswith("POST http://127.0.0.1:8474/api/observability/ingest\n")


async def test_the_token_is_not_shown(command: Command) -> None:
    """That there is one is."""
    credentials = command.directory / "credentials.json"
    credentials.touch(mode=0o600)
    credentials.write_text(
        json.dumps({"url": "https://x.invalid", "token": "sesame", "email": "e"})
    )

    shown = await command("show", "--credentials", credentials, stdin=LINES.encode())

    assert "\nauthorization: Bearer [token]\n" in shown.out
    assert '"user_email":"e"' in shown.out
    assert "sesame" not in shown.out + shown.err


async def test_bad_lines_alone_are_a_failure(command: Command) -> None:
    """As they are of ``pipe``."""
    shown = await command("show", stdin=b"bad\n")

    assert (shown.status, shown.out) == (1, "")


async def test_nothing_is_shown_where_nothing_would_be_sent(command: Command) -> None:
    """With the switch that is why."""
    shown = await command("show", stdin=LINES.encode(), environ={"DO_NOT_TRACK": "1"})

    assert (shown.status, shown.out) == (1, "")
    assert "switched off by DO_NOT_TRACK" in shown.err


def many_lines(path: Path) -> None:
    """More than a pipe holds."""
    path.write_text('{"type": "command", "command_name": "' + "c" * 500 + '"}\n' * 1)
    path.write_text(path.read_text() * 2_000)


async def start(command: Command) -> trio.Process:
    """Start it with an output that the test reads itself."""
    return await trio.lowlevel.open_process(
        command.line("show", "events"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=command.directory,
        env=command.environ,
    )


async def test_a_reader_who_has_seen_enough_is_no_trouble(command: Command) -> None:
    """As with ``| head``: it ends, and says nothing."""
    many_lines(command.directory / "events")
    with trio.fail_after(2 * PATIENCE):
        process = await start(command)
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(1)
        await process.stdout.aclose()
        told = b"".join([chunk async for chunk in process.stderr])
        status = await process.wait()

    assert (status, told) == (1, b"")


async def test_a_reader_who_reads_nothing_does_not_keep_it_from_ending(command: Command) -> None:
    """A signal comes through while the output is stuck."""
    many_lines(command.directory / "events")
    with trio.fail_after(2 * PATIENCE):
        process = await start(command)
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(1)
        process.send_signal(signal.SIGTERM)
        told = b"".join([chunk async for chunk in process.stderr])
        status = await process.wait()
        await process.stdout.aclose()

    assert status == 128 + signal.SIGTERM
    assert b"Traceback" not in told
    assert told.endswith(b"trimaran: ended by SIGTERM; the rest was not read\n")


@pytest.mark.parametrize("name", ["authorization", "Authorization"])
def test_no_spelling_of_the_header_lets_the_token_out(name: str) -> None:
    """Names of headers have no case."""
    text = as_text(Request("http://x", {name: "Bearer sesame", "other": "1"}, b"{}"))

    assert text == f"POST http://x\n{name}: Bearer [token]\nother: 1\n\n{{}}\n\n".encode()


async def test_what_it_writes_to_is_not_its_own_to_close() -> None:
    """The rest of the program may have something to say there."""
    ours, theirs = os.pipe()
    transport = PrintingTransport(theirs, Interrupt())
    await transport.aclose()
    answer = await transport.attempt(Request("http://x", {}, b"{}"))
    os.close(theirs)

    assert answer.status == 200
    assert os.read(ours, 100) == b"POST http://x\n\n{}\n\n"
    os.close(ours)
