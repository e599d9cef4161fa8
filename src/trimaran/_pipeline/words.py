"""What an endpoint says of a refusal, in its own words.

In: the body of an answer. Out: one line of text, masked and cut; "" where there are no words.
Does not know: what the answer means, who reads the line.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from trimaran._pipeline.masks import mask_text

__all__ = ["words_of"]

_MOST = 200
"""Characters; who needs more looks into the endpoint's own log."""

_NAMES = ("error", "message", "detail", "title", "reason")
"""Where servers put their words, those that are most to the point first."""


def words_of(body: bytes) -> str:
    """The words in *body*: those of the usual members of a JSON object, or plain text."""
    if body.lstrip()[:1] == b"<":
        return ""  # a page
    try:
        said = _from_json(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            said = body.decode()
        except UnicodeDecodeError:
            return ""
    return mask_text(" ".join(said.split()))[:_MOST]


def _from_json(said: object) -> str:
    if isinstance(said, str):
        return said
    if not isinstance(said, dict):
        return ""
    members = cast("dict[str, Any]", said)
    refused = members.get("rejected")
    if isinstance(refused, list) and refused:
        return _first(cast("list[object]", refused))
    words = next((words for name in _NAMES if (words := _from_json(members.get(name)))), "")
    place = members.get("at")
    return f"{words} (at {place})" if words and isinstance(place, str) else words


def _first(refused: list[object]) -> str:
    """The first reason of several, and which event it is about."""
    words = _from_json(refused[0])
    if words and isinstance(refused[0], dict):
        index = cast("dict[str, Any]", refused[0]).get("index")
        return f"event {index}: {words}" if isinstance(index, int) else words
    return words
