"""What Langfuse is sent, checked against what it documents. No Langfuse runs here."""

from __future__ import annotations

import gzip
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import trimaran
from conftest import LoopbackEndpoint
from patience import PATIENCE
from trimaran.langfuse import langfuse_settings, langfuse_transport
from trimaran.otlp import OtlpTransport, Shape

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-s3cret"}

TYPES = {"span", "generation", "event", "agent", "tool"}
"""Of observations, as far as there are any here."""


async def test_a_session_as_langfuse_takes_it(endpoint: LoopbackEndpoint) -> None:
    """Its path, keys and header; on every span the session, an id, a parent and a type."""
    transport = langfuse_transport(
        environ={**KEYS, "LANGFUSE_BASE_URL": endpoint.url}, tags=["nightly"], environment="ci"
    )
    async with trimaran.open_telemetry(
        "test",
        version="1.0",
        environ=endpoint.environ(),
        transport=transport,
        settings=trimaran.Settings(drain_timeout=PATIENCE),
    ) as telemetry:
        async with telemetry.session(session_id="sitzung ß", agent="build") as session:
            session.command("init")
            with session.generation(model_id="m") as generation:
                tokens = trimaran.Tokens(input=10, output=5, reasoning=2, cache_read=90)
                generation.finish("stop", tokens=tokens, cost=0.25)
            with pytest.raises(KeyError), session.tool_call("bash"):
                raise KeyError("x")
            with session.bridge_call("sql.execute"):
                pass
            session.error(ValueError("no"))
            await session.flush()
    await transport.aclose()

    spans: list[Any] = []
    for request in endpoint.requests:
        assert request.target == "/api/public/otel/v1/traces"
        assert request.headers["x-langfuse-ingestion-version"] == "4"
        kind, credentials = request.headers["authorization"].split()
        assert (kind, b64decode(credentials)) == ("Basic", b"pk-lf-1:sk-lf-s3cret")
        read = ExportTraceServiceRequest.FromString(gzip.decompress(request.body))
        for group in read.resource_spans:
            resource = {each.key: each.value.string_value for each in group.resource.attributes}
            assert resource["langfuse.environment"] == "ci"
            spans += group.scope_spans[0].spans
    found = [{each.key: each.value for each in span.attributes} for span in spans]
    ids = {each["session.id"].string_value for each in found}
    assert len(ids) == 1
    assert all(len(text) <= 200 and text.isascii() for text in ids)
    for span, attributes in zip(spans, found, strict=True):
        assert len(span.trace_id) == 16
        assert any(span.trace_id)
        assert len(span.span_id) == 8
        assert any(span.span_id)
        assert len(span.parent_span_id) in {0, 8}
        assert attributes["langfuse.observation.type"].string_value in TYPES
        tags = attributes["langfuse.trace.tags"].array_value.values
        assert [tag.string_value for tag in tags] == ["nightly"]
    types = [attributes["langfuse.observation.type"].string_value for attributes in found]
    assert types == ["event", "event", "generation", "tool", "span", "event", "agent"]
    usage = found[2]["langfuse.observation.usage_details"].string_value
    assert msgspec.json.decode(usage) == {
        "input": 10,
        "input_cached_tokens": 90,
        "output": 5,
        "output_reasoning_tokens": 2,
        "total": 107,
    }
    cost = found[2]["langfuse.observation.cost_details"].string_value
    assert msgspec.json.decode(cost) == {"total": 0.25}
    assert [span.status.code for span in spans] == [0, 0, 0, 2, 0, 2, 0]


@pytest.mark.parametrize(
    ("environ", "missing"),
    [({}, "LANGFUSE_PUBLIC_KEY"), ({"LANGFUSE_PUBLIC_KEY": "pk"}, "LANGFUSE_SECRET_KEY")],
)
def test_a_missing_key_is_named(environ: dict[str, str], missing: str) -> None:
    """By its variable."""
    with pytest.raises(ValueError, match=missing):
        langfuse_settings(environ=environ)


@pytest.mark.parametrize(
    "name", ["public_key", "secret_key", "base_url", "environment", "service_name", "tags"]
)
@pytest.mark.parametrize("make", [langfuse_settings, langfuse_transport])
def test_what_is_not_of_its_kind_is_named(make: Callable[..., object], name: str) -> None:
    """At once, and nothing of it is quoted."""
    for value in (7, b"s3cret"):
        with pytest.raises(ValueError, match=f"{name} must be") as caught:
            make(**{"environ": KEYS, name: value})
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="tags must be"):
        make(environ=KEYS, tags="nightly")


