"""Passes on what a receiver takes, to whatever takes OTLP.

In: validated batches. Out: a receipt once a batch is on disk; spans, or log records, to the
endpoint, until it has them. What a session's start said goes into its end as well, since the
root is made of that.
Does not know: HTTP, how events become spans, when to try again: that is the work of a relay's
outlet, with OTLP's transport in the place of its own.

What is on disk when a receiver dies is taken over by the next one on the same directory, for
the same endpoint. A batch that went out right before is sent once more then, as the same spans.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec
import trio

from trimaran._decision import Tier
from trimaran._diagnostics import Diagnostics
from trimaran._events import SessionStart
from trimaran._pipeline import wire
from trimaran._relay.messages import HandedBatch, OutletReport
from trimaran._relay.orders import Orders, orders_of
from trimaran._relay.outlet import Circumstances, Outlet
from trimaran._settings import Relay, Settings
from trimaran._spool.values import SpoolError
from trimaran._telemetry import random_id
from trimaran.otlp import OtlpSettings, OtlpTransport
from trimaran.receiver.beginnings import Beginnings
from trimaran.receiver.ingest import Batch, GoodEvent
from trimaran.receiver.line import Line, Post
from trimaran.receiver.store import StoreError, StoreUnavailable
from trimaran.receiver.values import Receipt

__all__ = ["DRAIN", "SPOOL_BYTES", "Forward", "Forwarder", "open_forwarder"]

SPOOL_BYTES = 1024**3
"""Bytes of all batches on disk, by default: four million events of the usual size."""

DRAIN = 1.0
"""Seconds that requests under way have to be answered, at the end. What is not stays on disk."""

_WHO = "receiver"

_LONGEST_NAME = 1_000
"""Characters of an agent's name, or a model's, that is kept for the end of its session."""


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """Where a receiver passes on what it takes.

    Raises:
        ValueError: a variable named an endpoint that cannot be used, so there is none.
    """

    settings: OtlpSettings
    """Where to, and how."""
    spool: str | os.PathLike[str]
    """The directory where batches wait, on a disk of this machine; made if need be, for its
    user alone. Receivers may share it."""
    most_bytes: int = SPOOL_BYTES
    """Of all batches there, at most. What has no room is not taken."""

    def __post_init__(self) -> None:
        if not self.settings.url:
            raise ValueError(f"Forward: there is nowhere to: {'; '.join(self.settings.problems)}")


class Forwarder:
    """The way to one endpoint. Made by :func:`open_forwarder`, used from one trio run."""

    def __init__(self, outlet: Outlet, forward: Forward, circumstances: Circumstances) -> None:
        self._outlet = outlet
        self._forward = forward
        self._circumstances = circumstances
        self._beginnings = Beginnings(Path(forward.spool), circumstances.wall_clock)
        self._line = Line(self._write)

    def __repr__(self) -> str:
        return f"<Forwarder {self.where}>"

    @property
    def where(self) -> str:
        """The endpoint, and where batches wait for it."""
        return f"{self._forward.settings.url}, by way of {os.fspath(self._forward.spool)}"

    async def append(
        self, batch: Batch, key: str | None = None, *, parent: str | None = None
    ) -> Receipt:
        """See :class:`Keeper`; once this has returned, the batch is on disk.

        One that comes again, while it waits or within the next 10,000, is not sent again; that
        it did come again is not said.
        """
        return await self._line.append(batch, key, parent)

    async def check(self) -> None:
        """See :class:`Keeper`: whether the disk can be read."""
        await trio.to_thread.run_sync(self._others)

    async def begin(self) -> None:
        """Take over what was left, and tell of what nobody sends from here.

        Raises:
            StoreError: the directory cannot be used.
        """
        try:
            others = await trio.to_thread.run_sync(self._others)
        except StoreUnavailable as error:
            raise StoreError(str(error)) from None
        if others:
            self._circumstances.diagnostics.warn(
                "receiver_spool_has_more",
                hint="a receiver that forwards there sends it",
                destinations=[other.partition(" ")[2] for other in others],
            )
        await self._outlet.adopt()

    def report(self) -> OutletReport:
        """What became of what was taken, and of what was found on disk."""
        return self._outlet.report()

    def tell(self) -> None:
        """Say what became of it, in the log."""
        report = self.report()
        facts: dict[str, object] = {"delivered": report.delivered, **report.dropped}
        self._circumstances.diagnostics.inform(
            "receiver_forwarded", to=self._forward.settings.url, **facts, waiting=report.events
        )

    async def aclose(self) -> None:
        """Let go of the disk."""
        await trio.to_thread.run_sync(self._beginnings.close)

    async def _write(self, group: Sequence[Post]) -> list[Receipt]:
        is_taken = False
        # Whoever writes does so for others, too; and what is on disk has to be sent.
        with trio.CancelScope(shield=True):  # as long as another process holds the disk
            begun = await self._begun(group)
            batches = [self._handed(post, begun) for post in group]
            is_taken = await self._outlet.take(_WHO, batches)
        if not is_taken:
            raise StoreUnavailable(
                f"{os.fspath(self._forward.spool)}: no room is left, or the disk fails"
            )
        return [Receipt(len(post.batch.events), post.batch.rejected) for post in group]

    async def _begun(self, group: Sequence[Post]) -> Mapping[str, bytes]:
        """What the sessions that end in *group* said when they began; that of those which begin
        there is kept. Not a checkpoint where there is nothing of either.
        """
        starts: dict[str, bytes] = {}
        ended: list[str] = []
        for batch in (post.batch for post in group):
            for event in batch.events:
                if isinstance(event.event, SessionStart):
                    starts[batch.session_id] = _said(event, event.event)
                elif event.type == "session_end":
                    ended.append(batch.session_id)

        def kept() -> Mapping[str, bytes]:
            if starts:
                self._beginnings.note(starts)
            return self._beginnings.of(ended)

        if not starts and not ended:
            return starts
        try:
            return await trio.to_thread.run_sync(kept)
        except (OSError, sqlite3.Error) as error:
            self._circumstances.diagnostics.warn(
                "receiver_beginnings_unavailable", error=str(error)
            )
            return starts

    def _handed(self, post: Post, begun: Mapping[str, bytes]) -> HandedBatch:
        batch = post.batch
        context = wire.Context(
            session_id=batch.session_id,
            cli_version=batch.cli_version,
            user_email=batch.user_email,
            project_id=batch.project_id,
        )
        said = begun.get(batch.session_id, b"")
        events = [
            b"{" + said + event.raw[1:] if event.type == "session_end" else event.raw
            for event in batch.events
        ]
        return HandedBatch(
            key=_key_of(batch.session_id, post.key or self._circumstances.new_id()),
            body=wire.body(context, events, timestamp=batch.timestamp),
            events=len(events),
            parent_session_id=post.parent or "",
        )

    def _others(self) -> list[str]:
        """The other destinations that something on disk is bound to. Blocking.

        Raises:
            StoreUnavailable: the disk cannot be read.
        """
        file = self._circumstances.file_for("")
        try:
            return [each for each in file.destinations() if each != self._outlet.destination]
        except SpoolError as error:
            raise StoreUnavailable(str(error)) from None
        finally:
            file.close()


def _orders(forward: Forward) -> Orders:
    """The same as a relay is told it. What was answered with a 200 survives a loss of power."""
    relay = Relay(
        directory=os.fspath(forward.spool), most_bytes=forward.most_bytes, survives="power_loss"
    )
    return orders_of(relay, Settings())


def _said(event: GoodEvent, start: SessionStart) -> bytes:
    """What the end of a session does not say, and its start did, as members of a JSON object:
    the same as in a session that knows that spans are wanted.
    """
    known: dict[str, object] = {
        "agent": start.agent,
        "model_id": start.model_id,
        "provider_id": start.provider_id,
    }
    fitting = {
        name: text
        for name, text in known.items()
        if isinstance(text, str) and len(text) <= _LONGEST_NAME
    }
    members = {**fitting, "span_start": str(event.timestamp * 1_000_000)}
    return msgspec.json.encode(members)[1:-1] + b","


def _key_of(session_id: str, key: str) -> str:
    """A batch's key among those of all sessions.

    It follows from what came, so that spans, whose ids are made of it, are the same from every
    receiver. Its first half is the session's: those that share it are sent in their order.
    """
    return f"{_digest(session_id)}-{_digest(key)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Lanes:
    """A nursery that outlives a cancel of what is around it, up to its own deadline."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope(shield=True)
        self._is_open = trio.Event()
        self._closing = trio.Event()

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as self.nursery:
                self._is_open.set()
                await self._closing.wait()

    async def opened(self) -> trio.Nursery:
        await self._is_open.wait()
        assert self.nursery is not None
        return self.nursery

    def close(self) -> None:
        """What runs there has a second to end."""
        self._scope.deadline = trio.current_time() + DRAIN
        self._closing.set()


