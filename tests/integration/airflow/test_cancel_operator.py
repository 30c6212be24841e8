"""Cancelling on the real server: confirmed, many at once, harmless where there is nothing to cancel."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_invocations.exceptions import PlatformUnavailableError, RequestRejectedError
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationStatus
from airflow_invocations.operators import CancelInvocationOperator
from airflow_invocations.platforms import CannotStopError
from airflow_invocations.platforms.roboto.platform import RobotoPlatform

from .conftest import Task, end_of, script
from .test_sensor import invoke_action


def cancel(task: Task, ids: Any, **arguments: Any) -> dict[str, str | None]:
    return CancelInvocationOperator(task_id="cancel", invocation_ids=ids, **arguments).execute(task.context)


def test_running_invocations_are_cancelled_and_ended_ones_stay(hook: RobotoHook, task: Task) -> None:
    running = [invoke_action(hook, script(hook, "sleep 60")) for _ in range(3)]
    ended = invoke_action(hook, script(hook, "true"))
    end_of(hook, ended)
    statuses = cancel(task, [{"invocation_id": running[0]}, *running[1:], ended, "iv_unknown", None])
    assert statuses == {**dict.fromkeys(running, "Cancelled"), ended: "Completed", "iv_unknown": None}
    assert {hook.get(one).current.status for one in running} == {InvocationStatus.Cancelled}


@pytest.mark.parametrize("nothing", [None, "", [], [None], "None"])
def test_where_nothing_was_invoked_nothing_is_cancelled(task: Task, nothing: Any) -> None:
    operator = CancelInvocationOperator(task_id="cancel", invocation_ids="{{ params.later }}")
    operator.invocation_ids = nothing
    assert operator.execute(task.context) == {}


def test_the_others_are_cancelled_whatever_goes_wrong_with_one(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn, other = (invoke_action(hook, script(hook, "sleep 60")) for _ in range(2))
    real = RobotoPlatform.cancel

    async def rejected(self: RobotoPlatform, invocation_id: str) -> None:
        if invocation_id == stubborn:
            raise CannotStopError("it was asked to stop")
        await real(self, invocation_id)

    with monkeypatch.context() as patch:
        patch.setattr(RobotoPlatform, "cancel", rejected)
        with pytest.raises(
            RequestRejectedError, match=f"{stubborn} could not be cancelled: it was asked to stop"
        ):
            cancel(task, [stubborn, other])
    assert hook.get(other).current.status is InvocationStatus.Cancelled
    hook.cancel(stubborn)


def test_a_cancel_that_is_not_confirmed_in_time_may_be_retried(
    hook: RobotoHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = invoke_action(hook, script(hook, "sleep 60"))

    async def ignored(self: RobotoPlatform, invocation_id: str) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr(RobotoPlatform, "cancel", ignored)
        with pytest.raises(
            PlatformUnavailableError, match="the platform did not confirm the cancel within 1 s"
        ):
            cancel(task, running, timeout=1)
    hook.cancel(running)


def test_an_invocation_that_has_no_page_leaves_no_empty_brackets() -> None:
    operator = CancelInvocationOperator(task_id="cancel", invocation_ids="iv_1")
    said = "invocation iv_1: the platform did not confirm the cancel within 60 s"
    assert str(operator._error(TimeoutError(), "iv_1", "")) == said
    assert str(operator._error(TimeoutError(), "iv_1", "http://h/1")) == f"{said}: http://h/1"


def test_value_that_names_no_invocation_is_rejected_at_parse() -> None:
    with DAG("d"), pytest.raises(ValueError, match="DAG 'd', task 'cancel': argument 'invocation_ids'"):
        CancelInvocationOperator(task_id="cancel", invocation_ids=3)
