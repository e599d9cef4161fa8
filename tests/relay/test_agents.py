"""An agent and a relay in one process: tokens, consent, versions, and what goes wrong."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import trimaran
from conftest import LoopbackEndpoint, Received, Reply
from patience import PATIENCE, status_of, untraced
from trimaran._pipeline.batch import MOST_TOGETHER
from trimaran._process import ProcessReceiveChannel, ProcessSendChannel, connect, listening
from trimaran._relay import client as client_module
from trimaran._relay.launch import launch
from trimaran._relay.messages import (
    LISTENS,
    PROTOCOL,
    SPEAKS,
    Batches,
    End,
    HandedBatch,
    Hello,
    NewToken,
    Refusal,
    Refused,
    Report,
    Spectator,
    Taken,
    Welcome,
    answer_from,
    encoded,
    message_from,
    report_from,
)
from trimaran._relay.orders import Orders, orders_of
from trimaran._relay.outlet import Outlet
from trimaran._relay.place import RelayPlace
from trimaran._relay.server import RelayServer
from trimaran.testing import ScriptedTransport

from .world import until

Problems = list[trimaran.Problem]


class Relayed:
    """A relay in this process, and agents of it."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self._nursery = nursery
        self._scope: trio.CancelScope | None = None
        self._done = trio.Event()

    def relay(self, **named: object) -> trimaran.Relay:
        """Its settings."""
        return msgspec.structs.replace(
            trimaran.Relay(directory=str(self.directory), idle_timeout=30.0), **named
        )

    async def start(self, **named: object) -> None:
        """Start it."""
        settings = trimaran.Settings(retry_initial=0.01, unauthorized_interval=0.2)
        orders = orders_of(self.relay(**named), settings)
        self._done = trio.Event()
        await self._nursery.start(self._run, orders)

    async def _run(self, orders: Orders, task_status: trio.TaskStatus[None]) -> None:
        lock = RelayPlace(self.directory).lock()
        assert lock is not None
        try:
            with trio.CancelScope() as self._scope:
                await RelayServer(orders).run(task_status=task_status)
        finally:
            lock.release(remove=True)
            self._done.set()

    async def kill(self) -> None:
        """End it at once, with what is under way."""
        assert self._scope is not None
        self._scope.cancel()
        await self.ended()

    async def ended(self) -> None:
        """Wait until it has ended."""
        with trio.fail_after(PATIENCE):
            await self._done.wait()

    @asynccontextmanager
    async def agent(
        self,
        url: str,
        account: trimaran.AccountProvider | None = None,
        *,
        problems: Problems | None = None,
        consent: Callable[[], bool] | None = None,
        starts: Callable[[Orders], bool] = lambda _orders: False,
        destinations: Sequence[trimaran.Destination] = (),
        **settings: object,
    ) -> AsyncIterator[trimaran.Telemetry]:
        """An agent of it; one that would start a process does what *starts* does."""
        chosen: dict[str, Any] = {
            "relay": self.relay(),
            "flush_interval": 0.01,
            "retry_initial": 0.01,
            "drain_timeout": PATIENCE / 2,
            **settings,
        }
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("trimaran._relay.way_out.launch", starts)
            async with trimaran.open_telemetry(
                "test",
                account=account,
                environ={"TEST_TELEMETRY_URL": url},
                settings=trimaran.Settings(**chosen),
                consent=consent,
                destinations=destinations,
                on_problem=None if problems is None else problems.append,
            ) as telemetry:
                yield telemetry

    async def waits_for_token(self) -> None:
        """Wait until the one thing that it has is nothing that it can deliver."""
        with trio.fail_after(PATIENCE):
            while not (await self.report()).outlets[0].waits_for_token:  # noqa: ASYNC110 - asked
                await trio.sleep(0.01)

    async def report(self) -> Report:
        """What it says of itself."""
        address = RelayPlace(self.directory).address()
        assert address is not None
        stream = await connect(address)
        await stream.send_all(LISTENS)
        with ProcessReceiveChannel(stream) as line:
            await line.receive()
            await line.acknowledge(encoded(Spectator()))
            return report_from(await line.receive())

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[ProcessSendChannel]:
        """A connection over which the test says what it likes."""
        address = RelayPlace(self.directory).address()
        assert address is not None
        stream = await connect(address)
        await stream.send_all(SPEAKS)
        with ProcessSendChannel(stream) as channel:
            yield channel


