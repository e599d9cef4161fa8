"""A running receiver answers as its own description says, whatever it is asked."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
import trio
from hypothesis import settings
from schemathesis.core.result import Ok

from trimaran.receiver import Receiver, run_receiver
from trimaran.receiver.limits import MAX_BODY
from trimaran.receiver.openapi import describe

TOKEN = "one"


@contextmanager
def running(database: Path) -> Iterator[Receiver]:
    """A receiver in a thread of its own, as the requests here wait for their answers."""
    started: SimpleQueue[tuple[Receiver, trio.lowlevel.TrioToken, trio.CancelScope]] = SimpleQueue()

    async def run() -> None:
        start = partial(run_receiver, port=0, database=database, tokens=frozenset({TOKEN}))
        async with trio.open_nursery() as nursery:
            receiver = await nursery.start(partial(start, grace=0.2))
            started.put((receiver, trio.lowlevel.current_trio_token(), nursery.cancel_scope))

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    receiver, trio_token, scope = started.get()
    try:
        yield receiver
    finally:
        trio.from_thread.run_sync(scope.cancel, trio_token=trio_token)
        thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("receiver") / "s.sqlite") as receiver:
        yield receiver.url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


CONFIG = schemathesis.Config.from_dict(
    {
        "auth": {"openapi": {"token": {"bearer": TOKEN}}},
        "generation": {"max-examples": 50, "deterministic": True},
        "checks": {
            # 207: an event that is not good is named, and not the end of its batch.
            "negative_data_rejection": {
                "expected-statuses": [207, 400, 401, 404, 405, 413, 415, 421]
            }
        },
    }
)
description = schemathesis.openapi.from_dict(
    msgspec.to_builtins(describe(max_body=MAX_BODY, tokens=True)), config=CONFIG
)


@description.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """To JSON Schema 1.0 is an integer. To the receiver it is not, which the document says."""
    match body:
        case dict():
            return {name: map_body(context, value) for name, value in body.items()}
        case list():
            return [map_body(context, value) for value in body]
        case float() if body.is_integer():
            return int(body)
        case _:
            return body


def is_answered_as_described(
    case: schemathesis.Case[Any], url: str, session: requests.Session
) -> None:
    """No request brings out an answer that the document does not have, or a bug."""
    case.call_and_validate(base_url=url, session=session)


# A test of its own for each operation: all that schemathesis makes of one function have the
# same id, by which processes that share the tests tell them apart.
OPERATIONS = [
    operation.ok() for operation in description.get_all_operations() if isinstance(operation, Ok)
]
globals().update(
    {
        "test_" + re.sub(r"\W+", "_", operation.label.lower()).strip("_"): description.include(
            method=operation.method, path=operation.path
        ).parametrize()(is_answered_as_described)
        for operation in OPERATIONS
    }
)


def test_no_operation_is_left_out() -> None:
    """Each is asked by a test of its own."""
    assert len({name for name in globals() if re.match("test_(get|post)", name)}) == len(OPERATIONS)


def test_what_was_taken_can_be_read(url: str, session: requests.Session) -> None:
    """Requests that follow each other, by the links of the answers, are answered so too."""
    found: set[tuple[str, int]] = set()

    class Walk(description.as_state_machine()):  # type: ignore[misc]  # made at run time
        def get_call_kwargs(self, case: schemathesis.Case[Any]) -> dict[str, Any]:
            return {"base_url": url, "session": session}

        def after_call(self, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
            found.add((case.operation.label, response.status_code))

    Walk.run(settings=settings(max_examples=25, stateful_step_count=6, deadline=None))

    assert found >= {
        ("POST /api/observability/ingest", 200),
        ("GET /api/sessions/{id}", 200),
        ("GET /api/sessions/{id}/events", 200),
        ("GET /sessions/{id}", 200),
    }
