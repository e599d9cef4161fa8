"""Sessions arrive whole in real systems: what was recorded is compared with what they show."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import trio

import trimaran
from otlp.comparing import check, check_inside
from otlp.conftest import COLLECTED
from otlp.recorder import recording
from otlp.systems import TOKEN, ReadSpan, TestAgent
from patience import PATIENCE
from trimaran._trace import trace_of
from trimaran.otlp import OtlpSettings, OtlpTransport


class Deployment(trimaran.Event, frozen=True):
    """An event of a host's own."""

    target: str
    attempt: int


def record_everything(session: trimaran.Session) -> None:
    """An event of every kind."""
    with session.generation(message_id="msg_1", model_id="m", provider_id="v") as generation:
        tokens = trimaran.Tokens(input=90, output=12, reasoning=3, cache_read=300, cache_write=10)
        generation.finish("stop", tokens=tokens, cost=0.0123)
    with session.tool_call("bash", message_id="msg_1"):
        pass
    with pytest.raises(KeyError), session.tool_call("mcp__github__search"):
        raise KeyError("x")
    with session.bridge_call("sql.execute"):
        pass
    session.track(
        trimaran.ToolCall(tool_name="slow", duration_ms=1234.5, timestamp=1_795_000_000_000)
    )
    session.command("init", source="command")
    session.error(ValueError("größer als nötig"), context="prompt")
    session.track(trimaran.CompactionTriggered(trigger="overflow_detection"))
    session.track(Deployment(target="production", attempt=2))


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_a_session_arrives_whole(
    encoding: str, compression: str, test_agent: TestAgent, token: str
) -> None:
    """In both forms, compressed or not."""
    sending = recording(
        test_agent.url, encoding=encoding, compression=compression, headers={TOKEN: token}
    )
    async with sending as (telemetry, recorder):
        async with telemetry.session(agent="build", project_id="p") as session:
            record_everything(session)

    assert session.statistics().delivered == 11
    spans = test_agent.spans(token)
    check(spans, recorder)
    check_inside(spans, recorder)
    [root] = [span for span in spans if not span.parent_span_id]
    assert root.attributes["trimaran.total_cost"] == 0.0123
    assert root.start <= min(s.start for s in spans if s.name == "chat m")
    deployment = next(span for span in spans if span.name == "deployment")
    assert "trimaran.target" not in deployment.attributes  # text, and no shape
    assert deployment.attributes["trimaran.attempt"] == 2


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_log_records_arrive_whole(encoding: str, test_agent: TestAgent, token: str) -> None:
    """Each event is one, under its name, with the ids of its span."""
    sending = recording(test_agent.url, encoding=encoding, signal="logs", headers={TOKEN: token})
    async with sending as (telemetry, recorder):
        async with telemetry.session(agent="build") as session:
            record_everything(session)

    records = test_agent.records(token)
    [request] = recorder.requests
    events = msgspec.json.decode(request.body)["events"]
    assert len(records) == len(events) == session.statistics().delivered
    for record, event in zip(records, events, strict=True):
        trace = trace_of(event["session_id"])
        is_failed = event["type"] == "error" or event.get("status") == "error"
        assert record.event_name == f"trimaran.{event['type']}"
        assert (record.trace_id, record.time) == (trace.trace_id, int(event["span_end"]))
        is_root = event["type"] in recorder.roots
        assert record.span_id == (trace.span_id if is_root else event["span_id"])
        assert record.severity == (17 if is_failed else 9)
        assert record.attributes["session.id"] == event["session_id"]
    assert records[-4].body == "größer als nötig"
    assert records[-4].attributes["exception.type"] == "ValueError"


async def test_a_long_session_shows_while_it_runs(test_agent: TestAgent, token: str) -> None:
    """All of its spans but the root, which comes at the end."""
    async with recording(test_agent.url, headers={TOKEN: token}) as (telemetry, recorder):
        async with telemetry.session(agent="build", session_id=f"long-{token}") as session:
            await session.flush()
            [started] = test_agent.spans(token)
            record_everything(session)
            await session.flush()
            assert len(test_agent.spans(token)) == 10

    spans = test_agent.spans(token)
    check(spans, recorder)
    check_inside(spans, recorder)
    assert started.name == "session_start build"
    assert started.parent_span_id == spans[-1].span_id
    assert started.start == spans[-1].start


