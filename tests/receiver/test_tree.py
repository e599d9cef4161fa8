"""A session that names its parent stands below it, whatever else it says."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import PATIENCE
from trimaran.receiver import Receiver, open_store
from trimaran.receiver.database import APPLICATION_ID, MIGRATIONS
from trimaran.receiver.limits import MAX_ANCESTORS, MAX_CHILDREN, MAX_FAMILY
from trimaran.receiver.summary import Summary
from trimaran.receiver.tree import as_tree
from trimaran.receiver.values import StoredSession
from trimaran.receiver.wire import parent_of

INGEST = "/api/observability/ingest"


@pytest.fixture
async def client(receiver: Receiver) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        yield client


async def post(
    client: httpx.AsyncClient, session_id: str, parent: str | bytes | None = None
) -> None:
    """A batch of one event of that session, and its header if it names a *parent*."""
    events = [{"type": "n", "timestamp": 1000}]
    headers: dict[str, Any] = {"content-type": "application/json"}
    if parent is not None:
        headers["trimaran-parent-session"] = parent
    answer = await client.post(
        INGEST,
        content=json.dumps({"session_id": session_id, "timestamp": 1, "events": events}),
        headers=headers,
    )
    assert answer.status_code == 200


async def session(client: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    answer = await client.get(f"/api/sessions/{quote(session_id, safe='')}")
    found: dict[str, Any] = answer.json()
    return found


async def page(client: httpx.AsyncClient, path: str = "/") -> str:
    answer = await client.get(path)
    assert answer.status_code == 200
    return answer.text


def in_order(html: str, *texts: str) -> bool:
    """Whether each of *texts* comes after the one before."""
    places = [html.find(text) for text in texts]
    return -1 not in places and places == sorted(places)


def rows(html: str) -> list[tuple[str, int]]:
    """The sessions that a page lists, each with how far it is set in."""
    return [
        (row.split('href="/sessions/', 1)[1].split('"')[0], row.count('class="step"'))
        for row in html.split('<td><div class="branch"')[1:]
    ]


async def test_a_session_tells_its_parent_and_its_children(client: httpx.AsyncClient) -> None:
    """In JSON, in the order in which the children came; also one of a child's own."""
    await post(client, "main")
    for number in range(3):
        await post(client, f"sub {number}", "main")
    await post(client, "deep", "sub%201")

    main, child = await session(client, "main"), await session(client, "sub 1")

    assert (main["parent_session_id"], main["children"]) == (None, ["sub 0", "sub 1", "sub 2"])
    assert (child["parent_session_id"], child["children"]) == ("main", ["deep"])
    listed = (await client.get("/api/sessions")).json()["sessions"]
    assert [each["parent_session_id"] for each in listed] == ["sub 1", *["main"] * 3, None]


async def test_the_last_parent_that_is_named_counts(client: httpx.AsyncClient) -> None:
    """A batch that names none takes nothing away."""
    await post(client, "s")
    await post(client, "s", "one")
    await post(client, "s", "two")
    await post(client, "s")

    assert (await session(client, "s"))["parent_session_id"] == "two"


async def test_all_children_are_had_page_by_page(client: httpx.AsyncClient) -> None:
    """Of many, the session itself names the first ones."""
    for number in range(MAX_CHILDREN + 2):
        await post(client, f"sub-{number}", "main")
    await post(client, "main")
    await post(client, "another")

    named = (await session(client, "main"))["children"]
    first = (await client.get("/api/sessions", params={"parent": "main", "limit": 100})).json()
    rest = (
        await client.get("/api/sessions", params={"parent": "main", "after": first["next"]})
    ).json()

    assert named == [f"sub-{number}" for number in range(MAX_CHILDREN)]
    listed = [each["id"] for each in [*first["sessions"], *rest["sessions"]]]
    assert listed == [f"sub-{number}" for number in reversed(range(MAX_CHILDREN + 2))]
    assert rest["next"] is None


