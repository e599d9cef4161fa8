"""A child's events are events of its parent's session; what each end of it promises.

Parent and child are tasks of one process here, with a real socket between them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trimaran
from patience import PATIENCE
from trimaran import _children
from trimaran._environment import PARENT, parent_in
from trimaran._process import ProcessError
from trimaran.testing import Capture, ScriptedTransport

if TYPE_CHECKING:
    from children.conftest import Home

ROOM = ("batch_bytes", "event_bytes", "memory_bytes")
CALL = trimaran.ToolCall(tool_name="bash")
INIT = trimaran.Command(command_name="init")


class Deploy(trimaran.Event, frozen=True):
    """An event of a host's own."""

    target: Any = ""


def adds_up(books: trimaran.Statistics) -> bool:
    """The ledger's equation."""
    return books.tracked == books.delivered + books.dropped_total + books.pending


async def test_a_childs_events_are_the_sessions(home: Home, capture: Capture) -> None:
    """Under its id, in the child's order, in the totals; and counted in both books."""
    async with (
        home.open(capture) as telemetry,
        telemetry.session(model_id="m", agent="a", session_id="s") as session,
    ):
        async with trimaran.attach(environ=session.to_env({})) as participant:
            assert participant.id == "s"
            assert trimaran.current_session() is participant
            for number in range(500):
                participant.track(Deploy(target=number, timestamp=1000 + number))
            with participant.generation() as generation:
                generation.finish("stop", tokens=trimaran.Tokens(input=7), cost=0.5)
            with participant.tool_call("bash"):
                pass
        child = participant.statistics()
        assert (child.tracked, child.delivered) == (502, 502)
        assert trimaran.current_session() is session

    assert set(capture.sessions()) == {"s"}
    deploys = capture.events(Deploy)
    assert [(event.target, event.timestamp) for event in deploys] == [
        (number, 1000 + number) for number in range(500)
    ]
    (generated,) = capture.events(trimaran.Generation)
    assert (generated.model_id, generated.agent) == ("m", "a")
    (end,) = capture.events(trimaran.SessionEnd)
    assert (end.total_cost, end.total_tokens, end.tool_call_count) == (0.5, 7, 1)
    assert len(capture.events(trimaran.SessionStart)) == 1
    books = session.statistics()
    assert (books.from_children, books.tracked, books.delivered) == (502, 504, 504)


async def test_tool_calls_are_numbered_over_all_processes(home: Home, capture: Capture) -> None:
    """No number twice, whoever made the call."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        with session.tool_call("own"):
            async with trimaran.attach(environ=session.to_env({})) as child:
                for _ in range(3):
                    with child.tool_call("childs"):
                        pass
        await session.flush()
        with session.tool_call("last"):
            pass

    calls = capture.events(trimaran.ToolCall)
    assert sorted((call.sequence_index, call.tool_name) for call in calls) == [
        (0, "own"),
        (1, "childs"),
        (2, "childs"),
        (3, "childs"),
        (4, "last"),
    ]


async def test_what_a_child_says_is_masked_as_in_the_parent(home: Home, capture: Capture) -> None:
    """By the child before it leaves it, and by the parent whatever it gets."""
    secret = "ghp_" + "a1B2c3D4e5" * 4
    async with home.open(capture) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.error(f"token {secret}")

    (event,) = capture.events(trimaran.ErrorEvent)
    assert secret not in repr(event)


async def test_a_child_of_a_child_takes_part_in_the_same_session(
    home: Home, capture: Capture
) -> None:
    """It is told of the first parent, with whose session the middle one has no more to do."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({})) as child:
            environ = child.to_env({})
        assert environ == session.to_env({})
        async with trimaran.attach(environ=environ) as grandchild:
            grandchild.track(INIT)

    assert session.statistics().from_children == 1


async def test_an_exception_of_the_block_comes_out_as_it_is(home: Home, capture: Capture) -> None:
    """What was tracked before is in the session."""
    error = ValueError("mine")
    async with home.open(capture) as telemetry, telemetry.session() as session:
        with pytest.raises(ValueError, match="mine") as raised:  # noqa: PT012 - in a block
            async with trimaran.attach(environ=session.to_env({})) as child:
                child.track(INIT)
                raise error
        assert raised.value is error

    assert len(capture.events(trimaran.Command)) == 1


