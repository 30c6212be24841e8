"""The ready retry policy: what is retried, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_invocations.compat import AirflowTaskTimeout
from airflow_invocations.exceptions import (
    InvocationFailedError,
    InvocationLostError,
    InvocationTimedOutError,
    PlatformUnavailableError,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.retries import invocation_retry_policy

from ...airflow_version import since

pytestmark = since("3.3", "retry policies")


@pytest.mark.parametrize(
    ("options", "error", "action", "delay"),
    [
        ({}, PlatformUnavailableError("x"), "RETRY", timedelta(minutes=5)),
        ({}, InvocationTimedOutError("x"), "FAIL", None),
        ({"retries_timeouts": True}, InvocationTimedOutError("x"), "RETRY", None),
        ({}, AirflowTaskTimeout("x"), "FAIL", None),
        ({"retries_timeouts": True}, AirflowTaskTimeout("x"), "RETRY", None),
        ({}, InvocationFailedError("x"), "RETRY", None),
        ({"failed_delay": timedelta(1)}, InvocationFailedError("x"), "RETRY", timedelta(1)),
        ({}, InvocationLostError("x"), "RETRY", None),
        ({}, KeyError("x"), "DEFAULT", None),
    ],
)
def test_what_is_retried(
    options: dict[str, Any], error: BaseException, action: str, delay: timedelta | None
) -> None:
    policy = invocation_retry_policy(**options)
    assert policy is not None
    for one in (policy, type(policy).deserialize(policy.serialize())):
        decision = one.evaluate(error, 1, 3)
        assert (decision.action.name, decision.retry_delay) == (action, delay)


def test_a_task_takes_it() -> None:
    with DAG("d"):
        operator = InvokeActionOperator(
            task_id="ask", action="a", retries=3, retry_policy=invocation_retry_policy()
        )
    assert operator.retry_policy is not None
