"""Older Airflows: every name that we import is there, and what they lack is replaced, and said once."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Connection

import airflow_invocations
from airflow_invocations import version_compat
from airflow_invocations.assets import triggering_invocations
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import AssetEvent
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.retry_policy import invocation_retry_policy
from airflow_invocations.sensors import InvocationSensor
from airflow_invocations.triggers import InvocationTrigger, _base
from airflow_invocations.triggers._event_delivery import Acknowledgements, WatchedAssets

from ...support.airflow_version import since
from ...support.task_context import (
    NOON,
    PROVENANCE,
)

HOUSE = Path(airflow_invocations.__file__).parent


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes_of(path: Path) -> Iterator[ast.AST]:
    """All that runs of a file; what only a type checker reads is left out."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.orelse if is_for_type_checkers(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]


def names_imported() -> set[tuple[str, str]]:
    """Module and name of all that our code imports of Airflow itself."""
    return {
        (node.module, alias.name)
        for path in HOUSE.rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("airflow.")
        for alias in node.names
    }  # fmt: skip


#: What is imported only where this version or a newer one runs.
NEWER = {
    "AssetStateStoreAccessor": (3, 3),
    "ExceptionRetryPolicy": (3, 3),
    "InletEventsAccessor": (3, 2),
    "RetryAction": (3, 3),
    "RetryRule": (3, 3),
}


