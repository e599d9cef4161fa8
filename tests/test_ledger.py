import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran import DropReason, Statistics
from trimaran._pipeline.ledger import Ledger

COUNTS = st.integers(min_value=0, max_value=1000)
REASONS = st.sampled_from(list(DropReason))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("track"), COUNTS),
        st.tuples(st.just("deliver"), COUNTS),
        st.tuples(REASONS, COUNTS),
    )
)


def test_reasons_are_a_closed_set() -> None:
    """Dashboards are built on these words; a new one is a change of the contract."""
    assert [str(reason) for reason in DropReason] == [
        "mailbox_full",
        "closed",
        "too_large",
        "encode_error",
        "rejected",
        "retries_exhausted",
        "unauthorized",
        "drain_timeout",
        "spool_full",
        "expired",
        "consent_withdrawn",
        "bug",
    ]


def test_an_empty_ledger() -> None:
    """Before the first event, every number is zero and nothing is to be told."""
    ledger = Ledger()

    assert (ledger.tracked, ledger.delivered, ledger.pending, ledger.dropped) == (0, 0, 0, {})
    assert (ledger.batches, ledger.attempts, ledger.retries, ledger.loss_reports) == (0, 0, 0, 0)
    assert ledger.take_losses() == {}
    assert ledger.take_untold() == {}


@given(steps=STEPS)
def test_every_event_is_accounted_for(steps: list[tuple[str, int]]) -> None:
    """``tracked == delivered + dropped + pending`` after each step, whatever the steps are."""
    ledger = Ledger()

    for step, count in steps:
        if step == "track":
            ledger.track(count)
        elif step == "deliver":
            ledger.deliver(count)
        else:
            ledger.drop(DropReason(step), count)

        assert ledger.tracked == ledger.delivered + sum(ledger.dropped.values()) + ledger.pending

    assert ledger.tracked == sum(count for step, count in steps if step == "track")
    assert ledger.delivered == sum(count for step, count in steps if step == "deliver")
    for reason in DropReason:
        expected = sum(count for step, count in steps if step == reason)
        assert ledger.dropped.get(reason, 0) == expected


def test_one_event_is_the_ordinary_case() -> None:
    """Tracked and dropped one by one, without a count."""
    ledger = Ledger()

    ledger.track()
    ledger.drop(DropReason.CLOSED)

    assert (ledger.tracked, ledger.pending, ledger.dropped) == (1, 0, {DropReason.CLOSED: 1})


def test_dropping_nothing_leaves_no_trace() -> None:
    """A reason with no event does not show up, neither in the books nor in a report."""
    ledger = Ledger()

    ledger.drop(DropReason.BUG, 0)

    assert ledger.dropped == {}
    assert ledger.take_losses() == {}


def test_losses_are_reported_once() -> None:
    """What was taken into a report is not taken again; what is lost after it is."""
    ledger = Ledger()
    ledger.track(9)
    ledger.drop(DropReason.MAILBOX_FULL, 2)
    ledger.drop(DropReason.MAILBOX_FULL, 3)
    ledger.drop(DropReason.TOO_LARGE)

    assert ledger.take_losses() == {DropReason.MAILBOX_FULL: 5, DropReason.TOO_LARGE: 1}

    ledger.drop(DropReason.MAILBOX_FULL)
    assert ledger.take_losses() == {DropReason.MAILBOX_FULL: 1}
    assert ledger.take_losses() == {}


def test_losses_whose_report_was_lost_are_reported_again() -> None:
    """They are added to those that came since; the books themselves do not change."""
    ledger = Ledger()
    ledger.track(9)
    ledger.drop(DropReason.MAILBOX_FULL, 2)
    in_the_report = ledger.take_losses()
    ledger.drop(DropReason.MAILBOX_FULL)

    ledger.give_back_losses(in_the_report)
    ledger.give_back_losses({DropReason.BUG: 4})

    assert ledger.take_losses() == {DropReason.MAILBOX_FULL: 3, DropReason.BUG: 4}
    assert ledger.dropped == {DropReason.MAILBOX_FULL: 3}


