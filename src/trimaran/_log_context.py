"""Which session's id the records of structlog bear.

In: the id of a session that is entered. Out: the innermost one's, in structlog's context.
Does not know: sessions, records.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["named_in_logs"]


class _Bound:
    """A block in which an id is bound, and what was bound before it; None for nothing."""

    __slots__ = ("before", "is_left", "outer")

    def __init__(self, before: object, outer: _Bound | None) -> None:
        self.before: object = before
        self.outer: _Bound | None = outer
        self.is_left: bool = False

    def skip_left(self) -> None:
        """Have it follow the block that is still open, and restore what was bound in there."""
        while self.outer is not None and self.outer.is_left:
            self.before, self.outer = self.outer.before, self.outer.outer


_innermost: ContextVar[_Bound | None] = ContextVar("trimaran_log_context", default=None)


@contextmanager
def named_in_logs(session_id: str) -> Generator[None]:
    """Let structlog's ``merge_contextvars`` add the session's id to the block's records.

    Blocks may be left in another order than they were entered in, and in another context,
    where nothing is bound by them: records have the id of the last that is not left.
    """
    from structlog.contextvars import (  # noqa: PLC0415 - tens of milliseconds
        bind_contextvars,
        get_contextvars,
        unbind_contextvars,
    )

    outer = _innermost.get()
    if outer is not None:
        outer.skip_left()  # sessions that overlap for ever make no chain
    here = _Bound(get_contextvars().get("session_id"), outer)
    _innermost.set(here)
    bind_contextvars(session_id=session_id)
    try:
        yield
    finally:
        here.is_left = True
        if _innermost.get() is here:
            here.skip_left()
            _innermost.set(here.outer)
            if here.before is None:
                unbind_contextvars("session_id")
            else:
                bind_contextvars(session_id=here.before)
