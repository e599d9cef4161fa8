"""``trimaran demo`` in a process of its own."""

from __future__ import annotations

import io
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
from msgspec.structs import replace
from rich.console import Console

from otlp.systems import TOKEN, TestAgent
from patience import LATENESS, PATIENCE
from trimaran import Settings, Statistics, open_telemetry
from trimaran._environment import PARENT
from trimaran._relay import client
from trimaran.cli import demo_relay
from trimaran.cli.demo import assignments, find_sources
from trimaran.cli.demo_books import Entry, entry_of, print_books
from trimaran.cli.demo_relay import DRAIN_TIMEOUT, Network, stopped
from trimaran.cli.demo_report import Helper, Report
from trimaran.receiver import open_store

if TYPE_CHECKING:
    from cli.conftest import Command, OnTerminal
    from conftest import LoopbackEndpoint
    from trimaran.receiver.values import StoredSession


def make_tree(root: Path, files: int) -> Path:
    """A tree with Python files, and some that are none of them."""
    (root / "package" / ".hidden").mkdir(parents=True)
    for number in range(files):
        (root / "package" / f"module{number}.py").write_text(f"def f{number}():\n    ...\n")
    (root / "package" / ".hidden" / "not.py").write_text("")
    (root / "package" / "README").write_text("")
    return root / "package"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for what a demonstration has to put somewhere, with a short path."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield Path(directory)


async def left_in(place: Path) -> list[str]:
    """The command lines that name something in *place*, of processes that do not end soon.

    A relay has let go of all it has when it is stopped; Python takes a moment more to end.
    """
    found: list[str] = []
    with trio.move_on_after(PATIENCE):
        while True:
            listed = await trio.run_process(["ps", "-A", "-o", "args="], capture_stdout=True)
            lines = listed.stdout.decode(errors="replace").splitlines()
            found = [line for line in lines if str(place) in line]
            if not found:
                break
            await trio.sleep(0.02)
    return found


async def stored_in(database: Path) -> list[StoredSession]:
    """The sessions that there are."""
    async with open_store(database) as store:
        return list((await store.sessions(limit=100)).sessions)


async def test_a_tree_of_processes_works_and_all_adds_up(command: Command) -> None:
    """Every session is in the store, complete, with the events of its processes, below the
    session that it works for; the table has each of them, and says what became of what the
    process had that was killed.
    """
    tree = make_tree(command.directory, 5)
    ended = await command(
        *("demo", tree, "--sessions", 2, "--exit", "--database", "demo.sqlite"),
        # Nor does it matter in whose session the demonstration is started.
        environ={PARENT: '{"protocol":1,"tier":"anonymous","app":"other","session_id":"other"}'},
    )

    assert ended.status == 0
    assert ended.err == ""
    assert f"2 agents review 5 files in {tree}\n" in ended.out
    assert "agent 1: done; " in ended.out
    assert "writer of agent 1: done; " in ended.out
    assert "All ledgers add up: " in ended.out
    # It was stuck in the file after the three that agent 1 has: one of them was handed over.
    assert "Of 3 events that it had tracked, 1" in ended.out
    assert "The other 2 died with it" in ended.out
    assert "Traceback" not in ended.out
    found = await stored_in(command.directory / "demo.sqlite")
    for session in found:
        types = session.summary.events_by_type
        assert session.id[:8] in ended.out
        assert types.items() >= {"session_start": 1, "session_end": 1, "command": 1}.items()
        assert types.keys() >= {"generation", "tool_call", "bridge_call", "error"}
    reviewers = [session for session in found if session.summary.agent == "reviewer"]
    assert {session.parent for session in reviewers} == {None}
    # A note for each of its files, a search of each, and of one of them the one that was killed.
    assert {session.summary.events_by_type["bridge_call"] for session in reviewers} == {7, 4}
    writers = {session.parent for session in found if session.summary.agent == "writer"}
    assert writers == {session.id for session in reviewers}
    assert len(found) == 4


