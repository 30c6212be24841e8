"""What an action wrote, stored by Airflow on each database: by every operator, in every way to run it."""

from __future__ import annotations

import datetime
import uuid
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import handle_event_submit
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from airflow_invocations.exceptions import InvocationFailedError
from airflow_invocations.hooks import RobotoHook
from airflow_invocations.operators import (
    CancelInvocationOperator,
    FetchInvocationLogsOperator,
    InvokeActionOperator,
)
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.tasks.result import result_of
from airflow_invocations.tasks.xcom import trigger_event
from airflow_invocations.triggers import InvokeActionTrigger, SensorTrigger

from ...unit.tasks.test_xcom import CLEAN, EVIL, record
from .conftest import Task, on_every_database, script
from .dag_runs import results, run, states

#: What an action writes that has a NUL, a byte that is no UTF-8, and an escape sequence.
WRITES = r"printf 'read header: RIFF\000\000$\n\377 \033[31mred\033[0m\n'"
LINES = ["read header: RIFF\ufffd\ufffd$", "\ufffd \x1b[31mred\x1b[0m"]

pytestmark = [on_every_database, pytest.mark.usefixtures("database")]


class Stored:
    """A task instance in the metadata database, and what is stored of it."""

    def __init__(self) -> None:
        with DAG(f"stored_{uuid.uuid4().hex}", schedule=None) as dag:
            EmptyOperator(task_id="ask")
        dag_run = run(dag)
        self.key = {"dag_id": dag.dag_id, "run_id": dag_run.run_id, "task_id": "ask"}

    def event(self, payload: Any) -> Any:
        """Have the deferred task resume with an event, as a triggerer does; what its worker would get."""
        with create_session() as session:
            instance = session.scalar(select(TaskInstance).filter_by(**self.key))
            instance.state, instance.next_kwargs = TaskInstanceState.DEFERRED, {}
            handle_event_submit(TriggerEvent(payload), task_instance=instance, session=session)
            session.commit()
        with create_session() as session:
            instance = session.scalar(select(TaskInstance).filter_by(**self.key))
            return instance.next_kwargs

    def xcom(self, key: str, value: Any) -> Any:
        """Store an XCom; what is stored."""
        with create_session() as session:
            # As the execution API stores what the task SDK sends.
            sent = BaseXCom.serialize_value(value)
            XComModel.set(key=key, value=sent, serialize=False, **self.key, map_index=-1, session=session)
        with create_session() as session:
            return session.scalar(
                select(XComModel.value).filter_by(**self.key, key=key).order_by(XComModel.timestamp.desc())
            )


@pytest.fixture
def stored(database: None) -> Stored:
    return Stored()


def test_the_database_rejects_what_is_not_clean(stored: Stored, request: pytest.FixtureRequest) -> None:
    """Else no test here could fail."""
    if "postgresql" not in request.node.callspec.id:
        assert stored.event({"detail": "a\0b"})["event"]["detail"] == "a\0b"
        return
    for rejected in ("a\0b", float("nan")):
        with pytest.raises(DBAPIError):
            stored.event({"detail": rejected})
        with pytest.raises(DBAPIError):
            stored.xcom("k", {"detail": rejected})


def test_texts_of_a_platform_can_be_stored(stored: Stored) -> None:
    hostile = record()
    outputs = {"k\0": "\ud800", "nan": [float("nan"), float("-inf")], "big": 2**70}
    assert stored.xcom("return_value", result_of(hostile, f"http://h/{EVIL}", None, outputs))
    error = InvocationFailedError.of(hostile, EVIL, [EVIL])
    kept = stored.event(trigger_event({"invocation_id": EVIL, "error": error.as_event()}).payload)
    assert CLEAN in str(kept)


