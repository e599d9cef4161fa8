"""What a client of the receiver is bound by.

In: nothing. Out: numbers, each with its unit.
Does not know: who keeps to them.
"""

__all__ = [
    "EVENTS_PAGE",
    "MAX_ANCESTORS",
    "MAX_BODY",
    "MAX_CHILDREN",
    "MAX_CURSOR",
    "MAX_DISCARD",
    "MAX_EVENTS",
    "MAX_FAMILY",
    "MAX_ID",
    "MAX_KEY",
    "MAX_PAGE",
    "MAX_PAGE_BYTES",
    "READ_TIMEOUT",
    "RETRY_AFTER",
    "SESSIONS_PAGE",
]

MAX_BODY = 1_048_576
"""Bytes of a body, as it comes and when it is decompressed."""

MAX_DISCARD = 16 * MAX_BODY
"""Bytes of a body too large that are read and thrown away before the refusal."""

MAX_EVENTS = 10_000
"""Events in a batch. Each may need a reason in the answer, far longer than itself."""

READ_TIMEOUT = 30.0
"""Seconds for a client to send all of a body."""

MAX_ID = 256
"""Characters of a session's id."""

MAX_CHILDREN = 100
"""Sub-agents that an answer names of a session; the others can be asked for by its id."""

MAX_ANCESTORS = 16
"""Sessions above one that its page names."""

MAX_FAMILY = 200
"""Sessions below one that its page lists."""

MAX_KEY = 256
"""Characters of an idempotency key."""

SESSIONS_PAGE = 50
"""Sessions in one answer where no number is asked for."""

EVENTS_PAGE = 200
"""Events in one answer where no number is asked for."""

MAX_PAGE = 1000
"""Sessions or events in one answer, whatever number is asked for."""

MAX_PAGE_BYTES = 4 * 1024 * 1024
"""A page of events ends here, whatever number is asked for; one event is always in it."""

MAX_CURSOR = 2**63 - 1
"""Where a page may start: the greatest integer of SQLite."""

RETRY_AFTER = 5
"""Seconds that a client is told to wait when the store is not available."""
