"""``trimaran serve --forward``: what agents send over the origin's wire arrives as spans."""

from __future__ import annotations

import gzip
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

import trimaran
from cli.conftest import Command
from otlp.conftest import COLLECTED
from otlp.systems import TOKEN, ReadSpan, TestAgent, free_ports, running_collector
from patience import PATIENCE
from receiver.batches import batch
from trimaran._relay import outlet
from trimaran.otlp import OtlpSettings
from trimaran.receiver import Forward, StoreError, StoreUnavailable, run_receiver
from trimaran.receiver.beginnings import FILE_NAME
from trimaran.receiver.forward import Forwarder, open_forwarder
from trimaran.receiver.ingest import Batch, parse

if TYPE_CHECKING:
    from cli.conftest import Running
    from conftest import LoopbackEndpoint


def to(url: str, spool: Path, *, most_bytes: int = 1024**2, **given: Any) -> Forward:
    settings = OtlpSettings.from_environ({}, endpoint=url, **given)
    return Forward(settings=settings, spool=spool, most_bytes=most_bytes)


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110 - other processes tell nobody
            await trio.sleep(0.02)


async def record(url: str, session_id: str, *, tools: int = 3) -> int:
    """A session of an agent that knows the origin's wire alone; how many events were taken."""
    async with trimaran.open_telemetry("x", environ={"X_TELEMETRY_URL": url}) as telemetry:
        async with telemetry.session(session_id=session_id, agent="build") as session:
            for number in range(tools):
                with session.tool_call(f"tool-{number}"):
                    pass
    return session.statistics().delivered


def names(spans: Sequence[ReadSpan], session_id: str) -> list[str]:
    return sorted(span.name for span in spans if span.attributes["session.id"] == session_id)


NAMES = [
    "execute_tool tool-0",
    "execute_tool tool-1",
    "execute_tool tool-2",
    "invoke_agent build",
    "session_start build",
]


async def test_sessions_arrive_as_spans(
    nursery: trio.Nursery, tmp_path: Path, test_agent: TestAgent, token: str
) -> None:
    """Each once, below one root; and the receiver has nothing to show itself."""
    forward = to(test_agent.url, tmp_path / "spool", headers={TOKEN: token})
    receiver = await nursery.start(partial(run_receiver, port=0, forward=forward, grace=0.2))

    assert await record(receiver.url, "s") == 5
    await until(lambda: len(test_agent.spans(token)) == 5)

    spans = test_agent.spans(token)
    [root] = [span for span in spans if span.name == "invoke_agent build"]
    assert names(spans, "s") == NAMES
    assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}
    assert receiver.database is None
    assert receiver.where == f"{test_agent.url}/v1/traces, by way of {tmp_path / 'spool'}"
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        answer = await client.get("/")
        assert answer.status_code == 404
        assert "passes on what it takes" in answer.text
        answer = await client.get("/api/sessions")
        assert answer.json() == {
            "error": "This receiver passes on what it takes, and has nothing to show"
        }


async def started(command: Command, port: int) -> tuple[Running, str]:
    running = await command.start(
        *("serve", "--port", 0, "--forward", f"otlp+http://127.0.0.1:{port}", "--spool", "spool"),
        environ={"OTEL_SERVICE_NAME": "fleet"},
    )
    await running.says("Ctrl-C ends")
    return running, running.out.split("Receiving on ", 1)[1].split(",", 1)[0]


async def test_what_was_confirmed_outlives_a_kill(
    nursery: trio.Nursery,
    tmp_path: Path,
    test_agent: TestAgent,
) -> None:
    """The endpoint is down, the receiver dies: the next one forwards it, once."""
    command = Command(nursery, tmp_path)
    [port] = free_ports(1)
    running, url = await started(command, port)
    assert await record(url, "killed") == 5
    running.process.kill()
    await running.ends()
    with running_collector(test_agent, COLLECTED, http=port):
        running, url = await started(command, port)
        assert await record(url, "after") == 5

        def arrived() -> bool:
            spans = test_agent.spans(COLLECTED)
            return all(len(names(spans, name)) >= 5 for name in ("killed", "after"))

        await until(arrived)
        ended = await running.ends(signal.SIGTERM)

    spans = test_agent.spans(COLLECTED)
    assert names(spans, "killed") == names(spans, "after") == NAMES
    assert {span.resource["service.name"] for span in spans if span.name in NAMES} >= {"fleet"}
    assert ended.status == 0
    assert "receiver_forwarded (to: " in ended.err
    assert "delivered: 10, waiting: 0" in ended.err


