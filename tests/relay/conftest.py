"""A relay's directory for each test, of which nothing runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .world import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A place of its own, whose relay ends soon after it is not needed."""
    with open_world(tmp_path / "relay", idle_timeout=0.5) as opened:
        yield opened
