"""Read task instances for reconciliation, through the task SDK or through Airflow's REST API."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx

from .cancellation import awaited_invocation
from .reconciliation import AirflowUnreadableError, TaskKey, TaskSnapshot, key_of
from .result import INVOCATION_ID_KEY

if TYPE_CHECKING:
    from ..models import TaskInstanceReference

#: Runs per request to the execution API, which has them in its URL.
_RUNS = 50

#: Task instances per request to the REST API: the default of `[api] maximum_page_limit`.
_PAGE = 100

#: Requests for one batch of task instances; more of them are an error.
_MOST_PAGES = 100

#: The state of a task instance that can't be read with certainty.
UNREADABLE = "unreadable"

ItemT = TypeVar("ItemT")


class SdkTaskStates:
    """Read task instances from within a task. It knows states only, no try numbers.

    One request for up to 50 runs of a DAG, and one for each run that seems to be gone.
    """

    def read(self, references: Collection[TaskInstanceReference]) -> Mapping[TaskKey, TaskSnapshot]:
        """Return the task instances that exist; see `TaskStates`."""
        found: dict[TaskKey, TaskSnapshot] = {}
        try:
            for dag_id in sorted({one.dag_id for one in references}):
                of_dag = {key_of(one) for one in references if one.dag_id == dag_id}
                found |= self._read_states(dag_id, of_dag)
                self._check_gone(dag_id, of_dag - found.keys())
        except AirflowUnreadableError:
            raise
        except Exception as error:
            raise AirflowUnreadableError(f"Airflow's task instances can't be read: {error}") from error
        return found

    def awaited(self, reference: TaskInstanceReference) -> str | None:
        """Return the XCom that names the invocation; see `TaskStates`."""
        from airflow.sdk.execution_time.xcom import XCom

        try:
            value = awaited_invocation(reference, XCom.get_one)
        except Exception as error:
            raise AirflowUnreadableError(f"an XCom of {reference.task_id} can't be read: {error}") from error
        return value if isinstance(value, str) else None

    def _read_states(self, dag_id: str, keys: Collection[TaskKey]) -> dict[TaskKey, TaskSnapshot]:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        found: dict[TaskKey, TaskSnapshot] = {}
        for task_ids in without_ambiguous_keys({key[2] for key in keys}):
            wanted = [key for key in keys if key[2] in task_ids]
            for run_ids in _batches(sorted({key[1] for key in wanted}), _RUNS):
                states = RuntimeTaskInstance.get_task_states(
                    dag_id=dag_id, task_ids=list(task_ids), run_ids=list(run_ids)
                )
                for key in wanted:
                    name = key[2] if key[3] < 0 else f"{key[2]}_{key[3]}"
                    of_run = states.get(key[1], {})
                    if name in of_run:
                        found[key] = TaskSnapshot(state_name(of_run[name]))
        return found

    def _check_gone(self, dag_id: str, missing: Collection[TaskKey]) -> None:
        """Check that Airflow counts no such task instance either, as a missing one leads to a cancel."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        for run_id, task_id, map_index in sorted(key[1:] for key in missing):
            if RuntimeTaskInstance.get_ti_count(
                dag_id=dag_id, run_ids=[run_id], task_ids=[task_id], map_index=map_index
            ):
                raise AirflowUnreadableError(f"Airflow's answers about DAG {dag_id}, run {run_id} differ")


