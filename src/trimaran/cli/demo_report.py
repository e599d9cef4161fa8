"""What the processes of the demonstration tell each other: a task down, reports up.

In and out: lines of JSON, each a whole one.
Does not know: who writes them, what becomes of them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from trimaran._pipeline.ledger import Statistics

__all__ = ["Assignment", "Helper", "Report", "Said", "line_of"]

AgentKind = Literal["reviewer", "writer"]


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is to do, in a process of its own."""

    agent: AgentKind
    project: str
    """What the files belong to."""
    root: str
    files: tuple[str, ...] = ()
    """Those under review, relative to *root*."""
    workspace: str
    """A directory of its own, that it may write in."""
    is_careless: bool = False
    """Whether it makes a search that never ends, and has to kill it."""
    to: str | None = None
    """The destination, as ``--to`` has it; None for the endpoint in the environment."""
    relay: str | None = None
    """The directory of the relay that it hands over to; None to send for itself."""
    drain_timeout: float = 5.0
    """Seconds that it may take to leave; the receiver is near, but its disk may be slow."""


class Helper(msgspec.Struct, frozen=True, kw_only=True):
    """A process that took part in an agent's session, as far as its agent heard of it."""

    name: str
    pid: int
    tracked: int = 0
    """Events that it had tracked when it was last heard of."""
    delivered: int | None = None
    """How many of them its parent had when it ended; None when it never said so."""


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a helper says to its agent: an answer, or at last what became of its events."""

    text: str = ""
    error: str = ""
    """Why there is no answer; "" if there is one."""
    tracked: int = 0
    """Events that it has tracked so far."""
    delivered: int | None = None
    """How many of them its parent has; None but in the last line."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How far an agent is."""

    agent: AgentKind
    session_id: str = ""
    """"" before it has one."""
    parent_session_id: str = ""
    """The session that it works for as a sub-agent; "" for none."""
    doing: str = "starts"
    is_done: bool = False
    """Whether it has done its work, and its telemetry is over."""
    tool_calls: int = 0
    failures: int = 0
    statistics: Statistics = msgspec.field(default_factory=Statistics)
    helpers: tuple[Helper, ...] = ()
    leaving: float | None = None
    """Seconds that it took to leave its telemetry; None before."""


def line_of(said: Assignment | Report | Said) -> bytes:
    """*said* as a line, without its end."""
    # A read-only mapping has no form in JSON, a copy of it has.
    return msgspec.json.encode(said, enc_hook=dict)