async def test_what_was_tracked_before_a_cancel_is_handed_over(
    home: Home, capture: Capture
) -> None:
    """The stages outlive the block."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        with trio.move_on_after(0.05) as scope:
            async with trimaran.attach(environ=session.to_env({})) as child:
                try:
                    await trio.sleep_forever()
                finally:
                    child.track(INIT)
        assert scope.cancelled_caught

    assert len(capture.events(trimaran.Command)) == 1


@pytest.mark.parametrize("environ", [{}, {PARENT: "x"}])
async def test_without_a_parent_nothing_is_recorded(environ: dict[str, str]) -> None:
    """The session does nothing, and a child of it is told nothing."""
    async with trimaran.attach(environ=environ) as session:
        session.track(INIT)
        assert trimaran.current_session() is session
        assert session.to_env({"PATH": ""}) == {"PATH": ""}

    assert session.id == ""
    assert session.statistics() == trimaran.Statistics()


@pytest.mark.parametrize(
    ("switches", "settings"),
    [
        ({"DO_NOT_TRACK": "1"}, None),
        ({"TEST_TELEMETRY_DISABLED": "yes"}, None),
        ({}, trimaran.Settings(enabled=False)),
    ],
)
async def test_a_childs_own_switches_count(
    switches: dict[str, str], settings: trimaran.Settings | None, home: Home, capture: Capture
) -> None:
    """Off, it does nothing, whatever its parent does; and its own children are off."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        environ = session.to_env(switches)
        async with trimaran.attach(environ=environ, settings=settings) as child:
            child.track(INIT)
            assert child.to_env({})["DO_NOT_TRACK"] == "1"

    assert session.statistics().from_children == 0


async def test_a_switch_that_is_set_later_counts_too(home: Home, capture: Capture) -> None:
    """Consent is looked at before every batch."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        environ = session.to_env({})
        async with trimaran.attach(environ=environ) as child:
            child.track(INIT)
            await child.flush()
            environ["DO_NOT_TRACK"] = "1"
            child.track(INIT)

    assert session.statistics().from_children == 1
    assert child.statistics().dropped == {"consent_withdrawn": 1}


async def opened_and_asked(settings: trimaran.Settings, environ: dict[str, str]) -> dict[str, str]:
    """What a session's child is told."""
    async with (
        trimaran.open_telemetry("test", settings=settings, environ=environ) as telemetry,
        telemetry.session() as session,
    ):
        return session.to_env({"PATH": "/bin", PARENT: "x"})


@pytest.mark.parametrize(
    ("settings", "environ"),
    [
        (trimaran.Settings(enabled=False), {}),
        (trimaran.Settings(), {"DO_NOT_TRACK": "1"}),
        (trimaran.Settings(), {"TEST_TELEMETRY_DISABLED": "1"}),
    ],
)
async def test_an_opt_out_goes_on_to_the_child(
    settings: trimaran.Settings, environ: dict[str, str]
) -> None:
    """Both to what attaches and to what opens a telemetry of its own."""
    told = await opened_and_asked(settings, environ)

    parent = parent_in(told)
    assert parent is not None
    assert not parent.is_on
    assert (told["PATH"], told["DO_NOT_TRACK"]) == ("/bin", "1")
    assert not trimaran.resolve(
        "other", None, told | {"OTHER_TELEMETRY_URL": "https://x.test"}
    ).enabled


@pytest.mark.parametrize("environ", [{}, {"TEST_TELEMETRY_URL": "no url"}])
async def test_what_is_not_set_up_says_nothing_to_the_child(environ: dict[str, str]) -> None:
    """Nobody switched anything off: the child decides for itself."""
    assert await opened_and_asked(trimaran.Settings(), environ) == {"PATH": "/bin"}


async def test_the_environment_has_no_token(home: Home, capture: Capture) -> None:
    """In no value of it, nor the account's URL: a child that would send brings its own."""
    account = trimaran.StaticAccount("https://account.test", "very-secret", email="a@b.test")
    base = {"PATH": "/bin"}
    async with (
        trimaran.open_telemetry(
            "test", account=account, environ=home.environ, transport=capture
        ) as telemetry,
        telemetry.session() as session,
    ):
        environ = session.to_env(base)
        parent = parent_in(environ)

    assert base == {"PATH": "/bin"}
    assert "very-secret" not in repr(environ)
    assert parent is not None
    assert (parent.tier, parent.url, parent.session_id) == ("authenticated", None, session.id)


