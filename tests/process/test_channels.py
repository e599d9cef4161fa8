"""The same cases over a memory channel and over one between processes.

What a stage may rely on is what both of them do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from process.pairs import connection
from trimaran._process import ProcessReceiveChannel, ProcessSendChannel


class Open(Protocol):
    """Opens a channel with room for *capacity* values."""

    async def __call__(
        self, capacity: int = 4
    ) -> tuple[trio.abc.SendChannel[bytes], trio.abc.ReceiveChannel[bytes]]: ...


@pytest.fixture(params=["memory", "process"])
async def open_channel(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Open]:
    """Either kind; closed in the end."""
    ends: list[trio.abc.AsyncResource] = []

    async def open_channel(capacity: int = 4) -> tuple[Any, Any]:
        if request.param == "memory":
            pair: tuple[Any, Any] = trio.open_memory_channel[bytes](capacity)
        else:
            here, there = await connection(directory)
            pair = ProcessSendChannel(here, window=capacity), ProcessReceiveChannel(there)
        ends.extend(pair)
        return pair

    yield open_channel
    for end in ends:
        await end.aclose()


class Log:
    """What tasks did, in order: a name and what came of it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, object]] = []

    async def __call__(
        self, name: str, act: Callable[..., Awaitable[object]], *args: object
    ) -> None:
        """Note what *act* returns, or as what it fails."""
        result: object
        try:
            result = await act(*args)
        except trio.BrokenResourceError:  # or what is derived from it
            result = trio.BrokenResourceError
        except (trio.ClosedResourceError, trio.EndOfChannel) as error:
            result = type(error)
        self.lines.append((name, result))


async def everything(receive: trio.abc.ReceiveChannel[bytes]) -> list[bytes]:
    """All values until the end."""
    return [value async for value in receive]


async def test_values_come_in_order_and_whole(open_channel: Open) -> None:
    """Empty ones and large ones too; the end comes after the last."""
    send, receive = await open_channel()
    values = [b"", b"a", bytes(range(256)) * 1_000, b"z" * 1_000_000, b""]
    received: list[bytes] = []

    async def take() -> None:
        received.extend(await everything(receive))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async with send:
            for value in values:
                await send.send(value)

    assert received == values


async def test_a_full_channel_makes_the_sender_wait(open_channel: Open) -> None:
    """It goes on when the receiver does."""
    send, receive = await open_channel(2)
    log = Log()
    await send.send(b"1")
    await send.send(b"2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log, "third", send.send, b"3")
        await wait_all_tasks_blocked()
        assert log.lines == []

        assert await receive.receive() == b"1"
        assert await receive.receive() == b"2"
        await wait_all_tasks_blocked()
        assert log.lines == [("third", None)]

    assert await receive.receive() == b"3"


async def test_what_was_sent_before_the_end_is_received(open_channel: Open) -> None:
    """And then the end, as often as it is asked for."""
    send, receive = await open_channel()
    for value in (b"1", b"2", b"3"):
        await send.send(value)
    await send.aclose()

    assert await everything(receive) == [b"1", b"2", b"3"]
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await receive.receive()


async def test_closing_the_sending_end_ends_a_receive(open_channel: Open) -> None:
    """All that wait get it, and not only the first."""
    send, receive = await open_channel()
    log = Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log, "one", receive.receive)
        nursery.start_soon(log, "other", receive.receive)
        await wait_all_tasks_blocked()
        await send.aclose()

    assert sorted(log.lines, key=str) == [("one", trio.EndOfChannel), ("other", trio.EndOfChannel)]


async def test_closing_the_receiving_end_while_it_waits(open_channel: Open) -> None:
    """Who waits in an end that is closed here gets a ClosedResourceError."""
    _send, receive = await open_channel()
    log = Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log, "one", receive.receive)
        nursery.start_soon(log, "other", receive.receive)
        await wait_all_tasks_blocked()
        await receive.aclose()

    closed = trio.ClosedResourceError
    assert sorted(log.lines, key=str) == [("one", closed), ("other", closed)]


async def test_closing_the_sending_end_while_it_waits(open_channel: Open) -> None:
    """What waited was not sent."""
    send, receive = await open_channel(1)
    log = Log()
    await send.send(b"sent")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log, "one", send.send, b"one")
        nursery.start_soon(log, "other", send.send, b"other")
        await wait_all_tasks_blocked()
        await send.aclose()

    closed = trio.ClosedResourceError
    assert sorted(log.lines, key=str) == [("one", closed), ("other", closed)]
    assert await everything(receive) == [b"sent"]