def is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(find_spec(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


def test_this_airflow_has_every_name_that_is_imported_from_it() -> None:
    imported = names_imported()
    assert {"airflow.sdk", "airflow.triggers.base"} <= {module for module, _ in imported}
    missing = {name for module, name in imported if not is_there(module, name)}
    assert missing == {name for name, version in NEWER.items() if version > version_compat.VERSION}


def test_names_that_have_moved_are_found() -> None:
    for name in version_compat._MODULES:
        assert getattr(version_compat, name) is not None
    assert issubclass(version_compat.AirflowFailException, version_compat.AirflowException)
    with pytest.raises(AttributeError, match=r"no 'Nonsense' with Airflow 3\."):
        version_compat.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def asks_which_airflow(node: ast.AST) -> bool:
    """Whether code asks for Airflow's version, or tries whether a module of its is there."""
    match node:
        case ast.ImportFrom(module="airflow", names=names):
            return any(alias.name == "__version__" for alias in names)
        case ast.Attribute(value=ast.Name(id="airflow"), attr="__version__"):
            return True
        case ast.Try(body=body, handlers=handlers):
            caught = " ".join(ast.unparse(handler.type) for handler in handlers if handler.type)
            imports = (each for part in body for each in ast.walk(part) if isinstance(each, ast.ImportFrom))
            from_airflow = any((each.module or "").split(".")[0] == "airflow" for each in imports)
            return from_airflow and ("ImportError" in caught or "ModuleNotFoundError" in caught)
    return False


def test_nothing_else_asks_which_airflow_this_is() -> None:
    asking = {
        str(path.relative_to(HOUSE))
        for path in HOUSE.rglob("*.py")
        if any(asks_which_airflow(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert asking == {"version_compat.py"}
    tries = "try:\n    from airflow.sdk import X\nexcept (ImportError, KeyError):\n    pass"
    assert any(asks_which_airflow(node) for node in ast.walk(ast.parse(tries)))


# -- as with an older Airflow, whichever runs these tests


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(version_compat, "VERSION", (3, 1))
    monkeypatch.setattr(_base, "_DECISION_LIMIT", 0.001)
    monkeypatch.setattr(_base, "_READ_PAUSE", 0.001)
    monkeypatch.setattr(_base, "TELLS_OF_KILLS", False)
    monkeypatch.setattr(_base, "_STOP_TIME", 0.0)
    version_compat._warn_once.cache_clear()
    caplog.set_level(logging.WARNING, version_compat.__name__)
    return caplog


def said(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.name == version_compat.__name__]


def test_tasks_that_would_start_in_the_triggerer_are_deferred_by_a_worker(
    older: pytest.LogCaptureFixture,
) -> None:
    with DAG("fleet"):
        tasks = [
            InvokeActionOperator(task_id="ask", action="a", start_from_trigger=True),
            InvocationSensor(task_id="wait", invocation_id="iv_1", start_from_trigger=True),
        ]
        with pytest.raises(ValueError, match="needs ti, which a triggerer doesn't have"):
            InvokeActionOperator(task_id="rejected", action="{{ ti.task_id }}", start_from_trigger=True)
    assert [(task.start_from_trigger, task.deferrable) for task in tasks] == [(False, True)] * 2
    (line,) = said(older)
    assert "can't start tasks in the triggerer (3.3 can)" in line


def test_retry_policies_are_left_out(older: pytest.LogCaptureFixture) -> None:
    assert invocation_retry_policy() is None
    with DAG("fleet") as dag:
        InvokeActionOperator(task_id="ask", action="a", retry_policy=invocation_retry_policy())
        InvokeActionOperator.partial(task_id="each", retry_policy=None).expand(action=["a", "b"])
    assert getattr(dag.get_task("ask"), "retry_policy", None) is None
    (line,) = said(older)
    assert "has no retry policies (3.3 has)" in line


def test_invocations_that_start_a_run_are_read_without_a_state(older: pytest.LogCaptureFixture) -> None:
    invocations = [{"invocation_id": f"iv_{number}", "ended": str(number)} for number in range(3)]
    asset = SimpleNamespace(name="watched", uri="watched")
    payloads = [{"invocations": some, "sent": 1} for some in (invocations[:2], invocations[1:])]
    events = [
        SimpleNamespace(asset=asset, extra={"from_trigger": True, "payload": payload}, timestamp=1)
        for payload in payloads
    ]
    context: Any = {
        "ti": SimpleNamespace(dag_id="fleet", run_id="r"),
        "triggering_asset_events": {"watched": events},
    }
    for _ in range(2):
        assert triggering_invocations(context) == invocations
    (line,) = said(older)
    assert "keeps no state for assets (3.3 does)" in line


@pytest.mark.parametrize(
    ("changes", "is_passed_over"),
    [
        ({}, False),
        ({"consumed_asset_events": [AssetEvent(name="any", uri="any", timestamp=NOON)]}, True),
        ({"run_id": "asset_triggered__2026-01-31T12:00:00+00:00_x"}, True),
    ],
)
def test_where_its_assets_are_unknown_a_trigger_starts_no_loop(
    changes: dict[str, Any], is_passed_over: bool
) -> None:
    provenance = PROVENANCE.model_copy(update=changes)
    record: Any = SimpleNamespace(
        provenance=SimpleNamespace(source=SimpleNamespace(source_id=provenance.source.source_id)),
        container_parameters=SimpleNamespace(env_vars=provenance.environment()),
    )
    assert Acknowledgements(WatchedAssets(None, 0.0)).is_own_run(record) is is_passed_over


class Trigger(InvocationTrigger):
    """A trigger whose task's state a test decides; None: it can't be read."""

    def __init__(self, state: str | None, **options: Any) -> None:
        super().__init__(conn_id="c", invocation_id="iv_1", poll_interval=1.0, stream_logs=False, **options)
        self.state = state
        self.task_instance = SimpleNamespace(task_id="ask")
        self.looked = False
        self.cancelled: list[str] = []

    async def _task_states(self, instance: object) -> set[str]:
        self.looked = True
        if self.state is None:
            raise RuntimeError("the triggerer stops")
        return {self.state}

    async def _xcom_id(self, instance: object) -> str:
        return "iv_1"

    async def _cancel(self, invocation_id: str) -> None:
        self.cancelled.append(invocation_id)


async def ended(trigger: Trigger) -> None:
    """A trigger ends, and whatever it has begun is over."""
    await trigger.cleanup()
    await asyncio.sleep(0.01)  # the timer is due
    await asyncio.gather(*_base._cancelling)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("state", "cancelled"), [("failed", ["iv_1"]), ("deferred", []), ("running", []), (None, [])]
)
async def test_trigger_without_kill_notice_reads_the_state_of_the_task(
    older: pytest.LogCaptureFixture, state: str | None, cancelled: list[str]
) -> None:
    trigger = Trigger(state)
    await ended(trigger)
    assert trigger.cancelled == cancelled


@pytest.mark.anyio
async def test_after_its_event_and_where_it_only_watches_it_looks_at_nothing(
    older: pytest.LogCaptureFixture,
) -> None:
    fired, watching = Trigger("failed"), Trigger("failed", cancel_on_kill=False)
    fired._has_fired = True
    for trigger in (fired, watching):
        await ended(trigger)
        assert trigger.cancelled == []
        assert not trigger.looked


@pytest.mark.anyio
async def test_trigger_with_kill_notice_does_nothing_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "TELLS_OF_KILLS", True)
    monkeypatch.setattr(_base, "_STOP_TIME", 0.0)
    trigger = Trigger("failed")
    await ended(trigger)
    assert not trigger.looked


def test_with_a_triggerer_that_stops_a_trigger_ends_without_a_word(
    older: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_base, "_STOP_TIME", 60.0)
    trigger = Trigger("failed")
    asyncio.run(trigger.cleanup())
    assert not trigger.looked
    assert older.records == []


@pytest.mark.anyio
async def test_a_connection_is_read_where_airflow_can_do_that_in_threads_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(Connection, "aextra_dejson", raising=False)
    fields = {"conn_type": "roboto", "host": "http://h", "password": "p", "extra": {"org_id": "og_1"}}
    monkeypatch.setenv("AIRFLOW_CONN_OLD", json.dumps(fields))
    connection, extra = await version_compat.read_connection("old")
    assert (connection.host, extra) == ("http://h", {"org_id": "og_1"})
    assert (await InvocationHook("old").connect()).where.endswith("http://h")
    with pytest.raises(version_compat.AirflowNotFoundException):
        await version_compat.read_connection("nowhere")


@since("3.3", "retry policies, state of assets, tasks that start in the triggerer")
def test_the_newest_lacks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    version_compat._warn_once.cache_clear()
    assert version_compat.starts_tasks_in_triggerer()
    assert version_compat.has_retry_policies()
    assert version_compat.asset_state("watched") is not None
    assert said(caplog) == []
