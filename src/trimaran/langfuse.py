"""Sessions in Langfuse: ``open_telemetry(..., transport=langfuse_transport())``.

In: a project's keys. Out: a transport that posts what Langfuse takes.
Does not know: spans, sessions; :mod:`trimaran.otlp` does, which this configures.

The endpoint, its header and the limits are those of
https://langfuse.com/integrations/native/opentelemetry.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence

from trimaran.otlp.conventions import LANGFUSE, Shape, is_texts
from trimaran.otlp.environment import OtlpSettings
from trimaran.otlp.transport import OtlpTransport

__all__ = ["langfuse_settings", "langfuse_transport"]

_CLOUD = "https://cloud.langfuse.com"
_TRACES = "/api/public/otel/v1/traces"


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
    timeout: float = 10.0,
    environ: Mapping[str, str] | None = None,
) -> OtlpSettings:
    """Where and how Langfuse takes spans.

    Args:
        public_key: of the project; ``LANGFUSE_PUBLIC_KEY``, if None.
        secret_key: of the project; ``LANGFUSE_SECRET_KEY``, if None.
        base_url: of the instance; ``LANGFUSE_BASE_URL``, or the cloud in the EU, if None.
        environment: Langfuse's word for production, staging and so on;
            ``LANGFUSE_TRACING_ENVIRONMENT``, if "".
        service_name: the host's name; ``OTEL_SERVICE_NAME`` or the app's, if None.
        tags: what all spans are marked with.
        shapes: what events of the host's own become, as in ``OtlpSettings``.
        certificate: a file with the certificates of who may vouch for the server.
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
    base = base_url or environ.get("LANGFUSE_BASE_URL", "").strip() or _CLOUD
    environment = environment or environ.get("LANGFUSE_TRACING_ENVIRONMENT", "").strip()
    service_name = service_name or environ.get("OTEL_SERVICE_NAME", "").strip()
    return OtlpSettings(
        url=base.rstrip("/") + _TRACES,
        headers={
            "authorization": f"Basic {b64encode(':'.join(keys).encode()).decode()}",
            # Without it, what is sent shows ten minutes later.
            "x-langfuse-ingestion-version": "4",
        },
        timeout=timeout,
        certificate=certificate,
        service_name=service_name,
        resource={"langfuse.environment": environment} if environment else {},
        tags=tuple(tags) if is_texts(tags) else tags,  # type: ignore[arg-type]  # refused there
        dialect=LANGFUSE,
        shapes={} if shapes is None else shapes,
    )


def langfuse_transport(
    *,
    public_key: str | None = None,
    secret_key: str | None = None,
    base_url: str | None = None,
    environment: str = "",
    service_name: str | None = None,
    tags: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> OtlpTransport:
    """A transport to Langfuse. Arguments and errors are those of :func:`langfuse_settings`;
    for what is not among them, give its result to :class:`~trimaran.otlp.OtlpTransport`.
    """
    return OtlpTransport(
        langfuse_settings(
            public_key=public_key,
            secret_key=secret_key,
            base_url=base_url,
            environment=environment,
            service_name=service_name,
            tags=tags,
            environ=environ,
        )
    )


def _needed(given: str | None, variable: str, environ: Mapping[str, str]) -> str:
    value = given or environ.get(variable, "").strip()
    if not value:
        raise ValueError(f"Langfuse: there is no key in {variable}, and none is given")
    return value
