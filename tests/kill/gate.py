"""The network between agents and their receiver, with a will of its own.

In: the receiver's port, moods. Out: a port for the agents, the same for all of their lives.
Does not know: HTTP, but for one answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Literal, TypeAlias

import trio

__all__ = ["TROUBLE", "WELL", "Gate", "Mood"]

Mood: TypeAlias = Literal["open", "slow", "deaf", "busy", "hung", "shut"]

WELL: Sequence[Mood] = ("open",)
TROUBLE: Sequence[Sequence[Mood]] = (
    WELL,
    ("slow",),
    ("open", "deaf"),
    ("deaf", "busy", "slow", "shut"),
    ("hung", "open"),
    ("busy",),
    ("shut",),
)
"""What may await the connections of a life: each gets one mood of its row."""

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Gate:
    """One way to the receiver.

    Args:
        random: what it is guided by.
        receiver: the port on loopback that it leads to.
    """

    def __init__(self, random: Random, receiver: int) -> None:
        self._random = random
        self._receiver = receiver
        self.moods = WELL
        """Those of the connections to come."""
        self.port = 0

    async def run(self, task_status: trio.TaskStatus[Gate] = trio.TASK_STATUS_IGNORED) -> None:
        """Let connections through, or not, until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._meet, listeners)
            task_status.started(self)

    async def _meet(self, agent: trio.SocketStream) -> None:
        mood = self._random.choice(self.moods)
        try:
            match mood:
                case "shut":
                    return
                case "hung":
                    async for _ in agent:
                        pass
                case "busy":
                    await agent.receive_some()
                    await agent.send_all(_BUSY)
                case "open" | "slow" | "deaf":
                    await self._lead(agent, mood)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # killed
        finally:
            await trio.aclose_forcefully(agent)

    async def _lead(self, agent: trio.SocketStream, mood: Mood) -> None:
        """Pass on what comes, both ways; at a deaf one, an answer gets lost, and the rest."""
        answers = self._random.choice([0, 1, 3]) if mood == "deaf" else math.inf
        pause = 0.02 if mood == "slow" else 0.0
        receiver = await trio.open_tcp_stream("127.0.0.1", self._receiver)
        async with receiver, trio.open_nursery() as nursery:

            async def there() -> None:
                async for part in agent:
                    await trio.sleep(self._random.random() * pause)
                    await receiver.send_all(part)
                await receiver.send_eof()

            async def back() -> None:
                heard = 0
                async for part in receiver:
                    await trio.sleep(self._random.random() * pause)
                    if heard >= answers:
                        break
                    await agent.send_all(part)
                    heard += 1
                nursery.cancel_scope.cancel()

            nursery.start_soon(there)
            nursery.start_soon(back)
