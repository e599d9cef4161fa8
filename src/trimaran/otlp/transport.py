"""The transport: a batch of the origin's becomes one OTLP request.

In: a request with a batch. Out: the answer, in the words that the sender knows.
Does not know: sessions, retries, what becomes of events.

It is stateless but for one thing: how the sessions of the moment began, which their ends do
not say again.
"""

from __future__ import annotations

import gzip
import os
import platform
import sys
from collections import OrderedDict
from collections.abc import Mapping

import msgspec
import trio

from trimaran._decision import loopback_host
from trimaran._diagnostics import Diagnostics
from trimaran._pipeline.words import words_of
from trimaran._transport import Answer, Blueprint, Request, Transport, TransportError
from trimaran._version import __version__
from trimaran.otlp.blueprint import blueprint_of
from trimaran.otlp.conventions import MAPPING_VERSION, Attribute, Value, table_of
from trimaran.otlp.environment import OtlpSettings
from trimaran.otlp.form import Form, form_of, problem_with_form
from trimaran.otlp.spans import Begun, Body, Names, Origin, Span, begun_by, read_body, spans_of

__all__ = ["OtlpTransport"]

MOST_BYTES = 64 * 1024 * 1024
"""Bytes of a request before it is compressed; what servers of OTLP take at least, by its
specification. A larger one is halved."""

_MOST_SESSIONS = 10_000
"""Sessions whose beginning is remembered; of one beyond them, the end says what it knows."""

_LONGEST_MESSAGE = 500
"""Characters of a server's message that are logged."""

_NOT_RETRIED = frozenset({408, 500})
"""What our sender would try again, and OTLP forbids to:
https://opentelemetry.io/docs/specs/otlp/#failures-1."""

_REFUSED = 422
_PARTIAL = 207
_TOO_LARGE = 413

_NO_NAME = "unknown_service"
"""The standard's word for the name of a service that nobody has told."""

_GZIP_LEVEL = 1
"""The quickest brings spans to a tenth already."""


class OtlpTransport:
    """A :class:`~trimaran.Transport` that posts events as spans, or log records, over HTTP.

    What it sends carries its own headers only: a token of the account's goes nowhere but to
    that account's endpoint.

    Retries are the sender's, but for what OTLP leaves to nobody: an answer of 500 or 408 is
    final. A partial success counts as many events as rejected as the server says. Where a
    variable names an endpoint that cannot be used, all events are rejected, and nothing is sent.

    Args:
        settings: where to and how; those of the environment, if None.
        max_connections: connections that are open at once, at most.
        environ: the environment that is read; ``os.environ``, if None.
        names_process: whether the resource says which process sends; False where it does so
            for others.

    Raises:
        ModuleNotFoundError: protobuf is to be written, and the extra ``otlp`` is not installed.
    """

    wants_spans: bool = True
    """See :class:`~trimaran.Transport`."""

    def __init__(
        self,
        settings: OtlpSettings | None = None,
        *,
        max_connections: int = 16,
        environ: Mapping[str, str] | None = None,
        names_process: bool = True,
    ) -> None:
        if settings is None:
            settings = OtlpSettings.from_environ(os.environ if environ is None else environ)
        problem = problem_with_form(settings.encoding)
        if problem is not None:
            raise ModuleNotFoundError(problem, name="opentelemetry.proto")
        self._settings = settings
        self._max_connections = max_connections
        self._http: Transport | None = None
        self._opening = trio.Lock()
        self._diagnostics = Diagnostics(trio.current_time)
        self._untold = settings.problems
        self._names = Names(
            settings.dialect,
            table_of(settings.dialect, settings.shapes),
            settings.tags,
            settings.signal == "logs" or _is_root_open(settings),
            settings.signal == "logs",
        )
        self._begun: OrderedDict[str, Begun] = OrderedDict()
        self._form: Form | None = None
        self._resource = _resource(settings, names_process=names_process)
        is_json = settings.encoding == "json"
        self._headers = {
            **{name.lower(): value for name, value in settings.headers.items()},
            "content-type": "application/json" if is_json else "application/x-protobuf",
            "user-agent": f"trimaran/{__version__}",
            **({"content-encoding": "gzip"} if settings.compression == "gzip" else {}),
        }

    def __repr__(self) -> str:
        return f"<OtlpTransport: {self._settings.signal} to {self._settings.url or 'nowhere'}>"

    @property
    def blueprint(self) -> Blueprint | None:
        """What makes it again in a relay; None where that needs the host's own code."""
        return blueprint_of(self._settings) if type(self) is OtlpTransport else None

    @property
    def secret_headers(self) -> Mapping[str, str]:
        """The headers of the settings: any of them may be a key."""
        return self._settings.headers

    async def attempt(self, request: Request) -> Answer:
        """Post the batch of *request* once. See :class:`~trimaran.Transport`."""
        return await self.attempt_with(request, {})

    async def attempt_with(self, request: Request, headers: Mapping[str, str]) -> Answer:
        """As :meth:`attempt`, with further *headers*, in lower case; they are not kept."""
        if self._untold:
            problems, self._untold = self._untold, ()
            self._diagnostics.warn("telemetry setting ignored", problem="; ".join(problems))
        if not self._settings.url:
            self._diagnostics.warn("telemetry destination missing", hint="nothing is sent")
            await trio.lowlevel.checkpoint()
            return Answer(_REFUSED)
        http = await self._opened()
        try:
            encoded, spans = self._written(request)
        except msgspec.DecodeError as error:
            self._diagnostics.warn("telemetry batch unreadable", error=type(error).__name__)
            return Answer(_REFUSED)
        if len(encoded) > MOST_BYTES:
            return Answer(_TOO_LARGE)
        if self._settings.compression == "gzip":
            encoded = gzip.compress(encoded, _GZIP_LEVEL, mtime=0)
        answer = None
        with trio.move_on_after(self._settings.timeout):
            answer = await self._post(http, encoded, headers)
        if answer is None:
            raise TransportError(f"no answer within {self._settings.timeout:g} s")
        return self._understood(answer, request.events, spans)

    def encoded(self, request: Request) -> bytes:
        """What is posted for *request*, before it is compressed.

        Raises:
            msgspec.DecodeError: there is no batch in it.
        """
        return self._written(request)[0]

    def _written(self, request: Request) -> tuple[bytes, int]:
        """What is posted for *request*, and how many spans or records are in it."""
        body = read_body(request.body)
        spans = self._spans(body, Origin.of(request.headers))
        resource = [*self._resource]
        if "service.name" not in dict(resource):
            resource.append(("service.name", body.app or _NO_NAME))
        if body.cli_version:
            resource.append(("service.version", body.cli_version))
        scope = ("trimaran", __version__, MAPPING_VERSION)
        form = self._known_form()
        write = form.traces if self._settings.signal == "traces" else form.logs
        return write(resource, scope, spans), len(spans)

    def _spans(self, body: Body, origin: Origin) -> list[Span]:
        begun = begun_by(body)
        if begun is None:
            begun = self._begun.get(body.session_id)
        else:
            self._begun[body.session_id] = begun
            self._begun.move_to_end(body.session_id)
            if len(self._begun) > _MOST_SESSIONS:
                self._begun.popitem(last=False)
        return spans_of(body, origin, self._names, begun)

    async def _post(self, http: Transport, body: bytes, headers: Mapping[str, str]) -> Answer:
        headers = {**headers, **self._headers}
        try:
            return await http.attempt(Request(self._settings.url, headers, body))
        except TransportError as error:
            raise TransportError(_with_advice(str(error), self._settings)) from None

    def _understood(self, answer: Answer, events: int, spans: int) -> Answer:
        """*answer* to so many *events* in so many *spans*, as our sender would have it."""
        form = self._known_form()
        if 200 <= answer.status < 300:
            refused, message = form.partial_success(answer.body)
            if refused or message:
                self._tell(answer.status, message, refused)
            if not refused:
                return Answer(200)
            return _partly(events, spans, refused)
        words = form.message_of_status(answer.body) or words_of(answer.body)
        self._tell(answer.status, words, None)
        status = _REFUSED if answer.status in _NOT_RETRIED else answer.status
        # Not 207, which the sender would look into: here, it is as good as any other.
        return Answer(status, answer.retry_after, words.encode(errors="replace"))

    def _tell(self, status: int, message: str, rejected: int | None) -> None:
        facts: dict[str, object] = {"status": status}
        if message:
            facts["message"] = message[:_LONGEST_MESSAGE]
        if rejected is not None:
            facts["rejected"] = rejected
        self._diagnostics.warn("telemetry destination objects", **facts)

    def _known_form(self) -> Form:
        if self._form is None:
            self._form = form_of(self._settings.encoding)
        return self._form

    async def _opened(self) -> Transport:
        """The HTTP client, made in a thread: it reads certificates, and much is imported."""
        if self._http is None:
            async with self._opening:
                if self._http is None:
                    self._http = await trio.to_thread.run_sync(
                        self._made_http, abandon_on_cancel=True
                    )
        return self._http

    def _made_http(self) -> Transport:
        self._known_form()
        return _http_transport(self._settings, self._max_connections)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()
        await trio.lowlevel.checkpoint()


