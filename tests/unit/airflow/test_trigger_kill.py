"""Which invocations a trigger cancels that is asked to stop, by Airflow's record of its task."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from airflow_invocations.triggers import InvocationTrigger, _base

pytestmark = pytest.mark.anyio


class Trigger(InvocationTrigger):
    """A trigger whose task's states and XCom a test decides: each read takes the next ones."""

    def __init__(self, *reads: Any, **options: Any) -> None:
        arguments = {"conn_id": "c", "poll_interval": 1.0, "stream_logs": False, **options}
        super().__init__(invocation_id="iv_1", **arguments)
        self.reads = list(reads)
        self.task_instance = SimpleNamespace(task_id="ask")
        self.cancels = 0
        self.is_active = True

    async def _task_states(self, instance: object) -> set[str]:
        read = self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]
        if isinstance(read, Exception):
            raise read
        states, self.named = read
        return states

    async def _xcom_id(self, instance: object) -> Any:
        if isinstance(self.named, Exception):
            raise self.named
        return self.named

    async def _active(self, ids: Sequence[str]) -> Sequence[str]:
        return ids if self.is_active else []

    async def _cancel(self, invocation_id: str) -> None:
        self.cancels += 1


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr(_base, "asyncio", SimpleNamespace(**{**vars(_base.asyncio), "sleep": sleep}))
    monkeypatch.setattr(_base, "TELLS_OF_KILLS", True)


AWAY = RuntimeError("the API server is away")


@pytest.mark.parametrize(
    ("reads", "cancels"),
    [
        pytest.param([({"failed"}, "iv_1")], True, id="marked failed"),
        pytest.param([({"success"}, "iv_1")], True, id="marked success"),
        pytest.param([({"skipped"}, "iv_1")], True, id="the DAG run timed out"),
        pytest.param([(set(), "iv_1")], True, id="the DAG run was deleted"),
        pytest.param([({"removed"}, "iv_1")], True, id="the task was removed from its DAG"),
        pytest.param([({"deferred"}, "iv_1")], False, id="moved to another triggerer"),
        pytest.param([({"restarting"}, "iv_1")], True, id="cleared while it was deferring"),
        pytest.param([({"running"}, "iv_1")], False, id="moved, and resumed in a worker"),
        pytest.param([({"up_for_retry"}, "iv_1")], False, id="moved, and about to be retried"),
        pytest.param([({"running"}, "iv_2")], True, id="cleared, the new try has its own"),
        pytest.param([({"deferred"}, "iv_2")], True, id="cleared, the new try is deferred on its own"),
        pytest.param([({"running"}, None)], False, id="cleared or retried, no invocation is named for long"),
        pytest.param(
            [({"running"}, None), ({"running"}, "iv_2")], True, id="cleared, then the new try invokes"
        ),
        pytest.param([({"running"}, None), ({"running"}, "iv_1")], False, id="retried, then adopted"),
        pytest.param([({"running"}, None), ({"failed"}, None)], True, id="cleared, the new try is rejected"),
        pytest.param([({"queued"}, "iv_1"), ({"running"}, "iv_1")], False, id="resumed in a worker"),
        pytest.param([({"None"}, "iv_1")], False, id="never gets to a worker"),
        pytest.param([({"scheduled"}, "iv_1")], False, id="waits for a slot for long"),
        pytest.param(
            [({"scheduled"}, "iv_1"), ({"running"}, None), ({"running"}, "iv_2")], True, id="gets a slot"
        ),
        pytest.param([({"queued"}, "iv_1"), ({"upstream_failed"}, "iv_1")], True, id="can't run any more"),
        pytest.param([AWAY], False, id="Airflow does not answer"),
        pytest.param([AWAY, AWAY, ({"failed"}, "iv_1")], True, id="Airflow answers late"),
        pytest.param([({"running"}, AWAY), ({"running"}, "iv_1")], False, id="the XCom is readable late"),
    ],
)
async def test_trigger_cancels_only_what_airflow_confirms(reads: list[Any], cancels: bool) -> None:
    trigger = Trigger(*reads)
    await trigger.on_kill()
    assert trigger.cancels == int(cancels)


async def test_trigger_says_why_it_cancels_nothing() -> None:
    with capture_logs() as logs:
        await Trigger(AWAY).on_kill()
    assert [one["event"] for one in logs] == [
        "Not cancelling invocation iv_1: could not read the task's state: the API server is away"
    ]


async def test_trigger_reads_an_undecided_state_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(_base.asyncio, "sleep", sleep)
    await Trigger(({"queued"}, "iv_1")).on_kill()
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(pauses) == 30.0
    assert 600 <= sum(pauses) < 630


async def test_trigger_that_only_watches_cancels_nothing() -> None:
    trigger = Trigger(({"failed"}, "iv_1"), cancel_on_kill=False)
    await trigger.on_kill()
    assert trigger.cancels == 0


async def test_after_its_event_a_trigger_cancels_nothing() -> None:
    trigger = Trigger(({"failed"}, "iv_1"))
    trigger._has_fired = True
    await trigger.on_kill()
    assert trigger.cancels == 0


async def test_a_task_whose_invocation_has_ended_is_not_called_killed() -> None:
    """A triggerer that stood still, and goes on after another one has ended the task in success."""
    trigger = Trigger(({"success"}, "iv_1"))
    trigger.is_active = False
    with capture_logs() as said:
        await trigger.on_kill()
    assert trigger.cancels == 0
    assert [(one["log_level"], one["event"]) for one in said] == [
        ("info", "Nothing to cancel: invocation iv_1 has ended")
    ]


@pytest.mark.parametrize(
    ("look", "cancels"),
    [
        pytest.param(({"running"}, "iv_1"), False, id="resumed in a worker"),
        pytest.param(
            ({"running"}, RuntimeError("403")), True, id="replaced, an earlier iteration runs again"
        ),
        pytest.param(
            ({"deferred"}, RuntimeError("403")), True, id="replaced, an earlier iteration is deferred"
        ),
        pytest.param(({"deferred"}, "iv_1"), False, id="moved to another triggerer"),
        pytest.param(({"up_for_retry"}, RuntimeError("403")), False, id="about to be retried"),
        pytest.param(({"up_for_reschedule"}, RuntimeError("403")), False, id="about to run again"),
        pytest.param(({"success"}, "iv_1"), True, id="replaced, an earlier iteration is the latest"),
    ],
)
async def test_in_a_loop_a_replaced_iteration_is_cancelled(look: Any, cancels: bool) -> None:
    trigger = Trigger(look, in_loop=True)
    await trigger.on_kill()
    assert trigger.cancels == int(cancels)


async def test_in_a_loop_an_outage_does_not_look_like_a_replaced_iteration() -> None:
    trigger = Trigger(({"running"}, AWAY), AWAY, ({"running"}, "iv_1"), in_loop=True)
    await trigger.on_kill()
    assert trigger.cancels == 0
