"""Sessions in Langfuse: ``open_telemetry(..., transport=langfuse_transport())``.

In: a project's keys. Out: a transport that posts what Langfuse takes.
Does not know: spans, sessions; :mod:`trimaran.otlp` does, which this configures.

The endpoint, its header and the limits are those of
https://langfuse.com/integrations/native/opentelemetry.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence

from trimaran._decision import url_problem
from trimaran.otlp.conventions import LANGFUSE, Shape, is_texts
from trimaran.otlp.environment import OtlpSettings, certificates_from
from trimaran.otlp.transport import OtlpTransport

__all__ = ["langfuse_settings", "langfuse_transport"]

_CLOUD = "https://cloud.langfuse.com"
_TRACES = "/api/public/otel/v1/traces"

_BASES = ("LANGFUSE_BASE_URL", "LANGFUSE_HOST")
"""Variables that say where the instance is. The second is the older name of the first: who has
only that one set means neither the cloud nor that the keys go there."""

_ENVIRONMENT_VARIABLE = "LANGFUSE_TRACING_ENVIRONMENT"
_ENVIRONMENT = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")
"""https://langfuse.com/docs/observability/features/environments."""
_NO_ENVIRONMENT = "must be at most 40 characters a-z, 0-9, - and _, and may not begin with langfuse"


def langfuse_settings(
    *,
    public_key: str | None = None,
    secret_key: str | None = None,
    base_url: str | None = None,
    environment: str = "",
    service_name: str | None = None,
    tags: Sequence[str] = (),
    shapes: Mapping[str, Shape] | None = None,
    certificate: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    timeout: float = 10.0,
    environ: Mapping[str, str] | None = None,
) -> OtlpSettings:
    """Where and how Langfuse takes spans.

    Args:
        public_key: of the project; ``LANGFUSE_PUBLIC_KEY``, if None.
        secret_key: of the project; ``LANGFUSE_SECRET_KEY``, if None.
        base_url: of the instance; ``LANGFUSE_BASE_URL``, the older ``LANGFUSE_HOST``, or the
            cloud in the EU, if None.
        environment: Langfuse's word for production, staging and so on: at most 40 characters
            ``a-z0-9_-``, and not ``langfuse`` at the beginning.
            ``LANGFUSE_TRACING_ENVIRONMENT``, if "".
        service_name: the host's name; ``OTEL_SERVICE_NAME`` or the app's, if None.
        tags: what all spans are marked with.
        shapes: what events of the host's own become, as in ``OtlpSettings``.
        certificate: a file with the certificates of who may vouch for the server;
            ``OTEL_EXPORTER_OTLP_CERTIFICATE``, or the operating system's trust store, if None.
        client_certificate: a file with this side's own certificate;
            ``OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE``, if None.
        client_key: a file with its key, if that is not in the same one;
            ``OTEL_EXPORTER_OTLP_CLIENT_KEY``, if None.
        timeout: seconds that a request may take.
        environ: where variables are looked up; ``os.environ``, if None.

    Raises:
        ValueError: a key is missing, the URL is none, or a value is not of its kind. The message
            names the variable.
    """
    texts = {
        "public_key": public_key,
        "secret_key": secret_key,
        "base_url": base_url,
        "environment": environment,
        "service_name": service_name,
    }
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"Langfuse: {name} must be text")
    environ = os.environ if environ is None else environ
    keys = [
        _needed(given, variable, environ)
        for given, variable in (
            (public_key, "LANGFUSE_PUBLIC_KEY"),
            (secret_key, "LANGFUSE_SECRET_KEY"),
        )
    ]
    if environment and not _ENVIRONMENT.fullmatch(environment):
        raise ValueError(f"Langfuse: environment {_NO_ENVIRONMENT}")
    problems: tuple[str, ...] = ()
    environment = environment or environ.get(_ENVIRONMENT_VARIABLE, "").strip()
    if environment and not _ENVIRONMENT.fullmatch(environment):
        problems = (f"{_ENVIRONMENT_VARIABLE} {_NO_ENVIRONMENT}",)
        environment = ""
    files = certificates_from(environ)
    service_name = service_name or environ.get("OTEL_SERVICE_NAME", "").strip()
    return OtlpSettings(
        url=_base(base_url, environ).rstrip("/") + _TRACES,
        headers={
            "authorization": f"Basic {b64encode(':'.join(keys).encode()).decode()}",
            # Without it, what is sent shows ten minutes later.
            "x-langfuse-ingestion-version": "4",
        },
        timeout=timeout,
        certificate=files["certificate"] if certificate is None else certificate,
        client_certificate=(
            files["client_certificate"] if client_certificate is None else client_certificate
        ),
        client_key=files["client_key"] if client_key is None else client_key,
        service_name=service_name,
        resource={"langfuse.environment": environment} if environment else {},
        tags=tuple(tags) if is_texts(tags) else tags,  # type: ignore[arg-type]  # refused there
        dialect=LANGFUSE,
        shapes={} if shapes is None else shapes,
        problems=problems,
    )


def langfuse_transport(
    *,
    public_key: str | None = None,
    secret_key: str | None = None,
    base_url: str | None = None,
    environment: str = "",
    service_name: str | None = None,
    tags: Sequence[str] = (),
    shapes: Mapping[str, Shape] | None = None,
    certificate: str | None = None,
    client_certificate: str | None = None,
    client_key: str | None = None,
    timeout: float = 10.0,
    environ: Mapping[str, str] | None = None,
) -> OtlpTransport:
    """A transport to Langfuse. Arguments and errors are those of :func:`langfuse_settings`."""
    return OtlpTransport(
        langfuse_settings(
            public_key=public_key,
            secret_key=secret_key,
            base_url=base_url,
            environment=environment,
            service_name=service_name,
            tags=tags,
            shapes=shapes,
            certificate=certificate,
            client_certificate=client_certificate,
            client_key=client_key,
            timeout=timeout,
            environ=environ,
        )
    )


def _base(given: str | None, environ: Mapping[str, str]) -> str:
    """Where the instance is.

    Raises:
        ValueError: that is no URL; it says whose.
    """
    found = {"base_url": given or ""}
    found |= {name: environ.get(name, "").strip() for name in _BASES}
    for name, url in found.items():
        if url and (problem := url_problem(url, with_token=False)):
            raise ValueError(f"Langfuse: the URL in {name} {problem}")
        if url:
            return url
    return _CLOUD


def _needed(given: str | None, variable: str, environ: Mapping[str, str]) -> str:
    value = given or environ.get(variable, "").strip()
    if not value:
        raise ValueError(f"Langfuse: there is no key in {variable}, and none is given")
    return value
