"""Batches for tests of stores, and what a store has of them."""

from __future__ import annotations

import json
from typing import Any

from trimaran.receiver import Store
from trimaran.receiver.ingest import Batch, parse
from trimaran.receiver.values import StoredSession


def batch(*numbers: Any, session_id: str = "s") -> Batch:
    """A batch of events that are told apart by their numbers; None makes a bad one."""
    events = [
        {"type": "n" if number is not None else "", "timestamp": 1, "n": number}
        for number in numbers
    ]
    return parse(json.dumps({"session_id": session_id, "timestamp": 1, "events": events}).encode())


async def found(store: Store, session_id: str = "s") -> StoredSession:
    session = await store.session(session_id)
    assert session is not None
    return session


async def numbers(store: Store, session_id: str = "s", *, limit: int = 1000) -> list[Any]:
    """The numbers of all events of a session, page by page."""
    session = await found(store, session_id)
    seen: list[Any] = []
    first: int | None = 0
    while first is not None:
        page = await store.events(session, first=first, limit=limit)
        assert page.first == first == len(seen)
        assert len(page.events) <= limit
        seen += [json.loads(bytes(event))["n"] for event in page.events]
        first = page.next
    return seen
