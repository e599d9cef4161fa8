"""``trimaran serve`` in a process of its own."""

from __future__ import annotations

import errno
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click
import httpx
import pytest

import trimaran
from patience import PATIENCE
from trimaran.cli.serve import cannot_listen
from trimaran.cli.serve_place import Place, place_of
from trimaran.otlp import MLFLOW

if TYPE_CHECKING:
    from cli.conftest import Command, Running


async def address_of(running: Running) -> str:
    """Where it says that it receives."""
    await running.says("Ctrl-C ends")
    return running.out.split("Receiving on ", 1)[1].split(",", 1)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_receives_until_a_signal(command: Command, number: signal.Signals) -> None:
    """What was confirmed is on disk, and can be read back by another receiver on the file."""
    running = await command.start("serve", "--port", 0, "--database", "t.sqlite")
    url = await address_of(running)
    patient = trimaran.Settings(drain_timeout=PATIENCE)
    async with trimaran.open_telemetry(
        "x", environ={"X_TELEMETRY_URL": url}, settings=patient
    ) as telemetry:
        async with telemetry.session(session_id="s") as session:
            session.command("init")
    assert session.statistics().delivered == 3
    ended = await running.ends(number)

    assert ended.status == 0
    assert ended.out == f"Receiving on {url}, into t.sqlite (Ctrl-C ends)\n"
    assert ended.err == ""
    again = await command.start("serve", "--port", 0, "--database", "t.sqlite")
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        answer = await client.get(f"{await address_of(again)}/api/sessions/s")
    await again.ends(number)
    assert answer.json()["event_count"] == 3


async def test_a_token_file_and_a_bound(command: Command) -> None:
    """Only who has a token may post, and not more than the bound."""
    (command.directory / "tokens").write_text("# mine\nsesame\n")
    running = await command.start(
        *("serve", "--port", 0, "--database", "t.sqlite"),
        *("--token-file", "tokens", "--max-body", 100),
    )
    url = f"{await address_of(running)}/api/observability/ingest"
    headers = {"authorization": "Bearer sesame"}
    json = {"content-type": "application/json"}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE, headers=json) as client:
        stranger = await client.post(url, content=b"{}")
        large = await client.post(url, content=b"x" * 101, headers=headers)
        small = await client.post(url, content=b"{}", headers=headers)
    await running.ends(signal.SIGTERM)

    assert [answer.status_code for answer in (stranger, large, small)] == [401, 413, 400]


async def test_a_port_in_use(command: Command) -> None:
    """One line that says which, and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = await command("serve", "--port", port, "--database", "t.sqlite")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        f"trimaran: port {port} of 127.0.0.1 is in use; end the program that has it, "
        "or choose another one with --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "192.0.2.1"], "192.0.2.1 is no address of this machine; choose another one"),
        (["--host", "no such host"], "no such host is no address of this machine"),
        (["--database", "nowhere/t.sqlite"], "name another file with --database"),
        (["--database", "text"], "name another file with --database"),
        (["--store", "clickhouse+http://127.0.0.1:1/t"], "correct --store, or see to the server"),
        (["--store", "clickhouse+http://127.0.0.1:1"], "names no database; write it as click"),
        (["--forward", "otlp+http://h", "--spool", "text"], "name another directory with --spool"),
        (["--token-file", "nothing-here"], "name another one with --token-file"),
        (["--token-file", "text"], "text, line 1: a token is made of"),
    ],
)
async def test_says_why_it_cannot_begin(
    command: Command, arguments: list[str], message: str
) -> None:
    """In one line, with what to do."""
    Path(command.directory, "text").write_text("not what is wanted\n" * 100)
    if not {"--store", "--forward", "--database"}.intersection(arguments):
        arguments = ["--database", "t.sqlite", *arguments]
    ended = await command("serve", "--port", 0, *arguments)

    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("trimaran: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say where events go, with --database FILE, --store URL or --forward URL"),
        (["--database", "t", "--store", "clickhouse+http://h/d"], "only one of --database,"),
        (["--store", "clickhouse+http://h/d", "--forward", "otlp+http://h"], "only one of "),
        (["--store", "t.sqlite"], "--store takes clickhouse+http://[USER:PASSWORD@]HOST:PORT/"),
        (["--database", "t", "--spool", "s"], "--spool and --spool-bytes go with --forward"),
        (["--database", "t", "--spool-bytes", "1"], "--spool and --spool-bytes go with --forward"),
        (["--forward", "http://h:4318", "--spool", "s"], "--forward: it does not say what"),
        (["--forward", "otlp+http://h:0", "--spool", "s"], "has a port that is no number from"),
        (["--forward", "otlp+http://h:4318"], "add --spool DIR"),
        (["--forward", "otlp+http://u:secret@h", "--spool", "s"], "carries a user name or passw"),
    ],
)
async def test_says_how_it_is_used(command: Command, arguments: list[str], message: str) -> None:
    """In one line that names the option, and no secret."""
    ended = await command("serve", "--port", 0, *arguments)

    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.endswith("; see: trimaran serve --help\n")
    assert "secret" not in ended.err
    assert ended.err.count("\n") == 1


async def test_a_variable_says_where_the_store_is(command: Command) -> None:
    """What stands on the command line goes before it; it is named if it cannot be used."""
    there = {"TRIMARAN_STORE": "clickhouse+http://u:secret@127.0.0.1:1/t"}
    ended = await command("serve", "--port", 0, environ=there)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("trimaran: http://127.0.0.1:1/t: no ClickHouse answers: ")
    assert ended.err.endswith("; correct the variable TRIMARAN_STORE, or see to the server\n")

    running = await command.start(*("serve", "--port", 0, "--database", "t.sqlite"), environ=there)
    await running.says("into t.sqlite")
    await running.ends(signal.SIGTERM)

    ended = await command("serve", "--port", 0, environ={"TRIMARAN_STORE": "u:secret@h"})
    assert ended.status == 2
    assert ended.err.startswith("trimaran: the variable TRIMARAN_STORE takes clickhouse+http://")
    assert "secret" not in ended.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "port 80 may not be used; choose one from 1024 on with --port",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "cannot listen on localhost, port 80: Too many open files; see --host and --port",
        ),
    ],
)
def test_says_why_it_cannot_listen(error: OSError, message: str) -> None:
    """Also where a test cannot bring it about."""
    assert cannot_listen("localhost", 80, error) == message


def test_what_forwards_reads_variables_as_every_command_does() -> None:
    """What is wrong with one is said at the start; who names an experiment sends to MLflow."""
    headers = "OTEL_EXPORTER_OTLP_HEADERS"

    def forwarded(**environ: str) -> Place:
        return place_of(
            environ,
            database=None,
            store=None,
            forward="otlp+http://h",
            spool="s",
            spool_bytes=None,
        )

    with pytest.raises(click.UsageError, match=f"--forward: {headers}: a part is not name=value"):
        forwarded(**{headers: "secret"})
    place = forwarded(**{headers: "x-mlflow-experiment-id=0"})
    assert place.forward is not None
    assert place.forward.settings.dialect is MLFLOW
    assert place.forward.settings.service_name == ""
