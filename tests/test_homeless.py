"""A user without a home directory, as in many a container: nothing of that reaches an agent."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import pytest
from click.testing import CliRunner

import trimaran
from trimaran._spool.file import spool_directory
from trimaran._spool.values import SpoolError
from trimaran.cli._app import app
from trimaran.cli._errors import Failure
from trimaran.testing import Capture

if TYPE_CHECKING:
    from conftest import LoopbackEndpoint


@pytest.fixture(params=["nobody knows the user", "a path is made of it all the same"])
def homeless(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current directory of such a user, by this platformdirs or one from before."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if request.param == "a path is made of it all the same":

        def made(app: str, **_named: object) -> Path:
            return Path("~/.local/state", app)

        monkeypatch.setattr(platformdirs, "user_state_path", made)
    return tmp_path


async def test_a_relay_is_done_without(homeless: Path, endpoint: LoopbackEndpoint) -> None:
    """The agent sends for itself, and it is told that it has to."""
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test",
            environ={"TEST_TELEMETRY_URL": endpoint.url},
            settings=trimaran.Settings(relay=True),
            on_problem=problems.append,
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.command("init")

    books = session.statistics()
    assert (books.delivered, books.handed_over) == (3, 0)
    assert [problem.name for problem in problems] == ["telemetry relay not available"]
    assert "absolute" in str(problems[0].facts["reason"])
    assert list(homeless.iterdir()) == []


async def test_a_spool_is_done_without(homeless: Path) -> None:
    """Batches go on from memory, and that is told."""
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test",
            environ={"TEST_TELEMETRY_URL": "https://x.test"},
            settings=trimaran.Settings(spool=True, strict=True),
            transport=Capture(),
            on_problem=problems.append,
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.command("init")

    assert session.statistics().delivered == 3
    assert telemetry.leftovers().tracked == 0
    assert [problem.name for problem in problems] == ["telemetry spool failed"]
    assert "say which directory to use" in str(problems[0].facts["error"])
    assert list(homeless.iterdir()) == []


async def test_a_relay_below_a_directory_that_is_gone_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: LoopbackEndpoint
) -> None:
    """A path that is not absolute says nothing then."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    problems: list[trimaran.Problem] = []
    async with (
        trimaran.open_telemetry(
            "test",
            environ={"TEST_TELEMETRY_URL": endpoint.url},
            settings=trimaran.Settings(relay="relay"),
            on_problem=problems.append,
        ) as telemetry,
        telemetry.session() as session,
    ):
        session.command("init")

    assert session.statistics().delivered == 3
    assert [problem.name for problem in problems] == ["telemetry relay not available"]


def test_a_directory_that_is_named_needs_no_home(homeless: Path) -> None:
    """It may also be below the current one."""
    assert spool_directory("test", trimaran.Spool(directory="there")) == Path("there")
    with pytest.raises(SpoolError, match="say which directory to use"):
        spool_directory("test", trimaran.Spool())


@pytest.mark.parametrize(
    "words",
    [("spool", "list"), ("spool", "clear"), ("relay", "status"), ("relay", "stop"), ("relay",)],
)
def test_a_person_is_told_to_name_one(homeless: Path, words: tuple[str, ...]) -> None:
    """In one line, not by a traceback."""
    ended = CliRunner().invoke(app, [*words, "--app", "test"])

    assert isinstance(ended.exception, Failure)
    assert "say which directory to use" in str(ended.exception)
    assert list(homeless.iterdir()) == []
