"""Every way to fail that the faulty server knows, each as a function of one connection.

In: a connection. Out: what goes over it; when the function returns it is closed.
Does not know: ports, certificates, which case it serves.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import chain, repeat
from typing import TypeAlias

import trio

from .exchange import Connection, Request, raw_answer
from .later_agent import VERSION
from .otlp import partly, status

__all__ = ["Fault"]

Fault: TypeAlias = Callable[[Connection], Awaitable[None]]
Step: TypeAlias = int | tuple[int, str | Callable[[], str]]
"""A status, and what ``Retry-After`` goes with it."""

ENDLESS = 1 << 40
BETWEEN_BYTES = 1.0
"""Seconds."""
LATENCY = 0.6
"""Seconds of an endpoint that is well, but far away."""
MOST_BYTES = 900
"""Of a body, where there is a limit; three events or so."""


def answers(*script: Step, then: Step | None = None) -> Fault:
    """Follow a script over all connections; after it, *then* or its last step for ever."""
    steps: Iterator[Step] = chain(script, repeat(script[-1] if then is None else then))

    async def fault(connection: Connection) -> None:
        while request := await connection.request():
            await connection.answer(request, *_told(next(steps), request))

    return fault


def _told(step: Step, request: Request) -> tuple[int, list[tuple[str, str]]]:
    status, retry_after = step if isinstance(step, tuple) else (step, "")
    value = retry_after if isinstance(retry_after, str) else retry_after()
    headers = [("retry-after", value)] if value else []
    if status == 301:
        headers.append(("location", f"http://{request.headers['host']}/elsewhere"))
    return status, headers


def in_seconds(seconds: float) -> Callable[[], str]:
    """The date form of ``Retry-After``, counted from when it is sent."""
    return lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


async def is_far_away(connection: Connection) -> None:
    """Well, but every answer takes its time."""
    while request := await connection.request():
        await trio.sleep(LATENCY)
        await connection.answer(request, 200)


def goes_away() -> Fault:
    """Answer the first request; never answer another."""
    answers_once = iter([True])

    async def fault(connection: Connection) -> None:
        while request := await connection.request():
            if next(answers_once, False):
                await connection.answer(request, 200)

    return fault


async def wants_a_fresh_token(connection: Connection) -> None:
    """Refuse any token but one."""
    while request := await connection.request():
        is_fresh = request.headers.get("authorization") == "Bearer fresh"
        await connection.answer(request, 200 if is_fresh else 401)


async def has_a_limit(connection: Connection) -> None:
    """Refuse what is too large."""
    while request := await connection.request():
        await connection.answer(request, 413 if len(request.body) > MOST_BYTES else 200)


async def wants_langfuse_keys(connection: Connection) -> None:
    """Refuse whoever does not come with them, and with the version that Langfuse wants."""
    while request := await connection.request():
        is_known = request.headers.get("authorization") == "Basic cGstbGY6c2stbGY="  # pk-lf:sk-lf
        is_current = request.headers.get("x-langfuse-ingestion-version") == "4"
        await connection.answer(request, 200 if is_known and is_current else 401)


def refuses_spans(count: int, told: int) -> Fault:
    """Take a request of OTLP but for *count* spans; say that it was *told* so many."""

    async def fault(connection: Connection) -> None:
        while request := await connection.request():
            connection.take(request, but=count)
            await connection.stream.send_all(raw_answer(200, body=partly(told)))

    return fault


async def refuses_and_says_why(connection: Connection) -> None:
    """As OTLP wants it said."""
    while request := await connection.request():
        await connection.answer(request, 400, body=status())


async def answers_with_a_page(connection: Connection) -> None:
    """Success, and something for a browser."""
    while request := await connection.request():
        await connection.answer(request, 200, body=b"<!DOCTYPE html><title>Welcome</title>")


async def never_answers(connection: Connection) -> None:
    """Read everything, say nothing."""
    while await connection.request():
        pass


def is_well_later() -> Fault:
    """Never answer, until a process comes that is the next."""
    is_well = False

    async def fault(connection: Connection) -> None:
        nonlocal is_well
        while request := await connection.request():
            is_well = is_well or json.loads(request.body)["cli_version"] == VERSION
            if is_well:
                await connection.answer(request, 200)

    return fault


async def never_reads(connection: Connection) -> None:
    """Not even that."""
    await trio.sleep_forever()


async def drips(connection: Connection) -> None:
    """A byte a second, from the first of the status line on."""
    await connection.request()
    await _drip(connection, raw_answer(200))


async def drips_the_body(connection: Connection) -> None:
    """Success at once, then a byte a second of an idle remark."""
    while request := await connection.request():
        connection.take(request)
        await connection.stream.send_all(raw_answer(200, length=100))
        await _drip(connection, b"x" * 100)


async def _drip(connection: Connection, data: bytes) -> None:
    for byte in data:
        await connection.stream.send_all(bytes([byte]))
        await trio.sleep(BETWEEN_BYTES)


async def never_ends_the_body(connection: Connection) -> None:
    """Success, then bytes for as long as anybody takes them."""
    while request := await connection.request():
        connection.take(request)
        await connection.stream.send_all(raw_answer(200, length=ENDLESS))
        while True:
            await connection.stream.send_all(bytes(1 << 16))


async def never_ends_the_head(connection: Connection) -> None:
    """Headers for as long as anybody takes them."""
    await connection.request()
    await connection.stream.send_all(b"HTTP/1.1 200 -\r\n")
    while True:
        await connection.stream.send_all(b"x-more: and more\r\n" * 1000)


async def speaks_otherwise(connection: Connection) -> None:
    """Another protocol."""
    await connection.request()
    await connection.stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")


async def answers_anything(connection: Connection) -> None:
    """What an HTTP server says to what is no HTTP, a TLS hello for instance."""
    await connection.stream.receive_some()
    await connection.stream.send_all(raw_answer(400))


async def closes_in_the_request(connection: Connection) -> None:
    """Read the head, and go."""
    await connection.head()


async def closes_in_the_head(connection: Connection) -> None:
    """Go in the middle of the answer's headers."""
    await connection.request()
    await connection.stream.send_all(raw_answer(200)[:20])