@asynccontextmanager
async def forwarding(forward: Forward) -> AsyncGenerator[Forwarder]:
    with trio.fail_after(PATIENCE):
        async with open_forwarder(forward) as forwarder:
            yield forwarder


async def settled(forwarder: Forwarder) -> None:
    await until(lambda: forwarder.report().waiting == 0)


async def test_what_comes_again_is_forwarded_once(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """By its key and its session; what has no key is always new."""
    async with forwarding(to(endpoint.url, tmp_path)) as forwarder:
        for key in ("1", "1", "2", None, None):
            receipt = await forwarder.append(batch(0), key)
            assert receipt.accepted == 1
        await forwarder.append(batch(0, session_id="t"), "1")
        await settled(forwarder)

    assert len(endpoint.requests) == 5
    assert forwarder.report().delivered == 5


async def test_a_receiver_does_not_say_that_it_is_the_agent(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Sessions that other machines recorded have neither its process nor its Python."""
    async with forwarding(to(endpoint.url, tmp_path, encoding="json")) as forwarder:
        await forwarder.append(batch(0), "1")
        await settled(forwarder)

    [request] = endpoint.requests
    [group] = msgspec.json.decode(gzip.decompress(request.body))["resourceSpans"]
    names = {attribute["key"] for attribute in group["resource"]["attributes"]}
    assert "telemetry.sdk.name" in names
    assert not [name for name in names if name.startswith("process.")]


START = {"type": "session_start", "timestamp": 1_795_000_000_250} | {
    "agent": "build",
    "model_id": "m",
    "provider_id": "v",
    "project_id": "p",
}
END = {"type": "session_end", "timestamp": 1_795_000_003_000} | {
    "total_cost": 1,
    "total_tokens": 2,
    "tool_call_count": 0,
    "duration_ms": 2_000,
}
OTHER = {"type": "command", "timestamp": 1_795_000_001_000, "command_name": "init"}


def batch_of(*events: dict[str, Any], session_id: str = "s") -> Batch:
    envelope = {"session_id": session_id, "timestamp": 1, "events": events}
    return parse(msgspec.json.encode(envelope))


def roots(endpoint: LoopbackEndpoint) -> list[dict[str, Any]]:
    """The roots that came, with their attributes by name."""
    groups = [
        group
        for request in endpoint.requests
        for group in msgspec.json.decode(gzip.decompress(request.body))["resourceSpans"]
    ]
    spans = [span for group in groups for each in group["scopeSpans"] for span in each["spans"]]
    for span in spans:
        span["attributes"] = {a["key"]: a["value"] for a in span["attributes"]}
    return [span for span in spans if span["name"].startswith("invoke_agent")]


def check_root(root: dict[str, Any]) -> None:
    """It is as its session's start has it."""
    assert root["name"] == "invoke_agent build"
    assert root["attributes"]["gen_ai.agent.name"] == {"stringValue": "build"}
    assert root["attributes"]["gen_ai.request.model"] == {"stringValue": "m"}
    assert root["attributes"]["gen_ai.provider.name"] == {"stringValue": "v"}
    assert not [name for name in root["attributes"] if "span_" in name]
    assert root["startTimeUnixNano"] == "1795000000250000000"
    assert root["endTimeUnixNano"] == "1795000003000000000"


async def test_a_root_knows_how_its_session_began_after_a_restart(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Its name, its model, its start; also in another receiver that shares the directory."""
    forward = to(endpoint.url, tmp_path, encoding="json")
    async with forwarding(forward) as forwarder:
        await forwarder.append(batch_of(START, session_id="s"))
        await forwarder.append(batch_of(START, session_id="t"))
        await settled(forwarder)
    async with forwarding(forward) as one, forwarding(forward) as other:
        await one.append(batch_of(OTHER, END, session_id="s"))
        await other.append(batch_of(END, session_id="t"))
        await settled(one)
        await settled(other)

    for root in (found := roots(endpoint)):
        check_root(root)
    assert len(found) == 2


async def test_a_root_is_the_same_however_its_session_comes_in(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Whole, in pieces that come together, and in pieces that come one after the other."""
    async with forwarding(to(endpoint.url, tmp_path, encoding="json")) as forwarder:
        await forwarder.append(batch_of(START, OTHER, END))
        for _ in range(2):
            await forwarder.append(batch_of(OTHER, END))
        async with trio.open_nursery() as nursery:
            for events in ([START], [END]):
                nursery.start_soon(forwarder.append, batch_of(*events))
        await settled(forwarder)

    for root in (found := roots(endpoint)):
        check_root(root)
    assert len(found) == 4


async def test_an_end_whose_start_nobody_heard_says_what_it_knows(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Another receiver had it, with a directory of its own."""
    async with forwarding(to(endpoint.url, tmp_path, encoding="json")) as forwarder:
        await forwarder.append(batch_of(START, session_id="other"))
        await forwarder.append(batch_of(END))
        await settled(forwarder)

    [root] = roots(endpoint)
    assert root["name"] == "invoke_agent"
    assert root["startTimeUnixNano"] == "1795000001000000000"


async def test_a_name_without_an_end_is_not_kept(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """The rest of what a start says is."""
    forward = to(endpoint.url, tmp_path, encoding="json")
    async with forwarding(forward) as forwarder:
        await forwarder.append(batch_of(START | {"agent": "a" * 1_001}))
        await settled(forwarder)
    async with forwarding(forward) as forwarder:
        await forwarder.append(batch_of(END))
        await settled(forwarder)

    [root] = roots(endpoint)
    assert root["name"] == "invoke_agent"
    assert root["attributes"]["gen_ai.request.model"] == {"stringValue": "m"}
    assert root["startTimeUnixNano"] == "1795000000250000000"


async def test_how_sessions_began_costs_no_batch(
    endpoint: LoopbackEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the disk does not have it, a line says so, and all goes on."""
    (tmp_path / FILE_NAME).write_text("no database " * 1_000)
    async with forwarding(to(endpoint.url, tmp_path, encoding="json")) as forwarder:
        for events in ([START], [OTHER], [END]):
            await forwarder.append(batch_of(*events))
        await settled(forwarder)

    assert forwarder.report().delivered == 3
    [root] = roots(endpoint)
    check_root(root)  # as far as one life goes, the transport remembers it too
    assert capsys.readouterr().err.count("receiver_beginnings_unavailable") == 1


async def test_all_posts_of_a_session_have_one_beginning_of_their_keys(
    endpoint: LoopbackEndpoint,
) -> None:
    """By which a load balancer keeps them together: 32 digits before a hyphen."""
    environ = {"X_TELEMETRY_URL": endpoint.url}
    async with trimaran.open_telemetry("x", environ=environ) as telemetry:
        for _ in range(2):
            async with telemetry.session() as session:
                for _ in range(3):
                    session.command("init")
                    await session.flush(timeout=PATIENCE)

    of_session: dict[str, set[str]] = {}
    for request in endpoint.requests:
        first, hyphen, _ = request.headers["idempotency-key"].partition("-")
        assert (len(first), hyphen) == (32, "-")
        of_session.setdefault(request.batch["session_id"], set()).add(first)
    assert len(endpoint.requests) >= 6
    assert len(set.union(*of_session.values())) == len(of_session) == 2


def test_without_an_endpoint_nothing_is_taken(tmp_path: Path) -> None:
    """It would be lost later, one batch after the other."""
    settings = OtlpSettings.from_environ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"})

    with pytest.raises(ValueError, match="nowhere to: OTEL_EXPORTER_OTLP_ENDPOINT does not start"):
        Forward(settings=settings, spool=tmp_path)


async def test_what_waits_is_known_however_much_came_since(
    endpoint: LoopbackEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and it comes again: it is on disk, and who came with it is taken."""
    monkeypatch.setattr(outlet, "_MOST_KNOWN", 1)
    endpoint.always(503)
    async with forwarding(to(endpoint.url, tmp_path)) as forwarder:
        for key in ("1", "2", "3"):
            await forwarder.append(batch(0), key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarder.append, batch(0), "1")
            nursery.start_soon(forwarder.append, batch(0), "4")
        assert forwarder.report().waiting == 4
        endpoint.always(200)
        await settled(forwarder)

    assert forwarder.report().delivered == 4


async def test_what_another_receiver_has_in_the_same_directory_is_safe(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """It comes again to this one: it is on disk, and that one sends it."""
    endpoint.always(503)
    forward = to(endpoint.url, tmp_path)
    async with forwarding(forward) as one, forwarding(forward) as other:
        await one.append(batch(0), "1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.append, batch(0), "1")
            nursery.start_soon(other.append, batch(0), "2")
        assert (one.report().waiting, other.report().waiting) == (1, 1)
        endpoint.always(200)
        await settled(one)
        await settled(other)

    assert (one.report().delivered, other.report().delivered) == (1, 1)


async def test_a_cancel_leaves_what_is_being_written_to_be_sent(
    endpoint: LoopbackEndpoint, tmp_path: Path
) -> None:
    """Once, though nobody hears of it; and what waited for the same disk has its answer."""
    async with forwarding(to(endpoint.url, tmp_path)) as forwarder:
        async with trio.open_nursery() as nursery:
            gone = trio.CancelScope()

            async def writes() -> None:
                with gone:
                    await forwarder.append(batch(0))

            nursery.start_soon(writes)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(forwarder.append, batch(1))
            gone.cancel()
        await settled(forwarder)

    assert forwarder.report().delivered == 2
    assert len(endpoint.requests) == 2


async def test_only_good_events_are_forwarded(endpoint: LoopbackEndpoint, tmp_path: Path) -> None:
    """The others are told to who sent them; with nothing good, nothing goes out."""
    async with forwarding(to(endpoint.url, tmp_path, encoding="json")) as forwarder:
        receipt = await forwarder.append(batch(0, None, 1), "k", parent="p")
        assert (receipt.accepted, [bad.index for bad in receipt.rejected]) == (2, [1])
        assert (await forwarder.append(batch(None), "l")).accepted == 0
        await settled(forwarder)

    assert forwarder.report().delivered == 2
    assert len(endpoint.requests) == 1


async def test_a_partial_success_is_counted_and_told(
    endpoint: LoopbackEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As so many rejected, with what the server says; nothing is sent again."""
    told = {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}
    endpoint.next(body=msgspec.json.encode(told))
    async with forwarding(to(endpoint.url, tmp_path, encoding="json")) as forwarder:
        await forwarder.append(batch(0, 1, 2), "k")
        await settled(forwarder)

    assert forwarder.report().delivered == 1
    assert forwarder.report().dropped == {"rejected": 2}
    assert len(endpoint.requests) == 1
    said = capsys.readouterr().err
    assert "too old" in said
    assert "receiver_forwarded" in said


async def test_retries_are_those_of_otlp(endpoint: LoopbackEndpoint, tmp_path: Path) -> None:
    """503 is tried again, 500 and 400 are not."""
    for status in (503, 500, 400):
        endpoint.next(status)
    async with forwarding(to(endpoint.url, tmp_path)) as forwarder:
        for key in "abc":
            await forwarder.append(batch(0), key)
        await settled(forwarder)

    assert len(endpoint.requests) == 4
    assert forwarder.report().delivered == 1
    assert forwarder.report().dropped == {"rejected": 2}


async def test_what_has_no_room_is_put_off(endpoint: LoopbackEndpoint, tmp_path: Path) -> None:
    """Nothing that was taken goes for it, and once there is room it is taken."""
    endpoint.always(503)
    forward = to(endpoint.url, tmp_path / "spool", most_bytes=1000)
    async with forwarding(forward) as forwarder:
        await forwarder.append(batch("x" * 500), "1")
        with pytest.raises(StoreUnavailable, match="spool: no room is left"):
            await forwarder.append(batch("y" * 500), "2")
        endpoint.always(200)
        await settled(forwarder)
        assert (await forwarder.append(batch("y" * 500), "2")).accepted == 1
        await settled(forwarder)

    assert forwarder.report().delivered == 2


async def test_what_was_left_goes_out_first(
    endpoint: LoopbackEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it is for the same endpoint; of the rest, one line tells."""
    endpoint.always(503)
    for url in (endpoint.url, "http://127.0.0.1:1"):
        async with forwarding(to(url, tmp_path)) as forwarder:
            await forwarder.append(batch(0))
        assert forwarder.report().waiting == 1
    endpoint.always(200)
    capsys.readouterr()
    async with forwarding(to(endpoint.url, tmp_path)) as forwarder:
        await settled(forwarder)

    assert forwarder.report().delivered == 1
    said = capsys.readouterr().err
    assert "receiver_spool_has_more" in said
    assert "http://127.0.0.1:1/v1/traces" in said


async def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """Before anything is taken; and later, in the answers about health."""
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError, match="file"):
        async with forwarding(to("http://127.0.0.1:1", tmp_path / "file")):
            pass
    async with forwarding(to("http://127.0.0.1:1", tmp_path / "spool")) as forwarder:
        await forwarder.check()
        (tmp_path / "spool" / "spool.db").write_text("no database " * 1000)
        with pytest.raises(StoreUnavailable, match=r"spool\.db"):
            await forwarder.check()


async def test_an_exception_of_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    """And so does a cancel, while it starts as well."""
    own = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught:
        async with forwarding(to("http://127.0.0.1:1", tmp_path)) as forwarder:
            raise own
    assert caught.value is own
    assert repr(forwarder).startswith("<Forwarder http://127.0.0.1:1/v1/traces")
    with trio.CancelScope() as scope:
        scope.cancel()
        async with forwarding(to("http://127.0.0.1:1", tmp_path)):
            pass
    assert scope.cancelled_caught
