"""The demonstration's agent: what it says of itself, and its tools."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trimaran
from trimaran.cli.demo_agent import (
    CONTEXT_LIMIT,
    Message,
    Review,
    ScriptedPlanner,
    price,
    prune,
    review,
)
from trimaran.cli.demo_tools import FAILURES, Call, CompileError, Tools
from trimaran.testing import Capture

FILES = {
    "good.py": '"""A module."""\n\nclass A:\n    def f(self):\n        pass  # TODO: do it\n',
    "sub/bad.py": "def f(:\n",
}


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """Tools on a tree with one good file and one that does not compile."""
    root, workspace = tmp_path / "root", tmp_path / "workspace"
    workspace.mkdir()
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tools(root, list(FILES), workspace)


async def test_a_review_says_all_of_itself(tools: Tools, tmp_path: Path) -> None:
    """Every call is in the session's events, with its order, its outcome and its totals."""
    capture = Capture()
    task = Review("project", list(FILES))
    async with capture.open() as telemetry:
        await review(telemetry, task, tools)

    start, *_, end = capture.events()
    assert isinstance(start, trimaran.SessionStart)
    assert (start.project_id, start.agent, start.model_id, start.provider_id) == (
        *("project", "reviewer", "scripted-planner", "trimaran-demo"),
    )
    calls = capture.events(trimaran.ToolCall)
    assert [call.sequence_index for call in calls] == list(range(16))
    assert [(call.tool_name, call.status) for call in calls] == [
        ("list", "success"),
        *(("read", "success"), ("parse", "success"), ("compile", "success")),
        ("mcp__notes__save", "success"),
        *(("read", "success"), ("parse", "error"), ("compile", "error")),
        ("mcp__notes__save", "success"),
        ("grep", "success"),
        ("read", "error"),
        *(("write", "success"), ("compile", "error")),
        *(("write", "success"), ("compile", "success")),
        ("mcp__notes__count", "success"),
    ]
    assert [call.method for call in capture.events(trimaran.BridgeCall)] == [
        *("sql.execute", "sql.execute", "sql.query"),
    ]
    assert [command.command_name for command in capture.events(trimaran.Command)] == [
        *("review", "notes"),
    ]
    assert [error.error_name for error in capture.events(trimaran.ErrorEvent)] == [
        *("SyntaxError", "CompileError", "FileNotFoundError", "CompileError"),
    ]
    generations = capture.events(trimaran.Generation)
    assert [generation.finish_reason for generation in generations] == [
        *["tool_calls"] * 15,
        "stop",
    ]
    assert isinstance(end, trimaran.SessionEnd)
    assert end.tool_call_count == task.tool_calls == 16
    assert end.total_tokens == task.tokens == sum(g.tokens.total for g in generations)
    assert end.total_cost == pytest.approx(task.cost)
    assert task.failures == 4
    assert task.is_done
    assert not list(tmp_path.glob("root/**/__pycache__"))  # the files are only read


async def test_the_planner_counts_what_it_was_given() -> None:
    """What it knows from before is read from its cache; the rest is new to it."""
    planner = ScriptedPlanner([])
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


async def test_a_review_of_much_prunes(tmp_path: Path) -> None:
    """And says so in its session."""
    files = [f"f{number}.py" for number in range(4)]
    for name in files:
        (tmp_path / name).write_text("x = 1\n" * (CONTEXT_LIMIT // 6))
    capture = Capture()
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    async with capture.open() as telemetry:
        await review(telemetry, Review("p", files), Tools(tmp_path, files, workspace))

    assert capture.events(trimaran.ToolOutputsPruned)


async def test_tools_do_what_they_say(tools: Tools) -> None:
    """On real files."""
    assert await tools.use(Call("list")) == "good.py: 71 bytes\nsub/bad.py: 8 bytes"
    assert await tools.use(Call("read", ("good.py",))) == FILES["good.py"]
    assert await tools.use(Call("parse", ("good.py",))) == (
        "1 classes, 1 functions, 1 without a docstring"
    )
    assert await tools.use(Call("grep", ("TODO",))) == "1 lines\ngood.py:5: pass  # TODO: do it"
    assert await tools.use(Call("compile", ("good.py",))) == "good.py compiles"
    assert await tools.use(Call("write", ("new.py", "x = 1"))) == "new.py is written"
    assert await tools.use(Call("read", ("new.py",))) == "x = 1"


async def test_tools_fail_as_tools_do(tools: Tools) -> None:
    """With an exception that says why, each one of those that an agent goes on after."""
    with pytest.raises(CompileError, match="invalid syntax"):
        await tools.use(Call("compile", ("sub/bad.py",)))
    with pytest.raises(SyntaxError):
        await tools.use(Call("parse", ("sub/bad.py",)))
    with pytest.raises(FileNotFoundError):
        await tools.use(Call("read", ("nothing-here",)))
    with pytest.raises(ValueError, match="there is no such tool: fly"):
        await tools.use(Call("fly"))
    for failure in (CompileError, SyntaxError, FileNotFoundError, ValueError):
        assert issubclass(failure, FAILURES)


def test_the_example_fits_a_screen_or_two() -> None:
    """The function that readers look at is short, and has no line about anything but its work."""
    source = Path(review.__code__.co_filename).read_text()
    (function,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "review"
    ]
    assert function.end_lineno is not None
    assert function.end_lineno - function.lineno < 40
