"""Real systems that take OTLP, as processes of their own: a test agent, a collector.

In: nothing. Out: where they listen, and what they took, in one form.
Does not know: what is sent to them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import rotel  # type: ignore[import-untyped]  # it has no types

from patience import PATIENCE

TOKEN = "x-datadog-test-session-token"


@dataclass(frozen=True, kw_only=True)
class ReadSpan:
    """A span as a system shows it."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    start: int
    end: int
    attributes: dict[str, Any]
    is_error: bool
    message: str
    events: list[tuple[str, int, dict[str, Any]]]
    links: list[tuple[str, str]]
    resource: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReadRecord:
    """A log record as a system shows it."""

    trace_id: str
    span_id: str
    event_name: str
    severity: int
    time: int
    body: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class TestAgent:
    """Datadog's test agent: it keeps what it takes, by the token that came with it."""

    __test__ = False

    url: str

    def spans(self, token: str) -> list[ReadSpan]:
        """All spans that came with *token*, in their order."""
        return [
            read_span(span, resource)
            for request in self._taken("traces", token)
            for group in either(request, "resource_spans", [])
            for resource in [key_values(group["resource"]["attributes"])]
            for scope in either(group, "scope_spans", [])
            for span in scope.get("spans", [])
        ]

    def records(self, token: str) -> list[ReadRecord]:
        """All log records that came with *token*, in their order."""
        return [
            read_record(record)
            for request in self._taken("logs", token)
            for group in either(request, "resource_logs", [])
            for scope in either(group, "scope_logs", [])
            for record in either(scope, "log_records", [])
        ]

    def _taken(self, what: str, token: str) -> list[dict[str, Any]]:
        answer = httpx.get(
            f"{self.url}/test/session/{what}",
            params={"test_session_token": token},
            timeout=PATIENCE,
            trust_env=False,
        )
        answer.raise_for_status()
        taken: list[dict[str, Any]] = answer.json()
        return taken[::-1]  # the last request comes first


@contextmanager
def running_test_agent() -> Iterator[TestAgent]:
    """A test agent that runs while the block does."""
    port, otlp, grpc = free_ports(3)
    command = ["ddapm-test-agent", "--port", str(port)]
    command += ["--otlp-http-port", str(otlp), "--otlp-grpc-port", str(grpc)]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    agent = TestAgent(f"http://127.0.0.1:{otlp}")
    with running(command, otlp):
        yield agent


@contextmanager
def running_collector(agent: TestAgent, token: str, *, http: int | None = None) -> Iterator[str]:
    """A collector that passes on to *agent*, with that token; gives its URL.

    It listens at the port *http*, if one is given.
    """
    free, grpc = free_ports(2)
    http = http or free
    [package] = rotel.__path__
    command = [str(Path(package) / "rotel-agent"), "start"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http}"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
    command += ["--exporter", "otlp", "--otlp-exporter-protocol", "http"]
    command += ["--otlp-exporter-endpoint", agent.url]
    command += ["--otlp-exporter-custom-headers", f"{TOKEN}={token}"]
    # Spans: what it splits off of a larger batch goes on without its resource.
    command += ["--batch-max-size", "65536"]
    with running(command, http):
        yield f"http://127.0.0.1:{http}"


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A program that runs while the block does, which begins when it listens at *port*."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "ROTEL_"))}
    # The collector looks for the library of the Python that it was installed for.
    libraries = sysconfig.get_config_var("LIBDIR")
    environ["LD_LIBRARY_PATH"] = f"{libraries}{os.pathsep}{environ.get('LD_LIBRARY_PATH', '')}"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ
    ) as process:
        try:
            wait_for(port, process)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)  # a process of its own tells nobody when it is ready
    raise RuntimeError(f"{process.args!r} does not listen at {port}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened at a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def read_span(span: dict[str, Any], resource: dict[str, Any]) -> ReadSpan:
    """A span of either of OTLP's forms."""
    kind = span.get("kind", 0)
    kinds = {"SPAN_KIND_INTERNAL": 1, "SPAN_KIND_CLIENT": 3}
    status = span.get("status", {})
    return ReadSpan(
        trace_id=hex_id(either(span, "trace_id")),
        span_id=hex_id(either(span, "span_id")),
        parent_span_id=hex_id(either(span, "parent_span_id")),
        name=span["name"],
        kind=kinds.get(kind, kind),
        start=int(either(span, "start_time_unix_nano")),
        end=int(either(span, "end_time_unix_nano")),
        attributes=key_values(span.get("attributes", [])),
        is_error=status.get("code") in {2, "STATUS_CODE_ERROR"},
        message=status.get("message", ""),
        events=[
            (e["name"], int(either(e, "time_unix_nano")), key_values(e.get("attributes", [])))
            for e in span.get("events", [])
        ],
        links=[
            (hex_id(either(link, "trace_id")), hex_id(either(link, "span_id")))
            for link in span.get("links", [])
        ],
        resource=resource,
    )


def read_record(record: dict[str, Any]) -> ReadRecord:
    """A log record of either of OTLP's forms."""
    severity = either(record, "severity_number", 0)
    severities = {"SEVERITY_NUMBER_INFO": 9, "SEVERITY_NUMBER_ERROR": 17}
    return ReadRecord(
        trace_id=hex_id(either(record, "trace_id")),
        span_id=hex_id(either(record, "span_id")),
        event_name=either(record, "event_name", ""),
        severity=severities.get(severity, severity),
        time=int(either(record, "time_unix_nano")),
        body=any_value(record["body"]) if record.get("body") else "",
        attributes=key_values(record.get("attributes", [])),
    )


def either(thing: dict[str, Any], name: str, default: Any = "") -> Any:
    """A member by its name in protobuf, or in JSON."""
    first, *rest = name.split("_")
    camel = first + "".join(map(str.capitalize, rest))
    return thing.get(name, thing.get(camel, default))


def hex_id(text: str) -> str:
    """An id in hexadecimal digits, which OTLP's JSON has and protobuf's own mapping has not."""
    return b64decode(text).hex() if text.endswith("=") else text


def key_values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """Attributes; each name comes once."""
    found = {each["key"]: any_value(each["value"]) for each in attributes}
    assert len(found) == len(attributes), attributes
    return found


def any_value(value: dict[str, Any]) -> Any:
    """A value of either of OTLP's forms."""
    [(kind, content)] = value.items()
    match kind.lower().replace("_", ""):
        case "intvalue":
            return int(content)
        case "arrayvalue":
            return [any_value(each) for each in content["values"]]
        case _:
            return content
