"""``python -m trimaran._relay ORDERS``: the process itself, started by an agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trimaran._relay.orders import orders_from
from trimaran._relay.place import RelayPlace


def main(words: list[str]) -> None:
    """Be the relay, if there is none."""
    orders = orders_from(words)
    lock = RelayPlace(Path(orders.directory)).lock()
    if lock is None:
        return
    try:
        _leave_terminal()
        # Only with the lock in hand: whoever is too late ends before this takes its time.
        import trio  # noqa: PLC0415

        from trimaran._relay.server import RelayServer  # noqa: PLC0415

        trio.run(RelayServer(orders).run)
    finally:
        lock.release(remove=True)


def _leave_terminal() -> None:
    """Say, to who waits for it, that the lock is taken: nothing more will be said."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


if __name__ == "__main__":
    main(sys.argv[1:])
