"""What the receiver answers, over a real connection."""

import gzip
import json
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import zstandard
from starlette.routing import Route

from patience import PATIENCE
from trimaran.receiver import Receiver, create_app, open_store, run_receiver
from trimaran.receiver.limits import READ_TIMEOUT
from trimaran.receiver.server import serve
from trimaran.receiver.sqlite import open_sqlite

INGEST = "/api/observability/ingest"
JSON = {"content-type": "application/json"}


def event(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "n", "timestamp": 1000, "session_id": "s", "n": number, **fields}


def body(*events: Any, session_id: str = "s", **envelope: Any) -> bytes:
    return json.dumps(
        {"session_id": session_id, "timestamp": 1000, "events": events, **envelope}
    ).encode()


@asynccontextmanager
async def client_of(receiver: Receiver, **options: Any) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE, **options
    ) as client:
        yield client


@pytest.fixture
async def client(receiver: Receiver) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(receiver) as client:
        yield client


@pytest.fixture
async def guarded(nursery: trio.Nursery, tmp_path: Path) -> Receiver:
    """A receiver that lets two tokens in, and bodies of 1,000 bytes."""
    receiver: Receiver = await nursery.start(
        partial(
            run_receiver,
            port=0,
            database=tmp_path / "guarded.sqlite",
            tokens=frozenset({"one", "two"}),
            max_body=1000,
            grace=0.2,
        )
    )
    return receiver


async def test_a_batch_is_taken_and_given_back(client: httpx.AsyncClient) -> None:
    """The events come back as they were sent, in order."""
    sent = [event(number, extra={"é": [number]}) for number in range(3)]

    answer = await client.post(INGEST, content=body(*sent), headers=JSON)

    assert (answer.status_code, answer.json()) == (200, {"accepted": 3})
    events = await client.get("/api/sessions/s/events")
    assert events.json() == {"events": sent, "next": None}


async def test_bad_events_are_told_with_their_reason(client: httpx.AsyncClient) -> None:
    """207: the good ones are stored, the others named."""
    answer = await client.post(
        INGEST, content=body(event(0), {"type": "n"}, event(1)), headers=JSON
    )

    assert answer.status_code == 207
    assert answer.json() == {
        "accepted": 2,
        "rejected": [{"index": 1, "reason": "Object missing required field `timestamp`"}],
    }
    events = (await client.get("/api/sessions/s/events")).json()["events"]
    assert [one["n"] for one in events] == [0, 1]


@pytest.mark.parametrize("bad", [False, True])
async def test_a_repeated_batch_is_stored_once(client: httpx.AsyncClient, bad: bool) -> None:
    """Its key tells; the answer is that of the first time, and says that it is."""
    content = body(event(0), *([{}] if bad else []))
    headers = {**JSON, "idempotency-key": "k1"}

    first = await client.post(INGEST, content=content, headers=headers)
    again = await client.post(INGEST, content=content, headers=headers)

    assert again.status_code == first.status_code == (207 if bad else 200)
    assert again.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (await client.get("/api/sessions/s")).json()["event_count"] == 1


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_key_has_a_length(client: httpx.AsyncClient, key: str) -> None:
    """One that is empty was meant to be something else."""
    headers = {**JSON, "idempotency-key": key}

    answer = await client.post(INGEST, content=body(event()), headers=headers)

    assert answer.status_code == 400
    assert answer.json() == {"error": "An Idempotency-Key has 1 to 256 characters"}


async def test_a_bad_body_says_what_and_where(client: httpx.AsyncClient) -> None:
    """400, in JSON; where, if it is in one place."""
    broken = await client.post(INGEST, content=b'{"events": [}', headers=JSON)
    wrong = await client.post(INGEST, content=body(timestamp="now"), headers=JSON)
    deep = await client.post(
        INGEST, content=body(project_id="@").replace(b'"@"', b"[" * 50_000), headers=JSON
    )

    assert [answer.status_code for answer in (broken, wrong, deep)] == [400, 400, 400]
    assert broken.json() == {"error": "JSON is malformed: invalid character", "at": "byte 12"}
    assert wrong.json() == {"error": "Expected `int`, got `str`", "at": "$.timestamp"}
    assert set(deep.json()) <= {"error", "at"}


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress)],
)
async def test_compressed_bodies_are_taken(
    client: httpx.AsyncClient, encoding: str, compress: Any
) -> None:
    """Gzip and zstd; and what is not whole is a bad body."""
    headers = {**JSON, "content-encoding": encoding}

    good = await client.post(INGEST, content=compress(body(event())), headers=headers)
    bad = await client.post(INGEST, content=body(event()), headers=headers)

    assert good.json() == {"accepted": 1}
    assert (bad.status_code, bad.json()) == (
        400,
        {"error": f"The body is not whole, valid {encoding}, or has over 64 parts"},
    )


