"""The outcome of a group of invocations, by their statuses."""

from __future__ import annotations

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.waiters import GroupOutcome, group_outcome, number_wanted

S = InvocationStatus


@pytest.mark.parametrize(
    ("statuses", "wanted", "expected"),
    [
        ([], 0, GroupOutcome.Met),
        ([], 1, GroupOutcome.Unreachable),
        ([S.Queued], 1, GroupOutcome.Pending),
        ([S.Completed], 1, GroupOutcome.Met),
        ([S.Failed], 1, GroupOutcome.Unreachable),
        ([S.Completed, S.Processing], 1, GroupOutcome.Met),
        ([S.Completed, S.Processing], 2, GroupOutcome.Pending),
        ([S.Completed, S.Cancelled], 2, GroupOutcome.Unreachable),
        ([S.Failed, S.Processing, S.Queued], 2, GroupOutcome.Pending),
        ([S.Failed, S.Deadly, S.Queued], 2, GroupOutcome.Unreachable),
        ([S.Completed, S.Failed, S.Failed], 1, GroupOutcome.Met),
        ([InvocationStatus(4711)], 1, GroupOutcome.Unreachable),
    ],
)
def test_group_outcome_follows_from_statuses(statuses: list[S], wanted: int, expected: GroupOutcome) -> None:
    assert group_outcome(statuses, wanted) is expected


def test_number_wanted_of_all_any_and_numbers() -> None:
    assert [number_wanted(wish, 3) for wish in ("all", "any", 1, 3)] == [3, 1, 1, 3]
    assert number_wanted("all", 0) == 0


@pytest.mark.parametrize(("wish", "total"), [(4, 3), ("any", 0), ("some", 3)])
def test_number_wanted_above_total_is_rejected(wish: str | int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{wish!r} of {total}"):
        number_wanted(wish, total)
