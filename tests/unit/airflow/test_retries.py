"""The ready retry policy: what is retried, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction
from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_invocations.exceptions import (
    InvocationFailedError,
    InvocationLostError,
    InvocationTimedOutError,
    PlatformUnavailableError,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.retries import invocation_retry_policy


@pytest.mark.parametrize(
    ("options", "error", "action", "delay"),
    [
        ({}, PlatformUnavailableError("x"), RetryAction.RETRY, timedelta(minutes=5)),
        ({}, InvocationTimedOutError("x"), RetryAction.FAIL, None),
        ({"retries_timeouts": True}, InvocationTimedOutError("x"), RetryAction.RETRY, None),
        ({}, AirflowTaskTimeout("x"), RetryAction.FAIL, None),
        ({"retries_timeouts": True}, AirflowTaskTimeout("x"), RetryAction.RETRY, None),
        ({}, InvocationFailedError("x"), RetryAction.RETRY, None),
        ({"failed_delay": timedelta(1)}, InvocationFailedError("x"), RetryAction.RETRY, timedelta(1)),
        ({}, InvocationLostError("x"), RetryAction.RETRY, None),
        ({}, KeyError("x"), RetryAction.DEFAULT, None),
    ],
)
def test_what_is_retried(
    options: dict[str, Any], error: BaseException, action: RetryAction, delay: timedelta | None
) -> None:
    policy = invocation_retry_policy(**options)
    for one in (policy, ExceptionRetryPolicy.deserialize(policy.serialize())):
        decision = one.evaluate(error, 1, 3)
        assert (decision.action, decision.retry_delay) == (action, delay)


def test_a_task_takes_it() -> None:
    with DAG("d"):
        operator = InvokeActionOperator(
            task_id="ask", action="a", retries=3, retry_policy=invocation_retry_policy()
        )
    assert operator.retry_policy is not None
