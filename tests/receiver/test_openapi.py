"""The receiver's own description says what it takes, all of it, and nothing else."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from openapi_spec_validator import validate
from starlette.routing import Route

from patience import PATIENCE
from trimaran._events import BUILT_IN_EVENTS
from trimaran.receiver import Receiver, create_app, open_store, run_receiver
from trimaran.receiver.ingest import BadBody, TooManyEvents, parse
from trimaran.receiver.limits import MAX_BODY, MAX_EVENTS
from trimaran.receiver.openapi import describe
from trimaran.receiver.wire import LAST_TIMESTAMP, MAX_NUMBER


def description(**options: Any) -> dict[str, Any]:
    """The document as another program reads it."""
    built: Any = describe(**{"max_body": MAX_BODY, "tokens": False} | options)
    document: dict[str, Any] = json.loads(msgspec.json.encode(built))
    return document


@pytest.mark.parametrize("tokens", [False, True])
def test_it_is_valid_openapi(tokens: bool) -> None:
    """Of version 3.1, with every reference pointing at something."""
    document = description(tokens=tokens)

    validate(document)

    assert document["openapi"].startswith("3.1.")


async def test_it_names_every_route(tmp_path: Path) -> None:
    """Each path with its method, and none that is not there."""
    async with open_store(tmp_path / "s.sqlite") as store:
        app = create_app(store)
    routes = {
        (route.path.replace("{id:path}", "{id}"), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }

    described = {
        (path, method) for path, methods in description()["paths"].items() for method in methods
    }

    assert described == routes
    assert len(described) == 8


async def test_a_receiver_gives_its_own(receiver: Receiver) -> None:
    """As JSON, with the limits that it was started with."""
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        answer = await client.get("/openapi.json")

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == description()


def test_tokens_are_asked_for_where_there_are_some() -> None:
    """A post takes them as Bearer only; health is told to everybody."""
    document = description(tokens=True)
    paths = document["paths"]

    assert document["security"] == [{"token": []}, {"password": []}]
    assert paths["/api/observability/ingest"]["post"]["security"] == [{"token": []}]
    assert paths["/healthz"]["get"]["security"] == []
    assert [path for path, methods in paths.items() if "security" in methods.get("get", {})] == [
        "/healthz"
    ]
    assert description(tokens=False)["security"] == []


def test_the_limit_of_a_body_is_told() -> None:
    """In bytes, beside the encodings that are taken."""
    post = description(max_body=1234)["paths"]["/api/observability/ingest"]["post"]

    assert "At most 1234 bytes" in post["requestBody"]["description"]
    assert "gzip, zstd" in post["requestBody"]["description"]


def test_the_example_is_taken_as_it_stands() -> None:
    """All of its events are good, and it meets the schema."""
    post = description()["paths"]["/api/observability/ingest"]["post"]
    sent = post["requestBody"]["content"]["application/json"]["example"]

    batch = parse(json.dumps(sent).encode())

    assert batch.rejected == ()
    assert len(batch.events) == 2
    assert is_valid(sent)


SCHEMA = description()
VALIDATOR = jsonschema_rs.Draft202012Validator({**SCHEMA, "$ref": "#/components/schemas/Batch"})


def is_valid(sent: object) -> bool:
    return VALIDATOR.is_valid(sent)


def is_taken(sent: object) -> bool:
    try:
        return parse(json.dumps(sent).encode()).rejected == ()
    except (BadBody, TooManyEvents):
        return False


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, MAX_NUMBER, MAX_NUMBER + 1, -MAX_NUMBER, -MAX_NUMBER - 1]),
    st.sampled_from([LAST_TIMESTAMP, LAST_TIMESTAMP + 1, 1e300, 0.5, -0.5]),
    # To JSON Schema 1.0 is an integer, to the receiver it is not. The document says so.
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: number % 1),
    st.text(max_size=3),
    st.sampled_from(["success", "error", "mcp", "standard", "command", "overflow_detection"]),
    st.just([]),
    st.dictionaries(
        st.sampled_from(["input", "output", "more"]), st.integers() | st.integers(0, 9), max_size=2
    ),
)
timestamps = st.integers(0, LAST_TIMESTAMP)


def events_of(type_: str) -> st.SearchStrategy[dict[str, Any]]:
    """Events of a type of the wire that are all there, with some fields of any value."""
    kind = BUILT_IN_EVENTS[type_]
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    whole: dict[str, st.SearchStrategy[Any]] = {"type": st.just(type_), "timestamp": timestamps}
    whole |= dict.fromkeys(required, st.just("error_recovery"))  # a trigger, and a text
    names = sorted({*kind.__struct_fields__, "type", "more"} - {"session_id"})
    return st.builds(
        dict[str, Any].__or__,
        st.fixed_dictionaries(whole),
        st.dictionaries(st.sampled_from(names), values, max_size=2),
    )


def test_so_many_events_are_taken_as_the_schema_says() -> None:
    """The number itself, and not one more."""
    for count in (MAX_EVENTS, MAX_EVENTS + 1):
        sent = {
            "session_id": "s",
            "timestamp": 0,
            "events": [{"type": "n", "timestamp": 0}] * count,
        }

        assert is_taken(sent) == is_valid(sent) == (count == MAX_EVENTS)


@given(st.sampled_from(sorted(BUILT_IN_EVENTS)).flatmap(events_of))
@example({"type": "x" * 128, "timestamp": 0})
@example({"type": "x" * 129, "timestamp": 0})
@example({"type": "", "timestamp": 0})
@example({"type": "ping", "timestamp": -1})
@example({"type": "ping"})
@example({"type": "ping", "timestamp": 0, "session_id": None})
@example({"timestamp": 0})
def test_an_event_is_taken_where_the_schema_says_so(event: dict[str, Any]) -> None:
    """And rejected where it does not."""
    sent = {"session_id": "s", "timestamp": 0, "events": [event]}

    assert is_taken(sent) == is_valid(sent)


@given(
    st.fixed_dictionaries(
        {"session_id": st.text(min_size=1, max_size=3), "timestamp": timestamps},
        optional={"events": st.just([]), "more": values},
    ),
    st.dictionaries(
        st.sampled_from(["session_id", "timestamp", "events", "cli_version", "project_id"]),
        values,
        max_size=1,
    ),
)
@example({"session_id": "x" * 256, "timestamp": 0, "events": []}, {})
@example({"session_id": "x" * 257, "timestamp": 0, "events": []}, {})
@example({"session_id": "x\n", "timestamp": 0, "events": []}, {})
@example({"session_id": "\x85\u2028", "timestamp": 0, "events": []}, {})
def test_a_batch_is_taken_where_the_schema_says_so(
    envelope: dict[str, Any], odd: dict[str, Any]
) -> None:
    """And refused where it does not."""
    sent = {**envelope, **odd}

    assert is_taken(sent) == is_valid(sent)


INGEST = "/api/observability/ingest"
BATCH = b'{"session_id":"s","timestamp":1,"events":[{"type":"n","timestamp":1}]}'


def post(content: bytes = BATCH, **headers: str) -> dict[str, Any]:
    usual = {"content-type": "application/json", "authorization": "Bearer t"}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"method": "POST", "url": INGEST, "content": content, "headers": usual | more}


def get(url: str, **headers: str) -> dict[str, Any]:
    return {"method": "GET", "url": url, "headers": {"authorization": "Bearer t"} | headers}


@pytest.mark.parametrize(
    ("status", "path", "asked"),
    [
        (200, INGEST, post()),
        (200, INGEST, post(idempotency_key="known")),
        (207, INGEST, post(b'{"session_id":"s","timestamp":1,"events":[0]}')),
        (400, INGEST, post(b"{")),
        (400, INGEST, post(b"[]")),
        (400, INGEST, post(content_encoding="gzip")),
        (400, INGEST, post(idempotency_key="")),
        (401, INGEST, post(authorization="Bearer x")),
        (413, INGEST, post(bytes(MAX_BODY + 1))),
        (413, INGEST, post(b'{"session_id":"s","timestamp":1,"events":[%s0]}' % (b"0," * 10_000))),
        (415, INGEST, post(content_type="text/plain")),
        (415, INGEST, post(content_encoding="br")),
        (421, INGEST, post(host="evil.example")),
        (200, "/api/sessions", get("/api/sessions?limit=1&after=9")),
        (400, "/api/sessions", get("/api/sessions?limit=x")),
        (401, "/api/sessions", get("/api/sessions", authorization="")),
        (421, "/api/sessions", get("/api/sessions", host="evil.example")),
        (404, "/api/sessions/{id}", get("/api/sessions/none")),
        (404, "/api/sessions/{id}/events", get("/api/sessions/none/events")),
        (404, "/sessions/{id}", get("/sessions/none")),
        (401, "/", get("/", authorization="")),
        (400, "/", get("/?after=x")),
        (200, "/healthz", get("/healthz", authorization="", host="evil.example")),
        (401, "/openapi.json", get("/openapi.json", authorization="")),
    ],
)
async def test_what_is_answered_is_described(
    nursery: trio.Nursery, tmp_path: Path, status: int, path: str, asked: dict[str, Any]
) -> None:
    """Its status, its type, its content, and the headers that come with it."""
    receiver = await started(nursery, tmp_path)
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        await client.request(**asked)
        answer = await client.request(**asked)

    assert answer.status_code == status
    check(answer, path)


@pytest.mark.parametrize("path", [INGEST, "/api/sessions", "/", "/healthz"])
async def test_a_store_that_is_away_is_described(
    nursery: trio.Nursery, tmp_path: Path, path: str
) -> None:
    """As a 503 that says when to come again."""
    receiver = await started(nursery, tmp_path)
    Path(receiver.where).unlink()
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        answer = await client.request(**(post() if path == INGEST else get(path)))

    assert answer.status_code == 503
    check(answer, path)


async def started(nursery: trio.Nursery, directory: Path) -> Receiver:
    """A receiver that lets one token in."""
    receiver: Receiver = await nursery.start(
        partial(
            run_receiver,
            port=0,
            database=directory / "s.sqlite",
            tokens=frozenset({"t"}),
            grace=0.2,
        )
    )
    return receiver


TELLING = {"accept-encoding", "allow", "idempotent-replayed", "retry-after", "www-authenticate"}


def check(answer: httpx.Response, path: str) -> None:
    operation = SCHEMA["paths"][path][answer.request.method.lower()]
    described = operation["responses"][str(answer.status_code)]
    ((media_type, content),) = described["content"].items()

    assert answer.headers["content-type"].partition(";")[0] == media_type
    if media_type == "application/json":
        schema = {**content["schema"], "components": SCHEMA["components"]}
        assert jsonschema_rs.Draft202012Validator(schema).is_valid(answer.json())
    headers = described.get("headers", {})
    assert all(name in answer.headers for name in headers if "required" in headers[name])
    assert TELLING & set(answer.headers) <= {name.lower() for name in headers}
