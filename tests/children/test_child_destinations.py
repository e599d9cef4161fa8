"""Processes that take part in a session whose events go to several destinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import trimaran
from trimaran._environment import PARENT, parent_in
from trimaran._live_session import LiveSession
from trimaran.testing import Capture

if TYPE_CHECKING:
    import trio.testing

    from children.conftest import Home


def at(transport: trimaran.Transport) -> trimaran.Destination:
    """A second destination."""
    return trimaran.Destination(name="beside", transport=transport)


@pytest.mark.parametrize("is_decided", [True, False], ids=["an endpoint", "no endpoint"])
async def test_a_childs_events_go_to_all_destinations_of_its_parent(
    home: Home, *, is_decided: bool
) -> None:
    """With or without an endpoint among them; the child knows nothing of them."""
    first, other = Capture(), Capture()
    environ = dict(home.environ)
    if not is_decided:
        del environ["TEST_TELEMETRY_URL"]
    async with trimaran.open_telemetry(
        "test",
        environ=environ,
        transport=first,
        destinations=[at(other)],
        settings=trimaran.Settings(strict=True),
    ) as telemetry:
        async with telemetry.session(session_id="s") as session:
            child_environ = session.to_env({})
            async with trimaran.attach(environ=child_environ) as child:
                for number in range(300):
                    child.track(trimaran.Command(command_name=str(number)))
            assert child.statistics().delivered == 300
            assert child.statistics().destinations == {}

    names = [event.command_name for event in other.events(trimaran.Command)]
    assert names == [str(number) for number in range(300)]
    assert first.sessions() == (other.sessions() if is_decided else {})
    books = session.statistics().destinations["beside"]
    assert (books.from_children, books.tracked, books.delivered) == (300, 302, 302)
    parent = parent_in(child_environ)
    assert parent is not None
    assert "beside" not in child_environ[PARENT]


async def test_a_child_sends_nothing_where_its_parents_endpoint_is_not_decided(home: Home) -> None:
    """Not even when the parent is gone."""
    environ = {"XDG_RUNTIME_DIR": home.environ["XDG_RUNTIME_DIR"]}
    async with trimaran.open_telemetry(
        "test", environ=environ, destinations=[at(Capture())]
    ) as telemetry:
        async with telemetry.session() as session:
            child_environ = session.to_env({})

    parent = parent_in(child_environ)
    assert parent is not None
    assert parent.url is None
    direct = Capture()
    async with trimaran.attach(
        environ={**home.environ, **child_environ}, transport=direct
    ) as child:
        child.error("stray")
    assert direct.requests == []
    assert child.statistics().dropped_total == 1


async def test_a_forked_childs_copy_sends_nothing_to_anybody(
    home: Home, autojump_clock: trio.testing.MockClock
) -> None:
    """What it tracks counts as closed, for every destination.

    The copy is one in name only here: what runs in it is what would run in a forked child.
    """
    first, other = Capture(), Capture()
    async with trimaran.open_telemetry(
        "test", environ=home.environ, transport=first, destinations=[at(other)]
    ) as telemetry:
        async with telemetry.session() as session:
            await session.flush()
            assert isinstance(session, LiveSession)
            session.forked()
            session.error("stray")

    each = session.statistics().destinations
    assert {name: dict(books.dropped) for name, books in each.items()} == {
        "endpoint": {"closed": 1},
        "beside": {"closed": 1},
    }
    assert len(first.events()) == len(other.events()) == 1
