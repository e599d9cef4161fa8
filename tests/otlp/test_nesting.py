"""Blocks inside each other, as real systems show them: the tree that was recorded."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

import trimaran
from otlp import nested
from otlp.conftest import COLLECTED
from otlp.nested import record, tree_of
from otlp.systems import TOKEN, ReadSpan, TestAgent
from relay.world import refused_url
from trimaran._process import ProcessSendChannel, connect
from trimaran._relay.messages import PROTOCOL as RELAYS_PROTOCOL
from trimaran._relay.messages import SPEAKS, Batches, Hello, Taken, Welcome, answer_from, encoded
from trimaran._relay.orders import orders_of
from trimaran._relay.place import RelayPlace
from trimaran._relay.server import RelayServer
from trimaran._relay.way_out import batch_of
from trimaran._trace import trace_of
from trimaran.otlp import OtlpSettings, OtlpTransport
from trimaran.testing import Capture

PATIENCE = 60.0
"""Seconds of real time, after which it hangs."""
PROGRAM = Path(nested.__file__)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@asynccontextmanager
async def recording(
    url: str, token: str, session_id: str, *, environ: dict[str, str] | None = None, **session: Any
) -> AsyncIterator[trimaran.Session]:
    """A session that goes to *url*."""
    transport = OtlpTransport(OtlpSettings.from_environ({}, endpoint=url, headers={TOKEN: token}))
    async with trimaran.open_telemetry(
        "altimate",
        environ={"ALTIMATE_TELEMETRY_URL": url} | (environ or {}),
        transport=transport,
        settings=trimaran.Settings(drain_timeout=PATIENCE),
    ) as telemetry:
        async with telemetry.session(session_id=session_id, agent="build", **session) as opened:
            yield opened
    await transport.aclose()


def tree(spans: list[ReadSpan]) -> dict[str, str]:
    """The name of each span with that of the one above it; "" for the session's root."""
    assert len({span.span_id for span in spans}) == len({span.name for span in spans}) == len(spans)
    names = {span.span_id: span.name for span in spans}
    return {
        span.name: "" if above == "invoke_agent build" else above
        for span in spans
        for above in [names.get(span.parent_span_id, "outside")]
    }


WHOLE = {"session_start build": "", "invoke_agent build": "outside"}


