"""The statuses and their transitions, compared with the published client's."""

from __future__ import annotations

from itertools import product

import pytest

from airflow_invocations.models import (
    DEFINITIONS,
    InvalidTransition,
    InvocationStatus,
    validate_transition,
)

from ...support.published import actions as published

each_status = pytest.mark.parametrize("status", InvocationStatus)


@pytest.mark.parametrize(("current", "following"), list(product(InvocationStatus, repeat=2)))
def test_transitions_are_those_of_the_client(current: InvocationStatus, following: InvocationStatus) -> None:
    referee = published.InvocationStatus(current.value)
    if referee.can_transition_to(published.InvocationStatus(following.value)):
        validate_transition(current, following, DEFINITIONS)
    else:
        with pytest.raises(InvalidTransition) as rejected:
            validate_transition(current, following, DEFINITIONS)
        assert (rejected.value.current, rejected.value.following) == (current, following)
        assert following not in rejected.value.allowed


@each_status
def test_terminal_and_running_statuses_are_those_of_the_client(status: InvocationStatus) -> None:
    referee = published.InvocationStatus(status.value)
    assert status.is_terminal is referee.is_terminal()
    assert status.is_running is referee.is_running()


@each_status
def test_status_is_shown_by_name(status: InvocationStatus) -> None:
    assert f"{status}" == str(status) == str(published.InvocationStatus(status.value)) == status.name


def test_invalid_transition_names_the_allowed_statuses() -> None:
    with pytest.raises(InvalidTransition) as rejected:
        validate_transition(InvocationStatus.Failed, InvocationStatus.Completed, DEFINITIONS)
    assert "Failed can't become Completed; allowed: Deadly, Queued" in str(rejected.value)
    with pytest.raises(InvalidTransition, match="none, because it is terminal"):
        validate_transition(InvocationStatus.Cancelled, InvocationStatus.Queued, DEFINITIONS)
