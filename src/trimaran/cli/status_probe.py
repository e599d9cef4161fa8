"""Test whether a destination can be sent to: step by step, until one fails.

In: a target, the proxies that there are. Out: a :class:`Step` for each thing that was tried.
Does not know: how it is told, sessions. Nothing of any is sent.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

import trio

from trimaran._decision import loopback_host
from trimaran._transport import Answer, Transport, TransportError
from trimaran.cli._terminal import printable
from trimaran.cli.status_advice import of_answer, of_failure, of_silence
from trimaran.cli.status_certificate import names_in
from trimaran.cli.status_target import Target

__all__ = ["Step", "examine"]

PATIENCE = 10.0
"""Seconds for each step; agents give a request as long."""

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


class Step(NamedTuple):
    """One thing that was tried."""

    name: str
    found: str = ""
    """What came of it."""
    problem: str = ""
    """What is wrong and what to do; "" if nothing is."""


class _Hop(NamedTuple):
    """Who is connected to: the destination, or a proxy before it."""

    host: str
    port: int
    address: str
    """What says where it is."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def examine(
    target: Target, proxies: Mapping[str, str], *, patience: float = PATIENCE
) -> list[Step]:
    """What can be said of *target*; the last step is the one that fails, if any does.

    Args:
        target: what to test.
        proxies: as ``urllib.request.getproxies`` gives them.
        patience: seconds for each step.
    """
    parts = urlsplit(target.url)
    to = _Hop(parts.hostname or "", parts.port or _PORTS[parts.scheme], target.address)
    proxy = _proxy_for(parts, proxies)
    steps = [await _resolve(proxy or to, patience)]
    if not steps[-1].problem:
        steps.append(await _connect(proxy or to, patience))
    shown = ""
    if not steps[-1].problem and parts.scheme == "https" and proxy is None:
        step, shown = await _shake_hands(to, target, patience)
        steps.append(step)
    if not steps[-1].problem:
        steps.append(await _post(target, shown, patience))
    return steps


async def _resolve(hop: _Hop, patience: float) -> Step:
    """Whether the name has addresses."""
    found: list[str] = []
    problem = ""
    try:
        with trio.fail_after(patience):
            found = [
                str(address[0])
                for *_, address in await trio.socket.getaddrinfo(
                    hop.host, hop.port, type=socket.SOCK_STREAM
                )
            ]
    except (trio.TooSlowError, OSError, UnicodeError):
        problem = (
            f"the name {hop.host!r} does not resolve; correct it in {hop.address}, or see whether "
            "this machine has a network"
        )
    return Step("Name", ", ".join(dict.fromkeys(found)), problem)


async def _connect(hop: _Hop, patience: float) -> Step:
    """Whether anybody listens."""
    problem = ""
    try:
        with trio.fail_after(patience):
            stream = await trio.open_tcp_stream(hop.host, hop.port)
            await stream.aclose()
    except trio.TooSlowError:
        problem = (
            f"{hop} does not answer within {patience:g} s; a firewall may be in between, or the "
            f"address in {hop.address} is not its own"
        )
    except OSError as error:
        problem = (
            f"nothing listens at {hop}{_unless_refused(error)}; start it there, or correct the "
            f"address in {hop.address}"
        )
    return Step("Connection", f"to {hop}", problem)


def _unless_refused(error: OSError) -> str:
    """Why a connection failed, where it is not simply that nobody listens."""
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    return "" if isinstance(cause, ConnectionRefusedError) else f" ({cause})"


async def _shake_hands(to: _Hop, target: Target, patience: float) -> tuple[Step, str]:
    """Whether it speaks TLS, and as whom, whether it is to be believed or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The one question here is what it shows. It is told nothing, and the connection is closed;
    # whether to believe it is decided where the request is made.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if target.client_certificate is not None:
        with suppress(OSError):  # which is told where the request is made
            context.load_cert_chain(target.client_certificate, target.client_key, password=str)
    try:
        with trio.fail_after(patience):
            stream = await trio.open_ssl_over_tcp_stream(to.host, to.port, ssl_context=context)
            try:
                await stream.do_handshake()
                certificate = stream.getpeercert(binary_form=True)
            finally:
                await trio.aclose_forcefully(stream)
    except (trio.TooSlowError, trio.BrokenResourceError, OSError) as error:
        problem = (
            f"{to} does not agree on TLS{_reason(error)}; if it speaks none, write http in the "
            f"place of https in {to.address}"
        )
        return Step("TLS", "", problem), ""
    shown = printable(f"the certificate {names_in(certificate or b'')}")
    return Step("TLS", shown), shown


def _reason(error: Exception) -> str:
    """What the library of TLS calls the reason of *error*, where it gives one."""
    cause = error.__cause__
    reason = cause.reason if isinstance(cause, ssl.SSLError) else None
    return f" ({reason})" if reason else ""


async def _post(target: Target, shown: str, patience: float) -> Step:
    """What it says to a request with nothing in it."""
    answer: Answer | None = None
    try:
        http = await trio.to_thread.run_sync(_transport_to, target, abandon_on_cancel=True)
        try:
            with trio.move_on_after(patience):
                answer = await http.attempt(target.request)
        finally:
            with trio.move_on_after(1):
                await http.aclose()
    except TransportError as error:
        return Step("Answer", "", of_failure(str(error), target, shown))
    if answer is None:
        return Step("Answer", "", of_silence(patience, target))
    return Step("Answer", str(answer.status), of_answer(answer, target))


def _transport_to(target: Target) -> Transport:
    """What agents send with. It reads certificates, which is why it is made in a thread."""
    from trimaran._transport.http import HttpTransport  # noqa: PLC0415 - imports httpx

    return HttpTransport(
        max_connections=1,
        direct_to=loopback_host(target.url),
        certificate=target.certificate,
        client_certificate=target.client_certificate,
        client_key=target.client_key,
    )


def _proxy_for(parts: SplitResult, proxies: Mapping[str, str]) -> _Hop | None:
    """Who makes the connection in our place, if anybody does."""
    host = parts.hostname or ""
    if loopback_host(parts.geturl()) or _is_direct(host, proxies.get("no", "")):
        return None
    for scheme in (parts.scheme, "all"):
        if value := proxies.get(scheme):
            try:
                url = urlsplit(value if "://" in value else f"http://{value}")
                port = url.port or _PORTS.get(url.scheme, 80)
            except ValueError:
                break  # nobody can use it, which is found out by the request
            return _Hop(url.hostname or "", port, f"{scheme.upper()}_PROXY")
    return None


def _is_direct(host: str, exceptions: str) -> bool:
    """Whether *host* is among the *exceptions*, as NO_PROXY lists them."""
    names = {name.strip().lstrip(".").lower() for name in exceptions.split(",")} - {""}
    return any(name == "*" or f".{host}".endswith(f".{name}") for name in names)