async def test_other_encodings_are_named(client: httpx.AsyncClient) -> None:
    """415, with what would be taken."""
    headers = {**JSON, "content-encoding": "br"}

    answer = await client.post(INGEST, content=body(event()), headers=headers)

    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, zstd"
    assert "'br'" in answer.json()["error"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_types_are_refused(client: httpx.AsyncClient, media_type: str) -> None:
    """415: these a page of the web could post without asking."""
    answer = await client.post(INGEST, content=body(event()), headers={"content-type": media_type})

    assert answer.status_code == 415
    assert answer.json() == {"error": "The Content-Type must be application/json"}


async def test_a_type_may_have_parameters(client: httpx.AsyncClient) -> None:
    """Some clients tell the charset, which JSON does not have."""
    headers = {"content-type": "Application/JSON; charset=utf-8"}

    assert (await client.post(INGEST, content=body(event()), headers=headers)).is_success


async def chunks(content: bytes, size: int = 100) -> AsyncGenerator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def test_a_body_may_come_in_chunks(client: httpx.AsyncClient) -> None:
    """Without a length, as some exporters send it."""
    content = body(*(event(number) for number in range(50)))

    answer = await client.post(INGEST, content=chunks(content), headers=JSON)

    assert answer.json() == {"accepted": 50}


TOKEN = {"authorization": "Bearer one"}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1001, 100_000])
async def test_a_body_too_large_is_refused(guarded: Receiver, size: int, chunked: bool) -> None:
    """413 by its length and without one, and the connection goes on."""
    async with client_of(guarded, headers=JSON | TOKEN) as client:
        content = body(event(pad="x" * size))

        answer = await client.post(INGEST, content=chunks(content) if chunked else content)

        assert answer.status_code == 413
        assert answer.json() == {"error": "The body is larger than 1000 bytes"}
        assert (await client.post(INGEST, content=body(event()))).is_success


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("zstd", zstandard.ZstdCompressor().compress)],
)
async def test_a_body_that_grows_too_large_is_refused(
    guarded: Receiver, encoding: str, compress: Any
) -> None:
    """413 also when it shows only after decompression."""
    async with client_of(guarded, headers=JSON | TOKEN) as client:
        content = compress(body(event(pad="x" * 50_000)))
        assert len(content) < 1000

        answer = await client.post(INGEST, content=content, headers={"content-encoding": encoding})

    assert answer.status_code == 413


async def test_an_endless_body_is_broken_off(guarded: Receiver) -> None:
    """What is too large is read and thrown away up to a bound, then refused as it is."""
    url = httpx.URL(guarded.url)
    stream = await trio.open_tcp_stream(url.host, url.port or 0)
    head = f"POST {INGEST} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {10**12}\r\n\r\n"
    async with stream:
        await stream.send_all(head.encode())

        assert 10 * 2**20 < await written_until_it_breaks(stream) < 100 * 2**20


async def written_until_it_breaks(stream: trio.SocketStream) -> int:
    written = 0
    while True:
        try:
            await stream.send_all(bytes(1 << 16))
        except trio.BrokenResourceError:
            return written
        written += 1 << 16


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer three"}, {"authorization": "Basic eDpvbmU="}],
    ids=["none", "unknown", "basic"],
)
async def test_a_post_needs_a_token_where_there_are_some(
    guarded: Receiver, headers: dict[str, str]
) -> None:
    """401 with a challenge, and nothing is stored."""
    async with client_of(guarded, headers=JSON) as client:
        answer = await client.post(INGEST, content=body(event()), headers=headers)

        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="trimaran"'
        assert "one" not in answer.text
        assert (await client.get("/api/sessions", headers=TOKEN)).json()["sessions"] == []


@pytest.mark.parametrize("token", ["one", "two"])
async def test_every_token_of_the_file_is_let_in(guarded: Receiver, token: str) -> None:
    """So that one can be taken out while others go on."""
    headers = {**JSON, "authorization": f"Bearer {token}"}
    async with client_of(guarded, headers=headers) as client:
        assert (await client.post(INGEST, content=body(event()))).is_success


async def test_nothing_is_read_without_a_token(guarded: Receiver, tmp_path: Path) -> None:
    """Every address but the health of the receiver asks for one, and takes it."""
    async with open_store(tmp_path / "other.sqlite") as store:
        app = create_app(store)
    paths = [
        route.path.replace("{id:path}", "s")
        for route in app.routes
        if isinstance(route, Route) and "GET" in (route.methods or ())
    ]
    assert len(paths) == 7
    async with client_of(guarded) as client:
        await client.post(INGEST, content=body(event()), headers=JSON | TOKEN)
        for path in paths:
            without = await client.get(path)
            bearer = await client.get(path, headers=TOKEN)
            browser = await client.get(path, auth=("anybody", "two"))

            assert without.status_code == (200 if path == "/healthz" else 401), path
            assert bearer.status_code == browser.status_code == 200, path
            if path in {"/", "/sessions/s"}:
                assert without.headers["www-authenticate"].startswith("Basic ")


