"""``trimaran demo`` in a process of its own."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from rich.console import Console

import trimaran
from trimaran import Statistics
from trimaran.cli.demo import Entry, find_sources, print_books, shares
from trimaran.cli.demo_agent import Review
from trimaran.receiver import open_store

if TYPE_CHECKING:
    from cli.conftest import Command, OnTerminal


def make_tree(root: Path, files: int) -> Path:
    """A tree with Python files, and some that are none of them."""
    (root / "package" / ".hidden").mkdir(parents=True)
    for number in range(files):
        (root / "package" / f"module{number}.py").write_text(f"def f{number}():\n    ...\n")
    (root / "package" / ".hidden" / "not.py").write_text("")
    (root / "package" / "README").write_text("")
    return root / "package"


async def types_in(database: Path) -> dict[str, dict[str, int]]:
    """How many events of each type there are, by session."""
    async with open_store(database) as store:
        page = await store.sessions(limit=100)
    return {session.id: session.summary.events_by_type for session in page.sessions}


async def test_agents_work_and_all_adds_up(command: Command) -> None:
    """Every session is in the store, complete; the table has each of them."""
    tree = make_tree(command.directory, 5)
    ended = await command("demo", tree, "--sessions", 2, "--exit", "--database", "demo.sqlite")

    assert ended.status == 0
    assert ended.err == ""
    assert f"2 agents review 5 files in {tree}\n" in ended.out
    assert "agent 1: done; " in ended.out
    assert "All ledgers add up: " in ended.out
    found = await types_in(command.directory / "demo.sqlite")
    assert len(found) == 2
    for session_id, types in found.items():
        assert session_id[:8] in ended.out
        assert (
            types.items()
            >= {
                "session_start": 1,
                "session_end": 1,
                "command": 2,
                "error": 2,
            }.items()
        )
        assert types.keys() >= {"generation", "tool_call", "bridge_call"}


async def test_serves_until_a_signal(command: Command) -> None:
    """The page that it names is there; Ctrl-C is the way to end, and no failure."""
    tree = make_tree(command.directory, 1)
    running = await command.start("demo", tree)
    await running.says("(Ctrl-C ends)")
    url = running.out.rsplit("Look at the events: ", 1)[1].split(" ", 1)[0]
    async with httpx.AsyncClient(trust_env=False) as client:
        page = await client.get(url)
        (session,) = (await client.get(f"{url}api/sessions")).json()["sessions"]
    ended = await running.ends(signal.SIGINT)

    assert page.status_code == 200
    assert session["id"] in page.text
    assert (session["project"], session["agent"]) == ("package", "reviewer")
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_agents_at_work(command: Command, number: signal.Signals) -> None:
    """No traceback; the end of every session is delivered."""
    tree = make_tree(command.directory, 60)
    running = await command.start("demo", tree, "--sessions", 3, "--database", "demo.sqlite")
    await running.says("agent 3: ")
    ended = await running.ends(number)

    assert (ended.status, ended.err) == (128 + number, "")
    assert "Look at" not in ended.out
    found = await types_in(command.directory / "demo.sqlite")
    assert [types.get("session_end") for types in found.values()] == [1, 1, 1]


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
    assert "\N{HORIZONTAL ELLIPSIS}" not in terminal.shown.split("Session")[-1]


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


def test_work_is_dealt_out() -> None:
    """To as many agents as there is work for, and to none more than it can do."""
    assert shares(["a", "b", "c"], 2) == [["a", "c"], ["b"]]
    assert shares(["a"], 4) == [["a"]]
    (share,) = shares([str(number) for number in range(1_000)], 1)
    assert len(share) == 25


async def test_a_ledger_that_does_not_add_up_is_told() -> None:
    """Whether something was dropped, is pending, or was confirmed and is not in the store."""
    entries: list[Entry] = []
    for statistics, stored in (
        (Statistics(tracked=3, delivered=3), 3),
        (Statistics(tracked=3, delivered=3), 2),
        (Statistics(tracked=3, delivered=2, dropped={"rejected": 1}), 2),
        (Statistics(tracked=3, delivered=2, pending=1), 2),
    ):
        task = Review("p", [])
        async with trimaran.open_telemetry("off", environ={}) as telemetry:
            async with telemetry.session() as task.session:
                pass
        entries.append(Entry(task, statistics, stored))
    shown = io.StringIO()

    print_books(entries, Console(file=shown, width=120))

    assert [entry.adds_up for entry in entries] == [True, False, False, False]
    assert "1 rejected" in shown.getvalue()
    assert shown.getvalue().endswith("3 of 4 ledgers do not add up.\n")
