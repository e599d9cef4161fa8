"""What an outage costs, summed up over the sessions of a telemetry."""

from __future__ import annotations

import structlog
from structlog.typing import EventDict

from trimaran._diagnostics import Diagnostics
from trimaran._endpoint.outages import Outages
from trimaran._pipeline.ledger import DropReason, Ledger


class World:
    """A clock, the lines that were logged, and the outages between them."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.outages = Outages(Diagnostics(lambda: self.time), lambda: self.time)

    def joined(self) -> Ledger:
        """The books of a session that runs."""
        ledger = Ledger()
        self.outages.join(ledger)
        return ledger


def shown(lines: list[EventDict]) -> list[EventDict]:
    """The lines, without the word that says what they are about."""
    return [
        {
            **{key: line[key] for key in line if key not in {"event", "log_level"}},
            "is": str(line["event"]).rpartition(" ")[2],
        }
        for line in lines
    ]


def test_an_outage_is_told_with_what_it_cost_once_its_backlog_is_worked_off() -> None:
    """What is decided from the loss on counts, and the moment is that of the last of it."""
    world = World()
    ledger = world.joined()
    ledger.track(30)
    ledger.deliver(10)
    ledger.drop(DropReason.REJECTED, 5)
    with structlog.testing.capture_logs() as lines:
        world.outages.change(True)
        world.time += 20
        ledger.drop(DropReason.MAILBOX_FULL, 3)
        world.outages.settled()  # nothing works yet
        world.outages.change(False)
        ledger.deliver(11)
        world.outages.settled()
        assert len(lines) == 1  # one of the backlog is left
        world.time += 5
        ledger.deliver(1)
        world.outages.settled()
        world.outages.settled()

    assert shown(lines) == [
        {"is": "lost", "pending": 15},
        {"is": "restored", "delivered": 12, "dropped": 3, "seconds": 25.0},
    ]


def test_what_comes_after_the_outage_is_not_waited_for() -> None:
    """The backlog is what pended when it ended; a busy host would never see the line else."""
    world = World()
    ledger = world.joined()
    ledger.track(5)
    with structlog.testing.capture_logs() as lines:
        world.outages.change(True)
        world.outages.change(False)
        ledger.track(100)
        ledger.deliver(5)
        world.outages.settled()

    assert shown(lines)[1:] == [{"is": "restored", "delivered": 5, "dropped": 0, "seconds": 0.0}]


def test_a_second_outage_is_told_with_its_own_cost() -> None:
    """What the first one cost, and what was delivered between the two, is not told again."""
    world = World()
    ledger = world.joined()
    ledger.track(10)
    world.outages.change(True)
    ledger.drop(DropReason.MAILBOX_FULL, 4)
    world.outages.change(False)
    ledger.deliver(6)
    world.outages.settled()
    world.time += 100
    ledger.track(50)
    ledger.deliver(50)
    ledger.track(7)
    with structlog.testing.capture_logs() as lines:
        world.outages.change(True)
        world.time += 61
        ledger.drop(DropReason.RETRIES_EXHAUSTED, 2)
        world.outages.change(False)
        ledger.deliver(5)
        world.outages.settled()

    assert shown(lines) == [
        {"is": "lost", "pending": 7},
        {"is": "restored", "delivered": 5, "dropped": 2, "seconds": 61.0},
    ]


def test_lost_again_before_the_backlog_is_worked_off_it_is_not_told_as_restored() -> None:
    """It works when it has caught up; the line then speaks of the last loss."""
    world = World()
    ledger = world.joined()
    ledger.track(10)
    with structlog.testing.capture_logs() as lines:
        world.outages.change(True)
        world.outages.change(False)
        ledger.deliver(4)
        world.outages.settled()
        world.time += 100
        world.outages.change(True)
        ledger.drop(DropReason.RETRIES_EXHAUSTED, 6)
        world.outages.settled()

    assert [line["is"] for line in shown(lines)] == ["lost", "lost"]


def test_the_books_of_a_session_that_ended_go_on_counting() -> None:
    """What it delivered and dropped stays in the sums, and nothing else of it."""
    world = World()
    ledger, other = world.joined(), world.joined()
    ledger.track(9)
    other.track(1)
    with structlog.testing.capture_logs() as lines:
        world.outages.change(True)
        ledger.deliver(5)
        ledger.drop(DropReason.DRAIN_TIMEOUT, 4)
        world.outages.leave(ledger)
        assert world.outages.totals() == (5, 4, 1)
        ledger.track(100)  # closed books: whatever is written there is nobody's
        assert world.outages.totals() == (5, 4, 1)
        world.outages.change(False)
        other.deliver(1)
        world.outages.settled()

    assert shown(lines)[1:] == [{"is": "restored", "delivered": 6, "dropped": 4, "seconds": 0.0}]
