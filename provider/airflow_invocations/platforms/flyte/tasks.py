"""Deployed tasks of Flyte, kept for a short time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ..errors import NotFoundError
from .client import TASKS
from .ids import TaskId
from .runs import RunService, field_filter
from .shapes import object_at, objects_at, text_at

Json = dict[str, Any]

#: Seconds for which a task's definition is kept, and the number of tasks.
TASK_FRESH = 10.0
MAX_TASKS = 256


@dataclass(frozen=True, slots=True)
class _KnownTask:
    """A task with its version, and its TaskDetails, until a time of the monotonic clock."""

    task: TaskId
    details: Json
    fresh_until: float


class TaskCatalog:
    """Reads deployed tasks.

    :param runs: sends the requests.
    :param where: Flyte's address, for messages.
    """

    def __init__(self, runs: RunService, where: str) -> None:
        self._runs = runs
        self._where = where
        self._known: dict[TaskId, _KnownTask] = {}

    async def get(self, task: TaskId) -> tuple[TaskId, Json]:
        """Return a deployed task with its version, and its TaskDetails, at most TASK_FRESH seconds old.

        :raises NotFoundError: there is no such task.
        """
        known = self._known.get(task)
        if known is not None and time.monotonic() < known.fresh_until:
            return known.task, known.details
        versioned = task if task.version is not None else await self._newest(task)
        try:
            message = {"taskId": versioned.wire(self._runs.org)}
            answer = await self._runs.read(f"{TASKS}/GetTaskDetails", message)
        except NotFoundError as error:
            raise NotFoundError(f"there is no task {versioned} at {self._where}: {error}") from error
        details = object_at(answer, "details")
        while len(self._known) >= MAX_TASKS:
            del self._known[next(iter(self._known))]
        self._known[task] = _KnownTask(versioned, details, time.monotonic() + TASK_FRESH)
        return versioned, details

    async def _newest(self, task: TaskId) -> TaskId:
        message = {
            "request": {
                "limit": 1,
                "filters": [field_filter("name", [task.name])],
                "sortByFields": [{"key": "created_at", "direction": "DESCENDING"}],
            },
            **self._runs.scope_of(task.scope),
        }
        answer = await self._runs.client.call(f"{TASKS}/ListTasks", message)
        for found in objects_at(answer, "tasks"):
            version = text_at(found, "taskId", "version")
            if version:
                return TaskId(task.scope, task.name, version)
        raise NotFoundError(f"there is no task {task} at {self._where}, in any version")
