"""``trimaran status``: which switch decides, whether what is sent gets there, and that nothing
of a session is sent by asking.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trimaran._account import Account, CredentialsFile
from trimaran._decision import resolve
from trimaran.cli._errors import Failure
from trimaran.cli.status import _token, switches

if TYPE_CHECKING:
    from cli.conftest import Command, Ended
    from conftest import LoopbackEndpoint
    from trimaran.receiver import Receiver


def winner(ended: Ended) -> str:
    """The switch that is marked."""
    (row,) = [row for row in ended.out.splitlines() if row.strip().startswith(">")]
    return row.split()[1]


def write_credentials(command: Command, url: str, mode: int = 0o600) -> str:
    """A file with an account."""
    path = command.directory / "credentials.json"
    path.touch(mode=mode)
    path.write_text(json.dumps({"url": url, "token": "sesame", "email": "me@example.com"}))
    return str(path)


async def test_with_nothing_set_up(command: Command) -> None:
    """Off, by default, and exit status 1; all switches are listed in order."""
    ended = await command("status", "--app", "my-app")

    assert ended.status == 1
    assert ended.err == ""
    assert winner(ended) == "default"
    assert ended.out.startswith(
        "Telemetry of my-app: disabled, no account with a token, and MY_APP_TELEMETRY_URL is not "
        "set.\nNothing is sent, and nobody is contacted.\n"
    )
    names = [switch.name for switch in switches("my-app", {}, "")]
    assert names == [
        *("DO_NOT_TRACK", "MY_APP_TELEMETRY_DISABLED", "account", "MY_APP_TELEMETRY_URL"),
        "default",
    ]
    assert sorted(names, key=ended.out.rindex) == names


async def test_anonymous(command: Command, endpoint: LoopbackEndpoint) -> None:
    """The address, to the path, and exit status 0; nobody is contacted if nobody should be."""
    ended = await command(
        *("status", "--app", "mine", "--offline"), environ={"MINE_TELEMETRY_URL": endpoint.url}
    )

    assert ended.status == 0
    assert winner(ended) == "MINE_TELEMETRY_URL"
    assert f"Events go to: POST {endpoint.url}/api/observability/ingest\n" in ended.out
    assert endpoint.connections == 0


async def test_authenticated(command: Command, endpoint: LoopbackEndpoint) -> None:
    """The account wins over the address of the environment; its token is masked."""
    path = write_credentials(command, endpoint.url)
    ended = await command(
        *("status", "--app", "mine", "--credentials", path, "--offline"),
        environ={"MINE_TELEMETRY_URL": "https://other.invalid"},
    )

    assert ended.status == 0
    assert winner(ended) == "account"
    assert f"{endpoint.url}, me@example.com, token [masked]" in ended.out
    assert "sesame" not in ended.out + ended.err
    assert endpoint.connections == 0


@pytest.mark.parametrize("switch", ["DO_NOT_TRACK", "MINE_TELEMETRY_DISABLED"])
async def test_switched_off(command: Command, switch: str) -> None:
    """By a switch that goes before all others; the account is not looked at then."""
    path = write_credentials(command, "https://x.invalid")
    ended = await command(
        *("status", "--app", "mine", "--credentials", path),
        environ={switch: "yes", "MINE_TELEMETRY_URL": "https://other.invalid"},
    )

    assert ended.status == 1
    assert winner(ended) == switch
    assert "not looked at, since telemetry is switched off" in ended.out


async def test_an_account_that_cannot_be_used(command: Command) -> None:
    """It fails closed, and says what to do; once, in the table and above it."""
    path = write_credentials(command, "https://x.invalid", mode=0o644)
    ended = await command(
        *("status", "--app", "mine", "--credentials", path),
        environ={"MINE_TELEMETRY_URL": "https://other.invalid"},
    )

    assert ended.status == 1
    assert winner(ended) == "account"
    assert f"run: chmod 600 {path}" in ended.out
    assert ended.err == ""


async def test_nobody_is_logged_in(command: Command) -> None:
    """What is next decides."""
    ended = await command(
        *("status", "--app", "mine", "--credentials", "nothing-here", "--offline"),
        environ={"MINE_TELEMETRY_URL": "https://other.invalid"},
    )

    assert ended.status == 0
    assert winner(ended) == "MINE_TELEMETRY_URL"
    assert "nobody is logged in: there is no such file" in ended.out


async def test_secrets_in_switches_are_masked(command: Command) -> None:
    """An address with a password in it is refused, and not repeated."""
    ended = await command(
        "status", "--app", "mine", environ={"MINE_TELEMETRY_URL": "https://me:hunter2@x.invalid"}
    )

    assert ended.status == 1
    assert "hunter2" not in ended.out
    assert "carries a user name or password" in ended.out


def found(ended: Ended) -> list[str]:
    """What a test of a destination found, step by step."""
    _, _, table = ended.out.partition("Test of ")
    rows = [row.split(maxsplit=1) for row in table.splitlines()[4:] if row.strip()]
    return [f"{row[0]}: {row[1].strip()}" for row in rows if len(row) > 1]


async def test_the_endpoint_is_tested(command: Command, receiver: Receiver) -> None:
    """With a request that has no event in it; a real receiver takes that."""
    ended = await command("status", "--app", "mine", environ={"MINE_TELEMETRY_URL": receiver.url})

    assert (ended.status, ended.err) == (0, "")
    assert f"Test of the endpoint: POST {receiver.url}/api/observability/ingest" in ended.out
    assert found(ended)[:3] == [
        "Name: 127.0.0.1",
        f"Connection: to {receiver.url.removeprefix('http://')}",
        "Answer: 200",
    ]
    assert ended.out.endswith("All is well: what is sent there is taken.\n")


async def test_the_token_is_tested(command: Command, endpoint: LoopbackEndpoint) -> None:
    """It goes along, and is not shown where it is not taken."""
    path = write_credentials(command, endpoint.url)
    endpoint.always(401)
    ended = await command("status", "--app", "mine", "--credentials", path)

    assert ended.status == 1
    assert found(ended)[-1] == "Answer: failed"
    assert ended.err == (
        f"trimaran: {endpoint.url}/api/observability/ingest: it does not take the key (401); "
        "correct it in the file that --credentials names\n"
    )
    [request] = endpoint.requests
    assert request.headers["authorization"] == "Bearer sesame"
    assert request.events == []
    assert "sesame" not in ended.out + ended.err


async def test_another_system_is_tested(command: Command, endpoint: LoopbackEndpoint) -> None:
    """And nothing else is done then; that it is no endpoint of the app's does not matter."""
    ended = await command(
        "status", "--to", f"otlp+{endpoint.url}", environ={"TRIMARAN_TELEMETRY_DISABLED": "1"}
    )

    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"Test of OTLP: POST {endpoint.url}/v1/traces, without an event\n")
    assert [request.target for request in endpoint.requests] == ["/v1/traces"]


