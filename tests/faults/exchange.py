"""One connection of the faulty server: requests as they come, answers to the byte.

In: a stream. Out: requests, and a book of what came in.
Does not know: what is wrong with the server.

It is HTTP written by hand: no library that speaks it can be talked into speaking it wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from .otlp import CONTENT_TYPE, spans_in

__all__ = ["Connection", "Request", "Tally", "raw_answer"]

Headers = Iterable[tuple[str, str]]


@dataclass
class Tally:
    """What came in at one port."""

    connections: int = 0
    requests: int = 0
    """Whole ones."""
    times: list[float] = field(default_factory=list)
    """When each of them was whole, in seconds of a monotonic clock."""
    taken: dict[str, int] = field(default_factory=dict)
    """By idempotency key, or by span, how many events were answered with success, loss reports
    left out."""
    tokens: list[str] = field(default_factory=list)
    """The ``Authorization`` of each request."""
    versions: list[str] = field(default_factory=list)
    """The version of HTTP of each request."""

    def count(self, headers: dict[str, str], version: str) -> None:
        """A whole request came in."""
        self.requests += 1
        self.times.append(time.monotonic())
        self.tokens.append(headers.get("authorization", ""))
        self.versions.append(version)

    def take(self, headers: dict[str, str], body: bytes, *, but: int = 0) -> None:
        """Its events are stored, once for each key; *but* for so many spans, the last ones."""
        if headers.get("content-type") == CONTENT_TYPE:
            spans = spans_in(headers, body)
            self.taken |= dict.fromkeys(spans[: max(0, len(spans) - but)], 1)
            return
        events = json.loads(body)["events"]
        own = [event for event in events if event.get("context") != "telemetry"]
        self.taken[headers["idempotency-key"]] = len(own)


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    headers: dict[str, str]
    body: bytes


@dataclass
class Connection:
    """One connection, and the book that it is counted in."""

    stream: trio.abc.Stream
    tally: Tally
    _received: bytes = b""

    async def head(self) -> tuple[str, dict[str, str]] | None:
        """The next request's line and headers; None at the end of the connection."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if not await self._receive():
                return None
        head, self._received = self._received[:end], self._received[end + 4 :]
        line, *fields = head.decode().split("\r\n")
        pairs = (text.split(":", 1) for text in fields)
        return line, {name.lower(): value.strip() for name, value in pairs}

    async def request(self) -> Request | None:
        """The next request, whole; None at the end of the connection."""
        head = await self.head()
        if head is None:
            return None
        line, headers = head
        length = int(headers.get("content-length", 0))
        while len(self._received) < length:
            if not await self._receive():
                return None
        body, self._received = self._received[:length], self._received[length:]
        self.tally.count(headers, line.rsplit("/", 1)[-1])
        return Request(headers, body)

    def take(self, request: Request, *, but: int = 0) -> None:
        """Store its events; *but* for so many spans."""
        self.tally.take(request.headers, request.body, but=but)

    async def answer(
        self, request: Request, status: int, headers: Headers = (), body: bytes = b""
    ) -> None:
        """Answer *request*; with success its events are stored first."""
        if 200 <= status < 300:
            self.take(request)
        await self.stream.send_all(raw_answer(status, headers, body))

    async def _receive(self) -> bool:
        part = await self.stream.receive_some(1 << 16)
        self._received += part
        return bool(part)


def raw_answer(
    status: int, headers: Headers = (), body: bytes = b"", *, length: int | None = None
) -> bytes:
    """An answer as it goes over the wire; *length* may lie about the body."""
    fields = [*headers, ("content-length", str(len(body) if length is None else length))]
    text = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} -\r\n{text}\r\n".encode() + body