async def test_a_sub_agent_is_listed_below_its_parent(client: httpx.AsyncClient) -> None:
    """Set in by its depth, among the sessions and on the page of its parent."""
    await post(client, "old")
    await post(client, "main")
    await post(client, "sub", "main")
    await post(client, "deep", "sub")
    await post(client, "sub2", "main")
    await post(client, "new")

    everything = await page(client)
    of_main = await page(client, "/sessions/main")

    tree = [("sub", 1), ("deep", 2), ("sub2", 1)]
    assert rows(everything) == [("new", 0), ("main", 0), *tree, ("old", 0)]
    assert rows(of_main) == [("sub", 0), ("deep", 1), ("sub2", 0)]
    assert "Sub-agents: 3" in of_main
    assert "sub-agent of <" not in everything + of_main
    assert "Sub-agents" not in await page(client, "/sessions/new")


async def test_a_page_leads_up_to_the_session_at_the_top(client: httpx.AsyncClient) -> None:
    """The topmost first."""
    await post(client, "a/top")
    await post(client, "mid", "a%2Ftop")
    await post(client, "low", "mid")

    assert in_order(
        (await page(client, "/sessions/low")).split("<main>", maxsplit=1)[0],
        'href="/"',
        'href="/sessions/a%2Ftop"',
        'href="/sessions/mid"',
        "</header>",
    )


async def test_a_parent_that_is_not_there_is_named(client: httpx.AsyncClient) -> None:
    """Without a link that would lead nowhere; it may come later, and then has its child."""
    await post(client, "orphan", "gone")

    before, itself = await page(client), await page(client, "/sessions/orphan")

    assert rows(before) == [("orphan", 0)]
    assert "/sessions/gone" not in before + itself
    assert in_order(before, "sub-agent of", "gone", "of which nothing has arrived")
    assert in_order(itself, "Nothing of it has arrived", "gone")
    assert (await session(client, "orphan"))["parent_session_id"] == "gone"

    await post(client, "gone")

    assert rows(await page(client)) == [("gone", 0), ("orphan", 1)]


async def test_a_parent_on_another_page_is_a_click_away(client: httpx.AsyncClient) -> None:
    """There are 50 sessions on a page."""
    await post(client, "main")
    for number in range(49):
        await post(client, f"other-{number}")
    await post(client, "sub", "main")

    html = await page(client)

    assert rows(html)[0] == ("sub", 0)
    assert in_order(html, "sub-agent of", 'href="/sessions/main"')


async def test_a_session_is_not_its_own_parent(client: httpx.AsyncClient) -> None:
    """Whoever says so has said nothing."""
    await post(client, "s", "s")

    itself = await session(client, "s")
    assert (itself["parent_session_id"], itself["children"]) == (None, [])


@pytest.mark.parametrize("length", [2, 3])
async def test_sessions_that_name_each_other_are_shown(
    client: httpx.AsyncClient, length: int
) -> None:
    """Each once, wherever one begins to look."""
    for number in range(length):
        await post(client, f"s{number}", f"s{(number + 1) % length}")

    listed = rows(await page(client))
    pages = [await page(client, f"/sessions/s{number}") for number in range(length)]

    assert sorted(name for name, _ in listed) == [f"s{number}" for number in range(length)]
    assert sorted(depth for _, depth in listed) == list(range(length))
    for number, html in enumerate(pages):
        others = {f"s{other}" for other in range(length)} - {f"s{number}"}
        assert {name for name, _ in rows(html)} == others
        above = html.split("</header>", maxsplit=1)[0]
        assert above.count('class="crumb id"') == length - 1


