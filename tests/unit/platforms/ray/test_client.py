"""Invoke, look up and stop jobs against a server that answers as Ray 2.60 does, or as it doesn't."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_invocations.models import InvocationRequest, InvocationSource, InvocationStatus, StatusSnapshot
from airflow_invocations.platforms import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.platforms.ray import client as client_module
from airflow_invocations.platforms.ray.platform import RayPlatform
from airflow_invocations.platforms.ray.settings import RaySettings, submission_id_of

from ....support.scripted_server import Answer, Script, answer, hang_up

pytestmark = pytest.mark.anyio

ONCE = "once"
ID = submission_id_of(ONCE)
VERSION = answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "c", "session_name": "s"})
TAKEN = answer(200, {"job_id": ID, "submission_id": ID})
STOPPED = answer(200, {"stopped": True})


def unknown(name: str = ID) -> Answer:
    return answer(404, f"Job {name} does not exist".encode())


def trouble(status: int, error: str) -> Answer:
    """The dashboard's 500, with the agent's status and traceback in it."""
    text = (
        "Traceback (most recent call last):\n  File ...\nRuntimeError: Request failed with status code "
        f"{status}: Traceback (most recent call last):\n  File ...\n{error}\n.\n"
    )
    return answer(500, text.encode())


EXISTS = trouble(400, f"ValueError: Job with submission_id {ID} already exists.")


def job(status: str = "PENDING", **fields: Any) -> Answer:
    metadata = {"airflow_action": "hello", "airflow_idempotency_id": ONCE}
    return answer(
        200, {"submission_id": ID, "status": status, "start_time": 1, "metadata": metadata, **fields}
    )


REQUEST = InvocationRequest(invocation_source=InvocationSource.Manual, idempotency_id=ONCE)


@pytest.fixture
def platform(script: Script, monkeypatch: pytest.MonkeyPatch) -> RayPlatform:
    monkeypatch.setattr("airflow_invocations.platforms.retry.retry_pause", lambda *_: 0.0)
    actions = {"hello": {"entrypoint": "echo hello"}}
    return RayPlatform(RaySettings(script.endpoint, "t0ken", actions, timeout=5.0))


def sent(script: Script) -> list[str]:
    return [f"{one.method} {one.path}" for one in script.seen]


LOOK_UP = f"GET /api/jobs/{ID}"
SUBMIT = "POST /api/jobs/"
#: A queued job may have been cancelled, which another job says; that one isn't there.
CANCELLED = f"GET /api/jobs/{ID}-cancel"
NOT_CANCELLED = (unknown(), VERSION)
WAYS = ["GET /api/version", LOOK_UP, "GET /api/version"]


async def test_first_request_submits_a_job(script: Script, platform: RayPlatform) -> None:
    script.answers = [VERSION, unknown(), VERSION, answer(404), TAKEN, job(), *NOT_CANCELLED]
    async with platform:
        record = await platform.invoke("hello", REQUEST)
    assert (record.invocation_id, record.current.status) == (ID, InvocationStatus.Queued)
    assert sent(script)[:6] == [*WAYS, "GET /api/cluster_status", SUBMIT, LOOK_UP]
    assert script.seen[4].body["submission_id"] == ID
    assert {one.headers["authorization"] for one in script.seen} == {"Bearer t0ken"}


async def test_repeated_request_adopts_the_job(script: Script, platform: RayPlatform) -> None:
    script.answers = [VERSION, job("PENDING"), *NOT_CANCELLED]
    async with platform:
        record = await platform.invoke("hello", REQUEST)
    assert record.invocation_id == ID
    assert SUBMIT not in sent(script)


@pytest.mark.parametrize("lost", [EXISTS, hang_up, answer(502, b"bad gateway"), trouble(500, "OSError: no")])
async def test_job_that_is_there_after_a_lost_or_rejected_request_is_adopted(
    script: Script, platform: RayPlatform, lost: Answer
) -> None:
    script.answers = [VERSION, unknown(), VERSION, answer(404), lost, job(), *NOT_CANCELLED]
    async with platform:
        record = await platform.invoke("hello", REQUEST)
    assert record.invocation_id == ID
    assert sent(script).count(SUBMIT) == 1


async def test_request_is_sent_again_while_the_head_has_no_agent(
    script: Script, platform: RayPlatform
) -> None:
    no_agent = answer(500, b"No available agent to submit job, please try again later.")
    script.answers = [
        *(VERSION, unknown(), VERSION, answer(404)),
        *(no_agent, unknown(), VERSION),
        *(TAKEN, job("RUNNING"), answer(500)),
    ]
    async with platform:
        record = await platform.invoke("hello", REQUEST)
    assert record.current.status is InvocationStatus.Processing
    assert sent(script).count(SUBMIT) == 2


async def test_job_that_ray_rejects_is_an_error_with_its_reason(
    script: Script, platform: RayPlatform
) -> None:
    rejected = trouble(400, "ValueError: runtime_env['pip'] must be a list")
    script.answers = [VERSION, unknown(), VERSION, answer(404), rejected, unknown(), VERSION]
    async with platform:
        with pytest.raises(
            InvalidRequestError, match=r"400: ValueError: runtime_env\['pip'\] must be a list"
        ):
            await platform.invoke("hello", REQUEST)
    assert sent(script).count(SUBMIT) == 1


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        (
            {"metadata": None, "entrypoint": "python theirs.py"},
            "belongs to another request; .* 'python theirs.py'",
        ),
        (
            {"metadata": {"airflow_action": "hello", "airflow_idempotency_id": "2"}},
            "belongs to another request",
        ),
        ({"metadata": {"airflow_action": "other", "airflow_idempotency_id": ONCE}}, "one of action 'other'"),
    ],
)
async def test_id_that_another_job_has_is_a_conflict_that_names_it(
    script: Script, platform: RayPlatform, fields: dict[str, Any], hint: str
) -> None:
    script.answers = [VERSION, job("RUNNING", **fields)]
    async with platform:
        with pytest.raises(ConflictError, match=f"job {ID}, .*{hint}"):
            await platform.invoke("hello", REQUEST)


@pytest.mark.parametrize(
    ("answers", "kind", "hint"),
    [
        (
            [answer(200, {"version": "5", "ray_version": "9.9"})],
            UnsupportedError,
            "version '5' of the Jobs API",
        ),
        ([answer(200, {"version": "1.0"})], UnavailableError, "not as Ray's dashboard does"),
        ([answer(200, b"<html>")], UnavailableError, "not as Ray's dashboard does"),
        ([answer(404)], NotFoundError, "not as Ray's dashboard does"),
        ([answer(302, location="https://login")], InvalidRequestError, "not as Ray's dashboard does"),
        ([answer(401, b"no token")], UnauthorizedError, "401: no token"),
        ([VERSION, answer(403, b"wrong token")], UnauthorizedError, "403: wrong token"),
        ([hang_up], UnavailableError, "can't be reached"),
    ],
)
async def test_what_is_no_ray_head_or_rejects_the_token_is_named(
    script: Script, platform: RayPlatform, answers: list[Answer], kind: type[PlatformError], hint: str
) -> None:
    for is_check in (True, False):
        script.answers = [*answers]
        async with RayPlatform(platform._settings) as opened:
            with pytest.raises(kind) as raised:
                await (opened.check() if is_check else opened.invoke("hello", REQUEST))
        assert hint in str(raised.value)
        assert script.endpoint in str(raised.value)
        assert "t0ken" not in str(raised.value)
    assert SUBMIT not in sent(script)


async def test_check_names_version_and_catalogue(script: Script, platform: RayPlatform) -> None:
    script.answers = [VERSION, unknown(), VERSION]
    async with platform:
        said = await platform.check()
    assert said == f"{script.endpoint} responds as Ray 2.60.0; the catalogue has 1 action"


async def test_404_of_a_proxy_is_an_outage_and_rays_own_is_not(
    script: Script, platform: RayPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ATTEMPTS", 1)
    async with platform:
        script.answers = [answer(404, b"no backend"), answer(503, b"no backend")]
        with pytest.raises(UnavailableError):
            await platform.get(ID)
        script.answers = [unknown(), VERSION]
        with pytest.raises(NotFoundError, match=ID):
            await platform.get(ID)


async def test_many_statuses_are_one_request(script: Script, platform: RayPlatform) -> None:
    jobs = [
        {"submission_id": "a", "status": "RUNNING", "start_time": 1, "driver_node_id": "n"},
        {"submission_id": "b", "status": "PENDING", "start_time": 1},
        {"submission_id": "b-cancel", "status": "SUCCEEDED", "start_time": 2},
        {"submission_id": None, "status": "RUNNING", "type": "DRIVER"},
    ]
    script.answers = [answer(200, jobs)]
    async with platform:
        found = await platform.statuses([*"abcde", *(f"no-{number}" for number in range(995))])
    assert set(found) == {
        StatusSnapshot("a", InvocationStatus.Processing),
        StatusSnapshot("b", InvocationStatus.Cancelled),
    }
    assert sent(script) == ["GET /api/jobs/"]


async def test_list_that_is_too_large_is_replaced_by_single_requests(
    script: Script, platform: RayPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_invocations.platforms.http.MAX_ANSWER", 500)
    monkeypatch.setattr(client_module, "ATTEMPTS", 1)
    script.answers = [answer(200, ["x" * 1000]), job("RUNNING")]
    async with platform:
        found = await platform.statuses(list("abcde"))
    assert len(found) == 5
    assert len(script.seen) == 6


async def test_active_jobs_of_any_airflow(script: Script, platform: RayPlatform) -> None:
    ours = {"airflow_action": "a", "airflow_source_id": "airflow:dags/d/runs/r/tasks/t?try_number=1"}
    theirs = {"airflow_action": "a", "airflow_source_id": "ada"}
    jobs = [
        {"submission_id": name, "status": status, "start_time": 1, "metadata": metadata}
        for name, status, metadata in [
            ("a", "RUNNING", ours),
            ("b", "PENDING", ours),
            ("b-cancel", "RUNNING", {"airflow_cancels": "b"}),
            ("c", "FAILED", ours),
            ("d", "RUNNING", theirs),
            ("e", "PENDING", ours),
        ]
    ]
    script.answers = [answer(200, jobs)]
    async with platform:
        assert [one.invocation_id for one in await platform.find_active(10)] == ["a", "e"]
        assert len(await platform.find_active(1)) == 1


async def test_queued_job_is_stopped_and_its_cancel_recorded(script: Script, platform: RayPlatform) -> None:
    script.answers = [
        *(job("PENDING"), *NOT_CANCELLED, STOPPED, job("PENDING")),
        *(TAKEN, job("PENDING")),
    ]
    async with platform:
        await platform.cancel(ID)
    posted = [(one.path, one.body) for one in script.seen if one.method == "POST"]
    assert [path for path, _ in posted] == [f"/api/jobs/{ID}/stop", "/api/jobs/"]
    assert posted[1][1] == {
        "submission_id": f"{ID}-cancel",
        "entrypoint": "true",
        "metadata": {"airflow_cancels": ID},
    }


async def test_queued_job_without_a_supervisor_is_not_called_cancelled(
    script: Script, platform: RayPlatform
) -> None:
    script.answers = [job("PENDING"), *NOT_CANCELLED, answer(200, {"stopped": False}), job("PENDING")]
    async with platform:
        with pytest.raises(UnavailableError, match="has no supervisor yet"):
            await platform.cancel(ID)
    assert SUBMIT not in sent(script)


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
async def test_ended_job_is_not_stopped(script: Script, platform: RayPlatform, status: str) -> None:
    script.answers = [job(status, driver_node_id="n")]
    async with platform:
        await platform.cancel(ID)
    assert sent(script) == [LOOK_UP]
