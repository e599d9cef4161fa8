"""What sessions said when they began, on disk: bounded, private, and there after a restart."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from trimaran.receiver import beginnings
from trimaran.receiver.beginnings import FILE_NAME, MOST_SECONDS, Beginnings


class Clock:
    """The time of day, as a test has it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_what_a_beginning_said_is_there_for_the_next_one(tmp_path: Path) -> None:
    """Of sessions that are asked for, as far as somebody noted it; the last word counts."""
    first, second = Beginnings(tmp_path, Clock()), Beginnings(tmp_path, Clock())
    first.note({"a": b"1", "b": b"2", "long" * 10_000: b"3"})
    second.note({"b": b"new"})

    assert first.of(["b", "nobody", "long" * 10_000]) == {"b": b"new", "long" * 10_000: b"3"}
    first.close()
    second.close()
    first.close()
    assert first.of(["a"]) == {"a": b"1"}
    first.close()


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who were heard of last stay."""
    monkeypatch.setattr(beginnings, "MOST_SESSIONS", 2)
    kept = Beginnings(tmp_path, Clock())
    for name in ("a", "b", "a", "c"):
        kept.note({name: b""})

    assert kept.of("abc") == {"a": b"", "c": b""}
    kept.close()


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    """With the next that comes."""
    clock = Clock()
    kept = Beginnings(tmp_path, clock)
    kept.note({"a": b""})
    clock.now += MOST_SECONDS
    kept.note({"b": b""})
    assert kept.of("ab") == {"a": b"", "b": b""}
    clock.now += 1
    kept.note({"c": b""})

    assert kept.of("abc") == {"b": b"", "c": b""}
    kept.close()


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Neither the file nor SQLite's log beside it; and no id is in either."""
    kept = Beginnings(tmp_path, Clock())
    kept.note({"the id of a session": b"x"})

    files = list(tmp_path.iterdir())
    assert FILE_NAME in [file.name for file in files]
    if os.name == "posix":
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert not [file for file in files if b"the id" in file.read_bytes()]
    kept.close()


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    """Each time, until it is one."""
    kept = Beginnings(tmp_path, Clock())
    (tmp_path / FILE_NAME).write_text("no database " * 1_000)
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError):
            kept.note({"a": b""})
    (tmp_path / FILE_NAME).unlink()

    kept.note({"a": b""})
    assert kept.of("a") == {"a": b""}
    kept.close()
