"""Send sessions to MLflow and Phoenix, read them back, compare: ``python -m systems``.

In: where their programs are. Out: a line for each thing that holds; it fails at one that
does not.
Does not know: how they are started.
"""

from __future__ import annotations

import argparse
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

import trimaran
from systems.servers import mlflow, phoenix
from systems.size import check_mlflow_size, check_phoenix_size
from trimaran._trace import trace_of
from trimaran.otlp import MLFLOW, OtlpSettings, OtlpTransport

EXPERIMENT = {"x-mlflow-experiment-id": "0"}
TOKENS = trimaran.Tokens(input=900, output=120, reasoning=50, cache_read=300, cache_write=100)
COST = 0.0123
ARRIVAL = 60.0
"""Seconds: Phoenix answers before what it took can be read."""


async def record(settings: OtlpSettings, *names: str) -> list[trimaran.Session]:
    """A session of each name, with an event of most kinds; gives them, over."""
    transport = OtlpTransport(settings)
    sessions: list[trimaran.Session] = []
    async with trimaran.open_telemetry(
        "test",
        version="1.0",
        environ={"TEST_TELEMETRY_URL": settings.url},
        transport=transport,
        settings=trimaran.Settings(drain_timeout=60, retry_initial=0.2),
    ) as telemetry:
        for name in names:
            async with telemetry.session(session_id=name, agent="build", model_id="m") as session:
                sessions.append(session)
                await session.flush(timeout=10)
                with session.generation(provider_id="v") as generation:
                    await trio.sleep(0.05)
                    with session.tool_call("bash"):
                        await trio.sleep(0.05)
                        session.command("inside")
                        await session.flush(timeout=10)  # before the blocks are over
                        async with trimaran.attach(environ=session.to_env({})) as child:
                            with child.bridge_call("sql.execute"):
                                await trio.sleep(0.05)
                    generation.finish("stop", tokens=TOKENS, cost=COST)
                with suppress(KeyError), session.tool_call("mcp__github__search"):
                    EXPERIMENT["no"]
                session.command("init")
                session.error(ValueError("wrong"), context="prompt")
                await session.flush(timeout=10)
    await transport.aclose()
    return sessions


NAMES = Counter(
    {
        "invoke_agent build": 1,
        "session_start build": 1,
        "chat m": 1,
        "execute_tool bash": 1,
        "execute_tool mcp__github__search": 1,
        "command inside": 1,
        "command init": 1,
        "error ValueError": 1,
        "sql.execute": 1,
    }
)
SPANS = NAMES.total()
NESTED = {
    "execute_tool bash": "chat m",
    "command inside": "execute_tool bash",
    "sql.execute": "execute_tool bash",
}
"""What stands below something else than the root."""


def check_tree(found: list[tuple[str, str, str | None]]) -> None:
    """The names of spans, their ids, and those of what they are below, of one session."""
    names = {span_id: name for name, span_id, _ in found}
    assert len(names) == len(found)
    for name, _, above in found:
        expected = NESTED.get(name, "invoke_agent build")
        assert names.get(above or "") == (None if name == "invoke_agent build" else expected), name


