"""The block around which a telemetry runs: how it is entered, and every way to leave it.

In: a supervisor. Out: the same, running while the block lasts and drained after it.
Does not know: tiers, accounts, what runs under the supervisor.

All tasks of ours are protected from Ctrl-C: it goes to the host's code, as it would
without us, and reaches us as the exception that the block is left with.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import trio

from trimaran._supervisor import Supervisor

__all__ = ["running"]


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def running(supervisor: Supervisor) -> AsyncGenerator[None]:
    """Run *supervisor* around a block, and let it drain when the block is left.

    An exception of the block comes out as it is, the same object; a Ctrl-C while it
    drains as ``KeyboardInterrupt``. The block itself can be cancelled as ever.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            # Not nursery.start(): cancelled in the middle, it would wait for a supervisor
            # that no cancellation reaches.
            nursery.start_soon(supervisor.run)
            try:
                await supervisor.is_ready.wait()
                yield
            except BaseException as error:  # noqa: BLE001 - raised again below, as it is
                failure = error
            supervisor.close()
    except BaseException as ended:
        own = _other_than_cancelled(ended)
        if isinstance(own, KeyboardInterrupt) or (
            own is not None and (failure is None or isinstance(failure, trio.Cancelled))
        ):
            # A Ctrl-C while it drained, or a bug that strict settings let out. The block's
            # Cancelled, if there is one, came from the nursery that it broke.
            raise own from None
        if failure is None:
            raise
    if failure is not None:
        raise failure


def _other_than_cancelled(error: BaseException) -> BaseException | None:
    """What is in *error* beside cancellations; one exception stands alone.

    The nursery is a detail of ours: a Ctrl-C is to come out as ``KeyboardInterrupt``.
    """
    if not isinstance(error, BaseExceptionGroup):
        return None if isinstance(error, trio.Cancelled) else error
    own = cast("BaseExceptionGroup[BaseException]", error).split(trio.Cancelled)[1]
    return None if own is None else _alone(own)


def _alone(error: BaseException) -> BaseException:
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    first, *others = group.exceptions
    return group if others else _alone(first)
