"""What a test of a destination comes to, in words that a person can act on.

In: an answer, or how an attempt failed, and what was tried. Out: sentences.
Does not know: networks. It opens nothing.

No header's value is in what it says; what a server says is masked, cut, and made printable.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from trimaran._pipeline.words import words_of
from trimaran._transport import Answer
from trimaran.cli._system import EXPERIMENT_HEADER
from trimaran.cli._terminal import printable
from trimaran.cli.status_target import Target
from trimaran.otlp.form import form_of, problem_with_form

__all__ = ["of_answer", "of_failure", "of_silence"]

_GRPC_PORT = 4317
"""Where OTLP is spoken over gRPC, by convention; over HTTP it is at 4318."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})

_NO_HTTP = ("illegal status line", "illegal request line", "malformed data")
"""What the client says of bytes that are no HTTP/1.1, but HTTP/2, say."""

_BROKEN_OFF = ("RemoteProtocolError", "ReadError", "WriteError")


def of_answer(answer: Answer, target: Target) -> str:
    """What is wrong, if the destination answers so, and what to do; "" if nothing is."""
    status = answer.status
    if _is_page(answer) and status < 300:
        return f"what answers shows pages to people, and is none to send to; {_look_at(target)}"
    if 200 <= status < 300 or (target.may_refuse_nothing and status in {400, 422}):
        return ""
    if EXPERIMENT_HEADER.encode() in answer.body:
        return (
            f"it is MLflow, and wants to know for which experiment ({status}); put "
            f"{EXPERIMENT_HEADER}=0 into {target.credential}, or the number of another one"
        )
    return f"{_refusal(answer, target)}{_words_of(answer)}"


def _refusal(answer: Answer, target: Target) -> str:
    status = answer.status
    if 300 <= status < 400:
        return (
            f"it redirects ({status}), which is not followed; {_look_at(target)}: https in the "
            "place of http, perhaps"
        )
    if status in _BUSY:
        return (
            f"it is there, but takes nothing at the moment ({status}); try again later. What is "
            "sent meanwhile waits, and is sent again"
        )
    match status:
        case 401 | 403 if target.has_credential:
            return f"it does not take the key ({status}); correct it in {target.credential}"
        case 401 | 403:
            return f"it wants a key ({status}), which belongs into {target.credential}"
        case 404 | 405:
            return _path_problem(status, target)
        case 415:
            return (
                f"it does not take {target.request.headers['content-type']} ({status}); set "
                "OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, which all take"
            )
        case _:
            return f"it refuses what it is sent ({status})"


def _path_problem(status: int, target: Target) -> str:
    """Nobody takes anything at the path of the URL: what may be wrong with it."""
    path = urlsplit(target.url).path
    found = f"it takes nothing at {path or '/'} ({status}); {_look_at(target)}"
    if path.count(target.path) > 1:
        return f"{found}: {target.path} stands in it twice"
    if not path.endswith(target.path):
        return f"{found}: {target.path} is missing at its end"
    if path != target.path:
        return f"{found}: what stands before {target.path}"
    return f"{found}: the port, or what has to stand before {target.path}"


def of_failure(error: str, target: Target, shown: str) -> str:
    """What is wrong if an attempt ends with *error*, as the transport says it.

    *shown* is the certificate that the server has, as a person would call it; "" for none.
    """
    parts = urlsplit(target.url)
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return _distrust(error.rpartition(": ")[2], target, shown)
    if "a certificate cannot be used" in error:
        return (
            f"{error}; correct the one of OTEL_EXPORTER_OTLP_CERTIFICATE, "
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY that names it"
        )
    if "proxy variable" in error or error.startswith("ProxyError"):
        return f"{error}; see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"
    if parts.port == _GRPC_PORT or any(sign in error for sign in _NO_HTTP):
        return (
            f"it does not speak HTTP/1.1, as a port for gRPC does not ({_GRPC_PORT} is one); "
            f"{_look_at(target)}: OTLP over HTTP has a port of its own, mostly 4318"
        )
    if error.startswith(_BROKEN_OFF):
        return (
            f"it breaks off ({error}); {_look_at(target)}: another program may listen at that "
            f"port{', or one that speaks TLS (https)' if parts.scheme == 'http' else ''}"
        )
    return f"the request fails: {error}"


def of_silence(seconds: float, target: Target) -> str:
    """What is wrong if there is no answer within as many *seconds*."""
    return (
        f"no answer within {seconds:g} s; either it is too busy, or it is no server of HTTP; "
        f"{_look_at(target)}"
    )


def _distrust(reason: str, target: Target, shown: str) -> str:
    """What is wrong with a server's certificate."""
    what = f"its certificate is not trusted: {reason}{f' ({shown})' if shown else ''}"
    if "mismatch" in reason:
        return f"{what}; use the name in {target.address} that the certificate is for"
    if "expired" in reason or "not yet valid" in reason:
        return f"{what}; who runs it has to renew it, or the clock of this machine is wrong"
    trusted = target.certificate or "the operating system's trust store"
    return (
        f"{what}; trusted is what is in {trusted}. If it is the right one, put the certificate of "
        f"who issued it into a file, and name that with {target.trust}"
    )


def _look_at(target: Target) -> str:
    return f"look at the address in {target.address}"


def _is_page(answer: Answer) -> bool:
    return answer.body.lstrip()[:1] == b"<"


def _words_of(answer: Answer) -> str:
    """The server's own words, in brackets behind a sentence; "" where it has none to speak of."""
    said = answer.body
    if problem_with_form("protobuf") is None:
        said = form_of("protobuf").message_of_status(said).encode() or said
    words = printable(words_of(said))
    return f'. It says: "{words}"' if words else ""
