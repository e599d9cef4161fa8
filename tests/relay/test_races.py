"""What comes at the wrong moment: consent that goes, an agent that leaves, a relay that hangs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from conftest import LoopbackEndpoint, Reply
from trimaran import StaticAccount
from trimaran._process import (
    ProcessListener,
    ProcessReceiveChannel,
    ProcessSendChannel,
    connect,
    listening,
)
from trimaran._relay import client as client_module
from trimaran._relay.messages import (
    LISTENS,
    PROTOCOL,
    SPEAKS,
    Batches,
    Call,
    HandedBatch,
    Hello,
    Listener,
    OutletReport,
    Welcome,
    encoded,
)
from trimaran._relay.place import RelayPlace

from .test_agents import Relayed, say
from .world import until


async def test_what_is_withdrawn_is_not_tried_again(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """A batch that the relay was just trying to deliver when consent went is given up."""
    endpoint.always(503)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    is_given = True
    async with relayed.agent(endpoint.url, consent=lambda: is_given) as telemetry:
        await say(telemetry, "mine")
        await until(lambda: len(endpoint.requests) > 0)
        is_given = False
        await say(telemetry, "not any more")

    with trio.fail_after(30):
        while (await _outlet_of(relayed)).waiting:  # noqa: ASYNC110 - the relay is asked
            await trio.sleep(0.01)
    assert (await _outlet_of(relayed)).dropped == {"consent_withdrawn": 1}


async def _outlet_of(relayed: Relayed) -> OutletReport:
    (outlet,) = (await relayed.report()).outlets
    return outlet


async def test_an_agent_may_go_while_it_is_asked_for_a_token(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """It hangs up where it speaks, before it does where it listens: the relay goes on, and
    what others hand over is delivered.
    """
    endpoint.rule = lambda request: Reply(401 if "authorization" in request.headers else 200)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    address = RelayPlace(relayed.directory).address()
    assert address is not None
    listening_end = await connect(address)
    await listening_end.send_all(LISTENS)
    with ProcessReceiveChannel(listening_end) as calls:
        async with relayed.speaking() as channel:
            await channel.ask(
                encoded(
                    Hello(
                        protocol=PROTOCOL,
                        agent="goes",
                        destination=f"authenticated {endpoint.url} ann@x.test",
                        token="stale",
                    )
                )
            )
            await calls.receive()
            await calls.acknowledge(encoded(Listener(agent="goes")))
            batch = HandedBatch(
                key="goes-0", body=b'{"events": [{"session_id": "goes"}]}', events=1
            )
            await channel.ask(encoded(Batches(batches=[batch])))
            with trio.fail_after(30):
                await calls.receive()
        with pytest.raises(trio.EndOfChannel), trio.fail_after(30):
            await calls.receive()

    async with relayed.agent(endpoint.url) as telemetry:
        books = await say(telemetry, "other")
    assert books.handed_over == 1
    await until(lambda: len(endpoint.of("other")) == 1)


async def test_a_relay_may_hang_while_it_is_given_a_token(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes neither the batch nor the token: the agent sends for itself, and that is all."""
    monkeypatch.setattr(client_module, "PATIENCE", 0.5)
    relayed = Relayed(tmp_path / "relay", nursery)
    relayed.directory.mkdir(mode=0o700)

    async def hang(stream: trio.SocketStream) -> None:
        if await stream.receive_some(1) == SPEAKS:
            with ProcessReceiveChannel(stream) as channel:
                await channel.receive()
                await channel.acknowledge(encoded(Welcome(version="")))
                await trio.sleep_forever()
        with ProcessSendChannel(stream) as line, suppress(trio.BrokenResourceError):
            await line.ask(b"")
            await line.ask(encoded(Call(after=None)))

    async def accept(listener: ProcessListener) -> None:
        while True:
            nursery.start_soon(hang, await listener.accept())

    with listening("hangs", os.environ) as listener:
        RelayPlace(relayed.directory).announce(listener.path)
        nursery.start_soon(accept, listener)
        account = StaticAccount(endpoint.url, "good", email="ann@x.test")
        async with relayed.agent(endpoint.url, account, strict=True) as telemetry:
            books = await say(telemetry, "mine")
        nursery.cancel_scope.cancel()

    assert books.delivered == 1