async def test_a_receiver_that_is_closed_breaks_a_send(open_channel: Open) -> None:
    """Those that wait for room, and those that come later."""
    send, receive = await open_channel(1)
    log = Log()
    await send.send(b"0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log, "one", send.send, b"1")
        nursery.start_soon(log, "other", send.send, b"2")
        await wait_all_tasks_blocked()
        await receive.aclose()
    await log("later", send.send, b"3")

    broken = trio.BrokenResourceError
    assert sorted(log.lines, key=str) == [("later", broken), ("one", broken), ("other", broken)]


async def test_an_end_that_was_closed_cannot_be_used(open_channel: Open) -> None:
    """Closing it again is no error."""
    send, receive = await open_channel()
    for end in (send, receive, send, receive):
        await end.aclose()

    with pytest.raises(trio.ClosedResourceError):
        await send.send(b"")
    with pytest.raises(trio.ClosedResourceError):
        await receive.receive()


@pytest.mark.parametrize("which", [0, 1])
async def test_closing_under_a_cancel_closes(open_channel: Open, which: int) -> None:
    """The cancel is raised, and the other end hears of the closing all the same."""
    ends = await open_channel()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ends[which].aclose()

    assert scope.cancelled_caught
    log = Log()
    await log("send", ends[0].send, b"")
    await log("receive", ends[1].receive)
    assert (
        log.lines
        == [
            [("send", trio.ClosedResourceError), ("receive", trio.EndOfChannel)],
            [("send", trio.BrokenResourceError), ("receive", trio.ClosedResourceError)],
        ][which]
    )


async def test_a_with_block_closes(open_channel: Open) -> None:
    """Without waiting, for cleanup in tasks that are cancelled."""
    send, receive = await open_channel()
    assert isinstance(send, trio.MemorySendChannel | ProcessSendChannel)
    assert isinstance(receive, trio.MemoryReceiveChannel | ProcessReceiveChannel)
    with send:
        await send.send(b"1")
    with receive:
        assert await everything(receive) == [b"1"]

    with pytest.raises(trio.ClosedResourceError):
        await receive.receive()


async def test_a_cancelled_send_was_not_sent(open_channel: Open) -> None:
    """Neither one that waits for room, nor one that is cancelled when it begins."""
    send, receive = await open_channel(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await send.send(b"at once")
    await send.send(b"1")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.send, b"holds the turn")
            nursery.start_soon(send.send, b"waits for the turn")
            await wait_all_tasks_blocked()
            scope.cancel()
    assert await receive.receive() == b"1"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, b"2")
        assert await receive.receive() == b"2"
    await send.aclose()

    assert await everything(receive) == []


async def test_a_cancelled_receive_loses_nothing(open_channel: Open) -> None:
    """Whether it waits for a value, for its turn, or has just begun."""
    send, receive = await open_channel()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive.receive)
            nursery.start_soon(receive.receive)
            await wait_all_tasks_blocked()
            scope.cancel()
    await send.send(b"1")
    with trio.CancelScope() as scope:
        scope.cancel()
        await receive.receive()
    assert scope.cancelled_caught
    await send.aclose()

    assert await everything(receive) == [b"1"]


async def test_senders_and_receivers_take_turns(open_channel: Open) -> None:
    """Who came first is served first."""
    send, receive = await open_channel(2)  # one in the hand of who received it counts too
    log = Log()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(log, name, receive.receive)
            await wait_all_tasks_blocked()
        for value in (b"1", b"2", b"3"):
            await send.send(value)
            await wait_all_tasks_blocked()
    assert log.lines == [("a", b"1"), ("b", b"2"), ("c", b"3")]

    await send.send(b"0")
    async with trio.open_nursery() as nursery:
        for value in (b"4", b"5", b"6"):
            nursery.start_soon(send.send, value)
            await wait_all_tasks_blocked()
        assert [await receive.receive() for _ in range(4)] == [b"0", b"4", b"5", b"6"]


async def test_many_senders_and_receivers(open_channel: Open) -> None:
    """Each value is received once; those of a sender in its order by each receiver."""
    send, receive = await open_channel(3)
    taken: list[list[bytes]] = [[] for _ in range(5)]

    async def take(mine: list[bytes]) -> None:
        mine += await everything(receive)

    async def give(sender: int) -> None:
        for number in range(100):
            await send.send(b"%d %03d" % (sender, number) + b" " * (number % 7) * 10_000)

    async with trio.open_nursery() as nursery:
        for mine in taken:
            nursery.start_soon(take, mine)
        async with trio.open_nursery() as senders:
            for sender in range(5):
                senders.start_soon(give, sender)
        await send.aclose()

    values = [value.strip() for mine in taken for value in mine]
    assert sorted(values) == [b"%d %03d" % (s, n) for s in range(5) for n in range(100)]
    for mine in taken:
        for sender in range(5):
            of_one = [value.strip() for value in mine if value.startswith(b"%d " % sender)]
            assert of_one == sorted(of_one)


async def test_every_call_is_a_checkpoint(open_channel: Open) -> None:
    """Also where nothing has to be waited for."""
    send, receive = await open_channel()
    with assert_checkpoints():
        await send.send(b"")
    with assert_checkpoints():
        await receive.receive()
    for end in (send, send, receive):
        with assert_checkpoints():
            await end.aclose()
