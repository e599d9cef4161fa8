"""Transports over OTLP behind a relay: what it is told, keeps, and sends in their place."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from conftest import LoopbackEndpoint, Received, Reply
from patience import PATIENCE
from trimaran._relay import server as server_module
from trimaran._relay.made import (
    Made,
    SecretHeaders,
    account_of,
    bound_to,
    made_from,
    problem_with_made,
    sealed,
    shown,
)
from trimaran._relay.outlet import problem_with
from trimaran._transport import blueprint_of
from trimaran.langfuse import langfuse_transport
from trimaran.otlp import LANGFUSE, PLAIN, Dialect, OtlpSettings, OtlpTransport, Shape
from trimaran.otlp.blueprint import settings_from
from trimaran.testing import ScriptedTransport

from .test_agents import Problems, Relayed, say
from .test_agents import relayed as relayed  # a fixture  # noqa: PLC0414
from .world import until

KEY = "sk-lf-this-is-never-on-a-disk"


def otlp(url: str, key: str = KEY, **named: Any) -> OtlpTransport:
    """A transport whose every request says *key*, if there is one."""
    headers = {"Authorization": f"Basic {key}"} if key else {}
    named = {"headers": headers, "encoding": "json", **named}
    return OtlpTransport(OtlpSettings.from_environ({}, endpoint=url, **named))


def with_key(request: Received) -> Reply:
    """The rule of an endpoint that wants the key."""
    return Reply(200 if request.headers.get("authorization") == f"Basic {KEY}" else 401)


def spans(endpoint: LoopbackEndpoint) -> list[dict[str, Any]]:
    """The spans that were taken, in order of arrival."""
    return [
        span
        for request in endpoint.requests
        if endpoint.rule(request).status == 200
        for group in json.loads(gzip.decompress(request.body))["resourceSpans"]
        for scope in group["scopeSpans"]
        for span in scope["spans"]
    ]


def resource(endpoint: LoopbackEndpoint) -> dict[str, Any]:
    """What the last request says of who sends."""
    (group,) = json.loads(gzip.decompress(endpoint.requests[-1].body))["resourceSpans"]
    return {each["key"]: each["value"] for each in group["resource"]["attributes"]}


def on_disk(directory: Path) -> bytes:
    """Every byte of every file in a directory."""
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


@asynccontextmanager
async def beside(
    relayed: Relayed, transport: trimaran.Transport, *, name: str = "traces", **named: Any
) -> AsyncIterator[trimaran.Telemetry]:
    """An agent without an endpoint, and with one destination."""
    destination = trimaran.Destination(name=name, transport=transport)
    try:
        async with relayed.agent("", destinations=[destination], **named) as telemetry:
            yield telemetry
    finally:
        await transport.aclose()


async def test_both_wires_go_through_one_relay(
    relayed: Relayed, endpoint: LoopbackEndpoint, beside: LoopbackEndpoint
) -> None:
    """The origin's batches go to the endpoint and spans to OTLP, each once, and with its own
    headers; the relay names both without the key.
    """
    beside.rule = with_key
    transport = otlp(beside.url)
    problems: Problems = []
    async with (
        relayed.agent(
            endpoint.url,
            trimaran.StaticAccount(endpoint.url, "token-of-ann", email="ann@x.test"),
            destinations=[trimaran.Destination(name="traces", transport=transport)],
            problems=problems,
            batch_events=3,
        ) as telemetry,
        telemetry.session(session_id="s", announce=False) as session,
    ):
        for number in range(100):
            session.command(str(number))
        assert await session.flush(timeout=PATIENCE)
        each = session.statistics().destinations
    await until(lambda: len(endpoint.events) == len(spans(beside)) == 100)
    await transport.aclose()

    assert problems == []
    assert [books.handed_over for books in each.values()] == [100, 100]
    names = [f"command {number}" for number in range(100)]
    assert [span["name"] for span in spans(beside)] == names
    assert len({span["spanId"] for span in spans(beside)}) == 100
    assert {request.target for request in beside.requests} == {"/v1/traces"}
    assert {r.headers["authorization"] for r in endpoint.requests} == {"Bearer token-of-ann"}
    assert {r.headers["authorization"] for r in beside.requests} == {f"Basic {KEY}"}
    assert {
        outlet.destination: outlet.delivered for outlet in (await relayed.report()).outlets
    } == {
        f"authenticated {endpoint.url} ann@x.test": 100,
        f"traces: otlp {beside.url}/v1/traces": 100,
    }


async def test_a_transport_in_the_endpoints_place_goes_through_the_relay(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """Its headers are its own: an account's token stays where it is."""
    transport = otlp(endpoint.url)
    account = trimaran.StaticAccount("https://x.test", "token-of-ann", email="ann@x.test")
    settings = trimaran.Settings(relay=relayed.relay(), drain_timeout=PATIENCE)
    async with trimaran.open_telemetry(
        "test", account=account, environ={}, transport=transport, settings=settings
    ) as telemetry:
        assert (await say(telemetry, "s")).handed_over == 1
    await transport.aclose()
    await until(lambda: len(spans(endpoint)) == 1)

    assert endpoint.requests[0].headers["authorization"] == f"Basic {KEY}"
    assert "token-of-ann" not in str(endpoint.requests)


