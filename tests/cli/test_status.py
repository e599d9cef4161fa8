"""``trimaran status``: which switch decides, and that nothing is sent by asking."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from trimaran.cli.status import switches

if TYPE_CHECKING:
    from cli.conftest import Command, Ended
    from conftest import LoopbackEndpoint


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
    """The address, to the path, and exit status 0; nobody is contacted by asking."""
    ended = await command("status", "--app", "mine", environ={"MINE_TELEMETRY_URL": endpoint.url})

    assert ended.status == 0
    assert winner(ended) == "MINE_TELEMETRY_URL"
    assert f"Events go to: POST {endpoint.url}/api/observability/ingest\n" in ended.out
    assert endpoint.connections == 0


async def test_authenticated(command: Command, endpoint: LoopbackEndpoint) -> None:
    """The account wins over the address of the environment; its token is masked."""
    path = write_credentials(command, endpoint.url)
    ended = await command(
        *("status", "--app", "mine", "--credentials", path),
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
        *("status", "--app", "mine", "--credentials", "nothing-here"),
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
