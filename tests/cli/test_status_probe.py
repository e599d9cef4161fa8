"""Tests of destinations, against real servers on loopback, healthy ones and others."""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import rotel  # type: ignore[import-untyped]  # it has no types
import trio
import trustme

from conftest import LoopbackEndpoint
from otlp.systems import (
    TestAgent,
    free_ports,
    running,
    running_collector,
)
from patience import PATIENCE
from trimaran._decision import resolve
from trimaran.cli._system import system_of
from trimaran.cli.status_probe import Step, _connect, _Hop, _unless_refused, examine
from trimaran.cli.status_target import of_endpoint, of_system

if TYPE_CHECKING:
    from trimaran.receiver import Receiver

OTLP = "OTEL_EXPORTER_OTLP"
TOKEN = "test-status"


async def steps_to(
    to: str, environ: Mapping[str, str] | None = None, *, patience: float = PATIENCE
) -> list[Step]:
    """What a test of that destination finds."""
    with trio.fail_after(2 * PATIENCE):
        target = of_system(system_of(to, environ or {}, app="mine"))
        return await examine(target, {}, patience=patience)


async def problem_of(
    to: str, step: str, environ: Mapping[str, str] | None = None, *, patience: float = PATIENCE
) -> str:
    """What is wrong with that destination, found out in this step, and in none before."""
    *before, last = await steps_to(to, environ, patience=patience)
    assert [each.problem for each in before] == [""] * len(before)
    assert last.name == step, last
    assert last.problem
    return last.problem


async def test_a_healthy_test_agent(test_agent: TestAgent) -> None:
    """All is well, in both of OTLP's forms; and no span came to it."""
    headers = {f"{OTLP}_HEADERS": f"x-datadog-test-session-token={TOKEN}"}
    for protocol in ("http/protobuf", "http/json"):
        steps = await steps_to(f"otlp+{test_agent.url}", {**headers, f"{OTLP}_PROTOCOL": protocol})

        assert [step.name for step in steps] == ["Name", "Connection", "Answer"]
        assert [step.problem for step in steps] == [""] * 3
        assert steps[0].found == "127.0.0.1"
        assert steps[-1].found == "200"
    assert len(test_agent._taken("traces", TOKEN)) == 2
    assert test_agent.spans(TOKEN) == []


async def test_a_healthy_collector(test_agent: TestAgent) -> None:
    """The same."""
    with running_collector(test_agent, TOKEN) as url:
        steps = await steps_to(f"otlp+{url}")

    assert (steps[-1].found, steps[-1].problem) == ("200", "")


async def test_a_port_for_grpc() -> None:
    """A collector's own, by any number; it is said which one it is."""
    http, grpc = free_ports(2)
    [package] = rotel.__path__
    command = [str(Path(package) / "rotel-agent"), "start", "--exporter", "blackhole"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http}"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
    with running(command, grpc):
        problem = await problem_of(f"otlp+http://127.0.0.1:{grpc}", "Answer")

    assert problem.startswith("it does not speak HTTP/1.1, as a port for gRPC does not (4317 is")
    assert problem.endswith(
        "look at the address in --to: OTLP over HTTP has a port of its own, mostly 4318"
    )


async def test_a_name_that_does_not_resolve() -> None:
    """It is repeated, with who says it."""
    problem = await problem_of("otlp+http://nowhere.invalid:4318", "Name")

    assert problem.startswith("the name 'nowhere.invalid' does not resolve; correct it in --to")
    assert "does not resolve" in await problem_of(f"otlp+http://{'x' * 64}.test", "Name")


async def test_a_port_at_which_nobody_listens() -> None:
    """Host and port are repeated."""
    [port] = free_ports(1)
    environ = {f"{OTLP}_ENDPOINT": f"http://localhost:{port}"}
    problem = await problem_of("otlp", "Connection", environ)

    assert problem == (
        f"nothing listens at localhost:{port}; start it there, or correct the address in "
        f"{OTLP}_ENDPOINT"
    )


