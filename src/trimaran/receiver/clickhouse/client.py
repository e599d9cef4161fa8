"""SQL to ClickHouse over its HTTP interface.

In: statements, rows. Out: rows; or a StoreError that names the server and never the password.
Does not know: which tables there are.

Only what the HTTP interface of 2018 has is used, which today's still has. It had no parameters
for queries: :func:`literal` writes values into them, so that no value can end its quotes.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

import msgspec
import trio

from trimaran._decision import loopback_host
from trimaran._transport import Answer, Request, Transport, TransportError
from trimaran.receiver.store import StoreError, StoreUnavailable

__all__ = ["Address", "ClickHouse", "address_of", "is_clickhouse", "literal", "open_transport"]

TIMEOUT = 8.0
"""Seconds for an answer, by default; senders wait 10 s for theirs."""

_MOST_BYTES = 64 * 1024 * 1024
"""Of an answer. A page of sessions that all have long names comes to half of it."""

_CONNECTIONS = 16
_PORTS: Mapping[str, int] = {"http": 8123, "https": 8443}
_EXAMPLE = "clickhouse+http://127.0.0.1:8123/telemetry"
_LONGEST_REASON = 200

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(rb"[A-Za-z0-9_.-]")
_EXCEPTION = re.compile(
    r"Code: (?P<code>\d+)[.,] (?:e\.displayText\(\) = )?DB::Exception: (?P<text>.*?)"
    r"(?:,? e\.what\(\).*|\(version .*)?$",
    re.DOTALL,
)

_NOT_LET_IN = frozenset({192, 193, 194, 516})
"""Unknown user, wrong password, password required, authentication failed."""

_SETTINGS = {
    # A status is the whole truth only if nothing is sent before the end.
    "wait_end_of_query": "1",
    "output_format_json_quote_64bit_integers": "0",
    # Names of sessions, of which a query may list a thousand, may be long.
    "max_query_size": str(16 * 1024 * 1024),
}

_Row = TypeVar("_Row")

_encoded_lines = msgspec.json.Encoder().encode_lines


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a database is, and who asks. ``str`` and ``repr`` show no password."""

    url: str
    database: str
    user: str
    password: str

    def __str__(self) -> str:
        return f"{self.url}/{self.database}"

    def __repr__(self) -> str:
        return f"<Address {self}>"


def is_clickhouse(text: str) -> bool:
    """Whether that is meant to be a ClickHouse's URL."""
    return text.startswith(("clickhouse+", "clickhouse:"))


def address_of(text: str) -> Address:
    """What ``clickhouse+http://[user:password@]host[:port]/database`` says.

    Raises:
        StoreError: it is not that; the message quotes nothing, since there may be a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or _PORTS.get(_scheme(parts))
    except ValueError:
        raise StoreError(f"that is no URL of a ClickHouse; write it as {_EXAMPLE}") from None
    if port is None or not parts.hostname or not text.isascii() or parts.query or parts.fragment:
        raise StoreError(f"that is no URL of a ClickHouse; write it as {_EXAMPLE}")
    database = parts.path.strip("/")
    if not _NAME.fullmatch(database):
        raise StoreError(f"the URL names no database; write it as {_EXAMPLE}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(
        url=f"{_scheme(parts)}://{host}:{port}",
        database=database,
        user=unquote(parts.username or "default"),
        password=unquote(parts.password or ""),
    )


def _scheme(parts: SplitResult) -> str:
    return parts.scheme.removeprefix("clickhouse+")


def literal(text: str) -> str:
    """*text* in SQL. All but the plainest characters are written as numbers."""
    return "'" + "".join(map(_escaped, text.encode())) + "'"


def _escaped(byte: int) -> str:
    return chr(byte) if _PLAIN.fullmatch(bytes((byte,))) else f"\\x{byte:02x}"


async def open_transport(address: Address) -> Transport:
    """An HTTP client for that server, made in a thread: it reads certificates.

    Raises:
        StoreError: a proxy variable of the environment cannot be used.
    """

    def made() -> Transport:
        from trimaran._transport.http import HttpTransport  # noqa: PLC0415 - imports httpx

        return HttpTransport(
            max_connections=_CONNECTIONS,
            direct_to=loopback_host(address.url),
            whole_answer=_MOST_BYTES,
        )

    try:
        return await trio.to_thread.run_sync(made)
    except TransportError as error:
        raise StoreError(f"{address}: {error}") from None


class ClickHouse:
    """A database. Every method is a checkpoint, takes *timeout* seconds at most, and raises
    StoreUnavailable where there is no answer, or the server's is that it cannot.
    """

    def __init__(self, address: Address, transport: Transport, *, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._timeout = timeout
        self._transport = transport
        secret = b64encode(f"{address.user}:{address.password}".encode()).decode()
        self._headers = {"authorization": f"Basic {secret}"}
        self._anywhere = f"{address.url}/?{urlencode(_SETTINGS)}"
        self._within = f"{self._anywhere}&{urlencode({'database': address.database})}"

    async def command(self, sql: str, *, anywhere: bool = False) -> None:
        """Do *sql*; *anywhere* does not take the database to be there."""
        await self._post(self._anywhere if anywhere else self._within, sql.encode())

    async def rows(self, row: type[_Row], sql: str, *, anywhere: bool = False) -> list[_Row]:
        """The rows that *sql* gives, each as a *row*, whose fields have the names of columns."""
        text = f"{sql} FORMAT JSONEachRow".encode()
        body = await self._post(self._anywhere if anywhere else self._within, text)
        try:
            return msgspec.json.Decoder(row).decode_lines(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreUnavailable(f"{self.address}: not the answer of a ClickHouse") from error

    async def insert(self, table: str, rows: Iterable[object]) -> None:
        """Put *rows* into *table*; a cancel leaves open whether they are there."""
        query = urlencode({"query": f"INSERT INTO {table} FORMAT JSONEachRow"})
        await self._post(f"{self._within}&{query}", _encoded_lines(rows), is_told=False)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _post(self, url: str, body: bytes, *, is_told: bool = True) -> bytes:
        answer: Answer | None = None
        with trio.move_on_after(self._timeout):
            try:
                answer = await self._transport.attempt(Request(url, self._headers, body))
            except TransportError as error:
                raise StoreUnavailable(f"{self.address}: no ClickHouse answers: {error}") from None
        if answer is None:
            raise StoreUnavailable(
                f"{self.address}: ClickHouse did not answer within {self._timeout:g} s"
            )
        if answer.status != 200:
            raise self._refusal(answer, is_told=is_told)
        return answer.body

    def _refusal(self, answer: Answer, *, is_told: bool) -> StoreError:
        """What an answer says that is none; its text only where it cannot quote an event."""
        found = _EXCEPTION.search(answer.body.decode(errors="replace").strip())
        code = int(found["code"]) if found else 0
        if answer.status in {401, 403} or code in _NOT_LET_IN:
            user = self.address.user
            return StoreUnavailable(
                f"{self.address}: ClickHouse does not let {user!r} in: wrong user or password"
            )
        if found is None:
            return StoreUnavailable(
                f"{self.address}: answered {answer.status}, and not as a ClickHouse does"
            )
        told = f": {found['text'].strip()[:_LONGEST_REASON]}" if is_told else ""
        return StoreUnavailable(f"{self.address}: ClickHouse refused, code {code}{told}")
