"""The store in ClickHouse, where it differs from others: the network, two receivers at once."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
import trio
import trio.testing

import trimaran
from cli.conftest import Command
from otlp.systems import free_ports
from patience import PATIENCE
from receiver.batches import batch, found, numbers
from receiver.conftest import CLICKHOUSES
from receiver.engines import PASSWORD, USER, started_engine
from trimaran._transport import Answer, Request, Transport, TransportError
from trimaran.receiver import StoreError, StoreUnavailable, open_store, run_receiver
from trimaran.receiver.clickhouse.client import (
    TIMEOUT,
    ClickHouse,
    address_of,
    is_clickhouse,
    literal,
    open_transport,
)
from trimaran.receiver.clickhouse.schema import VERSIONS
from trimaran.receiver.clickhouse.store import ClickHouseStore, open_clickhouse
from trimaran.receiver.ingest import parse

if TYPE_CHECKING:
    from conftest import LoopbackEndpoint


class Between(Transport):
    """Stands between a store and ClickHouse: may be told to do something before or after."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.urls: list[str] = []
        self.before: Callable[[Request], Any] | None = None
        self.after: Callable[[Request], Any] | None = None

    async def attempt(self, request: Request) -> Answer:
        self.urls.append(request.url)
        if self.before is not None:
            await self.before(request)
        answer = await self._transport.attempt(request)
        if self.after is not None:
            await self.after(request)
        return answer

    async def aclose(self) -> None:
        await self._transport.aclose()


@asynccontextmanager
async def opened(url: str, **given: Any) -> AsyncGenerator[tuple[ClickHouseStore, Between]]:
    between = Between(await open_transport(address_of(url)))
    async with open_clickhouse(url, gap=0, timeout=PATIENCE, transport=between, **given) as store:
        yield store, between


@asynccontextmanager
async def asking(url: str) -> AsyncGenerator[ClickHouse]:
    """For questions of the test's own."""
    address = address_of(url)
    clickhouse = ClickHouse(address, await open_transport(address), timeout=PATIENCE)
    yield clickhouse
    await clickhouse.aclose()


class Count(msgspec.Struct):
    """How many."""

    total: int


async def count(url: str, sql: str) -> int:
    async with asking(url) as clickhouse:
        [row] = await clickhouse.rows(Count, f"SELECT count() AS total FROM {sql}")  # noqa: S608 - ours
    return row.total


async def merge(url: str) -> None:
    """Let ClickHouse find what it has twice, now."""
    async with asking(url) as clickhouse:
        for table in ("batches", "arrivals", "children", "events"):
            await clickhouse.command(f"OPTIMIZE TABLE {table} FINAL")


@pytest.mark.parametrize("is_first_quick", [True, False])
async def test_two_receivers_may_insert_the_same_batch(
    clickhouse: str, is_first_quick: bool
) -> None:
    """Both look before either has inserted: it is there twice, and the first one counts."""
    async with opened(clickhouse) as (first, one), opened(clickhouse) as (second, other):
        looked, go_on = [trio.Event(), trio.Event()], [trio.Event(), trio.Event()]

        async def wait(number: int, request: Request) -> None:
            if "INSERT" in request.url:
                looked[number].set()
                await go_on[number].wait()

        one.before, other.before = partial(wait, 0), partial(wait, 1)
        async with trio.open_nursery() as both:
            for number, store in enumerate((first, second)):
                both.start_soon(partial(store.append, batch(0, 1), "k", parent="p"))
                await looked[number].wait()
            for number in (0, 1) if is_first_quick else (1, 0):
                go_on[number].set()
                await trio.testing.wait_all_tasks_blocked(0.1)
        await first.append(batch(2), "l")

        seen: list[Any] = []
        for _ in range(2):
            assert await numbers(second) == [0, 1, 2]
            session = await found(second)
            assert session.summary.event_count == 3
            assert (await second.sessions()).sessions == (session,)
            assert (await second.sessions(parent="p")).sessions == (session,)
            seen.append(session)
            await merge(clickhouse)
        assert seen[0] == seen[1]

    assert await count(clickhouse, "batches") == 2
    assert await count(clickhouse, "events") == 3


