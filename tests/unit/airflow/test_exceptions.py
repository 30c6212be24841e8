"""How a task fails: what each exception says, what it knows, and that it survives the ways it is sent."""

from __future__ import annotations

import copy
import pickle

import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import BaseSerialization

from airflow_invocations import exceptions
from airflow_invocations.exceptions import (
    InvocationCancelledError,
    InvocationDeadlyError,
    InvocationError,
    InvocationFailedError,
    InvocationLostError,
    InvocationTimedOutError,
    UnknownStatusError,
    error_of,
    raise_unless_completed,
    verdict_on,
)
from airflow_invocations.model import InvocationRecord, InvocationStatus
from airflow_invocations.waiting import GivenUp, Reason

from ..platform.test_roboto import INVOCATION

URL = "http://h/actions/invocations/iv_1"


def ended(status: int, detail: str | None = None) -> InvocationRecord:
    step = {"status": status, "detail": detail, "timestamp": "2026-01-31T12:00:01Z"}
    return InvocationRecord.model_validate({**INVOCATION, "last_status": status, "status": [step]})


def test_success_is_an_allow_list_of_one() -> None:
    terminal = [status for status in InvocationStatus if status.is_terminal]
    assert [status for status in terminal if verdict_on(status) is None] == [InvocationStatus.Completed]
    assert {status.name: verdict_on(status) for status in terminal} == {
        "Completed": None,
        "Cancelled": InvocationCancelledError,
        "Failed": InvocationFailedError,
        "Deadly": InvocationDeadlyError,
    }


def test_a_status_that_is_not_known_is_a_failure_that_names_it() -> None:
    with pytest.raises(UnknownStatusError, match="unknown status 4711: from the future") as raised:
        raise_unless_completed(ended(4711, "from the future"), URL, [])
    assert raised.value.status == "unknown status 4711"


def test_completed_is_no_error() -> None:
    raise_unless_completed(ended(InvocationStatus.Completed), URL, [])


def test_the_exception_knows_what_a_callback_wants_to_know() -> None:
    with pytest.raises(InvocationFailedError) as raised:
        raise_unless_completed(ended(InvocationStatus.Failed, "exit code 3: no such topic"), URL, ["a", "b"])
    error = raised.value
    assert str(error) == f"action 'a', invocation iv_1: Failed: exit code 3: no such topic ({URL})"
    assert (error.action, error.invocation_id, error.status) == ("a", "iv_1", "Failed")
    assert (error.detail, error.exit_code) == ("exit code 3: no such topic", 3)
    assert (error.log_tail, error.url) == (["a", "b"], URL)


@pytest.mark.parametrize("detail", [None, "ended by SIGKILL", "exit code x", "the exit code 3 was not it"])
def test_an_exit_code_that_nobody_stated_is_not_made_up(detail: str | None) -> None:
    with pytest.raises(InvocationFailedError) as raised:
        raise_unless_completed(ended(InvocationStatus.Failed, detail), URL, [])
    assert raised.value.exit_code is None


def every_kind() -> list[type[InvocationError]]:
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, InvocationError)]


@pytest.mark.parametrize("kind", every_kind())
def test_it_survives_airflows_serialisation_and_pickle_and_copies(kind: type[InvocationError]) -> None:
    error = kind.of(ended(InvocationStatus.Failed, "exit code 3: x"), URL, ["a"])
    for again in (
        BaseSerialization.deserialize(BaseSerialization.serialize(error)),
        pickle.loads(pickle.dumps(error)),
        copy.deepcopy(error),
    ):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_what_a_retry_can_not_mend_is_not_retried() -> None:
    retried = {kind.__name__ for kind in every_kind() if not issubclass(kind, AirflowFailException)}
    assert retried == {
        "InvocationError",
        "InvocationFailedError",
        "InvocationTimedOutError",
        "InvocationLostError",
        "PlatformUnavailableError",
    }


def test_every_reason_to_give_up_has_its_exception() -> None:
    for reason in Reason:
        error = error_of(GivenUp(reason, "because"), "a", "iv_1", URL)
        assert "'a', invocation iv_1: because" in str(error)
        assert (error.detail, error.url) == ("because", URL)
    assert type(error_of(GivenUp(Reason.Lost, ""), None, "iv_1", URL)) is InvocationLostError
    assert type(error_of(GivenUp(Reason.QueuedTooLong, ""), None, "iv_1", URL)) is InvocationTimedOutError
