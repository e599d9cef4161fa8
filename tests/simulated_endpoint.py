"""An endpoint and the network before it, as one seed wants them.

In: requests, one attempt each. Out: answers, and a book of what was taken.
Does not know: who sends, what becomes of it there, how much of the world is simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import msgspec
import trio

import trimaran

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SimulatedEndpoint"]

STATUSES = [200, 200, 200, 200, 200, 207, 301, 400, 401, 403, 413, 429, 500, 503]
"""A 207 takes a batch in part."""


@dataclass
class SimulatedEndpoint:
    """An endpoint and the network before it; both do whatever the seed says."""

    random: Random
    trouble: float = 0.0
    """How likely an attempt is to meet with something else than success."""
    with_token: bool = False
    """Whether a 401 is about a token, and no lasting refusal."""
    is_withdrawn: Callable[[], bool] = lambda: False
    is_dead: Callable[[], bool] = lambda: False
    taken: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    """Events by idempotency key, as the endpoint took them, answered or not."""
    refused: dict[str, set[int]] = field(default_factory=dict)
    """Indexes that an answer named as bad, by key."""
    turned_away: set[str] = field(default_factory=set)
    """Keys that were answered with a lasting refusal, or taken apart."""
    too_large: set[str] = field(default_factory=set)
    """Keys that were answered with a 413."""
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)
    """Promises that were broken; what a transport raises would count as a failed attempt."""

    def transport(self) -> trimaran.Transport:
        """What a process posts through; every one that begins gets its own."""
        return self

    async def attempt(self, request: trimaran.Request) -> trimaran.Answer:
        """One attempt over the wire of the origin."""
        return await self.meet(request.headers["idempotency-key"], request.body)

    async def meet(self, key: str, body: bytes) -> trimaran.Answer:
        """What becomes of the batch of *key*, written down as *body*."""
        if self.is_dead():
            await trio.sleep_forever()
        if self.is_withdrawn():
            self.wrong.append("a request after consent was withdrawn")
        self.attempts += 1
        await trio.sleep(self.random.choice([0, 0, 0.001, 0.1, 3]))
        if key in self.too_large:
            return trimaran.Answer(413)  # what was too large once is so for ever
        if self.random.random() >= self.trouble:
            return self._take(key, body, 200)
        return await self._make_trouble(key, body)

    async def _make_trouble(self, key: str, body: bytes) -> trimaran.Answer:
        random = self.random
        what = random.choice(["status", "status", "reset before", "reset after", "hang"])
        if what == "hang":
            await trio.sleep(math.inf)
        if what == "reset before":
            raise trimaran.TransportError("reset")
        if what == "reset after":
            self._take(key, body, 200)
            raise trimaran.TransportError("reset")
        status = random.choice(STATUSES)
        if status == 413 and key in self.taken:
            status = 503  # and so is what was small enough
        if status in {200, 207}:
            return self._take(key, body, status)
        if status == 413:
            self.too_large.add(key)
        if status in {301, 400, 403, 413} or (status == 401 and not self.with_token):
            self.turned_away.add(key)
        return self.refusal(
            trimaran.Answer(status, retry_after=random.choice([None, "1", "999999", "soon"]))
        )

    def _take(self, key: str, body: bytes, status: int) -> trimaran.Answer:
        events = self.events_in(key, body)
        if self.taken.setdefault(key, events) != events:
            self.wrong.append("one key, two batches")
        refused: set[int] = set()
        if status == 207:
            refused = {index for index in range(len(events)) if self.random.random() < 0.2}
        return self.receipt(key, status, refused)

    def events_in(self, key: str, body: bytes) -> list[dict[str, object]]:
        """The events in *body*."""
        batch = msgspec.json.decode(body)
        events: list[dict[str, object]] = batch["events"]
        if {event["session_id"] for event in events} - {batch["session_id"]}:
            self.wrong.append("an event of another session")
        return events

    def receipt(self, key: str, status: int, refused: set[int]) -> trimaran.Answer:
        """The answer to what is taken, but for these indexes."""
        # A key that comes again gets the receipt of the first time, as the receiver does it.
        refused = self.refused.setdefault(key, refused)
        body = msgspec.json.encode({"rejected": [{"index": index} for index in sorted(refused)]})
        return trimaran.Answer(207 if refused else status, body=body)

    def refusal(self, answer: trimaran.Answer) -> trimaran.Answer:
        """*answer*, as it is put."""
        return answer

    async def aclose(self) -> None:
        """Nothing is open."""
        await trio.lowlevel.checkpoint()
