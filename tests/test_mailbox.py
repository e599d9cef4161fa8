from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import trimaran
from trimaran import DropReason, ErrorEvent, Generation, Settings, Tokens, ToolCall
from trimaran._pipeline.entry import ENTRY_OVERHEAD, ERROR_TEXT_WINDOW, MOST_MILLISECONDS, Chunk
from trimaran._pipeline.ledger import Ledger
from trimaran._pipeline.mailbox import Mailbox
from trimaran._pipeline.memory import MemoryBudget
from trimaran._settings import MailboxPolicy
from trimaran.testing import Capture

NOW = 1_800_000_000.5
PLENTY = 1 << 40
"""Bytes that no test fills."""


class Note(trimaran.Event, frozen=True):
    """A routine event."""

    text: str = ""


class Alarm(trimaran.Event, frozen=True):
    """An urgent event."""

    text: str = ""

    urgent: ClassVar[bool] = True


class Anything(trimaran.Event, frozen=True):
    """An event with a field of any kind."""

    value: Any = None


class Formless:
    """What has no JSON form of its own."""


class Box:
    """A mailbox with its books, used as a session uses it."""

    def __init__(
        self,
        *,
        events: int = 1000,
        policy: MailboxPolicy = "drop_oldest",
        budget: MemoryBudget | None = None,
        wall_clock: Callable[[], float] = lambda: NOW,
        **others: Any,
    ) -> None:
        self.ledger = Ledger()
        self.budget = MemoryBudget(PLENTY) if budget is None else budget
        self.mailbox = Mailbox(
            Settings(mailbox_events=events, mailbox_policy=policy, **others),
            ledger=self.ledger,
            budget=self.budget,
            wall_clock=wall_clock,
        )

    def note(self, *texts: str) -> None:
        """Put routine events."""
        for text in texts:
            self.mailbox.put(Note(text=text))

    def alarm(self, *texts: str) -> None:
        """Put urgent events."""
        for text in texts:
            self.mailbox.put(Alarm(text=text))

    async def texts(self) -> list[str]:
        """What the next chunk says."""
        return texts_of(await self.mailbox.receive())

    async def rest(self) -> list[str]:
        """What all chunks to the end say."""
        self.mailbox.close()
        return [text async for chunk in self.mailbox for text in texts_of(chunk)]

    @property
    def shed(self) -> int:
        """Events that were dropped for want of room."""
        return self.ledger.dropped.get(DropReason.MAILBOX_FULL, 0)


def texts_of(chunk: Chunk) -> list[str]:
    """The texts of a chunk's notes and alarms."""
    return [entry.event.text for entry in chunk.entries if isinstance(entry.event, (Note, Alarm))]


def size_of(event: trimaran.Event) -> int:
    """Bytes that a plain event is charged with while it waits."""
    return ENTRY_OVERHEAD + len(msgspec.json.encode(event))


NOTE_SIZE = size_of(Note(text="x"))
ALARM_SIZE = size_of(Alarm(text="x"))


async def settled() -> None:
    """Let all other tasks go on until they wait."""
    await trio.testing.wait_all_tasks_blocked()


# What goes in, comes out.


async def test_an_event_comes_out_as_it_went_in() -> None:
    """With a number, the time, its encoded form and the bytes that it is charged with."""
    box = Box()
    event = Note(text="x")

    box.mailbox.put(event)
    [entry] = (await box.mailbox.receive()).entries

    assert entry.event is event
    assert (entry.number, entry.time) == (1, NOW)
    assert entry.encoded == b'{"type":"note","text":"x"}'
    assert entry.size == ENTRY_OVERHEAD + len(entry.encoded)


async def test_where_an_event_stands_comes_out_with_it() -> None:
    """It takes some bytes more; what could never have room with them is too large."""
    note = Note(text="x")
    box = Box(budget=MemoryBudget(NOTE_SIZE + 300))
    narrow = Box(budget=MemoryBudget(NOTE_SIZE + 200))

    for each in (box, narrow):
        each.mailbox.put(note, NOW, (1, 2, 3, 4))
    [entry] = (await box.mailbox.receive()).entries

    assert entry.place == (1, 2, 3, 4)
    assert NOTE_SIZE + 200 < entry.size <= NOTE_SIZE + 300
    assert narrow.ledger.dropped == {DropReason.TOO_LARGE: 1}


async def test_events_come_out_in_order() -> None:
    """Urgent ones too: they hurry the stages after this one, they do not jump the queue."""
    box = Box()

    box.note("1", "2")
    box.alarm("3")
    box.note("4")
    box.alarm("5", "6")

    assert await box.texts() == ["1", "2", "3", "4", "5", "6"]


async def test_a_chunk_has_two_hundred_events_at_most() -> None:
    """So that a stage which works through one lets others run."""
    box = Box()
    box.note(*map(str, range(401)))

    sizes = [len((await box.mailbox.receive()).entries) for _ in range(3)]

    assert sizes == [200, 200, 1]


def test_putting_never_waits() -> None:
    """It is no checkpoint, with room or without, before the end or after it."""
    box = Box(events=2)

    async def put() -> None:
        with trio.testing.assert_no_checkpoints():
            box.note("1", "2", "3")
            box.alarm("4", "5", "6")
            box.mailbox.close()
            box.note("7")

    trio.run(put)
    assert box.ledger.tracked == 7