def test_every_operator_in_a_worker_and_deferred(hook: RobotoHook, tmp_path: Any) -> None:
    good, bad = script(hook, f"{WRITES}; sleep 0.3"), script(hook, f"{WRITES} >&2; exit 3")
    unmendable = script(hook, f"{WRITES} >&2; exit 65")
    wait: dict[str, Any] = {"poll_interval": 0.1}
    look: dict[str, Any] = {"poke_interval": 0.1, "trigger_rule": "all_done"}
    deferred: dict[str, Any] = {"deferrable": True, "defer_after": 0, **wait}
    with DAG(f"paths_{uuid.uuid4().hex}", schedule=None) as dag:
        worker = InvokeActionOperator(task_id="worker", action=good, **wait)
        late = InvokeActionOperator(task_id="deferred", action=good, **deferred)
        failed = InvokeActionOperator(task_id="failed", action=bad, **wait)
        InvokeActionOperator(task_id="failed_deferred", action=bad, **deferred)
        InvokeActionOperator(task_id="unmendable_deferred", action=unmendable, retries=1, **deferred)
        sensed = InvocationSensor(task_id="sensed", invocation_id=worker.output, **look)
        InvocationSensor(task_id="sensed_deferred", invocation_ids=[late.output], deferrable=True, **look)
        failed_id = "{{ ti.xcom_pull('failed', key='invocation_id') }}"
        sensed_failed = InvocationSensor(
            task_id="sensed_failed", invocation_id=failed_id, deferrable=True, **look
        )
        FetchInvocationLogsOperator(task_id="as_xcom", invocation_id=worker.output, destination="xcom")
        FetchInvocationLogsOperator(task_id="as_log", invocation_id=late.output)
        FetchInvocationLogsOperator(
            task_id="as_file", invocation_id=worker.output, destination=f"file://{tmp_path}/a.log"
        )
        CancelInvocationOperator(task_id="cancelled", invocation_ids=late.output)
        failed >> sensed_failed
        worker >> sensed
    dag_run = run(dag)
    found = {task_id: state for (task_id, _), state in states(dag_run).items()}
    wrong = {"failed", "failed_deferred", "unmendable_deferred", "sensed_failed"}
    assert found == {task_id: "failed" if task_id in wrong else "success" for task_id in found}
    assert len(found) == 12
    assert results(dag_run, "deferred")["status"] == "Completed"
    assert results(dag_run, "as_xcom")["lines"] == LINES
    assert results(dag_run, "sensed_deferred") == [results(dag_run, "deferred")["invocation_id"]]
    assert "RIFF\0\0$\n" in (tmp_path / "a.log").read_text()
    for task_id in ("failed_deferred", "unmendable_deferred"):
        [invocation] = hook.find(dag.dag_id, dag_run.run_id, task_id)
        assert invocation.current.status.name == "Failed"


class Workerless:
    """Runs a trigger that does all that its task does, and stores what it stores."""

    def __init__(self, stored: Stored, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
        self.xcoms: dict[str, Any] = {}
        self.context = {**task.context, "task": SimpleNamespace(owner="ada", retries=1)}

        async def push(key: str, value: Any, **_: Any) -> None:
            self.xcoms[key] = await anyio.to_thread.run_sync(stored.xcom, key, value)

        async def pull(**_: Any) -> None:
            return None

        monkeypatch.setattr(XCom, "aset", push)
        monkeypatch.setattr(XCom, "aget_one", pull)

    async def end(self, trigger: Any) -> TriggerEvent:
        trigger._task_instance = SimpleNamespace(
            **vars(self.context["ti"]),
            task=self.context["task"],
            get_template_context=lambda: self.context,
        )
        steps = trigger.run()
        event: TriggerEvent = await anext(steps)
        await steps.aclose()
        return event


@pytest.mark.anyio
@pytest.mark.parametrize("code", [0, 3, 65])
async def test_a_task_and_a_sensor_that_start_in_the_triggerer(
    hook: RobotoHook, stored: Stored, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    action = await anyio.to_thread.run_sync(script, hook, f"{WRITES}; {WRITES} >&2; exit {code}")
    workerless = Workerless(stored, monkeypatch, Task(try_number=1, max_tries=1))
    event = await workerless.end(
        InvokeActionTrigger(conn_id="roboto_default", action=action, poll_interval=0.1)
    )
    invocation_id = workerless.xcoms["invocation_id"]
    sensed = await workerless.end(
        SensorTrigger(conn_id="roboto_default", invocation_id=invocation_id, poll_interval=0.1)
    )
    if code == 0:
        assert (type(event), type(sensed)) == (TaskSuccessEvent, TaskSuccessEvent)
    elif code == 3:
        assert (type(event), type(sensed)) == (TaskFailedEvent, TaskFailedEvent)
    else:
        for left_to_a_worker in (event, sensed):
            assert type(left_to_a_worker) is TriggerEvent
            kept = await anyio.to_thread.run_sync(stored.event, left_to_a_worker.payload)
            assert "exit code 65" in str(kept)
        [error] = [event.payload["error"]]
        assert error["fields"]["log_tail"][:2] == LINES


def test_the_event_of_an_asset(stored: Stored) -> None:
    from airflow.models.asset import AssetEvent, AssetModel

    payload = {"invocations": [{"detail": EVIL, "action": EVIL}], "sent": 1}
    with create_session() as session:
        asset = AssetModel(name=f"a{uuid.uuid4().hex}", uri=f"x://{uuid.uuid4().hex}", group="g", extra={})
        session.add(asset)
        session.flush()
        made = AssetEvent(
            asset_id=asset.id,
            extra={"from_trigger": True, "payload": trigger_event(payload).payload},
            timestamp=datetime.datetime.now(datetime.UTC),
        )
        session.add(made)
        session.flush()
        number = made.id
    with create_session() as session:
        kept = session.get(AssetEvent, number).extra
    assert kept["payload"]["invocations"] == [{"detail": CLEAN, "action": CLEAN}]
