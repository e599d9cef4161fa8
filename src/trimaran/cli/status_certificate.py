"""Who a certificate is for, and who vouches for it.

In: a certificate, in DER. Out: the two names.
Does not know: whether anybody should believe it.

Python reads only certificates that it trusts, and here it is about those that it does not. Of
all that there is in one (RFC 5280, section 4.1) the two names are found by their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Names", "names_in"]

_VERSION = 0xA0
"""The tag of the one member that may be missing before the others."""

_ISSUER, _SUBJECT = 2, 4
"""Places of the names, without the version: number, algorithm, issuer, validity, subject."""

_WORDS = (b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x04\x0b")
"""What names somebody, best first: the common name, an organization, a unit of one."""


class Names(NamedTuple):
    """Of the two parties to a certificate; "" for one without a name."""

    subject: str
    issuer: str

    def __str__(self) -> str:
        """Both, as a person would call the certificate."""
        return f"of {self.subject or 'nobody'}, issued by {self.issuer or 'nobody'}"


def names_in(certificate: bytes) -> Names:
    """Who *certificate* is for, and who issued it; without names if it is none."""
    try:
        [(_, whole)] = _members(certificate)
        (_, inner), *_ = _members(whole)
        members = [content for tag, content in _members(inner) if tag != _VERSION]
        return Names(_name(members[_SUBJECT]), _name(members[_ISSUER]))
    except (IndexError, ValueError):
        return Names("", "")


def _name(content: bytes) -> str:
    """The best word of a name, which is a list of sets of pairs."""
    words: dict[bytes, str] = {}
    for _, several in _members(content):
        for _, pair in _members(several):
            (_, kind), (_, word) = _members(pair)
            words.setdefault(kind, word.decode(errors="replace"))
    return next((words[kind] for kind in _WORDS if kind in words), "")


def _members(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the content of each member.

    Raises:
        IndexError: there is no whole one.
    """
    at = 0
    while at < len(content):
        tag, length = content[at], content[at + 1]
        at += 2
        if length & 0x80:  # it is the number of bytes that the length has
            size = length & 0x7F
            length = int.from_bytes(content[at : at + size], "big")
            at += size
        if at + length > len(content):
            raise IndexError
        yield tag, content[at : at + length]
        at += length
