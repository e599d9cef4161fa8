"""What recording costs the code that calls it: nanoseconds a call.

In: how often. Out: rows.
Does not know: what becomes of the events; the pipeline runs between the bursts, off
the clock.

The floor is what one would write by hand: a function that makes a dict of ten fields,
the time among them, and appends it to a deque. The row below it leaves out the dict:
nothing that keeps an event and the time can be faster than that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter_ns, time

import trimaran
from bench.events import mix
from bench.rounds import medians
from bench.rows import Aim, Row

__all__ = ["caller"]

GROUP = "in the caller"
_ON = {"BENCH_TELEMETRY_URL": "https://bench.invalid"}
_MOST_FLOORS = {"track": 3.0, "tool_call block": 15.0}


class _Nowhere:
    """A transport that takes everything."""

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        return trimaran.Answer(200)

    async def aclose(self) -> None:
        pass


async def caller(*, rounds: int, calls: int) -> list[Row]:
    """Time bursts of *calls* calls, at most what a mailbox holds."""
    events = [event for event in mix(8 * calls) if isinstance(event, trimaran.ToolCall)][:calls]
    kept: deque[object] = deque()

    async def let_go() -> None:
        kept.clear()

    def by_hand() -> None:
        for event in events:
            _note(kept, event)

    def bare_append() -> None:
        append = kept.append
        for event in events:
            append((time(), event))

    def track(session: trimaran.Session) -> Callable[[], None]:
        def burst() -> None:
            for event in events:
                session.track(event)

        return burst

    def blocks(session: trimaran.Session) -> Callable[[], None]:
        def burst() -> None:
            for event in events:
                with session.tool_call(event.tool_name, message_id=event.message_id):
                    pass

        return burst

    async with (
        trimaran.open_telemetry("bench", environ=_ON, transport=_Nowhere()) as telemetry,
        trimaran.open_telemetry("bench", environ={}) as disabled,
        telemetry.session() as session,
        disabled.session() as silent,
    ):

        async def delivered() -> None:
            await session.flush(timeout=math.inf)

        took = await medians(
            {
                "floor": _timed(by_hand, let_go, calls),
                "append alone": _timed(bare_append, let_go, calls),
                "track": _timed(track(session), delivered, calls),
                "tool_call block": _timed(blocks(session), delivered, calls),
                "track, disabled": _timed(track(silent), let_go, calls),
                "tool_call block, disabled": _timed(blocks(silent), let_go, calls),
            },
            rounds=rounds,
        )
        assert not session.statistics().dropped, "what was dropped was not fully measured"

    floor = took.pop("floor")
    return [
        Row(
            group=GROUP,
            name=name,
            unit="ns",
            value=value,
            floor=floor,
            aim=None if name == "append alone" else Aim("ratio", _MOST_FLOORS.get(name, 1.0)),
        )
        for name, value in took.items()
    ]


def _note(kept: deque[object], event: trimaran.ToolCall) -> None:
    kept.append(
        {
            "type": "tool_call",
            "timestamp": int(time() * 1000),
            "session_id": "ses_1",
            "message_id": event.message_id,
            "tool_name": event.tool_name,
            "tool_type": event.tool_type,
            "status": event.status,
            "duration_ms": event.duration_ms,
            "sequence_index": event.sequence_index,
            "previous_tool": event.previous_tool,
        }
    )


def _timed(
    burst: Callable[[], None], settle: Callable[[], Awaitable[None]], calls: int
) -> Callable[[], Awaitable[float]]:
    """A burst of *calls* on the clock, in ns a call, and what has to follow off it."""

    async def run() -> float:
        begun = perf_counter_ns()
        burst()
        took = perf_counter_ns() - begun
        await settle()
        return took / calls

    return run
