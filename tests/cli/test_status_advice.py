"""What a test of a destination comes to, in words."""

from __future__ import annotations

import pytest

from trimaran._account import Account
from trimaran._decision import resolve
from trimaran._transport import Answer
from trimaran.cli._system import system_of
from trimaran.cli.status_advice import of_answer, of_failure, of_silence
from trimaran.cli.status_target import Target, of_endpoint, of_system

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


def otlp(to: str = "otlp+http://h:4318", **environ: str) -> Target:
    """A destination."""
    return of_system(system_of(to, environ, app="mine"))


def endpoint() -> Target:
    """An app's own one, of an account."""
    account = Account("https://h", "")
    return of_endpoint(resolve("mine", account, {}), "sesame")


@pytest.mark.parametrize("status", [200, 202])
def test_all_is_well(status: int) -> None:
    """With any success."""
    assert of_answer(Answer(status), otlp()) == ""


@pytest.mark.parametrize("status", [400, 422])
def test_nothing_may_be_refused(status: int) -> None:
    """An endpoint may want no batch without events, where OTLP takes a request without spans."""
    assert of_answer(Answer(status), endpoint()) == ""
    assert of_answer(Answer(status), otlp()) == f"it refuses what it is sent ({status})"


def test_a_page_is_no_answer() -> None:
    """Some servers show one under any address."""
    said = of_answer(Answer(200, body=b"\n<!doctype html>"), otlp())

    assert said == (
        "what answers shows pages to people, and is none to send to; look at the address in --to"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(301), "it redirects (301), which is not followed; look at the address in --to"),
        (Answer(429), "it is there, but takes nothing at the moment (429); try again later"),
        (Answer(503), "it is there, but takes nothing at the moment (503); try again later"),
        (
            Answer(405),
            "it takes nothing at /v1/traces (405); look at the address in --to: the port",
        ),
        (
            Answer(415),
            "it does not take application/x-protobuf (415); set OTEL_EXPORTER_OTLP_PROTOCOL to",
        ),
        (
            Answer(422, body=b'{"loc": ["header", "x-mlflow-experiment-id"]}'),
            "it is MLflow, and wants to know for which experiment (422); put x-mlflow-experiment-",
        ),
        (Answer(418), "it refuses what it is sent (418)"),
    ],
)
def test_what_is_wrong_and_what_to_do(answer: Answer, said: str) -> None:
    """For each kind of answer."""
    assert of_answer(answer, otlp()).startswith(said)


def test_keys() -> None:
    """Where a key belongs, and whether there is one."""
    with_key = otlp(**{HEADERS: "api-key=sesame"})

    assert of_answer(Answer(401), otlp()) == f"it wants a key (401), which belongs into {HEADERS}"
    assert of_answer(Answer(403), with_key) == (
        f"it does not take the key (403); correct it in {HEADERS}"
    )
    assert of_answer(Answer(401), endpoint()) == (
        "it does not take the key (401); correct it in the file that --credentials names"
    )
    assert "sesame" not in repr(with_key) + repr(endpoint())


@pytest.mark.usefixtures("without_extra_otlp")
def test_a_servers_own_words_without_the_extra() -> None:
    """JSON and plain text are read all the same."""
    target = otlp(**{PROTOCOL: "http/json"})

    assert 'It says: "no"' in of_answer(Answer(400, body=b'{"message": "no"}'), target)
    assert 'It says: "no"' in of_answer(Answer(400, body=b"no"), target)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"code": 3, "message": "no such project"}', '. It says: "no such project"'),
        (b"\x08\x03\x12\x0fno such project", '. It says: "no such project"'),
        (b"no\n such\tproject ", '. It says: "no such project"'),
        (b"mail me@example.com\x1b[2J", '. It says: "mail '),
        (b"x" * 1_000, f'. It says: "{"x" * 200}"'),
        (b"", ""),
        (b"\xff\xfe", ""),
        (b"<html>no such project</html>", ""),
    ],
)
def test_a_servers_own_words(body: bytes, words: str) -> None:
    """They are repeated where they are words: masked, cut, and without what a terminal obeys."""
    said = of_answer(Answer(400, body=body), otlp())

    assert said.startswith(f"it refuses what it is sent (400){words}")
    assert "me@example.com" not in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "ConnectError: CERTIFICATE_VERIFY_FAILED: certificate has expired",
            "its certificate is not trusted: certificate has expired (theirs); who runs it has to",
        ),
        (
            "ConnectError: CERTIFICATE_VERIFY_FAILED: certificate is not yet valid",
            "its certificate is not trusted: certificate is not yet valid (theirs); who runs it",
        ),
        (
            "a proxy variable cannot be used: InvalidURL",
            "a proxy variable cannot be used: InvalidURL; see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY",
        ),
        ("ProxyError", "ProxyError; see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"),
        ("ReadError", "it breaks off (ReadError); look at the address in --to: another program"),
        ("ConnectError: what?", "the request fails: ConnectError: what?"),
    ],
)
def test_an_attempt_without_an_answer(error: str, said: str) -> None:
    """For each way in which one ends."""
    assert of_failure(error, otlp(), "theirs").startswith(said)


def test_the_port_for_grpc() -> None:
    """By its number it is known, whatever a server does there."""
    said = of_failure("ReadError", otlp("otlp+http://h:4317"), "")

    assert said.startswith("it does not speak HTTP/1.1, as a port for gRPC does not (4317 is one)")


def test_what_breaks_off_behind_tls() -> None:
    """Is not told to speak it."""
    assert "TLS" not in of_failure("ReadError", otlp("otlp+https://h"), "")


def test_silence() -> None:
    """Says for how long it lasted."""
    assert of_silence(10.0, otlp()).startswith("no answer within 10 s; either it is too busy")
