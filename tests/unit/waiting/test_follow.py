"""Following an invocation: lines in order and once, outages survived, logs never decide anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_invocations.model import InvocationRecord, InvocationRequest, InvocationStatus, LogPage
from airflow_invocations.platform import (
    NotFoundError,
    PermanentError,
    RateLimitedError,
    TransientError,
    UnavailableError,
)
from airflow_invocations.waiting import End, Lines, cancel_and_confirm, follow, following

from ..platform.test_roboto import INVOCATION

pytestmark = pytest.mark.anyio


def record(status: InvocationStatus) -> InvocationRecord:
    step = {"status": int(status), "timestamp": "2026-01-31T12:00:01Z"}
    return InvocationRecord.model_validate({**INVOCATION, "last_status": int(status), "status": [step]})


def page(lines: list[str], last_read: str | None, *, has_next: bool = False) -> LogPage:
    items = [{"log": line, "process": "action", "timestamp": "2026-01-31T12:00:01Z"} for line in lines]
    return LogPage.model_validate({"items": items, "has_next": has_next, "last_read": last_read})


class ScriptedPlatform:
    """Answers from two lists, one for statuses and one for logs; an exception is raised. Not a real one:
    no real one fails on cue between two particular calls."""

    def __init__(self, statuses: list[Any], logs: list[Any] | None = None) -> None:
        self.statuses = statuses
        self.log_pages = logs or []
        self.cursors: list[str | None] = []
        self.cancels = 0

    async def get(self, invocation_id: str) -> InvocationRecord:
        return record(_next(self.statuses))

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        self.cursors.append(cursor)
        return _next(self.log_pages) if self.log_pages else page([], cursor)

    async def cancel(self, invocation_id: str) -> None:
        self.cancels += 1

    async def check(self) -> str:
        raise AssertionError("not asked for")

    async def get_action(self, name: str) -> Any:
        raise AssertionError("not asked for")

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        raise AssertionError("not asked for")


def _next(script: list[Any]) -> Any:
    item = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(item, Exception):
        raise item
    return item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Time passes by sleeping only, and sleeping takes none."""
    present = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal present
        present += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: present))
    return lambda: present


async def steps_of(platform: ScriptedPlatform, **options: Any) -> tuple[list[str], InvocationRecord]:
    lines: list[str] = []
    async for step in follow(platform, "iv_1", **{"poll_interval": 2.0, "stream_logs": True, **options}):
        match step:
            case Lines(records):
                lines += [entry.log for entry in records]
            case End(end):
                return lines, end
    raise AssertionError("no End")


S = InvocationStatus


async def test_all_lines_come_before_the_end_also_those_written_last(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform(
        [S.Queued, S.Processing, S.Completed],
        [page([], None), page(["a"], "1"), page(["b"], "2", has_next=True), page(["c"], "3")],
    )
    lines, end = await steps_of(platform)
    assert lines == ["a", "b", "c"]
    assert end.current.status is S.Completed
    assert platform.cursors == [None, None, "1", "2"]


async def test_it_goes_on_from_the_cursor_it_is_given(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform([S.Completed], [page(["z"], "9")])
    assert (await steps_of(platform, cursor="8"))[0] == ["z"]
    assert platform.cursors == ["8"]


async def test_logs_are_not_read_when_nobody_wants_them(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform([S.Processing, S.Failed])
    assert (await steps_of(platform, stream_logs=False))[1].current.status is S.Failed
    assert platform.cursors == []


async def test_a_failed_poll_is_no_verdict(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform(
        [
            UnavailableError("gone"),
            S.Processing,
            RateLimitedError("slow"),
            UnavailableError("gone"),
            S.Completed,
        ]
    )
    assert (await steps_of(platform))[1].current.status is S.Completed


async def test_an_outage_is_waited_out_up_to_its_limit_and_then_raised(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform([UnavailableError("gone for good")])
    with pytest.raises(TransientError, match="gone for good"):
        await steps_of(platform, outage_limit=3600.0)
    assert 3600 <= clock() < 3600 + 61


async def test_two_outages_are_not_added_up(clock: Callable[[], float]) -> None:
    gone: list[Any] = [UnavailableError("gone")] * 40
    platform = ScriptedPlatform([*gone, S.Processing, *gone, S.Completed])
    assert (await steps_of(platform, outage_limit=2500.0))[1].current.status is S.Completed


async def test_what_the_platform_refuses_for_good_is_raised(clock: Callable[[], float]) -> None:
    with pytest.raises(PermanentError):
        await steps_of(ScriptedPlatform([S.Processing, NotFoundError("no such invocation")]))


async def test_trouble_with_the_logs_does_not_end_the_wait_and_loses_nothing(
    clock: Callable[[], float],
) -> None:
    platform = ScriptedPlatform(
        [S.Processing, S.Processing, S.Completed],
        [page(["a"], "1"), UnavailableError("no logs now"), page(["b"], "2")],
    )
    assert (await steps_of(platform))[0] == ["a", "b"]


async def test_logs_that_are_refused_are_not_asked_for_again(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform([S.Processing, S.Processing, S.Completed], [NotFoundError("none kept")])
    assert (await steps_of(platform))[0] == []
    assert len(platform.cursors) == 1


@pytest.mark.parametrize("end", [S.Completed, S.Cancelled, S.Failed, S.Deadly])
async def test_every_terminal_status_ends_it(clock: Callable[[], float], end: InvocationStatus) -> None:
    assert (await steps_of(ScriptedPlatform([S.Processing, end])))[1].current.status is end


async def test_a_cancel_is_repeated_until_it_is_confirmed(clock: Callable[[], float]) -> None:
    platform = ScriptedPlatform([S.Processing, UnavailableError("gone"), S.Processing, S.Cancelled])
    confirmed = await cancel_and_confirm(platform, "iv_1")
    assert confirmed is not None
    assert confirmed.current.status is S.Cancelled
    assert platform.cancels == 4


async def test_a_cancel_of_what_is_not_known_is_done(clock: Callable[[], float]) -> None:
    assert await cancel_and_confirm(ScriptedPlatform([NotFoundError("no such invocation")]), "iv_1") is None


async def test_a_cancel_gives_up_after_its_patience() -> None:
    with pytest.raises(TimeoutError):
        await cancel_and_confirm(ScriptedPlatform([S.Processing]), "iv_1", patience=0.2)
