"""Endpoints on loopback for tests that are not trio: one in a thread, and one that is deaf."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class PlainEndpoint:
    """A healthy endpoint, and what it was sent."""

    url: str
    batches: list[dict[str, Any]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of all batches, in order of arrival."""
        return [event for batch in self.batches for event in batch["events"]]

    def of(self, session_id: str) -> list[dict[str, Any]]:
        """The events of one session, in order of arrival."""
        return [event for event in self.events if event["session_id"] == session_id]

    def commands(self) -> list[str]:
        """The names of the commands among the events, in order of arrival."""
        return [event["command_name"] for event in self.events if event["type"] == "command"]


@contextmanager
def healthy() -> Generator[PlainEndpoint]:
    """An endpoint that takes everything, in a thread."""
    endpoint = PlainEndpoint("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            endpoint.batches.append(json.loads(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that breaks off is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def deaf() -> Generator[str]:
    """The URL of an endpoint that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