@pytest.fixture
async def relayed(tmp_path: Path, nursery: trio.Nursery) -> Relayed:
    """A relay that runs."""
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()
    return relayed


class Login:
    """An account whose token is another one after each refresh."""

    def __init__(self, url: str, email: str, tokens: list[str]) -> None:
        self._account = trimaran.Account(url, email)
        self._tokens = tokens
        self.refreshes = 0

    async def account(self) -> trimaran.Account | None:
        return self._account

    async def token(self, *, refresh: bool) -> str | None:
        self.refreshes += refresh
        if refresh and len(self._tokens) > 1:
            del self._tokens[0]
        return self._tokens[0]


def only(token: str) -> Callable[[Received], Reply]:
    """The rule of an endpoint that takes this token alone."""
    return lambda request: Reply(
        200 if request.headers.get("authorization") == f"Bearer {token}" else 401
    )


async def say(telemetry: trimaran.Telemetry, name: str, count: int = 1) -> trimaran.Statistics:
    """A session of its own for some events; its books, when all is handed over."""
    async with telemetry.session(session_id=name, announce=False) as session:
        for number in range(count):
            session.command(str(number))
        assert await session.flush(timeout=PATIENCE)
    return session.statistics()


async def test_what_is_handed_over_arrives(relayed: Relayed, endpoint: LoopbackEndpoint) -> None:
    """Each event once, in its order, with the headers that its batches have; the agent counts
    as handed over what the relay counts as delivered.
    """
    async with (
        relayed.agent(endpoint.url, batch_events=3) as telemetry,
        telemetry.session(session_id="s", announce=False, parent_session_id="p/ä") as session,
    ):
        for number in range(100):
            session.command(str(number))
        flushed = await session.flush(timeout=PATIENCE)

    books = session.statistics()
    assert flushed
    assert flushed.handed_over == 100
    assert (books.tracked, books.handed_over, books.pending, books.delivered) == (100, 100, 100, 0)
    await until(lambda: len(endpoint.events) == 100)
    assert [event["command_name"] for event in endpoint.events] == [*map(str, range(100))]
    keys = [request.headers["idempotency-key"] for request in endpoint.requests]
    assert len(set(keys)) == len(keys) >= 34
    assert {request.headers["trimaran-parent-session"] for request in endpoint.requests} == {
        "p%2F%C3%A4"
    }
    report = await relayed.report()
    assert report.pid == os.getpid()
    (outlet,) = report.outlets
    assert outlet.destination == f"anonymous {endpoint.url}"
    assert (outlet.delivered, outlet.waiting, outlet.events) == (100, 0, 0)


