"""One attempt over HTTP, through one client for all sessions.

In: a request. Out: the answer, read to a bound.
Does not know: what the answer means. The only file that imports httpx.
"""

from __future__ import annotations

import logging
import math
import signal
import ssl
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import httpx
import trio
import truststore

from trimaran._transport import ANSWER_LIMIT, Answer, Request, TransportError

__all__ = ["BODY_TIMEOUT", "HttpTransport"]

BODY_TIMEOUT = 0.5
"""Seconds that the body of an answer may take that has none to speak of."""

_MULTI_STATUS = 207

_delivering: ContextVar[bool] = ContextVar("trimaran_delivering", default=False)


class _NotOurs(logging.Filter):
    """Keeps httpx's line for each request out of the host's log, for our requests only.

    Each transport has one of its own: it is taken away while others make requests.
    """

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - they are all alike
        return not _delivering.get()


class _Body(httpx.AsyncByteStream):
    """A body in one piece. The client's own is an async generator, which a cancelled
    request would leave suspended for the garbage collector to complain about.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


class _Once(AsyncIterator[bytes]):
    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopAsyncIteration
        return content


class _Connecting:
    """Closes a connection whose TLS handshake is cut off.

    The client leaves it to the garbage collector: a socket for each attempt at an
    endpoint that hangs there. What it calls is its ``trace`` extension.
    """

    def __init__(self) -> None:
        self._stream: Any = None

    async def __call__(self, step: str, facts: Mapping[str, Any]) -> None:
        """*step* is done, or failed. A checkpoint only where it closes."""
        if step.endswith(".connect_tcp.complete"):
            self._stream = facts["return_value"]
        elif step.endswith(".start_tls.failed"):
            await self._stream.aclose()


class HttpTransport:
    """A :class:`~trimaran.Transport` over one ``httpx.AsyncClient``.

    Certificates are checked against the operating system's trust store; proxies are
    taken from the environment as httpx does; redirects are not followed.
    Making one reads certificates, and importing this file imports httpx: both take
    tens of milliseconds, which is why it is done in a thread.

    Args:
        max_connections: connections that are open at once, at most.
        direct_to: a host that is reached without a proxy. To this very machine a token may
            go over plain http; a proxy would be another one, which reads it.
        certificate: a file with the certificates of who may vouch for a server, in the place
            of the operating system's trust store.
        client_certificate: a file with the certificate that this side shows.
        client_key: a file with its key, if that is not in the same one.
        whole_answer: bytes of an answer's body, where that is what is asked for: one that is
            larger, or broken off, is no answer.

    Raises:
        TransportError: a proxy variable of the environment, or a file, cannot be used.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        direct_to: str | None = None,
        certificate: str | None = None,
        client_certificate: str | None = None,
        client_key: str | None = None,
        whole_answer: int | None = None,
    ) -> None:
        self._whole_answer = whole_answer
        client = partial(
            httpx.AsyncClient,
            verify=_trust(certificate, client_certificate, client_key),
            # The caller's cancel scope is the one clock: httpx's own limits would
            # each cover a part of an attempt, and none the whole.
            timeout=None,
            follow_redirects=False,
            mounts={} if direct_to is None else {_pattern_of(direct_to): None},
            limits=httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections
            ),
        )
        try:
            self._client = client()
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            # httpx reads all proxy variables at once, and fails at one that it cannot use:
            # "::1/128" in NO_PROXY, a SOCKS proxy without the package for it.
            if direct_to is None:
                kind = type(error).__name__
                raise TransportError(f"a proxy variable cannot be used: {kind}") from None
            self._client = client(trust_env=False)
        self._logger = logging.getLogger(httpx.__name__)
        self._not_ours = _NotOurs()
        self._url: tuple[str, httpx.URL] | None = None
        """The last one, as it came and parsed."""

    @trio.lowlevel.enable_ki_protection
    async def attempt(self, request: Request) -> Answer:
        """Post once. See :class:`~trimaran.Transport`.

        The client starts tasks to connect, which nothing protects from Ctrl-C. One that
        hits them is handed on to the host's code, and costs no more than an attempt.
        """
        try:
            return await self._exchange(request)
        except* KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)  # here, trio keeps it for the main task
        raise TransportError(KeyboardInterrupt.__name__)

    async def _exchange(self, request: Request) -> Answer:
        self._logger.addFilter(self._not_ours)  # once only: adding it again changes nothing
        token = _delivering.set(True)
        try:
            response = await self._client.send(self._http_request(request), stream=True)
            try:
                return Answer(
                    response.status_code,
                    response.headers.get("retry-after"),
                    await _body_of(response, self._whole_answer),
                )
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise TransportError(_describe(error)) from None
        finally:
            _delivering.reset(token)

    def _http_request(self, request: Request) -> httpx.Request:
        """*request* for the client, whose defaults it does not need.

        Merging these in, and parsing the one URL anew each time, would take a fifth of
        the processor time of a request.
        """
        if self._url is None or self._url[0] != request.url:
            self._url = (request.url, httpx.URL(request.url))
        url = self._url[1]
        headers = {
            "host": url.netloc.decode(),
            "content-length": str(len(request.body)),
            # Answers are read raw, so that a bound on them is a bound on memory.
            "accept-encoding": "identity",
            **request.headers,
        }
        return httpx.Request(
            "POST",
            url,
            headers=headers,
            stream=_Body(request.body),
            # Told of every step, the client takes a tenth longer.
            extensions={"trace": _Connecting()} if url.scheme == "https" else {},
        )

    async def aclose(self) -> None:
        """Close all connections."""
        self._logger.removeFilter(self._not_ours)
        await self._client.aclose()


