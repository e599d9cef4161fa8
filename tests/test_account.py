import json
import os
import traceback
from pathlib import Path

import pytest
import trio
import trio.testing

from trimaran import Account, AccountProvider, CredentialsError, CredentialsFile, StaticAccount

TOKEN = "tok-Zq8w1"
CREDENTIALS = {"url": "https://collect.example", "token": TOKEN, "email": "ada@example.org"}


def written(path: Path, content: object = CREDENTIALS, mode: int = 0o600) -> CredentialsFile:
    """A credentials file as a login leaves it; bytes are written as they are."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    path.chmod(mode)
    return CredentialsFile(path)


async def test_a_static_account_is_what_was_given() -> None:
    """The same account and token each time, also after a refusal: there is no other."""
    provider = StaticAccount("https://collect.example", TOKEN, email="ada@example.org")

    assert await provider.account() == Account("https://collect.example", "ada@example.org")
    assert await provider.token(refresh=False) == TOKEN
    assert await provider.token(refresh=True) == TOKEN


async def test_an_account_has_no_email_unless_given() -> None:
    """An empty address goes out as such."""
    account = await StaticAccount("https://collect.example", TOKEN).account()

    assert account == Account("https://collect.example", "")


def test_both_are_providers(tmp_path: Path) -> None:
    """A host can check its own against the protocol in the same way."""
    assert isinstance(StaticAccount("https://collect.example", TOKEN), AccountProvider)
    assert isinstance(CredentialsFile(tmp_path / "c.json"), AccountProvider)
    assert not isinstance(object(), AccountProvider)


def test_a_token_is_in_no_repr(tmp_path: Path) -> None:
    """What lands in logs and tracebacks names the place and keeps the secret."""
    static = StaticAccount("https://collect.example", TOKEN, email="ada@example.org")
    file = written(tmp_path / "c.json")

    assert repr(static) == "StaticAccount(url='https://collect.example')"
    assert repr(file) == f"CredentialsFile('{tmp_path}/c.json')"
    assert TOKEN not in f"{vars(file)}"


async def test_a_credentials_file(tmp_path: Path) -> None:
    """The account and, apart from it, the token."""
    file = written(tmp_path / "c.json")

    assert await file.account() == Account("https://collect.example", "ada@example.org")
    assert await file.token(refresh=False) == TOKEN


async def test_a_credentials_file_without_an_email(tmp_path: Path) -> None:
    """The address is the one part that may be left out; what else is there is not minded."""
    file = written(tmp_path / "c.json", {"url": "https://x", "token": TOKEN, "since": 2026})

    assert await file.account() == Account("https://x", "")


async def test_no_file_means_nobody_is_logged_in(tmp_path: Path) -> None:
    """That is no error."""
    file = CredentialsFile(str(tmp_path / "c.json"))

    assert await file.account() is None
    assert await file.token(refresh=True) is None


async def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    """The program that logs in renews the token there; a log-out takes the file away."""
    file = written(tmp_path / "c.json")
    before = await file.token(refresh=False)

    written(tmp_path / "c.json", {**CREDENTIALS, "token": "tok-renewed"})
    after = await file.token(refresh=True)
    (tmp_path / "c.json").unlink()

    assert (before, after) == (TOKEN, "tok-renewed")
    assert await file.account() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o610, 0o601, 0o777])
async def test_a_file_open_to_others_is_not_used(tmp_path: Path, mode: int) -> None:
    """Whatever the group or others may do, the message says how to take it from them."""
    path = tmp_path / "c.json"
    file = written(path, mode=mode)

    with pytest.raises(CredentialsError) as caught:
        await file.account()

    assert str(caught.value) == f"{path}: others can read it; run: chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
async def test_a_file_of_the_user_alone_is_used(tmp_path: Path, mode: int) -> None:
    """What the user may do with it does not matter."""
    assert await written(tmp_path / "c.json", mode=mode).token(refresh=False) == TOKEN


async def test_a_file_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who put it there could send the user's events to a place of their own."""
    file = written(tmp_path / "c.json")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(CredentialsError, match=r"c\.json: belongs to another user$"):
        await file.token(refresh=False)


async def test_modes_are_not_looked_at_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside POSIX, every file says 0666."""
    file = written(tmp_path / "c.json", mode=0o666)
    monkeypatch.setattr(os, "name", "nt")

    assert await file.token(refresh=False) == TOKEN


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"url": "\xff"}', "is not JSON"),
        ([], "Expected `object`, got `array`"),
        ({"url": "https://x"}, "Object missing required field `token`"),
        ({"token": TOKEN}, "Object missing required field `url`"),
        ({**CREDENTIALS, "url": None}, "Expected `str`, got `null` - at `$.url`"),
        ({**CREDENTIALS, "email": 7}, "Expected `str`, got `int` - at `$.email`"),
        (b" " * 65_537, "is larger than 65536 bytes"),
    ],
)
async def test_a_file_that_cannot_be_used(tmp_path: Path, content: object, problem: str) -> None:
    """The message names the file and what is wrong with it, and never quotes it."""
    file = written(tmp_path / "c.json", content)

    with pytest.raises(CredentialsError) as caught:
        await file.account()

    assert str(caught.value) == f"{tmp_path}/c.json: {problem}"
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("place", "problem"),
    [("", "Is a directory"), ("file/c.json", "Not a directory")],
)
async def test_a_file_that_cannot_be_read(tmp_path: Path, place: str, problem: str) -> None:
    """The operating system's reason is told."""
    (tmp_path / "file").touch()

    with pytest.raises(CredentialsError, match=rf": cannot be read \({problem}\)$"):
        await CredentialsFile(tmp_path / place).token(refresh=False)


async def test_reading_can_be_cut_off(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A file that hangs, on a network drive say, holds nobody up past a deadline."""
    fifo = tmp_path / "c.json"
    os.mkfifo(fifo, 0o600)

    with trio.move_on_after(1) as scope:
        await CredentialsFile(fifo).account()

    assert scope.cancelled_caught
    assert trio.current_time() == 1
    os.close(os.open(fifo, os.O_WRONLY))  # lets the thread that was given up go on and end
