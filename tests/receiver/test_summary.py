"""What a session comes to is added up from its events, batch by batch."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran import Tokens
from trimaran.receiver.ingest import Batch, parse
from trimaran.receiver.summary import Summary, add
from trimaran.receiver.wire import MAX_NUMBER


def batch(*events: dict[str, Any], **envelope: Any) -> Batch:
    stamped = [{"timestamp": 1000, **event} for event in events]
    return parse(
        json.dumps({"session_id": "s", "timestamp": 1, "events": stamped, **envelope}).encode()
    )


def summary_of(*batches: Batch) -> Summary:
    summary = Summary()
    for number, one in enumerate(batches):
        summary = add(summary, one, received=number)
    return summary


def generation(**fields: Any) -> dict[str, Any]:
    return {"type": "generation", **fields}


def test_events_are_counted_by_type() -> None:
    """Over all batches, the host's own types among them."""
    summary = summary_of(batch({"type": "deploy"}, generation()), batch(generation(), generation()))

    assert summary.event_count == 4
    assert summary.events_by_type == {"deploy": 1, "generation": 3}
    assert summary.received == 1


def test_tokens_and_cost_are_those_of_the_generations() -> None:
    """Each of the five parts on its own; totals that a sender claims are not looked at."""
    summary = summary_of(
        batch(
            generation(
                cost=0.25,
                tokens={
                    "input": 1,
                    "output": 2,
                    "reasoning": 3,
                    "cache_read": 4,
                    "cache_write": 5,
                },
            )
        ),
        batch(
            generation(cost=0.5, tokens={"input": 10, "cache_read": 40}),
            {"type": "session_end", "total_cost": 99, "total_tokens": 99},
        ),
    )

    assert summary.tokens == Tokens(input=11, output=2, reasoning=3, cache_read=44, cache_write=5)
    assert summary.tokens.total == 65
    assert summary.cost == 0.75


def test_costs_are_summed_up_exactly() -> None:
    """Within a batch and over batches: ten generations for ten cents each cost a dollar."""
    dime = generation(cost=0.1)

    assert summary_of(batch(*[dime] * 10)).cost == 1.0
    assert summary_of(*[batch(dime) for _ in range(10)]).cost == 1.0


def test_failures_are_counted_wherever_they_are_told() -> None:
    """Errors, and tool and bridge calls that failed."""
    summary = summary_of(
        batch(
            {"type": "error", "error_name": "OSError"},
            {"type": "tool_call", "tool_name": "x", "status": "error"},
            {"type": "tool_call", "tool_name": "x", "status": "success"},
            {"type": "bridge_call", "method": "x", "status": "error"},
            {"type": "deploy", "status": "error"},
        )
    )

    assert summary.errors == 3


def test_a_session_runs_from_its_earliest_event_to_its_latest() -> None:
    """Also when they come in another order, and while there is no end."""
    summary = summary_of(
        batch({"type": "a", "timestamp": 5000}), batch({"type": "a", "timestamp": 2000})
    )

    assert (summary.start, summary.last, summary.end) == (2000, 5000, None)
    assert summary.elapsed_ms == 3000


def test_its_end_knows_best_how_long_it_took() -> None:
    """It was measured by a clock that does not jump."""
    summary = summary_of(
        batch({"type": "session_start"}),
        batch({"type": "session_end", "timestamp": 9000, "duration_ms": 7999.5}),
    )

    assert summary.end == 9000
    assert summary.elapsed_ms == 7999.5


def test_an_end_without_a_duration_leaves_the_stamps() -> None:
    """A sender that did not measure is not taken to say 0."""
    summary = summary_of(
        batch({"type": "session_start"}, {"type": "session_end", "timestamp": 9000})
    )

    assert summary.elapsed_ms == 8000


def test_a_session_that_is_taken_up_again_is_open() -> None:
    """Until it ends again."""
    ended = batch({"type": "session_start"}, {"type": "session_end", "timestamp": 2000})
    resumed = batch({"type": "session_start", "timestamp": 5000})

    assert summary_of(ended, resumed).end is None
    assert summary_of(ended, resumed).elapsed_ms == 4000
    assert summary_of(ended, resumed, ended).end == 2000


def test_a_start_says_who_the_agent_is() -> None:
    """The last one does, over what generations say."""
    start = {"type": "session_start", "agent": "build", "model_id": "m", "provider_id": "v"}
    other = generation(agent="plan", model_id="n", provider_id="w")

    told = summary_of(batch(other, start, other))

    assert (told.agent, told.model, told.provider) == ("build", "m", "v")
    assert summary_of(batch(start, {"type": "session_start"})).agent == "build"


def test_without_a_start_the_first_generation_does() -> None:
    """A session that was joined late has a name too."""
    told = summary_of(batch(generation(agent="a", model_id="m"), generation(agent="b")))

    assert (told.agent, told.model, told.provider) == ("a", "m", "")


def test_the_envelope_says_where_it_comes_from() -> None:
    """The last batch that says so; the start's project counts where no batch has one."""
    first = batch(project_id="p", cli_version="1", user_email="kim@example.com")
    last = batch({"type": "session_start", "project_id": "q"}, cli_version="2")

    told = summary_of(first, last)

    assert (told.project, told.version, told.user) == ("p", "2", "kim@example.com")
    assert summary_of(last).project == "q"
    assert summary_of(first, batch(project_id="r")).project == "r"


def test_sums_stop_at_what_json_can_say() -> None:
    """They never turn into something that a reader gets wrong."""
    most = generation(tokens={"input": MAX_NUMBER})

    assert summary_of(batch(most, most)).tokens.input == MAX_NUMBER


def test_nothing_comes_to_nothing() -> None:
    """A session without an event has no times."""
    assert Summary().elapsed_ms == 0
    assert summary_of(batch()).start is None


@given(st.lists(st.integers(0, 100), max_size=12), st.integers(0, 12))
def test_how_events_are_batched_makes_no_difference(stamps: list[int], cut: int) -> None:
    """One batch or two: the summary is the same."""
    sent = [generation(timestamp=stamp, cost=1, tokens={"input": stamp}) for stamp in stamps]
    whole = add(Summary(), batch(*sent), received=0)
    halves = add(add(Summary(), batch(*sent[:cut]), received=0), batch(*sent[cut:]), received=0)

    assert halves == whole


@pytest.mark.parametrize("field", ["agent", "model", "provider", "project", "version", "user"])
def test_an_empty_summary_says_nothing(field: str) -> None:
    """What nobody told is empty, not made up."""
    assert getattr(summary_of(batch({"type": "a"})), field) == ""
