"""The trace that a session is, in the words of W3C Trace Context.

In: a session's id, and the ``TRACEPARENT`` that its process was started with.
Out: a trace id, a span id, and the ``TRACEPARENT`` for processes that are started.
Does not know: environments, sessions, spans of anybody else.

Ids are made of the session's id by a hash, so that all processes and all endpoints come to
the same ones without having to ask each other.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

__all__ = ["TRACEPARENT", "Trace", "trace_of", "usable_traceparent"]

TRACEPARENT = "TRACEPARENT"
"""The environment variable, as OpenTelemetry names it."""

_FORM = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.ASCII | re.DOTALL,
)
_SAMPLED = "01"


class Trace(NamedTuple):
    """A place in a trace: where a session stands, and what stands below it."""

    trace_id: str
    """32 hexadecimal digits, not all of them 0."""
    span_id: str
    """16 hexadecimal digits, not all of them 0: the session's own."""
    flags: str = _SAMPLED
    """Two hexadecimal digits."""

    @property
    def parent(self) -> str:
        """The value of ``TRACEPARENT`` for what the session starts."""
        return self.below(self.span_id)

    def below(self, span_id: str) -> str:
        """The value of ``TRACEPARENT`` for what is started inside the span of that id."""
        return f"00-{self.trace_id}-{span_id}-{self.flags}"


def trace_of(session_id: str, inherited: str | None = None) -> Trace:
    """The trace of a session.

    Args:
        session_id: whose ids are made of it.
        inherited: a ``TRACEPARENT``; its trace goes on, if it is one.
    """
    found = None if inherited is None else _parsed(inherited)
    if found is None:
        found = Trace(_digest("trace", session_id)[:32], "")
    return found._replace(span_id=_digest("span", session_id)[:16])


def usable_traceparent(value: str) -> str:
    """*value*, as the version that we know writes it; "" where it is none."""
    found = _parsed(value)
    return "" if found is None else found.parent


def _digest(what: str, session_id: str) -> str:
    """64 hexadecimal digits; all zero, which is no id, in one case of 2 ** 64 at most."""
    # A host's id may hold half of a surrogate pair, which has no UTF-8.
    content = f"trimaran {what} {session_id}".encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()


def _parsed(value: str) -> Trace | None:
    """By the rules of the standard for a version known or to come."""
    match = _FORM.fullmatch(value.strip())
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not int(match["trace"], 16) or not int(match["span"], 16):
        return None
    return Trace(match["trace"], match["span"], match["flags"])
