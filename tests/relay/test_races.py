"""What comes at the wrong moment: consent that goes, an agent that leaves, a relay that hangs."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from conftest import LoopbackEndpoint, Reply
from patience import PATIENCE
from trimaran import Problem, StaticAccount
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import WayOut
from trimaran._endpoint.consent import Consent, ConsentWithdrawn
from trimaran._process import (
    ProcessError,
    ProcessListener,
    ProcessReceiveChannel,
    ProcessSendChannel,
    connect,
    listening,
)
from trimaran._relay import client as client_module
from trimaran._relay.client import RelayClient, RelayUnavailable
from trimaran._relay.messages import (
    LISTENS,
    PROTOCOL,
    SPEAKS,
    Batches,
    Call,
    HandedBatch,
    Hello,
    Listener,
    Message,
    OutletReport,
    Taken,
    Welcome,
    Withdraw,
    answer_from,
    encoded,
)
from trimaran._relay.outlet import Outlet
from trimaran._relay.place import RelayPlace
from trimaran._relay.way_out import RelayedWayOut
from trimaran._spool.file import SpoolFile
from trimaran._transport import Request

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

    with trio.fail_after(PATIENCE):
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
            with trio.fail_after(PATIENCE):
                await calls.receive()
        with pytest.raises(trio.EndOfChannel), trio.fail_after(PATIENCE):
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


@pytest.mark.parametrize(("count", "together"), [(1, 1), (10, 2)])
async def test_consent_may_go_while_batches_are_handed_over(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    *,
    count: int,
    together: int,
) -> None:
    """One, or several at once: they are taken back, and no other request has to come for that."""
    hand_over, is_given = RelayClient.hand_over, True

    async def handing_over(client: RelayClient, batches: Sequence[HandedBatch]) -> None:
        nonlocal is_given
        await hand_over(client, batches)
        is_given = len(batches) < together

    monkeypatch.setattr(RelayClient, "hand_over", handing_over)
    endpoint.always(503)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()

    async with relayed.agent(endpoint.url, consent=lambda: is_given, batch_events=1) as telemetry:
        books = await say(telemetry, "mine", count)

    assert not is_given
    assert books.dropped["consent_withdrawn"] == count - books.handed_over >= together
    with trio.fail_after(PATIENCE):
        while (await _outlet_of(relayed)).waiting:  # noqa: ASYNC110 - the relay is asked
            await trio.sleep(0.01)
    with closing(sqlite3.connect(relayed.directory / "spool.db")) as spool:
        assert spool.execute("SELECT count(*) FROM batches").fetchone() == (0,)


def client_of(
    directory: Path, ask: Callable[[], bool], start: Callable[[], bool] = lambda: False
) -> RelayClient:
    """The way to a relay that *start* starts, or nobody."""
    diagnostics = Diagnostics(trio.current_time)
    return RelayClient(
        RelayPlace(directory),
        start=start,
        agent="a",
        destination="anonymous http://127.0.0.1",
        tokens=None,
        consent=Consent(
            app="test",
            environ={},
            ask=ask,
            provider=None,
            account=None,
            now=trio.current_time,
            timeout=1.0,
            diagnostics=diagnostics,
        ),
        drain_timeout=1.0,
        diagnostics=diagnostics,
    )


async def test_what_broke_off_is_not_handed_over_again_without_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay died over a batch, and consent went before there was another one."""
    is_given = True

    class Dying:
        """A channel to a relay that is killed by what it gets."""

        async def ask(self, _value: bytes) -> bytes:
            nonlocal is_given
            is_given = False
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError

        def close(self) -> None:
            deaths.append(self)

    async def channel_or_new(_client: RelayClient) -> Dying:
        await trio.lowlevel.checkpoint()
        return Dying()

    deaths: list[Dying] = []
    monkeypatch.setattr(RelayClient, "_channel_or_new", channel_or_new)

    with pytest.raises(ConsentWithdrawn):
        await client_of(tmp_path, lambda: is_given).hand_over([])

    assert len(deaths) == 1