async def test_an_address_that_nobody_gets_to() -> None:
    """Why not is said where the system knows it."""
    problem = await problem_of("otlp+http://255.255.255.255:4318", "Connection")

    assert problem.startswith("nothing listens at 255.255.255.255:4318 ([Errno ")


async def test_nobody_answers_in_time(endpoint: LoopbackEndpoint) -> None:
    """A server that accepts and says nothing is waited for as long as an agent would."""
    endpoint.always(delay=math.inf)
    problem = await problem_of(f"otlp+{endpoint.url}", "Answer", patience=0.5)

    assert problem.startswith("no answer within 0.5 s; either it is too busy")


async def test_a_server_that_breaks_off(endpoint: LoopbackEndpoint) -> None:
    """It may be another program's port."""
    endpoint.always(break_off=True)
    problem = await problem_of(f"otlp+{endpoint.url}", "Answer")

    assert problem.startswith("it breaks off (RemoteProtocolError: ")
    assert "another program may listen at that port, or one that speaks TLS (https)" in problem


async def test_nothing_of_a_session_is_sent(endpoint: LoopbackEndpoint) -> None:
    """Neither to OTLP nor to an endpoint: no span, no event; the headers are those of agents."""
    environ = {f"{OTLP}_HEADERS": "Api-Key=sesame", f"{OTLP}_PROTOCOL": "http/json"}
    await steps_to(f"otlp+{endpoint.url}", environ)
    decision = resolve("mine", None, {"MINE_TELEMETRY_URL": endpoint.url})
    await examine(of_endpoint(decision, None), {})
    to_otlp, to_endpoint = endpoint.requests

    assert to_otlp.target == "/v1/traces"
    assert to_otlp.headers["api-key"] == "sesame"
    [group] = to_otlp.batch["resourceSpans"]
    assert [scope["spans"] for scope in group["scopeSpans"]] == [[]]
    assert to_endpoint.target == "/api/observability/ingest"
    assert to_endpoint.events == []
    assert "authorization" not in to_endpoint.headers


async def test_a_key_that_is_not_taken(endpoint: LoopbackEndpoint) -> None:
    """The variables that hold it are named, and the key is not shown."""
    endpoint.always(401, body=b'{"message": "no such key: sesame@example.com"}')
    environ = {
        "LANGFUSE_PUBLIC_KEY": "pk-lf-1",
        "LANGFUSE_SECRET_KEY": "sk-lf-2",
        "LANGFUSE_BASE_URL": endpoint.url,
    }
    with_key = await problem_of("langfuse", "Answer", environ)
    without = await problem_of(f"otlp+{endpoint.url}", "Answer")

    assert with_key.startswith(
        "it does not take the key (401); correct it in LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY"
    )
    assert 'It says: "no such key: ' in with_key
    assert "example.com" not in with_key
    assert without.startswith(f"it wants a key (401), which belongs into {OTLP}_HEADERS")
    assert endpoint.requests[0].target == "/api/public/otel/v1/traces"


async def test_a_path_that_is_not_there(test_agent: TestAgent) -> None:
    """What may be wrong with it is said: a path that is missing, doubled, or another one."""
    own = f"{OTLP}_TRACES_ENDPOINT"
    missing = await problem_of("otlp", "Answer", {own: test_agent.url})
    doubled = await problem_of("otlp", "Answer", {own: test_agent.url + "/v1/traces" * 2})
    before = await problem_of(f"otlp+{test_agent.url}/prefix", "Answer")

    assert missing.startswith(
        f"it takes nothing at / (404); look at the address in {own}: /v1/traces is missing at its"
    )
    assert "(404); look at" in doubled
    assert f"{own}: /v1/traces stands in it twice" in doubled
    assert "look at the address in --to: what stands before /v1/traces" in before


@pytest.fixture
def authority() -> trustme.CA:
    """Somebody who issues certificates, whom nobody knows."""
    return trustme.CA(organization_name="The Authority")


