"""Who is let in, and which names the receiver answers to."""

import base64
from pathlib import Path

import pytest

from trimaran.receiver.access import (
    TokenFileError,
    is_loopback,
    knows_token,
    names_local_host,
    read_token_file,
)

TOKENS = frozenset({"first", "second=="})


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize("header", ["Bearer first", "bearer second==", "BEARER  first "])
def test_a_known_token_is_let_in(header: str) -> None:
    """Any of the tokens will do, and the scheme is written as one likes."""
    assert knows_token(header, TOKENS)


@pytest.mark.parametrize(
    "header",
    ["", "first", "Bearer", "Bearer ", "Bearer firs", "Bearer first,second==", "Token first"],
)
def test_everything_else_is_not(header: str) -> None:
    """No token, a part of one, two at a time or another scheme is refused."""
    assert not knows_token(header, TOKENS)


def test_without_tokens_everybody_is_let_in() -> None:
    """Whoever sets none, means that."""
    assert knows_token("", frozenset())


def test_a_browser_may_send_the_token_as_password() -> None:
    """Basic authentication counts where it is allowed only, under any user name."""
    assert knows_token(basic("me:first"), TOKENS, basic=True)
    assert knows_token(basic(":second=="), TOKENS, basic=True)
    assert not knows_token(basic("first:"), TOKENS, basic=True)
    assert not knows_token(basic("first"), TOKENS, basic=True)
    assert not knows_token("Basic first", TOKENS, basic=True)
    assert not knows_token("Basic é", TOKENS, basic=True)
    assert not knows_token(basic("me:first"), TOKENS)


def test_a_token_that_is_not_ascii_is_compared_too() -> None:
    """A header is Latin-1 to the server; that is no reason to fail."""
    assert not knows_token("Bearer é", TOKENS)


def test_tokens_are_read_one_a_line(tmp_path: Path) -> None:
    """Empty lines and comments are not tokens."""
    file = tmp_path / "tokens"
    file.write_text("# for the build\nabc.DEF-1~2+/=\n\n  second  \nabc.DEF-1~2+/=\n")

    assert read_token_file(file) == {"abc.DEF-1~2+/=", "second"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"# nobody\n\n", "has no token"),
        (b"", "has no token"),
        (b"fine\nnot fine\n", "line 2: a token is made of"),
        ("fine\nkéy\n".encode(), "line 2: a token is made of"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    """The error says which file and which line, and shows nothing of what it says."""
    file = tmp_path / "tokens"
    file.write_bytes(content)

    with pytest.raises(TokenFileError, match=problem) as caught:
        read_token_file(file)

    assert str(file) in str(caught.value)
    assert "fine\n" not in str(caught.value)
    assert "not fine" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error says which file is missing."""
    with pytest.raises(TokenFileError, match="nowhere"):
        read_token_file(tmp_path / "nowhere")


def test_loopback_is_told_from_the_network() -> None:
    """Both families, with and without a zone."""
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert not is_loopback("192.0.2.1")
    assert not is_loopback("fe80::1%eth0")


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "localhost:8474", "LOCALHOST:1", "a.localhost", "127.0.0.1:8474", "[::1]:1"],
)
def test_names_of_this_machine_are_answered(host: str) -> None:
    """A program on this machine says localhost or a number."""
    assert names_local_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8474", "localhost.evil.example", "[::1", "notlocalhost"]
)
def test_names_of_others_are_not(host: str) -> None:
    """A name that somebody else can point here is refused."""
    assert not names_local_host(host)
