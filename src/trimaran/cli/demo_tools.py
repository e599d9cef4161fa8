"""The tools of the demonstration's agent: real work on real files, much of it elsewhere.

In: calls. Out: what came of them as text, or an exception that says why nothing did.
Does not know: the agent, sessions; it is given the environment in which processes take part in
one, and keeps their books.

The files under review are only read. What is written goes into a directory of the agent's.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import msgspec
import trio
from msgspec.structs import replace

from trimaran.cli.demo_child import Child, started
from trimaran.cli.demo_notes import Statement
from trimaran.cli.demo_report import Assignment, Helper, Said, line_of

__all__ = ["AGENT_PATIENCE", "FAILURES", "Call", "ToolError", "Tools", "open_tools"]

MOST_CHARACTERS = 64 * 1024
"""Characters of a file that are read; what an agent would show its model of it."""

SEARCH_PATIENCE = 1.5
"""Seconds that a search may be silent, until it is taken for one that will never end."""

TOOL_PATIENCE = 5.0
"""Seconds that a tool has to end when it is asked to."""

AGENT_PATIENCE = 15.0
"""The same for an agent, which has its last events to deliver."""

_Result = TypeVar("_Result")


class Call(NamedTuple):
    """What is to be done."""

    tool: str
    arguments: tuple[str, ...] = ()


class ToolError(Exception):
    """A tool did not do what it was asked; the text says why."""


FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    RecursionError,
    ToolError,
    trio.BrokenResourceError,  # a process that the tool needs is gone
)
"""What may come of a call other than text."""


class Tools:
    """The tools, for one agent. Make it with :func:`open_tools`."""

    categories: ClassVar[Mapping[str, str]] = {
        "list": "file",
        "read": "file",
        "write": "file",
        "search": "search",
        "parse": "code",
        "compile": "code",
        "task": "agent",
        "mcp__notes__save": "notes",
        "mcp__notes__list": "notes",
    }

    def __init__(
        self,
        assignment: Assignment,
        environ: Callable[[], Mapping[str, str]],
        pass_on: Callable[[bytes], None],
        open_until_the_end: AsyncExitStack,
    ) -> None:
        self._assignment = assignment
        self._root = Path(assignment.root)
        self._workspace = Path(assignment.workspace)
        self._environ = environ
        self._environ_of_agent = environ()
        self._pass_on = pass_on
        self._stack = open_until_the_end
        self._notes: Child | None = None
        self._helpers: dict[int, Helper] = {}

    @property
    def helpers(self) -> tuple[Helper, ...]:
        """The processes that took part in the session, in the order in which they began."""
        return tuple(self._helpers.values())

    async def use(self, call: Call) -> str:
        """What comes of *call*.

        Raises:
            One of FAILURES: nothing does.
        """
        match call:
            case Call("list"):
                return await _in_thread(self._list)
            case Call("read", (file,)):
                return await _in_thread(self._read, file)
            case Call("write", (file, text)):
                await _in_thread((self._workspace / file).write_text, text)
                return f"{file} is written"
            case Call("search", (pattern, *more)):
                return await self._search(pattern, more)
            case Call("parse", (file,)):
                return await _in_thread(self._parse, file)
            case Call("compile", (file,)):
                return await self._compile(file)
            case Call("task"):
                return await self._delegate()
            case Call("mcp__notes__save", (file, note)):
                await self._note("INSERT INTO notes VALUES (?, ?)", file, note)
                return "noted"
            case Call("mcp__notes__list"):
                return await self._note("SELECT file, note FROM notes ORDER BY file")
            case _:
                raise ValueError(f"there is no such tool: {call.tool}")

    def _path(self, file: str) -> Path:
        own = self._workspace / file
        return own if own.exists() else self._root / file

    def _list(self) -> str:
        sizes = ((file, (self._root / file).stat().st_size) for file in self._assignment.files)
        return "\n".join(f"{file}: {size} bytes" for file, size in sizes)

    def _read(self, file: str) -> str:
        with self._path(file).open(encoding="utf-8") as opened:
            return opened.read(MOST_CHARACTERS)

    def _parse(self, file: str) -> str:
        nodes = list(ast.walk(ast.parse(self._read(file), file)))
        classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
        functions = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        bare = sum(ast.get_docstring(function) is None for function in functions)
        return f"{classes} classes, {len(functions)} functions, {bare} without a docstring"

    async def _compile(self, file: str) -> str:
        """Let another Python compile *file*, with its result in the workspace."""
        done = await trio.run_process(
            [
                sys.executable,
                "-X",
                f"pycache_prefix={self._workspace}",
                "-m",
                "py_compile",
                str(self._path(file)),
            ],
            check=False,
            capture_stdout=True,
            capture_stderr=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").split("\n")
            raise ToolError(next((line for line in reversed(said) if line.strip()), "no reason"))
        return f"{file} compiles"

    async def _search(self, pattern: str, more: Sequence[str]) -> str:
        """Let a process of its own look for *pattern*; kill it when it is silent for too long."""
        files = [str(self._path(file)) for file in (*self._assignment.files, *more)]
        hits: list[str] = []
        async with self._helper("search", pattern, *files, environ=self._environ()) as search:
            await self._answer(search)  # it has begun; how long that takes is not its own affair
            try:
                while self._helpers[search.pid].delivered is None:
                    with trio.fail_after(SEARCH_PATIENCE):
                        said = await self._answer(search)
                    if said.text:
                        hits.append(said.text)
            except trio.TooSlowError:
                search.kill()
                raise ToolError(f"killed after {SEARCH_PATIENCE:g} s of silence") from None
        return "\n".join([f"{len(hits)} files", *hits])

    async def _note(self, sql: str, *values: str) -> str:
        """Let the server of notes, a process that lives as long as the agent, do *sql*."""
        if self._notes is None:
            database = str(self._workspace / "notes.sqlite")
            # What it does is no part of the call for which it happens to be started.
            self._notes = await self._stack.enter_async_context(
                self._helper("notes", database, environ=self._environ_of_agent)
            )
            self._stack.push_async_callback(self._leave_notes, self._notes)
        await self._notes.tell(msgspec.json.encode(Statement(sql, values)))
        said = await self._answer(self._notes)
        if said.error:
            raise ToolError(said.error)
        return said.text

    async def _leave_notes(self, notes: Child) -> None:
        await notes.leave()
        with suppress(ToolError):  # it ended before
            await self._answer(notes)

    async def _delegate(self) -> str:
        """Let a sub-agent write the review: a process, and a session, of its own."""
        task = replace(self._assignment, agent="writer", is_careless=False)
        async with started(
            "trimaran.cli.demo_process",
            line_of(task).decode(),
            environ=self._environ(),
            patience=AGENT_PATIENCE,
        ) as writer:
            while (report := await writer.lines.next()) is not None:
                self._pass_on(report)
            status = await writer.wait()
        if status:
            raise ToolError(f"the writer did not come to its end (status {status})")
        return "the writer is done: see REVIEW.md"

    @asynccontextmanager
    async def _helper(
        self, name: str, *arguments: str, environ: Mapping[str, str]
    ) -> AsyncGenerator[Child]:
        """A process that takes part in the session: its environment is all that it needs."""
        async with started(
            f"trimaran.cli.demo_{name}", *arguments, environ=environ, patience=TOOL_PATIENCE
        ) as child:
            self._helpers[child.pid] = Helper(name=name, pid=child.pid)
            yield child

    async def _answer(self, child: Child) -> Said:
        line = await child.lines.next()
        if line is None:
            raise ToolError(f"{self._helpers[child.pid].name} ended without an answer")
        said = msgspec.json.decode(line, type=Said)
        self._helpers[child.pid] = replace(
            self._helpers[child.pid], tracked=said.tracked, delivered=said.delivered
        )
        return said


@asynccontextmanager
async def open_tools(
    assignment: Assignment,
    environ: Callable[[], Mapping[str, str]],
    pass_on: Callable[[bytes], None],
) -> AsyncGenerator[Tools]:
    """The tools for *assignment*; at the end of the block none of their processes is left.

    Args:
        assignment: where to work, and on what.
        environ: gives the environment in which a process takes part in the session that the
            tools are used in, inside the call that it is started for.
        pass_on: given each line that a sub-agent reports.
    """
    async with AsyncExitStack() as stack:
        yield Tools(assignment, environ, pass_on, stack)


async def _in_thread(function: Callable[..., _Result], *arguments: str) -> _Result:
    return await trio.to_thread.run_sync(partial(function, *arguments))