async def test_each_of_several_destinations_has_its_own_line(
    relayed: Relayed, endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """One that is down keeps what is its own at the relay; what a transport of the host's sends
    goes there directly, and that is told of it alone.
    """
    endpoint.always(503)
    direct = ScriptedTransport()
    problems: Problems = []
    async with (
        relayed.agent(
            endpoint.url,
            destinations=[
                trimaran.Destination(name="beside", url=beside.url),
                trimaran.Destination(name="direct", transport=direct),
            ],
            problems=problems,
        ) as telemetry,
        telemetry.session(session_id="s", announce=False) as session,
    ):
        for number in range(100):
            session.command(str(number))
        assert await session.flush(timeout=60)

    each = session.statistics().destinations
    assert (each["endpoint"].handed_over, each["beside"].handed_over) == (100, 100)
    assert (each["direct"].handed_over, each["direct"].delivered) == (0, 100)
    assert {(problem.name, problem.facts["destination"]) for problem in problems} == {
        ("telemetry relay not available", "direct")
    }
    await until(lambda: len(beside.events) == 100)
    outlets = {outlet.destination: outlet for outlet in (await relayed.report()).outlets}
    assert outlets[f"anonymous {endpoint.url}"].events == 100
    assert outlets[f"anonymous {beside.url}"].delivered == 100
    endpoint.always(200)
    await until(lambda: len({event["command_name"] for event in endpoint.events}) == 100)


async def test_a_batch_that_is_too_large_is_halved_by_the_relay(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The relay does all that a sender does."""
    endpoint.rule = lambda request: Reply(413 if len(request.events) > 2 else 200)

    async with relayed.agent(endpoint.url) as telemetry:
        await say(telemetry, "s", 8)

    await until(lambda: sum(len(r.events) for r in endpoint.requests if len(r.events) <= 2) == 8)


async def test_an_account_has_its_own_token(relayed: Relayed, endpoint: LoopbackEndpoint) -> None:
    """Events of two accounts at one endpoint go out with the token of each, and those of
    nobody without any.
    """
    async with AsyncExitStack() as stack:
        for name in ("ann", "bob"):
            account = trimaran.StaticAccount(endpoint.url, f"{name}s-token", email=f"{name}@x.test")
            agent = await stack.enter_async_context(relayed.agent(endpoint.url, account))
            await say(agent, name)
        await say(await stack.enter_async_context(relayed.agent(endpoint.url)), "nobody")
        await until(lambda: len(endpoint.requests) == 3)

    sent = {r.batch["session_id"]: r.headers.get("authorization") for r in endpoint.requests}
    assert sent == {"ann": "Bearer anns-token", "bob": "Bearer bobs-token", "nobody": None}


async def test_a_refused_token_is_renewed_by_the_agent(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The relay asks the agents that are there, whose login has another one."""
    endpoint.rule = only("fresh")
    login = Login(endpoint.url, "ann@x.test", ["stale", "fresh"])

    async with relayed.agent(endpoint.url, login) as telemetry:
        await say(telemetry, "s")
        await until(lambda: len(endpoint.requests) == 2)

        assert [r.headers["authorization"] for r in endpoint.requests] == [
            "Bearer stale",
            "Bearer fresh",
        ]
        assert login.refreshes == 1
        await until(lambda: _is_delivered(endpoint, 1))


def _is_delivered(endpoint: LoopbackEndpoint, count: int) -> bool:
    return sum(endpoint.rule(request).status == 200 for request in endpoint.requests) == count


async def test_batches_wait_for_an_agent_that_brings_a_token(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """With a token that is refused and no agent there, nothing is sent; another account's
    agent does not help, one of the same account does.
    """
    endpoint.rule = only("good")
    bad = trimaran.StaticAccount(endpoint.url, "bad", email="ann@x.test")
    async with relayed.agent(endpoint.url, bad) as telemetry:
        await say(telemetry, "waits")
        await until(lambda: len(endpoint.requests) > 0)
    await relayed.waits_for_token()
    await trio.sleep(0.3)
    before = len(endpoint.requests)

    other = trimaran.StaticAccount(endpoint.url, "good", email="bob@x.test")
    async with relayed.agent(endpoint.url, other) as telemetry:
        await say(telemetry, "other")
        await until(lambda: len(endpoint.requests) > before)
        await trio.sleep(0.2)
        assert {r.batch["session_id"] for r in endpoint.requests[before:]} == {"other"}

    good = trimaran.StaticAccount(endpoint.url, "good", email="ann@x.test")
    async with relayed.agent(endpoint.url, good) as telemetry:
        await say(telemetry, "brings")
        await until(lambda: _is_delivered(endpoint, 3))


async def test_what_waits_for_a_token_keeps_no_relay_alive(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """It ends, and what it has stays on disk; the next one delivers that, with the token that
    its agent brings.
    """
    endpoint.rule = only("good")
    relayed = Relayed(tmp_path / "relay", nursery)
    for name, token in (("waits", "bad"), ("brings", "good")):
        account = trimaran.StaticAccount(endpoint.url, token, email="ann@x.test")
        async with relayed.agent(endpoint.url, account) as telemetry, trio.open_nursery() as agent:
            agent.start_soon(say, telemetry, name)
            await relayed.start(idle_timeout=1.0)  # it is looked for already
        await relayed.ended()

    good_ones = [r for r in endpoint.requests if endpoint.rule(r).status == 200]
    assert sorted(r.batch["session_id"] for r in good_ones) == ["brings", "waits"]


async def test_a_token_is_nowhere_but_in_memory(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """No file of the relay's has it, while it sends with it and afterwards."""
    endpoint.always(503)
    account = trimaran.StaticAccount(endpoint.url, "s3same-0pen", email="ann@x.test")
    async with relayed.agent(endpoint.url, account) as telemetry:
        await say(telemetry, "s")
        await until(lambda: len(endpoint.requests) > 0)
    assert "s3same-0pen" in endpoint.requests[0].headers["authorization"]

    for file in relayed.directory.iterdir():
        if file.is_file():
            assert b"s3same-0pen" not in file.read_bytes()


async def test_withdrawn_consent_takes_back_what_is_ones_own(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """What an agent handed over is removed, and overwritten; another one's stays."""
    endpoint.always(503)
    is_given = True
    async with (
        relayed.agent(endpoint.url) as other,
        relayed.agent(endpoint.url, consent=lambda: is_given) as telemetry,
    ):
        await say(other, "stays")
        async with telemetry.session(session_id="mine", announce=False) as session:
            session.command("told")
            assert await session.flush(timeout=PATIENCE)
            is_given = False
            session.command("not any more")
            assert await session.flush(timeout=PATIENCE)
        assert session.statistics().dropped == {"consent_withdrawn": 1}
        await until(lambda: len(endpoint.requests) > 0)
        (outlet,) = (await relayed.report()).outlets
        assert outlet.waiting in {1, 2}  # one that is under way is told to nobody
        for file in relayed.directory.iterdir():
            if file.is_file():
                assert b"told" not in file.read_bytes()
        endpoint.always(200)
        await until(lambda: any(_is_of(r, "stays") for r in endpoint.requests[-2:]))


def _is_of(request: Received, session: str) -> bool:
    return bool(request.batch["session_id"] == session)


async def test_a_relay_that_is_killed_is_started_again(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The agent goes on with the next one; here, that is started by the test."""
    problems: Problems = []
    async with relayed.agent(endpoint.url, problems=problems) as telemetry:
        await say(telemetry, "first")
        await relayed.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, telemetry, "second")
            await trio.sleep(0.05)
            await relayed.start()
        await until(lambda: {e["session_id"] for e in endpoint.events} == {"first", "second"})

    assert problems == []


async def test_a_batch_that_was_taken_is_not_taken_again(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """An agent that did not hear that it was hands it over once more, with the same key; also
    after it was delivered.
    """
    batch = HandedBatch(key="k-0", body=b'{"session_id":"s","events":[{}]}', events=1)
    hello = Hello(
        protocol=PROTOCOL, version="1", agent="a", destination=f"anonymous {endpoint.url}"
    )
    async with relayed.speaking() as channel:
        assert isinstance(answer_from(await channel.ask(encoded(hello))), Welcome)
        for _ in range(2):
            answer = answer_from(await channel.ask(encoded(Batches(batches=[batch, batch]))))
            assert isinstance(answer, Taken)
            await until(lambda: len(endpoint.requests) == 1)
            await trio.sleep(0.05)

    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Batches(batches=[]), Refusal.MEANING),
        (NewToken(token="t"), Refusal.MEANING),
        (Hello(protocol=PROTOCOL + 1), Refusal.PROTOCOL),
        (Hello(protocol=PROTOCOL, agent="a", destination="strange"), Refusal.MEANING),
        (
            Hello(protocol=PROTOCOL, agent="a", destination="authenticated http://x.test a@b"),
            Refusal.MEANING,
        ),
    ],
)
async def test_what_it_does_not_do_is_said_politely(
    relayed: Relayed, message: Hello | Batches | NewToken, why: Refusal
) -> None:
    """Before a hello, of another version, for a destination that is none; it goes on."""
    async with relayed.speaking() as channel:
        answer = answer_from(await channel.ask(encoded(message)))
        assert isinstance(answer, Refused)
        assert answer.why is why
        assert answer.protocol == PROTOCOL
        nonsense = answer_from(await channel.ask(b"nonsense"))
        assert isinstance(nonsense, Refused)

    assert (await relayed.report()).agents == 0


async def test_a_newer_agent_retires_it(relayed: Relayed) -> None:
    """Refused, it says that the relay is to end; that lets go of lock, socket and disk."""
    async with relayed.speaking() as channel:
        await channel.ask(encoded(Hello(protocol=PROTOCOL + 1)))
        assert isinstance(answer_from(await channel.ask(encoded(End()))), Taken)

    await relayed.ended()
    assert not RelayPlace(relayed.directory).is_held()
    assert RelayPlace(relayed.directory).address() is None


@asynccontextmanager
async def strange_relay(
    directory: Path, answers: Callable[[bytes], bytes | None]
) -> AsyncIterator[None]:
    """Something at a relay's address that answers as *answers* says, or not at all."""
    directory.mkdir(mode=0o700)
    with listening("strange", os.environ) as listener:
        RelayPlace(directory).announce(listener.path)

        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some(1)
            with ProcessReceiveChannel(stream) as channel:
                async for data in channel:
                    answer = answers(data)
                    if answer is None:
                        await trio.sleep_forever()
                    else:
                        await channel.acknowledge(answer)

        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                while True:
                    nursery.start_soon(serve, await listener.accept())

            nursery.start_soon(accept)
            yield
            nursery.cancel_scope.cancel()


NEWER = encoded(Refused(why=Refusal.PROTOCOL, reason="it is newer", protocol=PROTOCOL + 1))


@pytest.mark.parametrize(
    ("answers", "patience", "reason"),
    [
        (lambda _data: NEWER, PATIENCE, "it is newer"),
        (lambda _data: None, 0.2, "it does not answer in time"),
        (lambda _data: b"\xc1", PATIENCE, "MessagePack"),
        (lambda _data: encoded(Taken()), PATIENCE, "it speaks another language"),
    ],
)
async def test_an_agent_that_is_not_served_sends_for_itself(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    *,
    answers: Callable[[bytes], bytes | None],
    patience: float,
    reason: str,
) -> None:
    """By a relay that is newer, hangs, or is none: all that it says arrives, and it says
    once that it had to.
    """
    monkeypatch.setattr(client_module, "PATIENCE", patience)
    relayed = Relayed(tmp_path / "relay", nursery)
    problems: Problems = []
    async with strange_relay(relayed.directory, answers):
        async with relayed.agent(endpoint.url, problems=problems) as telemetry:
            first = await say(telemetry, "first")
            second = await say(telemetry, "second")

    assert (first.delivered, second.delivered) == (1, 1)
    assert [problem.name for problem in problems] == ["telemetry relay not available"]
    assert reason in str(problems[0].facts["reason"])


async def test_an_older_relay_is_retired_and_replaced(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """The agent asks it to end, and starts its own."""
    relayed = Relayed(tmp_path / "relay", nursery)
    older = Refused(why=Refusal.PROTOCOL, reason="it is older", protocol=PROTOCOL - 1)
    heard: list[type[object]] = []
    retired = trio.Event()

    def answers(data: bytes) -> bytes:
        message = message_from(data)
        heard.append(type(message))
        if isinstance(message, End):
            retired.set()
            return encoded(Taken())
        return encoded(older)

    async with relayed.agent(endpoint.url) as telemetry, trio.open_nursery() as inner:
        async with strange_relay(relayed.directory, answers):
            inner.start_soon(say, telemetry, "s")
            with trio.fail_after(PATIENCE):
                await retired.wait()
        await relayed.start()
    await until(lambda: len(endpoint.events) == 1)

    assert heard == [Hello, End] * (len(heard) // 2)


async def test_a_full_disk_is_the_agents_to_deal_with(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """What has no room is not taken, and nothing that was taken makes room; the agent sends
    for itself what the relay refused.
    """
    endpoint.rule = lambda request: Reply(200 if _is_of(request, "second") else 503)
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start(most_bytes=500)
    problems: Problems = []
    async with relayed.agent(endpoint.url, problems=problems) as telemetry:
        first = await say(telemetry, "first", 3)
        second = await say(telemetry, "second", 3)

    assert (first.handed_over, second.delivered) == (3, 3)
    names = [problem.name for problem in problems]
    assert names == ["telemetry relay not available"]
    assert problems[0].facts["reason"] == "it cannot keep more on its disk"
    (outlet,) = (await relayed.report()).outlets
    assert (outlet.waiting, outlet.events, outlet.dropped) == (1, 3, {})


async def test_a_relay_that_cannot_be_started_is_done_without(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """Where its directory would be is a file: it is said why, and all arrives."""
    (tmp_path / "relay").write_text("taken")
    problems: Problems = []
    async with Relayed(tmp_path / "relay", nursery).agent(
        endpoint.url, problems=problems, starts=launch
    ) as telemetry:
        books = await say(telemetry, "s")

    assert books.delivered == 1
    assert [problem.name for problem in problems] == ["telemetry relay not available"]
    assert "exists" in str(problems[0].facts["reason"])


async def test_leaving_does_not_wait_for_a_relay_beyond_half_of_its_time(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that hangs leaves the other half to the network, which takes the events in it."""
    monkeypatch.setattr(client_module, "PATIENCE", PATIENCE)
    relayed = Relayed(tmp_path / "relay", nursery)
    async with strange_relay(relayed.directory, lambda _data: None):
        async with relayed.agent(endpoint.url, drain_timeout=4.0) as telemetry:
            async with telemetry.session(announce=False) as session:
                session.command("x")

    assert session.statistics().delivered == 1


async def test_a_spool_of_ones_own_is_emptied_into_the_relay(
    relayed: Relayed, endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Both can be had: what an earlier process left in a spool is handed over, and a batch is
    in the spool only until the relay has it.
    """
    spool = trimaran.Spool(directory=str(tmp_path / "spool"))
    endpoint.always(503)
    async with relayed.agent(
        endpoint.url, relay=False, spool=spool, drain_timeout=0.0
    ) as telemetry:
        async with telemetry.session(session_id="left", announce=False) as session:
            session.command("x")
            await until(lambda: session.statistics().spooled == 1)
    assert session.statistics().spooled == 1

    async with relayed.agent(endpoint.url, spool=spool) as telemetry:
        books = await say(telemetry, "s")
        await until(lambda: telemetry.leftovers().handed_over == 1)

    assert (books.handed_over, books.spooled, books.pending) == (1, 0, 1)
    endpoint.always(200)
    await until(lambda: {e["session_id"] for e in endpoint.events} == {"left", "s"})


async def test_a_connection_that_says_nothing_is_not_kept(
    relayed: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that says something else first."""
    address = RelayPlace(relayed.directory).address()
    assert address is not None
    for first in (b"", b"x", LISTENS):
        patience = PATIENCE if first else 0.05
        monkeypatch.setattr("trimaran._relay.server._HELLO_PATIENCE", patience)
        async with await connect(address) as stream:
            if first:
                await stream.send_all(first)
            with trio.fail_after(PATIENCE):
                if first == LISTENS:
                    assert await stream.receive_some(1)
                else:
                    assert await stream.receive_some(1) == b""
    assert (await relayed.report()).agents == 0


async def test_a_signal_ends_it(relayed: Relayed) -> None:
    """SIGTERM, in whichever process it is."""
    os.kill(os.getpid(), signal.SIGTERM)

    await relayed.ended()


async def test_a_body_too_long_for_a_frame_is_sent_directly(
    relayed: Relayed, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one alone; the next is handed over again."""
    monkeypatch.setattr(
        client_module, "ProcessSendChannel", partial(ProcessSendChannel, max_frame=1000)
    )
    problems: Problems = []
    async with relayed.agent(endpoint.url, problems=problems) as telemetry:
        long = await say(telemetry, "long", 20)
        short = await say(telemetry, "short")

    assert (long.delivered, short.handed_over) == (20, 1)
    assert [problem.name for problem in problems] == ["telemetry relay not available"]
    assert math.isfinite(trio.current_time())


async def test_a_transport_of_the_hosts_own_is_not_passed_by(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """It is used, and said so: what it does with a batch, a relay does not know."""
    transport = ScriptedTransport()
    problems: Problems = []
    async with trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": endpoint.url},
        settings=trimaran.Settings(relay=relayed.relay()),
        transport=transport,
        on_problem=problems.append,
    ) as telemetry:
        books = await say(telemetry, "s")

    assert (books.delivered, books.handed_over) == (1, 0)
    assert len(transport.requests) == 1
    assert [problem.name for problem in problems] == ["telemetry relay not available"]


def is_open(descriptor: int) -> bool:
    """Whether there is such a descriptor."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def test_a_forked_child_leaves_the_connection_to_its_parent(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """It closes its copies, so that the relay sees when the parent goes; the parent's own
    connection is as it was.
    """
    account = trimaran.StaticAccount(endpoint.url, "t0k3n", email="ann@x.test")
    async with relayed.agent(endpoint.url, account) as telemetry:
        await say(telemetry, "before")
        way_out: Any = telemetry._supervisor and telemetry._supervisor.shared.routes[0].endpoint
        client = way_out._client
        await until(lambda: client._line is not None)
        ends = [client._channel._socket.fileno(), client._line._socket.fileno()]
        assert all(is_open(end) for end in ends)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
            with untraced():
                child = os.fork()
                if not child:
                    os._exit(sum(is_open(end) for end in ends))
        assert await status_of(child) == 0
        after = await say(telemetry, "after")

    assert after.handed_over == 1
    await until(lambda: {e["session_id"] for e in endpoint.events} == {"before", "after"})


async def test_what_waits_is_handed_over_together(
    relayed: Relayed, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame, and a turn of the disk, for several batches; in their order."""
    take, together = Outlet.take, []

    async def noted(outlet: Outlet, agent: str, batches: Sequence[HandedBatch]) -> bool:
        together.append(len(batches))
        return await take(outlet, agent, batches)

    monkeypatch.setattr(Outlet, "take", noted)
    async with relayed.agent(endpoint.url, batch_events=1) as telemetry:
        books = await say(telemetry, "s", 100)

    assert (books.handed_over, books.batches, books.attempts) == (100, 100, 0)
    assert sum(together) == 100
    assert max(together) == MOST_TOGETHER
    await until(lambda: len(endpoint.events) == 100)
    assert [event["command_name"] for event in endpoint.events] == [*map(str, range(100))]


async def test_what_is_not_taken_together_goes_out_in_order(
    tmp_path: Path, nursery: trio.Nursery, endpoint: LoopbackEndpoint
) -> None:
    """One by one, by the agent itself."""
    relayed = Relayed(tmp_path / "relay", nursery)
    async with strange_relay(relayed.directory, lambda _data: NEWER):
        async with relayed.agent(endpoint.url, batch_events=1) as telemetry:
            books = await say(telemetry, "s", 50)

    assert (books.delivered, books.handed_over, books.attempts) == (50, 0, 50)
    assert [event["command_name"] for event in endpoint.events] == [*map(str, range(50))]


async def test_consent_is_looked_at_before_several_are_handed_over(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """With a no, none of them is."""
    async with relayed.agent(endpoint.url, consent=lambda: False, batch_events=1) as telemetry:
        books = await say(telemetry, "s", 50)

    assert books.dropped == {"consent_withdrawn": 50}
    assert (await relayed.report()).agents == 0


async def test_consent_is_withdrawn_though_no_relay_hears_it(
    relayed: Relayed, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay is gone and no other can be started: nothing more goes out, and it is said."""
    endpoint.always(503)
    is_given = True
    problems: Problems = []
    async with relayed.agent(
        endpoint.url, consent=lambda: is_given, problems=problems
    ) as telemetry:
        await say(telemetry, "told")
        await relayed.kill()
        monkeypatch.setattr(client_module, "PATIENCE", 0.1)
        is_given = False
        books = await say(telemetry, "not any more")

    assert books.dropped == {"consent_withdrawn": 1}
    assert [problem.name for problem in problems] == ["telemetry relay not emptied"]


async def test_withdrawn_consent_reaches_the_next_relay(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The one that had the batches was killed; the one that took them over removes them."""
    endpoint.always(503)
    is_given = True
    async with relayed.agent(endpoint.url, consent=lambda: is_given) as telemetry:
        await say(telemetry, "told")
        await relayed.kill()
        await relayed.start()
        is_given = False
        await say(telemetry, "not any more")

        (outlet,) = (await relayed.report()).outlets
        assert outlet.dropped in ({"consent_withdrawn": 1}, {})  # {}: it is under way
        for file in relayed.directory.iterdir():
            if file.is_file():
                assert b"told" not in file.read_bytes()


class Switching(Login):
    """Somebody else logs in: the next token is of another account."""

    async def token(self, *, refresh: bool) -> str | None:
        if refresh:
            self._account = trimaran.Account(self._account.url, "eve@x.test")
        return await super().token(refresh=refresh)


async def test_the_token_of_somebody_else_is_not_given_away(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The relay asks for another token, and whose the new one is has changed: it gets none,
    and the batches wait.
    """
    endpoint.rule = only("eves")
    login = Switching(endpoint.url, "ann@x.test", ["anns", "eves"])
    async with relayed.agent(endpoint.url, login) as telemetry:
        await say(telemetry, "s")
        await until(lambda: login.refreshes > 0)
        await relayed.waits_for_token()
        await trio.sleep(0.1)

        (outlet,) = (await relayed.report()).outlets
        assert (outlet.waiting, outlet.waits_for_token) == (1, True)

    assert {r.headers["authorization"] for r in endpoint.requests} == {"Bearer anns"}


EXPIRED = "header.eyJleHAiOjB9.signature"
"""A JWT that says {"exp":0}."""


async def test_nor_is_one_that_was_renewed_before_the_relay_was_found(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The token that the agent began with is about to expire, and the next one is of another
    account: it is not said in the hello, and what was to be handed over is not sent.
    """
    login = Switching(endpoint.url, "ann@x.test", [EXPIRED, "eves"])

    async with relayed.agent(endpoint.url, login) as telemetry:
        books = await say(telemetry, "s")

    assert login.refreshes == 1
    assert books.dropped == {"consent_withdrawn": 1}
    assert endpoint.requests == []


async def test_an_account_that_is_gone_hands_nothing_over(
    relayed: Relayed, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the relay knows the agent already: it is looked for before each batch."""
    monkeypatch.setattr("trimaran._endpoint.consent._ACCOUNT_INTERVAL", 0.0)
    endpoint.always(503)
    login = LoggingOut(endpoint.url, "ann@x.test", ["anns"])

    async with relayed.agent(endpoint.url, login) as telemetry:
        await say(telemetry, "before")
        login.is_there = False
        books = await say(telemetry, "after")

    assert books.dropped == {"consent_withdrawn": 1}
    assert login.asked_after >= 1


class LoggingOut(Login):
    """An account that may be gone; how often it was asked for then."""

    is_there = True
    asked_after = 0

    async def account(self) -> trimaran.Account | None:
        self.asked_after += not self.is_there
        return self._account if self.is_there else None
