"""A person can read what was sent, and nothing that was sent can do anything."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import PATIENCE
from trimaran._events import BUILT_IN_EVENTS
from trimaran.receiver import Receiver
from trimaran.receiver.ingest import BadBody, parse
from trimaran.receiver.pages import PAGE, Pages
from trimaran.receiver.summary import Summary, add
from trimaran.receiver.values import Ancestor, EventPage, Family, SessionPage, StoredSession

NOW = 1_795_364_664_000  # 2026-11-22 16:24:24 UTC
HOSTILE = "</title></style></p>\"'><script>alert(1)</script><img src=x onerror=alert(2)>"
PAGES = Pages()
VOID = {"meta", "link"}


class Page(HTMLParser):
    """What a browser would find on a page: its elements, links and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It ends, and must be the one that began last."""
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element of SVG has nothing in it."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Text, of the page or of its style."""
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += f" {data.strip()}" if data.strip() else ""

    def find(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each such element."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def refreshes(self) -> bool:
        """Whether the page loads itself again after a while."""
        return any(meta.get("http-equiv") == "refresh" for meta in self.find("meta"))

    def check(self) -> None:
        """Nothing runs, nothing is loaded, nothing is sent."""
        assert {tag for tag, _ in self.elements} <= {
            *("html", "head", "meta", "title", "link", "style", "body", "header", "main", "nav"),
            *("a", "svg", "path", "rect", "h1", "p", "span", "time", "strong", "pre", "div"),
            *("dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td"),
            *("details", "summary"),
        }
        for _, attributes in self.elements:
            assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert all((link["href"] or "").startswith("data:") for link in self.find("link"))
        for anchor in self.find("a"):
            href = anchor["href"] or ""
            assert href == "/" or href.startswith(("/sessions/", "/?after=", "?after="))
            assert not href.startswith("//")


def session_of(*events: Any, session_id: str = "s", received: int = NOW) -> StoredSession:
    body = {"session_id": session_id, "timestamp": 1, "project_id": "p", "events": events}
    batch = parse(json.dumps(body).encode())
    assert batch.rejected == ()
    return StoredSession(1, session_id, add(Summary(), batch, received=received))


def events_page(*events: Any, first: int = 0, following: int | None = None) -> EventPage:
    raw = tuple(msgspec.Raw(json.dumps({"session_id": "s", **one}).encode()) for one in events)
    return EventPage(first, raw, following)


def event(type_: str, **fields: Any) -> dict[str, Any]:
    return {"type": type_, "timestamp": NOW - 60_000, **fields}


def session_page(*events: Any, first: int = 0, following: int | None = None) -> Page:
    html = PAGES.session(
        session_of(*events), events_page(*events, first=first, following=following), now=NOW
    )
    return Page(html)


def sessions_page(*sessions: StoredSession, newest: bool = True, more: int | None = None) -> Page:
    page = SessionPage(sessions, more)
    return Page(PAGES.sessions(page, address="localhost:1", newest=newest, now=NOW))


def test_a_session_reads_as_a_story() -> None:
    """Its events in order, with when, what, how long, tokens, cost and what went wrong."""
    page = session_page(
        event("session_start", agent="build", model_id="m"),
        event(
            "generation",
            timestamp=NOW - 58_000,
            model_id="m",
            tokens={"input": 900, "output": 120, "cache_read": 300},
            cost=0.0123,
            duration_ms=1240,
        ),
        event(
            "tool_call",
            timestamp=NOW - 57_000,
            tool_name="bash",
            status="error",
            error="exit 1",
            duration_ms=310,
        ),
        event("bridge_call", timestamp=NOW - 56_000, method="sql.execute", status="error"),
        event("session_end", timestamp=NOW, duration_ms=60_000),
    )

    page.check()
    for text in (
        " s ended p · build · m · 2026-11-22 16:23:24 UTC".replace(" ·", ""),
        " Duration 1 min 0 s Events 5 Tokens 1,320 Cost $0.0123 Errors 2",
        " tool_call 1",
        " input 900 output 120 reasoning 0 cache read 300 cache write 0",
        " 0 0:00.000 session_start Session started build m",
        " 1 0:02.000 generation m 1.24 s 1,320 $0.0123",
        " 2 0:03.000 tool_call bash exit 1 310 ms",
        " 3 0:04.000 bridge_call sql.execute failed 0 ms",
        " 4 1:00.000 session_end Session ended 1 min 0 s",
    ):
        assert text in page.text
    widths = [rect["width"] for rect in page.find("rect")]
    assert widths == ["100.0", "25.0", "0.0"]
    assert len([row for row in page.find("tr") if row.get("class") == "failed"]) == 2


def test_a_session_leads_on_to_its_other_pages() -> None:
    """Earlier and later ones, and back to all sessions."""
    one = event("n")

    middle = session_page(one, first=PAGE + 50, following=PAGE + 51)
    hrefs = [anchor["href"] for anchor in middle.find("a")]
    assert hrefs == ["/", "/", "?after=50", f"?after={PAGE + 51}"]
    assert f" {PAGE + 50} 0:00.000 n" in middle.text

    assert [anchor["href"] for anchor in session_page(one).find("a")] == ["/", "/"]
    assert "?after=0" in [anchor["href"] for anchor in session_page(one, first=7).find("a")]


def test_a_page_without_events_is_a_page() -> None:
    """Beyond the last one there is nothing to list."""
    page = Page(PAGES.session(session_of(event("n")), events_page(first=5), now=NOW))

    assert page.find("table") == []
    assert "?after=0" in [anchor["href"] for anchor in page.find("a")]


def test_a_session_that_goes_on_is_looked_at_again() -> None:
    """Its last page refreshes itself, without a script; others stand still."""
    going_on = session_of(event("n"))
    silent = session_of(event("n"), received=NOW - 30_001)
    ended = session_of(event("session_end"))

    def shown(session: StoredSession, following: int | None = None) -> Page:
        return Page(PAGES.session(session, events_page(following=following), now=NOW))

    assert shown(going_on).refreshes
    assert " s live " in shown(going_on).text
    assert not shown(going_on, following=1).refreshes
    assert not shown(silent).refreshes
    assert " s open " in shown(silent).text
    assert not shown(ended).refreshes


def test_a_session_is_looked_at_again_while_its_sub_agents_go_on() -> None:
    """Also when it has ended itself: what it started may have not."""
    ended = session_of(event("session_end"))
    going_on = session_of(event("n"), session_id="sub")

    page = Page(PAGES.session(ended, events_page(), Family(below=(going_on,)), now=NOW))

    page.check()
    assert page.refreshes
    assert " s ended " in page.text
    assert " Sub-agents: 1 " in page.text
    assert " sub live " in page.text


def test_a_hostile_parent_is_only_shown() -> None:
    """In the way that leads up to it, in lists, stored or not."""
    child = StoredSession(1, "s", session_of(event("n")).summary, HOSTILE)
    known = StoredSession(2, HOSTILE, child.summary, HOSTILE, is_parent_stored=True)
    family = Family((Ancestor(HOSTILE, False), Ancestor(HOSTILE, True)), (known,))

    for page in (
        sessions_page(child),
        sessions_page(known),
        sessions_page(child, known),
        Page(PAGES.session(child, events_page(), family, now=NOW)),
    ):
        page.check()
        assert HOSTILE in page.text


def test_sessions_are_listed_with_what_they_came_to() -> None:
    """One line each, that leads to its page."""
    session = session_of(
        event("session_start", agent="build", model_id="m"),
        event("generation", tokens={"input": 5000}, cost=1.5),
        event("error", error_name="OSError", timestamp=NOW - 50_000),
        session_id="a b/ü",
    )

    page = sessions_page(session, session_of(event("n"), received=0))

    page.check()
    assert (
        " a b/ü live p build m 1 min ago 10.0 s 3 5,000 $1.50 1 s p \N{EN DASH} 1 min ago 0 ms 1 0 $0 0"
    ) in page.text
    assert [anchor["href"] for anchor in page.find("a")][1:] == [
        "/sessions/a%20b%2F%C3%BC",
        "/sessions/s",
    ]
    assert page.refreshes


def test_a_list_of_sessions_leads_on() -> None:
    """To older ones, and back to the newest."""
    quiet = session_of(event("n"), received=0)

    first = sessions_page(quiet, more=7)
    later = sessions_page(session_of(event("n")), newest=False)
    beyond = sessions_page(newest=False)

    assert [anchor["href"] for anchor in first.find("a")][-1] == "/?after=7"
    assert not first.refreshes
    assert [anchor["href"] for anchor in later.find("a")][-1] == "/"
    assert not later.refreshes
    assert "There are no older sessions" in beyond.text


def test_an_empty_list_says_how_to_begin() -> None:
    """With a command that works as it stands, and an eye on what comes in."""
    page = sessions_page()

    page.check()
    assert "http://localhost:1/api/observability/ingest" in page.text
    assert page.refreshes
    example = page.text[page.text.index("--data '") + 8 : page.text.rindex("}'") + 1]
    assert len(parse(example.encode()).events) == 1


def test_many_types_of_events_are_counted_up_to_a_point() -> None:
    """A sender that makes up a thousand does not fill the page with them."""
    page = session_page(*(event(f"type{number}") for number in range(25)), event("type24"))

    assert page.text.index("type24 2") < page.text.index("type0 1")
    assert "and 5 more types" in page.text


def test_what_went_wrong_is_a_page_too() -> None:
    """With the problem in words."""
    page = Page(PAGES.refusal(404, "There is no <session>"))

    page.check()
    assert "Not Found There is no <session>. All sessions" in page.text


def test_hostile_content_is_only_shown() -> None:
    """Wherever a sender can put text, it stays text."""
    session = session_of(
        {
            "type": "session_start",
            "timestamp": NOW,
            **dict.fromkeys(("agent", "model_id", "provider_id"), HOSTILE),
        },
        event(
            "tool_call",
            tool_name=HOSTILE,
            tool_category=HOSTILE,
            status="error",
            error=HOSTILE,
        ),
        event(HOSTILE, **{HOSTILE: HOSTILE}),
        session_id=HOSTILE,
    )
    rows = tuple(
        msgspec.Raw(json.dumps({**one, "session_id": HOSTILE}).encode())
        for one in (
            event("tool_call", tool_name=HOSTILE, status="error", error=HOSTILE),
            event("generation", model_id=HOSTILE, provider_id=HOSTILE),
            event(HOSTILE, **{HOSTILE: HOSTILE}),
        )
    )

    for html in (
        PAGES.sessions(SessionPage((session,), 1), address=HOSTILE, newest=True, now=NOW),
        PAGES.sessions(SessionPage((), None), address=HOSTILE, newest=True, now=NOW),
        PAGES.session(session, EventPage(0, rows, None), now=NOW),
        PAGES.refusal(404, HOSTILE),
    ):
        page = Page(html)
        page.check()
        assert "<script" not in html
        assert HOSTILE in page.text


async def test_the_headers_forbid_what_the_page_does_not_need(receiver: Receiver) -> None:
    """Only the one style sheet, by its hash: should an escape ever fail, nothing runs."""
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        for path, status in (("/", 200), ("/sessions/none", 404), ("/nothing", 404)):
            answer = await client.get(path)
            style = Page(answer.text).style
            digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

            assert answer.status_code == status
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"].split("; ")
            assert policy[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
            assert not any("unsafe" in part or "http" in part for part in policy)


async def test_pages_are_made_of_what_was_stored(receiver: Receiver) -> None:
    """From a post to the pages that a person opens."""
    events = [event("n", session_id="s", n=number) for number in range(PAGE + 1)]
    body = {"session_id": "s", "timestamp": 1, "events": events}
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        await client.post("/api/observability/ingest", json=body)

        assert f" 0 ms {PAGE + 1} 0 $0 0" in Page((await client.get("/")).text).text
        first = Page((await client.get("/sessions/s")).text)
        assert len(first.find("tr")) == PAGE + 1
        last = Page((await client.get(f"/sessions/s{first.find('a')[-1]['href']}")).text)
        assert f' {PAGE} 0:00.000 n n {{"n":{PAGE}}}' in last.text
        assert (await client.get("/?after=0")).status_code == 200
        assert (await client.get("/?after=x")).status_code == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = sorted({name for kind in BUILT_IN_EVENTS.values() for name in kind.__struct_fields__})


@given(
    st.text(min_size=1, max_size=20),
    st.sampled_from(sorted(BUILT_IN_EVENTS)) | st.text(min_size=1, max_size=20),
    st.dictionaries(st.sampled_from(names) | st.text(), json_values, max_size=5),
)
def test_whatever_is_taken_can_be_shown(
    session_id: str, type_: str, fields: dict[str, Any]
) -> None:
    """No event that was accepted makes a page fail."""
    sent = {
        "tool_name": "x",
        "method": "x",
        "error_name": "x",
        "command_name": "x",
        "trigger": "error_recovery",
        "timestamp": 1,
        **fields,
        "type": type_,
    }
    sent.pop("session_id", None)
    body = {"session_id": session_id, "timestamp": 1, "events": [sent]}
    try:
        batch = parse(json.dumps(body).encode())
    except BadBody:  # a control character in the id, or half of a surrogate pair
        return
    session = StoredSession(1, session_id, add(Summary(), batch, received=1))
    rows = tuple(msgspec.Raw(good.raw) for good in batch.events)

    if batch.events:
        Page(PAGES.session(session, EventPage(0, rows, None), now=NOW)).check()
        sessions_page(session).check()


@pytest.mark.parametrize("timestamp", [0, 253_402_300_799_999])
def test_every_moment_can_be_shown(timestamp: int) -> None:
    """From 1970 to the end of the year 9999."""
    session_page(event("n", timestamp=timestamp)).check()
