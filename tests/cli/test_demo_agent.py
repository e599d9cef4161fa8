"""The demonstration's agent: what it says of itself, and its tools."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

import trimaran
from patience import PATIENCE
from trimaran.cli import demo_tools
from trimaran.cli.demo_agent import (
    CONTEXT_LIMIT,
    Message,
    Progress,
    ScriptedPlanner,
    price,
    prune,
    work,
)
from trimaran.cli.demo_report import Assignment
from trimaran.cli.demo_search import hits
from trimaran.cli.demo_tools import FAILURES, Call, ToolError, Tools, open_tools
from trimaran.testing import Capture

SETTINGS = trimaran.Settings(drain_timeout=PATIENCE)
FILES = {
    "good.py": '"""A module."""\n\nclass A:\n    def f(self):\n        pass  # TODO: do it\n',
    "sub/bad.py": "def f(:\n",
}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine keeps a process silent that has something to say."""
    for name in ("SEARCH_PATIENCE", "TOOL_PATIENCE", "AGENT_PATIENCE"):
        monkeypatch.setattr(demo_tools, name, PATIENCE)


@pytest.fixture
def task(tmp_path: Path) -> Assignment:
    """A tree with one good file and one that does not compile."""
    root, workspace = tmp_path / "root", tmp_path / "workspace"
    workspace.mkdir()
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Assignment(
        agent="reviewer",
        project="project",
        root=str(root),
        files=tuple(FILES),
        workspace=str(workspace),
    )


async def works(task: Assignment) -> tuple[Capture, Progress]:
    """An agent at work on *task*, to the end; what it said, and how far it was then."""
    capture, progress = Capture(), Progress(task)
    async with capture.open(settings=SETTINGS) as telemetry:
        await work(telemetry, progress, lambda _line: None)
    return capture, progress


async def test_a_review_says_all_of_itself(task: Assignment, tmp_path: Path) -> None:
    """Every call is in the session's events, with its order, its outcome and its totals; those
    that were made in other processes too.
    """
    capture, progress = await works(task)

    start, *_, end = capture.events()
    assert isinstance(start, trimaran.SessionStart)
    assert (start.project_id, start.agent, start.model_id, start.provider_id) == (
        *("project", "reviewer", "scripted-planner", "trimaran-demo"),
    )
    calls = capture.events(trimaran.ToolCall)
    assert [call.sequence_index for call in calls] == list(range(13))
    assert [(call.tool_name, call.status) for call in calls] == [
        *(("list", "success"), ("read", "error")),
        *(("read", "success"), ("parse", "success"), ("compile", "success")),
        ("mcp__notes__save", "success"),
        *(("read", "success"), ("parse", "error"), ("compile", "error")),
        ("mcp__notes__save", "success"),
        *(("search", "success"), ("task", "success"), ("read", "success")),
    ]
    bridge = sorted(call.method for call in capture.events(trimaran.BridgeCall))
    assert bridge == ["re.search", "re.search", "sql.execute", "sql.execute"]
    (command,) = capture.events(trimaran.Command)
    assert command.command_name == "reviewer"
    assert [error.error_name for error in capture.events(trimaran.ErrorEvent)] == [
        *("FileNotFoundError", "SyntaxError", "ToolError"),
    ]
    generations = capture.events(trimaran.Generation)
    assert [generation.finish_reason for generation in generations] == [
        *["tool_calls"] * 13,
        "stop",
    ]
    assert isinstance(end, trimaran.SessionEnd)
    assert end.tool_call_count == 13
    assert end.total_tokens == sum(generation.tokens.total for generation in generations)
    report = progress.report()
    assert (report.tool_calls, report.failures) == (13, 3)
    assert report.statistics.from_children == len(bridge)
    assert [(helper.name, helper.tracked, helper.delivered) for helper in report.helpers] == [
        *(("notes", 2, 2), ("search", 2, 2)),
    ]
    assert not list(tmp_path.glob("root/**/__pycache__"))  # the files are only read


