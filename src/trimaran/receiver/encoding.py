"""Undo a ``Content-Encoding``, never beyond a bound.

In: the bytes of a body as they came, the header, the greatest size allowed.
Out: the bytes of the body itself, or the error that says why not.
Does not know: HTTP answers, JSON.
"""

import zlib
from collections.abc import Callable, Mapping

import zstandard

__all__ = ["ACCEPTED", "BodyTooLarge", "BrokenEncoding", "UnknownEncoding", "decompress"]

_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say: with gzip's header and checksum
_ZSTD_WINDOW = 8 * 1024 * 1024  # bytes; what RFC 8878, 3.1.1.1.2 asks of every decoder
_MAX_CODINGS = 2  # more than one is rare already, and each costs a pass
_MAX_PARTS = 64  # both codings may be cut into parts; each costs a copy of all that follow


class BodyTooLarge(Exception):
    """The body is, or would become, larger than *limit* bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is larger than {limit} bytes")


class UnknownEncoding(Exception):
    """The body is encoded in a way that is not known here."""

    def __init__(self, encoding: str) -> None:
        super().__init__(f"Content-Encoding {encoding!r} is not known, take {ACCEPTED}")


class BrokenEncoding(Exception):
    """The body is not what its ``Content-Encoding`` says."""

    def __init__(self, coding: str) -> None:
        super().__init__(f"The body is not whole, valid {coding}, or has over {_MAX_PARTS} parts")


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo *encoding*, the value of a ``Content-Encoding`` header, which may be empty.

    Not more than *limit* + 1 bytes are ever produced, however much *body* would make.

    Raises:
        BodyTooLarge: More than *limit* bytes would come out.
        UnknownEncoding: Other than gzip, zstd, identity, or more than two of them.
        BrokenEncoding: Cut short, or not of that encoding at all.
    """
    codings = [name for part in encoding.split(",") if (name := part.strip().lower())]
    if len(codings) > _MAX_CODINGS or not all(coding in _CODINGS for coding in codings):
        raise UnknownEncoding(encoding)
    for coding in reversed(codings):  # the last one named was applied last
        body = _CODINGS[coding](body, limit)
    if len(body) > limit:
        raise BodyTooLarge(limit)
    return body


def _identity(body: bytes, _limit: int) -> bytes:
    return body


def _gunzip(body: bytes, limit: int) -> bytes:
    plain = b""
    try:
        for _ in range(_MAX_PARTS):  # gzip files may follow each other and are then one
            member = zlib.decompressobj(_GZIP)
            plain += member.decompress(body, limit + 1 - len(plain))
            if len(plain) > limit:
                raise BodyTooLarge(limit)
            if not member.eof:
                raise BrokenEncoding("gzip")
            body = member.unused_data
            if not body:
                return plain
    except zlib.error as error:
        raise BrokenEncoding("gzip") from error
    raise BrokenEncoding("gzip")


def _unzstd(body: bytes, limit: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(body, read_across_frames=True) as reader:
            plain = reader.read(limit + 1)
        if len(plain) > limit:
            raise BodyTooLarge(limit)
        # The reader takes a body that is cut short for one that ends there. What is
        # known to be small can be decompressed by a way that knows the difference.
        for _ in range(_MAX_PARTS):
            frame = decompressor.decompressobj()
            frame.decompress(body)
            if not frame.eof:
                raise BrokenEncoding("zstd")
            body = frame.unused_data
            if not body:
                return plain
    except zstandard.ZstdError as error:
        raise BrokenEncoding("zstd") from error
    raise BrokenEncoding("zstd")


_CODINGS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,  # the same, says RFC 9110, 8.4.1.3
    "zstd": _unzstd,
    "identity": _identity,
}

ACCEPTED = "gzip, zstd"
"""The value of an ``Accept-Encoding`` header that says what is taken."""
