"""What a person sees: sessions, and the events of one, as plain HTML.

In: pages of the store.
Out: HTML as text, complete in itself: no script, nothing loaded from elsewhere.
Does not know: HTTP, the store, where the clock is.

Everything that is shown was sent by somebody, so the templates escape all of it, and
the headers forbid a browser to run or load anything should that ever fail.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from trimaran._events import BUILT_IN_EVENTS
from trimaran.receiver import words
from trimaran.receiver.rows import Row, row_of
from trimaran.receiver.summary import Summary
from trimaran.receiver.tree import as_tree
from trimaran.receiver.values import EventPage, Family, SessionPage, StoredSession

__all__ = ["PAGE", "Pages"]

PAGE = 200
"""Events on one page."""

_CALLS = frozenset({"generation", "tool_call", "bridge_call"})
_TYPES = 20  # types of events that are counted on the page of a session; the wire has ten
_LIVE = 30_000  # ms since its last batch for which an open session is thought to go on
_STEPS = 8  # levels of a tree that are told apart by how far they are set in
_ALONE = Family()
_REFRESH = 5  # s between two looks at sessions that go on


class Pages:
    """Renders pages. The :attr:`headers` must go with each of them."""

    def __init__(self) -> None:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("trimaran.receiver"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        style = environment.get_template("style.css").render()
        self._environment = environment
        self._everywhere: Mapping[str, object] = {
            "built_in": BUILT_IN_EVENTS,
            "segment": _segment,
            "steps": _STEPS,
            "style": Markup(style),  # noqa: S704 - our own file
            "words": words,
        }
        self.headers: Mapping[str, str] = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": _policy(style),
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def sessions(self, page: SessionPage, *, address: str, newest: bool, now: int) -> str:
        """The sessions in *page*, which is the first one if they are the *newest*.

        *address* is where the receiver was asked, host and port; *now* is in ms since
        the epoch, by the receiver's clock.
        """
        going_on = _going_on(page.sessions, now)
        return self._render(
            "sessions.html",
            refresh=_REFRESH if newest and (going_on or not page.sessions) else None,
            page=page,
            branches=as_tree(page.sessions),
            going_on=going_on,
            address=address,
            newest=newest,
            top=None,
            now=now,
        )

    def session(
        self, session: StoredSession, page: EventPage, family: Family = _ALONE, *, now: int
    ) -> str:
        """One session in its *family*, and its events that are in *page*; *now* as above."""
        summary = session.summary
        rows = [row_of(bytes(event), session.id) for event in page.events]
        going_on = _going_on((session, *family.below), now)
        types = sorted(summary.events_by_type.items(), key=lambda item: -item[1])
        return self._render(
            "session.html",
            refresh=_REFRESH if going_on and page.next is None else None,
            session=session,
            family=family,
            branches=as_tree(family.below),
            top=session.id,
            summary=summary,
            types=types[:_TYPES],
            more_types=len(types[_TYPES:]),
            page=page,
            previous=max(0, page.first - PAGE),
            rows=rows,
            bars=_bars(rows),
            going_on=going_on,
            now=now,
        )

    def refusal(self, status: int, problem: str) -> str:
        """What a person gets instead of a page."""
        return self._render(
            "refusal.html", refresh=None, phrase=HTTPStatus(status).phrase, problem=problem
        )

    def _render(self, template: str, **values: object) -> str:
        return self._environment.get_template(template).render(self._everywhere, **values)


def _going_on(sessions: Sequence[StoredSession], now: int) -> set[str]:
    return {session.id for session in sessions if _goes_on(session.summary, now)}


def _goes_on(summary: Summary, now: int) -> bool:
    return summary.end is None and now - summary.received < _LIVE


def _bars(rows: Sequence[Row]) -> list[float | None]:
    """For each row its duration in % of the longest; None for what is not one call."""
    durations = [row.duration_ms if row.type in _CALLS else None for row in rows]
    longest = max((duration for duration in durations if duration is not None), default=0) or 1
    return [
        None if duration is None else round(max(0, duration) / longest * 100, 1)
        for duration in durations
    ]


def _segment(text: str) -> str:
    """*text* as one segment of an address."""
    return quote(text, safe="")


def _policy(style: str) -> str:
    """Nothing but this one style sheet, known by its hash, and pictures within the page."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
