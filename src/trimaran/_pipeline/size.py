"""How much memory a value takes, roughly, when it has no JSON form to measure.

In: any Python value. Out: bytes, within a factor of a few.
Does not know: events. It calls no code of the values it looks at.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import msgspec

__all__ = ["TOO_MANY_VALUES", "rough_size"]

_UNKNOWN = 256
"""Bytes assumed for a value of no known kind."""

_MOST_VALUES = 10_000
"""Values looked at, those of a dict counted by its keys; a larger structure is larger than
any event may be."""

TOO_MANY_VALUES = 1 << 30
"""The size, in bytes, of what has more values than are looked at."""

_TEXT: frozenset[type] = frozenset({str, bytes, bytearray})
_SCALARS: frozenset[type] = frozenset({float, bool, type(None), msgspec.UnsetType})
_CONTAINERS: frozenset[type] = frozenset({dict, list, tuple, set, frozenset})


def rough_size(event: msgspec.Struct) -> int:
    """Bytes of an event's content, counted shallowly enough to stay cheap.

    A structure of more than 10,000 values counts as :data:`TOO_MANY_VALUES`.
    """
    total = 0
    looked_at: set[int] = set()
    waiting: list[object] = list(msgspec.structs.astuple(event))
    values = 0
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind in _TEXT:
            total += len(cast("str", value))
        elif kind is int:
            total += cast("int", value).bit_length() // 3  # decimal digits, a few too many
        elif kind in _SCALARS:
            total += 8
        elif kind not in _CONTAINERS:
            total += _UNKNOWN
        elif id(value) not in looked_at:
            looked_at.add(id(value))
            parts = cast("Collection[object]", value)
            total += 2 * len(parts)
            values += len(parts)
            if values > _MOST_VALUES:
                return TOO_MANY_VALUES
            waiting.extend(parts)
            if kind is dict:
                waiting.extend(cast("dict[object, object]", value).values())
    return total
