"""Stage 3: one batch at a time, in order, until its fate is known.

In: batches. Out: requests to the endpoint; the fate of each event, in the ledger.
Does not know: how events were gathered, tokens, other sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import msgspec
import trio
from msgspec.structs import replace

from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import WayOut
from trimaran._pipeline import wire
from trimaran._pipeline.batch import MOST_TOGETHER, Batch, KeptBatch, ready
from trimaran._pipeline.ledger import DropReason, Ledger
from trimaran._pipeline.retry import Verdict, backoff, judge
from trimaran._pipeline.words import words_of
from trimaran._settings import Settings
from trimaran._spool.keeper import SpoolKeeper
from trimaran._transport import HANDED_OVER, Answer, GivenUp, Request, TransportError
from trimaran._version import __version__

__all__ = ["Sender"]

_NO_ANSWER = Answer(0)
_PARTIAL = 207


class Sender:
    """The stage of one session.

    Args:
        endpoint: the way out, shared with other sessions.
        settings: the retry schedule.
        ledger: the session's books.
        keeper: the spool, if there is one.
        settled: told the bytes of a batch whose fate is known.
        hold: told why batches are not taken, when it is more than a passing failure, and
            None when they are.
        diagnostics: where lasting trouble is told.
        random: where the jitter comes from.
        wall_clock: seconds since the epoch.
        ahead: hands several requests over at once, and says whether that went well; if not,
            they are sent one by one. None never does.
    """

    def __init__(
        self,
        *,
        endpoint: WayOut,
        settings: Settings,
        ledger: Ledger,
        keeper: SpoolKeeper | None,
        settled: Callable[[int], None],
        hold: Callable[[DropReason | None], None],
        diagnostics: Diagnostics,
        random: Random,
        wall_clock: Callable[[], float],
        ahead: Callable[[Sequence[Request]], Awaitable[bool]] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._url = wire.endpoint_url(endpoint.url)
        self._settings = settings
        self._ledger = ledger
        self._keeper = keeper
        self._settled = settled
        self._hold = hold
        self._is_repetition = False
        self._diagnostics = diagnostics
        self._random = random
        self._wall_clock = wall_clock
        self._ahead = ahead
        self.held_back_by: DropReason | None = None
        """Why the batch at hand is not taken, if it is more than a passing failure:
        what pends when time runs out is dropped for that reason."""

    @trio.lowlevel.enable_ki_protection
    async def run(self, receive: trio.MemoryReceiveChannel[Batch]) -> None:
        """Send until the input ends; it is closed then.

        A cancel leaves open what became of the batch under way: the endpoint may have
        taken it. The session counts it as dropped.
        """
        async with receive:
            async for batch in receive:
                if self._ahead is None or not receive.statistics().current_buffer_used:
                    await self._send(batch)
                else:
                    await self._send_together([batch, *ready(receive, MOST_TOGETHER - 1)])
                # A session that waits for its next event keeps nothing of the last ones.
                del batch

    async def _send_together(self, batches: Sequence[Batch]) -> None:
        """Hand over what is in memory alone, all at once; else send one after the other."""
        requests = [
            self._request_of(batch, batch.body)
            for batch in batches
            if batch.body is not None and batch.kept is None
        ]
        is_all = len(requests) == sum(batch.events > 0 for batch in batches)
        if self._ahead is None or not is_all or not await self._ahead(requests):
            for batch in batches:
                await self._send(batch)
            return
        for batch in batches:
            if batch.events:
                await self._book(batch, arrived=self._delivered(batch, HANDED_OVER))
            for flush in batch.flushes:
                flush.reach()

    async def _send(self, batch: Batch) -> None:
        if batch.events:
            body = await self._body_of(batch)
            if body is not None:
                await self._settle(batch, body)
            else:
                # Off the disk its fate is known; on it, it waits for a later process.
                self._ledger.give_back_losses(batch.losses)
                self._settled(batch.size)
        for flush in batch.flushes:
            flush.reach()

    async def _body_of(self, batch: Batch) -> bytes | None:
        """What to send; None when the batch left the disk, which was its fate."""
        if batch.kept is None or self._keeper is None:
            return batch.body
        return await self._keeper.body_of(batch)

    async def _settle(self, batch: Batch, body: bytes) -> None:
        await self._book(batch, arrived=await self._deliver(batch, body))

    async def _book(self, batch: Batch, *, arrived: bool) -> None:
        """The fate of *batch* is known; *arrived* says whether its reports did."""
        if arrived:
            self._ledger.loss_reports += batch.reports
        else:
            self._ledger.give_back_losses(batch.losses)
        self._ledger.batches += 1
        self._settled(batch.size)
        await self._remove(batch)

    async def _remove(self, batch: Batch) -> None:
        """Take a batch whose fate is known off the disk, if it is there."""
        if self._keeper is not None and batch.kept is not None:
            await self._keeper.remove(batch)

    async def _deliver(self, batch: Batch, body: bytes) -> bool:
        """Try until the fate of every event is known; says whether all reports arrived."""
        request = self._request_of(batch, body)
        answer = await self._last_answer(request, batch.kept)
        if answer is DropReason.CONSENT_WITHDRAWN and self._keeper is not None:
            arrived = self._drop(batch, answer)
            if batch.kept is None or not batch.kept.is_withdrawn:
                await self._keeper.withdraw()
            return arrived
        if isinstance(answer, DropReason):
            return self._drop(batch, answer)
        verdict = self._verdict(answer)
        if verdict is Verdict.DELIVERED:
            return self._delivered(batch, answer)
        if verdict is Verdict.HALVE and batch.events > 1:
            arrived = True
            try:
                halves = await self._halves(replace(batch, body=body))
            except msgspec.DecodeError:
                return self._drop(batch, DropReason.TOO_LARGE)  # a body that the disk garbled
            for half in halves:
                assert half.body is not None
                arrived = await self._deliver(half, half.body) and arrived
                await self._remove(half)
            return arrived
        if verdict is Verdict.HALVE:
            return self._drop(batch, DropReason.TOO_LARGE)
        self._diagnostics.warn("telemetry rejected", status=answer.status, **_reason(answer.body))
        return self._drop(batch, DropReason.REJECTED)

    def _request_of(self, batch: Batch, body: bytes) -> Request:
        return Request(
            self._url,
            {
                "content-type": "application/json",
                "user-agent": f"trimaran/{__version__}",
                "idempotency-key": batch.key,
                **wire.parent_headers(batch.parent_session_id),
                **wire.trace_headers(batch.traceparent),
            },
            body,
            batch.events,
            batch.reports,
        )

    async def _last_answer(self, request: Request, kept: KeptBatch | None) -> Answer | DropReason:
        """Try until an answer settles it, or give the reason to try no more."""

        def made() -> None:
            # On the disk of a relay it is an agent that gave its consent, and takes it back.
            if kept is not None and kept.is_withdrawn:
                raise GivenUp(DropReason.CONSENT_WITHDRAWN)
            self._count_attempt()

        self._is_repetition = False
        give_up_at = trio.current_time() + self._settings.retry_timeout
        answer = _NO_ANSWER
        failures = 0
        while True:
            with trio.move_on_at(give_up_at) as in_time:
                try:
                    answer = await self._attempt(request, is_repeated=failures > 0, made=made)
                except GivenUp as given_up:
                    return given_up.reason
            if not in_time.cancelled_caught:
                verdict = self._verdict(answer)
                if verdict not in {Verdict.RETRY, Verdict.UNAUTHORIZED}:
                    return answer
                failures += 1
                again_at = self._again_at(verdict, answer, failures)
                if again_at < give_up_at:
                    await self._endpoint.pause_until(again_at)
                    continue
            return self.held_back_by or DropReason.RETRIES_EXHAUSTED

    async def _halves(self, batch: Batch) -> tuple[Batch, Batch]:
        """Two batches in the place of one that is too large, on disk as well."""
        first, second = batch.halves()
        if self._keeper is None or batch.kept is None:
            return first, second
        return await self._keeper.split(batch, first, second)

    async def _attempt(
        self, request: Request, *, is_repeated: bool, made: Callable[[], None]
    ) -> Answer:
        """One attempt; no answer at all is an answer of status 0."""
        try:
            return await self._endpoint.attempt(request, is_repeated=is_repeated, made=made)
        except TransportError as error:
            if not self._endpoint.is_down:
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
        if answer.status and not self._endpoint.is_down:
            self._diagnostics.warn("telemetry endpoint failing", status=answer.status)
        return now + backoff(
            failures,
            initial=settings.retry_initial,
            maximum=settings.retry_max,
            chance=self._random.random(),
        )

    def _delivered(self, batch: Batch, answer: Answer) -> bool:
        refused = (
            wire.refused_indexes(answer.body, count=batch.events)
            if answer.status == _PARTIAL
            else frozenset[int]()
        )
        refused_reports = sum(index < batch.reports for index in refused)
        refused_events = len(refused) - refused_reports
        if refused:
            self._diagnostics.warn(
                "telemetry partly rejected", events=len(refused), **_reason(answer.body)
            )
        if answer is HANDED_OVER:
            self._ledger.hand_over(batch.tracked)
        else:
            self._ledger.deliver(batch.tracked - refused_events)
        self._ledger.drop(DropReason.REJECTED, refused_events)
        if batch.kept is not None:
            batch.kept.is_delivered = True
            batch.kept.decided(batch.tracked)
        return not refused_reports

    def _drop(self, batch: Batch, reason: DropReason) -> bool:
        self._ledger.drop(reason, batch.tracked)
        if batch.kept is not None:
            batch.kept.decided(batch.tracked)
        return not batch.reports


def _reason(answer: bytes) -> dict[str, str]:
    """Why something was refused, where the endpoint says so."""
    words = words_of(answer)
    return {"reason": words} if words else {}
