"""A session says which span each event is, to who wants to know it, and to nobody else."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran._pipeline.wire import halves, without_members
from trimaran.testing import Capture

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENVIRON = {"TEST_TELEMETRY_URL": "https://capture.invalid"}


class Spanned(Capture):
    """A destination that wants spans."""

    wants_spans = True

    def wire(self) -> list[dict[str, Any]]:
        """Every event, as it was sent."""
        return [e for request in self.taken for e in msgspec.json.decode(request.body)["events"]]

    def tree(self) -> dict[str, str]:
        """Each command, tool, method and model with the one that it is below; "" for the root."""
        names = {event["span_id"]: name_of(event) for event in self.wire()}
        assert len(names) == len(self.wire())
        return {
            name_of(event): names[event["parent_span_id"]] if "parent_span_id" in event else ""
            for event in self.wire()
        }


SUBJECTS = ("command_name", "tool_name", "method", "model_id", "error_name")


def name_of(event: dict[str, Any]) -> str:
    """What a test calls an event."""
    if event["type"].startswith("session"):
        return str(event["type"])
    return next(str(event[subject]) for subject in SUBJECTS if subject in event)


ENDS = {"session_start": "", "session_end": ""}


async def test_what_happens_inside_a_block_is_below_it() -> None:
    """Of every kind, however deep; before and after, below the root."""
    capture = Spanned()
    async with capture.open() as telemetry, telemetry.session() as session:
        session.command("before")
        with session.generation(model_id="model"):
            session.command("in model")
            with session.tool_call("tool"):
                with session.bridge_call("method"):
                    session.error("wrong")
                await session.send(trimaran.Command(command_name="in tool"))
            session.command("in model again")
        session.command("after")

    assert capture.tree() == ENDS | {
        "before": "",
        "model": "",
        "in model": "model",
        "tool": "model",
        "method": "tool",
        "wrong": "method",
        "in tool": "tool",
        "in model again": "model",
        "after": "",
    }


async def test_tasks_and_threads_started_inside_a_block_are_inside() -> None:
    """Also one that goes on after it has ended, as long as it lasted."""
    capture = Spanned()
    async with (
        capture.open() as telemetry,
        telemetry.session() as session,
        trio.open_nursery() as n,
    ):
        is_over = trio.Event()

        async def go_on() -> None:
            session.command("in time")
            await is_over.wait()
            session.command("late")

        with session.generation(model_id="model"), session.tool_call("tool"):
            n.start_soon(go_on)
            await trio.to_thread.run_sync(session.command, "in a thread")
            thread = threading.Thread(target=session.command, args=("in another",))
            thread.start()
            await trio.to_thread.run_sync(thread.join)
            await trio.testing.wait_all_tasks_blocked()
        is_over.set()

    assert capture.tree() == ENDS | {
        "in time": "tool",
        "in a thread": "tool",
        "in another": "",  # it has a context of its own
        "model": "",
        "tool": "model",
        "late": "",
    }


async def test_sessions_do_not_see_each_others_blocks() -> None:
    """Though they are interleaved in one task, and blocks are left in another order."""
    one, two = Spanned(), Spanned()
    async with (
        one.open() as first_telemetry,
        two.open() as second_telemetry,
        first_telemetry.session() as first,
        second_telemetry.session() as second,
    ):
        outer, middle, inner = first.tool_call("outer"), second.tool_call("x"), first.tool_call("i")
        outer.__enter__()
        middle.__enter__()
        inner.__enter__()
        first.command("a")
        second.command("b")
        outer.__exit__(None, None, None)
        first.command("c")
        inner.__exit__(None, None, None)
        first.command("d")
        second.command("e")
        middle.__exit__(None, None, None)
        second.command("f")

    assert one.tree() == ENDS | {"outer": "", "a": "i", "c": "i", "i": "outer", "d": ""}
    assert two.tree() == ENDS | {"b": "x", "e": "x", "x": "", "f": ""}


Plan: TypeAlias = list[Any]
"""Steps: a session's number, whether it is a block or a task, and the steps inside."""

plans: st.SearchStrategy[Plan] = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(["block", "task"]), inner), max_size=4
    ),
    max_leaves=25,
)