async def test_what_is_handed_over_together_while_consent_goes_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay took all of it: each is then gone about by itself, and so taken back."""
    is_given = True

    async def ask(_client: RelayClient, _message: Message) -> None:
        nonlocal is_given
        is_given = False
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(RelayClient, "_ask", ask)
    client = client_of(tmp_path, lambda: is_given)
    way_out = RelayedWayOut(
        client,
        endpoint=cast(WayOut, None),  # which is not asked
        consent=client._consent,
        diagnostics=client._diagnostics,
    )

    requests = [Request("", {"idempotency-key": key}, b"", 1) for key in ("a-0", "a-1")]
    assert await way_out.hand_over(requests) is False


async def test_a_withdrawal_that_overtakes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two sessions that come over a new connection, the one that withdraws may come first:
    what the other one hands over then has to be withdrawn as well.
    """
    asked: list[str] = []

    async def ask(self: RelayClient, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(message, Batches):
            await self.withdraw()
        asked.append(type(message).__name__)

    monkeypatch.setattr(RelayClient, "_ask", ask)
    client = client_of(tmp_path, lambda: True)

    await client.hand_over([])
    await client.withdraw()
    await client.withdraw()

    assert asked == ["Withdraw", "Batches", "Withdraw"]


def test_what_is_withdrawn_leaves_the_disk_whichever_relay_took_it(tmp_path: Path) -> None:
    """One that was killed left it, and its successor could not take it over."""

    def relay(owner: str) -> SpoolFile:
        return SpoolFile(
            tmp_path,
            owner=owner,
            destination="anonymous http://127.0.0.1",
            most_bytes=10_000,
            most_seconds=60.0,
            survives="kill",
            wall_clock=lambda: 0.0,
        )

    killed, successor = relay("killed"), relay("successor")
    with closing(killed), closing(successor):
        for key, agent in (("goes-0", "goes"), ("stays-0", "stays")):
            killed.put(key, b"{}", events=1, reports=0, handed_by=agent)

        successor.withdraw("goes")

        assert (killed.read("goes-0"), killed.read("stays-0")) == (None, b"{}")


@pytest.mark.parametrize("withdraws", ["gone", "heir"])
async def test_what_two_have_handed_over_is_taken_back_by_either(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint, *, withdraws: str
) -> None:
    """One did not hear that it was taken, and went; the other one found it in its spool, hands
    it over again, and is told that it is taken: then it is that one's own, too.
    """
    endpoint.always(503)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    batch = HandedBatch(key="k-0", body=b'{"events": [{}]}', events=1)
    for agent in ("gone", "heir"):
        assert await said_by(relayed, agent, endpoint.url, Batches(batches=[batch])) == Taken()
    assert (await _outlet_of(relayed)).waiting == 1

    assert await said_by(relayed, "nobody", endpoint.url, Withdraw()) == Taken()
    assert (await _outlet_of(relayed)).dropped == {}
    assert await said_by(relayed, withdraws, endpoint.url, Withdraw()) == Taken()

    with trio.fail_after(PATIENCE):
        while (await _outlet_of(relayed)).waiting:  # noqa: ASYNC110 - the relay is asked
            await trio.sleep(0.01)
    assert (await _outlet_of(relayed)).dropped == {"consent_withdrawn": 1}


async def said_by(relayed: Relayed, agent: str, url: str, message: Message) -> object:
    """What the relay answers to an agent that comes, says one thing and goes."""
    async with relayed.speaking() as channel:
        hello = Hello(protocol=PROTOCOL, agent=agent, destination=f"anonymous {url}")
        await channel.ask(encoded(hello))
        return answer_from(await channel.ask(encoded(message)))


async def test_what_an_agent_said_before_it_came_once_more_is_done_before_or_never(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gave up on a connection that hung, comes over another one and withdraws: what still
    lies in the first one is not taken after that.
    """
    take = Outlet.take
    taken: list[str] = []
    goes_on, done = trio.Event(), trio.Event()

    async def slowly(outlet: Outlet, agent: str, batches: Sequence[HandedBatch]) -> bool:
        taken.extend(batch.key for batch in batches)
        await goes_on.wait()
        is_taken = await take(outlet, agent, batches)
        done.set()
        return is_taken

    async def go_on() -> None:
        # When whoever does not wait for it is through.
        await trio.testing.wait_all_tasks_blocked(0.1)
        goes_on.set()

    monkeypatch.setattr(Outlet, "take", slowly)
    endpoint.always(503)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    hello = encoded(Hello(protocol=PROTOCOL, agent="a", destination=f"anonymous {endpoint.url}"))
    async with relayed.speaking() as first, relayed.speaking() as second:
        await first.ask(hello)
        for key in ("a-0", "a-1"):
            batch = HandedBatch(key=key, body=b'{"events": [{}]}', events=1)
            await first.send(encoded(Batches(batches=[batch])))
        await until(lambda: taken == ["a-0"])
        first.close()

        nursery.start_soon(go_on)
        await second.ask(hello)
        assert isinstance(answer_from(await second.ask(encoded(Withdraw()))), Taken)
        with trio.fail_after(PATIENCE):
            await done.wait()
            while (await _outlet_of(relayed)).waiting:  # noqa: ASYNC110 - the relay is asked
                await trio.sleep(0.01)

    assert taken == ["a-0"]


async def test_a_process_without_descriptors_has_no_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To meet it raises nothing, and who hands over hears why nothing can be taken."""

    async def connect_at_the_limit(_path: Path) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "Too many open files")

    RelayPlace(tmp_path).announce(tmp_path / "socket")
    monkeypatch.setattr(client_module, "connect", connect_at_the_limit)
    client = client_of(tmp_path, lambda: True)

    await client.meet()

    with pytest.raises(RelayUnavailable, match="Too many open files"):
        await client.hand_over([])


async def test_a_process_without_threads_starts_no_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in its loop either, which that would hold up."""

    async def no_thread(*_given: object, **_named: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    def start() -> bool:
        raise AssertionError("started in the loop")

    monkeypatch.setattr("trio.to_thread.run_sync", no_thread)
    client = client_of(tmp_path, lambda: True, start)

    await client.meet()

    with pytest.raises(RelayUnavailable, match="can't start new thread"):
        await client.hand_over([])


async def test_a_bug_of_what_starts_a_relay_is_none_of_the_relays(tmp_path: Path) -> None:
    """It is not mistaken for a thread that cannot be started."""

    def start() -> bool:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await client_of(tmp_path, lambda: True, start).meet()


async def test_calls_are_answered_once_there_is_a_descriptor_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is tried again after a pause, over the channel that is still there."""
    tries: list[float] = []

    async def connect_at_the_limit(_path: Path) -> trio.SocketStream:
        tries.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        raise ProcessError("nobody listens there")

    RelayPlace(tmp_path).announce(tmp_path / "socket")
    monkeypatch.setattr(client_module, "connect", connect_at_the_limit)
    client = client_of(tmp_path, lambda: True)
    monkeypatch.setattr(client, "_tokens", object())
    monkeypatch.setattr(client, "_channel", object())
    client._connected.set()
    began = trio.current_time()

    nursery.start_soon(client.answer_calls)
    await trio.sleep(100)
    nursery.cancel_scope.cancel()

    assert tries == [began, began + client_module.RESTART_INTERVAL]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_bug_beside_the_sessions_is_told_and_leaves_them_alone(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    *,
    strict: bool,
) -> None:
    """Only strict settings let it out."""

    async def broken(_way: RelayedWayOut) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    monkeypatch.setattr(RelayedWayOut, "run", broken)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    problems: list[Problem] = []

    async def work() -> None:
        agent = relayed.agent(endpoint.url, problems=problems, strict=strict)
        async with agent as telemetry:
            await trio.testing.wait_all_tasks_blocked()
            assert (await say(telemetry, "mine")).handed_over == 1

    if strict:
        with pytest.raises(ZeroDivisionError):
            await work()
    else:
        await work()

    assert [(problem.name, dict(problem.facts)) for problem in problems] == [
        ("telemetry failed", {"error": "ZeroDivisionError"})
    ]
