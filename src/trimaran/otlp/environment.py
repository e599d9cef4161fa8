"""Where OTLP goes and how: settings, from code or from OpenTelemetry's own variables.

In: an environment mapping, values that code gives. Out: frozen settings, and what could not
be used.
Does not know: requests, spans. It opens and reads no file.

The variables are those of https://opentelemetry.io/docs/specs/otel/protocol/exporter/; one
for the signal (``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``) goes before the one for all
(``OTEL_EXPORTER_OTLP_ENDPOINT``), and an empty one is none. A value that cannot be used is
left out and told, as that specification wants it: an agent starts all the same. An endpoint
that cannot be used is not replaced by the default: headers are keys for one that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, cast, get_args
from urllib.parse import unquote

import msgspec

from trimaran._decision import url_problem
from trimaran.otlp.conventions import (
    OPENINFERENCE,
    Dialect,
    Shape,
    is_mapping_of_text,
    is_texts,
)

__all__ = [
    "Compression",
    "Encoding",
    "OtlpSettings",
    "Signal",
    "certificates_from",
    "signal_url",
]

Signal: TypeAlias = Literal["traces", "logs"]
Encoding: TypeAlias = Literal["protobuf", "json"]
Compression: TypeAlias = Literal["gzip", "none"]

_DEFAULT_ENDPOINT = "http://localhost:4318"

_ENCODINGS: Mapping[str, Encoding] = {"http/protobuf": "protobuf", "http/json": "json"}
_COMPRESSIONS: Mapping[str, Compression] = {"gzip": "gzip", "none": "none"}

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, section 5.6.2."""


def signal_url(endpoint: str, signal: Signal) -> str:
    """Where a signal is posted, at an endpoint for all of them."""
    path = f"/v1/{signal}"
    base = endpoint.rstrip("/")
    return base if base.endswith(path) else base + path


def certificates_from(environ: Mapping[str, str]) -> dict[str, str | None]:
    """The fields of settings that name files with certificates, as variables for spans say it;
    None where none does.
    """
    return _Variables(environ, "traces").certificates()


class OtlpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where OTLP goes and how. ``repr`` shows no header's value: they carry keys.

    Raises:
        ValueError: a value is not of its kind, the URL is none, or a header cannot be sent.
    """

    url: str = signal_url(_DEFAULT_ENDPOINT, "traces")
    """What is posted to, whole. It is "" where a variable should say so, and names none that
    could be used; nothing is sent then."""
    signal: Signal = "traces"
    """Whether events go out as spans, or as log records that name their spans."""
    headers: Mapping[str, str] = {}
    """Sent with every request."""
    encoding: Encoding = "protobuf"
    compression: Compression = "gzip"
    timeout: float = 10.0
    """Seconds that a request may take; less than ``Settings.request_timeout`` to matter."""
    certificate: str | None = None
    """A file with the certificates, in PEM, of whoever may vouch for the server; the
    operating system's trust store, if None."""
    client_certificate: str | None = None
    """A file with this side's own certificate, in PEM."""
    client_key: str | None = None
    """A file with its key, if that is not in the same one."""
    service_name: str = ""
    """The resource's ``service.name``; the app's name, if ""."""
    resource: Mapping[str, str] = {}
    """Further attributes of the resource. The name of the machine is not among them, unless
    it is put here."""
    tags: tuple[str, ...] = ()
    """What every span is marked with."""
    dialect: Dialect = OPENINFERENCE
    """Whose names stand beside OpenTelemetry's."""
    shapes: Mapping[str, Shape] = {}
    """What events of the host's own become, by their ``type``; ``"*"`` is for all that are not
    here. Of one without a shape, the span has numbers and truth values alone, and no text."""
    open_root: bool | None = None
    """Whether a session's root goes out when it starts, and again, under the same id, when it
    ends. None for where that is known to replace the first; elsewhere the first one stays, or
    both do. False makes the start a span of its own, and the root comes at the end alone."""
    problems: tuple[str, ...] = ()
    """What was wrong with variables that were left out."""

    def __post_init__(self) -> None:
        is_nowhere = self.url == "" and self.problems
        if not is_nowhere and (problem := url_problem(self.url, with_token=False)):
            raise ValueError(f"OTLP: the URL {problem}")
        for field in _FIELDS:
            _require(field, getattr(self, field))
        for name, value in self.headers.items():
            if problem := _header_problem(name, value):
                raise ValueError(f"OTLP: {problem}")

    def __repr__(self) -> str:
        return f"OtlpSettings(url={self.url!r}, signal={self.signal!r}, encoding={self.encoding!r})"

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str],
        *,
        endpoint: str | None = None,
        signal: Signal = "traces",
        **given: Any,  # noqa: ANN401 - the fields of this class
    ) -> OtlpSettings:
        """The settings of an environment; what is given goes before it.

        Args:
            environ: where the variables are looked up.
            endpoint: the URL for all signals, in the place of the variables' ones.
            signal: which of them is sent.
            given: fields of this class.

        Raises:
            ValueError: what is given cannot be used.
        """
        _require("signal", signal)
        if endpoint is not None:
            given["url"] = signal_url(str(endpoint), signal)
        read = _Variables(environ, signal)
        found = read.settings(with_url="url" not in given)
        problems: dict[str, Any] = {"problems": tuple(read.problems)}
        return cls(signal=signal, **{**found, **given, **problems})