async def closes_in_the_body(connection: Connection) -> None:
    """Go in the middle of the answer's body, with the status said."""
    if request := await connection.request():
        connection.take(request)
        await connection.stream.send_all(raw_answer(200, body=b"half", length=8))


def breaks_off_a_207_once() -> Fault:
    """Go in the middle of the first answer that names what was refused; name nothing later."""
    breaks = iter([True])

    async def fault(connection: Connection) -> None:
        while request := await connection.request():
            if next(breaks, False):
                await connection.stream.send_all(raw_answer(207, body=b'{"rejec', length=80))
                return
            await connection.answer(request, 207, body=b'{"rejected": []}')

    return fault


def takes_the_first_silently() -> Fault:
    """Store the first batch and go without an answer; be well after that."""
    silences = iter([True])

    async def fault(connection: Connection) -> None:
        while request := await connection.request():
            if next(silences, False):
                connection.take(request)
                return
            await connection.answer(request, 200)

    return fault


async def hangs_up_after_an_answer(connection: Connection) -> None:
    """Close an idle connection without a word of it in the answer."""
    if request := await connection.request():
        await connection.answer(request, 200)


async def hangs_up_on_the_second(connection: Connection) -> None:
    """Close a connection when it is used again."""
    if request := await connection.request():
        await connection.answer(request, 200)
    await connection.request()


async def speaks_http2_alone(connection: Connection) -> None:
    """What RFC 9113 asks of a server that hears no preface: its settings, and good-bye."""
    settings, goodbye = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), bytes([0, 0, 8, 7, 0, 0, 0, 0, 0])
    protocol_error = bytes([0, 0, 0, 0, 0, 0, 0, 1])
    await connection.stream.send_all(settings)
    await connection.stream.receive_some()
    await connection.stream.send_all(goodbye + protocol_error)


async def tunnels(connection: Connection) -> None:
    """A proxy that works, for ``CONNECT``; to it, every host is this machine."""
    head = await connection.head()
    if head is None:
        return
    port = head[0].split(" ")[1].rpartition(":")[2]
    onward = await trio.open_tcp_stream("127.0.0.1", int(port))
    await connection.stream.send_all(b"HTTP/1.1 200 -\r\n\r\n")
    async with onward, trio.open_nursery() as nursery:

        async def pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
            async for part in source:
                await sink.send_all(part)
            nursery.cancel_scope.cancel()

        nursery.start_soon(pump, connection.stream, onward)
        nursery.start_soon(pump, onward, connection.stream)


def refuses_to_tunnel(status: int) -> Fault:
    """A proxy that answers ``CONNECT`` with an error."""

    async def fault(connection: Connection) -> None:
        await connection.head()
        await connection.stream.send_all(raw_answer(status))

    return fault