async def test_only_names_of_this_machine_are_answered(receiver: Receiver) -> None:
    """421 for a name that somebody pointed here, so that no site can read along."""
    async with client_of(receiver) as client:
        headers = {"host": "evil.example"}

        assert (await client.get("/api/sessions", headers=headers)).status_code == 421
        answer = await client.post(INGEST, content=body(event()), headers=JSON | headers)
        assert answer.status_code == 421
        assert (await client.get("/api/sessions")).json()["sessions"] == []


async def test_wrong_methods_and_addresses_are_told(client: httpx.AsyncClient) -> None:
    """405 with what is allowed, 404, and no redirects."""
    get = await client.get(INGEST)
    put = await client.put("/api/sessions")

    assert (get.status_code, get.headers["allow"]) == (405, "POST")
    assert put.status_code == 405
    assert get.json() == {"error": "Method Not Allowed"}
    assert (await client.get("/api/nothing")).json() == {"error": "Not Found"}
    assert (await client.post(f"{INGEST}/", content=body(), headers=JSON)).status_code == 404
    assert (await client.get("/api/sessions/none")).status_code == 404
    assert (await client.get("/api/sessions/none/events")).json() == {
        "error": "There is no session of this id"
    }
    assert (await client.head("/api/sessions")).content == b""


async def test_a_session_is_summed_up(client: httpx.AsyncClient) -> None:
    """Everything that one wants to know of it, counted from its events."""
    await client.post(
        INGEST,
        content=body(
            {
                "type": "session_start",
                "timestamp": 1000,
                "agent": "build",
                "model_id": "m",
                "provider_id": "v",
            },
            {
                "type": "generation",
                "timestamp": 2000,
                "tokens": {"input": 5, "cache_read": 7},
                "cost": 0.5,
            },
            {"type": "tool_call", "timestamp": 2500, "tool_name": "x", "status": "error"},
            {"type": "session_end", "timestamp": 4000, "duration_ms": 2999.5},
            project_id="p",
            cli_version="0.5.7",
            user_email="kim@example.com",
        ),
        headers=JSON,
    )
    expected: dict[str, Any] = {
        "id": "s",
        "parent_session_id": None,
        "children": [],
        "project": "p",
        "agent": "build",
        "model": "m",
        "provider": "v",
        "version": "0.5.7",
        "user": "kim@example.com",
        "start": 1000,
        "end": 4000,
        "duration_ms": 2999.5,
        "event_count": 4,
        "events_by_type": {
            "session_start": 1,
            "generation": 1,
            "tool_call": 1,
            "session_end": 1,
        },
        "tokens": {
            "input": 5,
            "output": 0,
            "reasoning": 0,
            "cache_read": 7,
            "cache_write": 0,
            "total": 12,
        },
        "cost": 0.5,
        "errors": 1,
    }

    assert (await client.get("/api/sessions")).json() == {"sessions": [expected], "next": None}
    assert (await client.get("/api/sessions/s")).json() == expected


async def test_sessions_and_events_come_by_pages(client: httpx.AsyncClient) -> None:
    """`next` is what `after` takes, until there is none."""
    for name in "abc":
        content = body(*(event(n, session_id=name) for n in range(3)), session_id=name)
        await client.post(INGEST, content=content, headers=JSON)

    async def walk(path: str, key: str) -> list[list[Any]]:
        pages: list[list[Any]] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = (await client.get(path, params=query)).json()
            pages.append(page[key])
            if page["next"] is None:
                return pages
            query["after"] = page["next"]

    sessions = await walk("/api/sessions", "sessions")
    assert [[one["id"] for one in page] for page in sessions] == [["c", "b"], ["a"]]
    events = await walk("/api/sessions/b/events", "events")
    assert [[one["n"] for one in page] for page in events] == [[0, 1], [2]]


@pytest.mark.parametrize("path", ["/api/sessions", "/api/sessions/s/events"])
async def test_odd_numbers_in_a_query_do_no_harm(client: httpx.AsyncClient, path: str) -> None:
    """What is a number is brought into its limits, what is none is told."""
    await client.post(INGEST, content=body(event()), headers=JSON)
    for query in ("limit=0", "limit=-1", "limit=9" + "9" * 50, "after=-1", "after=9" + "9" * 50):
        assert (await client.get(f"{path}?{query}")).status_code == 200, query
    for query in ("limit=x", "after=", "limit=1.5", "after=" + "9" * 5000):
        answer = await client.get(f"{path}?{query}")
        assert answer.status_code == 400, query
        assert answer.json()["error"].endswith("must be a whole number")


