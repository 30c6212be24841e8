"""The guard of a worker's invocation: kills, timeouts and failures, and what Airflow's record decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.xcom import XCom

from airflow_invocations.models import InvocationStatus
from airflow_invocations.platforms import Platform
from airflow_invocations.tasks import guard
from airflow_invocations.tasks.cancellation import Intent, intent_of
from airflow_invocations.tasks.guard import InvocationGuard
from airflow_invocations.version_compat import AirflowFailException, AirflowTaskTimeout

from ...support.waiting import until

S = InvocationStatus


class Log:
    """A task's log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _take(self, text: str, *values: object) -> None:
        self.lines.append(text % values)

    info = warning = error = _take


class One:
    """A guard, its task, and a platform with one invocation."""

    def __init__(
        self,
        *states: Any,
        is_adopted: bool = True,
        cancels: bool = True,
        max_tries: int = 0,
        in_loop: bool = False,
    ) -> None:
        self.states = list(states)
        self.asked = 0
        self.status = S.Processing
        self.cancels = 0
        self.log = Log()
        instance = SimpleNamespace(
            dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1, max_tries=max_tries,
            get_task_states=self._read,
        )  # fmt: skip
        self.guard = InvocationGuard(
            instance, self.log, cancels=cancels, is_adopted=is_adopted, in_loop=in_loop
        )
        self.lifecycle: Any = SimpleNamespace(invocation_id="iv_1", ended=None)

    def submit(self) -> None:
        self.guard.guard(self.lifecycle, self._ask)

    def _read(self, **_: object) -> dict[str, dict[str, str]]:
        self.asked += 1
        state = self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return {} if state is None else {"r": {"t": state}}

    def _ask(self, operation: Callable[[Platform], Awaitable[None]]) -> None:
        platform: Any = SimpleNamespace(get=self._get, cancel=self._cancel)
        asyncio.run(operation(platform))  # type: ignore[arg-type]

    async def _get(self, invocation_id: str) -> Any:
        return SimpleNamespace(current=SimpleNamespace(status=self.status))

    async def _cancel(self, invocation_id: str) -> None:
        self.cancels += 1
        self.status = S.Cancelled


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_READ_PAUSE", 0.0)


@pytest.mark.parametrize(
    ("states", "intent"),
    [
        ({"success"}, Intent.Ended),
        ({"failed"}, Intent.Ended),
        ({"skipped"}, Intent.Ended),
        ({"upstream_failed"}, Intent.Ended),
        ({"removed"}, Intent.Ended),
        ({"restarting"}, Intent.Ended),
        (set(), Intent.Ended),
        ({"running"}, Intent.Retried),
        ({"up_for_retry"}, Intent.Retried),
        ({"up_for_reschedule"}, Intent.Retried),
        ({"deferred"}, Intent.Deferred),
        ({"queued"}, Intent.Undecided),
        ({"scheduled"}, Intent.Undecided),
        ({"None"}, Intent.Undecided),
        ({"a state of a later Airflow"}, Intent.Undecided),
    ],
)
def test_record_decides_intent(states: set[str], intent: Intent) -> None:
    assert intent_of(states) is intent


@pytest.mark.parametrize("state", ["failed", "restarting", None])
def test_kill_cancels_if_airflow_confirms(state: str | None) -> None:
    one = One(state)
    with one.guard:
        one.submit()
        one.guard.note_kill()
        until(lambda: one.status is S.Cancelled)
    assert (one.asked, one.cancels) == (1, 1)


@pytest.mark.parametrize("state", ["running", "up_for_retry", "queued", "deferred"])
def test_kill_cancels_nothing_otherwise(state: str) -> None:
    one = One(state)
    with one.guard:
        one.submit()
        one.guard.note_kill()
    assert (one.asked, one.cancels) == (1, 0)
    assert one.log.lines[-1] == f"Not cancelling: Airflow's record of the task is {state}"


@pytest.mark.parametrize(
    ("states", "xcom", "is_cancelled"),
    [
        (["running"], None, False),
        (["queued", "queued"], RuntimeError("not found"), True),
        (["running", *[RuntimeError("the API server is away")] * 3], RuntimeError("the same"), False),
    ],
)
def test_kill_in_a_loop_cancels_if_a_clear_replaced_the_task_instance(
    states: list[Any], xcom: Exception | None, is_cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(**_: object) -> None:
        if xcom is not None:
            raise xcom

    monkeypatch.setattr(XCom, "get_one", read)
    one = One(*states, in_loop=True)
    with one.guard:
        one.submit()
        one.guard.note_kill()
    assert (one.status is S.Cancelled) is is_cancelled


def test_kill_cancels_nothing_without_an_answer() -> None:
    one = One(*[RuntimeError("the API server is away")] * 3)
    with one.guard:
        one.submit()
        one.guard.note_kill()
    assert (one.asked, one.cancels) == (3, 0)
    assert one.log.lines[-1] == "Not cancelling: could not read the task's state: the API server is away"


def test_kill_is_decided_again_when_it_is_repeated() -> None:
    one = One("running", "failed")
    with one.guard:
        one.submit()
        one.guard.note_kill()
        one.guard.note_kill()
        until(lambda: one.status is S.Cancelled)
    assert one.asked == 2


def test_kill_before_the_invocation_is_known_cancels_it_later() -> None:
    one = One("failed")
    one.guard.note_kill()
    with one.guard:
        until(lambda: one.asked)
        one.submit()
        until(lambda: one.status is S.Cancelled)


def test_kill_during_a_deferral_cancels_before_the_block_ends() -> None:
    one = One("failed")
    with one.guard:
        one.submit()
        one.guard.note_kill()
    assert one.cancels == 1


def test_kill_without_an_invocation_ends() -> None:
    one = One("failed")
    with one.guard:
        one.guard.note_kill()
    assert one.cancels == 0


def test_kill_is_ignored_by_a_task_that_never_cancels() -> None:
    one = One("failed", cancels=False)
    with one.guard:
        one.submit()
        one.guard.note_kill()
    assert (one.asked, one.cancels) == (0, 0)


def test_kill_leaves_an_ended_invocation_unmentioned() -> None:
    one = One("success")
    one.status = S.Completed
    with one.guard:
        one.submit()
        one.guard.note_kill()
    assert one.cancels == 0
    assert "Cancelling invocation iv_1" not in one.log.lines


def fail(one: One, error: BaseException) -> None:
    """Have the guarded block fail after it has submitted."""
    with one.guard:
        one.submit()
        raise error


def test_timeout_cancels_without_asking() -> None:
    one = One()
    with pytest.raises(AirflowTaskTimeout):
        fail(one, AirflowTaskTimeout())
    assert (one.asked, one.cancels) == (0, 1)


@pytest.mark.parametrize(
    ("error", "max_tries", "is_adopted", "cancels"),
    [
        pytest.param(RuntimeError("404"), 0, True, 1, id="no retry left"),
        pytest.param(RuntimeError("404"), 1, True, 0, id="a retry adopts"),
        pytest.param(RuntimeError("404"), 1, False, 1, id="a retry starts another one"),
        pytest.param(AirflowFailException("no"), 1, True, 1, id="never retried"),
    ],
)
def test_failure_cancels_unless_a_retry_adopts(
    error: Exception, max_tries: int, is_adopted: bool, cancels: int
) -> None:
    one = One(max_tries=max_tries, is_adopted=is_adopted)
    with pytest.raises(type(error)):
        fail(one, error)
    assert one.cancels == cancels