async def test_a_search_that_never_ends_is_killed(
    task: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent goes on; what the search had handed over is in the session, the rest is not,
    and the agent knows of how much there was.
    """
    monkeypatch.setattr(demo_tools, "SEARCH_PATIENCE", 2.5)
    capture, progress = await works(replace(task, is_careless=True))

    report = progress.report()
    assert report.is_done is False  # its telemetry is another's
    assert [(helper.name, helper.tracked, helper.delivered) for helper in report.helpers] == [
        *(("notes", 2, 2), ("search", 2, None), ("search", 2, 2)),
    ]
    # Of the two files, one was searched before the search handed over what it had to tell.
    assert report.statistics.from_children == 2 + 1 + 2
    assert len(capture.events(trimaran.BridgeCall)) == 5
    assert "killed after 2.5 s of silence" in [
        error.error_message for error in capture.events(trimaran.ErrorEvent)
    ]


async def test_the_planner_counts_what_it_was_given(task: Assignment) -> None:
    """What it knows from before is read from its cache; the rest is new to it."""
    planner = ScriptedPlanner(task)
    conversation = [Message("two words")]
    first = await planner.answer(conversation)
    conversation += [Message(first.text), Message("one: two", is_output=True)]
    second = await planner.answer(conversation)

    assert first.call == Call("list")
    assert first.tokens == trimaran.Tokens(input=2, output=Message(first.text).tokens)
    assert second.tokens.cache_read == 2
    assert second.tokens.input == Message(first.text).tokens + 3
    assert second.cost == price(second.tokens) > 0


def test_a_long_conversation_loses_its_oldest_outputs() -> None:
    """Down to half of the limit, and nothing but outputs; the event says how many."""
    said, output = Message("word " * 10), Message("word " * 30, is_output=True)
    conversation = [said, output, output, output, said]

    assert prune(list(conversation), 110) is None
    pruned = prune(conversation, 100)

    assert pruned == trimaran.ToolOutputsPruned(count=2, tokens_pruned=60)
    assert conversation == [said, *[Message("(taken out)")] * 2, output, said]


async def test_a_review_of_much_prunes(task: Assignment) -> None:
    """And says so in its session."""
    files = [f"f{number}.py" for number in range(4)]
    for name in files:
        await trio.Path(task.root, name).write_text("x = 1\n" * (CONTEXT_LIMIT // 6))
    capture, _ = await works(replace(task, files=tuple(files)))

    assert capture.events(trimaran.ToolOutputsPruned)


@pytest.fixture
async def tools(task: Assignment) -> AsyncGenerator[Tools]:
    """The tools, outside of a session."""
    async with open_tools(task, lambda: os.environ, lambda _line: None) as opened:
        yield opened


async def test_tools_do_what_they_say(tools: Tools, task: Assignment) -> None:
    """On real files."""
    assert await tools.use(Call("list")) == "good.py: 71 bytes\nsub/bad.py: 8 bytes"
    assert await tools.use(Call("read", ("good.py",))) == FILES["good.py"]
    assert await tools.use(Call("parse", ("good.py",))) == (
        "1 classes, 1 functions, 1 without a docstring"
    )
    assert await tools.use(Call("search", ("TODO",))) == ("1 files\ngood.py:5: pass  # TODO: do it")
    assert await tools.use(Call("compile", ("good.py",))) == "good.py compiles"
    assert await tools.use(Call("write", ("new.py", "x = 1"))) == "new.py is written"
    assert await tools.use(Call("read", ("new.py",))) == "x = 1"
    assert await tools.use(Call("mcp__notes__save", ("good.py", "good"))) == "noted"
    assert await tools.use(Call("mcp__notes__list")) == "good.py: good"
    assert "REVIEW.md" in await tools.use(Call("task", ("write",)))
    review = await trio.Path(task.workspace, "REVIEW.md").read_text()
    assert review == "# Review\n\ngood.py: good\n"


def test_a_search_says_in_which_line(task: Assignment) -> None:
    """With the file's name and the line's number."""
    assert hits("class|def", Path(task.root, "good.py")) == (
        "good.py:3: class A:\ngood.py:4: def f(self):"
    )


async def test_tools_fail_as_tools_do(tools: Tools, task: Assignment) -> None:
    """With an exception that says why, each one of those that an agent goes on after."""
    with pytest.raises(ToolError, match="invalid syntax"):
        await tools.use(Call("compile", ("sub/bad.py",)))
    with pytest.raises(SyntaxError):
        await tools.use(Call("parse", ("sub/bad.py",)))
    with pytest.raises(FileNotFoundError):
        await tools.use(Call("read", ("nothing-here",)))
    with pytest.raises(ValueError, match="there is no such tool: fly"):
        await tools.use(Call("fly"))
    assert "No such file" in await tools.use(Call("search", ("TODO", "nothing-here")))
    await trio.Path(task.workspace, "notes.sqlite").write_text("no database" * 100)
    with pytest.raises(ToolError, match="not a database"):
        await tools.use(Call("mcp__notes__list"))
    for failure in (ToolError, SyntaxError, FileNotFoundError, ValueError):
        assert issubclass(failure, FAILURES)


async def test_a_tool_whose_process_is_gone_fails(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it ended before it was asked or did not even begin; the agent goes on."""
    await tools.use(Call("mcp__notes__list"))
    (notes,) = tools.helpers
    os.kill(notes.pid, signal.SIGKILL)
    with pytest.raises(FAILURES):
        await tools.use(Call("mcp__notes__list"))

    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ToolError, match="search ended without an answer"):
        await tools.use(Call("search", ("TODO",)))
    with pytest.raises(ToolError, match="the writer did not come to its end"):
        await tools.use(Call("task", ("write",)))


def test_the_example_fits_a_screen_or_two() -> None:
    """The function that readers look at is short, and has no line about anything but its work."""
    source = Path(work.__code__.co_filename).read_text()
    (function,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "work"
    ]
    assert function.end_lineno is not None
    assert function.end_lineno - function.lineno < 40
