from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import trimaran
from trimaran import DropReason, Settings
from trimaran._pipeline.batch import Batch
from trimaran._pipeline.batcher import Backlog, Bundle, batch_events, loss_reports
from trimaran._pipeline.encoder import encode_fast
from trimaran._pipeline.entry import Chunk, Entry, Flush
from trimaran._pipeline.ledger import Ledger
from trimaran._pipeline.memory import MemoryBudget
from trimaran._pipeline.wire import Context

NOW = 1_800_000_000.25
INTERVAL = 5.0
ENVELOPE = 1024
"""Bytes of a body that are kept for what is not an event."""
BUDGET = 1000
"""Bytes that all sessions hold together."""


class Note(trimaran.Event, frozen=True):
    """A routine event."""

    text: str = ""


class Alarm(trimaran.Event, frozen=True):
    """An urgent event."""

    text: str = ""

    urgent: ClassVar[bool] = True


# The backlog: what makes a batch due, with time as an argument.


class Filled:
    """A backlog, to be filled with events named by a letter each."""

    def __init__(self, *, events: int = 3, most_bytes: int = 1 << 20, waiting: int = 1000) -> None:
        self.backlog = Backlog(
            Settings(
                batch_events=events,
                batch_bytes=ENVELOPE + most_bytes,
                event_bytes=1,
                flush_interval=INTERVAL,
                backlog_events=waiting,
            )
        )

    def add(self, letters: str, *, now: float = 0.0, urgent: bool = False) -> None:
        """Add events; the bytes that each is charged with are its place in the alphabet."""
        for letter in letters:
            self.backlog.add(letter.encode(), ord(letter) - 96, urgent=urgent, now=now)

    def mark(self) -> Flush:
        """Put a mark."""
        flush = Flush(0)
        self.backlog.mark(flush)
        return flush

    def takes(self) -> list[str]:
        """What all batches hold that are due at once."""
        taken: list[str] = []
        while self.backlog.due_at() == -math.inf:
            taken.append(letters_of(self.backlog.take()))
        return taken


def letters_of(bundle: Bundle) -> str:
    """The events of a bundle."""
    return b"".join(bundle.events).decode()


def test_an_empty_backlog_is_never_due() -> None:
    """There is nothing to wait for, before the end or at it."""
    filled = Filled()
    assert (len(filled.backlog), filled.backlog.due_at()) == (0, math.inf)
    assert not filled.backlog.is_over

    filled.backlog.end()

    assert filled.backlog.due_at() == math.inf
    assert filled.backlog.is_over


def test_an_event_is_due_after_the_interval() -> None:
    """Reckoned from the oldest, however many join it."""
    filled = Filled()
    filled.add("a", now=10)
    filled.add("b", now=14)

    assert filled.backlog.due_at() == 10 + INTERVAL
    assert letters_of(filled.backlog.take()) == "ab"
    filled.add("c", now=20)
    assert filled.backlog.due_at() == 20 + INTERVAL


def test_a_full_batch_is_due_at_once() -> None:
    """Full by count; what is behind it waits for its own time."""
    filled = Filled(events=3)
    filled.add("abc", now=10)
    filled.add("de", now=11)

    assert filled.takes() == ["abc"]
    assert filled.backlog.due_at() == 11 + INTERVAL
    assert len(filled.backlog) == 2


def test_a_batch_is_full_by_bytes() -> None:
    """When the next event does not fit, with a comma for each; one that is larger goes alone."""
    filled = Filled(events=100, most_bytes=10)
    filled.add("abcde")
    assert filled.backlog.due_at() == INTERVAL
    filled.add("f")
    assert filled.takes() == ["abcde"]

    filled.backlog.add(b"x" * 50, 1, urgent=False, now=0)
    filled.add("g")

    assert filled.takes() == ["f", "x" * 50]
    assert filled.backlog.due_at() == INTERVAL


def test_an_urgent_event_is_due_at_once() -> None:
    """With all that is before it, and what joined it until it was taken."""
    filled = Filled(events=3)
    filled.add("ab")
    filled.add("cd")
    filled.add("e", urgent=True)
    filled.add("f")
    filled.add("g")

    assert filled.takes() == ["abc", "def"]
    assert filled.backlog.due_at() == INTERVAL


