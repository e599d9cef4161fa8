"""The host's own ears: what was dropped, and what goes wrong.

In: two callables of the host. Out: plain values, handed to them.
Does not know: who tells, or why; whatever a hook raises changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from trimaran._current import outside_sessions
from trimaran._pipeline.ledger import DropReason

__all__ = ["Dropped", "Hooks", "OnDrop", "OnProblem", "Problem"]


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one session that were given up since the last time."""

    session_id: str
    reason: DropReason
    count: int
    destination: str = "endpoint"
    """What they were lost to; where it is several, each is told for itself."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is, or was, wrong with delivery."""

    name: str
    """What it is, as in the library's own log lines."""
    count: int
    """How often it was met since the last time it was told."""
    facts: Mapping[str, object]
    """A few plain facts; never a token or an event's content."""


OnDrop: TypeAlias = Callable[[Dropped], object]
OnProblem: TypeAlias = Callable[[Problem], object]


class Hooks:
    """Calls the host's hooks, outside of any session. Never raises."""

    def __init__(self, on_drop: OnDrop | None = None, on_problem: OnProblem | None = None) -> None:
        self._on_drop = on_drop
        self._on_problem = on_problem
        self.fail: Callable[[str], None] = lambda _kind: None
        """Told the kind of what a hook raised."""

    @property
    def wants_drops(self) -> bool:
        """Whether anybody listens for drops."""
        return self._on_drop is not None

    def dropped(self, dropped: Dropped) -> None:
        """Tell of drops."""
        if self._on_drop is not None:
            self._call(self._on_drop, dropped)

    def problem(self, problem: Problem) -> None:
        """Tell of a problem."""
        if self._on_problem is not None:
            self._call(self._on_problem, problem)

    def _call(self, hook: Callable[..., object], told: object) -> None:
        with outside_sessions():
            try:
                hook(told)
            # Also what is no Exception: raised in trio's own code it would end the run.
            except BaseException as error:  # noqa: BLE001 - a hook is the host's own code
                self.fail(type(error).__name__)