async def served_with_tls(
    nursery: trio.Nursery, endpoint: LoopbackEndpoint, context: ssl.SSLContext
) -> str:
    """Have *endpoint* answer behind TLS too; the URL."""

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:  # who does not believe it leaves
            return
        await endpoint.serve(stream)  # type: ignore[arg-type]  # it is as good as a socket

    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
    listener = listeners[0].transport_listener
    assert isinstance(listener, trio.SocketListener)
    return f"https://127.0.0.1:{listener.socket.getsockname()[1]}"


@pytest.fixture
async def https(
    nursery: trio.Nursery, endpoint: LoopbackEndpoint, authority: trustme.CA
) -> LoopbackEndpoint:
    """The same endpoint behind TLS, with a certificate for 127.0.0.1 by that authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", common_name="The Collector").configure_cert(context)
    endpoint.url = await served_with_tls(nursery, endpoint, context)
    return endpoint


async def test_a_certificate_that_nobody_vouches_for(https: LoopbackEndpoint) -> None:
    """It is named, with who issued it, and with the variables that say whom to trust."""
    problem = await problem_of(f"otlp+{https.url}", "Answer")

    assert problem.startswith("its certificate is not trusted: ")
    assert "(the certificate of The Collector, issued by The Authority)" in problem
    assert "trusted is what is in the operating system's trust store" in problem
    assert problem.endswith(f"name that with {OTLP}_CERTIFICATE or SSL_CERT_FILE")


async def test_a_certificate_that_a_variable_vouches_for(
    https: LoopbackEndpoint, authority: trustme.CA, tmp_path: Path
) -> None:
    """All is well then. A file with others is named, and so is one that cannot be used."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    to, variable = f"otlp+{https.url}", f"{OTLP}_CERTIFICATE"
    steps = await steps_to(to, {variable: str(tmp_path / "ca.pem")})
    other = await problem_of(to, "Answer", {variable: str(tmp_path / "other.pem")})
    for name in (variable, f"{OTLP}_CLIENT_CERTIFICATE"):
        missing = await problem_of(to, "Answer", {name: str(tmp_path / "none.pem")})
        assert "none.pem" in missing
        assert f"correct the one of {OTLP}_CERTIFICATE, " in missing

    assert [step.name for step in steps] == ["Name", "Connection", "TLS", "Answer"]
    assert steps[2].found == "the certificate of The Collector, issued by The Authority"
    assert (steps[3].found, steps[3].problem) == ("200", "")
    assert f"trusted is what is in {tmp_path / 'other.pem'}" in other


