"""OpenTelemetry's variables, as its specification has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from trimaran.otlp import OtlpSettings, Shape

PREFIX = "OTEL_EXPORTER_OTLP_"


def read(signal: str = "traces", **variables: str) -> OtlpSettings:
    """The settings of an environment with these variables of the exporter's."""
    environ = {PREFIX + name: value for name, value in variables.items()}
    return OtlpSettings.from_environ(environ, signal="logs" if signal == "logs" else "traces")


def test_without_variables_it_is_the_collector_on_this_machine() -> None:
    """At the port of OTLP over HTTP."""
    assert read() == OtlpSettings(url="http://localhost:4318/v1/traces")
    assert read("logs").url == "http://localhost:4318/v1/logs"


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"ENDPOINT": "http://a:1"}, "http://a:1/v1/traces"),
        ({"ENDPOINT": "http://a:1/"}, "http://a:1/v1/traces"),
        ({"ENDPOINT": "https://a/otlp"}, "https://a/otlp/v1/traces"),
        ({"TRACES_ENDPOINT": "http://b:1"}, "http://b:1"),
        ({"TRACES_ENDPOINT": "http://b:1/x/"}, "http://b:1/x/"),
        ({"TRACES_ENDPOINT": "http://b:1", "ENDPOINT": "http://a:1"}, "http://b:1"),
        ({"TRACES_ENDPOINT": " ", "ENDPOINT": "http://a:1"}, "http://a:1/v1/traces"),
        ({"LOGS_ENDPOINT": "http://b:1"}, "http://localhost:4318/v1/traces"),
    ],
)
def test_the_endpoint(variables: dict[str, str], url: str) -> None:
    """One for all signals gets the signal's path, the signal's own stays as it is."""
    assert read(**variables).url == url


def test_an_endpoint_that_is_given_goes_before_variables() -> None:
    """With the signal's path, which it may have already."""
    environ = {PREFIX + "TRACES_ENDPOINT": "http://b:1"}

    for given in ("http://c:1", "http://c:1/v1/traces"):
        assert OtlpSettings.from_environ(environ, endpoint=given).url == "http://c:1/v1/traces"


def test_headers_are_percent_decoded() -> None:
    """As W3C Baggage writes them; the signal's replace the general ones."""
    general = read(HEADERS="api-key=a%20b%3D, x=1=2 ,,")
    of_signal = read(HEADERS="a=b", TRACES_HEADERS="c=d")

    assert general.headers == {"api-key": "a b=", "x": "1=2"}
    assert of_signal.headers == {"c": "d"}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("s3cret", "a part is not name=value"),
        ("=s3cret", "a part is not name=value"),
        ("a b=s3cret", "a header has no name that can be sent"),
        ("a=s3cret%0d%0ax: y", "the header a has characters that cannot be sent"),
        ("a=s3cret%C3%A4", "the header a has characters that cannot be sent"),
    ],
)
def test_a_header_that_cannot_be_sent_is_left_out(value: str, problem: str) -> None:
    """The others are sent; what is told of it quotes no value."""
    settings = read(HEADERS=f"{value},good=1")

    assert settings.headers == {"good": "1"}
    assert settings.problems == (f"{PREFIX}HEADERS: {problem}",)