async def test_the_environment_has_the_trace(home: Home, capture: Capture) -> None:
    """The one that the parent itself is in, where it is in one."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    environ = home.environ | {"TRACEPARENT": f"00-{trace}-b7ad6b7169203331-01"}
    async with (
        trimaran.open_telemetry("test", environ=environ, transport=capture) as telemetry,
        telemetry.session() as first,
        telemetry.session() as second,
    ):
        told = [each.to_env({})["TRACEPARENT"] for each in (first, second)]

    assert [one.split("-")[1] for one in told] == [trace, trace]
    assert told[0] != told[1]


async def test_the_base_is_the_environment_of_the_process(
    home: Home, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless another one is given; silent sessions, too."""
    monkeypatch.setenv("SOMETHING", "is there")
    async with home.open(capture) as telemetry, telemetry.session() as session:
        assert session.to_env()["SOMETHING"] == "is there"
        assert PARENT not in os.environ

    assert trimaran.current_session().to_env()["SOMETHING"] == "is there"


async def test_an_environment_can_be_asked_for_in_any_thread(home: Home, capture: Capture) -> None:
    """Where a subprocess is waited for, say; the socket is the same."""
    async with home.open(capture) as telemetry, telemetry.session() as session:
        environ = await trio.to_thread.run_sync(session.to_env, {})
        assert environ == session.to_env({})
        async with trimaran.attach(environ=environ) as child:
            child.track(INIT)

    assert session.statistics().from_children == 1


async def test_a_context_that_no_environment_has_room_for(home: Home, capture: Capture) -> None:
    """The child is told nothing, so that it can be started at all."""
    async with home.open(capture) as telemetry:
        async with telemetry.session(project_id="p" * 40_000, agent="a" * 40_000) as session:
            assert session.to_env({"PATH": "/bin"}) == {"PATH": "/bin"}


async def test_without_a_place_for_a_socket_children_go_their_own_way(
    home: Home, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session says so once, and its children behave as if it had died."""
    problems: list[trimaran.Problem] = []
    direct = Capture()

    def nowhere(*_args: object) -> None:
        raise ProcessError("no directory for sockets")

    monkeypatch.setattr(_children, "listening", nowhere)
    async with (
        trimaran.open_telemetry(
            "test", environ=home.environ, transport=capture, on_problem=problems.append
        ) as telemetry,
        telemetry.session(session_id="s") as session,
    ):
        told = session.to_env({})
        assert session.to_env({}) == told
        async with trimaran.attach(environ=told, transport=direct) as child:
            child.track(INIT)

    assert [problem.name for problem in problems] == ["telemetry takes no children"]
    assert direct.sessions().keys() == {"s"}
    assert child.statistics().delivered == 1


async def test_a_full_parent_makes_the_child_wait(home: Home) -> None:
    """Nothing is shed for want of room: the child's own mailbox is the room."""
    transport = ScriptedTransport([0.5])
    async with (
        home.open(transport, mailbox_events=10, backlog_events=200) as telemetry,
        telemetry.session() as session,
        trimaran.attach(environ=session.to_env({})) as child,
    ):
        for _ in range(1000):
            child.track(CALL)

    books = session.statistics()
    assert (books.from_children, books.delivered, books.dropped) == (1000, 1002, {})
    assert child.statistics().delivered == 1000


async def test_an_event_that_nothing_can_be_made_of_is_counted(
    home: Home, capture: Capture
) -> None:
    """A host's event of a name that is too long, say; the others of its batch are in."""

    class Long(trimaran.Event, frozen=True, tag="x" * 300):
        """Its name is."""

    async with home.open(capture) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({})) as child:
            child.track(Long())
            child.track(INIT)

    books = session.statistics()
    assert (books.from_children, books.dropped) == (2, {"encode_error": 1})
    assert adds_up(books)


async def test_a_batch_that_is_too_large_for_the_channel_is_halved(
    home: Home, capture: Capture
) -> None:
    """As one that the endpoint would not take."""
    settings = trimaran.Settings(
        batch_bytes=40 * 1024 * 1024,
        event_bytes=12 * 1024 * 1024,
        memory_bytes=1 << 30,
        drain_timeout=PATIENCE,
    )
    roomy = {name: getattr(settings, name) for name in ROOM}
    async with home.open(capture, **roomy) as telemetry, telemetry.session() as session:
        async with trimaran.attach(environ=session.to_env({}), settings=settings) as child:
            for number in range(30):
                child.track(Deploy(target=[str(number) * 30_000] * 15))

    books = child.statistics()
    assert (books.delivered, books.attempts) == (30, 3)
    assert [deploy.target[0][:2] for deploy in capture.events(Deploy)] == [
        (str(number) * 2)[:2] for number in range(30)
    ]