async def test_another_system_gets_the_sessions(command: Command, test_agent: TestAgent) -> None:
    """A trace for each, with a span for each event: as many as the ledgers have delivered. It is
    said where to look, and the command is over then: there is no receiver.
    """
    tree = make_tree(command.directory, 2)
    ended = await command(
        *("demo", tree, "--sessions", 2, "--to", f"otlp+{test_agent.url}"),
        environ={"OTEL_EXPORTER_OTLP_HEADERS": f"{TOKEN}=demo"},
    )

    assert (ended.status, ended.err) == (0, "")
    assert f"Their sessions go to OTLP at {test_agent.url}/v1/traces\n" in ended.out
    assert "Stored" not in ended.out
    assert "they are in the session's ledger, and delivered." in ended.out
    _, _, look = ended.out.partition(f"Look at the sessions: {test_agent.url}, or where")
    named = re.findall(r"^  ([0-9a-f]{32}) \((.*)\)$", look, re.MULTILINE)
    assert sorted(name for _, name in named) == [
        *("agent 1", "agent 2", "writer of agent 1", "writer of agent 2"),
    ]
    # A slow machine may make agents send a batch again: the same spans, by their ids.
    by_id = {span.span_id: span for span in test_agent.spans("demo")}
    spans = by_id.values()
    roots = [span for span in spans if span.name.startswith("invoke_agent ")]
    assert {root.attributes["session.id"] for root in roots} == {id_ for id_, _ in named}
    assert len(roots) == 4
    assert {span.resource["service.name"] for span in spans} == {"trimaran-demo"}
    (count,) = re.findall(r"add up: ([0-9,]+) events were tracked and delivered; none", ended.out)
    assert len(spans) == int(count.replace(",", ""))
    # Everything is below the root of its own session, be it of another process.
    for span in spans:
        if span not in roots:
            above = by_id[span.parent_span_id]
            assert above.attributes["session.id"] == span.attributes["session.id"]


async def test_a_system_that_takes_nothing_is_found_out_before(
    command: Command, endpoint: LoopbackEndpoint
) -> None:
    """No agent begins."""
    endpoint.always(404)
    ended = await command("demo", make_tree(command.directory, 1), "--to", f"otlp+{endpoint.url}")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"trimaran: {endpoint.url}/v1/traces: it takes nothing at /v1/")
    assert ended.err.count("\n") == 1
    assert len(endpoint.requests) == 1


async def test_a_system_that_fails_later_is_told(
    command: Command, endpoint: LoopbackEndpoint
) -> None:
    """By ledgers that do not add up, and exit status 1."""
    endpoint.next(200)
    endpoint.always(400)
    tree = make_tree(command.directory, 1)
    ended = await command("demo", tree, "--sessions", 1, "--to", f"otlp+{endpoint.url}")

    assert ended.status == 1
    assert "2 of 2 ledgers do not add up." in ended.out
    assert " rejected" in ended.out


@pytest.mark.parametrize("options", [["--relay"], ["--database", "demo.sqlite"]])
async def test_with_another_system_there_is_no_receiver(
    command: Command, options: list[str]
) -> None:
    """Options that are about one are a wrong use."""
    ended = await command("demo", "--to", "otlp", *options)

    assert ended.status == 2
    assert f"with --to there is no receiver, which {options[0]} is about" in ended.err


async def test_agents_leave_at_once_by_way_of_a_relay(command: Command, place: Path) -> None:
    """Whatever the network does, and nothing is lost; the relay is gone in the end."""
    tree = make_tree(command.directory, 2)
    ended = await command(
        *("demo", tree, "--sessions", 1, "--exit", "--relay", "--database", "demo.sqlite"),
        environ={"TMPDIR": str(place)},
    )

    assert ended.status == 0
    assert "events were tracked, handed over and stored" in ended.out
    lost = re.search(r"on its own .* 18 delivered +([0-9,]+) ms; lost: 18 drain_timeout", ended.out)
    held = re.search(r"with a relay .* 18 handed over +([0-9,]+) ms; 18 handed over", ended.out)
    assert lost is not None
    assert held is not None
    # The one has a time-out to wait for; the other had handed over everything before that.
    timeout = 1_000 * DRAIN_TIMEOUT
    assert int(lost[1].replace(",", "")) >= timeout
    assert int(held[1].replace(",", "")) < timeout + 1_000 * LATENESS
    assert "the receiver has 18 of the 18 events that waited in the relay" in ended.out
    found = await stored_in(command.directory / "demo.sqlite")
    # The agent and its sub-agent, and those that left: but for the one that lost everything.
    assert len(found) == 2 + 3
    assert await left_in(place) == []


