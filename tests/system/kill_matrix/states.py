"""All changes of state in one Airflow, as its database commits them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from .loop import BackgroundLoop

#: The database sends commits with NOTIFY, so no polling is needed.
_TELL = """
CREATE FUNCTION tell_state() RETURNS trigger AS $$
DECLARE said json;
BEGIN
    -- Since Airflow 3.4 earlier attempts stay in the table, and the map index is a region's.
    IF to_jsonb(NEW) ? 'working_set' AND to_jsonb(NEW)->'working_set' IS DISTINCT FROM 'true' THEN
        RETURN NULL;
    ELSIF TG_OP = 'UPDATE' AND to_jsonb(OLD) @> jsonb_build_object('id', NEW.id, 'state', NEW.state) THEN
        RETURN NULL;
    ELSIF TG_TABLE_NAME = 'task_instance' THEN
        said := json_build_object('dag_id', NEW.dag_id, 'run_id', NEW.run_id, 'task_id', NEW.task_id,
            'map_index', coalesce(to_jsonb(NEW)->'map_index', to_jsonb(NEW)->'region_index'),
            'state', NEW.state, 'try_number', NEW.try_number, 'pid', NEW.pid,
            'ti_id', NEW.id);
    ELSE
        said := json_build_object('dag_id', NEW.dag_id, 'run_id', NEW.run_id, 'task_id', '',
            'map_index', -1, 'state', NEW.state, 'try_number', 0, 'pid', NULL, 'ti_id', NULL);
    END IF;
    PERFORM pg_notify('states', said::text);
    RETURN NULL;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER tell_task AFTER INSERT OR UPDATE OF state ON task_instance
    FOR EACH ROW EXECUTE FUNCTION tell_state();
CREATE TRIGGER tell_run AFTER INSERT OR UPDATE OF state ON dag_run
    FOR EACH ROW EXECUTE FUNCTION tell_state();
"""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state of a task instance, or of a DAG run (with an empty `task_id`)."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    try_number: int
    #: The task's process, as the worker has reported.
    pid: int | None
    #: The task instance's id, which changes with each try.
    ti_id: str | None
    #: When the change was received (time.monotonic).
    at: float


class StateHistory:
    """All changes of state since `open`, in order, with waits for changes."""

    def __init__(self, loop: BackgroundLoop, database: str) -> None:
        self._loop = loop
        self._database = database
        self._changes: list[Change] = []
        self._news = threading.Condition()
        self._connection: Any = None

    def open(self) -> None:
        self._loop.run(self._open())

    def close(self) -> None:
        if self._connection is not None:
            self._loop.run(self._connection.close())
            self._connection = None

    def of(self, dag_id: str, run_id: str, task_id: str = "", map_index: int | None = None) -> list[Change]:
        """Return the changes of a task (of all map indices if none is given), or of the run."""
        return [
            change
            for change in list(self._changes)
            if (change.dag_id, change.run_id, change.task_id) == (dag_id, run_id, task_id)
            and map_index in (None, change.map_index)
        ]

    def wait(self, look: Callable[[], Any], within: float) -> Any:
        """Call `look` after each change until its result is truthy; None after the timeout."""
        deadline = time.monotonic() + within
        with self._news:
            while not (answer := look()):
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._news.wait(left)
            return answer

    async def _open(self) -> None:
        self._connection = await asyncpg.connect(self._database)
        await self._connection.execute(_TELL)
        await self._connection.add_listener("states", self._heard)

    def _heard(self, _connection: Any, _pid: int, _channel: str, said: str) -> None:
        change = Change(**json.loads(said), at=time.monotonic())
        with self._news:
            self._changes.append(change)
            self._news.notify_all()
