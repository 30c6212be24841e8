"""Who is killed and who is merely moved: what a trigger that is told to die makes of its task's state."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from airflow_invocations.triggers import InvocationTrigger, _base

pytestmark = pytest.mark.anyio


class Trigger(InvocationTrigger):
    """A trigger whose task's states and XCom a test decides: each look takes the next one of them."""

    def __init__(self, *looks: tuple[set[str], str | None], **options: Any) -> None:
        arguments = {"conn_id": "c", "poll_interval": 1.0, "stream_logs": False, **options}
        super().__init__(invocation_id="iv_1", **arguments)
        self.looks = list(looks)
        self.task_instance = SimpleNamespace(task_id="ask")
        self.cancels = 0
        self.is_active = True

    async def _task_states(self, instance: object) -> set[str]:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        states, self.named = look
        return states

    async def _is_named_by_xcom(self, instance: object) -> bool:
        if isinstance(self.named, Exception):
            raise self.named
        return bool(self.named == self._named)

    async def _active(self, ids: Sequence[str]) -> Sequence[str]:
        return ids if self.is_active else []

    async def _cancel(self, ids: Sequence[str]) -> None:
        self.cancels += len(ids)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "_STATE_PAUSE", 0.0)
    monkeypatch.setattr(_base, "TELLS_OF_KILLS", True)


@pytest.mark.parametrize(
    ("looks", "cancels"),
    [
        pytest.param([({"failed"}, "iv_1")], True, id="marked failed"),
        pytest.param([({"success"}, "iv_1")], True, id="marked success"),
        pytest.param([({"skipped"}, "iv_1")], True, id="the DAG run timed out"),
        pytest.param([({"deferred"}, "iv_1")], False, id="moved to another triggerer"),
        pytest.param([({"restarting"}, "iv_1")], True, id="cleared while it was deferring"),
        pytest.param([({"running"}, "iv_1")], False, id="moved, and resumed in a worker"),
        pytest.param([({"up_for_retry"}, "iv_1")], False, id="moved, and about to be retried"),
        pytest.param([({"running"}, "iv_2")], False, id="cleared, the new try sees to it"),
        pytest.param([({"deferred"}, "iv_2")], True, id="cleared, the new try is deferred on its own"),
        pytest.param([({"running"}, None)], False, id="cleared, the new try has none yet"),
        pytest.param([({"queued"}, "iv_1"), ({"running"}, "iv_1")], False, id="cleared or moved, on its way"),
        pytest.param([(set(), "iv_1")], True, id="cleared, and not going anywhere soon"),
        pytest.param([({"scheduled"}, "iv_1")], True, id="cleared, waiting for a slot"),
        pytest.param(
            [({"queued"}, "iv_1"), ({"running"}, "iv_1"), ({"running"}, "iv_1")],
            False,
            id="moved, on its way",
        ),
        pytest.param([RuntimeError("the API is away")], True, id="nobody can say"),
    ],
)
async def test_only_what_nobody_wants_any_more_is_cancelled(looks: list[Any], cancels: bool) -> None:
    trigger = Trigger(*looks)
    await trigger.on_kill()
    assert trigger.cancels == int(cancels)


async def test_who_only_watches_cancels_nothing() -> None:
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
        pytest.param(({"up_for_retry"}, RuntimeError("403")), False, id="about to be retried"),
        pytest.param(({"up_for_reschedule"}, RuntimeError("403")), False, id="about to run again"),
        pytest.param(({"success"}, "iv_1"), True, id="replaced, an earlier iteration is the latest"),
    ],
)
async def test_in_a_loop_a_replaced_iteration_is_cancelled(look: Any, cancels: bool) -> None:
    trigger = Trigger(look, in_loop=True)
    await trigger.on_kill()
    assert trigger.cancels == int(cancels)
