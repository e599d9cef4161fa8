"""Which session is the current one, in whatever order blocks are entered and left."""

from __future__ import annotations

import contextvars
from contextlib import AsyncExitStack
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
import structlog
import trio

import trimaran
from trimaran._current import current
from trimaran._log_context import _innermost
from trimaran.testing import Capture

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


@pytest.mark.parametrize("order", [*permutations(range(3))])
async def test_the_current_session_is_the_last_entered_that_is_not_left(
    order: tuple[int, ...],
) -> None:
    """Sessions may overlap in one task: none that is over is ever the current one."""
    async with Capture().open() as telemetry:
        blocks = [telemetry.session(session_id=str(number)) for number in range(3)]
        for block in blocks:
            await block.__aenter__()
        still_open = [0, 1, 2]
        for number in order:
            await blocks[number].__aexit__(None, None, None)
            still_open.remove(number)
            innermost = str(still_open[-1]) if still_open else ""
            assert trimaran.current_session().id == innermost


@pytest.mark.parametrize("order", [*permutations(range(3))])
async def test_records_bear_the_id_of_the_current_session(order: tuple[int, ...]) -> None:
    """In the same order; and in the end what was bound before them all is back."""
    structlog.contextvars.bind_contextvars(session_id="outer")
    async with Capture().open() as telemetry:
        blocks = [telemetry.session(session_id=str(number)) for number in range(3)]
        for block in blocks:
            await block.__aenter__()
        still_open = [0, 1, 2]
        for number in order:
            await blocks[number].__aexit__(None, None, None)
            still_open.remove(number)
            innermost = str(still_open[-1]) if still_open else "outer"
            assert structlog.contextvars.get_contextvars()["session_id"] == innermost


async def test_records_do_not_keep_sessions_that_overlap_for_ever() -> None:
    """Each is entered before the last is left, in one task, for as long as that goes on."""
    async with Capture().open() as telemetry:
        block = telemetry.session()
        await block.__aenter__()
        for _ in range(100):
            following = telemetry.session()
            await following.__aenter__()
            await block.__aexit__(None, None, None)
            block = following
        length, place = 0, _innermost.get()
        while place is not None:
            length, place = length + 1, place.outer
        await block.__aexit__(None, None, None)

    assert length <= 2
    assert structlog.contextvars.get_contextvars() == {}


async def test_one_that_is_entered_meanwhile_goes_first() -> None:
    """And after it the one that was open before, not the one that was left."""
    async with Capture().open() as telemetry:
        a, b, c = (telemetry.session(session_id=name) for name in "abc")
        await a.__aenter__()
        await b.__aenter__()
        await a.__aexit__(None, None, None)
        async with c:
            assert trimaran.current_session().id == "c"
        assert trimaran.current_session().id == "b"
        await b.__aexit__(None, None, None)
        assert trimaran.current_session().id == ""


async def test_silent_sessions_take_part() -> None:
    """In the block of an app that is switched off nothing is recorded for another one."""
    async with (
        Capture().open() as telemetry,
        trimaran.open_telemetry("none", environ={}) as disabled,
    ):
        silent = disabled.session()
        async with telemetry.session(session_id="loud"):
            await silent.__aenter__()
            assert trimaran.current_session().id == ""
        assert trimaran.current_session().id == ""
        await silent.__aexit__(None, None, None)
        assert trimaran.current_session().id == ""


async def test_a_task_that_outlives_the_session_it_was_started_in_still_has_it() -> None:
    """What it says is counted there as closed, and not taken for another session's."""
    async with Capture().open() as telemetry, trio.open_nursery() as nursery:
        seen: list[trimaran.Session] = []
        left = trio.Event()

        async def straggler() -> None:
            await left.wait()
            seen.append(trimaran.current_session())
            trimaran.current_session().command("late")

        async with telemetry.session(session_id="outer"):
            async with telemetry.session(session_id="inner") as inner:
                nursery.start_soon(straggler)
                await trio.lowlevel.checkpoint()
            left.set()

    assert seen == [inner]
    assert inner.statistics().dropped == {"closed": 1}


async def test_left_in_the_context_of_a_child_it_is_the_current_one_there_no_more() -> None:
    """A task may be handed the end of a block; its own context is the one to undo then."""
    async with Capture().open() as telemetry, AsyncExitStack() as stack:
        await stack.enter_async_context(telemetry.session(session_id="outer"))
        inner = telemetry.session(session_id="inner")
        await inner.__aenter__()

        async def ends(block: AbstractAsyncContextManager[trimaran.Session]) -> None:
            await block.__aexit__(None, None, None)
            assert trimaran.current_session().id == "outer"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends, inner)


async def test_sessions_that_overlap_for_ever_are_let_go_of() -> None:
    """Each is entered before the one before it is left; what is over is kept nowhere."""
    async with Capture().open() as telemetry:
        block = telemetry.session()
        await block.__aenter__()
        for _ in range(20):
            following = telemetry.session()
            await following.__aenter__()
            await block.__aexit__(None, None, None)
            block = following
        place, depth = current.get(), 0
        while place is not None:
            place, depth = place.outer, depth + 1
        await block.__aexit__(None, None, None)

    assert depth <= 3
    assert current.get() is None
    assert contextvars.copy_context().get(current) is None
