"""The server ends within its grace, whatever its clients do."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import pytest
import trio
import trio.testing

from patience import PATIENCE
from trimaran.receiver.server import serve

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Send], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
BIG = bytes(50_000_000)  # more than all buffers of a connection hold


class Served:
    """An application that is being served, and can be told to stop."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.took = 0.0
        """Seconds from the cancel to the end."""

    async def connect(self) -> trio.SocketStream:
        """A new connection to it."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def stop(self) -> None:
        """Cancel it, and wait until it has ended."""
        began = trio.current_time()
        self.scope.cancel()
        await self.ended.wait()
        self.took = trio.current_time() - began


async def serving(nursery: trio.Nursery, app: App, **options: float) -> Served:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    served = Served(listeners[0].socket.getsockname()[1])

    async def run() -> None:
        with served.scope:
            await serve(app, listeners, **options)
        served.ended.set()

    nursery.start_soon(run)
    return served


async def respond(send: Send, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hello(scope: Any, receive: Any, send: Send) -> None:
    await respond(send, b"hello")


async def answer_of(stream: trio.SocketStream) -> bytes:
    """Everything up to "hello", or to the end."""
    answer = b""
    while chunk := await stream.receive_some():
        answer += chunk
        if answer.endswith(b"hello"):
            break
    return answer


async def test_requests_are_answered_on_one_connection(nursery: trio.Nursery) -> None:
    """It is kept open between them, and does not say what software it is."""
    served = await serving(nursery, hello, grace=5)
    async with await served.connect() as stream:
        for _ in range(3):
            await stream.send_all(GET)
            answer = await answer_of(stream)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"hypercorn" not in answer.lower()


async def test_an_idle_connection_does_not_hold_it_up(nursery: trio.Nursery) -> None:
    """It is closed at once, long before the grace is over; so is one that never spoke."""
    served = await serving(nursery, hello, grace=PATIENCE)
    async with await served.connect() as used, await served.connect() as silent:
        await used.send_all(GET)
        await answer_of(used)
        await served.stop()

        assert await used.receive_some() == b""
        assert await silent.receive_some() == b""
    assert served.took < PATIENCE / 2


async def test_nobody_is_let_in_after_the_cancel(nursery: trio.Nursery) -> None:
    """The listeners are closed."""
    served = await serving(nursery, hello, grace=PATIENCE)
    await served.stop()

    with pytest.raises(OSError, match="connect"):
        await served.connect()


async def test_a_request_under_way_is_answered(nursery: trio.Nursery) -> None:
    """Within the grace; then its connection is closed."""
    started, go_on = trio.Event(), trio.Event()

    async def slow(scope: Any, receive: Any, send: Send) -> None:
        started.set()
        await go_on.wait()
        await respond(send, b"hello")

    served = await serving(nursery, slow, grace=PATIENCE)
    async with await served.connect() as stream:
        await stream.send_all(GET)
        await started.wait()
        served.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not served.ended.is_set()
        go_on.set()

        assert (await answer_of(stream)).endswith(b"hello")
        assert await stream.receive_some() == b""
    await served.ended.wait()


async def test_one_that_takes_too_long_is_cut_off(nursery: trio.Nursery) -> None:
    """After the grace the connection is closed and the application cancelled."""
    started, cancelled = trio.Event(), trio.Event()

    async def forever(scope: Any, receive: Any, send: Send) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    served = await serving(nursery, forever, grace=0.05)
    async with await served.connect() as stream:
        await stream.send_all(GET)
        await started.wait()
        await served.stop()

        assert cancelled.is_set()
        assert await answer_of(stream) == b""
    assert 0.05 <= served.took < PATIENCE / 2


async def big(scope: Any, receive: Any, send: Send) -> None:
    await respond(send, BIG)


async def test_a_client_that_does_not_read_is_cut_off(nursery: trio.Nursery) -> None:
    """It cannot keep the server from ending, though hypercorn shields the writing."""
    served = await serving(nursery, big, grace=0.05, write_timeout=PATIENCE)
    async with await served.connect() as stream:
        await stream.send_all(GET)
        await stream.receive_some(1)
        await served.stop()

    assert 0.05 <= served.took < PATIENCE / 2


async def test_a_client_that_does_not_read_is_given_up(nursery: trio.Nursery) -> None:
    """After a while also without any cancel, so that such clients do not add up."""
    finished = trio.Event()

    async def watched(scope: Any, receive: Any, send: Send) -> None:
        await big(scope, receive, send)
        finished.set()

    served = await serving(nursery, watched, grace=PATIENCE, write_timeout=0.05)
    async with await served.connect() as stream:
        await stream.send_all(GET)
        await finished.wait()
        with trio.fail_after(PATIENCE):
            assert await received_until_it_ends(stream) < len(BIG)


async def received_until_it_ends(stream: trio.SocketStream) -> int:
    received = 0
    try:
        while chunk := await stream.receive_some():
            received += len(chunk)
    except trio.BrokenResourceError:
        pass
    return received


async def test_a_cancel_before_the_first_request_ends_it(nursery: trio.Nursery) -> None:
    """Also one that was there before it began."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.CancelScope() as scope:
        scope.cancel()
        await serve(hello, listeners, grace=PATIENCE)

    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await listeners[0].accept()


async def test_a_bug_breaks_one_connection_off(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot take the server down. Hypercorn has one: a path that is not ASCII."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"localhost")]
    client.send_headers(1, [*headers, (b":path", b"/\xff")], end_stream=True)
    served = await serving(nursery, hello, grace=PATIENCE)
    async with await served.connect() as stream:
        await stream.send_all(client.data_to_send())
        while await stream.receive_some():
            pass
    async with await served.connect() as stream:
        await stream.send_all(GET)
        assert (await answer_of(stream)).endswith(b"hello")

    assert [record.message for record in caplog.records] == ["A connection was broken off"]
    assert "UnicodeDecodeError" in caplog.text


async def test_an_ordinary_request_is_not_logged(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each would be more than what it tells of."""
    caplog.set_level(logging.DEBUG)
    served = await serving(nursery, hello, grace=PATIENCE)
    async with await served.connect() as stream:
        await stream.send_all(GET)
        await answer_of(stream)
    await served.stop()

    assert caplog.records == []


async def test_many_requests_may_use_one_connection(nursery: trio.Nursery) -> None:
    """It is not closed after a thousand."""
    served = await serving(nursery, hello, grace=PATIENCE)
    async with await served.connect() as stream:
        for _ in range(1100):
            await stream.send_all(GET)
            assert b"close" not in await answer_of(stream)
