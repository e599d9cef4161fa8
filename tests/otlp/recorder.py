"""What went through a transport, to be compared with what arrives.

In: a telemetry's requests. Out: the same, passed on; the events in them.
Does not know: who takes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

import trimaran
from patience import PATIENCE
from trimaran._trace import trace_of
from trimaran.otlp import OPENINFERENCE, OtlpSettings, OtlpTransport

__all__ = ["Recorder", "recording"]


class Recorder:
    """A transport that keeps what it passes on."""

    wants_spans = True

    def __init__(self, inner: OtlpTransport, *, roots: set[str]) -> None:
        self._inner = inner
        self.roots: set[str] = roots
        """Types of events that are their session's root."""
        self.requests: list[trimaran.Request] = []

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        """Pass it on."""
        self.requests.append(request)
        return await self._inner.attempt(request)

    async def aclose(self) -> None:
        """Close the inner one."""
        await self._inner.aclose()

    def events(self) -> list[dict[str, Any]]:
        """What was sent, as it was recorded."""
        bodies = [msgspec.json.decode(request.body) for request in self.requests]
        return [event for body in bodies for event in body["events"]]

    def parents(self) -> dict[tuple[str, str], str]:
        """Trace and span of everything that is to be seen, and what it stands below; "" for
        nothing.
        """
        found: dict[tuple[str, str], str] = {}
        for event in self.events():
            trace = trace_of(event["session_id"])
            if event["type"] in self.roots:
                found[trace[:2]] = ""
            else:
                above = event.get("parent_span_id", trace.span_id)
                found[trace.trace_id, event["span_id"]] = above
        return found


@asynccontextmanager
async def recording(
    url: str, **settings: Any
) -> AsyncIterator[tuple[trimaran.Telemetry, Recorder]]:
    """Telemetry that delivers to *url*, with time enough to do so."""
    transport = OtlpTransport(OtlpSettings.from_environ({}, endpoint=url, **settings))
    is_open = settings.get("open_root") or settings.get("signal") == "logs"
    is_open = is_open or settings.get("dialect", OPENINFERENCE).replaces_spans
    roots = {"session_start", "session_end"} if is_open else {"session_end"}
    recorder = Recorder(transport, roots=roots)
    async with trimaran.open_telemetry(
        "test",
        version="0.5.7",
        environ={"TEST_TELEMETRY_URL": url},
        transport=recorder,
        settings=trimaran.Settings(drain_timeout=10 * PATIENCE),
    ) as telemetry:
        yield telemetry, recorder
    await recorder.aclose()