@pytest.mark.parametrize("table", ["events", "arrivals", "children", "batches"])
async def test_an_insert_that_fails_half_way_is_made_good(clickhouse: str, table: str) -> None:
    """Nothing of it is seen before it is sent again, and then it is there once."""
    async with opened(clickhouse) as (store, between):

        async def fail(request: Request) -> None:
            if f"INSERT+INTO+{table}" in request.url:
                raise TransportError("ConnectError")

        between.before = fail
        with pytest.raises(StoreUnavailable, match="no ClickHouse answers: ConnectError"):
            await store.append(batch(0, 1), "k", parent="p")
        assert await store.session("s") is None
        assert (await store.sessions()).sessions == ()
        assert (await store.sessions(parent="p")).sessions == ()

        between.before = None
        await store.append(batch(0, 1), "k", parent="p")
        assert await numbers(store) == [0, 1]
        assert len((await store.sessions()).sessions) == 1
        await merge(clickhouse)

    assert await count(clickhouse, "events") == 2


async def test_an_insert_whose_answer_was_lost_counts_once(clickhouse: str) -> None:
    """Whoever sends it again hears that it is there."""
    async with opened(clickhouse) as (store, between):

        async def lose(request: Request) -> None:
            if "INSERT+INTO+batches" in request.url:
                raise TransportError("ReadError")

        between.after = lose
        with pytest.raises(StoreUnavailable):
            await store.append(batch(0, None), "k")
        between.after = None
        receipt = await store.append(batch(0, None), "k")

        assert receipt.duplicate
        assert (receipt.accepted, [bad.index for bad in receipt.rejected]) == (1, [1])
        assert await numbers(store) == [0]


async def test_who_inserts_for_others_may_be_cancelled(clickhouse: str) -> None:
    """They insert once more, whether it went well or not; also what has no key of its own."""
    own: ContextVar[trio.CancelScope] = ContextVar("own")
    ended: list[bool] = []
    async with opened(clickhouse) as (store, between):

        async def cancel_writer(request: Request) -> None:
            if "INSERT+INTO+batches" in request.url and not ended:
                own.get().cancel()
                await trio.sleep_forever()

        async def append(number: int) -> None:
            with trio.CancelScope() as scope:
                own.set(scope)
                await store.append(batch(number))
            ended.append(scope.cancelled_caught)

        between.after = cancel_writer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, 0)
            nursery.start_soon(append, 1)

        assert ended == [True, False]
        assert sorted(await numbers(store)) == [0, 1]


async def test_posts_at_the_same_time_are_inserted_together(clickhouse: str) -> None:
    """A hundred of them are two inserts, or three."""
    async with opened(clickhouse) as (store, between):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(store.append, batch(number, session_id=str(number % 7)))

        assert sum("INSERT+INTO+batches" in url for url in between.urls) <= 2
        assert len((await store.sessions()).sessions) == 7


async def test_what_was_inserted_outlives_a_kill(tmp_path: Path) -> None:
    """ClickHouse's own promise, which ours is made of."""
    for kind in CLICKHOUSES:
        directory = tmp_path / kind
        directory.mkdir()
        http, tcp = free_ports(2)
        url = f"clickhouse+http://127.0.0.1:{http}/kept"
        with started_engine(kind, directory, http=http, tcp=tcp) as process:
            async with open_clickhouse(url, gap=0, timeout=PATIENCE) as store:
                await store.append(batch(0, 1), "k")
                process.kill()
                process.wait(PATIENCE)
                with pytest.raises(StoreUnavailable, match="no ClickHouse answers"):
                    await store.append(batch(2), "l")
                with pytest.raises(StoreUnavailable):
                    await store.check()
        with started_engine(kind, directory, http=http, tcp=tcp):
            async with open_clickhouse(url, gap=0, timeout=PATIENCE) as store:
                assert (await store.append(batch(0, 1), "k")).duplicate
                assert await numbers(store) == [0, 1]


