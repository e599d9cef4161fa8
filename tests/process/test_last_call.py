"""A receiver that ends soon asks the sender for what there is still to say."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trimaran._process import PeerClosed, ProcessReceiveChannel, ProcessSendChannel


def channel() -> tuple[ProcessSendChannel, ProcessReceiveChannel]:
    """Both ends of one."""
    here, there = map(trio.socket.from_stdlib_socket, socket.socketpair())
    return (
        ProcessSendChannel(trio.SocketStream(here)),
        ProcessReceiveChannel(trio.SocketStream(there)),
    )


async def test_a_last_call_is_heard_once_and_for_all() -> None:
    """However often it is made; asking again is answered at once."""
    send, receive = channel()
    with send, receive:
        receive.call_last()
        receive.call_last()
        for _ in range(2):
            with assert_checkpoints():
                await send.last_call()


async def test_values_come_and_go_while_one_waits_for_it(nursery: trio.Nursery) -> None:
    """The one who waits reads what the others wait for."""
    send, receive = channel()
    heard: list[str] = []

    async def wait() -> None:
        await send.last_call()
        heard.append("last call")

    async def answer() -> None:
        async for value in receive:
            await receive.acknowledge(value.upper())

    with send, receive:
        nursery.start_soon(wait)
        nursery.start_soon(answer)
        await wait_all_tasks_blocked()
        heard += [(await send.ask(value)).decode() for value in (b"a", b"b")]
        receive.call_last()
        await wait_all_tasks_blocked()
        heard.append((await send.ask(b"c")).decode())
        send.close()
        await wait_all_tasks_blocked()

    assert heard == ["A", "B", "last call", "C"]


@pytest.mark.parametrize(
    ("end", "becomes"),
    [
        ("send", trio.ClosedResourceError),
        ("receive", PeerClosed),
        ("connection", trio.BrokenResourceError),
    ],
)
async def test_who_waits_for_it_hears_of_an_end_without(end: str, becomes: type[Exception]) -> None:
    """As who sends does."""
    send, receive = channel()
    with send, receive:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(becomes) as caught:
                    await send.last_call()
                assert caught.type is becomes

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            if end == "connection":
                receive._socket.shutdown(socket.SHUT_RDWR)
            else:
                {"send": send, "receive": receive}[end].close()


async def test_nobody_is_asked_who_is_gone() -> None:
    """Nor does one ask who was closed; it is no error."""
    send, receive = channel()
    send.close()
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()
    receive.call_last()
    receive.close()
    receive.call_last()

    gone, left = channel()
    gone._socket.close()
    with left:
        left.call_last()
        with pytest.raises(trio.BrokenResourceError):
            await left.receive()