def test_a_mark_is_due_at_once() -> None:
    """With all that is before it; what comes later goes into the next batch."""
    filled = Filled()
    filled.add("ab")
    mark = filled.mark()
    filled.add("c")

    bundle = filled.backlog.take()

    assert (letters_of(bundle), bundle.flushes) == ("ab", [mark])
    assert filled.backlog.due_at() == INTERVAL


def test_marks_without_events_share_a_batch_of_nothing() -> None:
    """There may be something to report with them."""
    filled = Filled()
    marks = [filled.mark(), filled.mark()]
    filled.add("a")

    assert filled.backlog.due_at() == -math.inf
    bundle = filled.backlog.take()

    assert (bundle.events, bundle.flushes, bundle.size) == ([], marks, 0)
    assert len(filled.backlog) == 1


def test_marks_go_behind_the_batch_that_is_before_them() -> None:
    """Also if that was full already."""
    filled = Filled(events=2)
    filled.add("abcd")
    mark = filled.mark()

    first, second = filled.backlog.take(), filled.backlog.take()

    assert (first.flushes, second.flushes) == ([], [mark])


def test_everything_is_due_at_the_end() -> None:
    """Then it is over."""
    filled = Filled(events=2)
    filled.add("abc", now=10)
    filled.backlog.end()
    assert not filled.backlog.is_over

    assert filled.takes() == ["ab", "c"]
    assert filled.backlog.is_over
    assert filled.backlog.due_at() == math.inf


def test_a_batch_knows_what_it_is_charged_with() -> None:
    """The bytes in memory of all its events."""
    filled = Filled()
    filled.add("abc")

    assert filled.backlog.take().size == 1 + 2 + 3


def test_it_is_full_at_its_bound() -> None:
    """Of events that wait; a batch that is taken makes room."""
    filled = Filled(events=3, waiting=4)
    filled.add("abc")
    assert not filled.backlog.is_full
    filled.add("d")
    filled.mark()
    assert filled.backlog.is_full

    filled.backlog.take()

    assert not filled.backlog.is_full


def test_a_full_backlog_is_due_at_once() -> None:
    """What its last batch would wait for cannot come in; with room, the batch waits again."""
    filled = Filled(events=3, waiting=4)
    filled.add("abcd")

    assert filled.takes() == ["abc"]
    assert filled.backlog.due_at() == INTERVAL

    filled = Filled(events=3, waiting=2)
    filled.add("ab")

    assert filled.takes() == ["ab"]


def test_what_takes_more_than_may_be_held_back_is_due_at_once() -> None:
    """By the bytes that it is charged with; as much as may be held back still waits."""
    filled = Filled()
    assert filled.backlog.due_at(most_held_back=0) == math.inf
    filled.add("ab")

    assert filled.backlog.due_at(most_held_back=3) == INTERVAL
    assert filled.backlog.due_at(most_held_back=2.9) == -math.inf
    assert filled.backlog.due_at() == INTERVAL


@given(
    steps=st.lists(
        st.tuples(st.just("add"), st.integers(0, 40), st.booleans())
        | st.tuples(st.sampled_from(["mark", "take"]), st.just(0), st.just(value=False))
    ),
    events=st.integers(1, 4),
    most_bytes=st.integers(1, 60),
)
def test_any_backlog_keeps_order_and_bounds(
    steps: list[tuple[str, int, bool]], events: int, most_bytes: int
) -> None:
    """Nothing is lost, doubled or moved; a mark is behind all that was before it, not later."""
    filled = Filled(events=events, most_bytes=most_bytes)
    backlog = filled.backlog
    sent: list[object] = []
    expected: list[object] = []

    def take() -> None:
        bundle = backlog.take()
        assert len(bundle.events) <= events
        length = sum(len(event) + 1 for event in bundle.events)
        assert length <= most_bytes or len(bundle.events) == 1
        assert bundle.size == len(bundle.events)
        sent.extend([*bundle.events, *bundle.flushes])

    for number, (step, length, urgent) in enumerate(steps):
        if step == "add":
            event = f"{number}:".encode().ljust(length, b".")
            backlog.add(event, 1, urgent=urgent, now=number)
            expected.append(event)
            if urgent:
                assert backlog.due_at() == -math.inf
        elif step == "mark":
            expected.append(filled.mark())
            assert backlog.due_at() == -math.inf
        elif backlog.due_at() < math.inf:
            take()
        assert len(backlog) == sum(isinstance(item, bytes) for item in expected[len(sent) :])

    backlog.end()
    while not backlog.is_over:
        assert backlog.due_at() == -math.inf
        take()
    assert sent == expected