EVENTS = [
    {"type": "session_start", "timestamp": 1_700_000_000_000, "model_id": "m", "agent": "a"},
    {"type": "generation", "timestamp": 2, "model_id": "m", "cost": 0.5, "duration_ms": 9,
     "tokens": {"input": 1, "output": 2, "reasoning": 3, "cache_read": 4, "cache_write": 5}},
    {"type": "tool_call", "timestamp": 3, "tool_name": "bash", "status": "error"},
    {"type": "tool_call", "timestamp": 3, "tool_name": "bash", "duration_ms": 1.5},
    {"type": "bridge_call", "timestamp": 4, "method": "sql.execute"},
    {"type": "command", "timestamp": 5, "command_name": "init"},
    {"type": "error", "timestamp": 6, "error_name": "ValueError"},
    {"type": "upload", "timestamp": 253_402_300_799_999, "duration_ms": "long"},
]  # fmt: skip


class Total(msgspec.Struct):
    """What events come to."""

    type: str
    subject: str
    number: int
    failures: int
    tokens: list[int]
    cost: float
    duration_ms: float


async def test_events_can_be_added_up_over_all_sessions(clickhouse: str) -> None:
    """In SQL, by type and by what they are about."""
    async with open_clickhouse(clickhouse, gap=0, timeout=PATIENCE) as store:
        for session_id in "ab":
            body = {"session_id": session_id, "timestamp": 1, "project_id": "p", "events": EVENTS}
            await store.append(parse(json.dumps(body).encode()), "k")
    async with asking(clickhouse) as asked:
        rows = await asked.rows(
            Total,
            "SELECT type, subject, count() AS number, sum(failed) AS failures, [sum(input),"
            " sum(output), sum(reasoning), sum(cache_read), sum(cache_write)] AS tokens,"
            " sum(cost) AS cost, sum(duration_ms) AS duration_ms FROM events"
            " WHERE project = 'p' GROUP BY type, subject ORDER BY type, subject",
        )
        days = await asked.rows(
            Count, "SELECT count() AS total FROM events WHERE day = '2023-11-14'"
        )

    none = [0] * 5
    assert rows == [
        Total("bridge_call", "sql.execute", 2, 0, none, 0, 0),
        Total("command", "init", 2, 0, none, 0, 0),
        Total("error", "ValueError", 2, 2, none, 0, 0),
        Total("generation", "m", 2, 0, [2, 4, 6, 8, 10], 1.0, 18),
        Total("session_start", "m", 2, 0, none, 0, 0),
        Total("tool_call", "bash", 4, 2, none, 0, 3),
        Total("upload", "", 2, 0, none, 0, 0),
    ]
    assert days == [Count(2)]


async def test_the_query_on_the_page_runs(clickhouse: str) -> None:
    """And so does what forgets a month."""
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    [query] = re.findall(r"```text\n(SELECT .*?)\n```", page, re.DOTALL)
    [forget] = re.findall(r"`(ALTER TABLE [^`]*)`", page)
    async with open_clickhouse(clickhouse, gap=0, timeout=PATIENCE) as store:
        now = int(time.time() * 1000)
        events = [{"type": "tool_call", "timestamp": now, "tool_name": "bash", "duration_ms": 9}]
        body = {"session_id": "s", "timestamp": 1, "events": events}
        await store.append(parse(json.dumps(body).encode()))
    async with asking(clickhouse) as asked:
        [row] = await asked.rows(dict[str, Any], query)
        assert list(row.values()) == ["bash", 1, 0, 9]
        await asked.command(forget)
        assert await count(clickhouse, "batches") == 1


