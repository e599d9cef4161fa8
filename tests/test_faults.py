"""What becomes of events at an endpoint that fails, over real sockets and real TLS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from faults.agent import EVENTS
from faults.cases import CASES, Case, patient
from faults.matrix import Result, run_cases
from faults.otlp_cases import OTLP_CASES
from faults.tables import with_table
from patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

pytestmark = pytest.mark.timeout(15 * PATIENCE)  # they all run together, in the first test's setup

MOST_ATTEMPTS = 30
"""Of one session in a second and a half, with waits of 0.05 to 0.2 seconds between them."""
LATE = PATIENCE / 3
"""Seconds beyond ``drain_timeout`` that leaving may take; with what hangs it would be a minute."""
TO_END_A_PROCESS = PATIENCE
"""Seconds; it takes 0.1 on a machine at rest, and for ever if something holds it."""
DOCS = Path(__file__).parent.parent / "docs"


def of_those_asked_for(
    request: pytest.FixtureRequest, test: Callable[..., None], cases: Sequence[Case]
) -> Mapping[str, Result]:
    """What came of the cases that are asked for, all run together."""
    asked = {item.name for item in request.session.items}
    wanted = [patient(case) for case in cases if f"{test.__name__}[{case.name}]" in asked]
    return trio.run(run_cases, wanted)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Mapping[str, Result]:
    """What came of the cases over the wire of the origin."""
    return of_those_asked_for(request, test_case, CASES)


@pytest.fixture(scope="module")
def otlp_results(request: pytest.FixtureRequest) -> Mapping[str, Result]:
    """What came of those over OTLP."""
    return of_those_asked_for(request, test_case_over_otlp, OTLP_CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, results: Mapping[str, Result]) -> None:
    """Every event has the fate that the documentation says, and the exit is in time."""
    check(results[case.name])


@pytest.mark.parametrize("case", OTLP_CASES, ids=lambda case: case.name)
def test_case_over_otlp(case: Case, otlp_results: Mapping[str, Result]) -> None:
    """The same holds, and a log says what the server or the certificate has to say."""
    result = otlp_results[case.name]
    check(result)
    assert case.says in result.said


def check(result: Result) -> None:
    """What holds of each."""
    case, report, tally = result.case, result.report, result.tally

    assert report.tracked == EVENTS + bool(case.large)
    assert report.pending == 0
    assert (report.delivered, report.dropped) == (case.delivered, case.dropped)
    assert result.stored == report.delivered, "each is there once, and no other"
    fewest, most = case.requests
    assert fewest <= tally.requests <= most
    assert tally.requests <= report.attempts <= MOST_ATTEMPTS
    if case.pause:
        assert tally.times[1] - tally.times[0] >= case.pause
    assert result.left_within <= case.drain_timeout + LATE
    assert result.ended_within <= result.left_within + TO_END_A_PROCESS
    assert set(tally.versions) <= {"1.1"}
    assert "Traceback" not in result.said
    assert "Exception ignored" not in result.said, "nothing is left to the garbage collector"


@pytest.mark.parametrize(
    ("page", "case"),
    [("delivery.md", case) for case in CASES] + [("otlp.md", case) for case in OTLP_CASES],
    ids=lambda case: case.name if isinstance(case, Case) else case,
)
def test_the_documentation_says_so(page: str, case: Case) -> None:
    """Its table has a row for each case, with what is asserted here."""
    rows = [line.split(" | ") for line in (DOCS / page).read_text().splitlines()]
    dropped = ", ".join(f"{count} `{reason}`" for reason, count in case.dropped.items())

    [row] = [row for row in rows if row[0] == case.name and len(row) == 5]

    assert row[1:3] == [str(case.delivered), dropped or "0"]


def test_a_table_goes_between_its_markers() -> None:
    """What stood there goes, what stands around it stays."""
    page = "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n"

    assert with_table(page, "a", "new\n") == page.replace("old\n", "\nnew\n\n")
    with pytest.raises(ValueError, match="no <!-- b:begin --> with <!-- b:end --> after it"):
        with_table(page, "b", "new\n")
