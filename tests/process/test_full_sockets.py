"""A peer that stops reading, and one that dies in the middle."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from patience import PATIENCE, status_of, untraced
from process.pairs import connection
from trimaran._process import ProcessReceiveChannel, ProcessSendChannel, listening
from trimaran._process.channel import MAX_WINDOW
from trimaran._process.frames import MAX_ANSWER, Frame, FrameKind, encode_frame

Pair = tuple[ProcessSendChannel, ProcessReceiveChannel]

LARGE = bytes(4_000_000)
"""No socket takes that."""


@pytest.fixture
async def pair(directory: Path) -> AsyncIterator[Pair]:
    """Both ends."""
    here, there = await connection(directory)
    with ProcessSendChannel(here, window=4) as send, ProcessReceiveChannel(there) as receive:
        yield send, receive


async def fill(send: ProcessSendChannel, *values: bytes) -> None:
    """Send *values*, and then so much that it is cancelled in the middle."""
    for value in values:
        await send.send(value)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.send, LARGE)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_a_peer_that_does_not_read_makes_the_sender_wait(pair: Pair) -> None:
    """A cancel ends that at once; the value was not sent, and the channel works on."""
    send, receive = pair
    await fill(send, b"before")
    received: list[bytes] = []

    async def take() -> None:
        received.extend([value async for value in receive])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await send.send(b"after")
        await send.send(LARGE)
        await send.aclose()

    assert received == [b"before", b"after", LARGE]


async def test_a_socket_that_takes_nothing_of_a_value(
    directory: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """There is nothing to withdraw then."""
    here, there = await connection(directory)
    with (
        ProcessSendChannel(here, window=MAX_WINDOW) as send,
        ProcessReceiveChannel(there) as receive,
    ):
        sent = 0
        while True:
            with trio.move_on_after(0.05) as scope:
                await send.send(b"%05d" % sent * 4_000)
            if scope.cancelled_caught:
                break
            sent += 1
        assert 1 < sent < MAX_WINDOW, "the socket was full before the window"
        assert send._owed == b""

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.aclose)
            received = [int(value[:5]) async for value in receive]
        assert received == [*range(sent)]


async def test_what_is_owed_can_wait_for_several_tries(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    """A send that is cancelled while it finishes what another one left was not sent."""
    send, receive = pair
    await fill(send, b"before")
    for _ in range(3):
        with trio.move_on_after(0.01) as scope:
            await send.send(b"cancelled")
        assert scope.cancelled_caught

    assert await receive.receive() == b"before"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.ask, b"after")
        assert await receive.receive() == b"after"
        await receive.acknowledge()


async def test_the_end_waits_for_a_full_socket(pair: Pair) -> None:
    """So that it can be told from a death."""
    send, receive = pair
    await fill(send, b"1", b"2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.aclose)
        await wait_all_tasks_blocked()

        assert [value async for value in receive] == [b"1", b"2"]


async def test_nobody_waits_for_a_full_socket_forever(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    """A cancelled aclose() closes; what was sent is received, and then the peer is broken."""
    send, receive = pair
    await fill(send, b"1", b"2")
    with trio.move_on_after(0.01) as scope:
        await send.aclose()
    assert scope.cancelled_caught

    assert [await receive.receive(), await receive.receive()] == [b"1", b"2"]
    with pytest.raises(trio.BrokenResourceError):
        await receive.receive()


async def test_a_peer_that_goes_while_its_end_is_waited_for(pair: Pair) -> None:
    """There is nobody left who could be told: that is no error."""
    send, receive = pair
    await fill(send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.aclose)
        await wait_all_tasks_blocked()
        receive.close()


async def test_close_does_not_wait(pair: Pair) -> None:
    """Where aclose() would: the other end finds a broken peer then."""
    send, receive = pair
    await fill(send, b"1")
    send.close()

    assert await receive.receive() == b"1"
    with pytest.raises(trio.BrokenResourceError):
        await receive.receive()


@pytest.mark.parametrize("how", ["close", "aclose"])
@pytest.mark.parametrize("round_", range(10))  # trio draws lots who goes first
async def test_closed_when_a_send_was_about_to_go_on(pair: Pair, how: str, round_: int) -> None:
    """It writes nothing more: that would come after what closing said."""
    send, receive = pair
    seen: list[str] = []

    async def give() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await send.send(LARGE)
        seen.append("closed")

    async def close() -> None:
        await trio.lowlevel.wait_readable(signalled)
        if how == "close":
            send.close()
        else:
            await send.aclose()

    signalled, signal_to = os.pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give)
        nursery.start_soon(close)
        await wait_all_tasks_blocked()
        while receive._read_now():  # both tasks can go on after that, at the same moment
            pass
        os.write(signal_to, b".")
        while not seen:
            await trio.lowlevel.checkpoint()
        receive.close()
    os.close(signalled)
    os.close(signal_to)

    assert seen == ["closed"]


async def test_acknowledgements_that_nobody_reads(
    directory: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """They make the receiver wait in the end; one that is cancelled then stands all the same."""
    here, there = await connection(directory)
    value = encode_frame(Frame(FrameKind.DATA, b""))
    answer = b"x" * MAX_ANSWER
    acknowledgement = encode_frame(Frame(FrameKind.ACK, answer))
    given = 0
    with ProcessReceiveChannel(here) as receive:
        async with there:
            while True:
                await there.send_all(value)
                await receive.receive()
                with trio.move_on_after(0.05) as scope:
                    given += 1
                    await receive.acknowledge(answer)
                if scope.cancelled_caught:
                    break
            read = b""
            await there.send_all(value)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive.receive)
                await wait_all_tasks_blocked()
                while len(read) < given * len(acknowledgement):
                    read += await there.receive_some()
            assert read == given * acknowledgement


async def start(nursery: trio.Nursery, program: str, path: Path) -> trio.Process:
    """A real process, which connects to *path*."""
    command = [sys.executable, "-c", program, str(path)]
    run = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
    process: trio.Process = await nursery.start(run)
    return process


async def said(process: trio.Process) -> bytes:
    """The first line that *process* prints."""
    assert process.stdout is not None
    line = b""
    with trio.fail_after(PATIENCE):
        while not line.endswith(b"\n"):
            part = await process.stdout.receive_some()
            assert part, f"it ended after {line!r}: {await process.wait()}"
            line += part
    return line


SENDER = """
import sys, trio
from pathlib import Path
from trimaran._process import ProcessSendChannel, connect

