"""Which session the code that runs now belongs to.

In: a session that is entered. Out: the innermost one of the running context.
Does not know: what a session is.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimaran._session import Session

__all__ = ["Entered", "current", "entered", "outside_sessions"]


class Entered:
    """A session that was entered in some context, and what was entered there before it."""

    __slots__ = ("is_left", "outer", "session")

    def __init__(self, session: Session, outer: Entered | None) -> None:
        self.session: Session = session
        self.outer: Entered | None = outer
        self.is_left: bool = False


current: ContextVar[Entered | None] = ContextVar("trimaran_session", default=None)
"""The innermost session of this context; None outside of all."""


@contextmanager
def entered(session: Session) -> Generator[Session]:
    """Make *session* the current one of the block.

    Blocks may be left in another order than they were entered in, and in another context:
    the current one is then the last that was entered of those that are not left.
    """
    outer = current.get()
    if outer is not None:
        outer.outer = _not_left(outer.outer)  # sessions that overlap for ever make no chain
    here = Entered(session, outer)
    current.set(here)
    try:
        yield session
    finally:
        here.is_left = True
        if current.get() is here:
            current.set(_not_left(outer))


def _not_left(place: Entered | None) -> Entered | None:
    while place is not None and place.is_left:
        place = place.outer
    return place


@contextmanager
def outside_sessions() -> Generator[None]:
    """Run a block as if no session were open: what it logs is no event of a session."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)
