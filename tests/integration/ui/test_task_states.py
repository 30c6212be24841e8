"""Reconciliation reads task instances through the REST API of a real Airflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi.testclient import TestClient

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import TaskInstanceReference, task_instance_of
from airflow_invocations.tasks.reconciliation import key_of
from airflow_invocations.tasks.task_states import RestTaskStates
from airflow_invocations.ui.airflow.runs import RunKey


@pytest.fixture
def states(client: TestClient) -> RestTaskStates:
    """A reader with the token of somebody who may only look."""
    states = RestTaskStates("http://testserver")
    token = init_auth_manager().generate_jwt(SimpleAuthManagerUser(username="vera", role="VIEWER"))
    client.headers["Authorization"] = f"Bearer {token}"
    states._client.close()
    states._client = client
    return states


def test_a_task_instance_is_read_with_its_numbers(
    states: RestTaskStates, run_dag: Callable[..., RunKey], hook: RobotoHook
) -> None:
    run = run_dag("true")
    (record,) = hook.find(run.dag_id, run.run_id)
    reference = task_instance_of(record.provenance.source.source_id)
    assert reference is not None
    (snapshot,) = states.read([reference]).values()
    assert snapshot.state == "success"
    assert (snapshot.try_number, snapshot.max_tries, snapshot.instance_id) == (
        reference.try_number, reference.max_tries, reference.instance_id,
    )  # fmt: skip
    assert states.awaited(reference) == record.invocation_id


@pytest.mark.parametrize("change", [{"run_id": "deleted"}, {"task_id": "removed"}, {"map_index": 3}])
def test_what_does_not_exist_is_left_out(
    states: RestTaskStates, run_dag: Callable[..., RunKey], change: dict[str, Any]
) -> None:
    run = run_dag("true")
    there = TaskInstanceReference(dag_id=run.dag_id, run_id=run.run_id, task_id="ask", try_number=1)
    gone = there.model_copy(update=change)
    assert list(states.read([there, gone])) == [key_of(there)]
    assert states.awaited(gone) is None
