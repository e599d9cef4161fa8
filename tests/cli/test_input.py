"""Bytes become numbered lines of bounded length, as soon as they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trimaran.cli._input import Line, LineSplitter, open_source

LONGEST = 8


def split(chunks: list[bytes], longest: int = LONGEST) -> list[Line]:
    """The lines of an input that comes in *chunks*."""
    splitter = LineSplitter(longest)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*lines, *splitter.end()]


def whole(text: bytes) -> list[Line]:
    """What the lines of *text* should be."""
    pieces = text.split(b"\n")
    if not pieces[-1]:
        pieces.pop()
    return [
        Line(number, piece if len(piece) <= LONGEST else None)
        for number, piece in enumerate(pieces, start=1)
    ]


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\xef", b"\n")), max_size=8))
def test_lines_do_not_depend_on_the_chunks(chunks: list[bytes]) -> None:
    """Fed in pieces, whole, or byte by byte; a line that is too long is none of it kept."""
    text = b"".join(chunks)

    assert split(chunks) == split([text]) == whole(text)
    assert split([bytes([byte]) for byte in text]) == whole(text)


def test_a_line_that_never_ends_takes_no_memory() -> None:
    """What is past the bound is not kept."""
    splitter = LineSplitter(LONGEST)
    for _ in range(1_000):
        assert list(splitter.feed(b"x" * 100)) == []
        assert splitter._pieces == []

    assert list(splitter.feed(b"\nnext\n")) == [Line(1, None), Line(2, b"next")]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    """Nor of another, where it would be content."""
    mark = b"\xef\xbb\xbf"

    assert split([mark + b"a\n" + mark + b"b\n"]) == [Line(1, b"a"), Line(2, mark + b"b")]


async def test_reads_a_file(tmp_path: Path) -> None:
    """In chunks, to its end; its size is known before."""
    path = tmp_path / "file"
    content = os.urandom(200_000)
    path.write_bytes(content)
    chunks: list[bytes] = []

    async with open_source(str(path)) as source:
        assert source.size == 200_000
        assert not source.is_terminal
        while chunk := await source.read():
            chunks.append(chunk)

    assert b"".join(chunks) == content
    assert len(chunks) > 1


async def test_reads_what_a_pipe_has_at_once(tmp_path: Path) -> None:
    """Without waiting for a chunk to be full, or for the writer to end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)  # so that neither end waits for the other
    try:
        async with open_source(str(path)) as source:
            assert source.size is None
            os.write(descriptor, b"one")
            assert await source.read() == b"one"
            os.write(descriptor, b"two")
            assert await source.read() == b"two"
    finally:
        os.close(descriptor)


async def test_waiting_for_a_pipe_can_be_cancelled(tmp_path: Path) -> None:
    """For its other end to open it, and for something in it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with trio.move_on_after(0.05) as opening:
        async with open_source(str(path)):
            pytest.fail("nobody has the other end")
    writer = os.open(path, os.O_RDWR)  # lets the thread that was left behind go on
    with trio.move_on_after(0.05) as reading:
        async with open_source(str(path)) as source:
            await source.read()
    os.write(writer, b"x")
    os.close(writer)

    assert opening.cancelled_caught
    assert reading.cancelled_caught


async def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """By the operating system's own error, with the path in it."""
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        async with open_source(str(tmp_path / "nothing-here")):
            pytest.fail("there is none")


async def test_a_terminal_is_known_as_one() -> None:
    """So that a person can be told what is awaited."""
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    try:
        async with open_source(name) as source:
            assert source.is_terminal
            assert source.size is None
    finally:
        os.close(ours)
        os.close(theirs)