@asynccontextmanager
async def open_forwarder(
    forward: Forward, *, random: Random | None = None
) -> AsyncGenerator[Forwarder]:
    """Pass on what comes, and what was left on disk.

    After the block, requests under way have a second to be answered; what has not gone out
    stays on disk. An exception of the block comes out as it is.

    Args:
        forward: where to, and where batches wait.
        random: where jitter comes from.

    Raises:
        StoreError: the directory cannot be used.
    """
    transport = OtlpTransport(forward.settings, names_process=False)  # it speaks for agents
    raised: BaseException | None = None
    lanes = _Lanes()
    outlet: Outlet | None = None
    forwarder: Forwarder | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lanes.run)
        try:
            circumstances = Circumstances(
                _orders(forward),
                nursery=await lanes.opened(),
                diagnostics=Diagnostics(trio.current_time),
                random=Random() if random is None else random,  # noqa: S311 - no secret
                wall_clock=time.time,
                new_id=random_id,
                transport=transport,
                changed=lambda: None,
            )
            outlet = Outlet(f"{Tier.ANONYMOUS} {forward.settings.url}", circumstances)
            begun = Forwarder(outlet, forward, circumstances)
            await begun.begin()
            forwarder = begun
            yield forwarder
        except BaseException as error:  # noqa: BLE001 - raised again below, out of the nursery
            raised = error
        finally:
            if outlet is not None:
                outlet.end()
            lanes.close()
    with trio.CancelScope(shield=True):  # each of them is bounded
        if outlet is not None:
            await outlet.aclose()
        with trio.move_on_after(DRAIN):
            await transport.aclose()
        if forwarder is not None:
            await forwarder.aclose()
    if forwarder is not None:
        forwarder.tell()
    if raised is not None:
        raise raised
