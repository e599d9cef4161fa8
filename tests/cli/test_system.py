"""What ``--to`` takes, and what it says of what it does not."""

from __future__ import annotations

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.cli._system import opened, system_of
from trimaran.otlp import LANGFUSE, MLFLOW, OPENINFERENCE

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-2"}
OTLP = "OTEL_EXPORTER_OTLP"


def problem_of(text: str, **environ: str) -> str:
    """What is said of an address that cannot be used."""
    try:
        found = system_of(text, environ, app="mine")
    except ValueError as error:
        return str(error)
    raise AssertionError(found)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("otlp+http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("otlp+http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("otlp+http://h/v1/traces", "http://h/v1/traces"),
        ("otlp+https://h/prefix", "https://h/prefix/v1/traces"),
        (" OTLP+HTTPS://h ", "https://h/v1/traces"),
        ("otlp+http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_an_address_of_otlp(text: str, url: str) -> None:
    """The path is added where it is missing; nothing but the option says where it is."""
    wrong = {f"{OTLP}_ENDPOINT": "nonsense", f"{OTLP}_TRACES_ENDPOINT": "http://other/v1/traces"}
    found = system_of(text, wrong, app="mine")

    assert (found.name, found.settings.url, found.address) == ("OTLP", url, "--to")
    assert found.settings.service_name == "mine"
    assert found.settings.dialect is OPENINFERENCE
    assert found.settings.url.removesuffix("/v1/traces") in found.look


@pytest.mark.parametrize(
    ("environ", "url", "address"),
    [
        ({}, "http://localhost:4318/v1/traces", f"{OTLP}_ENDPOINT"),
        ({f"{OTLP}_ENDPOINT": "http://h:1"}, "http://h:1/v1/traces", f"{OTLP}_ENDPOINT"),
        ({f"{OTLP}_TRACES_ENDPOINT": "http://h/x"}, "http://h/x", f"{OTLP}_TRACES_ENDPOINT"),
        (
            {f"{OTLP}_TRACES_ENDPOINT": " ", f"{OTLP}_ENDPOINT": "http://h"},
            "http://h/v1/traces",
            f"{OTLP}_ENDPOINT",
        ),
    ],
)
def test_as_the_variables_say(environ: dict[str, str], url: str, address: str) -> None:
    """Without an address, OpenTelemetry's own variables have it; the one that does is known."""
    found = system_of("otlp", environ, app="mine")

    assert (found.settings.url, found.address) == (url, address)


def test_what_variables_say_besides() -> None:
    """Headers, certificates and names go along, wherever the address comes from."""
    environ = {
        f"{OTLP}_HEADERS": "api-key=sesame",
        f"{OTLP}_CERTIFICATE": "/ca.pem",
        "OTEL_SERVICE_NAME": "theirs",
    }
    settings = system_of("otlp+https://h", environ, app="mine").settings

    assert settings.headers == {"api-key": "sesame"}
    assert settings.certificate == "/ca.pem"
    assert settings.service_name == "theirs"


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs"}, "theirs"),
        ({"OTEL_SERVICE_NAME": " "}, "mine"),
        ({}, "mine"),
    ],
)
def test_a_variable_names_the_service(environ: dict[str, str], name: str) -> None:
    """Whichever of the two it is; the app does, where none says anything."""
    assert system_of("otlp+http://h", environ, app="mine").settings.service_name == name


def test_who_names_an_experiment_sends_to_mlflow() -> None:
    """It is spoken to in its own words, and its page is known."""
    environ = {f"{OTLP}_HEADERS": "X-MLflow-Experiment-Id=7"}
    found = system_of("otlp+http://127.0.0.1:5000", environ, app="mine")

    assert (found.name, found.settings.dialect) == ("MLflow", MLFLOW)
    assert found.look == "http://127.0.0.1:5000/#/experiments/7/traces"


@pytest.mark.usefixtures("without_extra_otlp")
@pytest.mark.parametrize("text", ["otlp+http://h", "langfuse"])
def test_without_the_extra(text: str) -> None:
    """It is said what to install; JSON needs nothing."""
    with pytest.raises(ValueError, match=r"pip install 'trimaran\[otlp\]'"):
        system_of(text, KEYS, app="mine")

    found = system_of("otlp+http://h", {f"{OTLP}_PROTOCOL": "http/json"}, app="mine")
    assert found.settings.encoding == "json"


