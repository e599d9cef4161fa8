"""What makes a transport of OTLP again in another process: its settings, but for its headers.

In: settings. Out: a blueprint, and back. Pure, but that it makes paths absolute.
Does not know: who makes it again, where its headers come from.

Functions cannot be sent: what needs one of the host's own has no blueprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trimaran._transport import Blueprint
from trimaran.otlp.conventions import (
    LANGFUSE,
    MLFLOW,
    OPENINFERENCE,
    PLAIN,
    Dialect,
    Kind,
    Shape,
    Value,
)
from trimaran.otlp.environment import Compression, Encoding, OtlpSettings, Signal

__all__ = ["KIND", "VERSION", "blueprint_of", "settings_from"]

KIND = "otlp"
VERSION = 2
"""Of what the fields below mean; counted up with any change of that."""

_DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (PLAIN, OPENINFERENCE, MLFLOW, LANGFUSE)
}


class _Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A :class:`Shape` without functions."""

    name: str
    subject: str
    kind: Kind
    always: Mapping[str, Value]
    fields: Mapping[str, str]
    own: tuple[str, ...] | None


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of :class:`OtlpSettings` is no secret, by the same names."""

    url: str
    signal: Signal
    encoding: Encoding
    compression: Compression
    timeout: float
    certificate: str | None
    client_certificate: str | None
    client_key: str | None
    service_name: str
    resource: Mapping[str, str]
    tags: tuple[str, ...]
    dialect: str
    shapes: Mapping[str, _Shape]
    open_root: bool | None


# Equal settings have one text, in whatever order they were given.
_encode = msgspec.json.Encoder(order="sorted").encode
_settings = msgspec.json.Decoder(_Settings)


def blueprint_of(settings: OtlpSettings) -> Blueprint | None:
    """What makes a transport with *settings* again; None where that needs a dialect or a
    function of the host's own, or nothing is sent.
    """
    is_known = _DIALECTS.get(settings.dialect.name) == settings.dialect
    if not is_known or any(shape.computed for shape in settings.shapes.values()):
        return None
    if not settings.url:
        return None
    plain = _Settings(
        url=settings.url,
        signal=settings.signal,
        encoding=settings.encoding,
        compression=settings.compression,
        timeout=settings.timeout,
        certificate=_absolute(settings.certificate),
        client_certificate=_absolute(settings.client_certificate),
        client_key=_absolute(settings.client_key),
        service_name=settings.service_name,
        resource=dict(settings.resource),
        tags=tuple(settings.tags),
        dialect=settings.dialect.name,
        shapes={
            kind: _Shape(
                name=shape.name,
                subject=shape.subject,
                kind=shape.kind,
                always=dict(shape.always),
                fields=dict(shape.fields),
                own=shape.own,
            )
            for kind, shape in settings.shapes.items()
        },
        open_root=settings.open_root,
    )
    try:
        text = _encode(plain).decode()
        _settings.decode(text)
    except (ValueError, msgspec.DecodeError):
        return None  # text that UTF-8 cannot say, or a number that JSON has not
    return Blueprint(kind=KIND, version=VERSION, url=settings.url, settings=text)


def settings_from(blueprint: Blueprint) -> OtlpSettings:
    """The settings that *blueprint* was made of, without headers.

    Raises:
        ValueError: they cannot be used.
    """
    if (blueprint.kind, blueprint.version) != (KIND, VERSION):
        raise ValueError(f"no transport of the kind {blueprint.kind}/{blueprint.version} is known")
    try:
        plain = _settings.decode(blueprint.settings)
    except msgspec.DecodeError:
        raise ValueError("the settings of its transport are not understood") from None
    if plain.dialect not in _DIALECTS or plain.url != blueprint.url:
        raise ValueError("the settings of its transport are not understood")
    return OtlpSettings(
        url=plain.url,
        signal=plain.signal,
        encoding=plain.encoding,
        compression=plain.compression,
        timeout=plain.timeout,
        certificate=plain.certificate,
        client_certificate=plain.client_certificate,
        client_key=plain.client_key,
        service_name=plain.service_name,
        resource=plain.resource,
        tags=plain.tags,
        dialect=_DIALECTS[plain.dialect],
        shapes={
            kind: Shape(
                name=shape.name,
                subject=shape.subject,
                kind=shape.kind,
                always=shape.always,
                fields=shape.fields,
                own=shape.own,
            )
            for kind, shape in plain.shapes.items()
        },
        open_root=plain.open_root,
    )


def _absolute(path: str | None) -> str | None:
    """*path* as another process finds it, which is in a directory of its own."""
    return None if path is None else str(Path(path).absolute())