async def test_a_deep_and_wide_tree_is_shown_within_bounds(client: httpx.AsyncClient) -> None:
    """Its pages say that there is more; neither depth nor number is a problem."""
    await post(client, "s0")
    for number in range(MAX_FAMILY + 1):
        await post(client, f"s{number + 1}", f"s{number}")

    top = await page(client, "/sessions/s0")
    bottom = await page(client, f"/sessions/s{MAX_FAMILY}")

    assert len(rows(top)) == MAX_FAMILY
    assert f"Sub-agents: more than {MAX_FAMILY}" in top
    assert max(depth for _, depth in rows(top)) == 8
    assert bottom.split("</header>", maxsplit=1)[0].count('class="crumb id"') == MAX_ANCESTORS


async def test_a_batch_that_is_not_stored_names_no_parent(client: httpx.AsyncClient) -> None:
    """One without a good event leaves nothing behind."""
    await post(client, "s")
    for events, status in (([], 200), ([{"type": "n"}], 207)):
        answer = await client.post(
            INGEST,
            json={"session_id": "s", "timestamp": 1, "events": events},
            headers={"trimaran-parent-session": "main"},
        )
        assert answer.status_code == status

    assert (await session(client, "s"))["parent_session_id"] is None


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        ("ses_1", "ses_1"),
        ("%C3%A4%20%2F%0", "ä /%0"),
        ("\N{LATIN CAPITAL LETTER A WITH TILDE}\N{CURRENCY SIGN}", "ä"),  # UTF-8, unencoded
        ("a" * 256, "a" * 256),
        ("a" * 257, None),
        ("", None),
        ("a%0Ab", None),
        ("%00", None),
        ("a%0A", None),
        ("%FF", None),
        ("%ED%A0%80", None),  # half a character
    ],
)
def test_a_header_names_what_a_session_can_be_called(header: str, parent: str | None) -> None:
    """And nothing else."""
    assert parent_of(header) == parent


async def test_a_batch_is_taken_whatever_its_parent_is_called(client: httpx.AsyncClient) -> None:
    """Bytes of any kind in the header cost no event."""
    await post(client, "s", b"\xff%zz")
    await post(client, "t", "ä ö".encode())

    assert (await session(client, "s"))["parent_session_id"] is None
    assert (await session(client, "t"))["parent_session_id"] == "ä ö"


async def test_a_store_from_before_there_were_parents_is_read_on(tmp_path: Path) -> None:
    """Its sessions have none."""
    path = tmp_path / "s.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute("INSERT INTO sessions (id, summary) VALUES ('s', '{}')")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 1")

    async with open_store(path) as store:
        assert await store.session("s") == StoredSession(1, "s", Summary())


SESSIONS = st.lists(st.integers(-1, 30), max_size=30).map(
    lambda parents: [
        StoredSession(number, f"s{number}", Summary(), None if parent < 0 else f"s{parent}")
        for number, parent in enumerate(parents)
    ]
)


@given(SESSIONS.flatmap(st.permutations))
def test_every_session_has_one_place_in_the_tree(sessions: list[StoredSession]) -> None:
    """Right below its parent and the others below that; only at a depth of 0 there is none."""
    branches = as_tree(sessions)

    assert sorted(branch.session.id for branch in branches) == sorted(s.id for s in sessions)
    path: list[str] = []
    cut = 0
    for branch in branches:
        del path[branch.depth :]
        assert len(path) == branch.depth
        if path:
            assert branch.session.parent == path[-1]
        elif branch.session.parent in {session.id for session in sessions}:
            cut += 1
        path.append(branch.session.id)
    assert cut == rings_in(sessions)


def rings_in(sessions: list[StoredSession]) -> int:
    """How many rings of parents there are."""
    parents = {session.id: session.parent for session in sessions}
    on_rings: set[frozenset[str]] = set()
    for start in parents:
        trail: list[str] = []
        at: str | None = start
        while at in parents and at not in trail:
            trail.append(at)
            at = parents[at]
        if at in trail:
            on_rings.add(frozenset(trail[trail.index(at) :]))
    return len(on_rings)
