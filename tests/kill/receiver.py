"""A receiver that is to be killed: ``python -m kill.receiver DATABASE PORT MOST_BYTES``.

In: where it keeps what it takes, the port on loopback (0 for any), how large a file may
become (0 for no bound); later SIGUSR1, which lifts that. Out: its URL, as a line.
Does not know: who sends.
"""

from __future__ import annotations

import resource
import signal
import sys
from functools import partial

import trio

from trimaran.receiver import Receiver, run_receiver

__all__: list[str] = []


async def main(database: str, port: int, most_bytes: int) -> None:
    """Receive until killed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most_bytes:
        # As good as a disk that is full: what would go beyond it fails with EFBIG.
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async with trio.open_nursery() as nursery:
            receiver: Receiver = await nursery.start(
                partial(run_receiver, port=port, database=database)
            )
            print(receiver.url, flush=True)
            async for _ in signals:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


if __name__ == "__main__":
    given, at, bound = sys.argv[1:]
    trio.run(main, given, int(at), int(bound))
