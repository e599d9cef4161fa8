"""Mask what must not leave the machine: secrets, e-mail addresses, the home directory.

In: events, before anything of them is batched, spooled or shown. Out: the same event, or
one of the same class with markers in place of what was found.
Does not know: what a secret looks like, where an event goes.
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import msgspec
from msgspec.structs import astuple, force_setattr

from trimaran._events import Event, Tokens
from trimaran._pipeline.encoder import JsonValue, encoded_part, jsonable
from trimaran._pipeline.masks import NAMED_MARKER, KeyKind, key_kind, mask_text
from trimaran._pipeline.settled import are_counts

__all__ = ["Redactor", "beginning", "mask_text"]

UNSET = msgspec.UNSET

_CUT_WINDOW = 4_096
"""Characters that are looked at, at least, of a text that is to be cut."""

_LONGEST_HALF = 256
"""Characters dropped at most from the end of that window: there may be the first half of
a secret, too short to be known. A longer half has shown its shape."""

_MOST_CLEAN = 1_024
"""Texts remembered as clean: some 150 kB, for a session that makes an id for each event."""

_LONGEST_CLEAN = 128
"""Characters of a text that is remembered."""

_MOST_CLASSES = 256
"""Classes of events remembered; more only where a host makes them as it goes."""

_Event = TypeVar("_Event", bound=Event)
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class Redactor:
    """Masks the events of one session, and remembers what it found to be clean.

    Most texts of a session repeat: names of tools and models, ids. Such a text costs one
    look into a set the second time. What was masked is never remembered.

    *home* is a home directory that is masked beside those of the usual form.
    *max_error_text* is the length, in characters, that error texts are cut at.
    """

    def __init__(self, home: str | None = None, max_error_text: int = 500) -> None:
        self._home = home
        self._max_error_text = max_error_text
        self._longest_clean = min(_LONGEST_CLEAN, max_error_text)
        self._clean: set[str] = set()
        self._secret_fields: dict[type[msgspec.Struct], dict[str, KeyKind]] = {}
        self._names: dict[str, KeyKind] = {}

    def redact(self, event: _Event) -> _Event:
        """*event* itself where nothing had to change, else a masked copy of its class.

        Every text in it is masked, in every position: fields, keys, values inside other
        values; whatever stands under the name of a secret is masked whole. Values other
        than texts, numbers of 64 bits, None and :class:`Tokens` are given their JSON form
        first, in a copy. The texts of ``cut_fields`` are cut after they were masked, so that no half
        of a secret is left at the cut. The class's own ``__post_init__`` is not called.
        """
        fields = self._secret_fields.get(type(event))
        if fields is None:
            fields = self._remember_class(type(event))
        if fields:
            return self._masked_struct(event, fields, event.cut_fields)
        clean = self._clean
        values: tuple[object, ...] = astuple(event)
        for value in values:
            kind = type(value)  # compared, not hashed: a class may refuse that
            if kind is str:
                if value in clean or self._stays(cast("str", value)):
                    continue
            elif kind is int:
                if -(2**63) <= value < 2**64:  # type: ignore[operator]
                    continue
            elif (value is UNSET or kind is float or value is None or kind is bool) or (
                type(value) is Tokens and are_counts(value)
            ):
                continue
            return self._masked_struct(event, fields, event.cut_fields)
        return event

    def _stays(self, text: str) -> bool:
        """Whether there is nothing in *text* to mask or to cut."""
        return len(text) <= self._max_error_text and self._masked_text(text) is text

    def _remember_class(self, kind: type[msgspec.Struct]) -> dict[str, KeyKind]:
        """The fields of *kind* that are named like a secret, in Python or on the wire."""
        if len(self._secret_fields) >= _MOST_CLASSES:
            self._secret_fields.clear()
        names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        kinds = {name: max(key_kind(name), key_kind(on_wire)) for name, on_wire in names}
        fields: dict[str, KeyKind] = {
            n: kind for n, kind in kinds.items() if kind is not KeyKind.PLAIN
        }
        self._secret_fields[kind] = fields
        return fields

    def _masked_struct(
        self, struct: _Struct, fields: dict[str, KeyKind], cut_fields: tuple[str, ...]
    ) -> _Struct:
        """*struct* itself where nothing must change, else a copy."""
        masked = struct
        for name, value in zip(struct.__struct_fields__, astuple(struct), strict=True):
            kind = fields.get(name, KeyKind.PLAIN)
            form = self._masked_field(value, kind, cut=name in cut_fields)
            if form is not value:
                if masked is struct:
                    masked = copy.copy(struct)
                force_setattr(masked, name, form)
        return masked

    def _masked_field(self, value: object, kind: KeyKind, *, cut: bool) -> object:
        if type(value) is Tokens:
            return self._masked_struct(value, {}, ())
        if value is UNSET:
            return UNSET
        if type(value) is msgspec.Raw:
            return self._masked_json(value, kind)
        plain = type(value) is str or type(value) is float
        form = cast("JsonValue", value) if plain else jsonable(value)
        if kind is not KeyKind.PLAIN:
            return _hidden(form, kind)
        if cut and isinstance(form, str):
            return self._masked_and_cut(form)
        return self._masked(form)

    def _masked_json(self, raw: msgspec.Raw, kind: KeyKind) -> object:
        """*raw* itself where nothing in it had to change: what is encoded stays so."""
        form: JsonValue = msgspec.json.decode(raw)
        if kind is not KeyKind.PLAIN:
            return _hidden(form, kind)
        masked = self._masked(form)
        return raw if masked == form else encoded_part(masked)

    def _masked_and_cut(self, text: str) -> str:
        limit = self._max_error_text
        window = max(_CUT_WINDOW, 8 * limit)
        masked = self._masked_text(text[:window])
        if len(text) > window:
            masked = _without_last_word(masked)
        return _cut(masked, limit)

    def _masked(self, value: JsonValue) -> JsonValue:
        """*value* with every text in it masked."""
        if isinstance(value, str):
            return self._masked_text(value)
        if isinstance(value, list):
            return self._masked_list(value)
        if isinstance(value, dict):
            return self._masked_record(value)
        return value

    def _masked_list(self, values: list[JsonValue]) -> list[JsonValue]:
        """What follows the name of a secret is one: after an option, or in a pair."""
        masked: list[JsonValue] = []
        kind = KeyKind.PLAIN
        for value in values:
            masked.append(self._masked_under(kind, value))
            kind = KeyKind.PLAIN
            if isinstance(value, str) and (len(values) == 2 or value.startswith("-")):
                kind = self._kind_of(value)
        return masked

    def _masked_record(self, record: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """The name of a secret is a key, or stands beside a ``value``."""
        name = record.get("name", record.get("key"))
        value_kind = self._kind_of(name) if isinstance(name, str) else KeyKind.PLAIN
        masked: dict[str, JsonValue] = {}
        for key, value in record.items():
            kind = self._kind_of(key) if key != "value" else value_kind
            shown = self._masked_text(key)
            if shown in masked:  # two keys, both an e-mail address
                shown = f"{shown}#{len(masked)}"
            masked[shown] = self._masked_under(kind, value)
        return masked

    def _masked_under(self, kind: KeyKind, value: JsonValue) -> JsonValue:
        return self._masked(value) if kind is KeyKind.PLAIN else _hidden(value, kind)

    def _kind_of(self, name: str) -> KeyKind:
        kind = self._names.get(name)
        if kind is None:
            kind = self._names[name] = key_kind(name)
            if len(name) > _LONGEST_CLEAN or len(self._names) > _MOST_CLEAN:
                self._names.clear()
        return kind

    def _masked_text(self, text: str) -> str:
        """*text* itself where it is clean, which is remembered if it is short."""
        if text in self._clean:
            return text
        masked = mask_text(text, self._home)
        if masked != text:
            return masked
        if len(text) <= self._longest_clean:
            if len(self._clean) >= _MOST_CLEAN:
                self._clean.clear()
            self._clean.add(text)
        return text


def beginning(text: str) -> str:
    """The first 4,096 characters of *text* at most, with no half of a secret at their end."""
    return text if len(text) <= _CUT_WINDOW else _without_last_word(text[:_CUT_WINDOW])


def _hidden(value: JsonValue, kind: KeyKind) -> JsonValue:
    """What is shown of a value under the name of a secret: that there is one, or none."""
    if not value or value is True:
        return value
    if kind is KeyKind.COUNTED and isinstance(value, (int, float)):
        return value
    return NAMED_MARKER


def _without_last_word(text: str) -> str:
    """*text* without the word, or the last part of the word, that it was cut in."""
    end = text[-_LONGEST_HALF:]
    words = end.rsplit(maxsplit=1)
    if not words or end[-1].isspace():
        return text
    return text[: -len(words[-1])]


def _cut(text: str, limit: int) -> str:
    """The first *limit* characters at most, with no part of a marker at the end."""
    if len(text) <= limit:
        return text
    start = text.rfind("[masked:", 0, limit + len("[masked:") - 1)
    inside = start >= 0 and text.find("]", start) >= limit
    return text[: start if inside else limit]
