"""A retry policy for tasks that invoke actions: what a retry may mend, and when to try."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from .compat import has_retry_policies

if TYPE_CHECKING:
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy

_ERRORS = f"{__package__}.exceptions"


def invocation_retry_policy(
    *,
    failed_delay: timedelta | None = None,
    outage_delay: timedelta = timedelta(minutes=5),
    retries_timeouts: bool = False,
) -> ExceptionRetryPolicy | None:
    """An `ExceptionRetryPolicy` that knows this provider's errors: `retry_policy=invocation_retry_policy()`.

    What `airflow_invocations.exceptions` says can't be mended fails at once without any policy: Airflow
    doesn't ask one about it. The task's `retries` stay the limit.

    :param failed_delay: before the retry of an invocation that has failed or was lost; None: the task's
        `retry_delay`.
    :param outage_delay: before the retry after the platform was out of reach; it goes on with the invocation
        that there is.
    :param retries_timeouts: retry what took longer than `execution_timeout` or `queue_timeout`; as a rule
        it would again.
    :return: None where Airflow has no retry policies (3.3 has); this provider's tasks take that too.
    """
    if not has_retry_policies():
        return None
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

    return ExceptionRetryPolicy(
        [
            RetryRule(
                exception=f"{_ERRORS}.PlatformUnavailableError",
                action=RetryAction.RETRY,
                retry_delay=outage_delay,
                reason="the platform was out of reach; the retry goes on with the same invocation",
            ),
            RetryRule(
                # Airflow's own is what `execution_timeout` raises in a worker.
                exception=[f"{_ERRORS}.InvocationTimedOutError", "airflow.sdk.exceptions.AirflowTaskTimeout"],
                action=RetryAction.RETRY if retries_timeouts else RetryAction.FAIL,
                retry_delay=failed_delay if retries_timeouts else None,
                reason="its time was over",
            ),
            RetryRule(
                exception=[f"{_ERRORS}.InvocationFailedError", f"{_ERRORS}.InvocationLostError"],
                action=RetryAction.RETRY,
                retry_delay=failed_delay,
                reason="the invocation has failed or is lost; the retry invokes anew",
            ),
        ]
    )