@given(steps=st.lists(st.tuples(REASONS, COUNTS, st.sampled_from(["keep", "arrives", "lost"]))))
def test_reports_speak_of_every_loss_once(steps: list[tuple[DropReason, int, str]]) -> None:
    """However often a report gets lost, those that arrive add up to what was dropped."""
    ledger = Ledger()
    reported: dict[DropReason, int] = {}

    for reason, count, fate in [*steps, (DropReason.BUG, 0, "arrives")]:
        ledger.track(count)
        ledger.drop(reason, count)
        if fate == "arrives":
            for told, number in ledger.take_losses().items():
                reported[told] = reported.get(told, 0) + number
        elif fate == "lost":
            ledger.give_back_losses(ledger.take_losses())

    assert reported == ledger.dropped


def test_the_host_is_told_of_losses_once() -> None:
    """It is called at the first loss, and again only after it took what there was."""
    calls: list[dict[DropReason, int]] = []
    ledger = Ledger(on_drop=lambda: calls.append(dict(ledger.dropped)))
    ledger.track(9)

    ledger.drop(DropReason.CLOSED)
    ledger.drop(DropReason.CLOSED, 2)
    ledger.drop(DropReason.BUG)
    assert len(calls) == 1
    assert ledger.take_untold() == {DropReason.CLOSED: 3, DropReason.BUG: 1}

    ledger.drop(DropReason.CLOSED, 0)
    assert len(calls) == 1
    ledger.drop(DropReason.CLOSED)
    assert len(calls) == 2
    assert ledger.take_untold() == {DropReason.CLOSED: 1}


def test_nothing_is_kept_for_a_host_that_does_not_ask() -> None:
    """Without a hook there is nobody to take the losses."""
    ledger = Ledger()
    ledger.track()

    ledger.drop(DropReason.BUG)

    assert ledger.take_untold() == {}


def test_statistics_are_frozen() -> None:
    """A snapshot stays what it was; by default it is one of a session with no event."""
    statistics = Statistics()

    with pytest.raises(AttributeError):
        statistics.tracked = 1  # type: ignore[misc]  # that is what is tested

    with pytest.raises(TypeError):
        statistics.dropped["closed"] = 1  # type: ignore[index]  # as above
    assert not any(msgspec.structs.astuple(statistics))


def test_statistics_are_readable_when_printed() -> None:
    """Every field is there, drops as a plain mapping; what is printed makes the same again."""
    ledger = Ledger()
    ledger.track(3)
    ledger.drop(DropReason.REJECTED, 2)
    statistics = ledger.statistics()

    printed = repr(statistics)
    assert "tracked=3, delivered=0, pending=1, spooled=0, handed_over=0" in printed
    assert "dropped={'rejected': 2}" in printed
    assert eval(printed, {"Statistics": Statistics}) == statistics  # noqa: S307 - our own text


def test_statistics_sum_up_what_was_dropped() -> None:
    """Over all reasons."""
    assert Statistics(dropped={"closed": 2, "bug": 3}).dropped_total == 5
    assert Statistics().dropped_total == 0


class Moving(dict[DropReason, int]):
    """Drops of a ledger that gets another one while somebody looks."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.moves = 1

    def copy(self) -> dict[DropReason, int]:
        seen = dict(self)
        if self.moves:
            self.moves -= 1
            self.ledger.drop(DropReason.CLOSED)
        return seen


def test_books_that_change_while_somebody_looks_add_up() -> None:
    """Another thread sees an event before its move or after it, never on the way."""
    ledger = Ledger()
    ledger.track(2)
    ledger.dropped = Moving(ledger)

    statistics = ledger.statistics()

    assert (statistics.tracked, statistics.pending, statistics.dropped) == (2, 1, {"closed": 1})


def test_books_that_cannot_add_up_are_shown_as_they_are() -> None:
    """Code that interrupts their own thread in the middle of an entry is not held up."""
    ledger = Ledger()
    ledger.tracked = 1

    assert (ledger.statistics().tracked, ledger.statistics().pending) == (1, 0)
