"""Stage 3: one batch at a time, in order, until its fate is known.

In: batches. Out: requests to the endpoint; the fate of each event, in the ledger.
Does not know: how events were gathered, tokens, other sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import msgspec
import trio
from trio.abc import ReceiveChannel

from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import ConsentWithdrawn, Endpoint
from trimaran._pipeline import wire
from trimaran._pipeline.batcher import Batch
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.retry import Verdict, backoff, judge
from trimaran._settings import Settings
from trimaran._transport import Answer, Request, TransportError
from trimaran._version import __version__

__all__ = ["Parcel", "Sender"]

_NO_ANSWER = Answer(0)
_PARTIAL = 207


class Parcel(msgspec.Struct, frozen=True):
    """What one request carries: a batch, or a part of one that was too large."""

    key: str
    """The idempotency key, the same for every attempt."""
    events: Sequence[bytes]
    reports: int
    """How many of the events, from the first, are reports of losses."""

    @property
    def tracked(self) -> int:
        """How many of the events are in the ledger."""
        return len(self.events) - self.reports

    def halves(self) -> tuple[Parcel, Parcel]:
        """Two parcels with keys of their own that follow from this one's."""
        middle = len(self.events) // 2
        return (
            Parcel(f"{self.key}.0", self.events[:middle], min(self.reports, middle)),
            Parcel(f"{self.key}.1", self.events[middle:], max(0, self.reports - middle)),
        )


