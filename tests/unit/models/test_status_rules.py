"""The rules of status and ownership, also compared with another implementation with its own table."""

from __future__ import annotations

from enum import Enum
from itertools import product
from typing import Any

import pytest

from airflow_invocations.models import (
    DEFINITIONS,
    InvalidTransition,
    InvocationStatus,
    NotOwned,
    OwnedStatus,
    StatusDefinition,
    compute_new_owner,
    get_status_definition,
    status_record_transition,
    validate_ownership,
    validate_transition,
)

from ...support.with_pynenc import with_pynenc

S = InvocationStatus


def test_definitions_cover_every_status_and_only_terminal_ones_release_owners() -> None:
    assert set(DEFINITIONS) == {None, *InvocationStatus}
    for status in InvocationStatus:
        definition = get_status_definition(status, DEFINITIONS)
        assert definition.terminal is status.is_terminal
        assert not (definition.acquires_owner and definition.releases_owner)
        assert not (definition.terminal and definition.requires_owner)


def test_new_invocation_is_queued() -> None:
    assert status_record_transition(None, S.Queued, None, DEFINITIONS) == OwnedStatus(S.Queued, None)
    with pytest.raises(InvalidTransition, match="a new invocation can't become Processing; allowed: Queued"):
        validate_transition(None, S.Processing, DEFINITIONS)


def test_owner_alone_changes_a_claimed_invocation_until_its_end() -> None:
    claimed = status_record_transition(OwnedStatus(S.Queued), S.Scheduled, "r1", DEFINITIONS)
    assert claimed == OwnedStatus(S.Scheduled, "r1")
    with pytest.raises(NotOwned, match="r2 can't change an invocation of r1 from Scheduled to Processing"):
        status_record_transition(claimed, S.Processing, "r2", DEFINITIONS)
    running = status_record_transition(claimed, S.Processing, "r1", DEFINITIONS)
    assert running.owner == "r1"
    assert status_record_transition(running, S.Completed, "r1", DEFINITIONS) == OwnedStatus(S.Completed, None)


def test_claim_needs_a_name() -> None:
    with pytest.raises(NotOwned):
        validate_ownership(OwnedStatus(S.Queued), S.Scheduled, None, DEFINITIONS)


@pytest.mark.parametrize("end", [S.Cancelled, S.Failed])
def test_cancel_and_recovery_need_no_owner(end: InvocationStatus) -> None:
    moved = status_record_transition(OwnedStatus(S.Processing, "r1"), end, "somebody", DEFINITIONS)
    assert moved == OwnedStatus(end, None)


def test_transition_of_an_ended_invocation_names_the_allowed_statuses() -> None:
    with pytest.raises(
        InvalidTransition, match="Completed can't become Queued; allowed: none, because it is terminal"
    ):
        validate_transition(S.Completed, S.Queued, DEFINITIONS)
    with pytest.raises(InvalidTransition) as raised:
        validate_transition(S.Failed, S.Completed, DEFINITIONS)
    assert raised.value.allowed == {S.Failed, S.Queued, S.Deadly}


@with_pynenc
class TestAgainstPynenc:
    """Our five functions over pynenc's own table do what its functions do."""

    def test_transitions(self) -> None:
        theirs, table = _pynenc()
        compared = 0
        for current, following in product([None, *theirs.InvocationStatus], theirs.InvocationStatus):
            assert _accepts(validate_transition, current, following, table) == _accepts(
                theirs.validate_transition, current, following
            )
            compared += 1
        assert compared == (1 + len(theirs.InvocationStatus)) * len(theirs.InvocationStatus) > 150

    def test_ownership_and_the_whole_move(self) -> None:
        theirs, table = _pynenc()
        compared = 0
        owners = [None, "r1", "r2"]
        states = [None, *product(theirs.InvocationStatus, owners)]
        for state, following, mover in product(states, theirs.InvocationStatus, owners):
            ours = None if state is None else OwnedStatus(*state)
            other = None if state is None else theirs.InvocationStatusRecord(state[0], state[1])
            assert _accepts(validate_ownership, ours, following, mover, table) == _accepts(
                theirs.validate_ownership, other, following, mover
            )
            assert compute_new_owner(ours, following, mover, table) == theirs.compute_new_owner(
                other, following, mover
            )
            assert _moved(ours, following, mover, table) == _moved_by(theirs, other, following, mover)
            compared += 1
        assert compared == len(states) * len(theirs.InvocationStatus) * len(owners) > 1500


def _pynenc() -> tuple[Any, dict[Any, StatusDefinition[Any]]]:
    """Its module, and its table in our form."""
    from pynenc.invocation import status as theirs

    return theirs, {
        status: StatusDefinition(
            allowed=definition.allowed_transitions,
            terminal=definition.is_final,
            requires_owner=definition.requires_ownership,
            acquires_owner=definition.acquires_ownership,
            releases_owner=definition.releases_ownership,
            overrides_owner=definition.overrides_ownership,
        )
        for status, definition in theirs._CONFIG.definitions.items()
    }


#: Rejections, ours and pynenc's; any other exception is a failure of the test.
_REJECTIONS = {
    "InvalidTransition",
    "NotOwned",
    "InvocationStatusTransitionError",
    "InvocationStatusOwnershipError",
}


def _accepts(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except Exception as error:
        if type(error).__name__ not in _REJECTIONS:
            raise
        return False
    return True


def _moved(current: Any, following: Enum, mover: str | None, table: Any) -> tuple[Enum, str | None] | None:
    try:
        moved = status_record_transition(current, following, mover, table)
    except (InvalidTransition, NotOwned):
        return None
    return moved.status, moved.owner


def _moved_by(
    theirs: Any, current: Any, following: Enum, mover: str | None
) -> tuple[Enum, str | None] | None:
    try:
        moved = theirs.status_record_transition(current, following, mover)
    except (theirs.InvocationStatusTransitionError, theirs.InvocationStatusOwnershipError):
        return None
    return moved.status, moved.runner_id