async def test_a_certificate_that_the_system_vouches_for(
    https: LoopbackEndpoint,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the other variable has it that is named."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    steps = await steps_to(f"otlp+{https.url}")

    assert [step.problem for step in steps] == [""] * 4


async def test_a_certificate_for_another_name(
    https: LoopbackEndpoint, authority: trustme.CA, tmp_path: Path
) -> None:
    """Then it is the address that is wrong."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    to = f"otlp+{https.url}".replace("127.0.0.1", "localhost")
    problem = await problem_of(to, "Answer", {f"{OTLP}_CERTIFICATE": str(tmp_path / "ca.pem")})

    assert "mismatch" in problem
    assert problem.endswith("use the name in --to that the certificate is for")


async def test_tls_where_there_is_none(endpoint: LoopbackEndpoint) -> None:
    """It is found out before anything is posted."""
    to = f"otlp+{endpoint.url}".replace("http", "https")
    problem = await problem_of(to, "TLS")

    assert "does not agree on TLS" in problem
    assert problem.endswith("if it speaks none, write http in the place of https in --to")
    assert endpoint.requests == []


async def test_a_server_that_wants_a_certificate(
    nursery: trio.Nursery, endpoint: LoopbackEndpoint, authority: trustme.CA, tmp_path: Path
) -> None:
    """It gets the one that a variable names, and without one does not agree."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where it is asked for before anything else
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    url = await served_with_tls(nursery, endpoint, context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("us").private_key_and_cert_chain_pem.write_to_path(tmp_path / "us.pem")
    trusting = {f"{OTLP}_CERTIFICATE": str(tmp_path / "ca.pem")}
    ours = f"{OTLP}_CLIENT_CERTIFICATE"
    steps = await steps_to(f"otlp+{url}", {**trusting, ours: str(tmp_path / "us.pem")})
    without = await problem_of(f"otlp+{url}", "TLS", trusting)

    assert [step.problem for step in steps] == [""] * 4
    assert "does not agree on TLS (" in without


async def test_no_tls_where_there_is(https: LoopbackEndpoint) -> None:
    """A server of TLS breaks off what is no handshake."""
    to = f"otlp+{https.url}".replace("https", "http")
    problem = await problem_of(to, "Answer")

    assert "or one that speaks TLS (https)" in problem


async def test_an_endpoint_of_the_apps_own(receiver: Receiver) -> None:
    """A receiver takes the empty batch, and has no session of it; others may refuse it."""
    decision = resolve("mine", None, {"MINE_TELEMETRY_URL": receiver.url})
    steps = await examine(of_endpoint(decision, None), {})

    assert (steps[-1].found, steps[-1].problem) == ("200", "")


async def test_a_proxy_is_what_is_connected_to(
    endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own name is looked up, and not that of what is behind it; unless it is an exception."""
    monkeypatch.setenv("http_proxy", endpoint.url)
    monkeypatch.setenv("no_proxy", "")
    target = of_system(system_of("otlp+http://behind.invalid", {}, app="mine"))
    proxies = {"http": endpoint.url}
    steps = await examine(target, proxies)
    direct = await examine(target, {**proxies, "no": "example.com, .invalid"})
    [port] = free_ports(1)
    nobody = await examine(target, {"all": f"127.0.0.1:{port}"})
    unusable = await examine(target, {"http": "http://h:port"})

    assert [step.problem for step in steps] == [""] * 3
    assert steps[1].found == f"to {endpoint.url.removeprefix('http://')}"
    assert [request.target for request in endpoint.requests] == [
        "http://behind.invalid/v1/traces",
    ]
    assert "'behind.invalid' does not resolve" in direct[-1].problem
    assert nobody[-1].problem.startswith(f"nothing listens at 127.0.0.1:{port}; start it there")
    assert nobody[-1].problem.endswith("correct the address in ALL_PROXY")
    assert "'behind.invalid' does not resolve" in unusable[-1].problem


async def test_this_machine_is_reached_without_a_proxy(endpoint: LoopbackEndpoint) -> None:
    """As agents reach it."""
    target = of_system(system_of(f"otlp+{endpoint.url}", {}, app="mine"))
    steps = await examine(target, {"http": "http://proxy.invalid"})

    assert [step.problem for step in steps] == [""] * 3


async def test_a_connection_that_takes_too_long() -> None:
    """Is given up, with what may be in between."""
    step = await _connect(_Hop("127.0.0.1", 1, "--to"), 0)

    assert step.problem.startswith("127.0.0.1:1 does not answer within 0 s; a firewall may be in")


def test_why_a_connection_fails() -> None:
    """It is looked for in what several attempts came to; a refusal goes without saying."""

    def reason(*errors: OSError) -> str:
        error = OSError("all attempts failed")
        error.__cause__ = ExceptionGroup("attempts", errors)
        return _unless_refused(error)

    assert reason(ConnectionRefusedError(111, "refused"), OSError(101, "unreachable")) == ""
    assert reason(OSError(101, "unreachable")) == " ([Errno 101] unreachable)"
    assert _unless_refused(OSError(101, "unreachable")) == " ([Errno 101] unreachable)"


def test_a_host_is_shown_with_its_port() -> None:
    """In brackets where it is an address with colons."""
    assert str(_Hop("h", 1, "")) == "h:1"
    assert str(_Hop("::1", 1, "")) == "[::1]:1"