async def test_who_sends_is_said_of_no_wrong_process(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The resource is the agent's, but for its process, which the relay is not."""
    transport = otlp(endpoint.url, resource={"deployment.environment.name": "ci"})
    async with beside(relayed, transport) as telemetry:
        await say(telemetry, "s")
    await until(lambda: len(endpoint.requests) == 1)

    said = resource(endpoint)
    assert said["deployment.environment.name"] == {"stringValue": "ci"}
    assert said["service.name"] == {"stringValue": "test"}
    assert not [name for name in said if name.startswith("process.")]


async def test_a_restarted_relay_waits_for_the_same_keys(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """The keys are on no disk. An agent with others does not help; one with the same does,
    whatever it calls the place and says of itself there.
    """
    endpoint.always(503)
    async with beside(relayed, otlp(endpoint.url)) as telemetry:
        assert (await say(telemetry, "s", 10)).handed_over == 10
    await relayed.kill()
    left = on_disk(relayed.directory)
    assert b"command" in left
    assert KEY.encode() not in left
    assert sealed({"authorization": f"Basic {KEY}"}).encode() not in left
    endpoint.requests.clear()
    endpoint.rule = with_key

    await relayed.start()
    await relayed.waits_for_token()
    async with beside(relayed, otlp(endpoint.url, "another")) as telemetry:
        await say(telemetry, "other")
        await until(lambda: len(endpoint.requests) >= 1)
    assert spans(endpoint) == []

    transport = otlp(endpoint.url, resource={"service.instance.id": "7"})
    async with beside(relayed, transport, name="elsewhere") as telemetry:
        await say(telemetry, "t")
        await until(lambda: len(spans(endpoint)) == 11)
    names = sorted(span["name"] for span in spans(endpoint))
    assert names == sorted([*(f"command {number}" for number in range(10)), "command 0"])
    assert KEY.encode() not in on_disk(relayed.directory)


async def test_without_keys_a_restarted_relay_sends_at_once(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """A collector that wants none needs no agent."""
    endpoint.always(503)
    async with beside(relayed, otlp(endpoint.url, "")) as telemetry:
        await say(telemetry, "s", 10)
    await relayed.kill()
    endpoint.requests.clear()
    endpoint.always(200)

    await relayed.start()

    await until(lambda: len(spans(endpoint)) == 10)


async def test_keys_that_are_refused_make_batches_wait(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """Nothing is lost by a 401: it is tried again when an agent brings the keys once more."""
    endpoint.always(401)
    async with beside(relayed, otlp(endpoint.url)) as telemetry:
        await say(telemetry, "s", 3)
        await relayed.waits_for_token()
    assert len(endpoint.requests) == 1, "it is not tried again and again"

    endpoint.requests.clear()
    endpoint.rule = with_key
    async with beside(relayed, otlp(endpoint.url)) as telemetry:
        await say(telemetry, "t")
        await until(lambda: len(spans(endpoint)) == 4)


async def test_consent_withdrawn_empties_the_relay(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """What one agent handed over is removed, what others did is sent."""
    endpoint.always(503)
    is_given = True
    async with beside(relayed, otlp(endpoint.url)) as telemetry:
        await say(telemetry, "theirs", 2)
    async with beside(relayed, otlp(endpoint.url), consent=lambda: is_given) as telemetry:
        assert (await say(telemetry, "mine", 3)).handed_over == 3
        is_given = False
        await say(telemetry, "after")
    assert b'"mine"' not in on_disk(relayed.directory)
    endpoint.requests.clear()
    endpoint.rule = with_key
    await until(lambda: len(spans(endpoint)) == 2)
    with trio.fail_after(PATIENCE):
        while (await relayed.report()).outlets[0].waiting:  # noqa: ASYNC110 - the relay is asked
            await trio.sleep(0.01)

    assert len(spans(endpoint)) == 2


async def test_a_relay_that_knows_no_such_transport_is_not_used(
    relayed: Relayed, endpoint: LoopbackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One from before there were any refuses: the agent sends for itself, and says so once."""
    endpoint.rule = with_key

    def problem_of_before(destination: str) -> str | None:
        is_known = destination.startswith(("anonymous ", "authenticated "))
        return None if is_known else "it does not know the tier"

    monkeypatch.setattr(server_module, "problem_with", problem_of_before)
    problems: Problems = []
    async with beside(relayed, otlp(endpoint.url), problems=problems) as telemetry:
        books = await say(telemetry, "s", 5)

    assert (books.delivered, books.handed_over) == (5, 0)
    assert len(spans(endpoint)) == 5
    assert [problem.facts["reason"] for problem in problems] == ["it does not know the tier"]
    assert (await relayed.report()).outlets == []


class Wrapped(OtlpTransport):
    """A host's own, which does who knows what."""


class Odd(ScriptedTransport):
    """One whose attributes fail."""

    @property
    def blueprint(self) -> trimaran.Blueprint:
        """Not to be had."""
        raise RuntimeError

    @property
    def secret_headers(self) -> Mapping[str, str]:
        """Neither is this."""
        raise RuntimeError


def test_what_needs_the_hosts_own_code_has_no_blueprint() -> None:
    """A subclass, a dialect or a function of the host's cannot be made elsewhere."""
    url = "http://127.0.0.1"
    own = Dialect(name=PLAIN.name, prefix="mine.")
    computed = Shape(name="x", computed=(lambda _event: (),))
    unlike = Shape(name="x", always={"a": math.nan})
    bad_text = otlp(url, resource={"a": "\ud800"})

    assert blueprint_of(otlp(url)) is not None
    assert blueprint_of(None) is None
    assert blueprint_of(ScriptedTransport()) is None
    assert blueprint_of(Odd()) is None
    assert blueprint_of(Wrapped(OtlpSettings(url=url))) is None
    assert blueprint_of(otlp(url, dialect=own)) is None
    assert blueprint_of(otlp(url, shapes={"x": computed})) is None
    assert blueprint_of(bad_text) is None
    assert blueprint_of(otlp(url, shapes={"x": unlike})) is None, "JSON has none"
    assert blueprint_of(otlp(url, timeout=math.inf)) is None, "JSON has none"


def made_of(transport: OtlpTransport) -> Made:
    """What batches of *transport* are bound to, whoever its headers are of."""
    described = blueprint_of(transport)
    assert described is not None
    return Made(name="traces", account="", blueprint=described[0])


def test_a_transport_is_made_again_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All settings but the headers; paths are absolute, since a relay is somewhere else."""
    monkeypatch.chdir(tmp_path)
    shape = Shape(name="deploy", subject="target", always={"a": ("b", "c"), "n": 1}, own=("x",))
    settings = OtlpSettings(
        url="https://x.test/v1/logs",
        signal="logs",
        headers={"authorization": KEY},
        encoding="json",
        compression="none",
        timeout=3.5,
        certificate="ca.pem",
        client_certificate="/etc/me.pem",
        client_key="/etc/key.pem",
        service_name="me",
        resource={"z": "1", "a": "größer"},
        tags=("t", "with space"),
        dialect=LANGFUSE,
        shapes={"deployment": shape},
        open_root=False,
    )
    described = blueprint_of(OtlpTransport(settings))
    assert described is not None
    blueprint, headers = described

    expected = msgspec.structs.replace(settings, headers={}, certificate=str(tmp_path / "ca.pem"))
    assert settings_from(blueprint) == expected
    assert headers == {"authorization": KEY}
    assert KEY not in repr(blueprint)


def test_langfuse_goes_through_a_relay_too() -> None:
    """It is OTLP with headers and names of its own."""
    environ = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": KEY}
    described = blueprint_of(langfuse_transport(environ=environ))
    assert described is not None
    blueprint, headers = described

    assert settings_from(blueprint).dialect is LANGFUSE
    assert set(headers) == {"authorization", "x-langfuse-ingestion-version"}


def test_equal_transports_have_one_text() -> None:
    """In whatever order it was given: so they share what a relay keeps."""
    one = otlp("http://x.test", resource={"a": "1", "b": "2"})
    other = otlp("http://x.test", resource={"b": "2", "a": "1"})

    assert bound_to(made_of(one)) == bound_to(made_of(other))


@given(
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
    account=st.text("0123456789abcdef", max_size=32),
    settings=st.text(),
    version=st.integers(0, 10**6),
)
def test_what_batches_are_bound_to_is_read_back(
    name: str, account: str, settings: str, version: int
) -> None:
    """Whatever stands in the settings."""
    blueprint = trimaran.Blueprint(
        kind="otlp", version=version, url="http://x.test/v1/traces", settings=settings
    )
    made = Made(name=name, account=account, blueprint=blueprint)

    assert made_from(bound_to(made)) == made
    assert shown(bound_to(made)) == f"{name}: otlp http://x.test/v1/traces"


@pytest.mark.parametrize("text", ["", "made", "anonymous http://x.test", "made a b c d x y"])
def test_other_text_is_no_transport(text: str) -> None:
    """It is shown as it is."""
    assert made_from(text) is None
    assert shown(text) == text


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"kind": "carrier-pigeon"}, "no transport of the kind carrier-pigeon/2 is known"),
        ({"version": 1}, "no transport of the kind otlp/1 is known"),
        ({"settings": "{}"}, "the settings of its transport are not understood"),
        ({"url": "http://y.test"}, "the settings of its transport are not understood"),
        ({"url": "ftp://x.test"}, "the URL does not start with http:// or https://"),
    ],
)
def test_what_a_relay_cannot_make_it_refuses(changed: dict[str, Any], problem: str | None) -> None:
    """And says why, as the end of a sentence."""
    made = made_of(otlp("http://x.test"))
    made = msgspec.structs.replace(
        made, blueprint=msgspec.structs.replace(made.blueprint, **changed)
    )

    assert problem_with_made(made) == problem
    assert problem_with(bound_to(made)) == problem


def test_a_relay_without_the_extra_refuses(request: pytest.FixtureRequest) -> None:
    """And says what it needs."""
    destination = bound_to(made_of(otlp("http://x.test", encoding="protobuf")))
    request.getfixturevalue("without_extra_otlp")

    assert "needs the extra 'otlp'" in (problem_with(destination) or "")


def test_an_unknown_field_is_refused() -> None:
    """Of a version to come: to leave it out might send something that should not be."""
    made = made_of(otlp("http://x.test"))
    settings = made.blueprint.settings[:-1] + ',"leave_out":["a"]}'
    blueprint = msgspec.structs.replace(made.blueprint, settings=settings)

    with pytest.raises(ValueError, match="not understood"):
        settings_from(blueprint)


def test_an_account_is_its_headers_and_its_url() -> None:
    """Neither the order nor the case of names matters; the digest is not the keys."""
    token = sealed({"A": "1", "b": "2"})

    assert token == sealed({"B": "2", "a": "1"})
    assert account_of(token, "http://x.test") == account_of(token, "http://x.test")
    assert account_of(token, "http://x.test") != account_of(token, "http://y.test")
    assert account_of(token, "http://x.test") != account_of(sealed({"A": "1"}), "http://x.test")
    assert sealed({}) == account_of("", "http://x.test") == ""


async def test_secret_headers_stand_where_a_token_does() -> None:
    """They are always there, and never others."""
    headers = SecretHeaders("word")
    headers.refuse("word")

    assert headers.held == await headers.current() == "word"
    assert await headers.renewed(after="word") is None
    assert await headers.renewed(after=None) == "word"
    assert headers.next_refresh_at == float("inf")
