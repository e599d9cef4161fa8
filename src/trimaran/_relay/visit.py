"""A person's way to a relay: a look at it, and its end.

In: where a relay is. Out: how it is; the knowledge that it has ended.
Does not know: commands, what is shown.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio

from trimaran._process import ProcessError, ProcessReceiveChannel, ProcessSendChannel, connect
from trimaran._relay.messages import (
    LISTENS,
    SPEAKS,
    End,
    Report,
    Spectator,
    encoded,
    report_from,
)
from trimaran._relay.place import RelayPlace

__all__ = ["end_relay", "report_of"]

_LOOK = 0.02
"""Seconds between two looks whether it has ended."""


async def report_of(place: RelayPlace) -> Report | None:
    """How the relay there is; None where none can be reached.

    Raises:
        MessageError: it is of a version that speaks otherwise.
    """
    stream = await _reached(place.address())
    if stream is None:
        return None
    try:
        await stream.send_all(LISTENS)
        with ProcessReceiveChannel(stream) as line:
            await line.receive()
            await line.acknowledge(encoded(Spectator()))
            return report_from(await line.receive())
    except (trio.BrokenResourceError, trio.EndOfChannel):
        return None  # it was about to end
    finally:
        stream.socket.close()


async def end_relay(place: RelayPlace) -> bool:
    """Let the relay there end, and wait until it has; whether there was one.

    What it has stays on disk. Waits for as long as it takes, also until one that cannot be found
    at this moment can be. Raises as :meth:`RelayPlace.is_held`.
    """
    was_there = place.is_held()
    while True:
        stream = await _reached(place.address())
        if stream is not None:
            await _asked_to_end(stream)
        if not place.is_held():
            return was_there
        await trio.sleep(_LOOK)


async def _asked_to_end(stream: trio.SocketStream) -> None:
    try:
        await stream.send_all(SPEAKS)
        with ProcessSendChannel(stream) as channel:
            await channel.ask(encoded(End()))
    except trio.BrokenResourceError:
        pass  # it ends already
    finally:
        stream.socket.close()


async def _reached(address: Path | None) -> trio.SocketStream | None:
    if address is not None:
        with suppress(ProcessError):
            return await connect(address)
    return None
