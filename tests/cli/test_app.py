"""The command line as a whole: its help, its version, and how it ends."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
import trio
from click.testing import CliRunner

import trimaran
from patience import PATIENCE
from trimaran.cli import main
from trimaran.cli._app import app, run
from trimaran.cli._errors import Failure, alone, line_of

if TYPE_CHECKING:
    from cli.conftest import Command

COMMANDS = ["demo", "pipe", "serve", "show", "status"]


async def test_says_its_version(command: Command) -> None:
    """And nothing else."""
    ended = await command("--version")

    assert (ended.status, ended.out, ended.err) == (0, f"trimaran {trimaran.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_says_what_there_is(arguments: list[str]) -> None:
    """With examples; also when it is called with nothing."""
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0
    assert "trimaran demo" in result.stdout
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_is_used(name: str) -> None:
    """With examples, one a line, and exit statuses, within 80 characters."""
    result = CliRunner().invoke(app, [name, "--help"])

    assert result.exit_code == 0
    assert f"\n  Examples:\n    trimaran {name}" in result.stdout
    assert "xit status" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no such command 'fly'; see: trimaran --help"),
        (["serve"], "say where events go, with --database FILE, --store URL or "),
        (["pipe", "a", "b"], "got unexpected extra argument (b); see: trimaran pipe --help"),
        (["pipe", "--fly"], "no such option"),
        (["pipe", "--timeout", "0"], "invalid value for '--timeout': 0.0 is not in the range x>0"),
        (
            ["pipe", "--url", "x"],
            "invalid value for '--url': it does not start with http:// or https://",
        ),
        (["pipe", "--session", ""], "invalid value for '--session': it is empty"),
        (["status", "--app", "-"], "invalid value for '--app': it must have a letter or a digit"),
        (["demo", "--sessions", "0"], "invalid value for '--sessions': 0 is not in the range"),
    ],
)
def test_a_wrong_use_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what was wrong, and where to read on; the exit status is 2."""
    status = run(arguments)

    told = capsys.readouterr()
    assert status == 2
    assert told.out == ""
    assert told.err.startswith(f"trimaran: {message}")
    assert told.err.count("\n") == 1


def test_it_is_installed_as_a_command() -> None:
    """Under the project's own name."""
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="trimaran")

    assert entry.load() is main


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    """And has no traceback."""
    program = f"import sys; sys.modules[{missing!r}] = None; from trimaran.cli import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        "trimaran: the command needs the extra 'cli'; run: pip install 'trimaran[all]'\n"
    )


def test_a_module_of_its_own_that_is_missing_is_a_bug() -> None:
    """And is not taken for an extra."""
    program = (
        "import sys; sys.modules['trimaran.cli.pipe'] = None; "
        "from trimaran.cli import main; sys.exit(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert ended.returncode == 1
    assert "ModuleNotFoundError" in ended.stderr


@pytest.mark.parametrize(
    ("missing", "where"),
    [
        ("starlette", ["--database", "x"]),
        ("hypercorn", ["--database", "x"]),
        ("starlette", ["--forward", "otlp+http://h", "--spool", "x"]),
    ],
)
def test_without_the_receivers_extra_it_says_what_to_install(
    missing: str, where: list[str]
) -> None:
    """For the commands that need one; the others go on."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None; from trimaran.cli._app import run; "
        f"sys.exit(run(['serve', *{where!r}]) + run(['--version']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert ended.returncode == 1
    assert ended.stdout == f"trimaran {trimaran.__version__}\n"
    assert ended.stderr.startswith("trimaran: a receiver needs the extra 'receiver' (")
    assert ended.stderr.endswith("is not there); run: pip install 'trimaran[all]'\n")


@pytest.mark.parametrize("where", ["import", "run"])
def test_ctrl_c_has_no_traceback(where: str) -> None:
    """While the command is imported, and before it does anything."""
    module = "trimaran.cli._app" if where == "import" else "trimaran.cli.status"
    program = (
        "import sys, types\n"
        "class Interrupted(types.ModuleType):\n"
        "    def __getattr__(self, name): raise KeyboardInterrupt\n"
        if where == "import"
        else "import sys\nimport trimaran.cli.status as s\n"
        "def raise_it(*a): raise KeyboardInterrupt\n"
        "s.trio.run = raise_it\n"
    )
    if where == "import":
        program += f"sys.modules[{module!r}] = Interrupted('x')\n"
    program += "sys.argv = ['trimaran', 'status']\nfrom trimaran.cli import main\nsys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert ended.returncode == 128 + signal.SIGINT
    assert ended.stderr.strip() == ""


async def test_nobody_reads_the_output(command: Command) -> None:
    """It ends quietly, also where it is noticed at the end only."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                command.line("status"),
                stdout=theirs,
                capture_stderr=True,
                check=False,
                env=command.environ,
            )
    finally:
        os.close(theirs)

    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_bug_is_no_foreseeable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out as it is, for whoever is to mend it."""

    def stumble(**_given: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(app.commands["status"], "callback", stumble)

    with pytest.raises(ZeroDivisionError):
        run(["status"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Failure("no; do this"), ("no; do this", 1)),
        (click.ClickException("It is so."), ("it is so", 1)),
        (click.UsageError("No."), ("no; see: trimaran --help", 2)),
        (
            OSError(errno.EACCES, "Permission denied", "f"),
            ("f: permission denied; see who may read and write it", 1),
        ),
        (OSError(errno.EIO, "Input/output error"), ("input/output error", 1)),
        (OSError("odd"), ("odd", 1)),
        (OSError(), ("OSError", 1)),
        (ValueError("a bug"), None),
    ],
)
def test_what_is_said_of_an_error(error: Exception, told: tuple[str, int] | None) -> None:
    """What was wrong; what to do. Of a bug, nothing."""
    assert line_of(error) == told


def test_groups_of_one_are_no_concern_of_a_person() -> None:
    """However deep; a group of two is what it is."""
    failure = Failure("x")
    two = ExceptionGroup("", [failure, ValueError()])

    assert alone(ExceptionGroup("", [ExceptionGroup("", [failure])])) is failure
    assert alone(ExceptionGroup("", [two])) is two
