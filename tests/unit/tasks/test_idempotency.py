"""Exactly once: what the identity of a task's work depends on, and the walk to its invocation."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from airflow_invocations.models import (
    DagRunProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
    InvocationStatus,
)
from airflow_invocations.platforms import (
    Capabilities,
    ConflictError,
    RepeatedIdError,
    RequestConflictError,
    UnavailableError,
)
from airflow_invocations.tasks.idempotency import (
    TaskInvocationKey,
    invoke_idempotent,
    started_by_earlier_try,
    was_cancelled_by_clear,
)

from ...support.records import (
    INVOCATION,
)

S = InvocationStatus
STARTED = datetime.datetime(2026, 1, 31, 12, 0, 0, 123456, datetime.UTC)
IDENTITY = TaskInvocationKey(
    deployment="https://airflow.example",
    dag_id="fleet",
    run_id="manual__1",
    run_after=STARTED,
    task_id="ask",
    map_index=-1,
    incarnation=0,
)


@pytest.mark.parametrize(
    "other",
    [
        {"deployment": "https://staging.example"},
        {"dag_id": "fleet2"},
        {"run_id": "manual__2"},
        {"run_after": STARTED + datetime.timedelta(microseconds=1)},
        {"run_after": None},
        {"task_id": "ask2"},
        {"map_index": 0},
        {"incarnation": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_tells_two_tasks_apart_tells_their_ids_apart(other: dict[str, Any]) -> None:
    assert replace(IDENTITY, **other).idempotency_id(0) != IDENTITY.idempotency_id(0)


def test_same_task_has_the_same_ids_in_every_spelling() -> None:
    elsewhere = STARTED.astimezone(datetime.timezone(datetime.timedelta(hours=5)))
    same = replace(IDENTITY, deployment="https://airflow.example/", run_after=elsewhere)
    assert same.idempotency_ids(3) == IDENTITY.idempotency_ids(3)
    assert len(set(IDENTITY.idempotency_ids(3))) == 3


def test_parts_do_not_run_into_each_other() -> None:
    one = replace(IDENTITY, dag_id='a", "b', run_id="c")
    other = replace(IDENTITY, dag_id="a", run_id='b", "c')
    assert one.idempotency_id(0) != other.idempotency_id(0)


def test_the_derivation_does_not_change_by_accident() -> None:
    # A worker of a newer version has to find what an older one has invoked: a change wants a new scheme.
    assert IDENTITY.idempotency_id(0) == (
        "airflow-2-5cf42f1dcdb234c769950546947c966c5b05eb2ef8c1fcf5beacc4ce56341fb7"
    )


def test_after_a_clear_the_ids_of_the_incarnations_before_are_known() -> None:
    # Cleared after its second try: `max_tries` is 2 from then on.
    cleared = replace(IDENTITY, incarnation=2)
    earlier = cleared.earlier_ids(try_number=3)
    assert IDENTITY.earlier_ids(3) == []
    assert set(IDENTITY.idempotency_ids(2)) < set(earlier)
    assert not set(cleared.idempotency_ids(3)) & set(earlier)


def provenance(try_number: int, clear_number: int = 0) -> DagRunProvenance:
    return DagRunProvenance(
        dag_id="fleet",
        run_id="manual__1",
        run_type="manual",
        task_id="ask",
        try_number=try_number,
        clear_number=clear_number,
    )


def request(try_number: int, clear_number: int = 0) -> InvocationRequest:
    return InvocationRequest(
        invocation_source=InvocationSource.Manual,
        invocation_source_id=provenance(try_number, clear_number).source_id,
    )


def record(status: InvocationStatus, request: InvocationRequest, invocation_id: str) -> InvocationRecord:
    source = {"source_type": "Manual", "source_id": request.invocation_source_id}
    return InvocationRecord.model_validate(
        {
            **INVOCATION,
            "invocation_id": invocation_id,
            "idempotency_id": request.idempotency_id,
            "provenance": {**INVOCATION["provenance"], "source": source},
            "last_status": int(status),
            "status": [{"status": int(status), "timestamp": "2026-01-31T12:00:01Z"}],
        }
    )


class RememberingPlatform:
    """A platform of one method: one invocation for each idempotency id, as the protocol has it."""

    capabilities = Capabilities()
    #: Whether it answers a repeated id with 409 instead of the record.
    refuses_repeated = False

    def __init__(self) -> None:
        self.by_id: dict[str, InvocationRecord] = {}
        self.requests: Counter[str] = Counter()
        self.loses_answers = 0

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        key = request.idempotency_id
        assert key is not None
        self.requests[key] += 1
        if key not in self.by_id:
            self.by_id[key] = record(S.Queued, request, f"iv_{len(self.by_id)}")
        elif self.refuses_repeated:
            raise RepeatedIdError("409", self.by_id[key])
        if self.loses_answers:
            self.loses_answers -= 1
            raise UnavailableError("the answer was lost")
        return self.by_id[key]

    def end(self, invocation_id: str, status: InvocationStatus) -> None:
        for key, found in self.by_id.items():
            if found.invocation_id == invocation_id:
                made = request(1).model_copy(
                    update={
                        "idempotency_id": key,
                        "invocation_source_id": found.provenance.source.source_id,
                    }
                )
                self.by_id[key] = record(status, made, invocation_id)


async def walk(platform: Any, try_number: int, clear_number: int = 0) -> str:
    found = await invoke_idempotent(
        platform,
        "a",
        request(try_number, clear_number),
        IDENTITY.idempotency_ids(try_number),
        try_number,
    )
    return found.invocation_id


pytestmark = pytest.mark.anyio


async def test_one_request_is_enough_and_a_repeated_one_changes_nothing() -> None:
    platform = RememberingPlatform()
    platform.loses_answers = 1
    with pytest.raises(UnavailableError):
        await walk(platform, 1)
    assert await walk(platform, 1) == "iv_0"
    assert len(platform.by_id) == 1
    assert platform.requests.total() == 2


@pytest.mark.parametrize("status", [S.Queued, S.Processing, S.Completed])
async def test_a_retry_goes_on_with_what_runs_or_has_completed(status: InvocationStatus) -> None:
    platform = RememberingPlatform()
    await walk(platform, 1)
    platform.end("iv_0", status)
    assert await walk(platform, 2) == "iv_0"
    assert len(platform.by_id) == 1


@pytest.mark.parametrize("status", [S.Failed, S.Cancelled, S.Deadly])
async def test_a_retry_after_a_failure_invokes_anew_and_its_own_retry_finds_that(
    status: InvocationStatus,
) -> None:
    platform = RememberingPlatform()
    await walk(platform, 1)
    platform.end("iv_0", status)
    assert await walk(platform, 2) == "iv_1"
    assert await walk(platform, 3) == "iv_1"
    platform.end("iv_1", S.Failed)
    assert await walk(platform, 4) == "iv_2"
    assert len(platform.by_id) == 3


async def test_invocation_of_this_try_is_its_own_even_if_it_failed_early() -> None:
    # The answer was lost, and by the time the request is repeated the invocation has failed.
    platform = RememberingPlatform()
    platform.loses_answers = 1
    with pytest.raises(UnavailableError):
        await walk(platform, 1)
    platform.end("iv_0", S.Failed)
    assert await walk(platform, 1) == "iv_0"


async def test_a_platform_that_answers_the_same_failure_for_every_id_is_not_asked_for_ever() -> None:
    class Stuck:
        capabilities = Capabilities()

        async def invoke(self, action: str, request_: InvocationRequest) -> InvocationRecord:
            return record(S.Failed, request(1), "iv_0")

    with pytest.raises(ConflictError, match="that try 3 may use belongs to a failed invocation"):
        await walk(Stuck(), 3)


async def test_where_a_repeated_id_is_rejected_the_walk_is_the_same() -> None:
    platform = RememberingPlatform()
    platform.refuses_repeated = True
    assert await walk(platform, 1) == "iv_0"
    assert await walk(platform, 2) == "iv_0"
    platform.end("iv_0", S.Failed)
    assert await walk(platform, 2) == "iv_1"
    assert len(platform.by_id) == 2


async def test_invocation_of_another_try_is_adopted_only_for_the_same_request() -> None:
    platform = RememberingPlatform()
    await walk(platform, 1)
    asked = request(2).model_copy(update={"parameter_values": {"n": 2}})
    with pytest.raises(RequestConflictError, match="parameter 'n'"):
        await invoke_idempotent(platform, "a", asked, IDENTITY.idempotency_ids(2), 2)  # type: ignore[arg-type]
    found = await invoke_idempotent(platform, "a", asked, IDENTITY.idempotency_ids(2), 2, ["n"])  # type: ignore[arg-type]
    assert found.invocation_id == "iv_0"
    # The same try may render its request again: it goes on with its own invocation.
    again = request(1).model_copy(update={"parameter_values": {"n": 3}})
    found = await invoke_idempotent(platform, "a", again, IDENTITY.idempotency_ids(1), 1)  # type: ignore[arg-type]
    assert found.invocation_id == "iv_0"


def test_starter_is_read_from_an_invocation() -> None:
    ours = record(S.Queued, request(2), "iv_0")
    assert not started_by_earlier_try(ours, 2)
    assert started_by_earlier_try(ours, 3)
    foreign = record(S.Queued, request(1).model_copy(update={"invocation_source_id": "somebody"}), "iv_0")
    assert started_by_earlier_try(foreign, 1)


@pytest.mark.parametrize(
    ("status", "by_try", "clears_then", "expected"),
    [
        (S.Cancelled, 1, 0, True),
        (S.Cancelled, 1, 1, False),  # nothing was cleared since: somebody wanted it to end
        (S.Cancelled, 2, 0, False),  # this try's own
        (S.Failed, 1, 0, False),
    ],
)
def test_a_cancel_by_a_clear_is_told_from_one_against_this_try(
    status: InvocationStatus, by_try: int, clears_then: int, expected: bool
) -> None:
    ended = record(status, request(by_try, clears_then), "iv_0")
    assert was_cancelled_by_clear(ended, try_number=2, clear_number=1) is expected
