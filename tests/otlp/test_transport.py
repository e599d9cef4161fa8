"""One batch, one request: what is sent, and what answers mean."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import structlog.testing
import trio
import trustme
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ReadSpan

import trimaran
from conftest import LoopbackEndpoint, Received
from patience import PATIENCE
from trimaran.otlp import MLFLOW, OtlpSettings, OtlpTransport
from trimaran.otlp.transport import _MOST_SESSIONS

Open = Callable[..., OtlpTransport]


@pytest.fixture
async def opened(endpoint: LoopbackEndpoint) -> AsyncIterator[Open]:
    """Opens transports to the endpoint, which are closed after the test."""
    transports: list[OtlpTransport] = []

    def open_one(**settings: Any) -> OtlpTransport:
        transport = OtlpTransport(
            OtlpSettings.from_environ({}, **{"endpoint": endpoint.url, **settings})
        )
        transports.append(transport)
        return transport

    yield open_one
    for transport in transports:
        await transport.aclose()


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    """What the library logs."""
    with structlog.testing.capture_logs() as lines:
        yield cast("list[dict[str, Any]]", lines)


def batch(*events: dict[str, Any], session_id: str = "ses_1", **headers: str) -> trimaran.Request:
    """A request with these events, as the sender makes them."""
    body: dict[str, Any] = {
        "session_id": session_id,
        "cli_version": "0.5.7",
        "user_email": "",
        "project_id": "p",
        "timestamp": 9_000,
        "events": events or [{"type": "command", "timestamp": 1_000, "command_name": "init"}],
    }
    return trimaran.Request(
        "https://origin.example.com/api/observability/ingest",
        {"idempotency-key": "key_1", **headers},
        msgspec.json.encode(body),
        len(body["events"]),
    )


def spans_in(request: Received) -> list[ReadSpan]:
    """The spans of a request in protobuf and gzip."""
    read = ExportTraceServiceRequest.FromString(gzip.decompress(request.body))
    return list(read.resource_spans[0].scope_spans[0].spans)


async def test_a_batch_is_posted_as_protobuf_with_gzip(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """Under the signal's path, with the headers of the settings."""
    transport = opened(headers={"Api-Key": "s3cret"}, service_name="altimate")

    assert await transport.attempt(batch()) == trimaran.Answer(200)

    [request] = endpoint.requests
    assert request.target == "/v1/traces"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["api-key"] == "s3cret"
    [span] = spans_in(request)
    assert span.name == "command init"
    [group] = ExportTraceServiceRequest.FromString(gzip.decompress(request.body)).resource_spans
    resource = {each.key: each.value.string_value for each in group.resource.attributes}
    assert resource["service.name"] == "altimate"
    assert resource["service.version"] == "0.5.7"
    assert "host.name" not in resource


async def test_the_accounts_token_stays_at_home(opened: Open, endpoint: LoopbackEndpoint) -> None:
    """Nothing of the origin's headers goes to another system."""
    await opened().attempt(batch(authorization="Bearer s3cret"))

    [request] = endpoint.requests
    assert "authorization" not in request.headers
    assert "idempotency-key" not in request.headers
    assert "s3cret" not in str(request)


