"""Where ``--to`` and ``--forward`` lead: the one place that reads such an address.

In: the words of a person, an environment mapping. Out: a :class:`System`, and the
transport to it for the length of a block.
Does not know: which command asks, what is sent. Nothing is contacted by reading.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from trimaran._decision import switch_name, url_problem
from trimaran.langfuse import langfuse_settings
from trimaran.otlp import MLFLOW, OtlpSettings, OtlpTransport
from trimaran.otlp.form import problem_with_form

__all__ = [
    "EXPERIMENT_HEADER",
    "SYSTEM_TRUST",
    "System",
    "opened",
    "system_of",
]

EXPERIMENT_HEADER = "x-mlflow-experiment-id"
"""Nobody but MLflow wants it, so who sends it sends to MLflow."""

SYSTEM_TRUST = "SSL_CERT_FILE"
"""The variable that names a file to be used in place of the operating system's trust store."""

_OTLP = "OTEL_EXPORTER_OTLP"
_HEADERS = f"{_OTLP}_HEADERS"
_OWN_ENDPOINT = f"{_OTLP}_TRACES_ENDPOINT"
_TRACES = "/v1/traces"
_KEYS = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")

_WAYS = (
    "otlp+http://HOST:4318, otlp+https://HOST:4318, otlp (as OTEL_EXPORTER_OTLP_* say) and langfuse"
)


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Where sessions go as traces, and what a person can do about it."""

    name: str
    """As a person calls it."""
    settings: OtlpSettings
    address: str
    """What says where it is: an option, or a variable."""
    credential: str
    """The variables that hold what it knows us by."""
    trust: str
    """The variables that name files with the certificates of who may vouch for it."""
    look: str
    """Where a person sees what has arrived."""

    def environ(self, environ: Mapping[str, str], app: str) -> dict[str, str]:
        """A copy of *environ* in which telemetry of *app* is on, unless it is switched off."""
        return {**environ, switch_name(app, "URL"): self.settings.url}


def system_of(text: str, environ: Mapping[str, str], *, app: str) -> System:
    """What *text* names.

    Args:
        text: ``otlp+http://...``, ``otlp+https://...``, ``otlp`` or ``langfuse``.
        environ: where variables are looked up.
        app: what those who look see as the service, if no variable says otherwise.

    Raises:
        ValueError: nothing that can be sent to; what is wrong, and what to do. It quotes
            neither the address nor a variable: there may be a key in them.
    """
    system = _read(text, environ)
    problem = problem_with_form(system.settings.encoding)
    if problem is not None:
        raise ValueError(problem)
    if not system.settings.service_name:
        system = replace(system, settings=replace(system.settings, service_name=app))
    return system


def _read(text: str, environ: Mapping[str, str]) -> System:
    scheme, colon, rest = text.strip().partition("://")
    match scheme.lower(), colon:
        case "langfuse", "":
            return _langfuse(environ)
        case "otlp", "":
            return _otlp(None, environ)
        case "otlp+http" | "otlp+https", "://":
            return _otlp(f"{scheme.lower().removeprefix('otlp+')}://{rest}", environ)
        case "http" | "https", "://":
            raise ValueError(
                f"it does not say what is spoken there: otlp+{scheme.lower()}://... is for what takes "
                "OpenTelemetry's protocol; for an endpoint of Trimaran's own there is no need of it"
            )
        case "otlp+grpc" | "grpc", "://":
            raise ValueError(
                "gRPC is not spoken; the same server takes OTLP over HTTP at another port, "
                "mostly 4318: otlp+http://HOST:4318"
            )
        case _:
            raise ValueError(f"nobody is known by such an address; there are {_WAYS}")


def _langfuse(environ: Mapping[str, str]) -> System:
    missing = [key for key in _KEYS if not environ.get(key, "").strip()]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set; the keys are "
            "made in Langfuse, in the settings of the project"
        )
    base = environ.get("LANGFUSE_BASE_URL", "").strip()
    if base and (problem := _problem(base, " and ".join(_KEYS))):
        raise ValueError(f"the URL in LANGFUSE_BASE_URL {problem}")
    settings = langfuse_settings(environ=environ)
    parts = urlsplit(settings.url)
    return System(
        name="Langfuse",
        settings=settings,
        address="LANGFUSE_BASE_URL",
        credential=" and ".join(_KEYS),
        trust=f"{_OTLP}_CERTIFICATE or {SYSTEM_TRUST}",
        look=f"{parts.scheme}://{parts.netloc}, in the project of the keys, under Tracing",
    )


def _otlp(endpoint: str | None, environ: Mapping[str, str]) -> System:
    address = "--to"
    if endpoint is None:
        has_own = environ.get(_OWN_ENDPOINT, "").strip()
        address = _OWN_ENDPOINT if has_own else f"{_OTLP}_ENDPOINT"
    elif problem := _problem(endpoint, _HEADERS):
        raise ValueError(f"it {problem}")
    else:
        # What is not looked at does not matter, however wrong it is.
        environ = {k: v for k, v in environ.items() if not k.endswith("_ENDPOINT")}
    settings = OtlpSettings.from_environ(environ, endpoint=endpoint)
    if settings.problems:
        raise ValueError(f"{settings.problems[0]}; correct it, or unset it")
    headers = {name.lower(): value for name, value in settings.headers.items()}
    experiment = headers.get(EXPERIMENT_HEADER)
    base = settings.url.removesuffix(_TRACES)
    if experiment is None:
        name, look = "OTLP", f"{base}, or where that passes them on to"
    else:
        name, look = "MLflow", f"{base}/#/experiments/{experiment}/traces"
        settings = replace(settings, dialect=MLFLOW)
    return System(
        name=name,
        settings=settings,
        address=address,
        credential=_HEADERS,
        trust=f"{_OTLP}_CERTIFICATE or {SYSTEM_TRUST}",
        look=look,
    )


def _problem(url: str, place: str) -> str | None:
    """What is wrong with *url*, as the end of a sentence; *place* is where keys belong."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is no URL; there may be a bracket too many in it, or one too few"
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not is_port:
        return "has a port that is no number from 1 to 65535"
    if parts.username is not None or parts.password is not None:
        return f"carries a user name or password; such a thing belongs into {place}"
    return url_problem(url, with_token=False)


@asynccontextmanager
async def opened(system: System | None) -> AsyncGenerator[OtlpTransport | None]:
    """The transport to *system*, closed at the end of the block; None for None."""
    if system is None:
        yield None
        return
    transport = OtlpTransport(system.settings)
    try:
        yield transport
    finally:
        await transport.aclose()
