"""What flows from the mailbox to the batcher: how marks gather that nobody waits for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimaran._pipeline.entry import Flush, gather


def test_a_mark_is_awaited_until_it_is_reached_or_abandoned() -> None:
    """Either way there is nobody to wake any more."""
    reached, abandoned = Flush(1), Flush(2)
    assert reached.is_awaited
    assert abandoned.is_awaited

    reached.reach()
    abandoned.abandon()

    assert (reached.is_awaited, reached.is_reached) == (False, True)
    assert (abandoned.is_awaited, abandoned.is_reached) == (False, False)


def test_of_marks_that_come_after_each_other_the_last_is_kept() -> None:
    """It makes due all that those before it did."""
    marks: list[Flush] = []
    for number in range(100):
        mark = Flush(number)
        gather(marks, mark)
        mark.abandon()

        assert marks == [mark]


@given(steps=st.lists(st.tuples(st.sampled_from(["put", "abandon", "reach"]), st.integers(0))))
def test_however_marks_come_and_go_few_are_kept(steps: list[tuple[str, int]]) -> None:
    """All that are awaited, in their order, and of the others no more than as many."""
    marks: list[Flush] = []
    awaited: list[Flush] = []
    most = 0
    for number, (step, which) in enumerate(steps):
        if step == "put":
            mark = Flush(number)
            gather(marks, mark)
            awaited.append(mark)
            most = max(most, len(awaited))
            assert marks[-1] is mark
        elif awaited:
            mark = awaited.pop(which % len(awaited))
            (mark.abandon if step == "abandon" else mark.reach)()

        assert [mark for mark in marks if mark.is_awaited] == awaited
        assert len(marks) <= 2 * most + 1
