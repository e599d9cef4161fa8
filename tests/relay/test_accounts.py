"""Accounts without an e-mail address at a relay: whose token goes out with whose events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import trimaran
from conftest import LoopbackEndpoint
from trimaran._relay.messages import (
    PROTOCOL,
    Hello,
    Refusal,
    Refused,
    answer_from,
    encoded,
)
from trimaran._relay.outlet import decision_of, problem_with
from trimaran._spool.file import SpoolFile

from .test_agents import Login, Relayed, only, say
from .test_agents import relayed as relayed  # a fixture  # noqa: PLC0414
from .world import until


def nameless(endpoint: LoopbackEndpoint, name: str) -> trimaran.AccountProvider:
    """An account that its token alone tells from others."""
    return trimaran.StaticAccount(endpoint.url, f"{name}s-token")


def sent(endpoint: LoopbackEndpoint) -> set[tuple[str, str]]:
    """Which sessions went out with which token."""
    return {(r.batch["session_id"], r.headers["authorization"]) for r in endpoint.requests}


async def test_the_token_of_another_one_that_is_there_is_not_used(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """Both hand over while nothing gets through: each goes out with its own token, also when
    that is tried again after the other one came.
    """
    endpoint.always(503)
    async with (
        relayed.agent(endpoint.url, nameless(endpoint, "ann")) as anns,
        relayed.agent(endpoint.url, nameless(endpoint, "bob")) as bobs,
    ):
        await say(anns, "ann")
        await say(bobs, "bob")
        await until(lambda: len(sent(endpoint)) == 2)
        endpoint.requests.clear()
        endpoint.always(200)
        await until(lambda: len(sent(endpoint)) == 2)

    assert sent(endpoint) == {("ann", "Bearer anns-token"), ("bob", "Bearer bobs-token")}


async def test_a_restarted_relay_waits_for_the_very_same_token(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """It has none, and gets another account's: what is not that one's waits. An agent with the
    token that the first one began with brings it.
    """
    endpoint.always(503)
    async with relayed.agent(endpoint.url, nameless(endpoint, "ann")) as anns:
        await say(anns, "ann")
    await relayed.kill()
    endpoint.requests.clear()
    endpoint.always(200)

    await relayed.start()
    async with relayed.agent(endpoint.url, nameless(endpoint, "bob")) as bobs:
        await say(bobs, "bob")
        await until(lambda: len(endpoint.requests) > 0)
        # Bob's may still wait for the answer; not for a token.
        outlets = [o for o in (await relayed.report()).outlets if o.waits_for_token]
        assert [outlet.waiting for outlet in outlets] == [1]
    assert sent(endpoint) == {("bob", "Bearer bobs-token")}

    async with relayed.agent(endpoint.url, nameless(endpoint, "ann")) as anns:
        await say(anns, "ann again")
        await until(lambda: len(sent(endpoint)) == 3)
    assert sent(endpoint) == {
        ("ann", "Bearer anns-token"),
        ("ann again", "Bearer anns-token"),
        ("bob", "Bearer bobs-token"),
    }


async def test_a_token_that_is_renewed_stays_the_accounts(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """By the agent that handed over, or another one that began with the same token: its
    provider says that the account is the same.
    """
    endpoint.rule = only("fresh")
    begun_before = nameless_login(endpoint, "stale", "stale")
    async with (
        relayed.agent(endpoint.url, begun_before) as telemetry,
        relayed.agent(endpoint.url, nameless_login(endpoint, "stale", "fresh")) as other,
    ):
        await say(other, "other")
        await say(telemetry, "s")
        await until(lambda: {("s", "Bearer fresh"), ("other", "Bearer fresh")} <= sent(endpoint))

    assert {authorization for _, authorization in sent(endpoint)} <= {
        "Bearer stale",
        "Bearer fresh",
    }


def nameless_login(endpoint: LoopbackEndpoint, *tokens: str) -> Login:
    """An account without an e-mail address, whose token is renewed."""
    return Login(endpoint.url, "", [*tokens])


async def test_no_file_tells_a_token(relayed: Relayed, endpoint: LoopbackEndpoint) -> None:
    """What stands for it there is not it."""
    endpoint.always(503)
    async with relayed.agent(endpoint.url, nameless(endpoint, "s3same-0pen-")) as telemetry:
        await say(telemetry, "s")
        await until(lambda: len(endpoint.requests) > 0)
        (outlet,) = (await relayed.report()).outlets

    assert "s3same-0pen-s-token" in endpoint.requests[0].headers["authorization"]
    assert outlet.destination.startswith(f"authenticated {endpoint.url} account:")
    told = outlet.destination.encode()
    contents = [path.read_bytes() for path in relayed.directory.iterdir() if path.is_file()]
    assert any(told in content for content in contents)
    assert not any(b"s3same-0pen" in content for content in contents)


@pytest.fixture
def left(tmp_path: Path) -> Callable[[str, float, str], None]:
    """Leaves a batch on the relay's disk, as a relay that was killed would have."""

    def leave(destination: str, created: float, key: str) -> None:
        file = SpoolFile(
            tmp_path / "relay",
            owner=key,
            destination=destination,
            most_bytes=1_000_000,
            most_seconds=math.inf,
            survives="kill",
            wall_clock=lambda: created,
        )
        file.put(f"{key}-0", b'{"events": [{}]}', events=1, reports=0, handed_by=key)
        file.close()

    return leave


async def test_what_is_bound_to_nobody_waits_until_it_is_too_old(
    tmp_path: Path,
    nursery: trio.Nursery,
    endpoint: LoopbackEndpoint,
    left: Callable[[str, float, str], None],
) -> None:
    """As it was before accounts without an address were told apart: whichever came could not
    be known to be the right one. It is counted, and shown as waiting.
    """
    destination = f"authenticated {endpoint.url}"
    left(destination, time.time(), "young")
    left(destination, 1.0, "old")
    relayed = Relayed(tmp_path / "relay", nursery)
    await relayed.start()

    async with relayed.agent(endpoint.url, nameless(endpoint, "bob")) as telemetry:
        await say(telemetry, "bob")
        await until(lambda: len(endpoint.requests) > 0)
        first, _ = (await relayed.report()).outlets

    assert sent(endpoint) == {("bob", "Bearer bobs-token")}
    assert (first.destination, first.waiting, first.waits_for_token) == (destination, 1, True)
    assert first.dropped == {"expired": 1}


async def test_an_agent_that_names_no_account_is_not_served(
    relayed: Relayed, endpoint: LoopbackEndpoint
) -> None:
    """It has a token, and does not say whose: it may send for itself."""
    async with relayed.speaking() as channel:
        hello = Hello(
            protocol=PROTOCOL, agent="a", destination=f"authenticated {endpoint.url}", token="t"
        )
        answer = answer_from(await channel.ask(encoded(hello)))

    assert isinstance(answer, Refused)
    assert (answer.why, answer.reason) == (Refusal.MEANING, "it is not said whose the events are")


@pytest.mark.parametrize(
    ("destination", "is_served"),
    [
        ("anonymous https://x.test", True),
        ("anonymous https://x.test with spans", True),
        ("authenticated https://x.test ann@x.test", True),
        ("authenticated https://x.test account:0f with spans", True),
        ("authenticated https://x.test", False),
        ("authenticated https://x.test with spans", False),
    ],
)
def test_who_is_served(destination: str, *, is_served: bool) -> None:
    """What goes out with a token has to be somebody's; all of these are understood on a disk."""
    assert (problem_with(destination) is None) == is_served
    decision = decision_of(destination)
    assert decision is not None
    assert decision.url == "https://x.test"
