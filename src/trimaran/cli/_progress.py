"""How far it is: a bar on a terminal, nothing elsewhere, and lines that do not disturb it.

In: a number out of a whole, a text. Out: on a console of rich's.
Does not know: what is counted.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trimaran.cli._terminal import say

__all__ = ["Display"]


class Display:
    """A progress bar while its block lasts.

    Args:
        where: shown there if it is a terminal; lines are said there in any case.
        bar: False shows no bar on a terminal either.
    """

    def __init__(self, where: Console, *, bar: bool = True) -> None:
        self._where = where
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=where,
            disable=not (bar and where.is_terminal),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def expect(self, whole: int | None) -> None:
        """What ``done`` will be out of; None where nobody knows."""
        self._progress.update(self._task, total=whole)

    def show(self, text: str, *, done: int) -> None:
        """It is *done* out of the whole."""
        self._progress.update(self._task, description=text, completed=done)
        self._progress.refresh()

    def say(self, text: str) -> None:
        """One line of the command, above the bar."""
        say(self._where, text)
