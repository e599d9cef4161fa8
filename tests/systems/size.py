"""Much at once, as MLflow and Phoenix show it.

In: where they are. Out: a line for each of them; it fails where something is not whole.
Does not know: how they are started.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from typing import Any

import httpx
import trio

from otlp.large import large, names_of
from otlp.recorder import recording
from trimaran._trace import trace_of
from trimaran.otlp import MLFLOW

__all__ = ["check_mlflow_size", "check_phoenix_size"]

ARRIVAL = 600.0
"""Seconds: Phoenix answers before what it took can be read."""
REQUEST = 120.0
"""Seconds: one page may be long."""

Parents = dict[tuple[str, str], str]
"""Trace and span of each span, and what it stands below."""


async def check_phoenix_size(url: str) -> None:
    """Every event is there once, below what it belongs to, in the session that it is of."""
    count = await _check(lambda: parents_in_phoenix(url), url)
    print(f"Phoenix: a day's work, {count} spans")


async def check_mlflow_size(url: str) -> None:
    """The same."""
    headers = {"x-mlflow-experiment-id": "0"}
    count = await _check(lambda: parents_in_mlflow(url), url, headers=headers, dialect=MLFLOW)
    print(f"MLflow: a day's work, {count} spans")


async def _check(read: Callable[[], Parents], url: str, **settings: Any) -> int:
    """Send it all, wait until *read* gives as much, compare."""
    async with recording(url, **settings) as (telemetry, recorder):
        await large(telemetry, "large")
    expected = recorder.parents()
    traces = {trace_of(name).trace_id for name in names_of("large")}
    found: Parents = {}
    with trio.move_on_after(ARRIVAL):
        while len(found) < len(expected):
            everything = await trio.to_thread.run_sync(read)
            found = {ids: above for ids, above in everything.items() if ids[0] in traces}
            await trio.sleep(0.5)
    assert found == expected, (len(found), len(expected))
    return len(found)


def parents_in_phoenix(url: str) -> Parents:
    """All that it has, through its API."""
    found: Parents = {}
    cursor: str | None = None
    with httpx.Client(base_url=url, trust_env=False, timeout=REQUEST) as client:
        while True:
            parameters: dict[str, Any] = {"limit": 1000, **({"cursor": cursor} if cursor else {})}
            answer = client.get("/v1/projects/default/spans", params=parameters)
            answer.raise_for_status()
            page = answer.json()
            for span in page["data"]:
                ids = (span["context"]["trace_id"], span["context"]["span_id"])
                assert ids not in found
                found[ids] = span["parent_id"] or ""
            cursor = page.get("next_cursor")
            if not cursor:
                return found


def parents_in_mlflow(url: str) -> Parents:
    """All that it has, through its API."""
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    search: dict[str, Any] = {"locations": [place], "max_results": 100}
    found: Parents = {}
    base = f"{url}/api/3.0/mlflow/traces"
    with httpx.Client(base_url=base, trust_env=False, timeout=REQUEST) as client:
        while True:
            answer = client.post("/search", json=search)
            answer.raise_for_status()
            page = answer.json()
            for trace in page.get("traces", []):
                got = client.get("/get", params={"trace_id": trace["trace_id"]})
                got.raise_for_status()
                for span in got.json()["trace"]["spans"]:
                    ids = (_hex(span["trace_id"]), _hex(span["span_id"]))
                    assert ids not in found
                    found[ids] = _hex(span.get("parent_span_id") or "")
            search["page_token"] = page.get("next_page_token")
            if not search["page_token"]:
                return found


def _hex(text: str) -> str:
    return b64decode(text).hex()
