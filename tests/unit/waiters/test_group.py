"""Whether enough of several invocations have completed: counted, not guessed."""

from __future__ import annotations

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.waiters import Outlook, number_wanted, outlook

S = InvocationStatus


@pytest.mark.parametrize(
    ("statuses", "wanted", "expected"),
    [
        ([], 0, Outlook.Enough),
        ([], 1, Outlook.Hopeless),
        ([S.Queued], 1, Outlook.Open),
        ([S.Completed], 1, Outlook.Enough),
        ([S.Failed], 1, Outlook.Hopeless),
        ([S.Completed, S.Processing], 1, Outlook.Enough),
        ([S.Completed, S.Processing], 2, Outlook.Open),
        ([S.Completed, S.Cancelled], 2, Outlook.Hopeless),
        ([S.Failed, S.Processing, S.Queued], 2, Outlook.Open),
        ([S.Failed, S.Deadly, S.Queued], 2, Outlook.Hopeless),
        ([S.Completed, S.Failed, S.Failed], 1, Outlook.Enough),
        ([InvocationStatus(4711)], 1, Outlook.Hopeless),
    ],
)
def test_the_outlook(statuses: list[S], wanted: int, expected: Outlook) -> None:
    assert outlook(statuses, wanted) is expected


def test_all_any_and_so_many_mean_numbers() -> None:
    assert [number_wanted(wish, 3) for wish in ("all", "any", 1, 3)] == [3, 1, 1, 3]
    assert number_wanted("all", 0) == 0


@pytest.mark.parametrize(("wish", "total"), [(4, 3), ("any", 0), ("some", 3)])
def test_what_there_are_not_enough_of_is_refused(wish: str | int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{wish!r} of {total}"):
        number_wanted(wish, total)