def _trust(
    certificate: str | None, client_certificate: str | None, client_key: str | None
) -> ssl.SSLContext:
    """Whom to trust, and what to show of oneself.

    Raises:
        TransportError: a file cannot be used; it is named.
    """
    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    files = certificate
    try:
        if certificate is not None:
            context = ssl.create_default_context(cafile=certificate)
        if client_certificate is not None:
            files = " and ".join(filter(None, (client_certificate, client_key)))
            # A key that is locked would ask for its password on the terminal.
            context.load_cert_chain(client_certificate, client_key, password=str)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or type(error).__name__
        raise TransportError(f"a certificate cannot be used: {files}: {reason}") from None
    return context


def _pattern_of(host: str) -> str:
    """What the client calls all URLs of *host*."""
    return f"all://[{host}]" if ":" in host else f"all://{host}"


async def _body_of(response: httpx.Response, whole: int | None) -> bytes:
    """The body, to a bound; as much of it as comes, where the status has said it all.

    An endpoint that took a batch and then dawdles over the body, or breaks it off, has
    taken it nevertheless. Only a 207 goes on in its body, and without it is no answer; nor is
    any without all of it, where up to *whole* bytes are what was asked for.
    """
    body = bytearray()
    is_needed = whole is not None or response.status_code == _MULTI_STATUS
    limit = ANSWER_LIMIT if whole is None else whole + 1
    # Leaving the loop early would leave the client's generators suspended; a cancel
    # unwinds them, and the connection with them.
    with trio.move_on_after(math.inf if is_needed else BODY_TIMEOUT) as reading:
        try:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) >= limit:
                    reading.cancel()
        except httpx.TransportError:
            if is_needed:
                raise
    if whole is not None and len(body) > whole:
        raise TransportError(f"an answer of more than {whole} bytes")
    return bytes(body[:limit])


def _describe(error: Exception) -> str:
    """The kind of a failure, with its text where that cannot quote the request.

    A local protocol error does: h11 names the header that it refuses, and so a token.
    """
    kind = type(error).__name__
    if (problem := _certificate_problem(error)) is not None:
        return f"{kind}: CERTIFICATE_VERIFY_FAILED: {problem}"
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError)) and str(error):
        return f"{kind}: {error}"
    return kind


def _certificate_problem(error: BaseException) -> str | None:
    """What is wrong with the server's certificate, if that is it: trio and the client each
    put an error of their own, without a text, around the one that says so.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None
