"""Cancels are repeated until the platform confirms them."""

from __future__ import annotations

import pytest

from airflow_invocations.models import InvocationRecord, InvocationStatus
from airflow_invocations.platforms import InvalidRequestError, UnavailableError
from airflow_invocations.waiters import cancel_and_confirm
from airflow_invocations.waiters import cancellation as cancelling

from .conftest import Platform

pytestmark = pytest.mark.anyio
S = InvocationStatus


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "backoff", lambda attempt, cap: 0.0)


async def test_cancel_is_repeated_until_confirmed() -> None:
    class Slow(Platform):
        failures = 2

        async def cancel(self, invocation_id: str) -> None:
            self.cancelled.append(invocation_id)
            if self.failures:
                self.failures -= 1
                raise UnavailableError("gone")
            if len(self.cancelled) == 4:
                self.by_id[invocation_id] = S.Cancelled

    platform = Slow(iv_1=S.Processing)
    confirmed = await cancel_and_confirm(platform, "iv_1")
    assert confirmed is not None
    assert confirmed.current.status is S.Cancelled
    assert len(platform.cancelled) == 4


async def test_cancel_returns_record_if_platform_rejects_cancel_of_ended_invocation() -> None:
    class Strict(Platform):
        async def cancel(self, invocation_id: str) -> None:
            raise InvalidRequestError("it has ended")

    confirmed: InvocationRecord | None = await cancel_and_confirm(Strict(iv_1=S.Completed), "iv_1")
    assert confirmed is not None
    assert confirmed.current.status is S.Completed


async def test_cancel_returns_none_for_unknown_invocation() -> None:
    class Unknowing(Platform):
        async def cancel(self, invocation_id: str) -> None:
            pass

    assert await cancel_and_confirm(Unknowing(), "iv_1") is None


async def test_cancel_raises_timeout_if_invocation_stays_active() -> None:
    class Deaf(Platform):
        async def cancel(self, invocation_id: str) -> None:
            pass

    with pytest.raises(TimeoutError):
        await cancel_and_confirm(Deaf(iv_1=S.Processing), "iv_1", seconds=0.2)