async def arrived(read: Callable[[], list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """What *read* gives, when it is as many."""
    found: list[dict[str, Any]] = []
    with trio.move_on_after(ARRIVAL):
        # A server tells nobody when it is done.
        while len(found := await trio.to_thread.run_sync(read)) < count:  # noqa: ASYNC110
            await trio.sleep(0.2)
    assert len(found) == count, (len(found), count)
    return found


def spans_in_phoenix(url: str, session_id: str) -> list[dict[str, Any]]:
    """The spans of a session, through Phoenix's API."""
    trace_id = trace_of(session_id).trace_id
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        answer = httpx.get(
            f"{url}/v1/projects/default/spans",
            params={"limit": 1000, **({"cursor": cursor} if cursor else {})},
            trust_env=False,
            timeout=30,
        )
        if answer.status_code == 404:
            return []
        answer.raise_for_status()
        page = answer.json()
        found += [span for span in page["data"] if span["context"]["trace_id"] == trace_id]
        cursor = page.get("next_cursor")
        if not cursor:
            return found


def sessions_in_phoenix(url: str) -> list[dict[str, Any]]:
    """All sessions, as its pages show them."""
    query = "{projects{edges{node{sessions(first:50){edges{node{sessionId numTraces"
    query += " tokenUsage{prompt completion}}}}}}}}"
    answer = httpx.post(f"{url}/graphql", json={"query": query}, trust_env=False).json()
    [project] = answer["data"]["projects"]["edges"]
    return [edge["node"] for edge in project["node"]["sessions"]["edges"]]


async def check_phoenix(url: str) -> None:
    """Kinds, parents, status, tokens, cost and sessions."""
    settings = OtlpSettings.from_environ({}, endpoint=url)
    [session] = await record(settings, "one")
    assert session.statistics().delivered == SPANS

    spans = await arrived(partial(spans_in_phoenix, url, "one"), SPANS)
    by_name = {span["name"]: span for span in spans}
    assert Counter(span["name"] for span in spans) == NAMES
    root = by_name["invoke_agent build"]
    assert root["parent_id"] is None
    check_tree([(s["name"], s["context"]["span_id"], s["parent_id"]) for s in spans])
    assert root["start_time"] <= min(span["start_time"] for span in spans)
    assert root["end_time"] >= max(span["end_time"] for span in spans)
    kinds = {name: span["span_kind"] for name, span in by_name.items()}
    assert kinds["chat m"] == "LLM"
    assert kinds["execute_tool bash"] == "TOOL"
    assert kinds["invoke_agent build"] == "AGENT"
    failed = {name for name, span in by_name.items() if span["status_code"] == "ERROR"}
    assert failed == {"execute_tool mcp__github__search", "error ValueError"}
    assert by_name["error ValueError"]["status_message"] == "wrong"
    assert by_name["chat m"]["attributes"]["llm.cost.total"] == COST
    [shown] = await arrived(partial(sessions_in_phoenix, url), 1)
    assert shown == {
        "sessionId": "one",
        "numTraces": 1,
        "tokenUsage": {"prompt": 1300.0, "completion": 170.0},
    }
    print("Phoenix: a session, its kinds, nested blocks, a child process, failures, tokens, cost")


async def check_phoenix_full(url: str) -> None:
    """It answers 503 while its queue is full: everything arrives, once."""
    transport = OtlpTransport(OtlpSettings.from_environ({}, endpoint=url))
    async with trimaran.open_telemetry(
        "test",
        environ={"TEST_TELEMETRY_URL": url},
        transport=transport,
        settings=trimaran.Settings(drain_timeout=120, retry_initial=0.1, batch_events=50),
    ) as telemetry:
        async with telemetry.session(session_id="many") as session:
            for _ in range(2_000):
                await session.send(trimaran.ToolCall(tool_name="bash"))
    await transport.aclose()

    statistics = session.statistics()
    assert statistics.delivered == 2_002, statistics
    await arrived(partial(spans_in_phoenix, url, "many"), 2_002)
    print(f"Phoenix: 2,002 spans with a queue of 50, {statistics.retries} retries after 503")


async def check_phoenix_closed(url: str) -> None:
    """It answers 401 without a key: nothing hangs, and everything is counted."""
    [session] = await record(OtlpSettings.from_environ({}, endpoint=url), "stranger")

    assert session.statistics().dropped == {trimaran.DropReason.REJECTED: SPANS}
    print("Phoenix: 401 without a key, counted as rejected")


def traces_in_mlflow(url: str) -> list[dict[str, Any]]:
    """All traces with their spans, through MLflow's API."""
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    search = {"locations": [place], "max_results": 50}
    with httpx.Client(base_url=f"{url}/api/3.0/mlflow/traces", trust_env=False) as client:
        answer = client.post("/search", json=search)
        answer.raise_for_status()
        return [
            client.get("/get", params={"trace_id": trace["trace_id"]}).json()["trace"]
            for trace in answer.json().get("traces", [])
        ]


async def check_mlflow(url: str) -> None:
    """Sessions, kinds, parents, status, tokens and cost; a root from the start."""
    settings = OtlpSettings.from_environ({}, endpoint=url, headers=EXPERIMENT, dialect=MLFLOW)
    [session] = await record(settings, "one")
    assert session.statistics().delivered == SPANS

    [trace] = await arrived(partial(traces_in_mlflow, url), 1)
    told = trace["trace_info"]["trace_metadata"]
    assert told["mlflow.trace.session"] == "one"
    usage = httpx.Response(200, text=told["mlflow.trace.tokenUsage"]).json()
    assert (usage["input_tokens"], usage["output_tokens"]) == (1300, 170)
    assert usage["cache_read_input_tokens"] == 300
    assert usage["cache_creation_input_tokens"] == 100
    cost = httpx.Response(200, text=told["mlflow.trace.cost"]).json()
    assert cost["total_cost"] == COST
    spans = trace["spans"]
    by_name = {span["name"]: span for span in spans}
    assert Counter(by_name.keys()) == NAMES - Counter({"session_start build": 1})
    assert len(spans) == len(by_name)
    root = by_name["invoke_agent build"]
    assert b64decode(root["span_id"]).hex() == trace_of("one").span_id
    check_tree([(s["name"], s["span_id"], s.get("parent_span_id")) for s in spans])
    assert int(root["end_time_unix_nano"]) > int(root["start_time_unix_nano"])
    failed = {s["name"] for s in spans if s["status"].get("code") == "STATUS_CODE_ERROR"}
    assert failed == {"execute_tool mcp__github__search", "error ValueError"}
    kinds = {name: _attribute(span, "mlflow.spanType") for name, span in by_name.items()}
    assert kinds["chat m"] in {"LLM", "CHAT_MODEL"}
    assert kinds["execute_tool bash"] == "TOOL"
    assert kinds["invoke_agent build"] == "AGENT"
    print(
        "MLflow: a session, its kinds, nested blocks, a child process, failures, tokens, cost, one root"
    )


def _attribute(span: dict[str, Any], name: str) -> object:
    [value] = [each["value"] for each in span["attributes"] if each["key"] == name]
    return value.get("string_value")


def main() -> None:
    """Parse the arguments, start one after the other, check."""
    here = Path(sys.executable).parent
    parser = argparse.ArgumentParser(prog="python -m systems", description=__doc__)
    parser.add_argument("--phoenix", type=Path, default=here, help="directory of its program")
    parser.add_argument("--mlflow", type=Path, default=here, help="directory of its programs")
    chosen = parser.parse_args()
    with mlflow(chosen.mlflow) as url:
        trio.run(check_mlflow, url)
        trio.run(check_mlflow_size, url)
    with phoenix(chosen.phoenix) as url:
        trio.run(check_phoenix, url)
        trio.run(check_phoenix_size, url)
    with phoenix(chosen.phoenix, PHOENIX_MAX_SPANS_QUEUE_SIZE="50") as url:
        trio.run(check_phoenix_full, url)
    secret = "A-secret-of-32-characters-with-a-1"
    with phoenix(chosen.phoenix, PHOENIX_ENABLE_AUTH="true", PHOENIX_SECRET=secret) as url:
        trio.run(check_phoenix_closed, url)


if __name__ == "__main__":
    main()