# The task: time by trio's clock, with a stage before it and one behind it.


class Stage:
    """The stage with both its ends, and what it drops."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**{"flush_interval": INTERVAL, **settings})
        self.ledger = Ledger()
        self.budget = MemoryBudget(BUDGET)
        self.dropped: list[tuple[trimaran.Event, DropReason]] = []
        self.put, self._receive = trio.open_memory_channel[Chunk](math.inf)
        self._send, self.get = trio.open_memory_channel[Batch](0)

    async def run(self) -> None:
        """Run it to the end of its input."""
        await batch_events(
            self._receive,
            self._send,
            settings=self.settings,
            context=Context(session_id="s1", cli_version="1.0", project_id="p"),
            key_prefix="k",
            ledger=self.ledger,
            budget=self.budget,
            drop=lambda entry, reason: self.dropped.append((entry.event, reason)),
            wall_clock=lambda: NOW,
        )

    def give(self, *events: trimaran.Event, marks: Sequence[Flush] = (), size: int = 1) -> None:
        """Hand over a chunk."""
        entries = [Entry(1, NOW, event, encode_fast(event), size) for event in events]
        self.put.send_nowait(Chunk(entries, marks))

    def notes(self, letters: str) -> None:
        """Hand over a chunk of notes."""
        self.give(*(Note(text=letter) for letter in letters))


def texts_of(batch: Batch) -> str:
    """What the events of a batch say, reports of losses as ``!``."""
    if batch.body is None:
        return ""
    events = msgspec.json.decode(batch.body)["events"]
    return "".join(event.get("text", "!") for event in events)


async def test_events_share_a_batch_by_age(autojump_clock: trio.testing.MockClock) -> None:
    """The first has waited for the interval when it goes, and takes all others along."""
    stage = Stage()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await trio.sleep(2)
        stage.notes("a")  # due at 7
        await trio.sleep(3)
        stage.notes("b")
        assert texts_of(await stage.get.receive()) == "ab"
        assert trio.current_time() == 7
        stage.notes("c")
        assert texts_of(await stage.get.receive()) == "c"
        assert trio.current_time() == 12
        stage.put.close()

    assert stage.get.statistics().open_send_channels == 0


@pytest.mark.parametrize("cause", ["urgent", "mark", "count", "end"])
async def test_a_batch_may_be_due_before_its_age(
    cause: str, autojump_clock: trio.testing.MockClock
) -> None:
    """By an urgent event, a mark, the number of events, or the end: no time passes."""
    stage = Stage(batch_events=4)
    mark = Flush(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.notes("abc")
        await trio.testing.wait_all_tasks_blocked()
        if cause == "urgent":
            stage.give(Alarm(text="d"))
        elif cause == "mark":
            stage.give(Note(text="d"), marks=[mark])
        elif cause == "count":
            stage.notes("d")
        else:
            stage.notes("d")
            stage.put.close()
        batch = await stage.get.receive()
        stage.put.close()

    assert texts_of(batch) == "abcd"
    assert batch.flushes == ([mark] if cause == "mark" else [])
    assert trio.current_time() == 0


async def test_a_finished_batch(autojump_clock: trio.testing.MockClock) -> None:
    """It has a key of its own, a body in the wire's words, and what the books want to know."""
    stage = Stage()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.give(Note(text="a"), Alarm(text="b"), size=400)
        first = await stage.get.receive()
        stage.give(Alarm(text="c"))
        second = await stage.get.receive()
        stage.put.close()

    assert first == Batch(
        key="k-0",
        body=(
            b'{"session_id":"s1","cli_version":"1.0","user_email":"","project_id":"p",'
            b'"timestamp":1800000000250,"events":['
            b'{"timestamp":1800000000250,"session_id":"s1","type":"note","text":"a"},'
            b'{"timestamp":1800000000250,"session_id":"s1","type":"alarm","text":"b"}]}'
        ),
        events=2,
        flushes=[],
        size=800,
    )
    assert (first.tracked, second.key, second.size) == (2, "k-1", 1)


