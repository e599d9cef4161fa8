"""What was measured, beside its floor and its aim.

In: numbers. Out: a table to read, rows to keep.
Does not know: how anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

__all__ = ["Aim", "Row", "table"]


class Aim(msgspec.Struct, frozen=True):
    """What a value should stay within, judged by one of its measures."""

    by: Literal["ratio", "value", "excess"]
    """Times its floor, by itself, or over its floor."""
    most: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One value; ``floor`` and ``aim`` where there is one."""

    group: str
    name: str
    unit: str
    value: float
    floor: float | None = None
    aim: Aim | None = None

    @property
    def ratio(self) -> float | None:
        """How many floors the value is."""
        return self.value / self.floor if self.floor else None

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        measure = {
            "ratio": self.ratio,
            "value": self.value,
            "excess": self.value - (self.floor or 0.0),
        }[self.aim.by]
        return measure is not None and measure <= self.aim.most

    @property
    def aim_text(self) -> str:
        """The aim, and whether it is reached."""
        if self.aim is None:
            return ""
        within = {
            "ratio": f"{self.aim.most:g} floors",
            "value": f"{self.aim.most:g} {self.unit}",
            "excess": f"floor + {self.aim.most:g} {self.unit}",
        }[self.aim.by]
        return f"{within}: {'reached' if self.is_met else 'MISSED'}"


def table(rows: Iterable[Row]) -> str:
    """The rows in columns, a heading above each group."""
    lines: list[str] = []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines += ["", f"{group:<46}{'value':>10}{'floor':>10}{'ratio':>8}  aim"]
        floor = "" if row.floor is None else _number(row.floor)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        name = f"  {row.name}, {row.unit}"
        lines.append(
            f"{name:<46}{_number(row.value):>10}{floor:>10}{ratio:>8}  {row.aim_text}".rstrip()
        )
    return "\n".join(lines).lstrip("\n")


def _number(value: float) -> str:
    """Three digits that count, and all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
