"""Rejected credentials: wrong ones, and an outage if they worked before."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.platforms import UnauthorizedError
from airflow_invocations.tasks.completion import CompletionCriteria, check
from airflow_invocations.waiters import AbandonReason, WaitAbandoned, WaitOptions, fetch_record, rejection

from .conftest import Platform

pytestmark = pytest.mark.anyio
S = InvocationStatus

ONE, SEVERAL = ("iv_1",), ("iv_1", "iv_2")
REFUSED = UnauthorizedError("the token isn't known here")


class Newest(Platform):
    """Answers with one invocation as the newest of any action."""

    async def newest(self, action: str, since: Any) -> Any:
        return await self.get("iv_1")


def platform() -> Newest:
    return Newest(iv_1=S.Completed, iv_2=S.Completed)


def criteria(*, accepted: bool) -> list[CompletionCriteria]:
    return [
        CompletionCriteria(ids=ONE, accepted=accepted),
        CompletionCriteria(ids=SEVERAL, accepted=accepted),
        CompletionCriteria(action="map", accepted=accepted),
    ]


@pytest.mark.parametrize("number", range(3), ids=["one", "several", "newest"])
class TestRetryOfRejections:
    async def test_rejection_of_a_token_that_worked_is_retried(
        self, number: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = platform()
        asked.down = REFUSED

        async def connect() -> Any:
            if asked.connects == 4:
                asked.down = None
            return await asked.connect()

        assert await check(connect, criteria(accepted=True)[number])
        assert asked.connects == 5
        said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        (line,) = said
        assert line == (
            "The platform rejects the connection's credentials, which it accepted before; trying again for "
            "60 s: the token isn't known here"
        )

    async def test_rejections_end_the_check_after_a_while(
        self, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rejection, "REJECTION_LIMIT", 0.02)
        asked = platform()
        asked.down = REFUSED
        with pytest.raises(WaitAbandoned) as abandoned:
            await check(asked.connect, criteria(accepted=True)[number])
        assert abandoned.value.reason is AbandonReason.AccessLost

    async def test_second_rejection_of_a_token_that_never_worked_is_final(self, number: int) -> None:
        asked = platform()
        asked.down = REFUSED
        with pytest.raises(WaitAbandoned) as abandoned:
            await check(asked.connect, criteria(accepted=False)[number])
        assert (abandoned.value.reason, asked.connects) == (AbandonReason.Rejected, 2)

    async def test_misconfigured_connection_is_handled_as_rejected(self, number: int) -> None:
        async def connect() -> Any:
            raise ValueError("host is empty")

        with pytest.raises(WaitAbandoned, match="host is empty") as abandoned:
            await check(connect, criteria(accepted=False)[number])
        assert abandoned.value.reason is AbandonReason.Rejected


async def test_fetch_record_retries_while_the_connection_is_invalid() -> None:
    asked = platform()
    failures = [ValueError("host is empty")] * 3

    async def connect() -> Any:
        if failures:
            raise failures.pop()
        return await asked.connect()

    record = await fetch_record(connect, WaitOptions("iv_1", poll_interval=0.01, accepted=True))
    assert record.current.status is S.Completed


async def test_check_of_the_newest_retries_after_a_rejection() -> None:
    from airflow_invocations.tasks.completion import wait_for_change

    asked = platform()
    none_yet = asyncio.Event()
    answers: list[Any] = [None]

    async def newest(action: str, since: Any) -> Any:
        if answers:
            none_yet.set()
            asked.down = REFUSED
            return answers.pop()
        return await asked.get("iv_1")

    asked.newest = newest  # type: ignore[method-assign]
    wait = asyncio.create_task(
        wait_for_change("c", asked.connect, CompletionCriteria(action="map", poll_interval=0.01))
    )
    await none_yet.wait()
    while asked.connects < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not wait.done()
    asked.down = None
    await wait
