from collections.abc import Iterator
from pathlib import Path

import pytest

from process.pairs import short_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that sockets can be in."""
    with short_directory() as path:
        yield path
