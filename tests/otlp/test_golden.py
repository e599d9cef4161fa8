"""What goes out for each type of event is what stands in a file."""

from __future__ import annotations

import pytest

import trimaran
from otlp.golden import DIALECTS, EVENTS, GOLDEN, file_of, rendered, rendered_nested


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("name", EVENTS)
def test_an_event_becomes_the_span_in_its_file(name: str, dialect: trimaran.otlp.Dialect) -> None:
    """To the letter. After a change that is meant, ``python tests/otlp/golden.py``."""
    assert rendered(name, dialect) == file_of(name, dialect).read_bytes()


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_blocks_inside_each_other_become_the_spans_in_their_file(
    dialect: trimaran.otlp.Dialect,
) -> None:
    """In a trace from outside, with agent and model at the root, linked with its parent's."""
    assert rendered_nested(dialect) == file_of("nested", dialect).read_bytes()


def test_there_is_a_file_for_every_type_and_no_other() -> None:
    """No type is left out, and no file tells of what is gone."""
    names = [*EVENTS, "nested"]
    known = {file_of(name, dialect) for name in names for dialect in DIALECTS.values()}

    assert set(GOLDEN.rglob("*.json")) == known
    assert trimaran._events.BUILT_IN_EVENTS.keys() <= EVENTS.keys()


def test_a_dialect_shows_its_name() -> None:
    """And not its whole table."""
    assert repr(trimaran.otlp.LANGFUSE) == "Dialect('langfuse')"
