"""The faulty server, as a program: ``python -m faults.faulty_server DIRECTORY WANTED``.

In: a directory of certificates; JSON that says which fault to be under which name; the end
of its standard input, which ends it. Out: a line of JSON with the port of each name, and at
the end one with what came in at each.
Does not know: who posts, and what is expected of whom.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from . import misbehaviour as does
from .exchange import Connection, Tally
from .misbehaviour import Fault, answers, in_seconds


@dataclass(frozen=True)
class Port:
    """What is behind one port."""

    fault: Fault
    certificate: str | None = None
    """The name of a certificate; None speaks no TLS."""
    alpn: tuple[str, ...] = ()


def ports() -> dict[str, Port]:
    """A port for each fault; some keep count of what they have answered."""
    statuses = (400, 403, 404, 407, 408, 413, 422, 429, 500, 502, 503, 504)
    return {
        "well": Port(answers(200)),
        "far away": Port(does.is_far_away),
        "goes away": Port(does.goes_away()),
        "never answers": Port(does.never_answers),
        "well later": Port(does.is_well_later()),
        "drips": Port(does.drips),
        "drips the body": Port(does.drips_the_body),
        "endless body": Port(does.never_ends_the_body),
        "endless head": Port(does.never_ends_the_head),
        "another protocol": Port(does.speaks_otherwise),
        "answers anything": Port(does.answers_anything),
        "closes in the request": Port(does.closes_in_the_request),
        "closes in the head": Port(does.closes_in_the_head),
        "closes in the body": Port(does.closes_in_the_body),
        "breaks off a 207 once": Port(does.breaks_off_a_207_once()),
        "takes the first silently": Port(does.takes_the_first_silently()),
        "hangs up after an answer": Port(does.hangs_up_after_an_answer),
        "hangs up on the second": Port(does.hangs_up_on_the_second),
        "301": Port(answers(301)),
        "401": Port(answers(401)),
        "wants a fresh token": Port(does.wants_a_fresh_token),
        "has a limit": Port(does.has_a_limit),
        "takes keys of Langfuse": Port(does.wants_langfuse_keys),
        "warns": Port(does.refuses_spans(0, told=0)),
        "refuses two": Port(does.refuses_spans(2, told=2)),
        "refuses too many": Port(does.refuses_spans(1000, told=10**12)),
        "400 and why": Port(does.refuses_and_says_why),
        "answers with a page": Port(does.answers_with_a_page),
        **{str(status): Port(answers(status)) for status in statuses},
        **{f"{s} twice": Port(answers(s, s, then=200)) for s in (408, 429, 500, 502, 503, 504)},
        "after 1": Port(answers((429, "1"), then=200)),
        "after a date": Port(answers((429, in_seconds(2)), then=200)),
        "after for ever": Port(answers((429, "99999999999999999999"), then=200)),
        "after year 9999": Port(answers((429, "Fri, 31 Dec 9999 23:59:59 GMT"), then=200)),
        "after 1970": Port(answers((429, "Thu, 01 Jan 1970 00:00:00 GMT"), then=200)),
        "after -5": Port(answers((429, "-5"), then=200)),
        "after soon": Port(answers((429, "soon"), then=200)),
        "503 for an hour": Port(answers((503, "3600"))),
        "tls": Port(answers(200), "good"),
        "tls self-signed": Port(answers(200), "self-signed"),
        "tls expired": Port(answers(200), "expired"),
        "tls of another host": Port(answers(200), "elsewhere"),
        "tls never reads": Port(does.never_reads, "good"),
        "http/2 alone": Port(does.speaks_http2_alone, "good", ("h2",)),
        "proxy": Port(does.tunnels),
        "proxy 407": Port(does.refuses_to_tunnel(407)),
        "proxy 502": Port(does.refuses_to_tunnel(502)),
    }


async def serve_port(
    port: Port, tally: Tally, certificates: Path, *, task_status: trio.TaskStatus[int]
) -> None:
    """Serve it; its number is what this starts with."""
    context = None
    if port.certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / f"{port.certificate}.pem")
        if port.alpn:
            context.set_alpn_protocols(port.alpn)

    async def handle(plain: trio.SocketStream) -> None:
        tally.connections += 1
        stream: trio.abc.Stream = plain
        if context is not None:
            stream = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError, OSError):
            await port.fault(Connection(stream, tally))
        await trio.aclose_forcefully(stream)

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(number_of(listener.socket))
    await trio.serve_listeners(handle, [listener])


async def serve_by_hypercorn(
    tally: Tally, certificates: Path, *, task_status: trio.TaskStatus[int]
) -> None:
    """An ordinary server that offers HTTP/2 and HTTP/1.1, and leaves the choice to the client."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        tally.count(headers, scope["http_version"])
        tally.take(headers, body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    config = Config()
    number = number_of(listener.socket)
    config.bind = [f"fd://{listener.socket.detach()}"]
    config.certfile = config.keyfile = str(certificates / "good.pem")
    config.errorlog = None
    task_status.started(number)
    await serve(app, config, mode="asgi", shutdown_trigger=trio.sleep_forever)


async def be_a_black_hole(*, task_status: trio.TaskStatus[int]) -> None:
    """Take no connection and refuse none: the queue of those that wait is full for ever.

    Linux then drops what comes in, as a firewall does.
    """
    with ExitStack() as held:
        listener = held.enter_context(trio.socket.socket())
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        is_full = False
        while not is_full:
            waiting = held.enter_context(trio.socket.socket())
            with trio.move_on_after(0.2) as scope:
                await waiting.connect(listener.getsockname())
            is_full = scope.cancelled_caught
        task_status.started(number_of(listener))
        await trio.sleep_forever()


async def refuse(*, task_status: trio.TaskStatus[int]) -> None:
    """Have a port, so that nobody else gets it, but do not listen there."""
    with trio.socket.socket() as bound:
        await bound.bind(("127.0.0.1", 0))
        task_status.started(number_of(bound))
        await trio.sleep_forever()


def number_of(listening: trio.socket.SocketType) -> int:
    """The port that a socket is bound to."""
    number = listening.getsockname()[1]
    assert isinstance(number, int)
    return number


def served(fault: str, tally: Tally, certificates: Path) -> Callable[..., Awaitable[None]]:
    """What to start for *fault*."""
    match fault:
        case "refused":
            return refuse
        case "black hole":
            return be_a_black_hole
        case "http/2 and 1.1":
            return partial(serve_by_hypercorn, tally, certificates)
        case _:
            return partial(serve_port, ports()[fault], tally, certificates)


async def main(certificates: Path, wanted: Mapping[str, str]) -> None:
    """Serve until standard input ends."""
    tallies = {name: Tally() for name in wanted}
    async with trio.open_nursery() as nursery:
        numbers = {
            name: await nursery.start(served(fault, tallies[name], certificates))
            for name, fault in wanted.items()
        }
        print(json.dumps(numbers), flush=True)
        await trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())).receive_some()
        nursery.cancel_scope.cancel()
    print(json.dumps({name: asdict(tally) for name, tally in tallies.items()}), flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), json.loads(sys.argv[2]))
