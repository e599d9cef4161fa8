"""The part of ClickHouse's HTTP interface that a store uses, before chdb's engine.

``chdb_server.py DIRECTORY PORT USER PASSWORD``: in: where it keeps its data, where to listen,
who needs a password. Runs until it is killed.
"""

from __future__ import annotations

import importlib
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Engine:
    """One engine for all connections, one query at a time."""

    def __init__(self, directory: str, passwords: dict[str, str]) -> None:
        self.passwords = passwords
        self._lock = threading.Lock()
        # Not every machine has it, and it has no types.
        self._session: Any = importlib.import_module("chdb.session").Session(directory)
        self._session.query("SET output_format_json_quote_64bit_integers = 0")

    def answer(self, database: str, sql: str) -> bytes:
        """What *sql* gives."""
        with self._lock:
            self._session.query(f"USE {database}")
            found: bytes = self._session.query(sql).bytes()
            return found


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    engine: Engine

    def do_POST(self) -> None:
        """Answer as a ClickHouse does."""
        asked = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        [database] = asked.get("database", ["default"])
        user, _, password = (
            b64decode(self.headers["authorization"].split()[1]).decode().partition(":")
        )
        if self.engine.passwords.get(user) != password:
            self._say(
                403, b"Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)"
            )
            return
        try:
            self._say(200, self.engine.answer(database, "\n".join([*asked.get("query", []), body])))
        except RuntimeError as error:
            self._say(500, str(error).encode())

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - see the base
        """Say nothing."""


def main() -> None:
    """Serve."""
    directory, port, user, password = sys.argv[1:]
    Handler.engine = Engine(directory, {"default": "", user: password})
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
