"""A retry policy for tasks that invoke actions: what to retry, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .version_compat import has_reschedules, has_retry_policies

if TYPE_CHECKING:
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy

_ERRORS = f"{__package__}.exceptions"


def invocation_retry_policy(
    *,
    failed_delay: timedelta | None = None,
    outage_delay: timedelta = timedelta(minutes=5),
    outage_timeout: timedelta = timedelta(hours=6),
    retries_timeouts: bool = False,
) -> ExceptionRetryPolicy | None:
    """Return an `ExceptionRetryPolicy` for this provider's errors: `retry_policy=invocation_retry_policy()`.

    Airflow doesn't ask a policy about errors that a retry can't help (`airflow_invocations.exceptions` says
    which): they fail at once. The task's `retries` stay the limit, except for outages: since Airflow 3.4
    a task whose platform is unavailable is rescheduled, which uses up no retry.

    To add rules of your own, combine both policies in Airflow 3.4's `ChainRetryPolicy`; errors that this one
    doesn't handle are passed to the next.

    :param failed_delay: before the retry of an invocation that has failed or was lost; None: the task's
        `retry_delay`.
    :param outage_delay: before the task runs again after the platform was unavailable; it goes on with the
        invocation that there is.
    :param outage_timeout: how long outages may keep a try from its end, from the first of them; after that
        each uses up a retry. Before Airflow 3.4 every outage does.
    :param retries_timeouts: retry what took longer than `execution_timeout` or `queue_timeout`; as a rule
        it would again.
    :return: None where Airflow has no retry policies (3.3 has); this provider's tasks take that too.
    """
    if not has_retry_policies():
        return None
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

    bounds: dict[str, Any] = {"reschedule_timeout": outage_timeout} if has_reschedules() else {}
    return ExceptionRetryPolicy(
        [
            RetryRule(
                exception=f"{_ERRORS}.PlatformUnavailableError",
                action=RetryAction["RESCHEDULE" if bounds else "RETRY"],
                retry_delay=outage_delay,
                reason="the platform was unavailable; the next run continues with the same invocation",
                **bounds,
            ),
            RetryRule(
                # Airflow's own is what `execution_timeout` raises in a worker.
                exception=[f"{_ERRORS}.InvocationTimedOutError", "airflow.sdk.exceptions.AirflowTaskTimeout"],
                action=RetryAction.RETRY if retries_timeouts else RetryAction.FAIL,
                retry_delay=failed_delay if retries_timeouts else None,
                reason="the timeout passed",
            ),
            RetryRule(
                exception=[f"{_ERRORS}.InvocationFailedError", f"{_ERRORS}.InvocationLostError"],
                action=RetryAction.RETRY,
                retry_delay=failed_delay,
                reason="the invocation failed or was lost; the retry starts a new one",
            ),
        ]
    )
