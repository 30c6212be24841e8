"""The page with a real database, a real auth manager and the real server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import select

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.ui.airflow import runs
from airflow_invocations.ui.airflow.runs import RunKey, TryKey

from ..airflow.conftest import connect_to, script
from ..conftest import LocalServer

RunDag = Callable[..., RunKey]


def about(run: RunKey) -> dict[str, str]:
    return {"dag_id": run.dag_id, "run_id": run.run_id}


def invocations_in(shown: str) -> list[str]:
    return re.findall(r'data-id="(\w+)"', shown)


class TestAirflowRecords:
    def test_newest_runs_and_their_connections(self, run_dag: RunDag, ask: Callable[..., Any]) -> None:
        run = run_dag("true", conn_id="{{ 'roboto_' + 'default' }}")
        assert ask(runs.run_has_ended, run) is True
        assert ask(runs.run_has_ended, RunKey(run.dag_id, "none")) is None
        assert ask(runs.newest_runs)[run] is True
        assert ask(runs.named_connections, [run]) == {run: ["roboto_default"]}
        assert ask(runs.named_connections, []) == {}

    def test_newest_runs_are_ordered_and_limited(
        self, run_dag: RunDag, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = run_dag("true"), run_dag("true")
        assert list(ask(runs.newest_runs))[:2] == [second, first]
        monkeypatch.setattr(runs, "MAX_RUNS", 1)
        assert list(ask(runs.newest_runs)) == [second]

    def test_listed_connections_by_role(
        self,
        stored_connections: None,
        hook: RobotoHook,
        environment: Callable[..., None],
        ask: Callable[..., Any],
    ) -> None:
        environment("by_uri", "roboto://:s3cret@127.0.0.1:9")
        environment("other", {"conn_type": "http", "host": "x"})
        environment("broken", "{not json")
        environment("_team___x", {"conn_type": "roboto"})
        in_environment = dict.fromkeys(("roboto_default", "by_uri"), "roboto")
        assert ask(runs.listed_connections, role="ADMIN") == {**in_environment, "stored": "roboto"}
        assert ask(runs.listed_connections, role="VIEWER") == in_environment

    def test_tries_of_a_cleared_task(self, run_dag: RunDag, ask: Callable[..., Any]) -> None:
        run = run_dag("true")
        key = TryKey(run.dag_id, run.run_id, "ask", -1)
        (first,) = ask(runs.task_instances, [key])[key].tries
        assert first.number == 1
        assert first.started is not None
        assert first.ended is not None
        assert first.started < first.ended
        assert ask(runs.task_instances, []) == {}
        with create_session(scoped=False) as session:
            newest = select(TaskInstance).where(TaskInstance.run_id == run.run_id)
            cleared = session.scalar(newest)
            assert cleared is not None
            clear_task_instances([cleared], session)
            session.flush()
            again = session.scalar(newest)  # since 3.4 another row than the one that was cleared
            assert again is not None
            again.try_number = 2
            again.start_date = first.ended
            again.end_date = None
        tries = ask(runs.task_instances, [key])[key].tries
        assert [each.number for each in tries] == [1, 2]
        assert [each.ended for each in tries] == [first.ended, None]


class TestPage:
    def test_run_and_all_runs_list_invocation(
        self, run_dag: RunDag, viewer: TestClient, hook: RobotoHook
    ) -> None:
        run = run_dag("echo hello; sleep 0.3; echo bye")
        (record,) = hook.find(run.dag_id, run.run_id)
        of_run = viewer.get("/run/rows", params=about(run)).text
        assert invocations_in(of_run) == [record.invocation_id]
        assert record.invocation_id in invocations_in(viewer.get("/rows").text)
        ran, waited = (float(text) for text in re.findall(r'data-seconds="([\d.]+)"', of_run))
        assert ran >= 0.3
        assert 0 < waited < 30
        one = {**about(run), "conn_id": "roboto_default", "invocation_id": record.invocation_id}
        facts = viewer.get("/facts", params=one).text
        assert hook.url(record.invocation_id) in facts
        log = viewer.get("/log", params=one).json()
        assert [line["text"] for line in log["lines"] if not line["aside"]] == ["hello", "bye"]
        again = viewer.get("/log", params={**one, "cursor": log["cursor"]}).json()
        assert (again["lines"], again["cursor"], again["more"]) == ([], log["cursor"], False)

    def test_no_token_reaches_the_browser(
        self, run_dag: RunDag, viewer: TestClient, server: LocalServer, stored_connections: None
    ) -> None:
        run = run_dag("exit 3", retries=0)
        (invocation_id,) = invocations_in(viewer.get("/run", params=about(run)).text)
        one = {**about(run), "conn_id": "roboto_default", "invocation_id": invocation_id}
        for path, params in {
            "/": {}, "/rows": {}, "/run": about(run), "/run/rows": about(run), "/facts": one, "/log": one,
        }.items():  # fmt: skip
            answer = viewer.get(path, params=params)
            assert answer.status_code == 200
            for secret in (server.token, "s3cret"):
                assert secret not in answer.text
                assert secret not in str(answer.headers)

    def test_viewer_without_login_is_rejected(self, run_dag: RunDag, client: TestClient) -> None:
        run = run_dag("true")
        for path in ("/run", "/run/rows"):
            answer = client.get(path, params=about(run))
            assert answer.status_code == 401
            assert "iv_" not in answer.text

    def test_rejected_token_is_reported(
        self, run_dag: RunDag, viewer: TestClient, server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = run_dag("true")
        connect_to(server, monkeypatch, token="wr0ng-t0ken")
        assert "rejected the connection&#39;s token" in viewer.get("/run", params=about(run)).text

    def test_unavailable_server_is_reported_within_15_s(
        self,
        run_dag: RunDag,
        viewer: TestClient,
        start_server: Callable[..., LocalServer],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = run_dag("true")
        gone = start_server()
        connect_to(gone, monkeypatch)
        gone.kill()
        began = time.monotonic()
        shown = viewer.get("/run", params=about(run)).text
        while "waiting for the platform" in shown:
            shown = viewer.get("/run", params=about(run)).text
        assert "<b>roboto_default</b>: The platform is unavailable." in shown
        assert time.monotonic() - began < 15
        asked = time.monotonic()
        viewer.get("/run", params=about(run))
        assert time.monotonic() - asked < 5  # it rests

    def test_active_invocation_is_updated_until_its_end(
        self, run_dag: RunDag, viewer: TestClient, hook: RobotoHook, tmp_path: Any
    ) -> None:
        go = tmp_path / "go"
        run = run_dag(f"while ! [ -e {go} ]; do sleep 0.05; done", wait=False)
        shown = viewer.get("/run/rows", params=about(run)).text
        assert 'data-live="yes"' in shown
        (version,) = re.findall(r'data-version="(\w+)"', shown)
        go.touch()
        end = time.monotonic() + 20
        while 'data-status="Completed"' not in shown:
            assert time.monotonic() < end
            answer = viewer.get("/run/rows", params={**about(run), "seen": version})
            shown = answer.text or shown
        assert 'data-live="no"' in shown


def test_invocation_without_task_is_not_listed(run_dag: RunDag, viewer: TestClient, hook: RobotoHook) -> None:
    run = run_dag("true")
    stranger = script(hook, "true")
    assert stranger not in viewer.get("/run", params=about(run)).text
