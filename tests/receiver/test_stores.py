"""What holds of every store, whichever way it keeps what it is given."""

from __future__ import annotations

import json
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from receiver.batches import batch, found, numbers
from trimaran.receiver.ingest import Batch, Rejection, parse
from trimaran.receiver.limits import MAX_CHILDREN, MAX_FAMILY, MAX_PAGE_BYTES
from trimaran.receiver.summary import Summary, add
from trimaran.receiver.values import Receipt

if TYPE_CHECKING:
    from receiver.conftest import Place


async def test_what_is_stored_is_there_after_a_restart(place: Place) -> None:
    """Events in order, and the summary of their session."""
    async with place.open(clock=lambda: 1.5) as store:
        assert await store.append(batch(0, 1, 2)) == Receipt(3, ())
        assert await store.append(batch(3, 4)) == Receipt(2, ())
    async with place.open() as store:
        assert await numbers(store) == [0, 1, 2, 3, 4]
        summary = (await found(store)).summary
        assert summary.event_count == 5
        assert summary.events_by_type == {"n": 5}
        assert summary.received == 1500


async def test_bad_events_are_told_and_not_stored(place: Place) -> None:
    """The good ones of the same batch are."""
    async with place.open() as store:
        receipt = await store.append(batch(0, None, 1))

        assert receipt.accepted == 2
        assert [rejection.index for rejection in receipt.rejected] == [1]
        assert await numbers(store) == [0, 1]


async def test_a_batch_of_bad_events_leaves_nothing_behind(place: Place) -> None:
    """Not even its session."""
    async with place.open() as store:
        with trio.testing.assert_checkpoints():
            receipt = await store.append(batch(None), "key")

        assert receipt == Receipt(0, (Rejection(0, "Expected `str` of length >= 1 - at `$.type`"),))
        assert await store.session("s") is None


async def test_a_repeated_key_stores_once(place: Place) -> None:
    """And gets the first answer again, whatever the repetition carries."""
    async with place.open() as store:
        first = await store.append(batch(0, None), "key")
        again = await store.append(batch(0, 1, 2), "key")

        assert again == Receipt(first.accepted, first.rejected, duplicate=True)
        assert await numbers(store) == [0]


async def test_a_key_is_of_its_session(place: Place) -> None:
    """Two senders that count from 1 do not get into each other's way."""
    async with place.open() as store:
        await store.append(batch(0, session_id="a"), "1")
        await store.append(batch(1, session_id="b"), "1")
        await store.append(batch(2, session_id="b"), "2")

        assert await numbers(store, "a") == [0]
        assert await numbers(store, "b") == [1, 2]


async def test_without_a_key_every_batch_is_stored(place: Place) -> None:
    """Two that are alike are two."""
    async with place.open() as store:
        await store.append(batch(0))
        await store.append(batch(0))

        assert await numbers(store) == [0, 0]


async def test_a_key_holds_over_a_restart_and_within_a_group(place: Place) -> None:
    """A repetition may come at the same time as the first, or a day later."""
    async with place.open() as store, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(store.append, batch(0), "key")
    async with place.open() as store:
        await store.append(batch(0), "key")

        assert await numbers(store) == [0]


async def test_sessions_come_newest_first_by_pages(place: Place) -> None:
    """Every session is on one page, in the reverse order of first arrival."""
    async with place.open() as store:
        for name in "abcde":
            await store.append(batch(0, session_id=name))
        await store.append(batch(1, session_id="a"))
        pages: list[str] = []
        page = await store.sessions(limit=2)
        while True:
            pages.append("".join(session.id for session in page.sessions))
            if page.next is None:
                break
            page = await store.sessions(before=page.next, limit=2)

    assert pages == ["ed", "cb", "a"]


async def test_a_page_that_is_just_full_is_the_last(place: Place) -> None:
    """Nobody is sent to a page with nothing on it."""
    async with place.open() as store:
        assert (await store.sessions()).sessions == ()
        await store.append(batch(0, 1, session_id="a"))
        await store.append(batch(0, session_id="b"))

        assert (await store.sessions(limit=2)).next is None
        assert (await store.events(await found(store, "a"), limit=2)).next is None


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
async def test_events_come_in_order_whatever_the_page(place: Place, limit: int) -> None:
    """Pages begin and end within batches."""
    async with place.open() as store:
        for start in (0, 3, 4, 8):
            await store.append(batch(*range(start, {0: 3, 3: 4, 4: 8, 8: 9}[start])))
            await store.append(batch("other", session_id="t"))

        assert await numbers(store, limit=limit) == list(range(9))