@pytest.mark.parametrize(
    "session_id", ["a/b", "a?b=c#d", "ü 日本", "%2F", "a/events/b", "a/events", "'\"<"]
)
async def test_any_session_id_has_an_address(client: httpx.AsyncClient, session_id: str) -> None:
    """Whatever characters its sender took."""
    content = body(event(session_id=session_id), session_id=session_id)
    await client.post(INGEST, content=content, headers=JSON)
    name = httpx.URL("/x", params={"q": session_id}).query.decode()[2:].replace("+", "%20")

    assert (await client.get(f"/api/sessions/{name}")).json()["id"] == session_id
    assert len((await client.get(f"/api/sessions/{name}/events")).json()["events"]) == 1
    assert (await client.get(f"/sessions/{name}")).status_code == 200


async def test_a_locked_store_is_a_503_that_passes(tmp_path: Path) -> None:
    """With the time to wait; a post that comes again after it is stored once."""
    async with open_sqlite(tmp_path / "s.sqlite", busy_timeout=0.01) as store:
        transport = httpx.ASGITransport(create_app(store))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {**JSON, "idempotency-key": "k"}
            with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                put_off = await client.post(INGEST, content=body(event()), headers=headers)
                other.execute("ROLLBACK")
            stored = await client.post(INGEST, content=body(event()), headers=headers)

            assert put_off.status_code == 503
            assert put_off.headers["retry-after"] == "5"
            assert "database is locked" in put_off.json()["error"]
            assert stored.json() == {"accepted": 1}
            assert "idempotent-replayed" not in stored.headers


async def test_health_is_that_of_the_store(receiver: Receiver) -> None:
    """200 while it can be read, 503 when it cannot."""
    async with client_of(receiver) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        Path(receiver.where).unlink()

        answer = await client.get("/healthz")
        assert answer.status_code == 503
        assert "unable to open database file" in answer.json()["error"]
        page = await client.get("/")
        assert page.status_code == 503
        assert page.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_bug_is_a_500_that_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sender learns that it may try again; the log has the rest."""

    def broken_clock() -> float:
        raise ZeroDivisionError("secret")

    async with (
        open_store(tmp_path / "s.sqlite", clock=broken_clock) as store,
        trio.open_nursery() as nursery,
    ):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(partial(serve, create_app(store), listeners, grace=1))
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client:
            answer = await client.post(INGEST, content=body(event()), headers=JSON)
        nursery.cancel_scope.cancel()

    assert "ZeroDivisionError: secret" in caplog.text
    assert {record.name for record in caplog.records} == {"trimaran.receiver.server"}
    assert answer.status_code == 500
    assert answer.json() == {"error": "The receiver has a bug; its log says more"}


async def test_many_posts_at_once_are_all_stored(client: httpx.AsyncClient) -> None:
    """Forty sessions, three batches each: all there, each in order."""

    async def session(name: str) -> None:
        for start in range(0, 9, 3):
            content = body(
                *(event(n, session_id=name) for n in range(start, start + 3)), session_id=name
            )
            assert (await client.post(INGEST, content=content, headers=JSON)).is_success

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(session, str(number))

    listed = (await client.get("/api/sessions?limit=1000")).json()["sessions"]
    assert len(listed) == 40
    for one in listed:
        events = (await client.get(f"/api/sessions/{one['id']}/events")).json()["events"]
        assert [each["n"] for each in events] == list(range(9))


POST_SCOPE = {
    "type": "http",
    "method": "POST",
    "path": INGEST,
    "raw_path": INGEST.encode(),
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
}


async def test_a_client_that_goes_away_is_nobodys_loss(tmp_path: Path) -> None:
    """Half a body is no batch; nor is it an error that the server would have to log."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async with open_store(tmp_path / "s.sqlite") as store:
        await create_app(store)(POST_SCOPE, receive, send)

        assert (await store.sessions()).sessions == ()
    assert sent[0]["status"] == 400


async def test_a_body_has_a_deadline(tmp_path: Path, autojump_clock: Any) -> None:
    """408 when it is not there in time, however it trickles."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await trio.sleep(1)  # s, a byte each: READ_TIMEOUT bytes before the deadline
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async with open_store(tmp_path / "s.sqlite") as store:
        began = trio.current_time()
        await create_app(store)(POST_SCOPE, receive, send)

    assert sent[0]["status"] == 408
    assert trio.current_time() - began == pytest.approx(READ_TIMEOUT)
    assert msgspec.json.decode(sent[1]["body"]) == {"error": "The body was not there after 30 s"}
