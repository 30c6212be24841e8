"""Decide by provenance whether an invocation belongs to the present incarnation of a task.

Retries of a task are one incarnation; a clear begins another. An idempotency id alone can't tell: a clear
after an edit of `retries` may repeat a number, and a DAG run may be created again under the same id.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from .. import models

if TYPE_CHECKING:
    from ..models import DagRunProvenance, TaskInstanceReference


class Origin(StrEnum):
    """Where an invocation comes from, as seen by one try of a task."""

    #: This try, or an earlier try that this one is a retry of.
    Own = "own"
    #: From before a clear, or from a deleted DAG run with the same id.
    Earlier = "earlier"
    #: A later try of the task: this process is out of date.
    Later = "later"
    #: Another task, another Airflow, a user, or a trigger.
    Foreign = "foreign"


def origin_of(source_id: str, mine: DagRunProvenance, first_try: int) -> Origin:
    """Return where an invocation comes from.

    :param source_id: the invocation's source.
    :param mine: the provenance of the present try.
    :param first_try: the try with which this incarnation is assumed to begin. It decides only if something in
        the run was cleared since, and `max_tries` doesn't say whether this task was.
    """
    theirs = models.task_instance_of(source_id)
    if theirs is None or not _is_same_task(theirs, mine):
        return Origin.Foreign
    if theirs.instance_id is not None and theirs.instance_id == mine.instance_id:
        return Origin.Own
    if theirs.try_number > mine.try_number:
        return Origin.Later
    if theirs.try_number == mine.try_number:
        is_other = None not in (theirs.instance_id, mine.instance_id)
        return Origin.Earlier if is_other else Origin.Own
    return Origin.Earlier if _was_cleared_since(theirs, mine, first_try) else Origin.Own


def _is_same_task(theirs: TaskInstanceReference, mine: DagRunProvenance) -> bool:
    return (
        theirs.dag_id,
        theirs.run_id,
        theirs.task_id,
        theirs.map_index,
        theirs.region_id,
        theirs.region_index,
        theirs.deployment,
    ) == (
        mine.dag_id,
        mine.run_id,
        mine.task_id,
        mine.map_index,
        mine.region_id,
        mine.region_index,
        models.deployment_id(mine.base_url),
    )


def _was_cleared_since(theirs: TaskInstanceReference, mine: DagRunProvenance, first_try: int) -> bool:
    """Return whether the task was cleared after an earlier try.

    A run's `clear_number` counts clears of any of its tasks. Airflow 3.1 doesn't count those of a run
    that hasn't ended, and no version counts a clear that leaves the run's state as it is
    (https://github.com/apache/airflow/blob/3.1.8/airflow-core/src/airflow/models/taskinstance.py,
    `clear_task_instances`). `max_tries` is the task's own, but may be the same after a clear if `retries` was
    lowered before.
    """
    knows_both = None not in (theirs.max_tries, mine.max_tries)
    if knows_both and theirs.max_tries != mine.max_tries:
        return True
    if theirs.clear_number == mine.clear_number:
        return False
    if theirs.clear_number > mine.clear_number:
        return True  # the run was created again: its count began at 0
    return first_try == mine.try_number if knows_both else theirs.try_number < first_try