async def test_beyond_the_last_event_there_is_none(place: Place) -> None:
    """A cursor from elsewhere does no harm."""
    async with place.open() as store:
        await store.append(batch(0))
        page = await store.events(await found(store), first=2**63 - 1)

    assert page.events == ()
    assert page.next is None


async def test_a_page_of_large_events_ends_early(place: Place) -> None:
    """It never holds much more than its bound in bytes, but always one event."""
    large = ["x" * (MAX_PAGE_BYTES // 3)] * 4
    async with place.open() as store:
        for value in [*large, "x" * (MAX_PAGE_BYTES + 1)]:
            await store.append(batch(value))
        session = await found(store)
        lengths = [len((await store.events(session, first=first)).events) for first in range(5)]

    assert lengths == [2, 2, 2, 1, 1]


async def test_receivers_may_share_a_store(place: Place) -> None:
    """Positions go on where the other one left off, and keys count for both."""
    async with place.open() as one, place.open() as other:
        await one.append(batch(0), "a")
        await other.append(batch(1), "b")
        await other.append(batch(0), "a")
        await one.append(batch(2), "c")

        assert await numbers(other) == [0, 1, 2]


NAMES = ["it's", "a\\'b", "é\N{SNOWMAN}", "x" * 256, "') OR 1=1 --", "%s {x:String}", '"', "a/b c"]


async def test_a_session_may_be_called_anything(place: Place) -> None:
    """No name gets into the way of another, nor do keys."""
    async with place.open() as store:
        for number, name in enumerate(NAMES):
            await store.append(batch(number, session_id=name), name, parent="p'")
            await store.append(batch(number, session_id=name), name)

        for number, name in enumerate(NAMES):
            assert await numbers(store, name) == [number]
        found_all = await store.sessions(parent="p'")
        assert [session.id for session in found_all.sessions] == NAMES[::-1]
        assert await store.session("' OR session_id != '") is None


async def test_any_text_comes_back_as_it_came(place: Place) -> None:
    """Line breaks, NUL, quotes, what is not ASCII."""
    texts = ["a\nb\r\t\b\f", "\0\x01\x7f", "'\"\\", "é\N{SNOWMAN}\N{ROCKET}", "\\N", "\\u0041"]
    async with place.open() as store:
        await store.append(batch(*texts))

        assert await numbers(store) == texts


async def test_a_session_says_for_whom_it_works(place: Place) -> None:
    """As its last batch that said so; nobody works for himself."""
    async with place.open() as store:
        await store.append(batch(0, session_id="child"), parent="first")
        await store.append(batch(1, session_id="child"), parent="boss")
        await store.append(batch(2, session_id="child"))
        await store.append(batch(0, session_id="self"), parent="self")
        child = await found(store, "child")
        assert (child.parent, child.is_parent_stored) == ("boss", False)
        assert (await found(store, "self")).parent is None

        await store.append(batch(0, session_id="boss"))
        await store.append(batch(0, session_id="second"), parent="boss")
        assert (await found(store, "child")).is_parent_stored
        assert (await found(store, "boss")).children == ("child", "second")
        assert (await store.sessions(parent="first")).sessions == ()


async def test_children_come_by_pages(place: Place) -> None:
    """The newest first, each once."""
    async with place.open() as store:
        for name in "abc":
            await store.append(batch(0, session_id=name), parent="p")
        await store.append(batch(1, session_id="a"), parent="p")
        first = await store.sessions(parent="p", limit=2)
        assert [session.id for session in first.sessions] == ["c", "b"]
        assert first.next is not None
        second = await store.sessions(parent="p", limit=2, before=first.next)
        assert [session.id for session in second.sessions] == ["a"]
        assert second.next is None


async def test_a_family_is_those_above_and_below(place: Place) -> None:
    """Whatever has arrived of them, in the order of arrival."""
    async with place.open() as store:
        for name, parent in [("b", "a"), ("d", "c"), ("e", "c"), ("c", "b"), ("x", "y")]:
            await store.append(batch(0, session_id=name), parent=parent)

        family = await store.family(await found(store, "c"))
        assert [(each.id, each.is_stored) for each in family.above] == [("a", False), ("b", True)]
        assert [each.id for each in family.below] == ["d", "e"]
        assert not family.more
        family = await store.family(await found(store, "b"))
        assert [each.id for each in family.below] == ["d", "e", "c"]


async def test_a_ring_of_parents_comes_to_an_end(place: Place) -> None:
    """Nobody checks what sessions say of themselves."""
    async with place.open() as store:
        for name, parent in [("a", "c"), ("b", "a"), ("c", "b")]:
            await store.append(batch(0, session_id=name), parent=parent)

        family = await store.family(await found(store, "a"))
        assert [each.id for each in family.above] == ["b", "c"]
        assert [each.id for each in family.below] == ["b", "c"]


async def test_a_large_family_is_cut_off(place: Place) -> None:
    """The rest can be had page by page."""
    async with place.open() as store:
        async with trio.open_nursery() as nursery:
            for number in range(MAX_FAMILY + 1):
                child = batch(0, session_id=f"c{number:03}")
                nursery.start_soon(partial(store.append, child, parent="p"))
        await store.append(batch(0, session_id="p"))

        parent = await found(store, "p")
        assert len(parent.children) == MAX_CHILDREN
        family = await store.family(parent)
        assert (len(family.below), family.more) == (MAX_FAMILY, True)
        assert parent.children == tuple(child.id for child in family.below[:MAX_CHILDREN])


def random_event(random: Random) -> dict[str, Any]:
    """Any of those that a session's totals are made of; names are often missing."""
    event: dict[str, Any] = {
        "type": random.choice(
            ["session_start", "session_end", "generation", "tool_call", "error", "upload"]
        ),
        "timestamp": random.randrange(1, 10_000),
    }
    name = random.choice(["", "", "x", "y"])
    match event["type"]:
        case "session_start":
            event |= {"agent": name, "model_id": name[::-1], "project_id": name}
        case "session_end":
            event["duration_ms"] = random.choice([0, 12, 0.5])
        case "generation":
            event |= {"agent": name, "model_id": name, "provider_id": name, "cost": 0.25}
            event["tokens"] = {"input": random.choice([0, 7, 2**53 - 1]), "cache_read": 3}
        case "tool_call":
            event |= {"tool_name": "t", "status": random.choice(["success", "error"])}
        case "error":
            event |= {"error_name": "E", "error_message": "broken"}
        case _:
            pass
    return event


def random_batches(random: Random, session_id: str) -> list[Batch]:
    """What one session may send."""
    found = [
        parse(
            json.dumps(
                {
                    "session_id": session_id,
                    "timestamp": 1,
                    "cli_version": random.choice(["", "1", "2"]),
                    "user_email": random.choice(["", "a@b"]),
                    "project_id": random.choice(["", "p", "q"]),
                    "events": [random_event(random) for _ in range(random.randrange(1, 5))],
                }
            ).encode()
        )
        for _ in range(random.randrange(1, 6))
    ]
    assert not any(each.rejected for each in found)
    return found


async def test_totals_are_those_of_all_batches_in_their_order(place: Place) -> None:
    """To the last field: what ``summary.add`` makes of them, one after the other."""
    random = Random(5)
    sent = {name: random_batches(random, name) for name in map(str, range(40))}

    async def append(batches: list[Batch]) -> None:
        for each in batches:
            await store.append(each)

    async with place.open(clock=lambda: 7.0) as store:
        async with trio.open_nursery() as nursery:
            for batches in sent.values():
                nursery.start_soon(append, batches)
        page = await store.sessions(limit=100)

    assert len(page.sessions) == len(sent)
    for session in page.sessions:
        expected = Summary()
        for each in sent[session.id]:
            expected = add(expected, each, received=7000)
        assert session.summary == expected


async def test_health_is_looked_at(place: Place) -> None:
    """It is fine, and whoever debugs sees where it is."""
    async with place.open() as store:
        await store.check()

        assert store.where == place.where
        assert place.where in repr(store)


async def test_receivers_whose_clocks_differ_keep_the_order(place: Place) -> None:
    """What a session sent first comes first, whoever took it."""
    async with place.open(clock=lambda: 2e9) as ahead, place.open(clock=lambda: 1e9) as behind:
        await ahead.append(batch(0))
        await behind.append(batch(1))
        await ahead.append(batch(2))
        await behind.append(batch(3, session_id="t"))

        assert await numbers(behind) == [0, 1, 2]
        assert await numbers(ahead, "t") == [3]
