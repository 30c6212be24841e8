"""The base class: what a platform gets that implements only what it has to."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest

from airflow_invocations.models import (
    ActionRecord,
    ComputeRequirements,
    EventFilter,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    StatusSnapshot,
)
from airflow_invocations.platforms import Capabilities, NotFoundError, Platform, UnsupportedError

from ...support.records import (
    INVOCATION,
)

pytestmark = pytest.mark.anyio

S = InvocationStatus
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


class Smallest(Platform):
    """A platform with nothing but the required methods."""

    name = "Smallest"
    capabilities = Capabilities(timeout=False)

    def __init__(self, **statuses: InvocationStatus) -> None:
        super().__init__("smallest at example")
        self.by_id = statuses

    async def get_action(self, name: str) -> ActionRecord:
        raise NotFoundError(name)

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        self.check_supported(request)
        return await self.get("iv_1")

    async def get(self, invocation_id: str) -> InvocationRecord:
        if invocation_id not in self.by_id:
            raise NotFoundError(invocation_id)
        return InvocationRecord.model_validate({**INVOCATION, "invocation_id": invocation_id})

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        return [StatusSnapshot(one, self.by_id[one]) for one in invocation_ids if one in self.by_id]

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        return []

    async def cancel(self, invocation_id: str) -> None:
        self.by_id[invocation_id] = S.Cancelled


@pytest.fixture
def platform() -> Smallest:
    return Smallest(iv_1=S.Processing, iv_2=S.Completed, iv_3=S.Failed)


def test_platform_requires_at_most_eight_methods() -> None:
    assert Platform.__abstractmethods__ == {"get_action", "invoke", "get", "statuses", "active", "cancel"}
    public = {name for name, _ in inspect.getmembers(Platform, inspect.isfunction) if name[0] != "_"}
    assert public - Platform.__abstractmethods__, "the others have defaults"


async def test_ended_and_records_are_made_of_the_required_methods(platform: Smallest) -> None:
    async with platform as opened:
        assert [one.invocation_id for one in await opened.ended(["iv_1", "iv_2", "iv_3"])] == ["iv_2", "iv_3"]
        found = await opened.records(["iv_1", "iv_4"])
    assert [one.invocation_id for one in found if isinstance(one, InvocationRecord)] == ["iv_1"]


async def test_check_asks_for_a_status_and_names_the_platform(platform: Smallest) -> None:
    assert await platform.check() == "smallest at example responds as Smallest"


def test_links_are_empty_by_default_and_logs_url_is_the_invocations(platform: Smallest) -> None:
    assert platform.url("iv_1") == platform.logs_url("iv_1") == ""

    class Linked(Smallest):
        def page_url(self, invocation_id: str) -> str:
            return f"https://example/{invocation_id}"

    assert Linked().logs_url("iv_1") == "https://example/iv_1"


@pytest.mark.parametrize(
    ("configured", "url"),
    [
        ("https://platform.example/iv_1", "https://platform.example/iv_1"),
        ("http://127.0.0.1:8085/iv_1", "http://127.0.0.1:8085/iv_1"),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        (" https://platform.example", ""),
        ("", ""),
    ],
)
def test_url_is_http_or_empty(configured: str, url: str) -> None:
    class Linked(Smallest):
        def page_url(self, invocation_id: str) -> str:
            return configured

    assert (Linked().url("iv_1"), Linked().logs_url("iv_1")) == (url, url)


@pytest.mark.parametrize(
    "call",
    [
        lambda platform: platform.find("d", None, None, None),
        lambda platform: platform.newest("a", NOON),
        lambda platform: platform.logs("iv_1"),
        lambda platform: platform.outputs("iv_1"),
    ],
    ids=["find", "newest", "logs", "outputs"],
)
async def test_unsupported_methods_raise_an_error_that_names_the_platform(
    platform: Smallest, call: Callable[[Platform], Awaitable[Any]]
) -> None:
    with pytest.raises(UnsupportedError, match="Smallest"):
        await call(platform)


def test_streams_are_unsupported_by_default(platform: Smallest) -> None:
    with pytest.raises(UnsupportedError, match="Smallest has no stream"):
        platform.watch(["iv_1"], {}, None)
    with pytest.raises(UnsupportedError, match=r"smallest at example has no stream .* InvocationSensor"):
        platform.events(EventFilter(), None)


async def test_unsupported_arguments_are_rejected_with_an_alternative(platform: Smallest) -> None:
    with pytest.raises(UnsupportedError, match="Smallest doesn't support argument 'timeout'; use the task's"):
        await platform.invoke("a", InvocationRequest(invocation_source="Manual", timeout=5))
    supported = InvocationRequest(
        invocation_source="Manual", compute_requirement_overrides=ComputeRequirements()
    )
    assert (await platform.invoke("a", supported)).invocation_id == "iv_1"
