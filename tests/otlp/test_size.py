"""Much at once arrives whole behind a real collector."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from otlp.comparing import check
from otlp.large import EVENTS_OF_MANY, LONG, MANY, NAMES_OF_CHILDREN, large, names_of
from otlp.nested import tree_of
from otlp.recorder import recording
from otlp.sink import Sink
from otlp.systems import TestAgent, running_collector
from patience import PATIENCE
from trimaran._trace import trace_of

if TYPE_CHECKING:
    from otlp.systems import ReadSpan

pytestmark = pytest.mark.timeout(15 * PATIENCE)  # many thousand spans, on two cores


async def test_much_at_once_arrives_whole_behind_a_collector() -> None:
    """A session of 10,000 events, 200 at the same time, sub-agents and child processes: every
    event is one span, once, and as it was recorded.
    """
    sink = Sink()
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        with running_collector(TestAgent(sink.url), "large") as url:
            async with recording(url) as (telemetry, recorder):
                await large(telemetry, "large")
            count = len(recorder.events())
            with trio.fail_after(10 * PATIENCE):
                while len(sink.spans) < count:  # noqa: ASYNC110 - a collector tells nobody
                    await trio.sleep(0.05)
        nursery.cancel_scope.cancel()

    # A collector keeps no order among batches; each session's last event is its root.
    events = recorder.events()
    by_id = {(span.trace_id, span.span_id): span for span in sink.spans}
    assert len(by_id) == len(sink.spans) == count
    traces = {name: trace_of(name) for name in names_of("large")}
    ids = [
        (trace.trace_id, trace.span_id if event["type"] == "session_end" else event["span_id"])
        for event in events
        for trace in [traces[event["session_id"]]]
    ]
    check([by_id[each] for each in ids], recorder)

    of_session = Counter(span.attributes["session.id"] for span in sink.spans)
    assert of_session["large-long"] == LONG + 2
    assert {of_session[f"large-{number}"] for number in range(MANY)} == {EVENTS_OF_MANY}
    check_family(sink.spans)


def check_family(spans: list[ReadSpan]) -> None:
    """Children are below the block that they were started in, sub-agents are linked."""
    names = {span.span_id: span.name for span in spans}
    family = trace_of("large-family")
    below = {
        s.name: names.get(s.parent_span_id, "") for s in spans if s.trace_id == family.trace_id
    }
    for name in NAMES_OF_CHILDREN:
        assert below.items() >= tree_of(name, "execute_tool outer").items()
    linked = [s.attributes["session.id"] for s in spans if s.links == [family[:2]]]
    assert sorted(linked) == ["large-sub0", "large-sub1", "large-sub2"]
