"""The token of the moment: who is asked for it, when, and for whom."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
import structlog
import trio

import trimaran
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint.token import TokenKeeper

if TYPE_CHECKING:
    import trio.testing


class Provider:
    """Gives the tokens it was made with, one for each time it is asked for a fresh one."""

    def __init__(self, *fresh: str | None, delay: float = 0.0) -> None:
        self._fresh = list(fresh)
        self._delay = delay
        self.asked_at: list[float] = []

    async def account(self) -> trimaran.Account:
        """A token says whose it is by itself here."""
        raise AssertionError("only the token is asked for")

    async def token(self, *, refresh: bool) -> str | None:
        """The next one, after a while."""
        assert refresh
        self.asked_at.append(trio.current_time())
        await trio.sleep(self._delay)
        return self._fresh.pop(0)


def keeper_of(provider: Provider, held: str = "old") -> TokenKeeper:
    """A keeper that holds *held*, and may refresh once a minute; both of its clocks are trio's."""
    return TokenKeeper(
        provider,
        held,
        now=trio.current_time,
        wall_clock=trio.current_time,
        timeout=10.0,
        interval=60.0,
        diagnostics=Diagnostics(trio.current_time),
    )


def expiring(moment: float) -> str:
    """A JWT that expires then; its signature is nonsense."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": moment}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{claims}.c2ln"


async def test_refusing_a_token_that_is_no_longer_held_changes_nothing() -> None:
    """Its request began before another session had it renewed: the new one is not to blame."""
    keeper = keeper_of(Provider("new"))
    assert await keeper.renewed(after="old") == "new"

    keeper.refuse("old")

    assert keeper.held == "new"
    assert await keeper.current() == "new"


async def test_a_refused_token_is_not_given_again() -> None:
    """Nothing is given in its place either, until the provider may be asked again."""
    provider = Provider("new")
    keeper = keeper_of(provider)
    assert await keeper.renewed(after="old") == "new"

    keeper.refuse("new")

    assert keeper.held is None
    assert await keeper.current() is None
    assert len(provider.asked_at) == 1


async def test_all_who_saw_a_token_refused_share_one_refresh(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first asks, and the others get what it got."""
    provider = Provider("new", delay=0.5)
    keeper = keeper_of(provider)
    got: list[str | None] = []

    async def one() -> None:
        got.append(await keeper.renewed(after="old"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)

    assert got == ["new"] * 10
    assert len(provider.asked_at) == 1


async def test_all_who_saw_a_token_refused_share_one_refresh_that_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """They hold, all of them: one failure is no reason to ask nine times more."""
    provider = Provider(None, delay=0.5)
    keeper = keeper_of(provider)
    got: list[str | None] = []

    async def one() -> None:
        got.append(await keeper.renewed(after="old"))

    with structlog.testing.capture_logs():
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)

    assert got == [None] * 10
    assert len(provider.asked_at) == 1
    assert keeper.held == "old"  # it is for the endpoint to say whether that is still good


async def test_the_provider_is_asked_again_after_the_interval_and_not_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Counted from the end of the last refresh, so that a slow provider is not asked at once."""
    provider = Provider(None, "new", delay=5.0)
    keeper = keeper_of(provider)
    began = trio.current_time()
    with structlog.testing.capture_logs():
        assert await keeper.renewed(after="old") is None
    assert keeper.next_refresh_at == began + 65

    await trio.sleep_until(keeper.next_refresh_at - 0.001)
    assert await keeper.renewed(after="old") is None
    await trio.sleep_until(keeper.next_refresh_at)
    assert await keeper.renewed(after="old") == "new"

    assert provider.asked_at == [began, began + 65]


async def test_a_cancelled_refresh_leaves_the_next_to_make_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It did not fail, so nobody has to wait for the interval."""
    provider = Provider("new", delay=5.0)
    keeper = keeper_of(provider)
    with trio.move_on_after(1) as scope:
        await keeper.renewed(after="old")
    assert scope.cancelled_caught

    assert await keeper.renewed(after="old") == "new"
    assert len(provider.asked_at) == 2


@pytest.mark.parametrize(("life", "ahead"), [(300.0, 30.0), (600.0, 60.0), (86_400.0, 60.0)])
async def test_how_far_ahead_of_its_expiry_a_token_is_renewed(
    life: float, ahead: float, autojump_clock: trio.testing.MockClock
) -> None:
    """A tenth of what is left of its life, a minute at most; then, and not a moment before."""
    provider = Provider("new")
    began = trio.current_time()
    held = expiring(began + life)
    keeper = keeper_of(provider, held)

    await trio.sleep_until(began + life - ahead - 0.001)
    assert await keeper.current() == held
    await trio.sleep_until(began + life - ahead)
    assert await keeper.current() == "new"

    assert provider.asked_at == [began + life - ahead]


async def test_a_token_that_cannot_be_renewed_ahead_is_used_on() -> None:
    """Whether it is still good is for the endpoint to say."""
    held = expiring(0.0)
    keeper = keeper_of(Provider(None), held)

    with structlog.testing.capture_logs() as logs:
        assert await keeper.current() == held

    assert [(line["event"], line["reason"]) for line in logs] == [
        ("telemetry token cannot be had", "the provider has none")
    ]
