"""A place for sockets that is a test's own, and is looked at when it is over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

import trimaran
from trimaran.testing import Capture

URL = "https://capture.invalid"


@dataclass(frozen=True)
class Home:
    """Where sockets are made."""

    directory: Path

    @property
    def environ(self) -> dict[str, str]:
        """An environment that sends anonymously, and has its sockets here."""
        return {"TEST_TELEMETRY_URL": URL, "XDG_RUNTIME_DIR": str(self.directory)}

    def open(
        self, transport: trimaran.Transport, **more: object
    ) -> AbstractAsyncContextManager[trimaran.Telemetry]:
        """A telemetry with its sockets here; strict, so that a bug in it comes out."""
        settings = trimaran.Settings(strict=True, **more)  # type: ignore[arg-type]
        return trimaran.open_telemetry(
            "test", environ=self.environ, settings=settings, transport=transport
        )

    def sockets(self) -> list[str]:
        """The files of the sockets that there are."""
        return [path.name for path in (self.directory / "trimaran").glob("*")]


@pytest.fixture
def home() -> Iterator[Home]:
    """A place for sockets, with a path that is short enough; nothing may be left there."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        place = Home(Path(directory))
        yield place
        assert place.sockets() == []


@pytest.fixture
def capture() -> Capture:
    """What the parent delivers."""
    return Capture()
