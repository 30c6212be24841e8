"""Runs that Flyte accepted and never enqueued, what an invocation costs, and what a pod waits for."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from airflow_invocations.models import InvocationStatus, LogProcess, NewLines
from airflow_invocations.platforms import ConflictError, overdue
from airflow_invocations.platforms.flyte import FlytePlatform, tasks, watch
from airflow_invocations.platforms.flyte.client import RUNS, TASKS

from ...platforms.flyte_server import FlyteServer
from .conftest import TASK, deploy, ended, request
from .test_watch import is_end, lines_of, told_until

pytestmark = pytest.mark.anyio
S = InvocationStatus

SERVICES = (RUNS, TASKS, "flyteidl2.auth.AuthMetadataService")


def sent(server: FlyteServer) -> list[str]:
    return [method for method, _ in server._services.calls]


async def raw(server: FlyteServer, method: str, message: object) -> httpx.Response:
    """The answer to a request as it is on the wire."""
    (service,) = [each for each in SERVICES if each.rpartition(".")[2] == method.partition("/")[0]]
    content = message if isinstance(message, bytes) else json.dumps(message).encode()
    url = f"{server.endpoint}/{service}/{method.partition('/')[2]}"
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(url, content=content, headers={"content-type": "application/json"})


async def accepted_and_never_enqueued(server: FlyteServer, flyte: FlytePlatform, **parameters: object) -> str:
    server.backend.faults.forgotten_creates = 1
    record = await flyte.invoke("env.greet", request(**parameters))
    assert record.current.status is S.Queued
    return record.invocation_id


class TestAcceptedButNeverEnqueued:
    async def test_a_retry_has_it_enqueued_once(self, server: FlyteServer, flyte: FlytePlatform) -> None:
        run = await accepted_and_never_enqueued(server, flyte, who="eve")
        again = await flyte.invoke("env.greet", request(who="eve"))
        assert again.invocation_id == run
        record = await ended(flyte, run)
        assert record.current.status is S.Completed
        assert await flyte.outputs(run) == ["hello eve"]
        (row,) = server.backend.runs.values()
        assert row.starts == 1

    async def test_a_wait_has_it_enqueued_with_what_it_was_given(
        self,
        server: FlyteServer,
        flyte: FlytePlatform,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(watch, "LIST_INTERVAL", 0.05)
        monkeypatch.setattr(overdue, "FIRST_LOOK", 0.2)
        caplog.set_level("INFO")
        run = await accepted_and_never_enqueued(server, flyte, who="eve", variables={"TEAM": "maps"})
        async with flyte.watch([run], {}, None) as watching:
            told = await told_until(aiter(watching), is_end)
        assert told[-1].status is S.Completed  # type: ignore[union-attr]
        assert await flyte.outputs(run) == ["hello eve"]
        record = await flyte.get(run)
        assert record.container_parameters.env_vars is not None
        assert record.container_parameters.env_vars["TEAM"] == "maps"
        assert record.idempotency_id == "once"
        (row,) = server.backend.runs.values()
        assert row.starts == 1
        assert caplog.text.count(f"Flyte accepted run {run} without enqueueing it") == 1

    async def test_a_run_that_is_queued_for_long_is_sent_again_and_started_once(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "LIST_INTERVAL", 0.02)
        monkeypatch.setattr(overdue, "FIRST_LOOK", 0.1)
        monkeypatch.setattr(overdue, "LONGEST_PAUSE", 0.4)
        server.backend.stop_workers()
        run = (await flyte.invoke("env.greet", request())).invocation_id
        async with flyte.watch([run], {}, None) as watching:
            reading = asyncio.create_task(told_until(aiter(watching), is_end))
            while len(server.calls("CreateRun")) < 4:  # noqa: ASYNC110 - nothing of the server can be awaited
                await asyncio.sleep(0.02)
            server.do(server.backend.start_workers)
            await reading
        (row,) = server.backend.runs.values()
        assert row.starts == 1

    async def test_a_run_of_another_task_is_a_conflict_and_left_alone(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.deploy("env.other", server.backend._bodies[next(iter(server.backend._bodies))])
        run = await accepted_and_never_enqueued(server, flyte)
        calls = len(server.calls("CreateRun"))
        with pytest.raises(ConflictError, match="is a run of task"):
            await flyte.invoke("env.other", request())
        assert len(server.calls("CreateRun")) == calls
        assert (await flyte.get(run)).current.status is S.Queued

    async def test_a_lost_answer_of_a_run_that_was_not_enqueued(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.faults.lost_creates = 1
        server.backend.faults.forgotten_creates = 1
        run = (await flyte.invoke("env.greet", request())).invocation_id
        assert (await ended(flyte, run)).current.status is S.Completed


class TestCosts:
    async def test_an_invocation_of_a_known_action_is_two_requests(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        await flyte.invoke("env.greet", request("first"))
        assert sent(server) == ["GetRunDetails", "ListTasks", "GetTaskDetails", "CreateRun"]
        server._services.calls.clear()
        await flyte.invoke("env.greet", request("second"))
        assert sent(server) == ["GetRunDetails", "CreateRun"]
        server._services.calls.clear()
        await flyte.invoke(f"{TASK}@v1", request("third"))
        assert sent(server) == ["GetRunDetails", "GetTaskDetails", "CreateRun"]

    async def test_a_definition_is_kept_for_a_few_seconds_only(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "TASK_FRESH", 0.0)
        await flyte.invoke("env.greet", request("first"))
        deploy(server, version="v2")
        record = await flyte.invoke("env.greet", request("second"))
        assert record.provenance.action.digest == "v2"

    async def test_first_and_later_events_of_a_run_agree(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.stop_workers()
        at_once = await flyte.invoke("env.greet", request(variables={"TEAM": "maps"}))
        assert await flyte.get(at_once.invocation_id) == at_once


class TestPods:
    async def test_reason_for_a_waiting_pod_is_in_the_log(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "LIST_INTERVAL", 0.05)
        server.backend.stop_workers()
        run = (await flyte.invoke("env.greet", request())).invocation_id
        (row,) = server.backend.runs.values()
        lacking = "0/3 nodes are available"
        server.do(lambda: server.backend.report(row, row.phase))
        server.do(lambda: server.backend.say_of_pod(row, "FailedScheduling", lacking))
        async with flyte.watch([run], {run: None}, None) as watching:
            told = aiter(watching)
            first = await told_until(told, lambda one: isinstance(one, NewLines))
            assert lines_of(first) == [f"FailedScheduling: {lacking}"]
            assert isinstance(first[-1], NewLines)
            (line,) = first[-1].page.items
            assert line.process is LogProcess.Monitor
            cursor = first[-1].page.last_read
        async with flyte.watch([run], {run: cursor}, None) as watching:
            told = aiter(watching)
            await asyncio.sleep(0.2)  # some looks: what was told is not told again
            server.do(server.backend.start_workers)
            rest = lines_of(await told_until(told, is_end))
        assert f"FailedScheduling: {lacking}" not in rest
        assert rest[-1] == "hello ada 0"

    async def test_where_the_log_of_a_pod_that_is_gone_is_kept(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        run = (await flyte.invoke("env.greet", request())).invocation_id
        await ended(flyte, run)
        server.do(server.backend.collect_garbage)
        page = await flyte.logs(run)
        name = run.rpartition("/")[2]
        (line,) = page.items
        assert line.log == f"The pod's log is gone; Kubernetes Logs: https://logs.example/{name}-a0-0"
        again = await flyte.logs(run, page.last_read)
        assert (again.items, again.last_read) == ([], page.last_read)
        async with flyte.watch([run], {run: None}, None) as watching:
            assert lines_of(await told_until(aiter(watching), is_end)) == [line.log]


class TestTheServerAnswersAsTheRealOneDoes:
    """Each answer was read off Flyte's own services."""

    @pytest.mark.parametrize(
        ("method", "message", "status", "code"),
        [
            (
                "RunService/CreateRun",
                {"taskId": {"project": "fleet", "name": "none", "version": "v9"}},
                500,
                "unknown",
            ),
            ("RunService/CreateRun", {}, 500, "internal"),
            ("RunService/ListRuns", {"request": {"token": "x"}}, 400, "invalid_argument"),
            ("TaskService/ListTasks", {"request": {"token": "x"}}, 400, "invalid_argument"),
            ("RunService/ListRuns", {"request": {"limit": 201}}, 400, "invalid_argument"),
            ("RunService/ListRuns", b"no JSON", 400, "invalid_argument"),
            ("RunService/ListRuns", {"unknown": 1}, 200, None),
        ],
    )
    async def test_errors(
        self,
        server: FlyteServer,
        flyte: FlytePlatform,
        method: str,
        message: object,
        status: int,
        code: str | None,
    ) -> None:
        await flyte.invoke("env.greet", request())
        answer = await raw(server, method, message)
        assert answer.status_code == status
        assert answer.json().get("code") == code
        if status == 200:
            assert len(answer.json()["runs"]) == 1  # without a scope: everything

    async def test_lists_are_sorted_in_the_direction_that_was_asked_for(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        runs = [(await flyte.invoke("env.greet", request(key))).invocation_id for key in "abc"]
        names = [run.rpartition("/")[2] for run in runs]
        for direction, wanted in (("ASCENDING", names), ("DESCENDING", names[::-1])):
            sort = {"sortByFields": [{"key": "created_at", "direction": direction}]}
            listed = (await raw(server, "RunService/ListRuns", {"request": sort})).json()["runs"]
            assert [run["action"]["id"]["run"]["name"] for run in listed] == wanted

    async def test_a_full_page_of_tasks_has_a_token_also_where_nothing_follows(
        self, server: FlyteServer
    ) -> None:
        here = {"projectId": {"name": "fleet", "domain": "development"}, "request": {"limit": 1}}
        page = (await raw(server, "TaskService/ListTasks", here)).json()
        assert page["token"] == "1"
        assert page["metadata"] == {"total": 1, "filteredTotal": 1}

    async def test_an_abort_after_the_end_overwrites_the_run_and_not_its_attempt(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        run = (await flyte.invoke("env.greet", request())).invocation_id
        await ended(flyte, run)
        (row,) = server.backend.runs.values()
        server.do(lambda: server.backend.abort(row, "late"))
        name = {"runId": {"project": "fleet", "domain": "development", "name": run.rpartition("/")[2]}}
        action = (await raw(server, "RunService/GetRunDetails", name)).json()["details"]["action"]
        assert action["status"]["phase"] == "ACTION_PHASE_ABORTED"
        assert action["attempts"][-1]["phase"] == "ACTION_PHASE_SUCCEEDED"
        assert await flyte.outputs(run) is None

    async def test_records_have_what_the_real_ones_have(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        run = (await flyte.invoke("env.greet", request())).invocation_id
        await ended(flyte, run)
        name = {"runId": {"project": "fleet", "domain": "development", "name": run.rpartition("/")[2]}}
        details = (await raw(server, "RunService/GetRunDetails", name)).json()["details"]
        action = details["action"]
        assert {"durationMs", "endTime"} <= action["status"].keys()
        assert "funtionName" in action["metadata"]
        (attempt,) = action["attempts"]
        assert {"endTime", "cluster", "clusterEvents", "logContext", "logInfo", "outputs"} <= attempt.keys()
        assert all("endTime" in step for step in attempt["phaseTransitions"])
        assert "rawDataStorage" in details["runSpec"]

    async def test_without_a_token_endpoint_there_is_no_metadata(self, server: FlyteServer) -> None:
        assert (await raw(server, "AuthMetadataService/GetOAuth2Metadata", {})).status_code == 501
        key = (await raw(server, "AuthMetadataService/GetPublicClientConfig", {})).json()
        assert key["authorizationMetadataKey"] == "authorization"
