"""Runs the code blocks of one Markdown page, top to bottom, in the current directory.

In: the path of a page; files and programs as the page's reader would have them.
Out: exit status 0 when every block did what the page says, else a message with the
page's line. Nothing that a block started is left behind.
Does not know: which pages there are, and where telemetry is sent.

What a block is, its language says:

``python``
    A part of one program: the blocks of a page share one namespace.
``console``
    A transcript of one shell: lines after ``$`` (and ``>``, where a command goes on) are
    run, the lines below a command are what it prints, with ``...`` for what varies. A
    command must succeed, unless ``echo $?`` follows.
``sh``
    Commands only, for the same shell.
``json``, ``toml``
    Must parse.
``text``
    Anything.

A comment in the line above a block changes that: ``<!-- file: NAME -->`` writes the block
into a file, for later blocks to use, and ``<!-- not run: REASON -->`` leaves it alone.
"""

import doctest
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt

COMMENT = re.compile(r"<!--\s*(?P<word>file|not run):\s*(?P<value>.*?)\s*-->\s*\Z")
LANGUAGES = {"python", "console", "sh", "json", "toml", "text"}
SAYS = doctest.OutputChecker()
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DIRECTIVE = re.compile(r"\{[\w:-]+\}")
GRACE = 20.0
"""Seconds that the background processes of a page have to end when they are asked to."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: what stands in it, and where (``line`` counts from 1)."""

    language: str
    text: str
    line: int
    file: str | None = None
    not_run: str | None = None


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a transcript, and what it is said to print (nothing: anything)."""

    text: str
    output: str
    line: int


class PageError(Exception):
    """A page says what is not so."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def blocks_of(page: str) -> Iterator[Block]:
    """The fenced blocks of a page; directives (``{toctree}``) are Sphinx's to check."""
    comment: tuple[str, str] | None = None
    for token in MarkdownIt().parse(page):
        if token.type == "fence" and token.map and not DIRECTIVE.match(token.info):
            word, value = comment or (None, None)
            yield Block(
                language=token.info.strip(),
                text=token.content,
                line=token.map[0] + 1,
                file=value if word == "file" else None,
                not_run=value if word == "not run" else None,
            )
        found = COMMENT.match(token.content) if token.type == "html_block" else None
        comment = (found["word"], found["value"]) if found else None


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a ``console`` block with their output, or a ``sh`` block as one."""
    if block.language == "sh":
        yield Command(text=block.text, output="", line=block.line)
        return
    command: list[str] = []
    output: list[str] = []
    start = block.line
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            if command:
                yield Command(text="\n".join(command), output="\n".join(output), line=start)
            command, output, start = [line[2:]], [], number
        elif not command:
            raise PageError(number, "a transcript starts with a command, in a line after '$ '")
        elif line.startswith("> ") and not output:
            command.append(line[2:])
        else:
            output.append(line)
    if command:
        yield Command(text="\n".join(command), output="\n".join(output), line=start)


class Shell:
    """One bash for a page, so that variables and background processes last from block to block.

    A command's input is empty; its end and its status are told by what bash prints after it.
    """

    _AFTER = re.compile(rb"\0(\d+)\0")

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Run one command, and give its status and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = f"eval {shlex.quote(command)} </dev/null; _s=$?; printf '\\0%d\\0' $_s; (exit $_s)\n"
        self._process.stdin.write(line.encode())
        printed = b""
        while not (after := self._AFTER.search(printed)):
            piece = self._process.stdout.read(65536)
            if not piece:
                return self._process.wait(), printed.decode()
            printed += piece
        # What a background process prints in between belongs to the next command.
        return int(after[1]), printed[: after.start()].decode()

    def close(self) -> None:
        """End the shell and what still runs in its background."""
        for sent in signal.SIGTERM, signal.SIGKILL:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=GRACE)
                break


class Page:
    """A page while it runs: its one Python program and its one shell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._program = ModuleType("__main__")

    def run(self) -> None:
        """Run every block, after a look at all of them."""
        blocks = list(blocks_of(self._path.read_text()))
        for block in blocks:
            if block.language not in LANGUAGES:
                raise PageError(block.line, f"unknown language {block.language!r}")
        # Dataclasses, msgspec and pickle look a class's module up by its name.
        sys.modules["__main__"] = self._program
        with closing(Shell()) as shell:
            for block in blocks:
                if block.file is not None:
                    Path(block.file).write_text(block.text)
                elif block.not_run is None:
                    self._run_block(block, shell)

    def _run_block(self, block: Block, shell: Shell) -> None:
        try:
            match block.language:
                case "python":
                    self._run_python(block)
                case "console" | "sh":
                    run_commands(list(commands_of(block)), shell)
                case "json":
                    json.loads(block.text)
                case "toml":
                    tomllib.loads(block.text)
                case _:
                    pass
        except ValueError as error:
            raise PageError(block.line, str(error)) from error

    def _run_python(self, block: Block) -> None:
        """Tracebacks name the page and its lines: the block is compiled at its place."""
        code = compile("\n" * block.line + block.text, self._path, "exec", dont_inherit=True)
        try:
            exec(code, vars(self._program))  # noqa: S102 - the page's own code is what is tried
        except SystemExit as leaving:
            if leaving.code:
                raise PageError(block.line, f"exit status {leaving.code}") from leaving


def run_commands(commands: list[Command], shell: Shell) -> None:
    """Run commands, and compare what they do with what the page says."""
    for command, following in zip_longest(commands, commands[1:]):
        status, output = shell.run(command.text)
        sys.stdout.write(f"$ {command.text}\n{output}")
        if status and not (following and following.text == "echo $?"):
            raise PageError(command.line, f"exit status {status}")
        if command.output and not SAYS.check_output(command.output, output, LOOSELY):
            raise PageError(command.line, f"prints otherwise than\n{command.output}")


def main() -> int:
    """The program: one argument, the page. Asked to end, it cleans up first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    path = Path(sys.argv[1])
    try:
        Page(path).run()
    except PageError as error:
        sys.stdout.write(f"{path}:{error.line}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
