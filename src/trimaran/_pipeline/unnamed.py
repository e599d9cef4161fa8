"""Secrets that no name stands before, in command lines and in prose.

In: a text. Out: the same with markers in place of them.
Does not know: names that secrets stand under, shapes that give them away.

Each pattern begins with what must be there, and looks no further than a bounded number of
characters from where it began.
"""

from __future__ import annotations

import re
from functools import partial

__all__ = ["mask_commands", "mask_prose"]

_ARGUMENT = r"""(?: (?P<quote>["']) [^"'\n]{1,256} | [^\s"'|;&][^\s"']{0,255} )"""
"""Of a command line: what is in quotes, which may hold spaces, or a word."""

_CURL = r"""(?<![\w\-]) (?: -(?-i:[a-zA-Z]{0,8}?[uU]) | --(?:proxy-)?user ) (?:\s{1,4}|=)?+"""
_USER = r"""[^\s:"'@/]{1,64} : (?!//)"""
_MIXED = r"""(?=[^\s"'`]{0,64}\d) (?=[^\s"'`]{0,64}[A-Za-z]) [^\s"'`:,;()]{6,256}"""
_ODD = r"""(?=[^\s"'`]{0,255}[\d@\#$%^&*_+=~]) [^\s"'`]{3,256}"""


def _pattern(before: str, after: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<before>{before}) {after}", re.VERBOSE | re.IGNORECASE)


_COMMANDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # curl -u name:password https://...
    *((tool, _pattern(rf"{_CURL} {_USER}", r"[^\s\"']{1,256}")) for tool in ("curl", "wget")),
    *((tool, _pattern(rf"{_CURL} [\"'] {_USER}", r"[^\"'\n]{1,256}")) for tool in ("curl", "wget")),
    # mysql -u root -ppassword, sshpass -p password, docker login -p password; -P is a port
    *(
        (tool, _pattern(rf"{tool}\w{{0,8}} [^\n|;&]{{0,256}}? \s(?-i:-p) [ =]{{0,4}}+", _ARGUMENT))
        for tool in ("mysql", "mariadb", "sshpass", "login")
    ),
    # machine example.com login name password word, of a file .netrc
    ("login", _pattern(r"login \s{1,4} \S{1,64} \s{1,4} password \s{1,4}", r"\S{1,256}")),
    (
        "identified by",
        _pattern(r"identified[ ]by \s{1,4} (?:password\s{1,4})?+ (?=[\"'])", _ARGUMENT),
    ),
    (
        "sharedaccesssignature",
        _pattern(r"SharedAccessSignature \s{1,4} sig=", r"[^\s&\"']{1,256}"),
    ),
)
"""Each with what is in every text that it matches, in lower case."""

_PROSE = _pattern(
    r"""
    (?: pass(?:word|wd|phrase|code) | token | secret | api[_\-]?key | key (?=\s{1,4}is\s) )
    \s{1,4} (?P<is> is \s{1,4} ["'`]?+ )?+
    """,
    # Part letters, part digits is no plain word, "the token abc123 is expired"; behind "is" nor
    # is what has another sign in it: "password is required" says no secret.
    rf"(?(is) {_ODD} | {_MIXED} )",
)


def mask_commands(text: str, lowered: str, marker: str) -> str:
    """*text* with *marker* in place of what command lines say without a name.

    Args:
        text: the text.
        lowered: the same in lower case.
        marker: what stands there instead.
    """
    for hint, pattern in _COMMANDS:
        if hint in lowered:
            text = pattern.sub(partial(_masked, marker), text)
    return text


def mask_prose(text: str, marker: str) -> str:
    """*text* with *marker* in place of what stands behind the name of a secret as a word."""
    return _PROSE.sub(partial(_masked, marker), text)


def _masked(marker: str, found: re.Match[str]) -> str:
    quote = found.groupdict().get("quote") or ""
    return f"{found['before']}{quote}{marker}"
