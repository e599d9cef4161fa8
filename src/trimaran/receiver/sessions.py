"""Sessions in the store's file, and who of them works for whom.

In: a connection, which session or how many.
Out: sessions, each with its parent and its children; the family of one.
Does not know: threads, batches, HTTP, how a tree is shown.

A parent is what a session says it is, and nobody checks that: it may arrive later than
its children or never, and two sessions may each say that they work for the other. So
whatever follows parents or children stops where it has been, and after so many.
"""

import sqlite3
from collections.abc import Callable

import msgspec

from trimaran.receiver.limits import MAX_ANCESTORS, MAX_CHILDREN, MAX_FAMILY
from trimaran.receiver.summary import Summary
from trimaran.receiver.values import Ancestor, Family, SessionPage, StoredSession

__all__ = ["decode_summary", "family", "session", "sessions"]

_Row = tuple[int, str, str, str | None, int]

_SELECT = (
    "SELECT number, id, summary, parent,"
    " EXISTS (SELECT 1 FROM sessions AS above WHERE above.id = sessions.parent)"
    " FROM sessions"
)

# UNION leaves out what is there already, and so comes to an end in a ring.
_WITH_BELOW = (
    "WITH RECURSIVE below (id) AS ("
    " SELECT id FROM sessions WHERE parent = :id"
    " UNION SELECT child.id FROM below JOIN sessions AS child ON child.parent = below.id"
    " LIMIT :most)"
)

decode_summary: Callable[[bytes | str], Summary] = msgspec.json.Decoder(Summary).decode
"""From the text in which a session's totals are kept."""


def session(connection: sqlite3.Connection, session_id: str) -> StoredSession | None:
    """The session of that id, or None."""
    row: _Row | None = connection.execute(f"{_SELECT} WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else _session(connection, row)


def sessions(
    connection: sqlite3.Connection, *, before: int, limit: int, parent: str | None
) -> SessionPage:
    """Up to *limit* sessions whose number is less than *before*, the newest first.

    With a *parent*, those which say that they work for it.
    """
    rows: list[_Row] = connection.execute(
        f"{_SELECT} WHERE number < :before"
        f"{'' if parent is None else ' AND parent = :parent'}"
        " ORDER BY number DESC LIMIT :limit",
        {"before": before, "parent": parent, "limit": limit + 1},
    ).fetchall()
    found = tuple(_session(connection, row) for row in rows[:limit])
    return SessionPage(found, found[-1].number if len(rows) > limit else None)


def family(connection: sqlite3.Connection, of: StoredSession) -> Family:
    """The sessions above and below that one."""
    rows: list[_Row] = connection.execute(
        f"{_WITH_BELOW} {_SELECT} WHERE id IN below AND id != :id ORDER BY number",
        {"id": of.id, "most": MAX_FAMILY + 2},  # itself may be among them
    ).fetchall()
    below = tuple(_session(connection, row) for row in rows[:MAX_FAMILY])
    return Family(_above(connection, of), below, len(rows) > MAX_FAMILY)


def _above(connection: sqlite3.Connection, of: StoredSession) -> tuple[Ancestor, ...]:
    found: list[Ancestor] = []
    seen = {of.id}
    parent = of.parent
    while parent is not None and parent not in seen and len(found) < MAX_ANCESTORS:
        seen.add(parent)
        row: tuple[str | None] | None = connection.execute(
            "SELECT parent FROM sessions WHERE id = ?", (parent,)
        ).fetchone()
        found.append(Ancestor(parent, row is not None))
        parent = None if row is None else row[0]
    return tuple(reversed(found))


def _session(connection: sqlite3.Connection, row: _Row) -> StoredSession:
    number, session_id, summary, parent, is_parent_stored = row
    children: list[tuple[str]] = connection.execute(
        "SELECT id FROM sessions WHERE parent = ? ORDER BY number LIMIT ?",
        (session_id, MAX_CHILDREN),
    ).fetchall()
    return StoredSession(
        number,
        session_id,
        decode_summary(summary),
        parent,
        bool(is_parent_stored),
        tuple(child for (child,) in children),
    )
