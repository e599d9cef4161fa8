"""What holds of a body, whatever bytes it is made of.

In: bytes, as they came, and the ``Content-Encoding`` that they came with.
Out: the batch that is in them, or why there is none; everything that would be done with
it has been done once.

``python tests/receiver/bodies.py`` has atheris (``pip install atheris``) look for bytes
of which it does not hold, guided by the lines they reach, until it is stopped. What may
follow is libFuzzer's, such as ``-max_total_time=60``.
"""

import gzip
import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing

import msgspec
import zstandard

from trimaran.receiver.encoding import BodyTooLarge, BrokenEncoding, UnknownEncoding, decompress
from trimaran.receiver.ingest import BadBody, Batch, TooManyEvents, parse
from trimaran.receiver.rows import row_of
from trimaran.receiver.summary import Summary, add

LIMIT = 100_000
"""Bytes of a body, compressed or not."""

REFUSALS = (BadBody, BodyTooLarge, BrokenEncoding, TooManyEvents, UnknownEncoding)

ENCODINGS = ("", "gzip", "zstd", "gzip, zstd")


def compress(plain: bytes, encoding: str) -> bytes:
    """*plain* in one of the ENCODINGS."""
    if "gzip" in encoding:
        plain = gzip.compress(plain, 1)
    return zstandard.ZstdCompressor().compress(plain) if "zstd" in encoding else plain


def taken(body: bytes, encoding: str) -> Batch | Exception:
    """What a receiver makes of *body*: a batch of which all holds, or a refusal."""
    try:
        plain = decompress(body, encoding, LIMIT)
        assert len(plain) <= LIMIT
        batch = parse(plain)
    except REFUSALS as refusal:
        return refusal
    check(batch)
    return batch


def check(batch: Batch) -> None:
    """Store, summarize and show *batch* as far as that can be done without a file."""
    text = (b"[" + b",".join(event.raw for event in batch.events) + b"]").decode()
    # Numbers of any length are JSON; Python's own reader gives up after 4,300 digits.
    read = json.loads(text, parse_int=float)
    assert [event["session_id"] for event in read] == [batch.session_id] * len(batch.events)
    assert msgspec.json.decode(text, type=list[msgspec.Raw]) == [
        msgspec.Raw(event.raw) for event in batch.events
    ]
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT json_valid(?)", (text,)).fetchone() == (1,)
    for event in batch.events:
        assert row_of(event.raw, batch.session_id).type == event.type
    summary = add(Summary(), batch, received=0)
    assert summary.event_count == len(batch.events)
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary
    indexes = [rejection.index for rejection in batch.rejected]
    assert indexes == sorted(set(indexes))
    assert all(rejection.reason for rejection in batch.rejected)


def try_bytes(data: bytes) -> None:
    """*data* as a body; the first byte says how it is encoded, by itself or here."""
    kind, body = data[:1], data[1:]
    encoding = ENCODINGS[ord(kind or b"\0") % len(ENCODINGS)]
    taken(body, encoding)
    if encoding:
        taken(compress(body, encoding), encoding)


def main(arguments: Sequence[str]) -> None:
    """Have atheris try bytes until something does not hold."""
    import atheris  # type: ignore[import-untyped]

    atheris.instrument_all()
    atheris.Setup([*arguments], try_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
