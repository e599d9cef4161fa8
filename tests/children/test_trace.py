"""All processes of a session come to one trace."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran._trace import Trace, trace_of

INHERITED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@given(st.text(st.characters()))
def test_every_session_has_valid_ids(session_id: str) -> None:
    """The same ones whenever it is asked, whatever a host calls its session."""
    trace = trace_of(session_id)

    assert trace == trace_of(session_id)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace.parent)
    assert int(trace.trace_id, 16) and int(trace.span_id, 16)  # noqa: PT018 - two ids


def test_sessions_have_traces_of_their_own() -> None:
    """Two ids of sessions give two traces and two spans; these values are for all time."""
    assert trace_of("a") == Trace("4c6b35b113aa4f52198e61052f122c9c", "3c37d2612c19d91b")
    assert trace_of("a").trace_id != trace_of("b").trace_id
    assert trace_of("a").span_id != trace_of("b").span_id


def test_a_trace_that_was_there_goes_on() -> None:
    """With its flags; the span is the session's own."""
    trace = trace_of("a", INHERITED)

    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert trace.flags == "00"
    assert trace.span_id == trace_of("a").span_id


@pytest.mark.parametrize(
    "inherited",
    [
        "",
        "x",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
    ],
)
def test_what_is_no_trace_is_not_continued(inherited: str) -> None:
    """Then the session begins its own."""
    assert trace_of("a", inherited) == trace_of("a")


def test_a_version_to_come_may_say_more() -> None:
    """Its beginning is known; so says the standard."""
    later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"

    assert trace_of("a", later).trace_id == "0af7651916cd43dd8448eb211c80319c"