async def test_a_receiver_shows_what_another_one_took(
    nursery: trio.Nursery, clickhouse: str
) -> None:
    """Over HTTP, as JSON and as pages."""
    one, two = [
        await nursery.start(partial(run_receiver, port=0, database=clickhouse, grace=0.2))
        for _ in range(2)
    ]
    assert one.database is None
    assert one.where == clickhouse.removeprefix("clickhouse+")
    body = {"session_id": "s", "timestamp": 1, "events": EVENTS}
    headers = {"idempotency-key": "k", "content-type": "application/json"}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        for receiver, replayed in ((one, None), (two, "true")):
            answer = await client.post(
                f"{receiver.url}/api/observability/ingest", json=body, headers=headers
            )
            assert answer.json() == {"accepted": 8}
            assert answer.headers.get("idempotent-replayed") == replayed
        assert (await client.get(f"{two.url}/healthz")).status_code == 200
        told = (await client.get(f"{two.url}/api/sessions/s")).json()
        assert told["event_count"] == 8
        listed = (await client.get(f"{one.url}/api/sessions")).json()["sessions"]
        assert listed == [told]
        events = (await client.get(f"{two.url}/api/sessions/s/events")).json()["events"]
        assert [event["type"] for event in events] == [event["type"] for event in EVENTS]
        for path in ("/", "/sessions/s"):
            page = await client.get(two.url + path)
            assert (page.status_code, "sql.execute" in page.text) == (200, path != "/")


async def test_the_command_keeps_events_there(
    nursery: trio.Nursery, clickhouse: str, tmp_path: Path
) -> None:
    """``trimaran serve --store``, and one line where it cannot be used."""
    command = Command(nursery, tmp_path)
    running = await command.start("serve", "--port", 0, "--store", clickhouse)
    await running.says("Ctrl-C ends")
    where = clickhouse.removeprefix("clickhouse+")
    assert f", into {where} (Ctrl-C ends)" in running.out
    url = running.out.split("Receiving on ", 1)[1].split(",", 1)[0]
    async with trimaran.open_telemetry("x", environ={"X_TELEMETRY_URL": url}) as telemetry:
        async with telemetry.session(session_id="s") as session:
            session.command("init")
    ended = await running.ends(signal.SIGTERM)
    assert (ended.status, ended.err) == (0, "")
    async with open_store(clickhouse) as store:
        assert (await found(store)).summary.event_count == session.statistics().delivered == 3

    wrong = clickhouse.replace("http://", f"http://{USER}:wrong@")
    ended = await command("serve", "--port", 0, "--store", wrong)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        f"trimaran: {where}: ClickHouse does not let '{USER}' in: wrong user or password; "
        "correct --store, or see to the server\n"
    )


async def test_a_user_may_have_a_password(clickhouse: str) -> None:
    """With any characters in it; it is in no message."""
    where = clickhouse.removeprefix("clickhouse+http://")
    right = f"clickhouse+http://{USER}:{quote(PASSWORD, safe='')}@{where}"
    async with open_store(right) as store:
        await store.append(batch(0))
        assert PASSWORD not in repr(store) + store.where + repr(address_of(right))
        assert USER not in store.where
    with pytest.raises(StoreError, match=f"does not let '{USER}' in") as caught:
        async with open_store(f"clickhouse+http://{USER}:wrong@{where}"):
            pass
    assert "wrong user or password" in str(caught.value)
    assert "wrong@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("clickhouse+http://127.0.0.1:8123", "names no database"),
        ("clickhouse+http://127.0.0.1:8123/a.b", "names no database"),
        ("clickhouse+http:///telemetry", "no URL of a ClickHouse"),
        ("clickhouse+http://h:port/telemetry", "no URL of a ClickHouse"),
        ("clickhouse+ftp://h/telemetry", "no URL of a ClickHouse"),
        ("clickhouse+http://[h/telemetry", "no URL of a ClickHouse"),
        ("clickhouse+http://h/telemetry?password=secret", "no URL of a ClickHouse"),
    ],
)
async def test_a_url_that_cannot_be_used_is_told(url: str, message: str) -> None:
    """With one that can be, and without what may be a secret in it."""
    assert is_clickhouse(url)
    with pytest.raises(StoreError, match=message) as caught:
        async with open_store(url):
            pass
    assert "clickhouse+http://127.0.0.1:8123/telemetry" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "server", "user"),
    [
        ("clickhouse+http://h/d", "http://h:8123", "default"),
        ("clickhouse+https://h/d", "https://h:8443", "default"),
        ("clickhouse+https://u@h:1/d/", "https://h:1", "u"),
        ("clickhouse+http://a%40b:p@[::1]/d", "http://[::1]:8123", "a@b"),
    ],
)
def test_what_a_url_leaves_out_is_as_usual(url: str, server: str, user: str) -> None:
    """The ports of ClickHouse, and its user who needs no password."""
    address = address_of(url)

    assert (address.url, address.database, address.user) == (server, "d", user)


