"""Bodies are decompressed, and never beyond the limit."""

import gzip
import tracemalloc
import zlib
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from trimaran.receiver.encoding import (
    BodyTooLarge,
    BrokenEncoding,
    UnknownEncoding,
    decompress,
)

LIMIT = 1000
PLAIN = b'{"a":"' + b"x" * 500 + b'"}'


def gzipped(data: bytes) -> bytes:
    """Without the time: the names of tests are to be the same in every process."""
    return gzip.compress(data, mtime=0)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("", PLAIN),
        ("identity", PLAIN),
        ("gzip", gzipped(PLAIN)),
        ("GZip", gzipped(PLAIN)),
        ("x-gzip", gzipped(PLAIN)),
        ("zstd", zstd(PLAIN)),
        ("gzip, zstd", zstd(gzipped(PLAIN))),
        ("zstd , gzip", gzipped(zstd(PLAIN))),
        ("identity,gzip", gzipped(PLAIN)),
        ("gzip", gzipped(PLAIN[:100]) + gzipped(PLAIN[100:])),
        ("zstd", zstd(PLAIN[:100]) + zstd(PLAIN[100:])),
    ],
)
def test_known_encodings_are_undone(encoding: str, body: bytes) -> None:
    """Gzip, zstd and identity come out as they went in, also two of them and in parts."""
    assert decompress(body, encoding, LIMIT) == PLAIN


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, br", "gzip, gzip, gzip", "g zip"])
def test_other_encodings_are_refused(encoding: str) -> None:
    """What is not known is named, beside what is."""
    with pytest.raises(UnknownEncoding) as caught:
        decompress(PLAIN, encoding, LIMIT)

    assert repr(encoding) in str(caught.value)
    assert "gzip, zstd" in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzipped(bytes(LIMIT + 1))),
        ("gzip", gzipped(bytes(LIMIT)) + gzipped(b"x")),
        ("zstd", zstd(bytes(LIMIT + 1))),
        ("zstd, gzip", gzipped(zstd(bytes(LIMIT + 1)))),
        ("", bytes(LIMIT + 1)),
    ],
)
def test_more_than_the_limit_is_too_large(encoding: str, body: bytes) -> None:
    """One byte over the limit is too much, whichever way it comes."""
    with pytest.raises(BodyTooLarge, match="larger than 1000 bytes"):
        decompress(body, encoding, LIMIT)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("", bytes(LIMIT)), ("gzip", gzipped(bytes(LIMIT))), ("zstd", zstd(bytes(LIMIT)))],
)
def test_the_limit_itself_is_not_too_large(encoding: str, body: bytes) -> None:
    """A body of exactly the limit passes."""
    assert decompress(body, encoding, LIMIT) == bytes(LIMIT)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PLAIN),
        ("gzip", gzipped(PLAIN)[:-9]),
        ("gzip", gzipped(PLAIN)[:-1] + b"?"),
        ("gzip", gzipped(PLAIN) + b"tail"),
        ("gzip", zlib.compress(PLAIN)),
        ("zstd", PLAIN),
        ("zstd", zstd(PLAIN)[:-1]),
        ("zstd", zstd(PLAIN) + b"tail"),
        ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress(PLAIN)[:-1] + b"?"),
    ],
)
def test_a_broken_encoding_is_named(encoding: str, body: bytes) -> None:
    """What is cut short, damaged or something else is refused as not whole."""
    with pytest.raises(BrokenEncoding, match=encoding):
        decompress(body, encoding, LIMIT)


def test_a_window_beyond_what_every_decoder_has_is_refused() -> None:
    """A small body cannot make the decoder set aside a great deal of memory."""
    parameters: Any = zstandard.ZstdCompressionParameters
    compressor: Any = zstandard.ZstdCompressor(
        compression_params=parameters(window_log=27)
    ).compressobj()
    body = compressor.compress(PLAIN) + compressor.flush()

    with pytest.raises(BrokenEncoding):
        decompress(body, "zstd", LIMIT)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", gzipped(bytes(1 << 25))), ("zstd", zstd(bytes(1 << 25)))],
    ids=["gzip", "zstd"],
)
def test_a_bomb_is_not_unpacked(encoding: str, body: bytes) -> None:
    """32 MiB of zeros in some kilobytes are left in there."""
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decompress(body, encoding, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
def test_a_body_has_so_many_parts_at_most(encoding: str, compress: Any) -> None:
    """Each costs as much as all that follow it, and may be of no more than a few bytes."""
    assert decompress(compress(b"x") * 64, encoding, LIMIT) == b"x" * 64
    with pytest.raises(BrokenEncoding, match="over 64 parts"):
        decompress(compress(b"") * 65, encoding, LIMIT)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
def test_a_body_cut_short_anywhere_is_broken(encoding: str, compress: Any) -> None:
    """Also one of which nothing is there, or one part is."""
    whole = compress(PLAIN) + compress(PLAIN)
    for end in set(range(len(whole))) - {len(whole) // 2}:
        with pytest.raises(BrokenEncoding):
            decompress(whole[:end], encoding, LIMIT * 2)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "zstd", "zstd, gzip"]))
def test_any_bytes_come_out_or_are_refused(body: bytes, encoding: str) -> None:
    """Nothing but the three errors is raised, and never more than the limit comes out."""
    try:
        plain = decompress(body, encoding, LIMIT)
    except (BodyTooLarge, BrokenEncoding):
        return
    assert len(plain) <= LIMIT