@pytest.mark.parametrize("signal", ["traces", "logs"])
async def test_json_without_compression(
    signal: str, opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """By choice, of both signals."""
    transport = opened(signal=signal, encoding="json", compression="none")

    assert (await transport.attempt(batch())).status == 200

    [request] = endpoint.requests
    assert request.target == f"/v1/{signal}"
    assert request.headers["content-type"] == "application/json"
    assert "content-encoding" not in request.headers
    [group] = msgspec.json.decode(request.body).values()
    assert group[0]["resource"]["attributes"]


async def test_log_records_name_their_events(opened: Open, endpoint: LoopbackEndpoint) -> None:
    """Each event has one; those of a session's start and end name its root."""
    events = [{"type": "session_start"}, {"type": "error", "error_message": "no"}]
    events.append({"type": "session_end"})

    await opened(signal="logs", open_root=False).attempt(batch(*events))

    body = gzip.decompress(endpoint.requests[0].body)
    records = ExportLogsServiceRequest.FromString(body).resource_logs[0].scope_logs[0].log_records
    names = [record.event_name for record in records]
    assert names == ["trimaran.session_start", "trimaran.error", "trimaran.session_end"]
    assert [record.severity_number for record in records] == [9, 17, 9]
    assert records[1].body.string_value == "no"
    assert records[0].span_id == records[2].span_id != records[1].span_id


async def test_a_repeated_batch_is_the_same_request(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """Also from another transport, which is another process: byte for byte."""
    request = batch({"type": "command"}, {"type": "tool_call"})
    first, second = opened(), opened()

    for transport in (first, first, second):
        await transport.attempt(request)

    bodies = [gzip.decompress(received.body) for received in endpoint.requests]
    assert bodies[0] == bodies[1] == bodies[2]


async def test_the_end_of_a_session_knows_how_it_began(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """Though that was in an earlier batch."""
    transport = opened(dialect=MLFLOW)
    start = {"type": "session_start", "timestamp": 1_000, "agent": "build"}

    await transport.attempt(batch(start))
    await transport.attempt(batch({"type": "session_end", "timestamp": 5_000}))

    [first], [last] = map(spans_in, endpoint.requests)
    assert first.span_id == last.span_id
    assert first.name == last.name == "invoke_agent build"
    assert first.start_time_unix_nano == last.start_time_unix_nano


async def test_how_sessions_began_is_remembered_to_a_bound(opened: Open) -> None:
    """The one whose beginning was heard of last stays."""
    transport = opened()

    for number in range(_MOST_SESSIONS + 10):
        transport.encoded(batch({"type": "session_start"}, session_id=f"ses_{number}"))

    assert len(transport._begun) == _MOST_SESSIONS
    assert f"ses_{_MOST_SESSIONS + 9}" in transport._begun


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (204, 200),
        (301, 301),
        (400, 400),
        (401, 401),
        (404, 404),
        (408, 422),
        (413, 413),
        (429, 429),
        (500, 422),
        (501, 501),
        (502, 502),
        (503, 503),
        (504, 504),
    ],
)
async def test_what_an_answer_means(
    status: int, expected: int, opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """OTLP forbids to try again after 408 and 500; the sender would."""
    endpoint.next(status, headers=(("retry-after", "7"),))

    answer = await opened().attempt(batch())

    assert answer.status == expected
    assert answer.retry_after == (None if status < 300 else "7")


def partly(refused: int, message: str = "") -> bytes:
    """A partial success."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = refused
    response.partial_success.error_message = message
    return response.SerializeToString()


@pytest.mark.parametrize(("refused", "expected"), [(1, [2]), (2, [1, 2]), (99, [0, 1, 2])])
async def test_a_partial_success_names_as_many_events(
    refused: int,
    expected: list[int],
    opened: Open,
    endpoint: LoopbackEndpoint,
    told: list[dict[str, Any]],
) -> None:
    """The last ones: which they are, OTLP does not say. The server's message is told."""
    endpoint.next(200, body=partly(refused, "too old"))

    answer = await opened().attempt(batch(*[{"type": "command"}] * 3))

    assert answer.status == 207
    assert [each["index"] for each in msgspec.json.decode(answer.body)["rejected"]] == expected
    [line] = told
    assert line["event"] == "telemetry destination objects"
    assert (line["message"], line["rejected"]) == ("too old", refused)


@pytest.mark.parametrize(("refused", "expected"), [(1, [1, 2]), (2, [0, 1, 2]), (3, [0, 1, 2])])
async def test_a_root_that_is_refused_is_two_events(
    refused: int, expected: list[int], opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """Start and end in one batch are one span, where a root replaces itself."""
    endpoint.next(200, body=partly(refused))
    events = [{"type": "session_start"}, {"type": "command"}, {"type": "session_end"}]

    answer = await opened(dialect=MLFLOW).attempt(batch(*events))

    assert len(spans_in(endpoint.requests[0])) == 2
    assert [each["index"] for each in msgspec.json.decode(answer.body)["rejected"]] == expected


async def test_a_partial_success_in_json_counts_as_well(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """Though protobuf was sent."""
    endpoint.next(200, body=b'{"partialSuccess":{"rejectedSpans":"1"}}')

    answer = await opened().attempt(batch())

    assert msgspec.json.decode(answer.body) == {"rejected": [{"index": 0}]}


async def test_a_warning_refuses_nothing(
    opened: Open, endpoint: LoopbackEndpoint, told: list[dict[str, Any]]
) -> None:
    """A message alone is told, and the batch is delivered."""
    endpoint.next(200, body=partly(0, "use the newer endpoint"))

    assert await opened().attempt(batch()) == trimaran.Answer(200)
    assert told[0]["message"] == "use the newer endpoint"


async def test_a_207_is_looked_into_as_otlp_has_it(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """The sender would read the origin's words in it."""
    endpoint.next(207, body=b'{"rejected":[{"index":0}]}')

    assert await opened().attempt(batch()) == trimaran.Answer(200)


async def test_a_refusal_tells_why(
    opened: Open, endpoint: LoopbackEndpoint, told: list[dict[str, Any]]
) -> None:
    """In the server's words, to a bound."""
    message = b'{"code":3,"message":"' + b"x" * 2_000 + b'"}'
    endpoint.next(400, body=message)

    await opened(encoding="json").attempt(batch())

    assert told[0]["status"] == 400
    assert told[0]["message"] == "x" * 500


async def test_what_is_no_batch_is_refused(
    opened: Open, endpoint: LoopbackEndpoint, told: list[dict[str, Any]]
) -> None:
    """Without asking anybody: a body that the disk garbled is not worth a second try."""
    request = trimaran.Request("https://origin.example.com", {}, b"{", 3)

    assert (await opened().attempt(request)).status == 422
    assert endpoint.requests == []
    assert told[0]["event"] == "telemetry batch unreadable"


async def test_a_request_beyond_the_bound_is_to_be_halved(
    opened: Open, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What servers need not take is not sent."""
    monkeypatch.setattr("trimaran.otlp.transport.MOST_BYTES", 100)

    assert (await opened().attempt(batch())).status == 413
    assert endpoint.requests == []


async def test_a_request_that_takes_too_long_is_an_error(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """By the timeout of the settings; the next one works."""
    endpoint.next(200, delay=60)
    transport = opened(timeout=0.05)

    with pytest.raises(trimaran.TransportError, match=r"no answer within 0\.05 s"):
        await transport.attempt(batch())
    assert (await opened().attempt(batch())).status == 200


async def test_a_server_that_is_not_there_is_an_error(opened: Open) -> None:
    """Of the kind that the sender waits out; nothing is said of certificates."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()

    with pytest.raises(trimaran.TransportError, match="ConnectError") as caught:
        await opened(endpoint=f"http://127.0.0.1:{port}").attempt(batch())
    assert "CERTIFICATE" not in str(caught.value)


async def test_many_attempts_open_one_client(opened: Open, endpoint: LoopbackEndpoint) -> None:
    """It reads certificates, which takes a while: once for all of them."""
    transport = opened()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(transport.attempt, batch())

    assert len(endpoint.requests) == 20
    await transport.aclose()
    assert (await transport.attempt(batch())).status == 200


async def test_problems_of_the_environment_are_told(
    endpoint: LoopbackEndpoint, told: list[dict[str, Any]]
) -> None:
    """All of them, with the first attempt."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.url,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "x",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    transport = OtlpTransport(environ=environ)

    for _ in range(2):
        await transport.attempt(batch())
    await transport.aclose()

    [line] = told
    assert line["event"] == "telemetry setting ignored"
    assert "OTEL_EXPORTER_OTLP_TIMEOUT: not a number" in line["problem"]
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: not one of" in line["problem"]


async def test_without_an_endpoint_that_can_be_used_nothing_is_sent(
    endpoint: LoopbackEndpoint, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the default either, although it is there; all is counted, and one line says why."""
    monkeypatch.setattr("trimaran.otlp.environment._DEFAULT_ENDPOINT", endpoint.url)
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cret",
    }
    transport = OtlpTransport(environ=environ)
    async with trimaran.open_telemetry(
        "test", environ={}, destinations=[trimaran.Destination(name="traces", transport=transport)]
    ) as telemetry:
        async with telemetry.session(announce=False) as session:
            for _ in range(3):
                session.command("init")
    await transport.aclose()

    assert endpoint.requests == []
    assert session.statistics().dropped == {trimaran.DropReason.REJECTED: 3}
    assert repr(transport) == "<OtlpTransport: traces to nowhere>"
    assert transport.blueprint is None
    [problem] = [line["problem"] for line in told if "problem" in line]
    assert problem.startswith("OTEL_EXPORTER_OTLP_ENDPOINT does not start with")
    assert [line["hint"] for line in told if "hint" in line] == ["nothing is sent"]


async def test_it_shows_where_it_sends(opened: Open, endpoint: LoopbackEndpoint) -> None:
    """And no header."""
    shown = repr(opened(headers={"api-key": "s3cret"}))

    assert shown == f"<OtlpTransport: traces to {endpoint.url}/v1/traces>"


async def test_a_session_counts_what_a_server_refuses(
    opened: Open, endpoint: LoopbackEndpoint
) -> None:
    """Through the whole pipeline: a partial success, a final 500, one that passes."""
    endpoint.next(200, body=partly(2))
    endpoint.next(503)
    endpoint.next(200)
    endpoint.next(500)
    async with trimaran.open_telemetry(
        "test",
        environ=endpoint.environ(),
        transport=opened(),
        settings=trimaran.Settings(retry_initial=0.01, drain_timeout=PATIENCE),
    ) as telemetry:
        async with telemetry.session(announce=False) as session:
            for _ in range(3):
                for _ in range(5):
                    session.command("init")
                await session.flush()

    statistics = session.statistics()
    assert statistics.delivered == 3 + 5
    assert statistics.dropped == {trimaran.DropReason.REJECTED: 2 + 5}
    assert len(endpoint.requests) == 4


class TlsServer:
    """A server with a certificate of a made-up authority's, which wants one of its clients."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        authority = trustme.CA()
        self._nursery = nursery
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        authority.configure_trust(self._context)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self.authority = str(directory / "authority.pem")
        authority.cert_pem.write_to_path(self.authority)
        own = authority.issue_cert("agent@example.com")
        self.certificate, self.key = str(directory / "own.pem"), str(directory / "own.key")
        own.cert_chain_pems[0].write_to_path(self.certificate)
        own.private_key_pem.write_to_path(self.key)

    async def url(self) -> str:
        """Where it listens, from now on."""
        serve = partial(
            trio.serve_ssl_over_tcp,
            self._answer,
            0,
            self._context,
            host="127.0.0.1",
        )
        [listener] = await self._nursery.start(serve)
        port = listener.transport_listener.socket.getsockname()[1]
        return f"https://127.0.0.1:{port}"

    async def _answer(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            received = await stream.receive_some()
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await trio.sleep_forever()
        except trio.BrokenResourceError:
            return


@pytest.fixture
def tls(tmp_path: Path, nursery: trio.Nursery) -> TlsServer:
    """A server that speaks TLS."""
    return TlsServer(tmp_path, nursery)


async def test_certificates_of_ones_own(tls: TlsServer, opened: Open) -> None:
    """Both sides are checked: an authority's that nobody else knows, and the client's."""
    transport = opened(
        endpoint=await tls.url(),
        certificate=tls.authority,
        client_certificate=tls.certificate,
        client_key=tls.key,
    )

    assert (await transport.attempt(batch())).status == 200


async def test_a_certificate_that_nobody_vouches_for(tls: TlsServer, opened: Open) -> None:
    """The error says where trust was looked for, and which variable changes that."""
    transport = opened(endpoint=await tls.url())

    with pytest.raises(
        trimaran.TransportError, match=r"trust store.*_CERTIFICATE or SSL_CERT_FILE names"
    ):
        await transport.attempt(batch())


@pytest.mark.parametrize("what", ["certificate", "client_certificate"])
async def test_a_file_that_cannot_be_read_is_named(what: str, opened: Open, tmp_path: Path) -> None:
    """It is an errored attempt: the file may be there later."""
    transport = opened(**{what: str(tmp_path / "missing.pem")})

    with pytest.raises(trimaran.TransportError, match=r"missing\.pem: No such file"):
        await transport.attempt(batch())


async def test_a_file_that_is_no_certificate_is_named(opened: Open, tmp_path: Path) -> None:
    """As well."""
    (tmp_path / "empty.pem").write_text("")

    with pytest.raises(trimaran.TransportError, match=r"empty\.pem"):
        await opened(certificate=str(tmp_path / "empty.pem")).attempt(batch())