@given(plans)
def test_any_tree_of_blocks_and_tasks_arrives_as_it_was(plan: Plan) -> None:
    """Tasks of two sessions take turns at every step; each event is below the block that the
    program says.
    """
    captures = [Spanned(), Spanned()]
    numbers = itertools.count()
    expected: list[dict[str, str]] = [{}, {}]

    async def run() -> None:
        async with (
            captures[0].open() as one,
            captures[1].open() as two,
            one.session() as first,
            two.session() as second,
        ):
            await follow(plan, [first, second], ["", ""])

    async def follow(steps: Plan, sessions: list[trimaran.Session], above: list[str]) -> None:
        async with trio.open_nursery() as nursery:
            for which, kind, inner in steps:
                name = f"{kind} {next(numbers)}"
                expected[which][name] = above[which]
                if kind == "task":
                    sessions[which].command(name)
                    nursery.start_soon(follow, inner, sessions, above)
                else:
                    with sessions[which].tool_call(name):
                        await trio.lowlevel.checkpoint()
                        here = [*above]
                        here[which] = name
                        await follow(inner, sessions, here)
                await trio.lowlevel.checkpoint()

    trio.run(run)

    assert [capture.tree() for capture in captures] == [ENDS | tree for tree in expected]


def ids() -> Iterator[str]:
    """Texts that come again in the next telemetry."""
    return (f"id-{number}" for number in itertools.count())


async def recorded(capture: Capture, **named: Any) -> list[trimaran.Request]:
    """What a session sends that is the same every time."""
    async with (
        trimaran.open_telemetry(
            "test",
            version="1",
            environ=ENVIRON | {"TRACEPARENT": TRACEPARENT},
            transport=capture,
            wall_clock=lambda: 1_795_000_000.0,
            new_id=partial(next, ids()),
        ) as telemetry,
        telemetry.session(agent="build", session_id='a "quoted" \\ one', **named) as session,
    ):
        session.command('{"timestamp":1,"session_id":"","span_id":"","type":')
        with session.generation(), session.tool_call("bash"):
            session.error("wrong")
    return capture.taken


