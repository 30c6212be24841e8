"""Decide which tasks a trigger may end (`end_from_trigger`), and which a worker has to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..tasks.lineage import is_switched_on
from ..version_compat import ends_tasks_in_triggerer

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from ..models import DagRunProvenance

#: The arguments of a task that Airflow ignores when a trigger ends it, and what that means.
_IGNORED = {
    "outlets": "emit no asset event there",
    "on_success_callback": "isn't called there",
    "post_execute": "isn't called there",
}


def ignored_arguments(operator: BaseOperator) -> dict[str, object]:
    """Return the values of the arguments that Airflow ignores when a trigger ends the task."""
    return {
        "outlets": operator.outlets,
        "on_success_callback": operator.on_success_callback,
        "post_execute": operator._post_execute_hook,
    }


def check_end_from_trigger(task_label: str, given: Mapping[str, object]) -> None:
    """Check, when the DAG is parsed, that Airflow can end the task in the triggerer.

    :param given: arguments of the task, or of its `partial`.
    :raises ValueError: names the task, and all arguments that Airflow would ignore.
    """
    problems = [f"{name} {why}" for name, why in _IGNORED.items() if given.get(name)]
    if problems:
        raise ValueError(
            f"{task_label}: argument 'end_from_trigger': the task needs a worker at its end: "
            f"{'; '.join(problems)}; leave it out, and use deferrable=True"
        )


def ending_arguments(operator: Any, task_instance: Any, provenance: DagRunProvenance) -> dict[str, Any]:
    """Return the arguments with which a trigger ends an `InvokeActionOperator`; none if a worker has to."""
    if needs_worker_to_succeed(operator):
        return {}
    return {
        "provenance": provenance.model_dump(mode="json", exclude_none=True),
        "action": operator.action,
        "fail_in_worker": needs_worker_to_fail(operator, task_instance),
        "push_result": bool(operator.do_xcom_push),
        "multiple_outputs": operator.multiple_outputs,
    }


def needs_worker_to_succeed(operator: BaseOperator) -> bool:
    """Return whether a worker has to end the task in success.

    OpenLineage needs one, because Airflow calls no listener in a triggerer; so does Airflow before 3.3.
    """
    return any(ignored_arguments(operator).values()) or is_switched_on() or not ends_tasks_in_triggerer()


def needs_worker_to_fail(operator: BaseOperator, task_instance: Any) -> bool:
    """Return whether only a worker can fail the task.

    A worker respects errors that must not be retried, asks the retry policy, and passes the exception to
    callbacks. Airflow's end event does none of these, and before 3.3.2 it ignores retries.
    """
    has_retries = bool(task_instance.max_tries) and task_instance.try_number <= task_instance.max_tries
    handlers = ("retry_policy", "on_failure_callback", "on_retry_callback", "email")
    return has_retries or any(getattr(operator, name, None) for name in handlers)
