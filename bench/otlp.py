"""What an event costs on its way to a collector, beside OpenTelemetry's own SDK.

In: how many rounds and events. Out: rows.
Does not know: what spans look like, how they are sent.

Each way has a process of its own, ``python -m bench.otlp WAY URL COUNT``, and posts to the
same bare server. ``trimaran``: each event through ``session.send``, as OTLP. ``origin``: the
same, in the origin's wire. ``sdk``: the same spans, whose names, times and attributes are
ready before the clock starts, through the SDK's tracer, its batch processor with room for
all of them, and its exporter. ``burst``: the same with the processor's own room of 2,048;
what it drops is counted. Each compresses as it does by itself: Trimaran with gzip, the
exporter not at all.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import msgspec
import trio

import trimaran
from bench.events import mix
from bench.rounds import samples
from bench.rows import Aim, Row
from bench.serve import server
from trimaran.otlp import OPENINFERENCE, OtlpSettings, OtlpTransport
from trimaran.otlp.conventions import table_of
from trimaran.otlp.spans import Body, Names, Origin, Span, spans_of

__all__ = ["otlp"]

_A_THIRD = 1 / 3
_BATCH = 200
"""Events; what Trimaran puts into a batch by default."""


class _Spent(msgspec.Struct, frozen=True):
    """Seconds of processor time, of all threads, and the spans that were not sent."""

    cpu: float
    lost: int


async def otlp(*, rounds: int, events: int) -> list[Row]:
    """Send *events* in each way, in turn."""
    ways = ("trimaran", "origin", "sdk", "burst")
    async with server("sink") as url:
        spent = await samples(
            {way: partial(_send, way, url, events) for way in ways}, rounds=rounds
        )
    cpu = {way: median(each.cpu for each in spent[way]) / events * 1e6 for way in ways}
    lost = {way: median(each.lost for each in spent[way]) / events * 100 for way in ways}
    group = "to a collector, floor: OpenTelemetry's SDK"
    return [
        Row(
            group=group,
            name="processor time a span",
            unit="us",
            value=cpu["trimaran"],
            floor=cpu["sdk"],
            aim=Aim("ratio", _A_THIRD),
        ),
        Row(
            group=group,
            name="lost of a burst",
            unit="%",
            value=lost["trimaran"],
            floor=lost["burst"] or None,
            aim=Aim("value", 0.0),
        ),
        Row(
            group="to a collector, floor: the origin's wire",
            name="processor time an event",
            unit="us",
            value=cpu["trimaran"],
            floor=cpu["origin"],
        ),
    ]


async def _send(way: str, url: str, events: int) -> _Spent:
    command = [sys.executable, "-m", "bench.otlp", way, url, str(events)]
    done = await trio.run_process(command, capture_stdout=True)
    return msgspec.json.decode(done.stdout, type=_Spent)


async def _through_trimaran(url: str, count: int, transport: OtlpTransport | None) -> _Spent:
    events = mix(count)
    async with (
        trimaran.open_telemetry(
            "bench", version="1.0", environ={"BENCH_TELEMETRY_URL": url}, transport=transport
        ) as telemetry,
        telemetry.session(project_id="p", agent="build") as session,
    ):
        await session.flush(timeout=math.inf)
        gc.collect()
        cpu = time.process_time()
        for event in events:
            await session.send(event)
        await session.flush(timeout=math.inf)
        cpu = time.process_time() - cpu
    if transport is not None:
        await transport.aclose()
    return _Spent(cpu, session.statistics().dropped_total)


def _trimaran(url: str, count: int) -> _Spent:
    settings = OtlpSettings.from_environ({}, endpoint=url)
    return trio.run(_through_trimaran, url, count, OtlpTransport(settings))


def _origin(url: str, count: int) -> _Spent:
    return trio.run(_through_trimaran, url, count, None)


def _spans(count: int) -> list[Span]:
    """The spans that the events become."""
    now = int(time.time() * 1000)
    events = [
        msgspec.json.decode(msgspec.json.encode(event), type=dict[str, Any]) for event in mix(count)
    ]
    names = Names(OPENINFERENCE, table_of(OPENINFERENCE, {}))
    return [
        span
        for start in range(0, count, _BATCH)
        for span in spans_of(
            Body("s" * 32, now, events[start : start + _BATCH]), Origin(str(start)), names
        )
    ]


def _sdk(url: str, count: int, *, most_waiting: int | None) -> _Spent:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - only here
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )
    from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415

    logging.disable()  # a line for each span that it drops
    exporter = OTLPSpanExporter(f"{url}/v1/traces")
    exported = 0

    class Counting(SpanExporter):
        """Counts what reaches the exporter."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            nonlocal exported
            exported += len(spans)
            return exporter.export(spans)

        def shutdown(self) -> None:
            exporter.shutdown()

    provider = TracerProvider()
    provider.add_span_processor(
        BatchSpanProcessor(Counting(), max_queue_size=most_waiting or 2_048)
    )
    tracer = provider.get_tracer("bench")
    kinds = {1: SpanKind.INTERNAL, 3: SpanKind.CLIENT}
    ready = [(span, kinds[span.kind], {**span.shared, **span.attributes}) for span in _spans(count)]
    tracer.start_span("first").end()
    provider.force_flush()
    exported = 0
    gc.collect()
    cpu = time.process_time()
    for span, kind, attributes in ready:
        made = tracer.start_span(span.name, kind=kind, attributes=attributes, start_time=span.start)
        if span.is_error:
            made.set_status(Status(StatusCode.ERROR, span.message))
        made.end(span.end)
    provider.force_flush()
    cpu = time.process_time() - cpu
    provider.shutdown()
    return _Spent(cpu, count - exported)


_WAYS: Mapping[str, Callable[[str, int], _Spent]] = {
    "trimaran": _trimaran,
    "origin": _origin,
    "sdk": lambda url, count: _sdk(url, count, most_waiting=count + 1),
    "burst": lambda url, count: _sdk(url, count, most_waiting=None),
}

if __name__ == "__main__":
    way, url, count = sys.argv[1:]
    os.environ["NO_PROXY"] = "*"
    print(msgspec.json.encode(_WAYS[way](url, int(count))).decode())