async def test_nobody_else_gets_more_than_the_origins_wire(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not a byte, neither in the body nor in the headers."""
    [plain] = await recorded(Capture())
    [spanned] = await recorded(Spanned())

    assert set(plain.headers) == {"content-type", "user-agent", "idempotency-key"}
    assert dict(spanned.headers) == {**plain.headers, "traceparent": TRACEPARENT}
    body = msgspec.json.decode(plain.body)
    assert list(body) == [
        "session_id",
        "cli_version",
        "user_email",
        "project_id",
        "timestamp",
        "events",
    ]
    assert not [name for event in body["events"] for name in event if "span" in name]
    assert list(body["events"][-1]) == [
        "timestamp",
        "session_id",
        "type",
        "total_cost",
        "total_tokens",
        "tool_call_count",
        "duration_ms",
    ]
    assert plain.body != spanned.body
    assert plain.body == without_members(spanned.body)


async def test_what_is_recorded_again_is_the_same_spans(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Ids follow from the session's, not from chance; halves keep what the whole said."""
    [first] = await recorded(Spanned())
    [again] = await recorded(Spanned())

    assert first == again
    left, right = (msgspec.json.decode(half) for half in halves(first.body))
    assert left["events"] + right["events"] == msgspec.json.decode(first.body)["events"]
    assert left["app"] == right["app"] == "test"
    [plain] = await recorded(Capture())
    assert not [half for half in halves(plain.body) if b"app" in half]


async def test_the_end_says_who_the_agent_was_and_what_its_model() -> None:
    """What the start said, and else the first generation."""
    capture = Spanned()
    async with capture.open() as telemetry:
        async with telemetry.session(agent="build") as session:
            with session.generation(model_id="first", provider_id="one", agent="helper"):
                pass
            with session.generation(model_id="second", provider_id="two"):
                pass
            session.track(trimaran.Generation(model_id=7))  # type: ignore[arg-type]
        async with telemetry.session():
            pass

    ends = [event for event in capture.wire() if event["type"] == "session_end"]
    told = {(e.get("agent"), e.get("model_id"), e.get("provider_id")) for e in ends}
    assert told == {("build", "first", "one"), (None, None, None)}


async def test_what_the_end_says_is_masked() -> None:
    """It comes of events as they go out."""
    capture = Spanned()
    secret = "ann@example.com"
    async with capture.open() as telemetry, telemetry.session(agent=secret):
        pass

    assert all(secret.encode() not in request.body for request in capture.taken)
    [end] = [event for event in capture.wire() if event["type"] == "session_end"]
    assert end["agent"]


class Refusing(Capture):
    """A host's own code."""

    @property
    def wants_spans(self) -> bool:
        """Fails."""
        raise RuntimeError


class Truthy(Capture):
    """Says something else."""

    wants_spans = "yes"


@pytest.mark.parametrize("kind", [Refusing, Truthy])
async def test_a_transport_that_says_nothing_sensible_gets_no_spans(kind: type[Capture]) -> None:
    """It is an ordinary one."""
    capture = kind()
    async with capture.open() as telemetry, telemetry.session() as session:
        with session.tool_call("bash"):
            session.command("init")

    assert len(capture.events()) == 4
    assert not [request for request in capture.taken if b"span_id" in request.body]


@pytest.mark.parametrize("given_to_session", [True, False])
async def test_a_trace_that_was_there_goes_on(given_to_session: bool) -> None:
    """Given, or in the environment; in requests, and in child processes."""
    capture = Spanned()
    environ = ENVIRON if given_to_session else ENVIRON | {"TRACEPARENT": f" {TRACEPARENT} "}
    given = TRACEPARENT if given_to_session else None
    async with (
        capture.open(environ=environ) as telemetry,
        telemetry.session(traceparent=given) as session,
    ):
        told = session.to_env({})["TRACEPARENT"]

    assert [request.headers["traceparent"] for request in capture.taken] == [TRACEPARENT]
    assert told.split("-")[1] == TRACEPARENT.split("-")[1]
    assert told != TRACEPARENT


async def test_what_is_given_goes_before_the_environment() -> None:
    """A version to come is told in the words of the one that is known."""
    capture = Spanned()
    async with capture.open(environ=ENVIRON | {"TRACEPARENT": TRACEPARENT}) as telemetry:
        other = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"
        async with telemetry.session(traceparent=f"cc{other[2:]}-{'more' * 10_000}"):
            pass

    assert [request.headers["traceparent"] for request in capture.taken] == [other]


async def test_what_is_no_traceparent_is_left_out_and_told_once() -> None:
    """The session has a trace of its own then, or that of the environment."""
    capture = Spanned()
    problems: list[trimaran.Problem] = []
    async with trimaran.open_telemetry(
        "test",
        environ=ENVIRON | {"TRACEPARENT": "00-secret"},
        transport=capture,
        on_problem=problems.append,
    ) as telemetry:
        for given in (None, "nonsense", 7):
            async with telemetry.session(traceparent=given):  # type: ignore[arg-type]
                pass

    assert not [request for request in capture.taken if "traceparent" in request.headers]
    [problem] = problems
    assert problem.name == "telemetry traceparent ignored"
    assert "secret" not in repr(problem)


async def test_a_child_process_is_below_the_block_that_it_was_started_in() -> None:
    """Other programs see it in ``TRACEPARENT``; a child's child, and one that is started in
    none, are told right, too.
    """
    capture = Spanned()
    async with capture.open() as telemetry, telemetry.session() as session:
        with session.tool_call("tool"):
            environ = session.to_env({})
        alone = session.to_env({})
        async with trimaran.attach(environ=environ) as child:
            child.command("a")
            with child.generation(model_id="model"):
                child.command("b")
                inner = child.to_env({})
            outer = child.to_env({})
            async with trimaran.attach(environ=inner) as grandchild:
                await grandchild.send(trimaran.Command(command_name="c"))
            async with trimaran.attach(environ=outer) as grandchild:
                grandchild.command("d")
        async with trimaran.attach(environ=alone) as child:
            child.command("e")

    assert capture.tree() == ENDS | {
        "tool": "",
        "a": "tool",
        "model": "tool",
        "b": "model",
        "c": "model",
        "d": "tool",
        "e": "",
    }
    by_name = {name_of(event): event for event in capture.wire()}
    told = [each["TRACEPARENT"].split("-")[2] for each in (environ, inner, outer)]
    assert told == [by_name[name]["span_id"] for name in ("tool", "model", "tool")]
    assert alone["TRACEPARENT"].split("-")[2] not in told


class Deploy(trimaran.Event, frozen=True):
    """An event of a host's own, whose class the parent might not have."""

    target: str


class Traced(trimaran.Event, frozen=True):
    """One with a field that destinations of spans would take for something else."""

    span_id: str


async def test_a_childs_events_of_a_hosts_own_have_their_place_beside_them() -> None:
    """Like any other."""
    capture = Spanned()
    async with capture.open() as telemetry, telemetry.session() as session:
        with session.tool_call("tool"):
            environ = session.to_env({})
        async with trimaran.attach(environ=environ) as child:
            child.track(Deploy(target="production"))

    by_name = {event["type"]: event for event in capture.wire()}
    assert by_name["deploy"]["parent_span_id"] == by_name["tool_call"]["span_id"]
    assert by_name["deploy"]["target"] == "production"


async def test_a_child_of_an_ordinary_session_says_nothing_of_spans() -> None:
    """Neither on its way nor in the end; a field of a host's own that is called so stays one."""
    capture = Capture()
    async with capture.open() as telemetry, telemetry.session() as session:
        with session.tool_call("tool"):
            environ = session.to_env({})
        async with trimaran.attach(environ=environ) as child:
            child.track(Traced(span_id="mine"))
            child.command("init")

    assert b"parent_span_id" not in b"".join(request.body for request in capture.taken)
    [traced] = capture.events(Traced)
    assert traced.span_id == "mine"


async def test_a_child_alone_sends_its_spans_only_where_they_are_wanted() -> None:
    """Its parent was gone, and is not what sends."""
    capture = Spanned()
    async with (
        capture.open(environ=ENVIRON | {"TRACEPARENT": TRACEPARENT}) as telemetry,
        telemetry.session() as session,
    ):
        with session.tool_call("tool"):
            environ = session.to_env({})
        place = session.to_env({})["TRACEPARENT"].split("-")[2]
    environ["TRIMARAN_PARENT"] = msgspec.json.encode(
        {**msgspec.json.decode(environ["TRIMARAN_PARENT"]), "socket": None}
    ).decode()
    plain, spanned = Capture(), Spanned()
    for transport in (plain, spanned):
        async with trimaran.attach(environ=environ, transport=transport) as child:
            with child.tool_call("alone"):
                child.command("init")

    [request] = plain.taken
    assert "traceparent" not in request.headers
    assert b"span_id" not in request.body
    assert b'"app"' not in request.body
    assert [type(event).__name__ for event in plain.events()] == ["Command", "ToolCall"]
    [request] = spanned.taken
    assert request.headers["traceparent"] == TRACEPARENT
    command, alone = spanned.wire()
    assert command["parent_span_id"] == alone["span_id"]
    assert alone["parent_span_id"] == environ["TRACEPARENT"].split("-")[2] != place


def test_a_session_in_a_thread_sees_the_callers_blocks() -> None:
    """Whichever call hands the event over; and of asyncio's tasks, each its own."""
    capture = Spanned()

    async def agent(session: trimaran.Session, name: str) -> None:
        with session.tool_call(name):
            await asyncio.sleep(0)
            session.command(f"tracked in {name}")
            await session.send(trimaran.Command(command_name=f"sent in {name}"))
            await asyncio.to_thread(session.command, f"threaded in {name}")

    async def agents() -> None:
        session = trimaran.current_session()
        await asyncio.gather(*(agent(session, name) for name in "ab"))

    with (
        trimaran.open_in_thread("test", environ=ENVIRON, transport=capture) as telemetry,
        telemetry.session() as session,
    ):
        with session.generation(model_id="model"):
            session.send(trimaran.Command(command_name="sent"))
            asyncio.run(agents())
            environ = session.to_env({})
        with trimaran.attach_in_thread(environ=environ) as child, child.tool_call("c"):
            child.send(trimaran.Command(command_name="sent in c"))
        session.flush(math.inf)

    said = {f"{how} in {name}": name for how in ("tracked", "sent", "threaded") for name in "ab"}
    blocks = {"a": "model", "b": "model", "c": "model", "sent": "model", "model": ""}
    assert capture.tree() == ENDS | said | blocks | {"sent in c": "c"}


async def test_places_are_kept_by_the_spool(tmp_path: Any) -> None:
    """Another life delivers the same spans, with what their root stands below."""

    class Down(Spanned):
        async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
            self.requests.append(request)
            raise trimaran.TransportError("down")

    settings = trimaran.Settings(
        drain_timeout=0.5, spool=trimaran.Spool(directory=str(tmp_path / "state"))
    )
    down, up = Down(), Spanned()
    async with (
        down.open(settings=settings, environ=ENVIRON | {"TRACEPARENT": TRACEPARENT}) as telemetry,
        telemetry.session() as session,
    ):
        with session.tool_call("tool"):
            session.command("init")
    assert session.statistics().spooled == 4

    with trio.fail_after(60):
        async with up.open(settings=settings, environ=ENVIRON) as telemetry:
            while telemetry.leftovers().delivered < 4:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)

    async with Capture().open(settings=settings, environ=ENVIRON) as telemetry:
        assert telemetry.leftovers().tracked == 0
    [again] = up.taken
    assert (again.body, again.headers) == (down.requests[0].body, down.requests[0].headers)
    assert up.tree() == ENDS | {"tool": "", "init": "tool"}
    assert again.headers["traceparent"] == TRACEPARENT