async def main():
    send = ProcessSendChannel(await connect(Path(sys.argv[1])))
    for number in range(3):
        await send.send(b"%d" % number)
    print("writing", flush=True)
    await send.send(bytes(4_000_000))

trio.run(main)
"""


async def test_a_sender_that_is_killed_in_the_middle_of_a_value(directory: Path) -> None:
    """What it had sent is received; then its death is seen, and not an end."""
    with listening("kill", {"XDG_RUNTIME_DIR": str(directory)}) as listener:
        async with trio.open_nursery() as nursery:
            process = await start(nursery, SENDER, listener.path)
            with ProcessReceiveChannel(await listener.accept()) as receive:
                assert await said(process) == b"writing\n"
                for number in range(3):
                    assert await receive.receive() == b"%d" % number
                process.send_signal(signal.SIGKILL)

                with pytest.raises(trio.BrokenResourceError):
                    await receive.receive()


RECEIVER = """
import sys, trio
from pathlib import Path
from trimaran._process import ProcessReceiveChannel, connect

async def main():
    receive = ProcessReceiveChannel(await connect(Path(sys.argv[1])))
    print(await receive.receive(), flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


async def test_a_receiver_that_is_killed(directory: Path) -> None:
    """Who waits for room, for an answer, or for the socket gets to know of it."""
    with listening("kill", {"XDG_RUNTIME_DIR": str(directory)}) as listener:
        async with trio.open_nursery() as nursery:
            process = await start(nursery, RECEIVER, listener.path)
            with ProcessSendChannel(await listener.accept(), window=2) as send:
                broken: list[str] = []

                async def expect(name: str, act: Any, value: bytes) -> None:
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await act(value)
                    assert type(caught.value) is trio.BrokenResourceError
                    broken.append(name)

                async with trio.open_nursery() as senders:
                    for name, act, value in (
                        ("answer", send.ask, b"1"),
                        ("socket", send.send, LARGE),
                        ("turn", send.send, b"2"),
                    ):
                        senders.start_soon(expect, name, act, value)
                        await wait_all_tasks_blocked()
                    assert await said(process) == b"b'1'\n"
                    process.send_signal(signal.SIGKILL)

                assert sorted(broken) == ["answer", "socket", "turn"]


WITHOUT_SIGPIPE = """
import signal, sys, trio
from pathlib import Path
from trimaran._process import PeerClosed, ProcessSendChannel, connect

async def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with ProcessSendChannel(await connect(Path(sys.argv[1]))) as send:
        try:
            while True:
                await send.send(b"")
                await trio.sleep(0.01)
        except PeerClosed:
            print("closed", flush=True)

trio.run(main)
"""


async def test_a_command_that_dies_of_a_broken_pipe_does_not_die_of_this(directory: Path) -> None:
    """Those that are used in pipelines leave SIGPIPE as the system has it."""
    with listening("pipe", {"XDG_RUNTIME_DIR": str(directory)}) as listener:
        async with trio.open_nursery() as nursery:
            process = await start(nursery, WITHOUT_SIGPIPE, listener.path)
            with ProcessReceiveChannel(await listener.accept()) as receive:
                await receive.receive()
            assert await said(process) == b"closed\n"


async def test_a_forked_child_lets_go(pair: Pair) -> None:
    """Nothing is said for it; and when its parent has closed, the other end sees that."""
    send, receive = pair
    await send.send(b"1")
    blocked, gate = os.pipe()
    with untraced():
        child = os.fork()
        if child == 0:
            send.let_go()
            receive.let_go()
            os.close(gate)
            os.read(blocked, 1)
            os._exit(0)
    os.close(blocked)
    try:
        await send.send(b"2")
        assert [await receive.receive() for _ in range(2)] == [b"1", b"2"]
        send._socket.close()  # as when this process dies
        with pytest.raises(trio.BrokenResourceError):
            await receive.receive()
    finally:
        os.close(gate)
        assert await status_of(child) == 0


async def test_an_end_that_was_let_go_is_closed(pair: Pair) -> None:
    """For who holds it; the other end is not told."""
    send, receive = pair
    send.let_go()
    send.close()

    with pytest.raises(trio.ClosedResourceError):
        await send.send(b"1")
    with pytest.raises(trio.BrokenResourceError):
        await receive.receive()
