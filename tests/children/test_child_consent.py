"""A no is a no in all processes of a session, whenever it is said.

Parent and child are tasks of one process here, with a real socket between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from msgspec.structs import replace

import trimaran
from trimaran._environment import Parent, parent_in, with_parent
from trimaran._live_session import LiveSession
from trimaran.testing import Capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from children.conftest import Home

INIT = trimaran.Command(command_name="init")
NOBODY = (1 << 31) - 1
"""A pid that no process has."""


class Switch:
    """A host's own, which a user can change."""

    def __init__(self) -> None:
        self.is_on = True

    def __call__(self) -> bool:
        return self.is_on


def opened(
    home: Home, capture: Capture, consent: Callable[[], bool] | None
) -> AbstractAsyncContextManager[trimaran.Telemetry]:
    """A telemetry whose host can switch it off."""
    return trimaran.open_telemetry(
        "test",
        environ=home.environ,
        transport=capture,
        consent=consent,
        settings=trimaran.Settings(strict=True),
    )


def parent_of(session: trimaran.Session) -> Parent:
    """What the session's children are told."""
    parent = parent_in(session.to_env({}))
    assert parent is not None
    return parent


def told(parent: Parent) -> dict[str, str]:
    """An environment that speaks of *parent*."""
    environ = with_parent({}, parent)
    assert environ is not None
    return environ


async def test_a_child_that_is_started_after_the_no_is_off(home: Home, capture: Capture) -> None:
    """As where telemetry was off from the beginning; asked for in any thread."""
    switch = Switch()
    async with opened(home, capture, switch) as telemetry, telemetry.session() as session:
        switch.is_on = False
        environ = session.to_env({"PATH": "/bin"})
        assert await trio.to_thread.run_sync(session.to_env, {"PATH": "/bin"}) == environ
        async with trimaran.attach(environ=environ, transport=capture) as child:
            child.track(INIT)
        switch.is_on = True
        assert parent_of(session).is_on

    parent = parent_in(environ)
    assert parent is not None
    assert not parent.is_on
    assert (environ["PATH"], environ["DO_NOT_TRACK"]) == ("/bin", "1")
    assert child.statistics() == trimaran.Statistics()
    assert capture.events(trimaran.Command) == []


async def test_a_switch_of_the_environment_that_is_set_later_goes_on(
    home: Home, capture: Capture
) -> None:
    """As the host's own does."""
    environ = dict(home.environ)
    async with (
        trimaran.open_telemetry("test", environ=environ, transport=capture) as telemetry,
        telemetry.session() as session,
    ):
        environ["DO_NOT_TRACK"] = "1"

        assert session.to_env({})["DO_NOT_TRACK"] == "1"


async def test_a_child_that_runs_is_told_of_the_no(home: Home, capture: Capture) -> None:
    """Its events are dropped for that reason, in its own books; a yes lets it go on."""
    switch = Switch()
    async with opened(home, capture, switch) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.track(INIT)
            await child.flush()
            switch.is_on = False
            child.track(INIT)
            await child.flush()
            assert child.statistics().dropped == {"consent_withdrawn": 1}
            assert child.to_env({})["DO_NOT_TRACK"] == "1"
            switch.is_on = True
            child.track(INIT)
            await child.flush()
            assert "DO_NOT_TRACK" not in child.to_env({})

    books = child.statistics()
    assert (books.delivered, books.dropped) == (2, {"consent_withdrawn": 1})
    commands = capture.events(trimaran.Command)
    assert len(commands) == 2


async def test_what_the_parent_said_last_holds_when_it_has_died(
    home: Home, capture: Capture
) -> None:
    """Nothing goes to the endpoint past it."""
    environ, direct, go_on = dict(home.environ), Capture(), trio.Event()

    async def attached(parent: Parent, *, task_status: trio.TaskStatus[trimaran.Session]) -> None:
        async with trimaran.attach(environ=told(parent), transport=direct) as child:
            task_status.started(child)
            await go_on.wait()
            child.track(INIT)

    async with trio.open_nursery() as nursery:
        async with (
            trimaran.open_telemetry("test", environ=environ, transport=capture) as telemetry,
            telemetry.session() as session,
        ):
            parent = replace(parent_of(session), pid=NOBODY, has_own_transport=False)
            child: trimaran.Session = await nursery.start(attached, parent)
            environ["DO_NOT_TRACK"] = "1"
            child.track(INIT)
            await child.flush()
            assert isinstance(session, LiveSession)
            (channel,) = session._children._channels
            channel._socket.shutdown(2)
        go_on.set()

    assert direct.requests == []
    assert child.statistics().dropped == {"consent_withdrawn": 2}


@pytest.mark.parametrize(
    ("consent", "delivered"), [(None, 0), (lambda: True, 1), (lambda: False, 0)]
)
async def test_a_child_goes_no_way_of_its_own_past_a_switch_that_it_cannot_ask(
    consent: Callable[[], bool] | None, delivered: int, home: Home, capture: Capture
) -> None:
    """Where the host has one, the child needs one as well, to go on without its parent."""
    direct = Capture()
    async with opened(home, capture, Switch()) as telemetry, telemetry.session() as session:
        parent = parent_of(session)
    alone = told(replace(parent, socket=None))
    async with trimaran.attach(environ=alone, transport=direct, consent=consent) as child:
        child.track(INIT)

    assert child.statistics().delivered == delivered
    assert len(direct.requests) == delivered


@pytest.mark.parametrize("whose", ["parent", "child"])
async def test_a_childs_child_is_told_that_somebody_has_a_switch(
    whose: str, home: Home, capture: Capture
) -> None:
    """Whichever of those above it that is."""
    switches = {whose: Switch()}
    async with (
        opened(home, capture, switches.get("parent")) as telemetry,
        telemetry.session() as session,
    ):
        environ = session.to_env({})
        async with trimaran.attach(environ=environ, consent=switches.get("child")) as child:
            assert parent_of(child).has_own_consent
        assert parent_of(session).has_own_consent == (whose == "parent")
