from __future__ import annotations

import socket
import threading
from typing import Any, NoReturn

import pytest
import trio

from trimaran._aside import Resolver, aside


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python 3.12, when the main thread is over."""

    async def refuse(*_arguments: object, **_named: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)


async def test_it_is_done_in_a_thread() -> None:
    """So that the loop goes on meanwhile."""
    assert await aside(threading.get_ident) != threading.get_ident()


async def test_without_a_thread_it_is_done_here(no_thread: None) -> None:
    """Once, in the loop itself."""
    assert await aside(threading.get_ident) == threading.get_ident()


async def test_an_error_of_the_call_is_its_own() -> None:
    """It is not taken for there being no thread, and the call is made once."""
    calls = []

    def fail() -> NoReturn:
        calls.append(1)
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        await aside(fail)
    assert calls == [1]


async def test_names_are_looked_up_in_either_case(no_thread: None) -> None:
    """By trio's own functions, which ask the resolver that is set."""
    trio.socket.set_custom_hostname_resolver(Resolver())

    found: Any = await trio.socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    name = await trio.socket.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICSERV)

    assert {"127.0.0.1", "::1"} & {address[4][0] for address in found}
    assert name[1] == "80"
