"""The exceptions of tasks: messages, attributes, and how they survive being serialised."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import BaseSerialization

from airflow_invocations import exceptions
from airflow_invocations.exceptions import (
    InvocationCancelledError,
    InvocationDeadlyError,
    InvocationError,
    InvocationFailedError,
    InvocationLostError,
    InvocationPermanentError,
    InvocationTimedOutError,
    RequestRejectedError,
    UnknownStatusError,
    error_from_event,
    exception_class_for,
    raise_unless_completed,
    task_error,
)
from airflow_invocations.models import InvocationRecord, InvocationStatus
from airflow_invocations.operators import (
    CancelInvocationOperator,
    FetchInvocationLogsOperator,
    InvokeActionOperator,
)
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.version_compat import AirflowFailException
from airflow_invocations.waiters import AbandonReason, WaitAbandoned

from ...support.records import (
    INVOCATION,
)
from ...support.task_context import (
    context,
)

URL = "http://h/actions/invocations/iv_1"


def ended(status: int, detail: str | None = None, exit_code: int | None = None) -> InvocationRecord:
    step = {
        "status": status, "detail": detail, "exit_code": exit_code, "timestamp": "2026-01-31T12:00:01Z"
    }  # fmt: skip
    return InvocationRecord.model_validate({**INVOCATION, "last_status": status, "status": [step]})


def test_success_is_an_allow_list_of_one() -> None:
    terminal = [status for status in InvocationStatus if status.is_terminal]
    verdicts = {status: exception_class_for(ended(status)) for status in terminal}
    assert [status for status in terminal if verdicts[status] is None] == [InvocationStatus.Completed]
    assert {status.name: verdict for status, verdict in verdicts.items()} == {
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
        raise_unless_completed(
            ended(InvocationStatus.Failed, "exit code 3: no such topic", 3), URL, ["a", "b"]
        )
    error = raised.value
    assert str(error) == f"action 'a', invocation iv_1: Failed: exit code 3: no such topic: {URL}"
    assert (error.action, error.invocation_id, error.status) == ("a", "iv_1", "Failed")
    assert (error.detail, error.exit_code) == ("exit code 3: no such topic", 3)
    assert (error.log_tail, error.url) == (["a", "b"], URL)


@pytest.mark.parametrize("detail", [None, "ended by SIGKILL", "exit code 65", "exit code 64: forged"])
def test_an_exit_code_is_never_read_from_prose(detail: str | None) -> None:
    with pytest.raises(InvocationFailedError) as raised:
        raise_unless_completed(ended(InvocationStatus.Failed, detail), URL, [])
    assert type(raised.value) is InvocationFailedError
    assert raised.value.exit_code is None


@pytest.mark.parametrize(
    ("code", "kind", "meaning"),
    [
        (1, InvocationFailedError, None),
        (
            64,
            InvocationPermanentError,
            "UsageError: the action was called with invalid arguments; a retry will not help",
        ),
        (65, InvocationPermanentError, "DataError: the action can't use its input"),
        (70, InvocationFailedError, "InternalError: the action has an internal error; a retry may help"),
        (78, InvocationPermanentError, "ConfigurationError: the action's environment is not configured"),
    ],
)
def test_an_exit_code_decides_whether_a_retry_can_help_and_the_error_says_why(
    code: int, kind: type[InvocationError], meaning: str | None
) -> None:
    with pytest.raises(InvocationFailedError) as raised:
        raise_unless_completed(ended(InvocationStatus.Failed, f"exit code {code}: x", code), URL, [])
    assert type(raised.value) is kind
    assert issubclass(kind, AirflowFailException) is (code in (64, 65, 78))
    assert raised.value.exit_code == code
    assert (meaning or f"Failed: exit code {code}: x: http") in str(raised.value)


def test_an_exit_code_says_nothing_of_what_was_cancelled() -> None:
    with pytest.raises(InvocationCancelledError):
        raise_unless_completed(ended(InvocationStatus.Cancelled, "exit code 65", 65), URL, [])


def every_kind() -> list[type[InvocationError]]:
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, InvocationError)]


@pytest.mark.parametrize("kind", every_kind())
def test_an_error_survives_airflows_serialisation_and_pickle_and_copies(kind: type[InvocationError]) -> None:
    error = kind.of(ended(InvocationStatus.Failed, "exit code 3: x"), URL, ["a"])
    for again in (
        BaseSerialization.deserialize(BaseSerialization.serialize(error)),
        pickle.loads(pickle.dumps(error)),
        copy.deepcopy(error),
    ):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", every_kind())
def test_a_worker_recreates_the_error_from_a_triggers_event(kind: type[InvocationError]) -> None:
    error = kind.of(ended(InvocationStatus.Failed, "exit code 3: x"), URL, ["a"])
    again = error_from_event(json.loads(json.dumps(error.as_event())))
    assert type(again) is kind
    assert vars(again) == vars(error)


def test_an_event_with_an_unknown_error_becomes_an_invocation_error() -> None:
    event = {**InvocationError("m").as_event(), "kind": "pickle"}
    assert type(error_from_event(event)) is InvocationError


def test_permanent_failures_are_not_retried() -> None:
    retried = {kind.__name__ for kind in every_kind() if not issubclass(kind, AirflowFailException)}
    assert retried == {
        "InvocationError",
        "InvocationFailedError",
        "InvocationTimedOutError",
        "InvocationLostError",
        "PlatformUnavailableError",
    }


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (InvokeActionOperator, {"action": "a"}),
        (CancelInvocationOperator, {"invocation_ids": "iv_1"}),
        (FetchInvocationLogsOperator, {"invocation_id": "iv_1"}),
        (InvocationSensor, {"invocation_id": "iv_1"}),
        (InvocationSensor, {"invocation_id": "iv_1", "deferrable": True}),
    ],
)
def test_a_misconfigured_connection_fails_every_task_permanently(
    kind: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_HALF", '{"conn_type": "roboto", "password": "s3cret"}')
    with DAG("fleet"):
        operator = kind(task_id="ask", conn_id="half", **arguments)
    with pytest.raises(
        RequestRejectedError, match=r"^DAG 'fleet', task 'ask': connection 'half': host is empty"
    ):
        operator.execute(context())


def test_every_abandon_reason_has_its_exception() -> None:
    for reason in AbandonReason:
        error = task_error(WaitAbandoned(reason, "because"), "a", "iv_1", URL)
        assert "'a', invocation iv_1: because" in str(error)
        assert (error.detail, error.url) == ("because", URL)
    assert type(task_error(WaitAbandoned(AbandonReason.Lost, ""), None, "iv_1", URL)) is InvocationLostError
    assert (
        type(task_error(WaitAbandoned(AbandonReason.QueuedTooLong, ""), None, "iv_1", URL))
        is InvocationTimedOutError
    )
