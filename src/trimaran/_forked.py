"""What a forked child is told: that all it has here is a copy of its parent's.

In: objects that hold locks, sockets or events of this process. Out: a call to each of them,
in the child, before any other code runs there.
Does not know: what they do about it.

The one registry of the process, since Python has one, from which nothing can be taken back.
It keeps nothing alive.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

from trimaran._current import current

__all__ = ["Copied", "tell_if_forked"]


class Copied(Protocol):
    """Something whose copy in a forked child must not do what the original does."""

    def forked(self) -> None:
        """This is the copy. Called once, in the only thread there is; must not wait."""


_copied: WeakSet[Copied] = WeakSet()


def tell_if_forked(copied: Copied) -> None:
    """Call ``forked()`` of its copy in every forked child, as long as the original lives."""
    _copied.add(copied)


def _tell() -> None:
    current.set(None)
    for copied in list(_copied):
        copied.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_tell)