class Sender:
    """The stage of one session.

    Args:
        context: what every batch says of its session.
        key_prefix: unique over all sessions of all time; a batch's key begins with it.
        endpoint: the way out, shared with other sessions.
        settings: the retry schedule.
        ledger: the session's books.
        settled: told the bytes of a batch whose fate is known.
        hold: told why batches are not taken, when it is more than a passing failure, and
            None when they are.
        diagnostics: where lasting trouble is told.
        random: where the jitter comes from.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        context: wire.Context,
        key_prefix: str,
        endpoint: Endpoint,
        settings: Settings,
        ledger: Ledger,
        settled: Callable[[int], None],
        hold: Callable[[DropReason | None], None],
        diagnostics: Diagnostics,
        random: Random,
        wall_clock: Callable[[], float],
    ) -> None:
        self._context = context
        self._key_prefix = key_prefix
        self._endpoint = endpoint
        self._url = wire.endpoint_url(endpoint.url)
        self._settings = settings
        self._ledger = ledger
        self._settled = settled
        self._hold = hold
        self._is_repetition = False
        self._diagnostics = diagnostics
        self._random = random
        self._wall_clock = wall_clock
        self.held_back_by: DropReason | None = None
        """Why the batch at hand is not taken, if it is more than a passing failure:
        what pends when time runs out is dropped for that reason."""

    async def run(self, receive: ReceiveChannel[Batch]) -> None:
        """Send until the input ends; it is closed then.

        A cancel leaves open what became of the batch under way: the endpoint may have
        taken it. The session counts it as dropped.
        """
        async with receive:
            async for batch in receive:
                if batch.lines or batch.reports:
                    await self._settle(batch)
                for flush in batch.flushes:
                    flush.reach()

    async def _settle(self, batch: Batch) -> None:
        events = [*batch.reports, *(line.encoded for line in batch.lines)]
        reports_arrived = await self._deliver(
            Parcel(f"{self._key_prefix}-{batch.number}", events, len(batch.reports))
        )
        if reports_arrived:
            self._ledger.loss_reports += len(batch.reports)
        else:
            self._ledger.give_back_losses(batch.losses)
        self._ledger.batches += 1
        self._settled(sum(line.size for line in batch.lines))

    async def _deliver(self, parcel: Parcel) -> bool:
        """Try until the fate of every event is known; says whether all reports arrived."""
        request = Request(
            self._url,
            {
                "content-type": "application/json",
                "user-agent": f"trimaran/{__version__}",
                "idempotency-key": parcel.key,
            },
            wire.body(self._context, parcel.events, timestamp=int(self._wall_clock() * 1000)),
        )
        self._is_repetition = False
        give_up_at = trio.current_time() + self._settings.retry_timeout
        failures = 0
        while True:
            answer = None
            with trio.move_on_at(give_up_at):
                try:
                    answer = await self._attempt(request, is_repeated=failures > 0)
                except ConsentWithdrawn:
                    return self._drop(parcel, DropReason.CONSENT_WITHDRAWN)
            if answer is None:
                return self._drop(parcel, self.held_back_by or DropReason.RETRIES_EXHAUSTED)
            match self._verdict(answer):
                case Verdict.DELIVERED:
                    return self._delivered(parcel, answer)
                case Verdict.REJECTED:
                    self._diagnostics.warn("telemetry rejected", status=answer.status)
                    return self._drop(parcel, DropReason.REJECTED)
                case Verdict.HALVE if len(parcel.events) == 1:
                    return self._drop(parcel, DropReason.TOO_LARGE)
                case Verdict.HALVE:
                    first, second = parcel.halves()
                    first_arrived = await self._deliver(first)
                    return await self._deliver(second) and first_arrived
                case Verdict.RETRY | Verdict.UNAUTHORIZED as verdict:
                    failures += 1
                    again_at = self._again_at(verdict, answer, failures)
                    if again_at > give_up_at:
                        return self._drop(parcel, self.held_back_by or DropReason.RETRIES_EXHAUSTED)
                    await self._endpoint.pause_until(again_at)

    async def _attempt(self, request: Request, *, is_repeated: bool) -> Answer:
        """One attempt; no answer at all is an answer of status 0."""
        try:
            return await self._endpoint.attempt(
                request, is_repeated=is_repeated, made=self._count_attempt
            )
        except TransportError as error:
            self._diagnostics.warn("telemetry endpoint not reached", error=str(error))
            return _NO_ANSWER

    def _count_attempt(self) -> None:
        self._ledger.attempts += 1
        self._ledger.retries += self._is_repetition
        self._is_repetition = True

    def _verdict(self, answer: Answer) -> Verdict:
        verdict = (
            Verdict.RETRY
            if answer is _NO_ANSWER
            else judge(answer.status, with_token=self._endpoint.with_token)
        )
        unauthorized = verdict is Verdict.UNAUTHORIZED
        self.held_back_by = DropReason.UNAUTHORIZED if unauthorized else None
        self._hold(self.held_back_by)
        return verdict

    def _again_at(self, verdict: Verdict, answer: Answer, failures: int) -> float:
        """When to try again, by trio's clock; what the endpoint asks for comes on top."""
        settings = self._settings
        now = trio.current_time()
        if verdict is Verdict.UNAUTHORIZED:
            self._diagnostics.warn("telemetry token refused", status=answer.status)
            return max(self._endpoint.next_refresh_at(), now + settings.retry_initial)
        if answer.status:
            self._diagnostics.warn("telemetry endpoint failing", status=answer.status)
        return now + backoff(
            failures,
            initial=settings.retry_initial,
            maximum=settings.retry_max,
            chance=self._random.random(),
        )

    def _delivered(self, parcel: Parcel, answer: Answer) -> bool:
        refused = (
            wire.refused_indexes(answer.body, count=len(parcel.events))
            if answer.status == _PARTIAL
            else frozenset[int]()
        )
        refused_reports = sum(index < parcel.reports for index in refused)
        refused_events = len(refused) - refused_reports
        if refused:
            self._diagnostics.warn("telemetry partly rejected", events=len(refused))
        self._ledger.deliver(parcel.tracked - refused_events)
        self._ledger.drop(DropReason.REJECTED, refused_events)
        return not refused_reports

    def _drop(self, parcel: Parcel, reason: DropReason) -> bool:
        self._ledger.drop(reason, parcel.tracked)
        return not parcel.reports
