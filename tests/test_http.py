"""One attempt over a real socket."""

from __future__ import annotations

import gc
import logging
import socket
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

import trimaran
from patience import LATENESS, PATIENCE
from trimaran._endpoint import _http_transport
from trimaran._transport import ANSWER_LIMIT
from trimaran._transport.http import HttpTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import LoopbackEndpoint


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    """A transport that is closed after the test."""
    opened = HttpTransport(max_connections=2)
    yield opened
    await opened.aclose()


def request_to(url: str, **headers: str) -> trimaran.Request:
    """A small request."""
    return trimaran.Request(url, {"content-type": "application/json", **headers}, b'{"events":[]}')


async def test_an_attempt_posts_and_gives_the_answer(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """Status, Retry-After and body come back as they are."""
    endpoint.next(503, headers=(("retry-after", "7"),), body=b"busy")

    given = await transport.attempt(request_to(endpoint.url, **{"idempotency-key": "k"}))

    assert given == trimaran.Answer(503, "7", b"busy")
    assert endpoint.requests[0].headers["idempotency-key"] == "k"
    assert endpoint.requests[0].body == b'{"events":[]}'


async def test_one_connection_serves_many_attempts(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """Connections are kept alive between batches."""
    for _ in range(5):
        assert (await transport.attempt(request_to(endpoint.url))).status == 200

    assert endpoint.connections == 1


async def test_a_redirect_is_not_followed(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """It is an answer like others, and its target is never asked."""
    endpoint.next(307, headers=(("location", endpoint.url + "/elsewhere"),))

    assert (await transport.attempt(request_to(endpoint.url))).status == 307
    assert len(endpoint.requests) == 1


async def test_an_endless_body_is_read_to_a_bound(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """More than the bound is cut off, and the transport is usable after it."""
    endpoint.next(200, body=b"x" * (40 * ANSWER_LIMIT))

    given = await transport.attempt(request_to(endpoint.url))

    assert given.body == b"x" * ANSWER_LIMIT
    assert (await transport.attempt(request_to(endpoint.url))).status == 200
    assert endpoint.connections == 2  # what was not read goes with the first


async def test_what_comes_beyond_the_bound_in_one_piece_with_it_is_cut(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    """However a server cuts its body into packets."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        with suppress(trio.BrokenResourceError):
            # The first of the pieces that are read is shorter, by as much as the head takes.
            await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (4 * ANSWER_LIMIT))

    [listener] = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"

    given = await transport.attempt(request_to(url))

    assert given.body == b"x" * ANSWER_LIMIT


async def test_a_body_within_the_bound_is_read_to_its_end(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """All of it is given, and the connection serves on."""
    endpoint.next(200, body=b"x" * (ANSWER_LIMIT - 1))

    given = await transport.attempt(request_to(endpoint.url))

    assert given.body == b"x" * (ANSWER_LIMIT - 1)
    assert (await transport.attempt(request_to(endpoint.url))).status == 200
    assert endpoint.connections == 1


async def test_a_broken_exchange_is_a_transport_error(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """Closed without an answer: the kind is told, and the next attempt works."""
    endpoint.next(break_off=True)

    with pytest.raises(trimaran.TransportError, match="RemoteProtocolError"):
        await transport.attempt(request_to(endpoint.url))
    assert (await transport.attempt(request_to(endpoint.url))).status == 200


async def test_nobody_listening_is_a_transport_error(transport: HttpTransport) -> None:
    """A refused connection says that it is one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    with pytest.raises(trimaran.TransportError, match="ConnectError"):
        await transport.attempt(request_to(url))


async def test_an_illegal_header_is_not_quoted(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """h11 names the value that it refuses, which may be a token."""
    with pytest.raises(trimaran.TransportError) as caught:
        await transport.attempt(request_to(endpoint.url, authorization="Bearer s3cret\nx: y"))

    assert str(caught.value) == "LocalProtocolError"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_a_cancelled_attempt_leaves_the_transport_usable(
    transport: HttpTransport, endpoint: LoopbackEndpoint
) -> None:
    """The connection of the hung request is given up, not the client."""
    endpoint.next(delay=float("inf"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.attempt, request_to(endpoint.url))
        with trio.fail_after(PATIENCE):
            while not endpoint.requests:  # noqa: ASYNC110 - what comes over a socket is no event
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert nursery.cancel_scope.cancelled_caught
    assert (await transport.attempt(request_to(endpoint.url))).status == 200


async def test_a_request_cancelled_while_it_is_written_leaves_nothing_behind(
    transport: HttpTransport,
) -> None:
    """A server that reads nothing: no generator is left for the garbage collector."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    request = trimaran.Request(url, {}, b"x" * 50_000_000)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(transport.attempt, request)
        with trio.fail_after(PATIENCE):
            async with await listener.accept() as server:
                assert await server.receive_some(1)
                nursery.cancel_scope.cancel()

    assert nursery.cancel_scope.cancelled_caught
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
        await trio.lowlevel.checkpoint()
    assert caught == []


async def test_the_hosts_log_has_no_line_of_ours(
    transport: HttpTransport, endpoint: LoopbackEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """The client logs every request at INFO; ours stay out, the host's own stay in."""
    caplog.set_level(logging.INFO)

    await transport.attempt(request_to(endpoint.url))

    assert [record for record in caplog.records if record.name.startswith("httpx")] == []
    logging.getLogger("httpx").info("the host's own")
    assert "the host's own" in caplog.text


async def test_closing_takes_the_log_filter_away(endpoint: LoopbackEndpoint) -> None:
    """Nothing of ours is left in the host's logging, and what the host has there stays."""

    def of_the_host(_record: logging.LogRecord) -> bool:
        return True

    logger = logging.getLogger(httpx.__name__)
    logger.addFilter(of_the_host)
    try:
        opened = HttpTransport(max_connections=1)
        for _ in range(2):
            await opened.attempt(request_to(endpoint.url))
        assert len(logger.filters) == 2

        await opened.aclose()

        assert logger.filters == [of_the_host]
    finally:
        logger.removeFilter(of_the_host)


async def test_closing_one_transport_leaves_the_others_out_of_the_hosts_log(
    transport: HttpTransport, endpoint: LoopbackEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Two telemetries of a process share the client's logger, and each has a filter there."""
    caplog.set_level(logging.INFO)
    endpoint.next(delay=0.2)
    other = HttpTransport(max_connections=1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.attempt, request_to(endpoint.url))
        with trio.fail_after(PATIENCE):
            while not endpoint.requests:  # noqa: ASYNC110 - what comes over a socket is no event
                await trio.sleep(0.01)
        await other.attempt(request_to(endpoint.url))
        await other.aclose()

    assert [record for record in caplog.records if record.name.startswith("httpx")] == []


async def test_a_hung_server_does_not_hold_up_flush_or_exit(endpoint: LoopbackEndpoint) -> None:
    """Over a real socket that accepts and never answers, both end at their deadline."""
    endpoint.always(delay=float("inf"))
    settings = trimaran.Settings(drain_timeout=0.2, request_timeout=PATIENCE)

    async with (
        trimaran.open_telemetry("test", environ=endpoint.environ(), settings=settings) as telemetry,
        telemetry.session() as session,
    ):
        for _ in range(1000):
            session.command("init")
        began = trio.current_time()
        flushed = await session.flush(timeout=0.1)
        assert trio.current_time() - began < 0.1 + LATENESS
        assert not flushed
        assert flushed.pending == 1001
        began = trio.current_time()

    assert trio.current_time() - began < 0.2 + LATENESS
    assert session.statistics().dropped == {"drain_timeout": 1002}


async def test_a_connection_closed_between_batches_costs_nothing(
    endpoint: LoopbackEndpoint,
) -> None:
    """A kept connection may be dead at any time: that is an errored attempt, not a loss."""
    endpoint.next(200, headers=(("connection", "close"),))
    endpoint.next(break_off=True)

    settings = trimaran.Settings(drain_timeout=PATIENCE)
    async with trimaran.open_telemetry(
        "test", environ=endpoint.environ(), settings=settings
    ) as telemetry:
        async with telemetry.session() as session:
            assert await session.flush()
            session.command("init")
            assert await session.flush()

    assert session.statistics().delivered == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "[::1]"])
async def test_no_proxy_stands_before_this_machine(
    host: str, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that may go to loopback over plain http is not handed to a proxy to get there."""
    for switch in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(switch, raising=False)
    for switch in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(switch, endpoint.url)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: whoever asks is refused
        url = f"http://{host}:{nobody.getsockname()[1]}"
        opened = _http_transport(url, 1)
        with pytest.raises(trimaran.TransportError):
            await opened.attempt(request_to(url, authorization="Bearer secret"))
        await opened.aclose()

    assert endpoint.requests == []


async def test_a_proxy_stands_before_other_machines(
    endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies of the environment are taken where they belong."""
    for switch in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(switch, raising=False)
    for switch in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(switch, endpoint.url)
    through = HttpTransport(max_connections=1, direct_to="127.0.0.1")

    await through.attempt(request_to("http://elsewhere.test/"))
    await through.aclose()

    assert [request.target for request in endpoint.requests] == ["http://elsewhere.test/"]


async def test_an_answer_that_is_asked_for_comes_whole(
    nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """Up to its bound; one that is longer, or broken off, is none."""
    transport = HttpTransport(max_connections=2, whole_answer=3 * ANSWER_LIMIT)
    endpoint.next(200, body=b"x" * (3 * ANSWER_LIMIT))
    assert (await transport.attempt(request_to(endpoint.url))).body == b"x" * (3 * ANSWER_LIMIT)

    endpoint.next(200, body=b"x" * (3 * ANSWER_LIMIT + 1))
    with pytest.raises(trimaran.TransportError, match="an answer of more than 196608 bytes"):
        await transport.attempt(request_to(endpoint.url))

    async def break_off(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc")
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(partial(trio.serve_listeners, break_off, listeners))
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(trimaran.TransportError):
        await transport.attempt(request_to(f"http://127.0.0.1:{port}"))
    await transport.aclose()