async def test_an_open_root_shows_while_its_session_runs(test_agent: TestAgent, token: str) -> None:
    """It is there from the start, and once more, the same, at the end."""
    sending = recording(test_agent.url, headers={TOKEN: token}, open_root=True)
    async with sending as (telemetry, recorder):
        async with telemetry.session(agent="build", session_id=f"long-{token}") as session:
            await session.flush()
            [opened] = test_agent.spans(token)
            record_everything(session)
            await session.flush()
            assert len(test_agent.spans(token)) == 10

    spans = test_agent.spans(token)
    check(spans, recorder)
    check_inside(spans, recorder)
    assert (opened.span_id, opened.start) == (spans[-1].span_id, spans[-1].start)
    assert opened.end <= spans[-1].end


async def test_a_batch_that_comes_again_is_the_same_spans(
    test_agent: TestAgent, token: str
) -> None:
    """Whoever keeps one span for each id shows it once."""
    async with recording(test_agent.url, headers={TOKEN: token}) as (telemetry, recorder):
        async with telemetry.session(agent="build") as session:
            record_everything(session)
    [request] = recorder.requests
    settings = OtlpSettings.from_environ({}, endpoint=test_agent.url, headers={TOKEN: token})
    another = OtlpTransport(settings)
    await another.attempt(request)
    await another.aclose()

    spans = test_agent.spans(token)
    first, again = spans[: len(spans) // 2], spans[len(spans) // 2 :]
    assert first == again


async def test_a_session_of_10_000_events(test_agent: TestAgent, token: str) -> None:
    """Every one of them, in order, below its parent."""
    async with recording(test_agent.url, headers={TOKEN: token}) as (telemetry, recorder):
        async with telemetry.session(agent="build", model_id="m") as session:
            for number in range(2_500):
                with session.generation() as generation:
                    tokens = trimaran.Tokens(input=number, output=1, cache_read=7)
                    generation.finish("stop", tokens=tokens)
                for _ in range(3):
                    await session.send(trimaran.ToolCall(tool_name="bash", duration_ms=number))

    assert session.statistics().delivered == 10_002
    spans = test_agent.spans(token)
    check(spans, recorder)
    check_inside(spans, recorder)
    assert len({span.span_id for span in spans}) == 10_002
    total = sum(span.attributes.get("gen_ai.usage.input_tokens", 0) for span in spans)
    assert total == sum(range(2_500)) + 2_500 * 7


async def test_200_sessions_at_once(test_agent: TestAgent, token: str) -> None:
    """Each is a trace of its own, with all of its spans and no other's."""

    async def run(telemetry: trimaran.Telemetry, number: int) -> None:
        async with telemetry.session(agent=f"agent-{number}", session_id=f"{token}-{number}") as s:
            for _ in range(10):
                with s.generation(model_id=f"m-{number}"):
                    await trio.lowlevel.checkpoint()
                with s.tool_call(f"tool-{number}"):
                    await trio.lowlevel.checkpoint()

    async with recording(test_agent.url, headers={TOKEN: token}) as (telemetry, recorder):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(run, telemetry, number)

    spans = test_agent.spans(token)
    events = {event.get("span_id"): event for event in recorder.events()}
    for number in range(200):
        trace = trace_of(f"{token}-{number}")
        own = [span for span in spans if span.trace_id == trace.trace_id]
        ids = Counter(span.span_id for span in own)
        assert set(ids.values()) == {1}
        assert len(ids) == 22
        assert {span.attributes["session.id"] for span in own} == {f"{token}-{number}"}
        names = {f"{word} agent-{number}" for word in ("session_start", "invoke_agent")}
        names |= {f"chat m-{number}", f"execute_tool tool-{number}"}
        assert {span.name for span in own} == names
        assert all(
            span.end == int(events[span.span_id]["span_end"]) for span in own if span.parent_span_id
        )


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_a_session_through_a_collector(
    encoding: str, collector: str, test_agent: TestAgent, token: str
) -> None:
    """What comes out at its other end is what went in."""
    async with recording(collector, encoding=encoding) as (telemetry, recorder):
        async with telemetry.session(
            agent="build", session_id=f"{token}-collected", parent_session_id="ses_0"
        ) as session:
            record_everything(session)

    trace_id = trace_of(f"{token}-collected").trace_id
    spans: list[ReadSpan] = []
    with trio.fail_after(PATIENCE):
        while not spans:  # it gathers batches of its own, and tells nobody when they are out
            spans = [s for s in test_agent.spans(COLLECTED) if s.trace_id == trace_id]
            await trio.sleep(0.02)
    check(spans, recorder)
    check_inside(spans, recorder)
    assert spans[-1].links == [trace_of("ses_0")[:2]]
    assert session.statistics().delivered == 11
