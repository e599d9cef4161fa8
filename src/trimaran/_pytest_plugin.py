"""The pytest fixture ``trimaran_capture``.

In: a test that asks for it. Out: a capture; and a process in which nothing else is sent.
Does not know: the event loop of the test; it serves plain and async tests alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trimaran.testing import Capture


@pytest.fixture
def trimaran_capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Telemetry that ends in memory, while every other telemetry is off.

    ``DO_NOT_TRACK`` is set for the test, so that code which opens a telemetry of its own,
    rather than with the capture, sends nothing.
    """
    from trimaran.testing import Capture  # noqa: PLC0415 - only tests that ask pay for it

    monkeypatch.setenv("DO_NOT_TRACK", "1")
    return Capture()