def test_langfuse() -> None:
    """By its variables alone; the cloud, where none says otherwise."""
    found = system_of("langfuse", KEYS, app="mine")
    own = system_of("Langfuse", {**KEYS, "LANGFUSE_BASE_URL": "https://l.test"}, app="mine")

    assert found.name == "Langfuse"
    assert found.settings.url == "https://cloud.langfuse.com/api/public/otel/v1/traces"
    assert found.settings.dialect is LANGFUSE
    assert found.look.startswith("https://cloud.langfuse.com, ")
    assert own.settings.url == "https://l.test/api/public/otel/v1/traces"
    kind, _, key = own.settings.headers["authorization"].partition(" ")
    assert (kind, b64decode(key)) == ("Basic", b"pk-lf-1:sk-lf-2")
    assert "sk-lf-2" not in repr(own)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nobody is known by such an address; there are otlp+http://HOST:4318, "),
        ("ftp://h", "nobody is known by such an address"),
        ("otlp:h", "nobody is known by such an address"),
        ("langfuse://h", "nobody is known by such an address"),
        ("http://h:4318", "it does not say what is spoken there: otlp+http://... is for"),
        ("https://h", "otlp+https://... is for what takes OpenTelemetry's protocol"),
        ("otlp+grpc://h:4317", "gRPC is not spoken; the same server takes OTLP over HTTP"),
        ("otlp+http://h:99999", "it has a port that is no number from 1 to 65535"),
        ("otlp+http://h:0", "it has a port that is no number from 1 to 65535"),
        ("otlp+http://h:port", "it has a port that is no number from 1 to 65535"),
        ("otlp+http://[::1", "it is no URL; there may be a bracket too many in it"),
        ("otlp+http://", "it names no host"),
        ("otlp+http://h?x=1", "it has a query or a fragment"),
        ("otlp+http://me:sesame@h", f"such a thing belongs into {OTLP}_HEADERS"),
    ],
)
def test_what_cannot_be_used(text: str, said: str) -> None:
    """It is said what is wrong and what to do, and the address is not repeated."""
    problem = problem_of(text)

    assert said in problem
    assert "sesame" not in problem


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("langfuse", {}, "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY are not set; "),
        ("langfuse", {"LANGFUSE_PUBLIC_KEY": "p"}, "LANGFUSE_SECRET_KEY is not set; "),
        ("langfuse", {**KEYS, "LANGFUSE_PUBLIC_KEY": " "}, "LANGFUSE_PUBLIC_KEY is not set; "),
        (
            "langfuse",
            {**KEYS, "LANGFUSE_BASE_URL": "cloud.langfuse.com"},
            "the URL in LANGFUSE_BASE_URL does not start with http:// or https://",
        ),
        (
            "langfuse",
            {**KEYS, "LANGFUSE_BASE_URL": "http://h:x"},
            "the URL in LANGFUSE_BASE_URL has a port that is no number from 1 to 65535",
        ),
        (
            "langfuse",
            {**KEYS, "LANGFUSE_BASE_URL": "http://me:sesame@h"},
            "such a thing belongs into LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY",
        ),
        (
            "otlp",
            {f"{OTLP}_ENDPOINT": "h:4318"},
            f"{OTLP}_ENDPOINT does not start with http:// or https://; correct it, or unset it",
        ),
        (
            "otlp+http://h",
            {f"{OTLP}_HEADERS": "sesame"},
            f"{OTLP}_HEADERS: a part is not name=value; correct it, or unset it",
        ),
    ],
)
def test_variables_that_cannot_be_used(text: str, environ: dict[str, str], said: str) -> None:
    """They are named, and what is in them is not."""
    problem = problem_of(text, **environ)

    assert said in problem
    assert "sesame" not in problem


@given(st.text())
def test_any_text_is_a_destination_or_no_value(text: str) -> None:
    """Nothing else is raised, whatever a person types."""
    for typed in (text, f"otlp+http://{text}"):
        try:
            found = system_of(typed, {}, app="mine")
        except ValueError:
            continue
        assert found.settings.url.startswith(("http://", "https://"))


def test_the_environment_that_goes_with_it() -> None:
    """Telemetry is on for that app, and off where it is switched off."""
    found = system_of("otlp", {}, app="my-app")
    environ = found.environ({"DO_NOT_TRACK": "1"}, "my-app")

    assert environ == {
        "DO_NOT_TRACK": "1",
        "MY_APP_TELEMETRY_URL": "http://localhost:4318/v1/traces",
    }


async def test_nowhere_needs_no_transport() -> None:
    """And gets none."""
    async with opened(None) as transport:
        assert transport is None