async def test_receiving_waits_for_an_event() -> None:
    """And for a mark, and for the end."""
    box = Box()
    received: list[object] = []

    async def read() -> None:
        async for entries, flushes in box.mailbox:
            received.append((len(entries), len(flushes)))
        received.append("end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await settled()
        assert received == []
        box.note("1", "2")
        await settled()
        box.mailbox.flush()
        await settled()
        box.mailbox.close()

    assert received == [(2, 0), (0, 1), "end"]


async def test_receiving_is_a_checkpoint() -> None:
    """Also when there is something, and when there never will be."""
    box = Box()
    box.note("1")

    with trio.testing.assert_checkpoints():
        await box.mailbox.receive()
    box.mailbox.close()
    with trio.testing.assert_checkpoints(), pytest.raises(trio.EndOfChannel):
        await box.mailbox.receive()


async def test_a_cancelled_reader_takes_nothing_out() -> None:
    """Whether it would have had to wait or not, the next one finds everything."""
    box = Box()

    for _ in range(2):
        with trio.move_on_after(0) as scope:
            await box.mailbox.receive()
        assert scope.cancelled_caught
        box.note("1")

    assert await box.texts() == ["1", "1"]


async def test_what_is_shed_while_the_reader_wakes_up_is_not_missed() -> None:
    """A reader that was promised an event waits on for the next one."""
    budget = MemoryBudget(NOTE_SIZE)
    box, other = Box(budget=budget), Box(budget=budget)
    received: list[str] = []

    async def read() -> None:
        received.extend(await box.texts())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await settled()
        box.note("x")
        other.note("y")
        await settled()
        assert (received, box.shed) == ([], 1)
        box.note("z")

    assert received == ["z"]


# Stamps of an event's own.


@pytest.mark.parametrize("stamp", [0, 1, 1001, 1_700_000_000_123, 1.5, MOST_MILLISECONDS - 1])
async def test_a_timestamp_of_its_own_is_kept(stamp: float) -> None:
    """A replay has the times of the recording; the event itself goes on without stamps."""
    box = Box()
    event: Any = Note(text="x", timestamp=stamp, session_id="other")  # type: ignore[arg-type]  # floats too

    box.mailbox.put(event)
    [entry] = (await box.mailbox.receive()).entries

    assert entry.time == stamp / 1000
    assert entry.event == Note(text="x")
    assert entry.encoded == b'{"type":"note","text":"x"}'


class Liar(int):
    """A number that fails at whatever it is asked."""

    def fail(self, *_arguments: object) -> Any:
        """Fail."""
        raise RuntimeError

    __le__ = __lt__ = __ge__ = __gt__ = __truediv__ = __rsub__ = fail


@pytest.mark.parametrize(
    "stamp",
    [-1, MOST_MILLISECONDS, 10**400, float("nan"), float("inf"), "1", None, True, Liar(5)],
)
async def test_a_timestamp_that_is_none_is_replaced(stamp: Any) -> None:
    """By the time at which the event was tracked; that is no reason to lose it."""
    box = Box()

    box.mailbox.put(Note(text="x", timestamp=stamp))
    [entry] = (await box.mailbox.receive()).entries

    assert entry.time == NOW
    assert entry.event == Note(text="x")


async def test_another_sessions_id_is_taken_off() -> None:
    """An event belongs to the session that tracks it; without a time, it has that of now."""
    box = Box()

    box.mailbox.put(Note(text="x", session_id="other"))
    [entry] = (await box.mailbox.receive()).entries

    assert (entry.event, entry.time) == (Note(text="x"), NOW)


async def test_the_caller_may_know_the_time_better() -> None:
    """An event of another thread was tracked before it came here; its own stamp comes first."""
    box = Box()

    box.mailbox.put(Note(text="1"), 5.0)
    box.mailbox.put(Note(text="2", session_id="other"), 6.0)
    box.mailbox.put(Note(text="3", timestamp=7000), 8.0)

    assert [entry.time for entry in (await box.mailbox.receive()).entries] == [5.0, 6.0, 7.0]


# What cannot be taken.


class Disguised:
    """Says that it is an event, where it is asked at all."""

    @property
    def __class__(self) -> Any:
        return Note

    @__class__.setter
    def __class__(self, _value: Any) -> None:
        pass


class Touchy:
    """Fails when it is asked what it is."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @__class__.setter
    def __class__(self, _value: Any) -> None:
        pass


@pytest.mark.parametrize("make", [dict, str, object, Disguised, Touchy, lambda: None, lambda: Note])
async def test_what_is_no_event_is_dropped(make: Callable[[], Any]) -> None:
    """It is counted, and nothing is asked of it."""
    box = Box()
    thing = make()

    box.mailbox.put(thing)
    assert box.mailbox.put_if_room(thing)
    await box.mailbox.put_when_room(thing)

    assert box.ledger.dropped == {DropReason.ENCODE_ERROR: 3}
    assert (box.ledger.tracked, box.ledger.pending, len(box.mailbox)) == (3, 0, 0)


async def test_an_event_without_a_plain_form_waits_in_the_form_that_it_will_have() -> None:
    """Its size is that of the form, and nothing of the agent's own is kept."""
    box = Box()
    kept = Formless()

    box.mailbox.put(Anything(value=[kept, "x" * 1000]))
    [entry] = (await box.mailbox.receive()).entries

    form = b'["<Formless>","' + b"x" * 1000 + b'"]'
    assert isinstance(entry.event, Anything)
    assert bytes(entry.event.value) == form
    assert entry.size == size_of(Anything(value=msgspec.Raw(form)))
    assert box.budget.used == entry.size
    gone = weakref.ref(kept)
    del kept
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("value", ["x" * 2000, ["x" * 1500, object()], [object()] * 20_000])
async def test_an_event_that_is_too_large_is_dropped(value: object) -> None:
    """Whether its size is known or guessed."""
    box = Box(event_bytes=1000)

    box.mailbox.put(Anything(value=value))

    assert box.ledger.dropped == {DropReason.TOO_LARGE: 1}
    assert (len(box.mailbox), box.budget.used) == (0, 0)


async def test_an_event_may_be_as_large_as_the_settings_say() -> None:
    """What an event takes in memory beside its encoded form does not count."""
    largest = Note(text="x" * 974)
    assert len(msgspec.json.encode(largest)) == 999
    box = Box(event_bytes=999)

    box.mailbox.put(largest)
    box.mailbox.put(Note(text="x" * 975))

    assert (len(box.mailbox), box.ledger.dropped) == (1, {DropReason.TOO_LARGE: 1})


async def test_no_event_waits_that_could_never_have_room() -> None:
    """One that takes more than all the memory there is, is too large, however little that is."""
    box = Box(event_bytes=1000, batch_bytes=1001, memory_bytes=1001, budget=MemoryBudget(1001))
    event = Note(text="x" * 600)

    box.mailbox.put(event)
    await box.mailbox.put_when_room(event)

    assert box.ledger.dropped == {DropReason.TOO_LARGE: 2}


@pytest.mark.parametrize(
    ("event", "cut"),
    [
        (
            ErrorEvent(error_name="E", error_message="x" * 9000),
            ErrorEvent(error_name="E", error_message="x" * ERROR_TEXT_WINDOW),
        ),
        (
            ToolCall(tool_name="bash", error="x" * 9000),
            ToolCall(tool_name="bash", error="x" * ERROR_TEXT_WINDOW),
        ),
        (
            ErrorEvent(error_name="E", error_message="x" * 6000, context="x" * 3000),
            ErrorEvent(error_name="E", error_message="x" * ERROR_TEXT_WINDOW, context="x" * 3000),
        ),
    ],
)
async def test_a_long_error_text_does_not_make_an_event_too_large(
    event: trimaran.Event, cut: trimaran.Event
) -> None:
    """It is cut much further in the end, so most of it need not wait."""
    box = Box(event_bytes=8000)

    box.mailbox.put(event)
    [entry] = (await box.mailbox.receive()).entries

    assert entry.event == cut
    assert entry.size == size_of(cut)


@pytest.mark.parametrize(
    "event",
    [
        ErrorEvent(error_name="x" * 9000, error_message="short"),
        ErrorEvent(error_name="x" * 9000, error_message=["x"]),  # type: ignore[arg-type]  # any value
        ErrorEvent(error_name="E", error_message="x" * 9000, context="x" * 9000),
    ],
)
async def test_other_texts_are_not_cut(event: trimaran.Event) -> None:
    """Half of what was said is not what was said."""
    box = Box(event_bytes=8000)

    box.mailbox.put(event)

    assert box.ledger.dropped == {DropReason.TOO_LARGE: 1}


async def test_an_event_says_what_it_said_then() -> None:
    """What is in its containers may change afterwards."""
    box = Box()
    value = ["then"]

    box.mailbox.put(Anything(value=value))
    value.append("now")

    [entry] = (await box.mailbox.receive()).entries
    assert isinstance(entry.event, Anything)
    assert bytes(entry.event.value) == b'["then"]'


class Flat(ToolCall, frozen=True, kw_only=True):
    """A host's own kind of tool call."""


@pytest.mark.parametrize(
    "make",
    [
        lambda value: ToolCall(tool_name="bash", tool_category=value),
        lambda value: ToolCall(tool_name=value),
        lambda value: ToolCall(tool_name="bash", error=value),
        lambda value: Flat(tool_name="bash", tool_category=value),
        lambda value: Generation(agent=value),
        lambda value: Generation(tokens=Tokens(input=value)),
        lambda value: ErrorEvent(error_name="E", error_message=value),
    ],
)
async def test_no_field_of_any_event_changes_afterwards(make: Callable[[Any], Any]) -> None:
    """Whatever it was declared to hold, and however quickly events of its class are taken."""
    box = Box()
    value = ["then"]

    box.mailbox.put(make(value))
    value.append("now")
    [entry] = (await box.mailbox.receive()).entries

    assert b'["then"]' in msgspec.json.encode(entry.event)


async def test_what_waits_takes_the_bytes_that_it_is_charged_with() -> None:
    """However many objects an event was made of; they may be forty times as large."""
    box = Box()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            box.mailbox.put(Anything(value=[{"id": id_, "ok": True} for id_ in range(number, 700)]))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(box.mailbox) == 200
    assert after - before < 1.1 * box.budget.used


@pytest.mark.parametrize(
    "value",
    [
        "x" * 50_000_000,
        ["x" * 50_000_000],
        {"a": {"b": bytes(50_000_000)}},
        list(range(3_000_000)),
        {"a": list(range(3_000_000))},
        msgspec.Raw(b" " * 50_000_000),
    ],
    ids=["text", "text inside", "bytes inside", "list", "list inside", "json"],
)
async def test_what_is_far_too_large_is_not_encoded_first(value: object) -> None:
    """The agent would wait for it; not a megabyte is made of its fifty."""
    box = Box()
    event = Anything(value=value)
    tracemalloc.start()
    try:
        box.mailbox.put(event)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert box.ledger.dropped == {DropReason.TOO_LARGE: 1}
    assert peak < 1_000_000


async def test_an_error_text_that_is_far_too_large_is_cut_first() -> None:
    """Of a hundred megabytes, not one is encoded."""
    box = Box()
    event = ToolCall(tool_name="bash", error="x" * 50_000_000)
    tracemalloc.start()
    try:
        box.mailbox.put(event)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    [entry] = (await box.mailbox.receive()).entries
    assert entry.event == ToolCall(tool_name="bash", error="x" * ERROR_TEXT_WINDOW)
    assert peak < 1_000_000


class Unreadable(trimaran.Event, frozen=True, kw_only=True):
    """An event whose fields can be listed, and not read."""

    value: object = None

    def __getattribute__(self, name: str) -> Any:
        if name == "value":
            raise RuntimeError
        return super().__getattribute__(name)


async def test_an_event_that_cannot_be_read_is_dropped() -> None:
    """Where it has no plain form, either."""
    box = Box()

    box.mailbox.put(Unreadable(value="\ud800"))

    assert box.ledger.dropped == {DropReason.ENCODE_ERROR: 1}


# The bound on events.


async def test_the_oldest_go_first() -> None:
    """By default, what is newest is worth most."""
    box = Box(events=3)

    box.note("1", "2", "3", "4", "5")

    assert box.shed == 2
    assert await box.texts() == ["3", "4", "5"]


async def test_the_newest_go_first() -> None:
    """By the other policy, what came first stays."""
    box = Box(events=3, policy="drop_newest")

    box.note("1", "2", "3", "4", "5")

    assert box.shed == 2
    assert await box.texts() == ["1", "2", "3"]


async def test_routine_goes_before_urgent() -> None:
    """With drop_oldest: first all routine events, then the oldest urgent one."""
    box = Box(events=3)

    box.alarm("A")
    box.note("1", "2", "3")  # sheds 1
    box.alarm("B", "C")  # sheds 2 and 3
    box.note("4")  # is itself shed: nothing else waits but urgent ones
    box.alarm("D")  # sheds A

    assert box.shed == 5
    assert await box.texts() == ["B", "C", "D"]


async def test_routine_goes_before_urgent_by_the_other_policy() -> None:
    """With drop_newest: the newest routine event, then the new urgent one."""
    box = Box(events=3, policy="drop_newest")

    box.alarm("A")
    box.note("1", "2", "3")  # sheds 3
    box.alarm("B", "C")  # sheds 2 and 1
    box.note("4")  # is itself shed
    box.alarm("D")  # is itself shed

    assert box.shed == 5
    assert await box.texts() == ["A", "B", "C"]


async def test_what_a_session_says_of_itself_always_has_room() -> None:
    """Its end is told, whatever waits already, and nothing is shed for it."""
    box = Box(events=2, budget=MemoryBudget(2 * NOTE_SIZE))
    box.note("1", "2")

    box.mailbox.put(Alarm(text="end"), always=True)

    assert box.shed == 0
    assert await box.texts() == ["1", "2", "end"]


async def test_what_is_shed_has_the_reason_of_the_moment() -> None:
    """While the endpoint does not take the session's batches, want of room is not the cause."""
    box = Box(events=1)

    box.note("1", "2")
    box.mailbox.full_because = DropReason.UNAUTHORIZED
    box.note("3")
    box.alarm("A")
    box.note("4")

    assert box.ledger.dropped == {DropReason.MAILBOX_FULL: 1, DropReason.UNAUTHORIZED: 3}


# The bound on bytes, over all sessions.


async def test_bytes_are_bounded() -> None:
    """Exactly as many events fit as have room, and larger ones push out more."""
    box = Box(budget=MemoryBudget(4 * NOTE_SIZE))
    box.note("1", "2", "3", "4")
    assert (box.shed, box.budget.used) == (0, 4 * NOTE_SIZE)

    box.note("5")
    assert box.shed == 1
    box.note("x" * (NOTE_SIZE + 2))  # takes the room of three

    assert box.shed == 4
    assert await box.texts() == ["5", "x" * (NOTE_SIZE + 2)]


async def test_bytes_are_shared_by_sessions() -> None:
    """What one holds, another has not; what one releases, another may take."""
    budget = MemoryBudget(3 * NOTE_SIZE)
    one, other = Box(budget=budget), Box(budget=budget)

    one.note("1", "2")
    other.note("3")
    assert not one.mailbox.put_if_room(Note(text="4"))
    assert not other.mailbox.put_if_room(Note(text="4"))

    assert await other.texts() == ["3"]
    assert not one.mailbox.put_if_room(Note(text="4"))  # handed on, and not yet delivered
    other.mailbox.release(NOTE_SIZE)
    assert one.mailbox.put_if_room(Note(text="4"))


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
async def test_the_session_that_holds_most_sheds_first(policy: MailboxPolicy) -> None:
    """A quiet session loses nothing to a loud one, and neither does a new one."""
    budget = MemoryBudget(10 * NOTE_SIZE)
    loud, quiet, new = (Box(budget=budget, policy=policy) for _ in range(3))

    quiet.note("q")
    loud.note(*"abcdefghijklmnopqrstuvwxyz")
    quiet.note("q", "q")
    new.note("n")

    assert (quiet.shed, new.shed) == (0, 0)
    assert loud.shed == 17 + 3
    assert await quiet.texts() == ["q", "q", "q"]
    assert await new.texts() == ["n"]
    assert await loud.texts() == list("uvwxyz" if policy == "drop_oldest" else "abcdef")


async def test_sessions_that_are_equally_loud_share() -> None:
    """None of them is pushed out by the others."""
    budget = MemoryBudget(40 * NOTE_SIZE)
    boxes = [Box(budget=budget) for _ in range(4)]

    for _ in range(100):
        for box in boxes:
            box.note("x")

    assert sum(len(box.mailbox) for box in boxes) == 40
    assert all(7 <= len(box.mailbox) <= 13 for box in boxes)


async def test_a_loud_session_does_not_take_from_the_quiet_when_it_has_become_quiet() -> None:
    """Who holds most is looked for again once the last one is down to less than its share."""
    budget = MemoryBudget(12 * NOTE_SIZE)
    first, second, third = (Box(budget=budget) for _ in range(3))
    first.note(*"abcdefghijklm")  # sheds one of its own, and is known to hold most
    assert first.shed == 1

    assert len(await first.texts()) == 12
    first.mailbox.release(12 * NOTE_SIZE)
    first.note("a", "b", "c")
    second.note(*"defghijk")
    third.note("l")
    third.note("m")

    assert (first.shed, second.shed, third.shed) == (1, 1, 0)


async def test_a_session_that_has_ended_sheds_no_more() -> None:
    """It holds nothing, and is not asked."""
    budget = MemoryBudget(2 * NOTE_SIZE)
    ended, box = Box(budget=budget), Box(budget=budget)
    ended.note("1", "2", "3")

    ended.mailbox.end()
    box.note("4", "5", "6")

    assert ended.shed == 1
    assert await box.texts() == ["5", "6"]


async def test_a_routine_event_pushes_out_no_urgent_one_of_its_own() -> None:
    """When bytes are short as when events are many."""
    box = Box(budget=MemoryBudget(2 * ALARM_SIZE))

    box.alarm("A", "B")
    box.note("1")
    box.alarm("C")

    assert box.shed == 2
    assert await box.texts() == ["B", "C"]


async def test_the_newest_go_first_when_bytes_are_short() -> None:
    """By policy, the new event is the one that goes; an urgent one pushes out a routine one."""
    box = Box(policy="drop_newest", budget=MemoryBudget(2 * ALARM_SIZE))

    box.note("1", "2", "3")
    box.alarm("A")
    box.alarm("B")
    box.alarm("C")

    assert box.shed == 4
    assert await box.texts() == ["A", "B"]


async def test_where_nothing_can_be_shed_the_new_event_goes() -> None:
    """All bytes may be past the mailboxes, on their way."""
    box = Box(budget=MemoryBudget(ALARM_SIZE))
    box.note("1")
    await box.texts()

    box.note("2")
    box.alarm("A")

    assert (box.shed, len(box.mailbox)) == (2, 0)


async def test_what_is_on_its_way_leaves_room_for_others() -> None:
    """It cannot be shed, so a loud session behind a stuck sender hands on half of the memory."""
    budget = MemoryBudget(1000 * NOTE_SIZE)
    loud, quiet = Box(budget=budget), Box(budget=budget)
    loud.note(*"x" * 1000)
    for _ in range(3):
        await loud.texts()
    assert budget.downstream == 600 * NOTE_SIZE

    async with trio.open_nursery() as nursery:
        nursery.start_soon(loud.texts)
        await settled()
        quiet.note("q", "q")
        assert await quiet.texts() == ["q", "q"]
        quiet.note("q")
        await settled()
        assert len(loud.mailbox) == 397
        nursery.cancel_scope.cancel()

    assert (loud.shed, quiet.shed) == (3, 0)


async def test_who_was_held_up_goes_on_with_the_next_delivery() -> None:
    """As soon as its own part on the way is small enough, or all of it together is."""
    budget = MemoryBudget(1000 * NOTE_SIZE)
    box, other = Box(budget=budget), Box(budget=budget)
    box.note(*"x" * 700)
    other.note(*"x" * 300)
    for _ in range(2):
        await box.texts()
        await other.texts()
    received: list[int] = []

    async def read() -> None:
        while True:
            received.append(len(await box.texts()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await settled()
        assert received == []  # 400 of its own, 300 of the other
        box.mailbox.release(100 * NOTE_SIZE)
        await settled()
        assert received == []  # 300 and 300
        box.mailbox.release(50 * NOTE_SIZE)
        await settled()
        assert received == [200]  # 250 is half of the half, and one chunk goes
        other.mailbox.release(300 * NOTE_SIZE)
        box.mailbox.release(1 * NOTE_SIZE)
        await settled()
        assert received == [200, 100]  # 449 altogether
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cause", ["a mark", "the end"])
async def test_nobody_is_held_up_who_waits_for_the_end_of_it(cause: str) -> None:
    """A flush, and what is left when a session ends, must not wait for a batch to fill up."""
    box = Box(budget=MemoryBudget(1000 * NOTE_SIZE))
    box.note(*"x" * 1000)
    for _ in range(3):
        await box.texts()

    if cause == "a mark":
        box.mailbox.flush()
    else:
        box.mailbox.close()

    assert [len(await box.texts()) for _ in range(2)] == [200, 200]


async def test_a_quiet_session_loses_nothing_to_a_loud_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """From end to end: behind an endpoint that hangs, one session tracks ten times too much."""
    capture = Capture([60.0])
    some = trimaran.Settings(memory_bytes=2 << 20, request_timeout=100)

    async with capture.open(settings=some) as telemetry:
        async with telemetry.session(session_id="loud") as loud:
            for _ in range(300):
                for _ in range(100):
                    loud.track(Note(text="x" * 200))
                await settled()
            async with telemetry.session(session_id="quiet") as quiet:
                for _ in range(10):
                    quiet.track(Note(text="x"))
                    await settled()
                await trio.sleep(100)

    assert loud.statistics().dropped["mailbox_full"] > 25_000
    assert (quiet.statistics().delivered, quiet.statistics().dropped) == (12, {})


# Marks.


async def test_a_mark_comes_behind_what_is_before_it() -> None:
    """And what is behind it comes in the next chunk."""
    box = Box()
    box.note("1")
    box.alarm("2")
    first = box.mailbox.flush()
    second = box.mailbox.flush()
    box.alarm("3")
    box.note("4")
    third = box.mailbox.flush()

    chunks = [await box.mailbox.receive() for _ in range(2)]

    assert [texts_of(chunk) for chunk in chunks] == [["1", "2"], ["3", "4"]]
    assert [chunk.flushes for chunk in chunks] == [[first, second], [third]]


async def test_a_mark_in_an_empty_mailbox_comes_alone() -> None:
    """What comes later does not come with it."""
    box = Box()
    mark = box.mailbox.flush()
    box.note("1")

    assert await box.mailbox.receive() == Chunk([], [mark])
    assert await box.texts() == ["1"]


async def test_a_mark_waits_for_all_that_is_before_it() -> None:
    """More than one chunk, if need be."""
    box = Box()
    box.note(*map(str, range(250)))
    mark = box.mailbox.flush()

    chunks = [await box.mailbox.receive() for _ in range(2)]

    assert [len(chunk.entries) for chunk in chunks] == [200, 50]
    assert [chunk.flushes for chunk in chunks] == [[], [mark]]


@pytest.mark.parametrize("kind", [Note, Alarm])
async def test_a_mark_waits_for_none_that_was_shed(kind: type[Note | Alarm]) -> None:
    """They have their fate; what was put behind the mark is not before it."""
    box = Box(events=2)
    box.mailbox.put(kind(text="1"))
    mark = box.mailbox.flush()

    for text in "23":
        box.mailbox.put(kind(text=text))

    assert await box.mailbox.receive() == Chunk([], [mark])
    assert await box.texts() == ["2", "3"]


async def test_a_mark_can_be_waited_for() -> None:
    """By any number of tasks, more than once, and a cancel leaves it in its place."""
    box = Box()
    mark = box.mailbox.flush()

    with trio.move_on_after(0) as scope:
        await mark.wait()
    assert scope.cancelled_caught
    assert not mark.is_reached

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mark.wait)
        nursery.start_soon(mark.wait)
        await settled()
        assert (await box.mailbox.receive()).flushes == [mark]
        mark.reach()
        mark.reach()

    assert mark.is_reached


async def test_marks_are_reached_when_the_session_ends() -> None:
    """Wherever they are: whatever was before them has its fate then."""
    box = Box()
    handed_on, forgotten, waiting = (box.mailbox.flush() for _ in range(3))
    box.note("1")
    late = box.mailbox.flush()
    await box.mailbox.receive()
    box.mailbox.forget(forgotten)

    box.mailbox.end()
    after = box.mailbox.flush()

    assert [mark.is_reached for mark in (handed_on, waiting, late, after)] == [True] * 4
    assert not forgotten.is_reached
    box.mailbox.forget(after)


async def test_a_mark_of_a_closed_mailbox_is_handed_on() -> None:
    """What was tracked before the end may still be on its way."""
    box = Box()
    box.note("1")
    box.mailbox.close()
    mark = box.mailbox.flush()

    chunk = await box.mailbox.receive()

    assert (texts_of(chunk), chunk.flushes) == (["1"], [mark])
    assert not mark.is_reached


# Waiting for room.


async def test_with_room_it_does_not_wait() -> None:
    """A stream of events is handed over with no turn for others in between."""
    box = Box()

    assert box.mailbox.put_if_room(Note(text="1"), 5.0)
    await box.mailbox.put_when_room(Note(text="2"))

    entries = (await box.mailbox.receive()).entries
    assert [entry.time for entry in entries] == [5.0, NOW]
    assert (box.ledger.tracked, box.ledger.pending) == (2, 2)


async def test_without_room_nothing_happens() -> None:
    """The caller may wait; nothing is shed, and the event is in no book."""
    box = Box(events=1)
    box.note("1")

    assert not box.mailbox.put_if_room(Note(text="2"))

    assert (box.ledger.tracked, box.shed) == (1, 0)
    assert await box.rest() == ["1"]


async def test_who_can_wait_leaves_room_to_those_who_cannot() -> None:
    """A stream of events that can wait never makes a tracked one push something out."""
    box = Box(events=1000)
    sent = 0
    while box.mailbox.put_if_room(Note(text="sent")):
        sent += 1

    box.note(*(["tracked"] * (1000 - sent)))

    assert sent == 400
    assert (len(box.mailbox), box.shed) == (1000, 0)
    for _ in range(4):
        assert not box.mailbox.put_if_room(Note(text="sent"))
        await box.texts()
    assert box.mailbox.put_if_room(Note(text="sent"))


async def test_it_waits_for_room() -> None:
    """Until the reader has taken something; the event has the time at which it was given."""
    times = iter([1.0, 2.0, 3.0, 4.0])
    box = Box(events=1, wall_clock=lambda: next(times))
    box.note("1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.mailbox.put_when_room, Note(text="2"))
        await settled()
        assert (len(box.mailbox), box.ledger.tracked) == (1, 1)
        assert await box.texts() == ["1"]

    [entry] = (await box.mailbox.receive()).entries
    assert (entry.event, entry.time) == (Note(text="2"), 2.0)
    assert (box.ledger.tracked, box.ledger.pending, box.shed) == (2, 2, 0)


async def test_it_is_a_point_of_cancellation() -> None:
    """Also with room; a cancelled call has done nothing."""
    box = Box()

    with trio.move_on_after(0) as scope:
        await box.mailbox.put_when_room(Note(text="1"))

    assert scope.cancelled_caught
    assert (box.ledger.tracked, len(box.mailbox)) == (0, 0)


async def test_a_cancel_leaves_no_trace() -> None:
    """Those behind move up, and no room is kept for who has left."""
    box = Box(events=1)
    box.note("1")

    async with trio.open_nursery() as nursery:

        async def wait(scope: trio.CancelScope, text: str) -> None:
            with scope:
                await box.mailbox.put_when_room(Note(text=text))

        scopes = [trio.CancelScope() for _ in range(3)]
        for scope, text in zip(scopes, "abc", strict=True):
            nursery.start_soon(wait, scope, text)
            await settled()
        scopes[0].cancel()
        scopes[1].cancel()
        await settled()
        assert (box.ledger.tracked, box.ledger.pending, box.budget.used) == (1, 1, NOTE_SIZE)
        assert await box.texts() == ["1"]

    assert [scope.cancelled_caught for scope in scopes] == [True, True, False]
    assert await box.rest() == ["c"]
    assert box.ledger.tracked == 2


@pytest.mark.parametrize("bound", ["events", "bytes"])
async def test_who_waited_first_is_first(bound: str) -> None:
    """Those who wait get their room in the order in which they came, one by one or at once."""
    box = Box(events=3) if bound == "events" else Box(budget=MemoryBudget(3 * NOTE_SIZE))
    box.note("x", "x", "x")
    received: list[str] = []

    async with trio.open_nursery() as nursery:
        for letter in "abcdefghijkl":
            nursery.start_soon(box.mailbox.put_when_room, Note(text=letter))
            await settled()
        while len(received) < 12:
            texts = await box.texts()
            box.mailbox.release(len(texts) * NOTE_SIZE)
            received += texts
            await settled()

    assert "".join([*received, *await box.rest()]) == "xxxabcdefghijkl"


async def test_nobody_jumps_the_queue() -> None:
    """Room that was made while others wait is theirs, for all that would wait themselves."""
    box = Box(events=1)
    box.note("1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.mailbox.put_when_room, Note(text="2"))
        await settled()
        assert await box.texts() == ["1"]

        assert not box.mailbox.put_if_room(Note(text="3"))
        nursery.start_soon(box.mailbox.put_when_room, Note(text="3"))
        await settled()
        assert await box.texts() == ["2"]

    assert await box.rest() == ["3"]


async def test_tracking_does_not_mind_who_waits() -> None:
    """A call that must not wait takes the room that there is, or sheds."""
    box = Box(events=1)
    box.note("1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.mailbox.put_when_room, Note(text="2"))
        await settled()
        assert await box.texts() == ["1"]
        box.note("3")
        await settled()
        assert await box.texts() == ["3"]

    assert await box.rest() == ["2"]


async def test_bytes_of_another_session_wake_who_waits() -> None:
    """When they are delivered, when they are shed, and when that session ends."""
    budget = MemoryBudget(2 * NOTE_SIZE)
    one, other = Box(budget=budget), Box(budget=budget)
    other.note("1", "2")
    await other.texts()

    async def wait(text: str) -> None:
        await one.mailbox.put_when_room(Note(text=text))

    async with trio.open_nursery() as nursery:
        for text in "abc":
            nursery.start_soon(wait, text)
            await settled()
        assert len(one.mailbox) == 0
        other.mailbox.release(NOTE_SIZE)
        await settled()
        assert len(one.mailbox) == 1
        other.mailbox.end()
        await settled()
        assert len(one.mailbox) == 2
        one.note("d")
        await settled()
        assert await one.texts() == ["b", "d"]
        one.mailbox.release(2 * NOTE_SIZE)

    assert await one.rest() == ["c"]


async def test_who_waits_for_room_learns_of_the_end() -> None:
    """The event is counted as closed, and so is one that comes after."""
    box = Box(events=1)
    box.note("1")

    async with trio.open_nursery() as nursery:
        for text in "23":
            nursery.start_soon(box.mailbox.put_when_room, Note(text=text))
        await settled()
        box.mailbox.close()
    await box.mailbox.put_when_room(Note(text="4"))
    assert box.mailbox.put_if_room(Note(text="5"))

    assert (box.ledger.tracked, box.ledger.dropped) == (5, {DropReason.CLOSED: 4})
    assert await box.rest() == ["1"]


async def test_an_event_that_is_too_large_does_not_wait() -> None:
    """No room would ever be enough."""
    box = Box(events=1, event_bytes=1000)
    box.note("1")

    await box.mailbox.put_when_room(Note(text="x" * 2000))

    assert box.ledger.dropped == {DropReason.TOO_LARGE: 1}


# The end.


async def test_a_closed_mailbox_hands_on_what_waits() -> None:
    """And takes nothing more."""
    box = Box()
    box.note("1", "2")

    box.mailbox.close()
    box.mailbox.close()
    box.note("3")

    assert await box.texts() == ["1", "2"]
    with pytest.raises(trio.EndOfChannel):
        await box.mailbox.receive()
    assert box.ledger.dropped == {DropReason.CLOSED: 1}


async def test_closing_the_reading_end() -> None:
    """Nothing more is taken, since nothing would be handed on. It is a checkpoint."""
    box = Box()

    with trio.testing.assert_checkpoints():
        await box.mailbox.aclose()
    box.note("1")

    assert box.ledger.dropped == {DropReason.CLOSED: 1}


async def test_the_end_gives_all_bytes_back() -> None:
    """Of what waits and of what was handed on; the books are the session's."""
    budget = MemoryBudget(PLENTY)
    box, other = Box(budget=budget), Box(budget=budget)
    other.note("x")
    box.note(*"x" * 250)
    await box.texts()

    box.mailbox.end()
    box.mailbox.end()
    box.note("x")

    assert budget.used == NOTE_SIZE
    assert (len(box.mailbox), box.mailbox.held) == (0, 0)
    assert (box.ledger.pending, box.ledger.dropped) == (250, {DropReason.CLOSED: 1})
    with pytest.raises(trio.EndOfChannel):
        await box.mailbox.receive()


# Numbers.


async def test_what_is_held_is_what_could_be_shed() -> None:
    """What was handed on is charged until its fate is known, and is held no more."""
    box = Box()
    box.note("x", "x", "x")
    assert (box.mailbox.held, box.budget.used) == (3 * NOTE_SIZE, 3 * NOTE_SIZE)

    await box.texts()
    assert (box.mailbox.held, box.budget.used) == (0, 3 * NOTE_SIZE)
    box.mailbox.release(2 * NOTE_SIZE)
    box.note("x")

    assert (box.mailbox.held, box.budget.used) == (NOTE_SIZE, 2 * NOTE_SIZE)


async def test_the_peak_is_remembered() -> None:
    """Most that waited at once, also if nobody came to read it."""
    box = Box()
    box.note("x", "x", "x")
    await box.texts()
    box.note("x")
    await box.texts()
    assert box.mailbox.peak == 3

    box.note(*"x" * 5)
    box.mailbox.end()

    assert box.mailbox.peak == 5


# Everything at once, against a model of lists.


class Model:
    """What a mailbox with room for *capacity* events of one size each should do."""

    def __init__(self, capacity: int, policy: MailboxPolicy) -> None:
        self.capacity = capacity
        self.policy = policy
        self.stream: list[Any] = []
        self.tracked = self.shed = self.refused = 0
        self.closed = False

    @property
    def waiting(self) -> list[Note | Alarm]:
        """The events."""
        return [item for item in self.stream if isinstance(item, (Note, Alarm))]

    def put(self, event: Note | Alarm) -> None:
        """Take an event, and shed one if there is one too many."""
        self.tracked += 1
        if self.closed:
            self.refused += 1
            return
        self.stream.append(event)
        if len(self.waiting) > self.capacity:
            self.shed += 1
            candidates = [item for item in self.waiting if not item.urgent] or self.waiting
            self.remove(candidates[0 if self.policy == "drop_oldest" else -1])

    def remove(self, event: Note | Alarm) -> None:
        """Take one out, wherever it is."""
        self.stream = [item for item in self.stream if item is not event]

    def take(self) -> tuple[list[Any], list[Any]]:
        """Events up to the first mark behind any, and the marks right behind them."""
        events: list[Any] = []
        marks: list[Any] = []
        while self.stream and (not marks or not isinstance(self.stream[0], (Note, Alarm))):
            item = self.stream.pop(0)
            (events if isinstance(item, (Note, Alarm)) else marks).append(item)
        return events, marks


STEPS = st.lists(st.sampled_from(["note", "note", "note", "alarm", "flush", "take", "close"]))


@given(
    steps=STEPS,
    capacity=st.integers(1, 5),
    policy=st.sampled_from(["drop_oldest", "drop_newest"]),
    bound=st.sampled_from(["events", "bytes"]),
)
@settings(max_examples=300)
async def test_a_mailbox_does_what_a_list_would(
    steps: list[str], capacity: int, policy: MailboxPolicy, bound: str
) -> None:
    """Order, shedding, marks and books are those of the model, for either bound."""
    assert NOTE_SIZE + 1 == ALARM_SIZE
    budget = MemoryBudget(capacity * ALARM_SIZE if bound == "bytes" else PLENTY)
    box = Box(events=capacity if bound == "events" else 1000, policy=policy, budget=budget)
    model = Model(capacity, policy)

    async def take() -> None:
        chunk = await box.mailbox.receive()
        box.mailbox.release(sum(entry.size for entry in chunk.entries))
        assert ([entry.event for entry in chunk.entries], list(chunk.flushes)) == model.take()

    for step in steps:
        if step == "note":
            event: Note | Alarm = Note(text="xx")  # as large as an alarm
            box.mailbox.put(event)
            model.put(event)
        elif step == "alarm":
            event = Alarm(text="x")
            box.mailbox.put(event)
            model.put(event)
        elif step == "flush":
            model.stream.append(box.mailbox.flush())
        elif step == "close":
            box.mailbox.close()
            model.closed = True
        elif model.stream:
            await take()

        assert len(box.mailbox) == len(model.waiting)
        assert budget.used == box.mailbox.held == len(model.waiting) * ALARM_SIZE
        assert (box.ledger.tracked, box.shed) == (model.tracked, model.shed)
        assert box.ledger.dropped.get(DropReason.CLOSED, 0) == model.refused

    while model.stream:
        await take()
    assert budget.used == 0


@given(
    puts=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([Note, Alarm]), st.integers(1, 900))
        | st.tuples(st.integers(0, 3), st.sampled_from(["take", "release", "end"]), st.just(0)),
        max_size=80,
    ),
    policy=st.sampled_from(["drop_oldest", "drop_newest"]),
)
@settings(max_examples=300)
async def test_sessions_share_their_memory_exactly(
    puts: list[tuple[int, Any, int]], policy: MailboxPolicy
) -> None:
    """Over all sessions, bytes stay in bounds and are all accounted for, and so is every event."""
    budget = MemoryBudget(5000)
    boxes = [Box(events=6, policy=policy, budget=budget) for _ in range(4)]
    downstream = [0, 0, 0, 0]
    delivered = [0, 0, 0, 0]
    ended: set[int] = set()

    for place, what, length in puts:
        box = boxes[place]
        if what == "take" and len(box.mailbox):
            entries = (await box.mailbox.receive()).entries
            assert [entry.number for entry in entries] == sorted(e.number for e in entries)
            downstream[place] += sum(entry.size for entry in entries)
            delivered[place] += len(entries)
        elif what == "release" and place not in ended:
            box.mailbox.release(downstream[place])
            downstream[place] = 0
        elif what == "end":
            box.mailbox.end()
            downstream[place] = 0
            ended.add(place)
        elif isinstance(what, type):
            box.mailbox.put(what(text="x" * length))

        assert budget.used == sum(downstream) + sum(box.mailbox.held for box in boxes)
        assert 0 <= budget.used <= 5000
        for books, waiting in ((box.ledger, len(box.mailbox)) for box in boxes):
            assert waiting <= 6
            assert books.tracked == sum(books.dropped.values()) + books.pending

    for place, box in enumerate(boxes):
        if place not in ended:
            assert box.ledger.pending == delivered[place] + len(box.mailbox)
        box.mailbox.end()
    assert budget.used == 0


# What is left of a session, and what others get of it.


def test_nothing_is_kept_of_a_mailbox_that_ended() -> None:
    """However it was known to the telemetry: as one of many, as the heaviest, as starved."""
    budget = MemoryBudget(2 * NOTE_SIZE)
    box = Box(budget=budget)
    box.note("a", "b", "c")
    budget.heaviest()
    budget.await_room(box.mailbox)
    gone = weakref.ref(box.mailbox)

    box.mailbox.end()
    del box
    gc.collect()

    assert gone() is None
    assert budget.used == 0


def test_an_empty_mailbox_is_not_the_heaviest() -> None:
    """Nothing can be shed from it."""
    budget = MemoryBudget(PLENTY)
    box = Box(budget=budget)

    assert budget.heaviest() is None

    box.note("a")

    assert budget.heaviest() is box.mailbox


def test_a_closed_mailbox_keeps_nobody_waiting_who_may_wait() -> None:
    """However much is ahead of it, the event is counted at once."""
    box = Box()
    box.note(*"x" * 500)
    assert not box.mailbox.put_if_room(Note(text="late"))

    box.mailbox.close()

    assert box.mailbox.put_if_room(Note(text="late"))
    assert box.ledger.dropped == {DropReason.CLOSED: 1}


async def test_who_waits_for_room_gets_what_shedding_leaves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A large event makes way for a small urgent one: there is room for a third, too."""
    budget = MemoryBudget(10 * NOTE_SIZE)
    loud, waiting, urgent = (Box(budget=budget) for _ in range(3))
    loud.note("x" * (7 * NOTE_SIZE))
    urgent.note("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.mailbox.put_when_room, Note(text="b"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(waiting.mailbox) == 0

        urgent.alarm("c")

        with trio.fail_after(1):
            await trio.testing.wait_all_tasks_blocked()
        assert len(waiting.mailbox) == 1
        nursery.cancel_scope.cancel()

    assert len(loud.mailbox) == 0
