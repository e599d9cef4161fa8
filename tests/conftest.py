"""Real parts for the tests: an endpoint on loopback that behaves as told, a receiver."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h11
import msgspec
import pytest
import structlog
import trio

from trimaran.receiver import Receiver, run_receiver


def pytest_configure() -> None:
    """Listen to Ctrl-C, which some tests send: a shell lets what it starts in the background
    ignore it, and all children of that with it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _unconfigured_structlog() -> Iterator[None]:
    """What a test makes of structlog, by itself or by the command that it runs, is over with it."""
    yield
    structlog.reset_defaults()


@dataclass(frozen=True)
class Received:
    """A request as it came over the socket."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def batch(self) -> dict[str, Any]:
        """The body, decoded."""
        return msgspec.json.decode(self.body, type=dict[str, Any])

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events in the body."""
        return msgspec.convert(self.batch["events"], list[dict[str, Any]])


@dataclass(frozen=True)
class Reply:
    """What to answer a request with."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay: float = 0.0
    """Seconds before the answer; infinity never answers."""
    break_off: bool = False
    """Close the connection instead of answering."""


@dataclass
class LoopbackEndpoint:
    """An HTTP/1.1 server that answers by script, then by rule."""

    url: str
    script: deque[Reply] = field(default_factory=deque)
    """Replies to the next requests, in order."""
    rule: Callable[[Received], Reply] = lambda _request: Reply()
    """The reply to a request when the script is over."""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0

    def next(self, status: int = 200, **named: Any) -> None:
        """Reply so to the next request that has no reply yet."""
        self.script.append(Reply(status, **named))

    def always(self, status: int = 200, **named: Any) -> None:
        """Reply so to every request after the script."""
        self.rule = lambda _request: Reply(status, **named)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of all requests, in order of arrival."""
        return [event for request in self.requests for event in request.events]

    def environ(self, app: str = "test") -> dict[str, str]:
        """An environment that sends an app's anonymous events here."""
        return {f"{app.upper()}_TELEMETRY_URL": self.url}

    def of(self, session_id: str) -> list[dict[str, Any]]:
        """The events of one session, in order of arrival."""
        return [event for event in self.events if event["session_id"] == session_id]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Speak HTTP on one connection until it ends."""
        self.connections += 1
        connection = h11.Connection(h11.SERVER)
        async with stream:
            try:
                while await self._answer_one(connection, stream):
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
                return

    async def _answer_one(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        head: h11.Request | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert head is not None
        request = Received(
            head.target.decode(),
            {name.decode().lower(): value.decode() for name, value in head.headers},
            body,
        )
        self.requests.append(request)
        reply = self.script.popleft() if self.script else self.rule(request)
        await trio.sleep(reply.delay)
        if reply.break_off:
            return False
        headers = [*reply.headers, ("content-length", str(len(reply.body)))]
        for part in (
            h11.Response(status_code=reply.status, headers=headers),
            h11.Data(data=reply.body),
            h11.EndOfMessage(),
        ):
            await stream.send_all(connection.send(part) or b"")
        return connection.our_state is h11.DONE


@pytest.fixture
async def endpoint(nursery: trio.Nursery) -> LoopbackEndpoint:
    """A healthy endpoint on loopback, until it is told otherwise."""
    return await _listening(nursery)


@pytest.fixture
async def beside(nursery: trio.Nursery) -> LoopbackEndpoint:
    """A second one, which is healthy as well."""
    return await _listening(nursery)


async def _listening(nursery: trio.Nursery) -> LoopbackEndpoint:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    server = LoopbackEndpoint(f"http://127.0.0.1:{port}")
    nursery.start_soon(partial(trio.serve_listeners, server.serve, listeners))
    return server


@pytest.fixture
async def receiver(nursery: trio.Nursery, tmp_path: Path) -> Receiver:
    """A receiver on a free port of loopback, with a store of its own."""
    running: Receiver = await nursery.start(
        partial(run_receiver, port=0, database=tmp_path / "receiver.sqlite", grace=0.2)
    )
    return running


@pytest.fixture
def without_extra_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra ``otlp`` were not installed."""
    for module in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "trimaran.otlp.protobuf", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
