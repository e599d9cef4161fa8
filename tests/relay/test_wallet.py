"""The tokens of an account: who is asked for one, when, and how it is waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from trimaran._relay.wallet import Wallet

INTERVAL = 60.0


class Agent:
    """An agent that can be called."""

    def __init__(self, wallet: Wallet, name: str, *, gives: str | None, takes: float = 0.0) -> None:
        self.name = name
        self.gives = gives
        self.calls: list[str | None] = []
        self._wallet = wallet
        self._takes = takes

    def come(self, token: str | None, *, listens: bool = True) -> None:
        """Say hello, and listen."""
        self._wallet.join(self.name, token)
        if listens:
            self._wallet.listen(self.name, self.call)

    async def call(self, after: str | None) -> None:
        self.calls.append(after)
        await trio.sleep(self._takes)
        self._wallet.bring(self.name, self.gives)


def new_wallet() -> tuple[Wallet, list[None]]:
    """A wallet, and how often it said that something changed."""
    changes: list[None] = []
    return Wallet(interval=INTERVAL, changed=lambda: changes.append(None)), changes


async def test_a_token_that_is_there_is_given_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As the agent brought it; one that can stand in no header is none."""
    wallet, changes = new_wallet()
    Agent(wallet, "a", gives=None).come("bad token", listens=False)
    assert wallet.held is None

    wallet.bring("a", "good")

    assert await wallet.current() == "good"
    assert wallet.held == "good"
    assert wallet.next_refresh_at < trio.current_time()
    assert changes


async def test_without_one_it_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """However long: nobody is there who could be called."""
    wallet, _ = new_wallet()

    async with trio.open_nursery() as nursery:

        async def come_later() -> None:
            await trio.sleep(80_000)
            wallet.join("a", "good")

        nursery.start_soon(come_later)
        assert await wallet.current() == "good"

    assert trio.current_time() >= 80_000


async def test_who_begins_to_listen_is_called(autojump_clock: trio.testing.MockClock) -> None:
    """At once: somebody waits already, and nobody could be called before."""
    wallet, _ = new_wallet()
    agent = Agent(wallet, "a", gives="good")
    agent.come(None, listens=False)

    async with trio.open_nursery() as nursery:

        async def listen_later() -> None:
            await trio.sleep(1)
            wallet.listen("a", agent.call)

        nursery.start_soon(listen_later)
        with trio.fail_after(2):
            assert await wallet.current() == "good"


async def test_all_who_listen_are_called_until_one_has_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each is told what it gave last, and no more are called than need be."""
    wallet, _ = new_wallet()
    first, second, third = (
        Agent(wallet, "a", gives="old"),
        Agent(wallet, "b", gives="new"),
        Agent(wallet, "c", gives="newer"),
    )
    first.come("old")
    second.come(None)
    third.come(None)

    assert await wallet.renewed(after="old") == "new"

    assert (first.calls, second.calls, third.calls) == (["old"], [None], [])


async def test_one_that_is_there_by_now_needs_no_call(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Another session asked before."""
    wallet, _ = new_wallet()
    agent = Agent(wallet, "a", gives="newer")
    agent.come("new")

    assert await wallet.renewed(after="old") == "new"
    assert agent.calls == []


async def test_calls_in_vain_are_not_repeated_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once in an interval: while it is waited for, again and again, until there is one."""
    wallet, _ = new_wallet()
    agent = Agent(wallet, "a", gives="old")
    agent.come("old")
    assert await wallet.renewed(after="old") is None
    assert await wallet.renewed(after="old") is None
    wallet.refuse("another")
    assert wallet.held == "old"
    wallet.refuse("old")
    assert wallet.held is None
    agent.gives = None

    async with trio.open_nursery() as nursery:

        async def login_later() -> None:
            await trio.sleep(2.5 * INTERVAL)
            agent.gives = "new"

        nursery.start_soon(login_later)
        assert await wallet.current() == "new"

    assert trio.current_time() == 3 * INTERVAL
    assert agent.calls == ["old"] * 4


async def test_who_begins_to_listen_during_a_round_is_called_in_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Or it would not be for a whole interval, once the round has ended in vain."""
    wallet, _ = new_wallet()

    async def has_none(_token: str | None) -> None:
        await trio.sleep(1)

    async def has_one(_token: str | None) -> None:
        await trio.lowlevel.checkpoint()
        wallet.bring("late", "fresh")

    wallet.listen("first", has_none)
    async with trio.open_nursery() as nursery:

        async def listen_late() -> None:
            await trio.sleep(0.5)
            wallet.listen("late", has_one)

        nursery.start_soon(listen_late)
        assert await wallet.renewed(after=None) == "fresh"


async def test_a_token_that_somebody_brings_ends_a_call(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever is slow to answer is not waited for then."""
    wallet, _ = new_wallet()
    Agent(wallet, "slow", gives=None, takes=1000).come("old")

    async with trio.open_nursery() as nursery:

        async def come_later() -> None:
            await trio.sleep(1)
            wallet.join("b", "new")

        nursery.start_soon(come_later)
        assert await wallet.renewed(after="old") == "new"

    assert trio.current_time() == 1


async def test_who_is_gone_is_not_called(autojump_clock: trio.testing.MockClock) -> None:
    """Who hung up, also while another was called; but not who called again since."""
    wallet, changes = new_wallet()
    gone, there = Agent(wallet, "a", gives=None), Agent(wallet, "b", gives="new")

    async def hangs_up_the_other(after: str | None) -> None:
        wallet.hang_up("a", gone.call)

    calls: list[Callable[[str | None], Awaitable[object]]] = [hangs_up_the_other, there.call]
    wallet.join("z", "old")
    wallet.listen("z", calls[0])
    gone.come(None)
    wallet.listen("b", there.call)
    wallet.hang_up("b", gone.call)

    assert await wallet.renewed(after="old") == "new"
    assert gone.calls == []
    assert wallet.is_attended
    before = len(changes)
    for name in ("a", "b", "z"):
        wallet.leave(name)
    assert not wallet.is_attended
    assert len(changes) > before
    wallet.forget()
    assert wallet.held is None
