"""Systems that take OTLP, started once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from otlp.systems import TestAgent, running_collector, running_test_agent

COLLECTED = "collected"
"""The token of all that comes through the collector."""

_tokens = count()


@pytest.fixture(scope="session")
def test_agent() -> Iterator[TestAgent]:
    """A test agent, for all tests."""
    with running_test_agent() as agent:
        yield agent


@pytest.fixture(scope="session")
def collector(test_agent: TestAgent) -> Iterator[str]:
    """The URL of a collector that passes on to the test agent, for all tests."""
    with running_collector(test_agent, COLLECTED) as url:
        yield url


@pytest.fixture
def token() -> str:
    """A name that nobody has sent under yet."""
    return f"test-{next(_tokens)}"
