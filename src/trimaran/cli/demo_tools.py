"""The tools of the demonstration's agent: real work on real files.

In: calls. Out: what came of them as text, or an exception that says why nothing did.
Does not know: the agent, sessions; but for the bridge to SQLite, which says of itself what
it does, in whichever session that is.

The files under review are only read. What is written goes into a directory of the agent's.
"""

from __future__ import annotations

import ast
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import trio

import trimaran

__all__ = ["FAILURES", "Call", "CompileError", "Tools"]

MOST_CHARACTERS = 64 * 1024
"""Characters of a file that are read; what an agent would show its model of it."""

_Result = TypeVar("_Result")


class Call(NamedTuple):
    """What is to be done."""

    tool: str
    arguments: tuple[str, ...] = ()


class CompileError(Exception):
    """A file does not compile; the text says why."""


FAILURES = (OSError, SyntaxError, ValueError, RecursionError, sqlite3.Error, CompileError)
"""What may come of a call other than text."""


class Tools:
    """The tools, for one review.

    Args:
        root: where the files are.
        files: those under review, relative to it.
        workspace: a directory of its own.
    """

    categories: ClassVar[Mapping[str, str]] = {
        "list": "file",
        "read": "file",
        "write": "file",
        "grep": "search",
        "parse": "code",
        "compile": "code",
        "mcp__notes__save": "notes",
        "mcp__notes__count": "notes",
    }

    def __init__(self, root: Path, files: Sequence[str], workspace: Path) -> None:
        self._root = root
        self._files = files
        self._workspace = workspace

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
            case Call("grep", (pattern,)):
                return await _in_thread(self._grep, pattern)
            case Call("parse", (file,)):
                return await _in_thread(self._parse, file)
            case Call("compile", (file,)):
                return await self._compile(file)
            case Call("mcp__notes__save", (file, note)):
                with trimaran.current_session().bridge_call("sql.execute"):
                    await _in_thread(self._sql, "INSERT INTO notes VALUES (?, ?)", file, note)
                return "noted"
            case Call("mcp__notes__count"):
                with trimaran.current_session().bridge_call("sql.query"):
                    count = await _in_thread(self._sql, "SELECT count(*) FROM notes")
                return f"{count} notes"
            case _:
                raise ValueError(f"there is no such tool: {call.tool}")

    def _path(self, file: str) -> Path:
        own = self._workspace / file
        return own if own.exists() else self._root / file

    def _list(self) -> str:
        sizes = ((file, (self._root / file).stat().st_size) for file in self._files)
        return "\n".join(f"{file}: {size} bytes" for file, size in sizes)

    def _read(self, file: str) -> str:
        with self._path(file).open(encoding="utf-8") as opened:
            return opened.read(MOST_CHARACTERS)

    def _grep(self, pattern: str) -> str:
        found = re.compile(pattern)
        hits = [
            f"{file}:{number}: {line.strip()}"
            for file in self._files
            for number, line in enumerate(self._read(file).splitlines(), start=1)
            if found.search(line)
        ]
        return "\n".join([f"{len(hits)} lines", *hits])

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
            capture_stderr=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").split("\n")
            raise CompileError(next((line for line in reversed(said) if line.strip()), "no reason"))
        return f"{file} compiles"

    def _sql(self, statement: str, *values: str) -> object:
        """Run *statement* in the database of notes; the first value that it gives, if any."""
        with closing(sqlite3.connect(self._workspace / "notes.sqlite")) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS notes (file TEXT, note TEXT)")
            row = database.execute(statement, values).fetchone()
            return None if row is None else row[0]


async def _in_thread(function: Callable[..., _Result], *arguments: str) -> _Result:
    return await trio.to_thread.run_sync(partial(function, *arguments))