async def test_a_name_that_does_not_resolve(command: Command) -> None:
    """One line says so, and what to do."""
    ended = await command(
        "status", "--app", "mine", environ={"MINE_TELEMETRY_URL": "https://nowhere.invalid"}
    )

    assert ended.status == 1
    assert found(ended) == ["Name: failed"]
    assert ended.err == (
        "trimaran: https://nowhere.invalid/api/observability/ingest: the name 'nowhere.invalid' "
        "does not resolve; correct it in MINE_TELEMETRY_URL, or see whether this machine has a "
        "network\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "otlp+http://h:99999"], "it has a port that is no number from 1 to 65535"),
        (["--to", "langfuse"], "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY are not set"),
        (["--to", "otlp+http://h", "--offline"], "--to is for a test alone: leave out --offline"),
        (
            ["--to", "otlp+http://h", "--credentials", "f"],
            "--to is for a test alone: leave out --credentials",
        ),
    ],
)
async def test_what_cannot_be_tested(command: Command, arguments: list[str], message: str) -> None:
    """A wrong use is told in one line."""
    ended = await command("status", *arguments)

    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1


async def test_a_token_that_cannot_be_had_any_more(tmp_path: Path) -> None:
    """Since the file was changed after the decision: one line says what to do."""
    path = tmp_path / "credentials.json"
    path.write_text("{}")
    path.chmod(0o644)
    decision = resolve("mine", Account("https://h", ""), {})

    with pytest.raises(Failure, match="others can read it; run: chmod 600"):
        await _token(decision, CredentialsFile(path))
