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

__all__ = ["current", "outside_sessions"]

current: ContextVar[Session | None] = ContextVar("trimaran_session", default=None)
"""The innermost session of this context; None outside of all."""


@contextmanager
def outside_sessions() -> Generator[None]:
    """Run a block as if no session were open: what it logs is no event of a session."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)
