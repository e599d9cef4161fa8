"""Senders that do not give up, at a receiver that is killed or whose disk is full.

In: a seed, how often. Out: what was answered with a 200, and what the receiver has.
Does not know: agents, sessions, the spool; only the wire.
"""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import msgspec
import trio

from faults.served import environment, line_of
from patience import PATIENCE
from trimaran._transport.http import _Body  # httpx's own warns when a connection breaks in it

__all__ = ["Sent", "faults_of", "kill_receiver", "started_receiver"]

SENDERS = 6
LONGEST_LIFE = 0.6
"""Seconds, once there is something to lose."""
ANSWERS = 6
"""Of each life, at least."""


@dataclass
class Sent:
    """What senders know, and what a receiver has in the end."""

    kills: int = 0
    answered: dict[str, int] = field(default_factory=dict)
    """Events of each batch that was answered with a 200, by its key."""
    repeated: int = 0
    """Batches that the receiver said it had already."""
    missing: list[str] = field(default_factory=list)
    """Keys of what was answered, and not there when the receiver had been killed."""
    stored: Mapping[str, int] = field(default_factory=dict)
    """How often there is a batch of each key."""
    events: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The numbers of each session's events, in order."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """How many events each session's summary counts."""

    def read(self, database: Path) -> None:
        """See what the receiver has, and leave it to itself to recover."""
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            keys = connection.execute("SELECT key FROM batches").fetchall()
            totals = connection.execute("SELECT id, summary FROM sessions").fetchall()
            events = connection.execute(
                "SELECT session_id, json_extract(event, '$.number') FROM events"
                " ORDER BY session_id, position"
            ).fetchall()
        self.stored = Counter(key for (key,) in keys)
        self.totals = {
            session: msgspec.json.decode(text)["event_count"] for session, text in totals
        }
        self.events = {
            session: [number for _, number in group]
            for session, group in itertools.groupby(events, key=lambda row: row[0])
        }


class Sender:
    """Sends batches of a session, each until it is answered with a 200, in order."""

    def __init__(self, name: str, seed: int, sent: Sent) -> None:
        self.name = name
        self._random = Random(seed)
        self._sent = sent
        self._numbers = itertools.count()

    async def run(self, client: httpx.AsyncClient) -> None:
        """Send until cancelled."""
        for count in itertools.count():
            numbers = list(itertools.islice(self._numbers, self._random.choice([1, 10, 200])))
            body = batch_of(self.name, numbers)
            key = f"{self.name}-{count}"
            while not await self._is_taken(client, key, body, len(numbers)):  # noqa: ASYNC110 - another process is waited for
                await trio.sleep(0.01)

    async def _is_taken(
        self, client: httpx.AsyncClient, key: str, body: bytes, events: int
    ) -> bool:
        try:
            answer = await post(client, key, body)
        except httpx.TransportError:
            return False
        if answer.status_code != 200:
            return False
        self._sent.answered[key] = events
        self._sent.repeated += "idempotent-replayed" in answer.headers
        return True


def batch_of(session: str, numbers: Sequence[int]) -> bytes:
    """A body with an event for each number."""
    events = [
        {"type": "numbered", "timestamp": 1, "session_id": session, "number": number}
        for number in numbers
    ]
    return msgspec.json.encode({"session_id": session, "timestamp": 1, "events": events})


async def post(client: httpx.AsyncClient, key: str, body: bytes) -> httpx.Response:
    """One attempt."""
    request = client.build_request(
        "POST",
        "/api/observability/ingest",
        headers={
            "content-type": "application/json",
            "content-length": str(len(body)),
            "idempotency-key": key,
        },
    )
    request.stream = _Body(body)
    return await client.send(request)


@asynccontextmanager
async def started_receiver(
    database: Path, *, port: int = 0, most_bytes: int = 0
) -> AsyncIterator[tuple[trio.Process, str]]:
    """A receiver in a process of its own and its URL, until it is killed with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "kill.receiver", str(database), str(port), str(most_bytes)],
        env=environment(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process, (await line_of(process)).decode().strip()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            assert await process.wait() == -signal.SIGKILL
        await process.stdout.aclose()


async def kill_receiver(seed: int, kills: int, database: Path) -> Sent:
    """Kill a receiver so often while it takes batches, and start it again."""
    random = Random(seed)
    sent = Sent()
    port = 0
    async with trio.open_nursery() as senders:
        for number in range(kills + 1):
            async with started_receiver(database, port=port) as (_, url):
                if number == 0:
                    port = httpx.URL(url).port or 0  # the same from here on
                    for name in range(SENDERS):
                        senders.start_soon(_send, f"s{name}", random.getrandbits(32), url, sent)
                enough = len(sent.answered) + (1 if number == kills else ANSWERS)
                while len(sent.answered) < enough:  # noqa: ASYNC110 - as above
                    await trio.sleep(0.001)
                if number == kills:
                    break
                await trio.sleep(random.random() * random.choice([0.01, 0.1, LONGEST_LIFE]))
            sent.kills += 1
            sent.read(database)
            sent.missing += [key for key in sent.answered if key not in sent.stored]
        senders.cancel_scope.cancel()
    sent.read(database)
    return sent


async def _send(name: str, seed: int, url: str, sent: Sent) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        await Sender(name, seed, sent).run(client)


def faults_of(sent: Sent) -> list[str]:
    """What is wrong; nothing, if all promises were kept."""
    faults = [f"{key} was answered, and is not there" for key in sent.missing]
    faults += [
        f"{key} is not there in the end" for key in sent.answered if not sent.stored.get(key)
    ]
    faults += [f"{key} is there {count} times" for key, count in sent.stored.items() if count != 1]
    for session, numbers in sent.events.items():
        if list(numbers) != list(range(len(numbers))):
            faults.append(f"the events of {session} are not once each and in order")
        if sent.totals[session] != len(numbers):
            faults.append(f"{session} counts {sent.totals[session]} events, not {len(numbers)}")
    return faults
