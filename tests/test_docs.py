"""Every code block of the documentation does what its page says."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from otlp.systems import running_test_agent
from patience import PATIENCE
from trimaran.receiver import run_receiver

ROOT = Path(__file__).parent.parent
RUN_PAGE = ROOT / "tests" / "run_page.py"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES_ON_OTLP = {"collector.md", "command.md", "mlflow.md", "otlp.md", "phoenix.md"}
"""They send to where OpenTelemetry's own variable says."""
TIME_FOR_A_PAGE = 4 * PATIENCE
"""Seconds, of real time: a page runs real processes."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a reader who has installed the package and set nothing for or against telemetry."""
    programs = Path(sys.executable).parent
    silent = {
        name: value
        for name, value in os.environ.items()
        if name != "DO_NOT_TRACK" and "_TELEMETRY_" not in name
    }
    return (
        silent
        | {
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONWARNINGS": "error",
        }
        | more
    )


async def run_page(page: Path, directory: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a page's blocks in a process of its own."""
    home = directory / "home"
    work = directory / "work"
    home.mkdir()
    work.mkdir()
    with trio.fail_after(TIME_FOR_A_PAGE):
        return await trio.run_process(
            [sys.executable, RUN_PAGE, page],
            cwd=work,
            env=environment(home, **more),
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
async def test_page(page: Path, tmp_path: Path, nursery: trio.Nursery) -> None:
    """A page's blocks run top to bottom, against a receiver that stands where they send."""
    receiver = await nursery.start(partial(run_receiver, port=0, database=tmp_path / "store.db"))
    more = {"ALTIMATE_TELEMETRY_URL": receiver.url}
    with ExitStack() as stack:
        if page.name in PAGES_ON_OTLP:
            more["OTEL_EXPORTER_OTLP_ENDPOINT"] = stack.enter_context(running_test_agent()).url
        if page.name == "scale.md":
            more["BACKEND"] = stack.enter_context(running_test_agent()).url
        result = await run_page(page, tmp_path, **more)

    assert result.returncode == 0, result.stdout.decode()


async def outcome_of(text: str, directory: Path) -> tuple[int, str]:
    """The exit status and the output of a made-up page."""
    page = directory / "page.md"
    page.write_text(text)
    result = await run_page(page, directory)
    return result.returncode, result.stdout.decode().replace(str(directory), "")


async def test_blocks_of_a_page_share_their_state(tmp_path: Path) -> None:
    """Names, files, variables of the shell and background processes last to the page's end."""
    status, output = await outcome_of(
        """
```python
import dataclasses

@dataclasses.dataclass
class Agent:
    name: "str"
```

<!-- file: greet.py -->
```python
import sys
print("hello", sys.argv[1])
```

```sh
export WHO=you
sleep 1000 &
```

```console
$ python greet.py \\
>     $WHO
hello you
$ cat
$ jobs; false
...Running...sleep...
$ echo $?
1
```

```python
print(Agent("build"))
raise SystemExit
```

```json
{"a": 1}
```

```toml
a = 1
```

```text
{
```

```{toctree}
```
""",
        tmp_path,
    )

    assert status == 0, output
    assert "hello you" in output
    assert "Agent(name='build')" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n```pyhton\n```\n", "/page.md:2: unknown language 'pyhton'"),
        ("```\nplain\n```\n", "/page.md:1: unknown language ''"),
        ("```console\n$ true\n$ false\n```\n", "/page.md:3: exit status 1"),
        ("```console\n$ exit 3\n```\n", "/page.md:2: exit status 3"),
        ("```console\n$ echo a\nb\n```\n", "/page.md:2: prints otherwise than\nb"),
        ("```console\necho a\n```\n", "/page.md:2: a transcript starts with a command"),
        ("```sh\nfalse\ntrue\nfalse\n```\n", "/page.md:1: exit status 1"),
        ("```json\n{\n```\n", "/page.md:1: Expecting property name"),
        ("```toml\n=\n```\n", "/page.md:1: Invalid statement"),
        ("```python\nraise SystemExit(4)\n```\n", "/page.md:1: exit status 4"),
        ("```python\npass\n1 / 0\n```\n", '/page.md", line 3, in <module>'),
    ],
)
async def test_a_page_that_says_what_is_not_so_fails(
    text: str, message: str, tmp_path: Path
) -> None:
    """It says which line is wrong, and why."""
    status, output = await outcome_of(text, tmp_path)

    assert (status, message in output) == (1, True), output


async def test_a_page_that_is_cut_off_leaves_no_process_behind(tmp_path: Path) -> None:
    """Its program is told to end, and ends what the page had started."""
    status, output = await outcome_of(
        "```sh\nmkfifo held\nsleep 1000 <>held &\nkill $PPID\nsleep 1000\n```\n", tmp_path
    )

    assert status == 1, output
    held = os.open(tmp_path / "work" / "held", os.O_RDONLY | os.O_NONBLOCK)
    try:
        # A pipe that nobody holds open for writing is at its end; else reading would block.
        assert os.read(held, 1) == b""
    finally:
        os.close(held)


async def test_a_block_that_is_not_run(tmp_path: Path) -> None:
    """A comment keeps a block from running, and from nothing else: the next one runs."""
    status, output = await outcome_of(
        "<!-- not run: it fails -->\n```sh\nfalse\n```\n\n```sh\necho next\n```\n", tmp_path
    )

    assert (status, "next" in output) == (0, True)


def test_only_the_installing_commands_are_not_run() -> None:
    """What the readme installs with is too slow to run here; all else runs."""
    left_out = [
        (page.name, command)
        for page in PAGES
        for command in re.findall(r"<!-- not run: .*\n```\w+\n(.*\n)*?```", page.read_text())
    ]

    assert len(left_out) <= 2
    assert all(name == "README.md" and "pip install" in command for name, command in left_out)


def test_the_readme_says_how_ci_runs_the_tests() -> None:
    """The command in the readme is the one that CI runs, to the letter."""
    *_, command = (ROOT / ".ci" / "run").read_text().splitlines()

    assert "tox" in command
    assert command in (ROOT / "README.md").read_text()
