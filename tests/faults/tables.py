"""Puts what was measured into a page, as tables.

In: results, the text of a page with markers in it. Out: the same text with new tables.
Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .ends import ENDPOINTS, ENDS, Ended, name_of
from .matrix import Result

__all__ = ["ends_table", "faults_table", "with_table"]


def with_table(page: str, name: str, table: str) -> str:
    """*page* with *table* between the markers of that name.

    Raises:
        ValueError: it has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the page has no {begin.strip()} with {end} after it")
    return f"{before}{begin}\n{table}\n{end}{after}"


def faults_table(results: Iterable[Result]) -> str:
    """A row for each case: what became of its events, what it took."""
    return _table(
        ["Fault", "Delivered", "Dropped", "Requests", "Exit"],
        (
            [
                result.case.name,
                str(result.report.delivered),
                _reasons(result.report.dropped),
                str(result.tally.requests),
                f"{result.left_within:.1f} s",
            ]
            for result in results
        ),
    )


def ends_table(results: Mapping[str, Ended]) -> str:
    """A row for each end: what became of the events at each endpoint."""
    rows: list[list[str]] = []
    for end in ENDS:
        row = [end.name, str(end.status)]
        for endpoint in ENDPOINTS:
            row += _left_by(results[name_of(end, endpoint)])
        rows.append(row)
    heads = [head for endpoint in ENDPOINTS for head in (endpoint.capitalize(), "Exit")]
    return _table(["End", "Status", *heads], rows)


def _left_by(ended: Ended) -> list[str]:
    """The fate of the events, and how long it took."""
    delivered = ended.stored if ended.later is None else ended.later
    fate = f"{delivered} of {ended.tracked}"
    if ended.later is not None:
        fate += ", later"
    if delivered < ended.tracked:
        reasons = None if ended.books is None else ended.books.dropped
        fate += f": {_reasons(reasons)}" if reasons else ": uncounted"
    return [fate, f"{ended.exit_within:.1f} s"]


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} `{reason}`" for reason, count in dropped.items()) or "0"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(" | ".join(line) + "\n" for line in lines)
