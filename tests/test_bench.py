import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from patience import PATIENCE, unmeasured

pytestmark = pytest.mark.timeout(15 * PATIENCE)  # it measures everything, once

ROOT = Path(__file__).parent.parent

EXPECTED = {
    ("in the caller", "append alone"),
    ("in the caller", "track"),
    ("in the caller", "tool_call block"),
    ("in the caller", "track, disabled"),
    ("in the caller", "tool_call block, disabled"),
    ("end to end, to a bare server", "processor time an event"),
    ("end to end, to a bare server", "wall time an event"),
    ("end to end, to our receiver", "processor time an event"),
    ("end to end, to our receiver", "wall time an event"),
    ("with a spool, floor: without one", "processor time an event, survives kill"),
    ("with a spool, floor: without one", "wall time an event, survives kill"),
    ("with a spool, floor: without one", "processor time an event, survives power loss"),
    ("with a spool, floor: without one", "wall time an event, survives power loss"),
    ("100,000 events that an earlier process left", "processor time until they are delivered"),
    ("100,000 events that an earlier process left", "wall time until they are delivered"),
    ("a value of 300 bytes, floor: a bare socket", "processor time, process channel"),
    ("a value of 300 bytes, floor: a bare socket", "processor time, memory channel"),
    ("a value of 300 bytes, floor: a bare socket", "wall time, process channel"),
    ("a value of 300 bytes, floor: a bare socket", "wall time, memory channel"),
    ("a value of 50,000 bytes, floor: a bare socket", "processor time, process channel"),
    ("a value of 50,000 bytes, floor: a bare socket", "processor time, memory channel"),
    ("a value of 50,000 bytes, floor: a bare socket", "wall time, process channel"),
    ("a value of 50,000 bytes, floor: a bare socket", "wall time, memory channel"),
    ("leaving with a relay, floor: without", "from the last event on, network up"),
    ("leaving with a relay, floor: without", "from the last event on, network hung"),
    ("leaving with a relay, floor: without", "from the last event on, network down"),
    ("a relay that has nothing to do", "resident memory"),
    ("a relay that has nothing to do", "processor time while idle"),
    ("to a collector, floor: OpenTelemetry's SDK", "processor time a span"),
    ("to a collector, floor: OpenTelemetry's SDK", "lost of a burst"),
    ("to a collector, floor: the origin's wire", "processor time an event"),
    ("requests in an outage of ten minutes", "1,000 sessions, floor: one"),
    ("memory of idle sessions, over none", "1 session"),
    ("memory of idle sessions, over none", "100 sessions"),
    ("memory of idle sessions, over none", "1,000 sessions"),
    ("start", "import trimaran, floor: import trio"),
}


MAY_BE_NOTHING = {"processor time while idle", "lost of a burst"}


async def test_measures_everything(tmp_path: Path) -> None:
    """A quick run gives each row as a positive number, beside a positive floor if any."""
    file = tmp_path / "rows.json"

    # Its processes are not measured for coverage: it says nothing of the library's tests,
    # and makes each of them many times slower.
    with trio.fail_after(10 * PATIENCE):
        done = await trio.run_process(
            [sys.executable, "-m", "bench", "--quick", "--json", file],
            cwd=ROOT,
            env=unmeasured(os.environ),
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )

    output = done.stdout.decode()
    assert done.returncode == 0, output
    rows: list[dict[str, Any]] = msgspec.json.decode(file.read_bytes())
    assert {(row["group"], row["name"]) for row in rows} == EXPECTED
    for row in rows:
        assert row["value"] > 0 or row["name"] in MAY_BE_NOTHING, row
        assert row["floor"] is None or row["floor"] > 0, row
        assert row["name"] in output
