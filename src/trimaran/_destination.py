"""Where events go beside the endpoint that is decided on.

In: what a host names in code. Out: the same, known to be of use.
Does not know: tiers, switches, what is done with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from trimaran._decision import url_problem
from trimaran._transport import Transport

__all__ = ["ENDPOINT", "Destination", "distinct"]

ENDPOINT = "endpoint"
"""What the destination is called that is decided on rather than given."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """One more place where all events go, beside the endpoint or without one.

    It has a pipeline end, a spool and books of its own. The account's token is the
    endpoint's alone: no other destination ever gets it.

    Raises:
        ValueError: it has no usable name, neither a transport nor a URL, or a bad URL.
    """

    name: str
    """What it is called in books, hooks, log lines and on disk: up to 64 lower-case letters,
    digits, ``-`` and ``_``. ``"endpoint"`` is taken."""
    transport: Transport | None = None
    """Makes the requests; None posts batches of the origin's wire to *url*. One that is given
    is not closed, and serves one destination."""
    url: str = ""
    """Where that is, as far as it is known here; needed without a transport."""

    def __post_init__(self) -> None:
        if not _is_text(self.name) or not _NAME.fullmatch(self.name) or self.name == ENDPOINT:
            raise ValueError(
                f"Destination(name={self.name!r}): a name has up to 64 of a-z, 0-9, - and _, and "
                f'is not "{ENDPOINT}"'
            )
        if self.url or self.transport is None:
            problem = url_problem(self.url, with_token=False)
            if problem is not None:
                raise ValueError(f"Destination(name={self.name!r}): its URL {problem}")


def distinct(destinations: Iterable[Destination]) -> tuple[Destination, ...]:
    """*destinations*, whose names tell them apart.

    Raises:
        ValueError: two have the same name, or one is none.
    """
    given = tuple(destinations)
    for one in given:
        if type(one) is not Destination:
            raise ValueError(f"destinations: a {type(one).__name__} is no Destination")
    names = [one.name for one in given]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"destinations: two of them are called {name!r}")
    return given


def _is_text(value: object) -> bool:
    return isinstance(value, str)