def test_no_value_gets_out_of_its_quotes() -> None:
    """Whatever is not plain is a number."""
    assert literal("a-B_c.1") == "'a-B_c.1'"
    assert literal("it's\\\0é") == "'it\\x27s\\x5c\\x00\\xc3\\xa9'"


async def test_nobody_there_is_told() -> None:
    """With where it was looked for."""
    [port] = free_ports(1)
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}/t: no ClickHouse answers"):
        async with open_store(f"clickhouse+http://u:secret@127.0.0.1:{port}/t"):
            pass


async def test_a_proxy_variable_that_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is asked."""
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy")
    with pytest.raises(StoreError, match=r"test:8123/t: a proxy variable cannot be used"):
        async with open_store("clickhouse+http://clickhouse.test/t"):
            pass


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "not the answer of a ClickHouse"),
        (200, b"\xff", "not the answer of a ClickHouse"),
        (404, b"<html>", "answered 404, and not as a ClickHouse does"),
        (403, b"", "does not let 'u' in"),
        (
            500,
            b"Code: 241. DB::Exception: Memory limit. (MEMORY)",
            "refused, code 241: Memory limit",
        ),
        (
            500,
            b"Code: 60, e.displayText() = DB::Exception: No table, e.what() = DB",
            "60: No table$",
        ),
    ],
)
async def test_an_answer_that_is_none_is_told(
    endpoint: LoopbackEndpoint, status: int, body: bytes, message: str
) -> None:
    """In words, and without the password."""
    endpoint.always(status, body=body)
    with pytest.raises(StoreUnavailable, match=message) as caught:
        async with open_store(f"clickhouse+{endpoint.url.replace('//', '//u:secret@')}/t"):
            pass
    assert "secret" not in str(caught.value)


async def test_an_insert_that_is_refused_quotes_no_event(clickhouse: str) -> None:
    """ClickHouse does, where it cannot read one."""
    async with asking(clickhouse) as asked, open_clickhouse(clickhouse, gap=0, timeout=PATIENCE):
        with pytest.raises(StoreUnavailable, match=r"refused, code \d+$"):
            await asked.insert("batches", [{"number": "private"}])


class Silent(Transport):
    """Never answers."""

    async def attempt(self, request: Request) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.sleep_forever()


async def test_silence_ends_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    """So does closing."""
    with pytest.raises(StoreUnavailable, match="did not answer within 8 s"):
        async with open_clickhouse("clickhouse+http://h/t", transport=Silent()):
            pass

    assert TIMEOUT < trio.current_time() < TIMEOUT + 1


async def test_a_later_version_is_refused(clickhouse: str) -> None:
    """A later Trimaran knows what to do with it."""
    async with open_clickhouse(clickhouse, gap=0, timeout=PATIENCE):
        pass
    async with asking(clickhouse) as asked:
        await asked.insert("trimaran", [{"version": len(VERSIONS) + 1}])
    with pytest.raises(StoreError, match=r"a later version of Trimaran \(its tables are 2"):
        async with open_clickhouse(clickhouse):
            pass


async def test_tables_of_another_program_are_refused(clickhouse: str) -> None:
    """Where they have the names of ours; others do no harm."""
    async with open_clickhouse(clickhouse, gap=0, timeout=PATIENCE), asking(clickhouse) as asked:
        await asked.command("DROP TABLE trimaran")
        await asked.command("CREATE TABLE theirs (a String) ENGINE = Memory")
    with pytest.raises(StoreError, match="has a table 'arrivals' of another program"):
        async with open_clickhouse(clickhouse):
            pass
    async with asking(clickhouse) as asked:
        for table in ("arrivals", "batches", "children", "events"):
            await asked.command(f"DROP TABLE {table}")
    async with open_clickhouse(clickhouse, gap=0, timeout=PATIENCE) as store:
        await store.append(batch(0))
