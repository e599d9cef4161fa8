"""Puts httpx2 in the place of httpx, for every Python that starts with this directory on its path.

In: this directory in ``PYTHONPATH``; Python imports a module of this name when it starts.
Out: ``import httpx`` gives httpx2, in the tests, in the library and in child processes alike.
Does not know: who imports it. Nothing is imported before someone asks for it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Substitute(MetaPathFinder, Loader):
    """Finds httpx, and loads httpx2 under its name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Only the package itself is taken over: it imports its own parts by its own name."""
        return ModuleSpec(fullname, self) if fullname == "httpx" else None

    def exec_module(self, module: ModuleType) -> None:
        """The import system hands out what stands in ``sys.modules`` after this."""
        sys.modules[module.__name__] = importlib.import_module("httpx2")


sys.meta_path.insert(0, _Substitute())
