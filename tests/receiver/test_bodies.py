"""Whatever bytes are posted, they are a batch that can be kept and shown, or refused."""

import importlib.util
import json
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran._events import BUILT_IN_EVENTS
from trimaran.receiver.encoding import BodyTooLarge, BrokenEncoding
from trimaran.receiver.ingest import BadBody, Batch


def _load(name: str) -> ModuleType:
    """A module that stands beside this file; the tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bodies: Any = _load("bodies")

WHOLE = [
    {"type": "session_start", "timestamp": 1, "session_id": "s", "agent": "build"},
    {"type": "generation", "timestamp": 2, "tokens": {"input": 5, "output": 1}, "cost": 0.5},
    {"type": "tool_call", "timestamp": 3, "tool_name": "bash", "previous_tool": None},
    {"type": "bridge_call", "timestamp": 3, "method": "sql", "status": "error", "error": "é"},
    {"type": "error", "timestamp": 4, "error_name": 'a "name"', "error_message": "\\ and \n"},
    {"type": "command", "timestamp": 5, "command_name": "init", "command_source": "mcp"},
    {"type": "compaction_triggered", "timestamp": 6, "trigger": "error_recovery"},
    {"type": "deploy", "timestamp": 7, "where": [{"host": ["a", 1e5, True, None]}], "": {}},
    {"type": "session_end", "timestamp": 8, "duration_ms": 7.5, "total_tokens": 6},
]

PIECES = [
    *(json.dumps(name).encode() for name in BUILT_IN_EVENTS),
    *(b'"type":', b'"timestamp":', b'"session_id":', b'"tokens":', b'"events":'),
    *(b'"', b"\\", b"\\u", b"\\ud83d", b"\\udc00", b"\\u0000", b"\\\\", b"{", b"}", b"[", b"]"),
    *(b",", b":", b"{}", b"[]", b'""', b"null", b"true", b"0", b"-0", b"-1", b"1e999", b"1e-999"),
    *(b".5", b"9" * 20, b"9" * 5000, b"[" * 70, b"]" * 70, b'{"a":' * 70, b"}" * 70, b"[" * 5000),
    *(b"\0", b"\n", b"\x7f", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"NaN", b"Infinity"),
]


@st.composite
def damaged(draw: st.DrawFn, bodies_: st.SearchStrategy[bytes], most: int = 4) -> bytes:
    """A body with some places cut out, doubled or overwritten."""
    body = bytearray(draw(bodies_))
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(start + 40, len(body))))
        elsewhere = draw(st.integers(0, len(body)))
        body[start:end] = draw(
            st.sampled_from([b"", *PIECES])
            | st.binary(max_size=4)
            # What stands elsewhere, so that events and names come twice or in another place.
            | st.just(bytes(body[elsewhere : elsewhere + 60]))
        )
    return bytes(body)


whole = st.lists(st.sampled_from(WHOLE), max_size=4).map(
    lambda events: json.dumps({"session_id": "s", "timestamp": 1, "events": events}).encode()
)


@settings(max_examples=1000)
@given(damaged(whole))
def test_a_damaged_body_is_kept_or_refused(body: bytes) -> None:
    """What is kept is JSON to every reader, can be shown, and adds up."""
    bodies.taken(body, "")


@given(
    st.sampled_from(bodies.ENCODINGS[1:]).flatmap(
        lambda encoding: st.tuples(
            damaged(whole.map(lambda body: bodies.compress(body, encoding)), most=2),
            st.just(encoding),
        )
    )
)
def test_a_damaged_compressed_body_is_kept_or_refused(sent: tuple[bytes, str]) -> None:
    """The same of what is compressed."""
    bodies.taken(*sent)


@pytest.mark.parametrize("encoding", bodies.ENCODINGS)
def test_the_bodies_that_are_damaged_are_good_ones(encoding: str) -> None:
    """All that is tried above starts from what is taken whole."""
    body = json.dumps({"session_id": "s", "timestamp": 1, "events": WHOLE}).encode()

    batch = bodies.taken(bodies.compress(body, encoding), encoding)

    assert isinstance(batch, Batch)
    assert batch.rejected == ()


@pytest.mark.parametrize("encoding", bodies.ENCODINGS)
def test_a_body_cut_short_is_never_a_batch(encoding: str) -> None:
    """Wherever its connection broke off."""
    body = json.dumps({"session_id": "s", "timestamp": 1, "events": WHOLE}).encode()
    sent = bodies.compress(body, encoding)

    outcomes = {type(bodies.taken(sent[:end], encoding)) for end in range(len(sent))}

    assert outcomes == {BrokenEncoding if encoding else BadBody}


@pytest.mark.parametrize("encoding", bodies.ENCODINGS[1:])
@pytest.mark.parametrize("filling", [b"\0", b"[", b'{"events":[', b"\\ud800", b" "])
def test_a_bomb_is_left_unopened(encoding: str, filling: bytes) -> None:
    """A body of many megabytes, in some kilobytes, costs no more than the limit."""
    bomb = bodies.compress(filling * (1 << 22), encoding)
    tracemalloc.start()
    try:
        outcome = bodies.taken(bomb[: bodies.LIMIT], encoding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert type(outcome) in {BodyTooLarge, BrokenEncoding}
    assert peak < 20 * bodies.LIMIT
