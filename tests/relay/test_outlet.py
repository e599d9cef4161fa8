"""One destination of a relay by itself: its disk, its lanes, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

import trimaran
from patience import PATIENCE
from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.batch import Batch
from trimaran._relay.messages import HandedBatch
from trimaran._relay.orders import orders_of
from trimaran._relay.outlet import Circumstances, Outlet, _Lane
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.file import SpoolFile
from trimaran._spool.keeper import SpoolKeeper
from trimaran._spool.values import SpoolError
from trimaran.testing import ScriptedTransport

from .world import until

BATCH = HandedBatch(key="k-0", body=b'{"events": [{}]}', events=1)


def outlet_on(
    directory: Path,
    nursery: trio.Nursery,
    transport: ScriptedTransport,
    destination: str = "anonymous https://x.test",
) -> Outlet:
    """One that waits for very long after an attempt that failed."""
    numbers = count()
    settings = trimaran.Settings(retry_initial=1_000.0)
    return Outlet(
        destination,
        Circumstances(
            orders_of(trimaran.Relay(directory=str(directory)), settings),
            nursery=nursery,
            diagnostics=Diagnostics(lambda: 0.0),
            random=Random(0),
            wall_clock=lambda: 0.0,
            new_id=lambda: f"owner{next(numbers)}",
            transport=transport,
            changed=lambda: None,
        ),
    )


def test_a_lane_has_the_next_body_alone_in_memory() -> None:
    """The others are read from the disk when it is their turn."""
    lane = _Lane()

    for key in ("a", "b", "c"):
        lane.put(Batch(key=key, body=b"{}", events=1))

    assert [lane.receive.receive_nowait().body for _ in range(3)] == [b"{}", None, None]


def test_a_lane_that_is_closed_gives_nothing_out() -> None:
    """What waits in it is on disk, and left there."""
    lane = _Lane()
    lane.put(Batch(key="a", body=b"{}", events=1))

    lane.close()

    with pytest.raises(trio.EndOfChannel):
        lane.receive.receive_nowait()


async def test_what_was_not_delivered_is_tried_once_more_at_the_end(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """However long it was to wait."""
    transport = ScriptedTransport([trimaran.Answer(503)])
    outlet = outlet_on(tmp_path, nursery, transport)
    assert await outlet.take("a", [BATCH])
    await until(lambda: len(transport.requests) == 1)
    await trio.testing.wait_all_tasks_blocked()
    assert outlet.report().waiting == 1

    outlet.end()

    await until(lambda: outlet.report().waiting == 0)
    assert len(transport.taken) == 1
    await outlet.aclose()


async def test_what_is_handed_over_after_a_cancel_is_taken_once(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The disk may have had it by then, and nobody have heard of it."""
    transport = ScriptedTransport()
    outlet = outlet_on(tmp_path, nursery, transport)

    async with trio.open_nursery() as agent:
        agent.start_soon(outlet.take, "a", [BATCH])
        await trio.testing.wait_all_tasks_blocked()
        agent.cancel_scope.cancel()
    assert outlet.report().waiting == 0
    assert await outlet.take("a", [BATCH])

    await until(lambda: len(transport.taken) == 1)
    assert outlet.report().delivered == 1
    await outlet.aclose()


async def test_a_token_is_forgotten_with_the_last_batch_that_needs_it(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Its agent may have gone before."""
    outlet = outlet_on(
        tmp_path, nursery, ScriptedTransport(), "authenticated https://x.test ann@x.test"
    )
    wallet = outlet.wallet
    assert wallet is not None
    wallet.join("a", "anns")
    assert await outlet.take("a", [BATCH])
    wallet.leave("a")
    outlet.tidy()

    await until(lambda: outlet.report().waiting == 0)

    assert wallet.held is None
    await outlet.aclose()


async def test_a_disk_that_does_not_note_who_came_later_is_told(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who handed over the same batch could not take it back: it has to know that."""
    outlet = outlet_on(tmp_path, nursery, ScriptedTransport([trimaran.Answer(503)]))
    assert await outlet.take("gone", [BATCH])

    def fail(*_given: object) -> None:
        raise SpoolError("it is broken")

    monkeypatch.setattr(SpoolFile, "also_handed_by", fail)

    assert not await outlet.take("heir", [BATCH])
    assert await outlet.take("gone", [BATCH])
    await outlet.aclose()
    nursery.cancel_scope.cancel()


async def test_a_withdrawal_waits_for_what_is_just_being_taken(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is withdrawn as well: nothing of it is on disk afterwards."""
    outlet = outlet_on(tmp_path, nursery, ScriptedTransport([trimaran.Answer(503)]))
    keep, may_keep = SpoolKeeper.keep, trio.Event()

    async def slowly(keeper: SpoolKeeper, batches: Sequence[Batch], books: Any) -> list[Batch]:
        await may_keep.wait()
        return await keep(keeper, batches, books)

    monkeypatch.setattr(SpoolKeeper, "keep", slowly)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as agents:
            agents.start_soon(outlet.take, "a", [BATCH])
            await trio.testing.wait_all_tasks_blocked()
            agents.start_soon(outlet.withdraw, "a")
            await trio.testing.wait_all_tasks_blocked()
            may_keep.set()

    assert list(SpoolBrowser(tmp_path).rows()) == []
    await outlet.aclose()
    nursery.cancel_scope.cancel()