async def test_a_mark_alone_needs_no_request(autojump_clock: trio.testing.MockClock) -> None:
    """There is nothing to send, and the mark still goes through in its order."""
    stage = Stage()
    mark = Flush(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.give(marks=[mark])
        batch = await stage.get.receive()
        stage.put.close()

    assert batch == Batch(key="k-0", body=None, events=0, flushes=[mark])


async def test_an_event_keeps_its_own_time(autojump_clock: trio.testing.MockClock) -> None:
    """The batch has the time at which it was made, and each event the one it was tracked at."""
    stage = Stage()
    note = Note(text="a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.put.send_nowait(Chunk([Entry(1, 1.001, note, encode_fast(note), 1)]))
        stage.put.close()
        batch = await stage.get.receive()

    body = msgspec.json.decode(batch.body or b"")
    assert (body["timestamp"], body["events"][0]["timestamp"]) == (1_800_000_000_250, 1001)


async def test_events_gather_behind_a_busy_sender(autojump_clock: trio.testing.MockClock) -> None:
    """While one batch waits to be taken, what comes in makes full batches, not many small ones."""
    stage = Stage(batch_events=4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        for letter in "abcdefghij":
            stage.give(Alarm(text=letter))
            await trio.testing.wait_all_tasks_blocked()
        stage.put.close()
        batches = [texts_of(batch) async for batch in stage.get]

    assert batches == ["a", "bcde", "fghi", "j"]


async def test_the_stage_before_it_has_to_wait(autojump_clock: trio.testing.MockClock) -> None:
    """Behind a sender that is stuck, no more is taken in than the bound and one chunk."""
    stage = Stage(batch_events=2, backlog_events=4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        for chunk in ("abc", "def", "ghi", "jkl"):
            stage.notes(chunk)
        await trio.sleep(100)
        # "ab" is in the hand of the sender's side, "cdef" is the backlog.
        assert stage.put.statistics().current_buffer_used == 2

        assert texts_of(await stage.get.receive()) == "ab"
        await trio.testing.wait_all_tasks_blocked()
        assert stage.put.statistics().current_buffer_used == 1
        stage.put.close()
        batches = [texts_of(batch) async for batch in stage.get]

    assert batches == ["cd", "ef", "gh", "ij", "kl"]


@pytest.mark.parametrize("waiting", [1, 100, 199])
async def test_a_backlog_may_hold_less_than_a_batch(
    waiting: int, autojump_clock: trio.testing.MockClock
) -> None:
    """It is then handed over when it is full, a chunk at a time, without any waiting."""
    stage = Stage(backlog_events=waiting)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        for _ in range(3):
            stage.notes("a" * 199)
        stage.put.close()
        batches = [len(texts_of(batch)) async for batch in stage.get]

    assert batches == [199, 199, 199]
    assert trio.current_time() == 0


async def test_want_of_memory_makes_due_what_waits(autojump_clock: trio.testing.MockClock) -> None:
    """At once, whoever uses the memory; a little still waits for its time."""
    stage = Stage()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.give(Note(text="a"), size=BUDGET // 4 + 1)
        await trio.sleep(1)
        stage.budget.used = BUDGET
        stage.budget.hand_on(BUDGET)  # another session's
        assert texts_of(await stage.get.receive()) == "a"
        assert trio.current_time() == 1

        stage.give(Note(text="b"), size=BUDGET // 4)
        assert texts_of(await stage.get.receive()) == "b"
        assert trio.current_time() == 1 + INTERVAL

        stage.give(Note(text="c"), Note(text="d"), size=BUDGET // 4)
        assert texts_of(await stage.get.receive()) == "cd"
        assert trio.current_time() == 1 + INTERVAL
        stage.put.close()


@pytest.mark.parametrize("way", ["end", "cancel"])
async def test_a_stage_that_is_over_is_told_nothing(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Of the memory, which others use longer than it does."""
    watching: set[object] = set()

    class Budget(MemoryBudget):
        def watch(self, tell: Callable[[], object]) -> None:
            watching.add(tell)

        def unwatch(self, tell: Callable[[], object]) -> None:
            watching.remove(tell)

    stage = Stage()
    stage.budget = Budget(BUDGET)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await trio.testing.wait_all_tasks_blocked()
        assert len(watching) == 1
        if way == "end":
            stage.put.close()
        else:
            nursery.cancel_scope.cancel()

    assert watching == set()


async def test_a_cancel_ends_both_its_tasks(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever they wait for; both ends are closed, and nothing is dropped by the stage."""
    stage = Stage(batch_events=1, backlog_events=1)

    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.run)
            for _ in range(5):
                stage.notes("a")

    assert scope.cancelled_caught
    assert stage.dropped == []
    assert stage.put.statistics().open_receive_channels == 0
    assert stage.get.statistics().open_send_channels == 0


# What cannot go out.


class Closed(trimaran.Event, frozen=True):
    """An event whose fields cannot be read."""

    value: object = None

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError


async def test_what_was_masked_is_encoded_here(autojump_clock: trio.testing.MockClock) -> None:
    """The stage before took its encoded form away."""
    stage = Stage()
    entries = [Entry(1, NOW, Note(text="a"), None, 1), Entry(2, NOW, Note(text="b"), b"", 1)]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.put.send_nowait(Chunk(entries))
        stage.put.close()
        batch = await stage.get.receive()

    assert texts_of(batch) == "ab"


async def test_what_has_become_too_large_is_dropped_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A guess of its size let it in; its neighbours go on."""
    stage = Stage(event_bytes=1000)
    large = Note(text="x" * 1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.put.send_nowait(
            Chunk(
                [
                    Entry(1, NOW, Note(text="a"), None, 1),
                    Entry(2, NOW, large, None, 1),
                    Entry(3, NOW, Note(text="b"), None, 1),
                ]
            )
        )
        stage.put.close()
        batch = await stage.get.receive()

    assert texts_of(batch) == "ab"
    assert stage.dropped == [(large, DropReason.TOO_LARGE)]


async def test_what_has_no_json_form_is_dropped_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nearly everything has one; what has none costs one event."""
    stage = Stage()
    hopeless = Closed(value=object())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.give(Note(text="a"), hopeless, Note(text="b"))
        stage.put.close()
        batch = await stage.get.receive()

    assert texts_of(batch) == "ab"
    [(dropped, reason)] = stage.dropped
    assert dropped is hopeless
    assert reason is DropReason.ENCODE_ERROR


# Reports of losses.


def told(losses: dict[DropReason, int]) -> list[dict[str, Any]]:
    """The reports of *losses*, decoded."""
    return [msgspec.json.decode(report) for report in loss_reports(losses, NOW, b'"s1"')]


def test_no_losses_need_no_report() -> None:
    """Nothing is sent for nothing."""
    assert told({}) == []


def test_want_of_room_is_told_in_the_origins_words() -> None:
    """An event that dashboards know already, to the letter, with the exact number."""
    assert told({DropReason.MAILBOX_FULL: 48_800}) == [
        {
            "timestamp": 1_800_000_000_250,
            "session_id": "s1",
            "type": "error",
            "error_name": "TelemetryBufferOverflow",
            "error_message": "48800 events dropped due to buffer overflow",
            "context": "telemetry",
        }
    ]


def test_other_losses_are_told_by_reason() -> None:
    """In an event of their own, which the origin did not know, in the order of the alphabet."""
    [overflow, others] = told(
        {
            DropReason.TOO_LARGE: 2,
            DropReason.MAILBOX_FULL: 1,
            DropReason.ENCODE_ERROR: 40,
        }
    )

    assert overflow["error_message"] == "1 events dropped due to buffer overflow"
    assert others["error_name"] == "TelemetryLoss"
    assert others["error_message"] == "42 events dropped: 40 encode_error, 2 too_large"
    assert others["context"] == "telemetry"


async def test_losses_are_reported_ahead_of_the_next_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once, in no book themselves, and beside what the batch holds; a mark may carry them too."""
    stage = Stage()
    stage.ledger.track(9)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        stage.ledger.drop(DropReason.MAILBOX_FULL, 3)
        stage.ledger.drop(DropReason.CLOSED, 1)
        stage.give(Alarm(text="a"))
        first = await stage.get.receive()
        stage.give(Alarm(text="b"))
        second = await stage.get.receive()
        stage.ledger.drop(DropReason.MAILBOX_FULL, 2)
        stage.give(marks=[Flush(0)])
        third = await stage.get.receive()
        stage.put.close()

    assert [texts_of(batch) for batch in (first, second, third)] == ["!!a", "b", "!"]
    assert [batch.reports for batch in (first, second, third)] == [2, 0, 1]
    assert [batch.tracked for batch in (first, second, third)] == [1, 1, 0]
    assert first.losses == {DropReason.MAILBOX_FULL: 3, DropReason.CLOSED: 1}
    assert third.losses == {DropReason.MAILBOX_FULL: 2}
    assert stage.ledger.take_losses() == {}