def test_everything_else() -> None:
    """Milliseconds become seconds."""
    settings = read(
        PROTOCOL="http/json",
        COMPRESSION="none",
        TIMEOUT="2500",
        CERTIFICATE="ca.pem",
        CLIENT_CERTIFICATE="me.pem",
        TRACES_CLIENT_KEY="me.key",
    )

    assert settings == OtlpSettings(
        encoding="json",
        compression="none",
        timeout=2.5,
        certificate="ca.pem",
        client_certificate="me.pem",
        client_key="me.key",
    )


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PROTOCOL", "grpc", "not one of http/protobuf, http/json"),
        ("COMPRESSION", "zstd", "not one of gzip, none"),
        ("TIMEOUT", "0", "not a number of milliseconds above 0"),
        ("TIMEOUT", "10s", "not a number of milliseconds above 0"),
        ("TIMEOUT", "\u0662", "not a number of milliseconds above 0"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_told(name: str, value: str, problem: str) -> None:
    """The agent starts all the same."""
    settings = read(**{name: value})

    assert settings == OtlpSettings(problems=settings.problems)
    [told] = settings.problems
    assert told.startswith(PREFIX + name)
    assert told.endswith(problem)
    assert value not in told or value == "0"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ENDPOINT", "a:1", "does not start with http:// or https://"),
        ("ENDPOINT", "http://", "names no host"),
        ("TRACES_ENDPOINT", "http://a:b@c", "carries a user name or password, which is not sent"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_not_replaced(
    name: str, value: str, problem: str
) -> None:
    """Neither by the default nor by that for all signals: a key is for who it is meant for."""
    others = {"ENDPOINT": "http://other:1", "HEADERS": "api-key=s3cret"}
    settings = read(**{**others, name: value})

    assert settings.url == ""
    assert settings.problems == (f"{PREFIX}{name} {problem}",)


def test_a_variable_in_whose_place_something_is_given_may_be_anything() -> None:
    """It is not looked at."""
    settings = OtlpSettings.from_environ({f"{PREFIX}ENDPOINT": "a:1"}, endpoint="http://b")

    assert settings == OtlpSettings(url="http://b/v1/traces")


def test_the_resource() -> None:
    """The service's own variable goes before its attribute."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,deployment.environment.name=test%201"}

    settings = OtlpSettings.from_environ(environ)
    assert settings.service_name == "a"
    assert settings.resource == {"deployment.environment.name": "test 1"}
    environ["OTEL_SERVICE_NAME"] = "b"
    assert OtlpSettings.from_environ(environ).service_name == "b"
    assert OtlpSettings.from_environ(environ, service_name="c").service_name == "c"


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "collector:4318"},
        {"url": ""},
        {"endpoint": 4318},
        {"url": "http://a/?x=1"},
        {"headers": {"": "x"}},
        {"headers": {"a": "s3cret\n"}},
    ],
)
def test_what_code_gives_has_to_be_right(wrong: dict[str, Any]) -> None:
    """An error at once, which quotes no value."""
    with pytest.raises(ValueError, match="OTLP") as caught:
        OtlpSettings.from_environ({}, **wrong)

    assert "s3cret" not in str(caught.value)


WRONG: list[tuple[str, list[object]]] = [
    ("url", [None, 1, b"http://a"]),
    ("signal", ["metrics", None, ["traces"]]),
    ("headers", [None, "a=b", {"s3cret": 1}, {1: "s3cret"}, [("a", "s3cret")]]),
    ("encoding", ["xml", None]),
    ("compression", ["zstd", None, True]),
    ("timeout", ["3", -1, 0, math.nan, True, None]),
    ("certificate", [1, "", Path("ca.pem")]),
    ("client_certificate", [1, ""]),
    ("client_key", [b"key", ""]),
    ("service_name", [None, 1]),
    ("resource", [{"a": 1, "b": "s3cret"}, {"a": None}, {1: "s3cret"}, "a=b"]),
    ("tags", ["nightly", b"nightly", ("a", 1), None, {"a"}]),
    ("dialect", ["mlflow", None]),
    ("shapes", [{"x": 1}, {1: Shape()}, None, [Shape()]]),
    ("open_root", [1, "yes"]),
]


@pytest.mark.parametrize(("field", "value"), [(field, v) for field, vs in WRONG for v in vs])
def test_what_code_gives_is_looked_at_when_it_is_given(field: str, value: object) -> None:
    """Else each attempt would fail later, or half of it would go out. The field is named."""
    made: list[Callable[..., OtlpSettings]] = [OtlpSettings, partial(OtlpSettings.from_environ, {})]
    for make in made:
        with pytest.raises(ValueError, match=rf"OTLP:.* {field}|OTLP: the URL") as caught:
            make(**{field: value})
        assert "s3cret" not in str(caught.value)


def test_every_setting_is_looked_at() -> None:
    """But for the problems, which this library writes itself."""
    assert {field for field, _ in WRONG} == {*OtlpSettings.__struct_fields__} - {"problems"}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", [None, 1]),
        ("subject", [None, 1]),
        ("kind", [2, "client", None]),
        ("always", [{"a": ["b"]}, {"a": None}, {"a": 2**63}, {"a": ("b", 1)}, {1: "a"}, "a", None]),
        ("fields", [{"a": 1}, {1: "a"}, ("a",), None]),
        ("own", ["attempt", ("a", 1), {"a"}]),
        ("computed", [None, (1,), len]),
    ],
)
def test_a_shape_is_looked_at_when_it_is_made(field: str, values: list[object]) -> None:
    """A text in the place of many is not taken for its letters."""
    for value in values:
        with pytest.raises(ValueError, match=f"Shape: {field} must be"):
            Shape(**{field: value})  # type: ignore[arg-type]


def test_every_kind_of_sequence_and_mapping_will_do() -> None:
    """Also those that cannot be changed."""
    fixed = MappingProxyType({"a": "b"})
    always = MappingProxyType({"a": ("b",), "c": 2**63 - 1, "d": True, "e": 0.5})
    settings = OtlpSettings(
        headers=fixed,
        resource=fixed,
        tags=["a", "b"],  # type: ignore[arg-type]
        timeout=3,
        shapes=MappingProxyType({"x": Shape(fields=fixed, own=["a"], always=always)}),  # type: ignore[arg-type]
    )

    assert settings.headers == {"a": "b"}


def test_no_header_is_shown() -> None:
    """They carry keys."""
    assert "s3cret" not in repr(OtlpSettings(headers={"api-key": "s3cret"}))
