"""In which order sessions are listed, so that a sub-agent stands below its parent.

In: sessions. Out: the same, each with its depth.
Does not know: the store, how a depth is shown.
"""

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from trimaran.receiver.values import StoredSession

__all__ = ["Branch", "as_tree"]


class Branch(msgspec.Struct, frozen=True):
    """A session in its tree; ``depth`` is 0 for one whose parent is not shown above it."""

    depth: int
    session: StoredSession


def as_tree(sessions: Sequence[StoredSession]) -> list[Branch]:
    """*sessions* with each one right below its parent, where that is among them.

    A tree stands where the first of its sessions stood; those of one parent follow it in
    the order of their arrival. A ring of sessions that name each other is cut at one.
    """
    by_id = {session.id: session for session in sessions}
    children: defaultdict[str | None, list[StoredSession]] = defaultdict(list)
    for session in sorted(sessions, key=lambda session: session.number):
        children[session.parent].append(session)
    placed: set[str] = set()
    branches: list[Branch] = []
    for session in sessions:
        if session.id in placed:
            continue
        waiting = [Branch(0, _top(session, by_id))]
        while waiting:
            branch = waiting.pop()
            if branch.session.id in placed:
                continue
            placed.add(branch.session.id)
            branches.append(branch)
            waiting += [
                Branch(branch.depth + 1, child) for child in reversed(children[branch.session.id])
            ]
    return branches


def _top(session: StoredSession, by_id: dict[str, StoredSession]) -> StoredSession:
    """Who stands above all others above *session*; in a ring, the one it leads round to."""
    seen = {session.id}
    while session.parent in by_id and session.parent not in seen:
        seen.add(session.parent)
        session = by_id[session.parent]
    return session