class RestTaskStates:
    """Read task instances through Airflow's REST API (v2).

    One request for up to 100 task instances, and one for each that seems to be gone.

    :param url: Airflow's base URL.
    :param token: a token of Airflow's API; None: log in.
    :param user: the user to log in as, with a password; None: anonymous.
    """

    def __init__(
        self, url: str, token: str | None = None, user: tuple[str, str] | None = None, timeout: float = 30.0
    ) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(timeout=timeout)
        #: Requests that were sent.
        self.requests = 0
        if token is None and user is not None:
            name, password = user
            answer = self._send("POST", "/auth/token", json={"username": name, "password": password})
            token = str(answer.get("access_token", ""))
        if token:
            self._client.headers["Authorization"] = f"Bearer {token}"

    def read(self, references: Collection[TaskInstanceReference]) -> Mapping[TaskKey, TaskSnapshot]:
        """Return the task instances that exist; see `TaskStates`."""
        wanted = sorted({key_of(one) for one in references})
        found: dict[TaskKey, TaskSnapshot] = {}
        for batch in _batches(wanted, _PAGE):
            found |= self._batch(batch)
        for key in [one for one in wanted if one not in found]:
            if (snapshot := self._one(key)) is not None:
                found[key] = snapshot
        return {key: found[key] for key in wanted if key in found}

    def awaited(self, reference: TaskInstanceReference) -> str | None:
        """Return the XCom that names the invocation; see `TaskStates`."""
        path = f"{_task_path(key_of(reference), mapped=False)}/xcomEntries/{INVOCATION_ID_KEY}"
        query = {"map_index": reference.map_index}
        entry = self._send("GET", f"/api/v2{path}", absent={}, params=query)
        value = entry.get("value")
        return value.strip('"') if isinstance(value, str) else None

    def _batch(self, keys: Sequence[TaskKey]) -> dict[TaskKey, TaskSnapshot]:
        body = {
            "dag_ids": sorted({key[0] for key in keys}),
            "dag_run_ids": sorted({key[1] for key in keys}),
            "task_ids": sorted({key[2] for key in keys}),
            "page_limit": _PAGE,
        }
        found: dict[TaskKey, TaskSnapshot] = {}
        for page in range(_MOST_PAGES):
            body["page_offset"] = page * _PAGE
            path = "/api/v2/dags/~/dagRuns/~/taskInstances/list"
            items = self._send("POST", path, json=body)["task_instances"]
            for item in items:
                key = (item["dag_id"], item["dag_run_id"], item["task_id"], item["map_index"])
                found[key] = _snapshot(item)
            if len(items) < _PAGE or all(key in found for key in keys):
                break
        return found

    def _one(self, key: TaskKey) -> TaskSnapshot | None:
        """Return a task instance that is not in the list; None: it doesn't exist.

        Airflow leaves out what the user may not see. Such a task instance is not gone.
        """
        item = self._send("GET", f"/api/v2{_task_path(key)}", absent={}, hidden={"state": UNREADABLE})
        if not item:
            return None
        return _snapshot(item)

    def _send(
        self,
        method: str,
        path: str,
        absent: dict[str, Any] | None = None,
        hidden: dict[str, Any] | None = None,
        **content: Any,
    ) -> dict[str, Any]:
        """Return the JSON object of a response; `absent` for 404 and `hidden` for 403, if they are given."""
        self.requests += 1
        try:
            response = self._client.request(method, f"{self._url}{path}", **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AirflowUnreadableError(
                f"Airflow at {self._url} does not answer: {type(error).__name__}"
            ) from None
        if response.status_code == 404 and absent is not None:
            return absent
        if response.status_code == 403 and hidden is not None:
            return hidden
        if response.status_code == 401:
            raise AirflowUnreadableError(f"Airflow at {self._url} rejects the token or password (401)")
        if not response.is_success:
            raise AirflowUnreadableError(f"Airflow at {self._url} answers {path} with {response.status_code}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise AirflowUnreadableError(f"{self._url} answers, but not as Airflow's API does")
        return answer


def without_ambiguous_keys(task_ids: Collection[str]) -> list[set[str]]:
    """Split task ids so that no two of a part can have the same key in `get_task_states`.

    It names instance 1 of the mapped task `a` as `a_1`, which may be another task's id.
    """
    parts: list[set[str]] = []
    for task_id in sorted(task_ids):
        stem = re.sub(r"_\d+$", "", task_id)
        free = next((part for part in parts if stem == task_id or stem not in part), None)
        if free is None:
            parts.append({task_id})
        else:
            free.add(task_id)
    return parts


def state_name(state: object) -> str:
    """Return a state as a text; "none" for a task instance without one."""
    return "none" if state is None else str(getattr(state, "value", state))


def _snapshot(item: Mapping[str, Any]) -> TaskSnapshot:
    return TaskSnapshot(
        state_name(item.get("state")), item.get("try_number"), item.get("max_tries"), item.get("id")
    )


def _task_path(key: TaskKey, *, mapped: bool = True) -> str:
    dag_id, run_id, task_id, map_index = key
    dag, run, task = (quote(part, safe="") for part in (dag_id, run_id, task_id))
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}"
    return f"{path}/{map_index}" if mapped and map_index >= 0 else path


def _batches(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    return (items[start : start + size] for start in range(0, len(items), size))
