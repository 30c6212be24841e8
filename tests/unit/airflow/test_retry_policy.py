"""The ready retry policy: what is retried, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_invocations.exceptions import (
    InvocationFailedError,
    InvocationLostError,
    InvocationTimedOutError,
    PlatformUnavailableError,
)
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.retry_policy import invocation_retry_policy
from airflow_invocations.version_compat import VERSION, AirflowTaskTimeout

from ...support.airflow_version import since

pytestmark = since("3.3", "retry policies")

#: What an outage leads to: since Airflow 3.4 it uses up no retry.
OUTAGE = "RESCHEDULE" if VERSION >= (3, 4) else "RETRY"


@pytest.mark.parametrize(
    ("options", "error", "action", "delay"),
    [
        ({}, PlatformUnavailableError("x"), OUTAGE, timedelta(minutes=5)),
        ({"outage_delay": timedelta(1)}, PlatformUnavailableError("x"), OUTAGE, timedelta(1)),
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
def test_failures_that_are_retried(
    options: dict[str, Any], error: BaseException, action: str, delay: timedelta | None
) -> None:
    policy = invocation_retry_policy(**options)
    assert policy is not None
    for one in (policy, type(policy).deserialize(policy.serialize())):
        decision = one.evaluate(error, 1, 3)
        assert (decision.action.name, decision.retry_delay) == (action, delay)


@since("3.4", "reschedules")
def test_an_outage_is_bounded() -> None:
    error = PlatformUnavailableError("x")
    for options, bound in (({}, timedelta(hours=6)), ({"outage_timeout": timedelta(1)}, timedelta(1))):
        policy = invocation_retry_policy(**options)
        assert policy is not None
        for one in (policy, type(policy).deserialize(policy.serialize())):
            assert one.evaluate(error, 1, 3).reschedule_timeout == bound


@since("3.4", "chains of retry policies")
@pytest.mark.parametrize("ours_first", [True, False])
def test_it_composes_with_other_policies(ours_first: bool) -> None:
    from airflow.sdk.definitions.retry_policy import (
        ChainRetryPolicy,
        ExceptionRetryPolicy,
        RetryAction,
        RetryRule,
    )

    ours = invocation_retry_policy()
    assert ours is not None
    other = ExceptionRetryPolicy([RetryRule(exception=KeyError, action=RetryAction.FAIL)])
    chain = ChainRetryPolicy([ours, other] if ours_first else [other, ours])
    assert chain.evaluate(PlatformUnavailableError("x"), 1, 3).action is RetryAction.RESCHEDULE
    assert chain.evaluate(InvocationFailedError("x"), 1, 3).action is RetryAction.RETRY
    assert chain.evaluate(KeyError("x"), 1, 3).action is RetryAction.FAIL
    assert chain.evaluate(ValueError("x"), 1, 3).action is RetryAction.DEFAULT


def test_a_task_takes_it() -> None:
    with DAG("d"):
        operator = InvokeActionOperator(
            task_id="ask", action="a", retries=3, retry_policy=invocation_retry_policy()
        )
    assert operator.retry_policy is not None
