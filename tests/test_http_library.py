"""Which HTTP library the tests run on: httpx, or httpx2 in the environment that says so."""

import os
import sys
from functools import partial
from pathlib import Path

import trio

from patience import PATIENCE
from trimaran.receiver import run_receiver

PROGRAM = """
import sys, trimaran, trio

async def main():
    environ = {"ALTIMATE_TELEMETRY_URL": sys.argv[1]}
    settings = trimaran.Settings(drain_timeout=60)
    async with trimaran.open_telemetry("altimate", environ=environ, settings=settings) as telemetry:
        async with telemetry.session(project_id="p") as session:
            session.command("init")
    assert session.statistics().delivered == 3

trio.run(main)
print(*sorted(sys.modules.keys() & {"httpcore", "httpcore2"}))
"""


async def test_delivers_with_the_library_that_the_environment_names(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A delivered session has loaded the engine of that library, and not that of the other.

    httpcore is httpx's engine and httpcore2 is httpx2's; each is loaded when its client is made.
    """
    receiver = await nursery.start(partial(run_receiver, port=0, database=tmp_path / "store.db"))

    with trio.fail_after(PATIENCE):
        result = await trio.run_process(
            [sys.executable, "-c", PROGRAM, receiver.url], capture_stdout=True, capture_stderr=True
        )

    assert result.stdout.decode().split() == [os.environ.get("TRIMARAN_TEST_HTTP_CORE", "httpcore")]
