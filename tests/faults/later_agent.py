"""The next process of the same app, as a program: ``python -m faults.later_agent SPOOL``.

In: the directory of a spool; the endpoint's URL, in its environment. Out: a line of JSON
with what became of the events that were left there.
Does not know: who left them, and why.
"""

from __future__ import annotations

import json
import sys

import trio

import trimaran
from patience import PATIENCE

__all__ = ["VERSION"]

VERSION = "later"
"""What it calls itself, so that an endpoint can tell it from the one before."""


async def main(directory: str) -> None:
    """Stay until nothing is left."""
    settings = trimaran.Settings(
        spool=trimaran.Spool(directory=directory),
        drain_timeout=PATIENCE / 2,
        request_timeout=1.0,  # what comes before the endpoint knows this process hangs
        retry_initial=0.05,
        retry_max=1.0,
    )
    async with trimaran.open_telemetry("faults", version=VERSION, settings=settings) as telemetry:
        async with telemetry.session(agent="later") as session:
            await session.flush(timeout=PATIENCE)
            with trio.move_on_after(PATIENCE):
                while telemetry.leftovers().pending:  # noqa: ASYNC110 - there is no event for it
                    await trio.sleep(0.02)
    left = telemetry.leftovers()
    print(json.dumps({"tracked": left.tracked, "delivered": left.delivered}), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