def check_times(spans: list[ReadSpan]) -> None:
    """A span is over before the one above it is."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        above = by_id.get(span.parent_span_id)
        assert above is None or span.end <= above.end


async def until_there(
    read: Callable[[], list[ReadSpan]], session_id: str, count: int
) -> list[ReadSpan]:
    """The spans of a session, when they are so many: nobody tells when they are."""
    trace_id = trace_of(session_id).trace_id
    with trio.fail_after(PATIENCE):
        while True:
            spans = [s for s in await trio.to_thread.run_sync(read) if s.trace_id == trace_id]
            if len(spans) >= count:
                return spans
            await trio.sleep(0.05)


async def test_blocks_inside_each_other(test_agent: TestAgent, token: str) -> None:
    """Across tasks, too; each span once, with its times, the host's name, and agent and model
    at the root.
    """
    async with (
        recording(test_agent.url, token, f"{token}-nested") as session,
        trio.open_nursery() as nursery,
    ):
        record(session, "here")
        with session.tool_call("outer"):
            for name in ("a", "b", "c"):
                nursery.start_soon(trio.to_thread.run_sync, record, session, name)
            await session.flush(timeout=PATIENCE)
            while session.statistics().tracked < 33:  # noqa: ASYNC110 - threads tell nobody
                await trio.sleep(0.01)

    spans = test_agent.spans(token)
    expected = WHOLE | tree_of("here") | {"execute_tool outer": ""}
    for name in ("a", "b", "c"):
        expected |= tree_of(name, "execute_tool outer")
    assert tree(spans) == expected
    check_times(spans)
    [root] = [span for span in spans if not span.parent_span_id]
    assert root.attributes["gen_ai.agent.name"] == "build"
    assert root.attributes["gen_ai.request.model"] == "here model"
    assert {span.resource["service.name"] for span in spans} == {"altimate"}


async def test_blocks_inside_each_other_through_a_collector(
    collector: str, test_agent: TestAgent, token: str
) -> None:
    """As they went in."""
    session_id = f"{token}-nested-collected"
    async with recording(collector, token, session_id) as session:
        record(session, "here")

    spans = await until_there(lambda: test_agent.spans(COLLECTED), session_id, 10)
    assert tree(spans) == WHOLE | tree_of("here")
    check_times(spans)


async def test_child_processes(test_agent: TestAgent, token: str, tmp_path: Path) -> None:
    """Each hangs below the block that it was started in, of whichever kind it is."""
    async with recording(test_agent.url, token, f"{token}-children") as session:

        async def run(how: str, name: str, environ: dict[str, str]) -> None:
            with trio.fail_after(PATIENCE):
                await trio.run_process([sys.executable, str(PROGRAM), how, name], env=environ)

        with session.tool_call("outer"):
            environ = session.to_env()
            with session.bridge_call("inner"):
                inner = session.to_env()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "child", "native", environ)
            nursery.start_soon(run, "plainly", "plain", inner)
            nursery.start_soon(run, "child", "alone", session.to_env())

    assert tree(test_agent.spans(token)) == (
        WHOLE
        | {"execute_tool outer": "", "inner": "execute_tool outer"}
        | tree_of("native", "execute_tool outer")
        | tree_of("plain", "inner")
        | tree_of("alone")
    )


async def test_a_trace_from_outside(test_agent: TestAgent, token: str) -> None:
    """The root stands below what the process was started in, and a sub-agent's below the block
    that it was started in, linked with the session that it works for.
    """
    async with recording(
        test_agent.url, token, f"{token}-outer", environ={"TRACEPARENT": TRACEPARENT}
    ) as outer:
        with outer.tool_call("task"):
            environ = outer.to_env({})
        async with recording(
            test_agent.url,
            token,
            f"{token}-sub",
            traceparent=environ["TRACEPARENT"],
            parent_session_id=outer.id,
        ) as sub:
            record(sub, "sub")

    spans = test_agent.spans(token)
    assert {span.trace_id for span in spans} == {TRACE_ID}
    roots = {
        span.attributes["session.id"]: span for span in spans if span.name == "invoke_agent build"
    }
    [task] = [span for span in spans if span.name == "execute_tool task"]
    outer_root, sub_root = roots[f"{token}-outer"], roots[f"{token}-sub"]
    assert outer_root.parent_span_id == TRACEPARENT.split("-")[2]
    assert task.parent_span_id == outer_root.span_id
    assert sub_root.parent_span_id == task.span_id
    assert sub_root.links == [(TRACE_ID, outer_root.span_id)]
    below = [span for span in spans if span.attributes["session.id"] == f"{token}-sub"]
    assert tree(below) == WHOLE | tree_of("sub")


async def test_what_a_killed_agent_left(test_agent: TestAgent, token: str, tmp_path: Path) -> None:
    """Another life delivers it out of the spool: the same tree, below the trace's root, which
    nobody was left to end.
    """
    session_id, url = f"{token}-killed", refused_url()
    environ = {"TEST_TELEMETRY_URL": test_agent.url, "TRACEPARENT": TRACEPARENT}
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [sys.executable, str(PROGRAM), "crash", str(tmp_path), url, session_id],
            env={**environ, "PYTHONPATH": ":".join(sys.path)},
            check=False,
            capture_stderr=True,
        )
    assert done.returncode == -9, done.stderr
    transport = OtlpTransport(
        OtlpSettings.from_environ({}, endpoint=test_agent.url, headers={TOKEN: token})
    )
    async with trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": test_agent.url},
        transport=transport,
        settings=trimaran.Settings(
            drain_timeout=PATIENCE, spool=trimaran.Spool(directory=str(tmp_path))
        ),
    ) as telemetry:
        with trio.fail_after(PATIENCE):
            while telemetry.leftovers().delivered < 9:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
    await transport.aclose()

    spans = test_agent.spans(token)
    assert tree(spans) == {
        name: above or "outside"
        for name, above in ({"session_start build": ""} | tree_of("lost")).items()
    }
    assert {span.trace_id for span in spans} == {TRACE_ID}
    root = trace_of(session_id).span_id
    outside = {span.name for span in spans if span.parent_span_id == root}
    assert outside == {
        "session_start build",
        "command lost first",
        "chat lost model",
        "command lost last",
    }


class Spanned(Capture):
    """What an agent hands to its relay, for a destination that wants spans."""

    wants_spans = True


async def test_through_a_relay(
    test_agent: TestAgent, token: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """What was handed over goes out as it would have from the agent."""
    agent = Spanned()
    async with (
        agent.open(
            environ={"TEST_TELEMETRY_URL": "https://x.test", "TRACEPARENT": TRACEPARENT}
        ) as t,
        t.session(agent="build", parent_session_id="ses_0") as session,
    ):
        record(session, "handed")
        await session.flush(timeout=math.inf)
    transport = OtlpTransport(
        OtlpSettings.from_environ({}, endpoint=test_agent.url, headers={TOKEN: token})
    )
    relay = trimaran.Relay(directory=str(tmp_path / "relay"), idle_timeout=0.1)
    orders = orders_of(relay, trimaran.Settings())
    place = RelayPlace(tmp_path / "relay")
    lock = place.lock()
    assert lock is not None
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as relays:
            await relays.start(RelayServer(orders, transport=transport).run)
            address = place.address()
            assert address is not None
            stream = await connect(address)
            await stream.send_all(SPEAKS)
            hello = Hello(
                protocol=RELAYS_PROTOCOL, agent="a", destination=f"anonymous {test_agent.url}"
            )
            with ProcessSendChannel(stream) as channel:
                assert isinstance(answer_from(await channel.ask(encoded(hello))), Welcome)
                batches = Batches(batches=[batch_of(request) for request in agent.taken])
                assert answer_from(await channel.ask(encoded(batches))) == Taken()
    lock.release(remove=True)
    await transport.aclose()

    spans = test_agent.spans(token)
    assert tree(spans) == WHOLE | tree_of("handed")
    [root] = [span for span in spans if span.name == "invoke_agent build"]
    assert (root.trace_id, root.parent_span_id) == (TRACE_ID, TRACEPARENT.split("-")[2])
    assert root.links == [(TRACE_ID, trace_of("ses_0").span_id)]
    events = [e for r in agent.taken for e in msgspec.json.decode(r.body)["events"]]
    sent = {event["span_id"] for event in events if event["type"] != "session_end"}
    assert sent == {span.span_id for span in spans if span is not root}


async def test_the_hosts_name_is_the_services(test_agent: TestAgent, token: str) -> None:
    """Unless the settings give another one."""
    for name in ("", "mine"):
        settings = OtlpSettings.from_environ(
            {}, endpoint=test_agent.url, headers={TOKEN: token}, service_name=name
        )
        transport = OtlpTransport(settings)
        async with trimaran.open_telemetry(
            "altimate", environ={"ALTIMATE_TELEMETRY_URL": test_agent.url}, transport=transport
        ) as telemetry:
            async with telemetry.session():
                pass
        await transport.aclose()

    assert {span.resource["service.name"] for span in test_agent.spans(token)} == {
        "altimate",
        "mine",
    }
