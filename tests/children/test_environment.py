"""What a child reads is what its parent wrote; anything else is no parent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran import Tier
from trimaran._environment import (
    LONGEST,
    PARENT,
    PROTOCOL,
    Parent,
    parent_in,
    with_parent,
    without_consent,
    without_parent,
)

TEXT = st.text(st.characters(), max_size=50)
NAME = st.text(st.characters(), min_size=1, max_size=50)
PARENTS = st.builds(
    Parent,
    protocol=st.just(PROTOCOL),
    tier=st.sampled_from([Tier.ANONYMOUS, Tier.AUTHENTICATED]),
    app=NAME,
    session_id=NAME,
    pid=st.integers(1, 2**31),
    socket=st.none() | TEXT,
    is_over=st.booleans(),
    url=st.none() | TEXT,
    has_own_transport=st.booleans(),
    version=TEXT,
    project_id=TEXT,
    agent=TEXT,
    model_id=TEXT,
    provider_id=TEXT,
    parent_session_id=TEXT,
)
PLAIN = Parent(protocol=PROTOCOL, tier=Tier.ANONYMOUS, app="test", session_id="s")


@given(PARENTS)
def test_a_child_reads_what_its_parent_wrote(parent: Parent) -> None:
    """Whatever the host calls things; the variable is ASCII, and has no NUL."""
    environ = with_parent({}, parent)

    assert environ is not None
    assert environ[PARENT].isascii()
    assert environ[PARENT].isprintable()
    assert parent_in(environ) == parent


@given(
    st.text(max_size=80) | st.sampled_from(["{}", "[]", "null", "1", '{"tier": "x"}', "[" * 9999])
)
def test_anything_else_is_no_parent(written: str) -> None:
    """Nothing is raised for what stands there."""
    parent = parent_in({PARENT: written})

    assert parent is None or not parent.is_on


@pytest.mark.parametrize("missing", ["app", "session_id"])
def test_a_parent_has_a_session_and_an_app(missing: str) -> None:
    """Without a name there is nothing to take part in."""
    environ = with_parent({}, PLAIN)
    assert environ is not None
    told = json.loads(environ[PARENT])
    del told[missing]

    assert parent_in({PARENT: json.dumps(told)}) is None


def test_the_base_is_left_as_it_is() -> None:
    """A copy is given, with two variables more; another parent's is replaced."""
    base = {"PATH": "/bin", PARENT: "another"}

    environ = with_parent(base, PLAIN)

    assert base == {"PATH": "/bin", PARENT: "another"}
    assert environ is not None
    assert environ.keys() == {"PATH", PARENT, "TRACEPARENT"}
    assert environ["PATH"] == "/bin"
    assert parent_in(environ) == PLAIN


def test_too_much_for_an_environment_is_not_said() -> None:
    """A program that got it could not be started."""
    parent = Parent(
        protocol=PROTOCOL, tier=Tier.ANONYMOUS, app="test", session_id="s", project_id="p" * LONGEST
    )

    assert with_parent({}, parent) is None


def test_an_opt_out_goes_on() -> None:
    """To what attaches, and to what opens a telemetry of its own."""
    base = {"PATH": "/bin"}

    environ = without_consent(base)

    parent = parent_in(environ)
    assert parent is not None
    assert not parent.is_on
    assert environ["DO_NOT_TRACK"] == "1"
    assert base == {"PATH": "/bin"}


def test_what_is_not_set_up_says_nothing() -> None:
    """Only another session's parent goes."""
    assert without_parent({"PATH": "/bin", PARENT: "x", "TRACEPARENT": "y"}) == {
        "PATH": "/bin",
        "TRACEPARENT": "y",
    }


@pytest.mark.parametrize(
    ("parent", "is_reachable"),
    [
        (PLAIN, False),
        (Parent(protocol=PROTOCOL, socket="/s"), True),
        (Parent(protocol=PROTOCOL + 1, socket="/s"), False),
    ],
)
def test_a_parent_of_another_version_is_not_spoken_to(parent: Parent, is_reachable: bool) -> None:
    """Nor is one that has no socket."""
    assert parent.is_reachable is is_reachable
