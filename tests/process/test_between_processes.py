"""What can only happen between processes: broken peers, full sockets, acknowledgements."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from process.pairs import connection
from trimaran._process import (
    MAX_ANSWER,
    PeerClosed,
    ProcessChannelStatistics,
    ProcessReceiveChannel,
    ProcessSendChannel,
)
from trimaran._process.frames import Frame, FrameKind, encode_frame

Pair = tuple[ProcessSendChannel, ProcessReceiveChannel]

LARGE = bytes(4_000_000)
"""No socket takes that."""


@pytest.fixture
async def pair(directory: Path) -> AsyncIterator[Pair]:
    """Both ends."""
    here, there = await connection(directory)
    with ProcessSendChannel(here, window=4) as send, ProcessReceiveChannel(there) as receive:
        yield send, receive


@pytest.fixture
async def receive_raw(
    directory: Path,
) -> AsyncIterator[tuple[ProcessReceiveChannel, trio.SocketStream]]:
    """A receiving end, and the bare stream of its peer."""
    here, there = await connection(directory)
    with ProcessReceiveChannel(here, max_frame=100) as receive:
        yield receive, there
        await there.aclose()


@pytest.fixture
async def send_raw(
    directory: Path,
) -> AsyncIterator[tuple[ProcessSendChannel, trio.SocketStream]]:
    """A sending end, and the bare stream of its peer."""
    here, there = await connection(directory)
    with ProcessSendChannel(here, window=2, max_frame=100) as send:
        yield send, there
        await there.aclose()


VALUE = encode_frame(Frame(FrameKind.DATA, b"value"))


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (b"", "the other end is gone"),
        (VALUE[:-1], "the other end is gone"),
        (VALUE[:3], "the other end is gone"),
        (b"GET / HTTP/1.1\r\n", "a frame of kind 71, which is not expected here"),
        (encode_frame(Frame(FrameKind.ACK)), "a frame of kind 2, which is not expected here"),
        (
            encode_frame(Frame(FrameKind.DATA, b"x" * 101)),
            "DATA of 101 bytes, where 100 are the most",
        ),
    ],
)
async def test_a_sender_that_breaks(
    receive_raw: tuple[ProcessReceiveChannel, trio.SocketStream], last: bytes, said: str
) -> None:
    """What it sent before is received; then it is broken, for good."""
    receive, peer = receive_raw
    await peer.send_all(VALUE + last)
    await peer.aclose()

    assert await receive.receive() == b"value"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await receive.receive()
        assert str(caught.value) == said


async def test_a_peer_that_is_not_understood_is_not_answered(
    receive_raw: tuple[ProcessReceiveChannel, trio.SocketStream],
) -> None:
    """That this end was closed on purpose would be no true word."""
    receive, peer = receive_raw
    await peer.send_all(b"GET / HTTP/1.1\r\n")
    with pytest.raises(trio.BrokenResourceError):
        await receive.receive()
    await receive.aclose()

    assert await peer.receive_some() == b""


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n", VALUE, encode_frame(Frame(FrameKind.ACK, b"x" * 1_025)), b""]
)
async def test_a_receiver_that_breaks(
    send_raw: tuple[ProcessSendChannel, trio.SocketStream], said: bytes
) -> None:
    """What it acknowledged before counts; then it is broken, and not closed on purpose."""
    send, peer = send_raw
    await peer.send_all(encode_frame(Frame(FrameKind.ACK, b"yes")) + said)
    if not said:
        await peer.aclose()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await send.send(b"1")
    else:
        assert await send.ask(b"1") == b"yes"
        with pytest.raises(trio.BrokenResourceError) as caught:
            await send.ask(b"2")

    assert not isinstance(caught.value, PeerClosed)
    with pytest.raises(trio.BrokenResourceError):
        await send.send(b"3")


async def test_an_acknowledgement_of_nothing(
    send_raw: tuple[ProcessSendChannel, trio.SocketStream],
) -> None:
    """It breaks the channel: the books of the two would differ."""
    send, peer = send_raw
    await peer.send_all(encode_frame(Frame(FrameKind.ACK)) * 2)

    await send.ask(b"1")
    with pytest.raises(trio.BrokenResourceError, match="an acknowledgement of nothing"):
        await send.ask(b"2")


async def test_a_value_that_is_too_long_is_not_begun(
    send_raw: tuple[ProcessSendChannel, trio.SocketStream],
) -> None:
    """The one at fault is told, and the channel is as before."""
    send, peer = send_raw
    for act in (send.send, send.ask):
        with pytest.raises(ValueError, match="a value of 101 bytes, where 100 are the most"):
            await act(b"x" * 101)
    await send.send(b"value")

    assert (await peer.receive_some())[:-1] == VALUE[:-1]


async def test_closed_on_purpose(pair: Pair) -> None:
    """The receiver's closing can be told from its death; also by who waits for an answer."""
    send, receive = pair

    async def expect(answer: str) -> None:
        with pytest.raises(PeerClosed):
            await (send.ask(b"1") if answer == "ask" else send.send(LARGE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, "ask")
        await wait_all_tasks_blocked()
        nursery.start_soon(expect, "large")  # the socket is full
        await wait_all_tasks_blocked()
        nursery.start_soon(expect, "waits for its turn")
        await wait_all_tasks_blocked()
        await receive.aclose()
    with pytest.raises(PeerClosed):
        await send.send(b"2")


async def test_answers(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    """Each goes to who asked for it; those that were not asked for, to nobody."""
    send, receive = pair
    answers: dict[bytes, bytes] = {}

    async def ask(value: bytes) -> None:
        answers[value] = await send.ask(value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, b"1")
        await wait_all_tasks_blocked()
        await send.send(b"2")
        nursery.start_soon(ask, b"3")
        nursery.start_soon(ask, b"4")
        for _ in range(4):
            value = await receive.receive()
            if value != b"4":
                await receive.acknowledge(b"to " + value)
        with trio.move_on_after(0.01):  # to ask for the next one acknowledges the last
            await receive.receive()

    assert answers == {b"1": b"to 1", b"3": b"to 3", b"4": b""}


async def test_acknowledgements_that_nobody_waits_for_come_together(
    directory: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A sender is not woken for each value; for an answer that it waits for, it is."""
    here, there = await connection(directory)
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await send.ask(b"asked"))

    with ProcessSendChannel(here, window=16) as send, ProcessReceiveChannel(there) as receive:
        for _ in range(3):
            await send.send(b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            for _ in range(9):
                await send.send(b"")
            known: list[int] = []
            for _ in range(13):
                await receive.receive()
                await wait_all_tasks_blocked()
                send._listen()
                known.append(send.statistics().acknowledged)
            assert known == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12]
            with trio.move_on_after(0.01):  # there is nothing to go on with
                await receive.receive()
            send._listen()
            assert send.statistics().acknowledged == 13

    assert answers == [b""]


async def test_answers_that_cannot_be(pair: Pair) -> None:
    """One that is too long, one to a value that is answered, one from an end that is closed."""
    send, receive = pair
    nothing = "there is no value that is not acknowledged"
    with pytest.raises(RuntimeError, match=nothing):
        await receive.acknowledge()
    await send.send(b"1")
    assert await receive.receive() == b"1"
    with pytest.raises(ValueError, match=r"an answer of 1,025 bytes; 1,024 are the most"):
        await receive.acknowledge(b"x" * (MAX_ANSWER + 1))
    await receive.acknowledge(b"x" * MAX_ANSWER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match=nothing):  # and does not wait for that task
            await receive.acknowledge()
        await send.send(b"2")
    await receive.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await receive.acknowledge()


async def test_an_answer_to_who_is_gone_is_thrown_away(pair: Pair) -> None:
    """What was sent before can still be received, and the end after it."""
    send, receive = pair
    await send.send(b"1")
    await send.send(b"2")
    await send.aclose()

    assert await receive.receive() == b"1"
    await receive.acknowledge(b"thanks")
    assert await receive.receive() == b"2"
    await receive.acknowledge(b"thanks")
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()


async def test_a_cancelled_question_was_sent(pair: Pair) -> None:
    """Its answer is thrown away when it comes, and no other question gets it."""
    send, receive = pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.ask, b"1")
            await wait_all_tasks_blocked()
            scope.cancel()
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await send.ask(b"2"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        for value in (b"1", b"2"):
            assert await receive.receive() == value
            await receive.acknowledge(b"to " + value)

    assert answers == [b"to 2"]


async def test_who_reads_for_all_may_be_cancelled(pair: Pair) -> None:
    """One of those that wait reads on; and a question is answered though this end is full."""
    send, receive = pair
    answers: list[bytes] = []
    scopes: list[trio.CancelScope] = []

    async def ask(value: bytes) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            answers.append(await send.ask(value))

    async with trio.open_nursery() as nursery:
        for value in (b"1", b"2", b"3", b"4", b"waits for room"):
            nursery.start_soon(ask, value)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        for _ in range(5):
            value = await receive.receive()
            await receive.acknowledge(value)

    assert sorted(answers) == [b"2", b"3", b"4", b"waits for room"]


async def test_statistics(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    """What was sent and what is known of it; a value that was withdrawn was never sent."""
    send, receive = pair
    await send.send(b"1")
    await send.send(b"2")
    await receive.receive()
    assert send.statistics() == ProcessChannelStatistics(sent=2, acknowledged=0, in_flight=2)
    with trio.move_on_after(0.01):
        await send.send(LARGE)

    await receive.acknowledge()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.ask, b"3")
        for _ in range(2):
            await receive.receive()
        await receive.acknowledge()

    assert send.statistics() == ProcessChannelStatistics(sent=3, acknowledged=3, in_flight=0)


@pytest.mark.parametrize("window", [0, -1, 65])
async def test_a_window_that_cannot_be(directory: Path, window: int) -> None:
    """Refused before the stream is taken over."""
    here, there = await connection(directory)
    async with here, there:
        with pytest.raises(ValueError, match=f"a window of {window}; from 1 to 64 can be had"):
            ProcessSendChannel(here, window=window)
        await here.send_all(b"still mine")
        assert await there.receive_some() == b"still mine"