def _is_root_open(settings: OtlpSettings) -> bool:
    if settings.open_root is None:
        return settings.dialect.replaces_spans
    return settings.open_root


def _http_transport(settings: OtlpSettings, max_connections: int) -> Transport:
    from trimaran._transport.http import HttpTransport  # noqa: PLC0415 - imports httpx

    return HttpTransport(
        max_connections=max_connections,
        direct_to=loopback_host(settings.url),
        certificate=settings.certificate,
        client_certificate=settings.client_certificate,
        client_key=settings.client_key,
    )


def _partly(events: int, spans: int, refused: int) -> Answer:
    """A partial success, as the origin's server would say it.

    OTLP says how many, not which. The last ones are named: reports of losses come first, and
    are counted apart. Where a root stands for a start and an end, the last of them is its: both
    go with it.
    """
    taken = max(0, spans - refused)
    indexes = range(taken, events)
    body = msgspec.json.encode({"rejected": [{"index": index} for index in indexes]})
    return Answer(_PARTIAL, body=body)


def _resource(settings: OtlpSettings, *, names_process: bool) -> list[Attribute]:
    """Who sends: https://opentelemetry.io/docs/specs/semconv/resource/."""
    known: dict[str, Value] = {
        **({"service.name": settings.service_name} if settings.service_name else {}),
        "telemetry.sdk.name": "trimaran",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }
    if names_process:
        known["process.runtime.name"] = sys.implementation.name
        known["process.runtime.version"] = platform.python_version()
    known |= settings.resource
    if names_process:
        known["process.pid"] = os.getpid()
    return [*known.items()]


def _with_advice(error: str, settings: OtlpSettings) -> str:
    """*error*, and what it is about where it is the server's certificate."""
    if "CERTIFICATE_VERIFY_FAILED" not in error:
        return error
    trusted = settings.certificate or "the operating system's trust store"
    return (
        f"{error} (trusted: {trusted}; OTEL_EXPORTER_OTLP_CERTIFICATE or SSL_CERT_FILE names a "
        "file with other certificates)"
    )