def _one_of(choices: object) -> tuple[Callable[[object], bool], str]:
    known: tuple[str, ...] = get_args(choices)
    return known.__contains__, " or ".join(map(repr, known))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_path(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _is_timeout(value: object) -> bool:
    return type(value) in {int, float} and cast("float", value) > 0


def _are_shapes(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    pairs = cast("Mapping[object, object]", value).items()
    return all(isinstance(kind, str) and isinstance(shape, Shape) for kind, shape in pairs)


_PATH = "a path as text, or None"

_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "signal": _one_of(Signal),
    "headers": (is_mapping_of_text, "a mapping of text to text"),
    "encoding": _one_of(Encoding),
    "compression": _one_of(Compression),
    "timeout": (_is_timeout, "a number of seconds above 0"),
    "certificate": (_is_path, _PATH),
    "client_certificate": (_is_path, _PATH),
    "client_key": (_is_path, _PATH),
    "service_name": (_is_text, "text"),
    "resource": (is_mapping_of_text, "a mapping of text to text"),
    "tags": (is_texts, "a tuple of texts"),
    "dialect": (lambda value: isinstance(value, Dialect), "a Dialect, such as OPENINFERENCE"),
    "shapes": (_are_shapes, "a mapping of types of events to a Shape each"),
    "open_root": (lambda value: value is None or type(value) is bool, "True, False or None"),
}
"""What each setting has to be. None of them is quoted: there may be a key in it."""


def _require(field: str, value: object) -> None:
    holds, expected = _FIELDS[field]
    if not holds(value):
        raise ValueError(f"OTLP: {field} must be {expected}")


class _Variables:
    """The variables of one signal, while they are read."""

    def __init__(self, environ: Mapping[str, str], signal: Signal) -> None:
        self._environ = environ
        self._signal: Signal = signal
        self.problems: list[str] = []

    def settings(self, *, with_url: bool) -> dict[str, Any]:
        """The fields that variables speak of."""
        found: dict[str, Any] = {
            "url": self._url() if with_url else None,
            "headers": self._headers(),
            "encoding": self._choice("PROTOCOL", _ENCODINGS),
            "compression": self._choice("COMPRESSION", _COMPRESSIONS),
            "timeout": self._timeout(),
            **self.certificates(),
        }
        resource = self._resource()
        name = self._environ.get("OTEL_SERVICE_NAME", "").strip()
        found["service_name"] = name or resource.get("service.name")
        found["resource"] = {k: v for k, v in resource.items() if k != "service.name"}
        return {field: value for field, value in found.items() if value is not None}

    def certificates(self) -> dict[str, str | None]:
        """The fields that name files with certificates; None where no variable does."""
        fields = ("certificate", "client_certificate", "client_key")
        return {field: self._value(field.upper())[1] for field in fields}

    def _value(self, what: str) -> tuple[str, str | None]:
        """The variable that says *what*, and what it says; None where none does."""
        of_signal = f"OTEL_EXPORTER_OTLP_{self._signal.upper()}_{what}"
        for name in (of_signal, f"OTEL_EXPORTER_OTLP_{what}"):
            if value := self._environ.get(name, "").strip():
                return name, value
        return of_signal, None

    def _url(self) -> str:
        name, value = self._value("ENDPOINT")
        if value is not None and (problem := url_problem(value, with_token=False)):
            self.problems.append(f"{name} {problem}")
            return ""
        if value is None:
            return signal_url(_DEFAULT_ENDPOINT, self._signal)
        return value if self._signal.upper() in name else signal_url(value, self._signal)

    def _headers(self) -> dict[str, str]:
        name, value = self._value("HEADERS")
        found = self._pairs(name, value or "")
        for header in list(found):
            if problem := _header_problem(header, found[header]):
                self.problems.append(f"{name}: {problem}")
                del found[header]
        return found

    def _resource(self) -> dict[str, str]:
        name = "OTEL_RESOURCE_ATTRIBUTES"
        return self._pairs(name, self._environ.get(name, ""))

    def _pairs(self, name: str, value: str) -> dict[str, str]:
        """``a=b,c=d``, percent-encoded, as W3C Baggage writes it."""
        found: dict[str, str] = {}
        for pair in filter(None, map(str.strip, value.split(","))):
            key, equals, content = pair.partition("=")
            if not equals or not key.strip():
                self.problems.append(f"{name}: a part is not name=value")  # it may be a secret
                continue
            found[unquote(key.strip())] = unquote(content.strip())
        return found

    def _choice(self, what: str, choices: Mapping[str, str]) -> str | None:
        name, value = self._value(what)
        if value is None:
            return None
        if value.lower() not in choices:
            self.problems.append(f"{name}: not one of {', '.join(choices)}")
        return choices.get(value.lower())

    def _timeout(self) -> float | None:
        """Whole milliseconds there, seconds here."""
        name, value = self._value("TIMEOUT")
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and int(value[:12])):
            self.problems.append(f"{name}: not a number of milliseconds above 0")
            return None
        return int(value[:12]) / 1000


def _header_problem(name: str, value: str) -> str | None:
    """What is wrong with a header; its value is not quoted."""
    if not _HEADER_NAME.fullmatch(name):
        return "a header has no name that can be sent"
    if not value.isascii() or not value.replace("\t", " ").isprintable():
        return f"the header {name} has characters that cannot be sent"
    return None