async def test_what_a_relay_has_is_delivered_before_it_is_stopped(
    nursery: trio.Nursery, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is a network by then: not only the batch that it was just trying to send."""
    monkeypatch.setattr(client, "PATIENCE", PATIENCE)
    monkeypatch.setattr(demo_relay, "LAST_DELIVERY", PATIENCE)
    monkeypatch.setattr(demo_relay, "STOP_PATIENCE", PATIENCE)
    relay = str(place / "relay")
    network = Network(nursery, tmp_path / "demo.sqlite")
    await network.up()
    await network.down()
    async with stopped(relay):
        async with (
            open_telemetry(
                "test",
                environ={"TEST_TELEMETRY_URL": network.url},
                settings=Settings(relay=relay, drain_timeout=PATIENCE),
            ) as telemetry,
            telemetry.session() as session,
        ):
            await session.flush()
        books = session.statistics()
        await network.up()

    assert (books.tracked, books.handed_over, books.batches) == (2, 2, 2)
    left = await entry_of(
        1, Report(agent="writer", session_id=session.id, statistics=books), network.url
    )
    assert left.stored == 2
    assert await left_in(place) == []
    nursery.cancel_scope.cancel()


async def test_serves_until_a_signal(command: Command) -> None:
    """The page that it names is there; Ctrl-C is the way to end, and no failure."""
    tree = make_tree(command.directory, 1)
    running = await command.start("demo", tree)
    await running.says("(Ctrl-C ends)")
    url = running.out.rsplit("Look at the events: ", 1)[1].split(" ", 1)[0]
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        page = await client.get(url)
        sessions = (await client.get(f"{url}api/sessions")).json()["sessions"]
    ended = await running.ends(signal.SIGINT)

    assert page.status_code == 200
    assert all(session["id"] in page.text for session in sessions)
    assert {(session["project"], session["agent"]) for session in sessions} == {
        *(("package", "reviewer"), ("package", "writer")),
    }
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("options", [[], ["--relay"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_agents_at_work(
    command: Command, place: Path, number: signal.Signals, options: list[str]
) -> None:
    """No traceback, and no process is left; the end of every session is delivered."""
    tree = make_tree(command.directory, 60)
    running = await command.start(
        *("demo", tree, "--sessions", 3, "--database", "demo.sqlite", *options),
        environ={"TMPDIR": str(place)},
    )
    for agent in (1, 2, 3):
        await running.says(f"agent {agent}: ")
    ended = await running.ends(number)

    assert await left_in(place) == []
    assert (ended.status, ended.err) == (128 + number, "")
    assert "Look at" not in ended.out
    found = await stored_in(command.directory / "demo.sqlite")
    assert [session.summary.events_by_type.get("session_end") for session in found] == [1, 1, 1]


async def test_agents_whose_demonstration_is_gone_end(command: Command, place: Path) -> None:
    """With all of their processes, although nobody tells them to."""
    tree = make_tree(command.directory, 60)
    running = await command.start(*("demo", tree, "--sessions", 2), environ={"TMPDIR": str(place)})
    await running.says("agent 2: ")
    # All of them have its standard error: it ends when the last of them has ended.
    ended = await running.ends(signal.SIGKILL)

    assert await left_in(place) == []
    assert ended.status == -signal.SIGKILL
    assert "Traceback" not in ended.err


async def test_a_terminal_sees_the_agents_work(on_terminal: OnTerminal, command: Command) -> None:
    """A table that keeps up, within its width, and the ledgers when they are done."""
    tree = make_tree(command.directory, 4)

    async with on_terminal("demo", tree, "--sessions", 2) as terminal:
        await terminal.says("Doing")
        await terminal.says("done")
        await terminal.says("(Ctrl-C ends)")
        await terminal.types("\x03")
        status = await terminal.ends()

    assert status == 0
    assert "Traceback" not in terminal.shown
    assert "Delivered" in terminal.shown
    assert "\N{BOX DRAWINGS LIGHT UP AND RIGHT} writer" in terminal.shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in terminal.shown.split("Session")[-1]


async def test_ctrl_c_on_a_terminal_is_for_one_process(
    on_terminal: OnTerminal, command: Command
) -> None:
    """Which ends the others in order, also those that have only just begun."""
    tree = make_tree(command.directory, 4)

    async with on_terminal("demo", tree, "--sessions", 4) as terminal:
        await terminal.says("starts")
        await terminal.types("\x03")
        status = await terminal.ends()

    assert status == 128 + signal.SIGINT
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (
            ["package"],
            {"DO_NOT_TRACK": "1"},
            "there is nothing to see: switched off by DO_NOT_TRACK; unset it",
        ),
        (
            ["package/.hidden/.."],
            {"TRIMARAN_DEMO_TELEMETRY_DISABLED": "yes"},
            "there is nothing to see: switched off by TRIMARAN_DEMO_TELEMETRY_DISABLED; unset it",
        ),
        (
            ["nowhere"],
            {},
            "nowhere: no directory with Python files to review; name another one",
        ),
        (
            ["package", "--database", "nowhere/demo.sqlite"],
            {},
            "nowhere/demo.sqlite: ",
        ),
    ],
)
async def test_says_why_there_is_nothing_to_see(
    command: Command, arguments: list[str], environ: dict[str, str], message: str
) -> None:
    """In one line, with what to do."""
    make_tree(command.directory, 1)
    ended = await command("demo", *arguments, environ=environ)

    assert ended.status == 1
    assert ended.err.startswith(f"trimaran: {message}")
    assert ended.err.count("\n") == 1


def test_finds_python_files_but_hidden_ones(tmp_path: Path) -> None:
    """In order, relative to the tree; a tree that is itself hidden is one all the same."""
    tree = make_tree(tmp_path / ".hidden", 2)

    assert find_sources(tree) == ["module0.py", "module1.py"]


def test_work_is_dealt_out(tmp_path: Path) -> None:
    """To as many agents as there is work for, to none more than it can do; one is careless."""

    def dealt(files: list[str], count: int) -> list[tuple[str, ...]]:
        return [task.files for task in assignments(files, tmp_path, tmp_path, count)]

    assert dealt(["a", "b", "c"], 2) == [("a", "c"), ("b",)]
    assert dealt(["a"], 4) == [("a",)]
    (share,) = dealt([str(number) for number in range(1_000)], 1)
    assert len(share) == 8
    tasks = assignments(["a", "b", "c"], tmp_path, tmp_path, 3)
    assert [task.is_careless for task in tasks] == [True, False, False]
    assert len({task.workspace for task in tasks}) == 3


def entry(stored: int | None, *helpers: Helper, **books: object) -> Entry:
    """The books of one session."""
    statistics = Statistics(**books)  # type: ignore[arg-type]
    report = Report(
        agent="reviewer", session_id="s", is_done=True, statistics=statistics, helpers=helpers
    )
    return Entry(1, report, stored)


WHOLE = Helper(name="notes", pid=1, tracked=2, delivered=2)
KILLED = Helper(name="search", pid=2, tracked=5)


def test_a_ledger_that_does_not_add_up_is_told() -> None:
    """Whether something was dropped, is pending, or was confirmed and is not in the store; or
    came from nowhere, or was handed over by a child and is not among the session's.
    """
    good = entry(3, tracked=3, delivered=3)
    entries = [
        good,
        entry(2, tracked=3, delivered=3),
        entry(2, tracked=3, delivered=2, dropped={"rejected": 1}),
        entry(2, tracked=3, delivered=2, pending=1),
        entry(3, tracked=3, delivered=3, from_children=1),
        entry(3, WHOLE, tracked=3, delivered=3, from_children=1),
        entry(9, WHOLE, KILLED, tracked=9, delivered=9, from_children=8),
        replace(good, report=replace(good.report, is_done=False)),
    ]
    shown = io.StringIO()

    print_books(entries, Console(file=shown, width=120))

    assert [each.adds_up for each in entries] == [True] + [False] * 7
    assert "1 rejected" in shown.getvalue()
    assert shown.getvalue().endswith("7 of 8 ledgers do not add up.\n")


def test_a_ledger_adds_up_by_itself_where_nobody_can_be_asked() -> None:
    """What is stored elsewhere is not known; what was not delivered is."""
    assert entry(None, tracked=3, delivered=3).adds_up
    assert not entry(None, tracked=3, delivered=2, pending=1).adds_up


def test_what_a_killed_child_had_is_told_in_words() -> None:
    """How much of it was handed over, and that the rest is in nobody's ledger."""
    (loss,) = (books := entry(9, WHOLE, KILLED, tracked=9, delivered=9, from_children=5)).losses()

    assert books.adds_up
    assert "Of 5 events that it had tracked, 3 were handed over" in loss
    assert "The other 2 died with it; no ledger has them." in loss
    assert list(entry(9, WHOLE, tracked=9, delivered=9, from_children=2).losses()) == []
