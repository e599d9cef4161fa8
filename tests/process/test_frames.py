"""Pure: whatever the cuts, the frames are the same."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran._process.frames import (
    WITHDRAWN,
    Frame,
    FrameDecoder,
    FrameError,
    FrameKind,
    encode_frame,
)

MOST = 300
EVERY_KIND = dict.fromkeys(FrameKind, MOST)


def decoded(decoder: FrameDecoder, pieces: list[bytes]) -> Iterator[Frame]:
    """The frames, each asked for as soon as it may be there."""
    for piece in pieces:
        decoder.feed(piece)
        while (frame := decoder.next()) is not None:
            yield frame


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """*data* in pieces, some of them empty."""
    places = sorted(place % (len(data) + 1) for place in at)
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


contents = st.binary(max_size=MOST)
others = [kind for kind in FrameKind if kind is not FrameKind.DATA]
frames = st.builds(Frame, st.just(FrameKind.DATA), contents, is_awaited=st.booleans()) | st.builds(
    Frame, st.sampled_from(others), contents, is_awaited=st.just(value=False)
)


@given(st.lists(st.tuples(frames, st.booleans())), st.lists(st.integers(min_value=0)))
def test_any_cut_gives_the_same_frames(sent: list[tuple[Frame, bool]], cuts: list[int]) -> None:
    """Those that were withdrawn are left out; the others are whole, and in order."""
    stream = b""
    expected: list[Frame] = []
    for frame, is_withdrawn in sent:
        encoded = encode_frame(frame)
        if is_withdrawn and frame.kind is FrameKind.DATA:
            stream += encoded[:-1] + WITHDRAWN
        else:
            stream += encoded
            expected.append(frame)

    assert list(decoded(FrameDecoder(EVERY_KIND), cut(stream, cuts))) == expected


@given(frames, st.integers(min_value=1))
def test_a_frame_that_misses_its_end_is_none(frame: Frame, missing: int) -> None:
    """Not even the last byte may be missing."""
    encoded = encode_frame(frame)
    decoder = FrameDecoder(EVERY_KIND)

    decoder.feed(encoded[: -(missing % len(encoded) or 1)])

    assert decoder.next() is None


@given(st.binary(), st.lists(st.integers(min_value=0)))
def test_garbage_gives_frames_or_an_error(data: bytes, cuts: list[int]) -> None:
    """Nothing else is raised; how it is cut makes no difference to what comes before."""
    seen: list[list[Frame]] = []
    for pieces in ([data], cut(data, cuts)):
        frames_seen: list[Frame] = []
        try:
            for frame in decoded(FrameDecoder(EVERY_KIND), pieces):
                frames_seen.append(frame)  # noqa: PERF402 - those before the error count
        except FrameError as error:
            assert str(error)  # noqa: PT017 - it may as well not be raised
        seen.append(frames_seen)

    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\x07\x00\x00\x00\x00", "a frame of kind 7, which is not expected here"),
        (b"\x02\x00\x00\x00\x00", "a frame of kind 2, which is not expected here"),
        (b"\x01\x00\x00\x01\x2d", "DATA of 301 bytes, where 300 are the most"),
        (b"\x03\x00\x00\x00\x01", "END of 1 bytes, where 0 are the most"),
        (b"\x01\x00\x00\x00\x01x\x07", "7 where it should say whether a value holds"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_again(sent: bytes, said: str) -> None:
    """The head is enough for that: no content is waited for, or kept."""
    decoder = FrameDecoder({FrameKind.DATA: MOST, FrameKind.END: 0})
    decoder.feed(encode_frame(Frame(FrameKind.DATA, b"before")) + sent)

    assert decoder.next() == Frame(FrameKind.DATA, b"before")
    for _ in range(2):
        with pytest.raises(FrameError) as caught:
            decoder.next()
        assert str(caught.value) == said


def test_the_longest_frame_that_is_allowed() -> None:
    """The bound itself is within bounds."""
    longest = Frame(FrameKind.DATA, b"x" * MOST)
    decoder = FrameDecoder({FrameKind.DATA: MOST})
    decoder.feed(encode_frame(longest))

    assert decoder.next() == longest