def test_what_is_given_goes_before_variables() -> None:
    """Each of them."""
    environ = {**KEYS, "LANGFUSE_BASE_URL": "https://a", "OTEL_SERVICE_NAME": "a"}
    environ["LANGFUSE_TRACING_ENVIRONMENT"] = "a"
    read = langfuse_settings(environ=environ)
    given = langfuse_settings(
        public_key="p",
        secret_key="s",
        base_url="https://b/",
        service_name="b",
        environment="b",
        environ=environ,
    )

    assert read.url == "https://a/api/public/otel/v1/traces"
    assert (read.service_name, read.resource) == ("a", {"langfuse.environment": "a"})
    assert given.url == "https://b/api/public/otel/v1/traces"
    assert (given.service_name, given.resource) == ("b", {"langfuse.environment": "b"})
    assert b64decode(given.headers["authorization"].split()[1]) == b"p:s"
    assert "s3cret" not in repr(read)


def test_certificates_are_those_of_the_variables_that_the_advice_names() -> None:
    """Of OTLP's, that for spans first; what is given goes before them."""
    prefix = "OTEL_EXPORTER_OTLP_"
    environ = {
        **KEYS,
        f"{prefix}CERTIFICATE": "all.pem",
        f"{prefix}TRACES_CERTIFICATE": "ca.pem",
        f"{prefix}CLIENT_CERTIFICATE": "me.pem",
        f"{prefix}CLIENT_KEY": "me.key",
    }
    read = langfuse_settings(environ=environ)
    given = langfuse_settings(
        certificate="c", client_certificate="d", client_key="e", environ=environ
    )

    assert (read.certificate, read.client_certificate) == ("ca.pem", "me.pem")
    assert read.client_key == "me.key"
    assert (given.certificate, given.client_certificate, given.client_key) == ("c", "d", "e")


async def test_what_a_transport_is_given_reaches_its_settings(tmp_path: Path) -> None:
    """Also what is about the connection: a certificate that is not there is missed by name."""
    missing = str(tmp_path / "missing.pem")
    transport = langfuse_transport(
        environ=KEYS, base_url="https://127.0.0.1:1", certificate=missing
    )
    given: dict[str, Any] = {
        "shapes": {"deployment": Shape()},
        "client_certificate": "me.pem",
        "client_key": "me.key",
        "timeout": 2.5,
        "tags": ("nightly",),
        "environment": "ci",
    }

    with pytest.raises(trimaran.TransportError, match=r"missing\.pem: No such file"):
        await transport.attempt(
            trimaran.Request("", {}, b'{"session_id":"s","timestamp":0,"events":[]}')
        )
    both = [langfuse_transport(environ=KEYS, **given), langfuse_settings(environ=KEYS, **given)]
    assert isinstance(both[0], OtlpTransport)
    assert both[0]._settings == both[1]


@pytest.mark.parametrize("name", ["LANGFUSE_BASE_URL", "LANGFUSE_HOST", "base_url"])
def test_a_url_that_is_none_is_named_by_who_said_so(name: str) -> None:
    """The variable or the argument; it is not quoted, for there may be a key in it."""
    environ = {**KEYS, name: "https://pk:s3cret@langfuse.example.com"}

    with pytest.raises(ValueError, match=f"Langfuse: the URL in {name} carries a") as caught:
        langfuse_settings(environ=environ, base_url=environ.get("base_url"))
    assert "s3cret" not in str(caught.value)


def test_the_older_variable_of_the_address_is_known() -> None:
    """Who has set only that one does not mean the cloud: the keys are not for it."""
    environ = {**KEYS, "LANGFUSE_HOST": "https://own.example.com"}

    assert langfuse_settings(environ=environ).url.startswith("https://own.example.com/api/")
    environ["LANGFUSE_BASE_URL"] = "https://newer.example.com"
    assert langfuse_settings(environ=environ).url.startswith("https://newer.example.com/api/")


@pytest.mark.parametrize("environment", ["Langfuse PROD!", "langfuse-x", "prod\n", "a" * 41, "ü"])
def test_an_environment_that_langfuse_would_not_take(environment: str) -> None:
    """Given, it is an error; from the variable, it is left out and told, and the rest goes out."""
    with pytest.raises(ValueError, match="Langfuse: environment must be at most 40 characters"):
        langfuse_settings(environment=environment, environ=KEYS)
    told = langfuse_settings(environ={**KEYS, "LANGFUSE_TRACING_ENVIRONMENT": f"{environment}."})
    assert told.resource == {}
    [problem] = told.problems
    assert problem.startswith("LANGFUSE_TRACING_ENVIRONMENT must be")
    assert environment not in problem


@pytest.mark.parametrize("environment", ["production", "a" * 40, "my-langfuse_1", "-"])
def test_an_environment_that_langfuse_takes(environment: str) -> None:
    """Goes out as it is."""
    settings = langfuse_settings(environ={**KEYS, "LANGFUSE_TRACING_ENVIRONMENT": environment})

    assert settings.resource == {"langfuse.environment": environment}
    assert settings.problems == ()


def test_without_a_url_it_is_the_cloud() -> None:
    """And the environment is Langfuse's default."""
    settings = langfuse_settings(environ=KEYS)

    assert settings.url == "https://cloud.langfuse.com/api/public/otel/v1/traces"
    assert settings.resource == {}
