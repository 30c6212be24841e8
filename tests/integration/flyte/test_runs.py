"""Runs against a server that behaves as Flyte's own backend does: once, honestly, and never over an end."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import pytest
from connectrpc.code import Code
from flyteidl2.common import phase_pb2
from flyteidl2.workflow import run_definition_pb2

from airflow_invocations.exceptions import InvocationTimedOutError
from airflow_invocations.models import (
    ContainerParameters,
    DagRunProvenance,
    InvocationSource,
    InvocationStatus,
    StatusSnapshot,
)
from airflow_invocations.operators import InvokeActionOperator, invoke_action
from airflow_invocations.platforms import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.platforms.flyte import FlytePlatform, FlyteSettings, platform, runs
from airflow_invocations.tasks.idempotency import invoke_idempotent
from airflow_invocations.waiters import cancel_and_confirm

from ...platforms.flyte_server import DOMAIN, PROJECT, FlyteServer
from ...support.waiting import until_async
from ..airflow.conftest import Task, run_deferred
from .conftest import TASK, deploy, ended, request, running, settings

pytestmark = pytest.mark.anyio
S = InvocationStatus


class TestInvoking:
    async def test_it_runs_with_what_was_asked_and_what_the_task_has_by_default(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        invoked = await flyte.invoke("env.greet", request(count="2"))
        record = await ended(flyte, invoked.invocation_id)
        assert record.current.status is S.Completed
        assert await flyte.outputs(record.invocation_id) == ["hello ada"]
        (created,) = server.calls("CreateRun")
        # Inline: the server writes the inputs, and fills in the defaults.
        assert [one.name for one in created.inputs.literals] == ["who", "count"]
        (run,) = server.backend.runs.values()
        assert [one.name for one in run.inputs.literals] == ["who", "count", "trouble"]
        assert record.provenance.action.name == TASK
        assert record.provenance.action.digest == "v1"
        assert record.provenance.executable.container_image_uri == "registry.example/fleet:1"
        steps = [(step.status, step.platform_status) for step in record.status]
        assert steps == [
            (S.Queued, "QUEUED"),
            (S.Scheduled, "INITIALIZING"),
            (S.Processing, "RUNNING"),
            (S.Completed, "SUCCEEDED"),
        ]

    async def test_the_newest_version_is_taken_unless_one_is_named(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        deploy(server, version="v2")
        newest = await flyte.invoke("env.greet", request("a"))
        assert newest.provenance.action.digest == "v2"
        named = await flyte.invoke("env.greet@v1", request("b"))
        assert named.provenance.action.digest == "v1"
        assert (await flyte.get_action(f"{DOMAIN}/env.greet")).digest == "v2"

    async def test_an_action_says_what_it_takes(self, flyte: FlytePlatform) -> None:
        action = await flyte.get_action(TASK)
        assert action.name == TASK
        declared = {one.name: (one.required, one.default, one.description) for one in action.parameters}
        assert declared == {
            "who": (True, None, "string"),
            "count": (False, "1", "integer"),
            "trouble": (False, "none", "string"),
        }

    @pytest.mark.parametrize("action", ["env.nothing", "env.greet@v9", "bags/development/env.greet"])
    async def test_a_task_that_is_not_there(self, flyte: FlytePlatform, action: str) -> None:
        for ask in (flyte.get_action(action), flyte.invoke(action, request())):
            with pytest.raises(NotFoundError, match=r"there is no task .*env\."):
                await ask

    async def test_mismatched_parameters_are_rejected_before_a_request(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        with pytest.raises(InvalidRequestError) as rejected:
            await flyte.invoke("env.greet", request(who=7, count="two", where="here"))
        for said in (
            "'who': expected: string, got: int 7",
            "'count': expected: integer",
            "'where' is not an input",
        ):
            assert said in str(rejected.value)
        assert server.calls("CreateRun") == []

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"timeout": 5}, "'timeout'"),
            ({"input_data": ["*.bag"]}, "'input_data'"),
            ({"container_parameter_overrides": ContainerParameters(workdir="/")}, "'workdir'"),
            ({"container_parameter_overrides": ContainerParameters(command=["a"])}, "'command'"),
        ],
    )
    async def test_unsupported_arguments_are_rejected_before_a_request(
        self, server: FlyteServer, flyte: FlytePlatform, changes: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(UnsupportedError, match=said):
            await flyte.invoke("env.greet", request().model_copy(update=changes))
        assert server.calls("GetRunDetails") == server.calls("CreateRun") == []


class TestProvenance:
    async def test_it_is_kept_as_flyte_can_keep_it_and_read_back(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        asked_for = {
            "map_index": 4,
            "logical_date": datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC),
            "owner": "robots",
            "base_url": "https://airflow.example/team",
        }
        asked = request(variables={"LEVEL": "3"}, asked_by=asked_for)
        record = await flyte.invoke("env.greet", asked)
        asked_by = asked.provenance
        assert asked_by is not None
        assert record.provenance.source == asked_by.source
        assert record.idempotency_id == "once"
        assert DagRunProvenance.from_environment(record.container_parameters.env_vars) == asked_by
        (run,) = server.backend.runs.values()
        annotations = dict(run.spec.annotations.values)
        assert json.loads(annotations["airflow_provenance"])["triggered_by"] == "ada"
        told = {name.removeprefix("airflow_"): value for name, value in annotations.items()}
        assert told["run_id"] == "manual__2026-01-31T12:00:00+00:00"
        assert [told[name] for name in ("dag_id", "task_id", "map_index", "try_number")] == [
            "fleet", "ask", "4", "1",
        ]  # fmt: skip
        assert [told[name] for name in ("logical_date", "owner", "base_url")] == [
            "2026-01-31T00:00:00+00:00", "robots", "https://airflow.example/team",
        ]  # fmt: skip
        # Kubernetes has no ':' and '+' in a label; with one, the run would never start.
        assert dict(run.spec.labels.values) == {
            "airflow_dag_id": "fleet",
            "airflow_task_id": "ask",
            "airflow_map_index": "4",
            "airflow_try_number": "1",
            "airflow_owner": "robots",
        }
        variables = {one.key: one.value for one in run.spec.envs.values}
        assert variables["LEVEL"] == "3"
        assert variables["AIRFLOW_CTX_DAG_RUN_ID"] == asked_by.run_id

    async def test_whatever_an_airflow_calls_its_things_the_run_starts(self, flyte: FlytePlatform) -> None:
        names = {"dag_id": "fleet.ä/ß", "run_id": "x" * 250, "task_id": "-a.b-", "try_number": 2}
        record = await flyte.invoke("env.greet", request(asked_by=names))
        assert (await ended(flyte, record.invocation_id)).current.status is S.Completed

    async def test_a_run_that_nobody_of_ours_asked_for(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        plain = request().model_copy(
            update={
                "container_parameter_overrides": None,
                "invocation_source": InvocationSource.Trigger,
                "invocation_source_id": "cron",
            }
        )
        record = await flyte.invoke("env.greet", plain)
        assert record.provenance.source.source_id == "cron"
        assert record.provenance.source.source_type is InvocationSource.Trigger
        (run,) = server.backend.runs.values()
        run.spec.Clear()
        foreign = await flyte.get(record.invocation_id)
        assert foreign.provenance.source.source_id == ""
        assert foreign.idempotency_id is None

    async def test_find_looks_in_all_projects_and_reads_only_what_may_be_meant(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deploy(server, project="bags")
        monkeypatch.setattr(runs, "PAGE", 2)
        mine = [
            await flyte.invoke("env.greet", request(f"mine {number}", asked_by={"map_index": number}))
            for number in range(5)
        ]
        mine.append(await flyte.invoke("bags/development/env.greet", request("elsewhere")))
        for number in range(20):
            await flyte.invoke("env.greet", request(f"other {number}", asked_by={"dag_id": "other"}))
        before = len(server.calls("GetRunDetails"))
        found = await flyte.find("fleet", "manual__2026-01-31T12:00:00+00:00", None, None)
        assert [one.invocation_id for one in found] == [one.invocation_id for one in reversed(mine)]
        assert len(server.calls("GetRunDetails")) - before == len(mine)
        (third,) = await flyte.find("fleet", "manual__2026-01-31T12:00:00+00:00", "ask", 3)
        assert third.invocation_id == mine[3].invocation_id
        assert len(await flyte.find("fleet", None, None, None)) == 6
        assert await flyte.find("fleet", "another run", None, None) == []


class TestOnce:
    async def test_by_twenty_at_once_one_pod_starts(self, server: FlyteServer, flyte: FlytePlatform) -> None:
        asked = request(trouble="hangs")
        records = await asyncio.gather(*(flyte.invoke("env.greet", asked) for _ in range(20)))
        assert len({record.invocation_id for record in records}) == 1
        (run,) = server.backend.runs.values()
        assert run.starts == 1

    async def test_again_after_its_pod_is_gone_it_is_not_even_asked_for(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        first = await flyte.invoke("env.greet", request())
        await ended(flyte, first.invocation_id)
        server.backend.collect_garbage()
        again = await flyte.invoke("env.greet", request())
        assert (again.invocation_id, again.current.status) == (first.invocation_id, S.Completed)
        assert len(server.calls("CreateRun")) == 1
        (run,) = server.backend.runs.values()
        assert run.starts == 1

    async def test_an_answer_that_is_lost_is_no_second_run(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.faults.lost_creates = 1
        record = await flyte.invoke("env.greet", request(trouble="hangs"))
        assert not record.current.status.is_terminal
        assert len(server.calls("CreateRun")) == 1
        (run,) = server.backend.runs.values()
        assert run.starts == 1

    async def test_a_database_that_fails_is_not_taken_for_absence(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        first = await flyte.invoke("env.greet", request())
        server.backend.faults.failing_reads = 3
        again = await flyte.invoke("env.greet", request())
        assert again.invocation_id == first.invocation_id
        server.backend.faults.failing_reads = 1000
        for ask in (flyte.invoke("env.greet", request("another")), flyte.get(first.invocation_id)):
            with pytest.raises(UnavailableError, match="host not found"):
                await ask
        assert len(server.calls("CreateRun")) == 1

    async def test_a_server_that_says_it_exists_already_is_asked_for_it(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.backend.faults.says_already_exists = True
        first = await flyte.invoke("env.greet", request())
        details = flyte._runs.details_if_any
        looks = 0

        async def too_early(run: Any) -> Any:
            # Somebody else creates it between the look and the request.
            nonlocal looks
            looks += 1
            return None if looks == 1 else await details(run)

        monkeypatch.setattr(flyte._runs, "details_if_any", too_early)
        again = await flyte.invoke("env.greet", request())
        assert again.invocation_id == first.invocation_id
        assert len(server.calls("CreateRun")) == 2

    async def test_run_of_another_task_is_a_conflict(self, server: FlyteServer, flyte: FlytePlatform) -> None:
        await flyte.invoke("env.greet", request())
        with pytest.raises(ConflictError, match=r"is a run of task fleet/development/env\.greet"):
            await flyte.invoke("env.other", request())

    async def test_a_retry_goes_on_with_what_an_earlier_try_began_and_anew_after_a_failure(
        self, flyte: FlytePlatform
    ) -> None:
        ids = ["first", "second"]
        failed = await invoke_idempotent(flyte, "env.greet", request(None, trouble="fails"), ids, 1)
        await ended(flyte, failed.invocation_id)
        retry = request(None, asked_by={"try_number": 2})
        anew = await invoke_idempotent(flyte, "env.greet", retry, ids, 2)
        assert anew.invocation_id != failed.invocation_id
        same = await invoke_idempotent(flyte, "env.greet", retry, ids, 2)
        assert same.invocation_id == anew.invocation_id

    async def test_active_runs_are_found_by_idempotency_ids(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        deploy(server, project="bags")
        await ended(flyte, (await flyte.invoke("env.greet", request("a"))).invocation_id)
        here = await flyte.invoke("env.greet", request("b", trouble="hangs"))
        there = await flyte.invoke("bags/development/env.greet", request("c", trouble="hangs"))
        for one in (here, there):
            await running(flyte, one.invocation_id)
        found = await flyte.active(["a", "b", "c", "d"])
        assert found == [StatusSnapshot(one.invocation_id, S.Processing) for one in (here, there)]

    async def test_run_that_is_accepted_and_never_starts_stays_queued(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        server.backend.faults.enqueue_fails = True
        record = await flyte.invoke("env.greet", request())
        assert record.current.status is S.Queued
        server.backend.faults.enqueue_fails = False
        # Asked again it isn't created again, which would start it; a queue_timeout sees to it.
        again = await flyte.invoke("env.greet", request())
        assert again.current.status is S.Queued
        confirmed = await cancel_and_confirm(flyte, record.invocation_id, 5.0)
        assert confirmed is not None
        assert confirmed.current.status is S.Cancelled

    @pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "deferred"])
    async def test_a_queue_timeout_sees_to_what_never_starts(
        self, server: FlyteServer, deferrable: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = {"conn_type": "flyte", "host": server.endpoint}
        monkeypatch.setenv("AIRFLOW_CONN_FLYTE_DEFAULT", json.dumps(said))
        monkeypatch.setattr(invoke_action, "SHORTEST_DEFERRAL", 0.0)
        server.backend.faults.enqueue_fails = True
        operator = InvokeActionOperator(
            task_id="ask",
            action=TASK,
            conn_id="flyte_default",
            parameters={"who": "ada"},
            defer_after=0,
            queue_timeout=1,
            deferrable=deferrable,
        )

        async def run() -> None:
            if deferrable:
                await run_deferred(operator, Task())
            else:
                await asyncio.to_thread(operator.execute, Task().context)

        with pytest.raises(
            InvocationTimedOutError,
            match=r"still Queued after [0-9.]+ s \(queue_timeout\)",
        ):
            await run()
        (row,) = server.backend.runs.values()
        assert row.phase == phase_pb2.ACTION_PHASE_ABORTED
        assert row.starts == 0


class TestEnds:
    async def test_a_failure_says_why(self, flyte: FlytePlatform) -> None:
        failed = await flyte.invoke("env.greet", request(trouble="fails"))
        record = await ended(flyte, failed.invocation_id)
        assert (record.current.status, record.current.platform_status) == (S.Failed, "FAILED")
        assert record.current.detail == "ValueError: no such topic"
        assert await flyte.outputs(failed.invocation_id) is None

    async def test_an_error_that_comes_late_is_waited_for_and_one_that_never_comes_is_not(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.backend.faults.late_events = True
        failed = await flyte.invoke("env.greet", request(trouble="fails"))

        async def has_ended() -> bool:
            return bool(await flyte.ended([failed.invocation_id]))

        await until_async(has_ended)
        monkeypatch.setattr(platform, "WHY_PAUSE", 0.01)
        record = await flyte.get(failed.invocation_id)
        assert (record.current.status, record.current.detail) == (S.Failed, None)
        monkeypatch.setattr(platform, "WHY_PAUSE", 0.5)
        before = len(server.calls("GetRunDetails"))
        asking = asyncio.create_task(flyte.get(failed.invocation_id))

        async def has_asked() -> bool:
            return len(server.calls("GetRunDetails")) > before

        await until_async(has_asked)
        server.do(server.backend.send_late_events)
        assert (await asking).current.detail == "ValueError: no such topic"

    async def test_an_attempt_that_failed_is_history(self, flyte: FlytePlatform) -> None:
        invoked = await flyte.invoke("env.greet", request(trouble="once"))
        record = await ended(flyte, invoked.invocation_id)
        assert record.current.status is S.Completed
        failures = [step.detail for step in record.status if step.status is S.Failed]
        assert failures == ["try again"]

    async def test_a_cancel_says_for_whom_and_is_confirmed(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        invoked = await flyte.invoke("env.greet", request(trouble="hangs"))
        await running(flyte, invoked.invocation_id)
        record = await cancel_and_confirm(flyte, invoked.invocation_id, 5.0)
        assert record is not None
        assert (record.current.status, record.current.platform_status) == (S.Cancelled, "ABORTED")
        reason = "cancelled from Airflow: DAG fleet, run manual__2026-01-31T12:00:00+00:00, task ask"
        assert record.current.detail == reason
        (aborted,) = server.calls("AbortRun")
        assert aborted.reason == reason

    @pytest.mark.parametrize("trouble", ["none", "fails"])
    async def test_a_cancel_never_goes_over_an_end(
        self, server: FlyteServer, flyte: FlytePlatform, trouble: str
    ) -> None:
        invoked = await flyte.invoke("env.greet", request(trouble=trouble))
        before = await ended(flyte, invoked.invocation_id)
        await flyte.cancel(invoked.invocation_id)
        assert await cancel_and_confirm(flyte, invoked.invocation_id, 5.0) == before
        assert server.calls("AbortRun") == []

    async def test_unknown_run_cannot_be_cancelled(self, flyte: FlytePlatform) -> None:
        for invocation_id in ("garbage", f"{PROJECT}/{DOMAIN}/no-such-run"):
            with pytest.raises(NotFoundError):
                await flyte.cancel(invocation_id)
            with pytest.raises(NotFoundError):
                await flyte.get(invocation_id)

    async def test_begun_zero_times_is_begun_once(self, server: FlyteServer, flyte: FlytePlatform) -> None:
        server.backend.faults.attempts_are_zero = True
        invoked = await flyte.invoke("env.greet", request())
        await ended(flyte, invoked.invocation_id)
        page = await flyte.logs(invoked.invocation_id)
        assert [line.log for line in page.items] == ["hello ada 0"]

    async def test_a_phase_of_tomorrow_does_no_harm(self, server: FlyteServer, flyte: FlytePlatform) -> None:
        invoked = await flyte.invoke("env.greet", request(trouble="hangs"))
        server.backend.faults.unknown_phase = 77
        record = await flyte.get(invoked.invocation_id)
        assert record.current.platform_status == "unknown phase 77"
        (snapshot,) = await flyte.statuses([invoked.invocation_id])
        assert not snapshot.status.is_terminal


class TestBatches:
    async def test_a_single_run_several_and_more_than_a_page(
        self, server: FlyteServer, flyte: FlytePlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deploy(server, project="bags")
        ids = [
            (await flyte.invoke("env.greet", request(f"{n}", trouble="hangs"))).invocation_id
            for n in range(5)
        ]
        elsewhere = await flyte.invoke("bags/development/env.greet", request("there", trouble="fails"))
        await ended(flyte, elsewhere.invocation_id)
        asked = [*ids, elsewhere.invocation_id, f"{PROJECT}/{DOMAIN}/no-such-run", "garbage"]
        monkeypatch.setattr(runs, "PAGE", 2)
        known = await flyte.statuses(asked)
        assert {one.invocation_id for one in known} == {*ids, elsewhere.invocation_id}
        assert await flyte.ended(asked) == [StatusSnapshot(elsewhere.invocation_id, S.Failed)]
        assert len(await flyte.statuses(ids[:1])) == 1
        assert await flyte.statuses([]) == await flyte.ended([]) == []

    async def test_a_thousand_are_asked_for_in_five_requests(
        self, server: FlyteServer, flyte: FlytePlatform
    ) -> None:
        asked = [f"{PROJECT}/{DOMAIN}/r{number}" for number in range(1000)]
        assert await flyte.statuses(asked) == []
        assert len(server.calls("ListRuns")) == 5


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (Code.UNAVAILABLE, UnavailableError),
            (Code.DEADLINE_EXCEEDED, UnavailableError),
            (Code.INTERNAL, UnavailableError),
            (Code.UNKNOWN, UnavailableError),
            (Code.CANCELED, UnavailableError),
            (Code.ABORTED, UnavailableError),
            (Code.RESOURCE_EXHAUSTED, RateLimitedError),
            (Code.UNAUTHENTICATED, UnauthorizedError),
            (Code.PERMISSION_DENIED, UnauthorizedError),
            (Code.INVALID_ARGUMENT, InvalidRequestError),
            (Code.FAILED_PRECONDITION, InvalidRequestError),
            (Code.OUT_OF_RANGE, InvalidRequestError),
            (Code.ALREADY_EXISTS, ConflictError),
            (Code.UNIMPLEMENTED, UnsupportedError),
            (Code.DATA_LOSS, PermanentError),
        ],
    )
    async def test_connects_codes_are_our_errors(
        self, server: FlyteServer, flyte: FlytePlatform, code: Code, kind: type[PlatformError]
    ) -> None:
        server.backend.faults.answers = code
        with pytest.raises(PlatformError, match="so it was told") as raised:
            await flyte.check()
        assert type(raised.value) is kind
        assert len(server.calls("ListRuns")) == (5 if issubclass(kind, TransientError) else 1)
        stream = flyte._connect.stream(
            "flyteidl2.workflow.RunService/WatchRuns", {"projectId": {}}, silence=5.0
        )
        with pytest.raises(kind, match="so it was told"):
            async with stream as answers:
                await anext(answers)

    async def test_check_describes_the_server(self, server: FlyteServer, flyte: FlytePlatform) -> None:
        said = await flyte.check()
        assert said == f"{server.endpoint} responds as Flyte 2; actions are those of fleet/development"

    async def test_unreachable_server_is_named_in_the_error(self) -> None:
        async with FlytePlatform(FlyteSettings("http://127.0.0.1:9")) as flyte:
            with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9 can't be reached"):
                await flyte.check()


@pytest.mark.parametrize(
    ("endpoint", "base", "url"),
    [
        ("https://f.example", None, "https://f.example/v2/domain/d/project/p/runs/r"),
        ("http://localhost:8090", None, "http://localhost:8080/v2/domain/d/project/p/runs/r"),
        (
            "https://f.example",
            "https://ui.example/console/",
            "https://ui.example/console/domain/d/project/p/runs/r",
        ),
        ("https://f.example", "javascript:alert(1)//", ""),
    ],
)
def test_the_link_to_a_run(endpoint: str, base: str | None, url: str) -> None:
    flyte = FlytePlatform(FlyteSettings(endpoint, link_base=base))
    assert flyte.url("p/d/r") == url
    assert flyte.logs_url("p/d/r") == url
    assert flyte.url("garbage") == ""


async def test_the_organisation_is_named_where_there_is_one(server: FlyteServer) -> None:
    async with FlytePlatform(settings(server, org="acme")) as flyte:
        record = await flyte.invoke("env.greet", request())
        await flyte.statuses([record.invocation_id])
        await flyte.find("fleet", None, None, None)
    assert record.org_id == "acme"
    (created,) = server.calls("CreateRun")
    assert (created.run_id.org, created.task_id.org) == ("acme", "acme")
    scopes = [one.project_id.organization or one.org for one in server.calls("ListRuns")]
    assert scopes == ["acme", "acme"]
    assert created.WhichOneof("task") == "task_id"
    assert created.source == run_definition_pb2.RUN_SOURCE_UNSPECIFIED
