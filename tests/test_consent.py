"""Consent, as it is looked at before every request: the switches, and the account."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio

import trimaran
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint.consent import Consent, ConsentWithdrawn

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio.testing

ACCOUNT = trimaran.Account("https://a.test", "a@x.test")


class Provider:
    """An account that may be another one by now, slow to be had, or not to be had at all."""

    def __init__(self) -> None:
        self.now: trimaran.Account | None = ACCOUNT
        self.failure: Exception | None = None
        self.delay = 0.0
        self.asked_at: list[float] = []

    async def account(self) -> trimaran.Account | None:
        """What it is now."""
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        return self.now

    async def token(self, *, refresh: bool) -> str | None:
        """Nobody's business here."""
        raise AssertionError("only the account is asked for")


def consent_of(
    provider: Provider | None = None,
    *,
    ask: Callable[[], Any] | None = None,
    environ: dict[str, str] | None = None,
) -> Consent:
    """The consent of one telemetry, whose account is looked up for two seconds at most."""
    return Consent(
        app="test",
        environ={} if environ is None else environ,
        ask=ask,
        provider=provider,
        account=None if provider is None else ACCOUNT,
        now=trio.current_time,
        timeout=2.0,
        diagnostics=Diagnostics(trio.current_time),
    )


async def is_given(consent: Consent) -> bool:
    """Whether a request may be made now."""
    try:
        await consent.require()
    except ConsentWithdrawn:
        return False
    return True


async def test_an_account_is_asked_for_once_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It was looked up when the telemetry was opened; for a second that is the answer."""
    provider = Provider()
    began = trio.current_time()
    consent = consent_of(provider)

    for moment in (0.0, 0.999, 1.0, 1.5, 1.999, 2.0):
        await trio.sleep_until(began + moment)
        assert await is_given(consent)

    assert [moment - began for moment in provider.asked_at] == pytest.approx([1.0, 2.0])


async def test_an_account_that_went_is_noticed_after_that_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And one that came back as well: the answer is always the last one."""
    provider = Provider()
    began = trio.current_time()
    consent = consent_of(provider)
    provider.now = None

    given: list[bool] = []
    for moment in (0.5, 1.0, 1.5):
        await trio.sleep_until(began + moment)
        given.append(await is_given(consent))
    provider.now = ACCOUNT
    for moment in (1.9, 2.0):
        await trio.sleep_until(began + moment)
        given.append(await is_given(consent))

    assert given == [True, False, False, False, True]


@pytest.mark.parametrize(
    "other",
    [
        None,
        trimaran.Account("https://b.test", "a@x.test"),
        trimaran.Account("https://a.test", "b@x.test"),
        trimaran.Account("https://a.test"),
    ],
)
async def test_any_other_account_is_no_consent(
    other: trimaran.Account | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Another URL, or another person at the same one: the events are not theirs."""
    provider = Provider()
    consent = consent_of(provider)
    provider.now = other
    await trio.sleep(1)

    assert not await is_given(consent)


async def test_many_who_ask_at_once_look_once(autojump_clock: trio.testing.MockClock) -> None:
    """The first looks, and the others take what it found."""
    provider = Provider()
    consent = consent_of(provider)
    provider.delay = 0.5
    await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(consent.require)

    assert len(provider.asked_at) == 1


async def test_a_new_token_is_not_sent_on_what_is_remembered() -> None:
    """Whose it is has to be known now: within the second the account is asked again."""
    provider = Provider()
    consent = consent_of(provider)
    await consent.require(token_is_new=True)
    assert len(provider.asked_at) == 1

    provider.now = None
    await consent.require()
    with pytest.raises(ConsentWithdrawn):
        await consent.require(token_is_new=True)


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_an_account_that_cannot_be_asked_is_as_before_and_takes_no_new_token(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """What was consented to goes on; only a token of nobody known waits."""
    provider = Provider()
    consent = consent_of(provider)
    await trio.sleep(1)
    if how == "raises":
        provider.failure = OSError("secret")
    else:
        provider.delay = 1000.0
    began = trio.current_time()

    with structlog.testing.capture_logs() as logs:
        assert await is_given(consent)
        assert await is_given(consent)  # for a second, that is the answer again
        assert len(provider.asked_at) == 1
        with pytest.raises(trimaran.TransportError, match="cannot be looked up"):
            await consent.require(token_is_new=True)

    assert len(provider.asked_at) == 2
    assert trio.current_time() - began == (0 if how == "raises" else 4)
    told = [(line["event"], line["error"]) for line in logs]
    assert told == ([("telemetry account failed", "OSError")] if how == "raises" else [])


async def test_a_switch_that_is_set_while_the_account_is_looked_up_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Looking it up may take seconds, and the request comes after that."""
    provider = Provider()
    environ: dict[str, str] = {}
    consent = consent_of(provider, environ=environ)
    provider.delay = 1.0
    await trio.sleep(1)

    async with trio.open_nursery() as nursery:

        async def asks() -> None:
            assert not await is_given(consent)

        nursery.start_soon(asks)
        await trio.sleep(0.5)
        environ["DO_NOT_TRACK"] = "1"


@pytest.mark.parametrize(
    ("answer", "given"), [(True, True), (False, False), (None, False), (0, False), ("yes", True)]
)
async def test_the_hosts_answer_is_taken_as_python_takes_it(answer: object, given: bool) -> None:
    """A switch that forgets to return is off."""
    assert await is_given(consent_of(ask=lambda: answer)) is given


async def test_a_switch_that_is_to_be_awaited_is_off_and_is_told_of() -> None:
    """What it would say is not known; nothing of it is left over to complain."""

    async def ask() -> bool:
        await trio.lowlevel.checkpoint()
        return True

    with structlog.testing.capture_logs() as logs, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not await is_given(consent_of(ask=ask))
        gc.collect()

    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry consent failed", "TypeError")
    ]


async def test_a_switch_that_raises_is_off_and_is_told_of() -> None:
    """By the kind of what it raised, whose text may say more than it should."""

    def ask() -> bool:
        raise ValueError("secret")

    consent = consent_of(ask=ask)
    with structlog.testing.capture_logs() as logs:
        assert not await is_given(consent)

    assert [(line["event"], line["error"]) for line in logs] == [
        ("telemetry consent failed", "ValueError")
    ]


async def test_the_hosts_answer_is_asked_for_every_time() -> None:
    """Nothing of it is remembered: off is off at once, and on is on."""
    answers = [True, False, True]
    consent = consent_of(ask=lambda: answers.pop(0))

    assert [await is_given(consent) for _ in range(3)] == [True, False, True]
