"""Agents whose spans go through a relay, as processes of their own, into real systems."""

from __future__ import annotations

import gzip
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from conftest import LoopbackEndpoint, Reply
from otlp.systems import TOKEN, TestAgent
from patience import PATIENCE
from relay.world import World, open_world, refused_url, until

KEY = "sk-that-is-on-no-disk-and-in-no-command-line"
NAMES = ["session_start", "command 0", "command 1", "command 2", "command 3", "command 4"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A place for a relay, which ends when the test does."""
    with open_world(tmp_path / "relay", idle_timeout=PATIENCE) as opened:
        yield opened


async def test_spans_arrive_through_a_relay(
    world: World, test_agent: TestAgent, endpoint: LoopbackEndpoint, token: str
) -> None:
    """Each once, in a real system, with the header that tells it whose they are; and to the
    endpoint, through the same relay, what it takes.
    """
    ended = await world.agent(endpoint.url, otlp=test_agent.url, headers={TOKEN: token})
    await until(lambda: len(test_agent.spans(token)) == 8)

    assert (ended.handed_over, ended.dropped, ended.problems) == (8, {}, [])
    spans = test_agent.spans(token)
    assert [span.name for span in spans] == [*NAMES, "command last", "invoke_agent"]
    root = spans[-1]
    assert {span.parent_span_id for span in spans[:-1]} == {root.span_id}
    assert {span.trace_id for span in spans} == {root.trace_id}
    await until(lambda: len(endpoint.events) == 8)
    assert len(world.relays()) == 1


async def test_nothing_is_lost_with_the_relay(
    world: World, test_agent: TestAgent, endpoint: LoopbackEndpoint, token: str
) -> None:
    """With nobody to take spans an agent leaves at once, and its keys are nowhere but in the
    relay's memory; one that is killed leaves batches to the next, with whose keys they go out.
    """
    down = refused_url()
    headers = {TOKEN: token, "authorization": KEY}
    ended = await world.agent(endpoint.url, otlp=down, headers=headers)

    assert ended.leaving < PATIENCE / 3
    assert (ended.handed_over, ended.dropped, ended.problems) == (8, {}, [])
    (pid,) = world.relays()
    for path in (f"/proc/{pid}/cmdline", f"/proc/{pid}/environ"):
        assert KEY.encode() not in Path(path).read_bytes()
    assert world.kill() == 1
    await world.gone()
    left = b"".join(path.read_bytes() for path in world.directory.iterdir() if path.is_file())
    assert b"command_name" in left
    assert KEY.encode() not in left
    with closing(sqlite3.connect(world.directory / "spool.db")) as spool:
        waiting = spool.execute("SELECT events FROM batches WHERE destination LIKE 'made%'")
        assert sum(events for (events,) in waiting) == 8


async def test_a_killed_relay_loses_no_span(
    world: World, endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """What waited goes out with the keys that the next agent brings; each span is the same
    one, however often it was sent, and nothing goes out without the keys.
    """
    headers = {"authorization": KEY}
    beside.always(503)
    await world.agent(endpoint.url, name="first", otlp=beside.url, headers=headers)
    await until(lambda: len(beside.requests) > 0)
    assert world.kill() == 1
    await world.gone()

    beside.rule = lambda request: Reply(200 if request.headers.get("authorization") == KEY else 401)
    await world.agent(endpoint.url, name="other", otlp=beside.url, headers={"authorization": "x"})
    await world.agent(endpoint.url, name="second", otlp=beside.url, headers=headers)
    await until(lambda: len(taken(beside)) == 16)

    assert {request.headers["authorization"] for request in beside.requests} == {KEY, "x"}
    assert Counter(taken(beside).values()) == Counter([*NAMES, "command last", "invoke_agent"] * 2)


def taken(endpoint: LoopbackEndpoint) -> dict[bytes, str]:
    """The names of the spans that were taken, by their ids."""
    return {
        span.span_id: span.name
        for request in endpoint.requests
        if endpoint.rule(request).status == 200
        for group in ExportTraceServiceRequest.FromString(
            gzip.decompress(request.body)
        ).resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    }
