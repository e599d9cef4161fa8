"""What a process is told by the one that started it: the session in which it takes part.

In: a session's place in the world, an environment to start from. Out: the environment of
a child; and in the child, what it says.
Does not know: sockets, tasks, sessions that live. No token ever comes by here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from trimaran._decision import Tier
from trimaran._trace import TRACEPARENT, trace_of

__all__ = [
    "PARENT",
    "PROTOCOL",
    "Parent",
    "parent_in",
    "with_parent",
    "without_consent",
    "without_parent",
]

PARENT = "TRIMARAN_PARENT"
"""The environment variable that speaks of the session."""

PROTOCOL = 1
"""What a child and its parent speak to each other. A child of another version does not try."""

LONGEST = 64 * 1024
"""Characters of the variable at most: Linux starts no program with one of 128 KiB or more, and
an agent's tools must start, whatever a session is called."""


class Parent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The session that a process takes part in, and how to get there."""

    protocol: int = 0
    tier: Tier = Tier.DISABLED
    """How far the parent's telemetry goes, and so the child's."""
    app: str = ""
    session_id: str = ""
    pid: int = 0
    """Of the process whose session it is."""
    socket: str | None = None
    """Where it listens; None when there is no such place."""
    is_over: bool = False
    """Whether the session had ended when the child was started."""
    calls_last: bool = False
    """Whether it asks children that can answer for their last events, before it is closed."""
    url: str | None = None
    """Where anonymous events may go directly; None where an account would be needed."""
    has_own_transport: bool = False
    """Whether the host brought what sends, of which a child has none, unless it brings its own:
    what the library itself would send is not what the host has chosen."""
    has_own_consent: bool = False
    """Whether the host has a switch of its own, which a child cannot ask: without the parent it
    goes no way of its own then, unless it brings one, too."""
    version: str = ""
    """The host's, sent as ``cli_version``."""
    project_id: str = ""
    agent: str = ""
    model_id: str = ""
    provider_id: str = ""
    parent_session_id: str = ""
    """The session that this one works for, if it is that of a sub-agent."""
    wants_spans: bool = False
    """Whether events are to say which spans they are."""
    traceparent: str = ""
    """What the session's root stands below; "" for nothing."""
    span_id: str = ""
    """What the child stands below: the block in which it was started; "" for the root."""

    @property
    def is_on(self) -> bool:
        """Whether the parent's telemetry is on."""
        return self.tier is not Tier.DISABLED

    @property
    def is_reachable(self) -> bool:
        """Whether there is somebody to speak to, in words that both understand."""
        return self.socket is not None and self.protocol == PROTOCOL


_OPTED_OUT = Parent(protocol=PROTOCOL)


def with_parent(base: Mapping[str, str], parent: Parent) -> dict[str, str] | None:
    """A copy of *base* for a child that takes part in the session of *parent*.

    The session's trace goes on in the child. None when there is too much to say for an
    environment.
    """
    described = _written(parent)
    if len(described) > LONGEST:
        return None
    trace = trace_of(parent.session_id, parent.traceparent)
    return {**base, PARENT: described, TRACEPARENT: trace.below(parent.span_id or trace.span_id)}


def without_consent(base: Mapping[str, str]) -> dict[str, str]:
    """A copy of *base* for the child of somebody who switched telemetry off: it stays off."""
    return {**base, PARENT: _written(_OPTED_OUT), "DO_NOT_TRACK": "1"}


def without_parent(base: Mapping[str, str]) -> dict[str, str]:
    """A copy of *base* for a child that takes part in no session."""
    return {name: value for name, value in base.items() if name != PARENT}


def parent_in(environ: Mapping[str, str]) -> Parent | None:
    """What *environ* says of a session to take part in; None where it says nothing of use.

    The tier is disabled where a parent has switched telemetry off.
    """
    try:
        # What json wrote may be half of a surrogate pair, which only json reads.
        parent = msgspec.convert(json.loads(environ.get(PARENT, "")), Parent)
    except (ValueError, RecursionError):  # both libraries' errors are ValueErrors
        return None
    return None if parent.is_on and not (parent.session_id and parent.app) else parent


def _written(parent: Parent) -> str:
    """In ASCII alone: an environment may be in any encoding."""
    return json.dumps(msgspec.to_builtins(parent), separators=(",", ":"))
