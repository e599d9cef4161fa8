"""The pytest fixture ``trimaran_capture``.

In: a test that asks for it. Out: a capture; and a process in which nothing else is sent.
Does not know: the event loop of the test; it serves plain and async tests alike.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trimaran.testing import Capture

_REFUSAL = b"no network under trimaran_capture: give its open(), or transport=trimaran_capture"


@pytest.fixture
def trimaran_capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Telemetry that ends in memory, while every other telemetry is off.

    ``DO_NOT_TRACK`` is set for the test, so that code which opens a telemetry of its own,
    rather than with the capture, sends nothing. Where that gives an ``environ`` of its own,
    which does not say so, requests are refused before they are made, and a log line says why.
    """
    from trimaran import Answer  # noqa: PLC0415 - only tests that ask pay for it
    from trimaran.testing import Capture, ScriptedTransport  # noqa: PLC0415 - as above

    def refusing(*_given: object) -> ScriptedTransport:
        return ScriptedTransport(itertools.repeat(Answer(403, body=_REFUSAL)))

    monkeypatch.setattr("trimaran._endpoint._http_transport", refusing)
    monkeypatch.setattr("trimaran.otlp.transport._http_transport", refusing)
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    return Capture()
