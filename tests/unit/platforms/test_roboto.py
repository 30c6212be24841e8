"""The client of the invocation API: what it sends, when it tries again, what it raises."""

from __future__ import annotations

import datetime
import email.utils
import time
import traceback
from typing import Any

import pytest

from airflow_invocations.invocation_api import ATTEMPTS, MAX_BODY
from airflow_invocations.models import (
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
    InvocationStatus,
)
from airflow_invocations.platforms import (
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    NotFoundError,
    PermanentError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.platforms.retry import backoff
from airflow_invocations.platforms.roboto.client import RobotoSettings
from airflow_invocations.platforms.roboto.platform import RobotoPlatform

from ...support.records import INVOCATION
from ...support.scripted_server import (
    Script,
    answer,
    data,
    error,
    hang_up,
    raw,
)

pytestmark = pytest.mark.anyio


def request(**fields: Any) -> InvocationRequest:
    return InvocationRequest(invocation_source=InvocationSource.Manual, **fields)


async def test_each_request_carries_token_version_and_organisation(script: Script) -> None:
    script.answers = [data(INVOCATION)]
    async with script.client(org_id="og_1") as platform:
        record = await platform.get("iv_1")
    assert record.current.status is InvocationStatus.Processing
    headers = script.seen[0].headers
    assert headers["authorization"] == "Bearer s3cret-token"
    assert headers["x-roboto-api-version"] == "2026-10-06"
    assert headers["x-roboto-org-id"] == headers["x-roboto-resource-owner-id"] == "og_1"


async def test_an_invocation_is_sent_as_the_published_client_sends_it(script: Script) -> None:
    script.answers = [data(INVOCATION)]
    async with script.client() as platform:
        await platform.invoke("my action", request(parameter_values={"n": 1}, idempotency_id="k"))
    assert script.seen[0].path == "/v1/actions/my%20action/invoke"
    assert script.seen[0].body == {
        "data_source_id": "__UNSPECIFIED_DATA_SOURCE__",
        "data_source_type": "Dataset",
        "input_data": [],
        "invocation_source": "Manual",
        "parameter_values": {"n": 1},
        "idempotency_id": "k",
    }


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_request_that_had_no_effect_is_always_retried(
    script: Script, no_pauses: list[float], status: int
) -> None:
    script.answers = [answer(status, b"<html>gateway</html>"), data(INVOCATION)]
    async with script.client() as platform:
        await platform.invoke("a", request())
    assert len(script.seen) == 2
    assert len(no_pauses) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        answer(500, b""),
        answer(504, b""),
        answer(408, b""),
        hang_up,
        raw(b"HTTP/1.1 200 OK\r\n"),
        answer(200, b'{"da'),
    ],
    ids=["500", "504", "408", "reset", "half-header", "half-json"],
)
async def test_request_that_may_have_had_an_effect_is_retried_only_with_an_idempotency_id(
    script: Script, no_pauses: list[float], trouble: Any
) -> None:
    script.answers = [trouble, data(INVOCATION)]
    async with script.client() as platform:
        with pytest.raises(UnavailableError):
            await platform.invoke("a", request())
        assert len(script.seen) == 1
        script.answers = [trouble, data(INVOCATION)]
        await platform.invoke("a", request(idempotency_id="k"))
    assert len(script.seen) == 3


async def test_trying_again_ends(script: Script, no_pauses: list[float]) -> None:
    script.answers = [answer(503, b"")]
    async with script.client() as platform:
        with pytest.raises(UnavailableError):
            await platform.get("iv_1")
    assert len(script.seen) == ATTEMPTS
    assert len(no_pauses) == ATTEMPTS - 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(script: Script, no_pauses: list[float], form: str) -> None:
    value = "7" if form == "seconds" else email.utils.formatdate(time.time() + 7, usegmt=True)
    script.answers = [answer(429, b"", retry_after=value), data(INVOCATION)]
    async with script.client() as platform:
        await platform.get("iv_1")
    assert 5 <= no_pauses[0] <= 7


@pytest.mark.parametrize("value", ["soon", "-3", "1e9"])
async def test_a_senseless_retry_after_does_no_harm(
    script: Script, no_pauses: list[float], value: str
) -> None:
    script.answers = [answer(429, b"", retry_after=value), data(INVOCATION)]
    async with script.client() as platform:
        await platform.get("iv_1")
    assert 0 <= no_pauses[0] <= 60


def test_pauses_grow_with_full_jitter_up_to_a_cap() -> None:
    for attempt, longest in [(0, 0.5), (3, 4.0), (10, 30.0), (1000, 30.0)]:
        pauses = [backoff(attempt) for _ in range(300)]
        assert 0 <= min(pauses) < longest * 0.2
        assert longest * 0.8 < max(pauses) <= longest


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "RobotoInvalidRequestException", InvalidRequestError),
        (400, "RobotoIllegalArgumentException", InvalidRequestError),
        (400, "RobotoInvalidStateTransitionException", InvalidRequestError),
        (400, "RobotoNoOrgProvidedException", InvalidRequestError),
        (401, "RobotoUnauthorizedException", UnauthorizedError),
        (403, "RobotoLimitExceededException", LimitExceededError),
        (404, "RobotoNotFoundException", NotFoundError),
        (409, "RobotoConflictException", ConflictError),
        (409, "RobotoConditionException", ConflictError),
        (413, "Whatever", InvalidRequestError),
        (418, "Teapot", PermanentError),
        (501, "RobotoNotImplementedException", UnsupportedError),
    ],
)
async def test_a_rejection_is_permanent_typed_and_not_tried_again(
    script: Script, status: int, code: str, kind: type[PlatformError]
) -> None:
    script.answers = [error(status, code, "the reason")]
    async with script.client() as platform:
        with pytest.raises(PermanentError, match="the reason") as raised:
            await platform.get("iv_1")
    assert type(raised.value) is kind
    assert len(script.seen) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(429, "Whatever", RateLimitedError), (500, "RobotoInternalException", UnavailableError)],
)
async def test_trouble_of_the_platform_is_transient(
    script: Script, no_pauses: list[float], status: int, code: str, kind: type[PlatformError]
) -> None:
    script.answers = [error(status, code)]
    async with script.client() as platform:
        with pytest.raises(TransientError) as raised:
            await platform.get("iv_1")
    assert type(raised.value) is kind


async def test_an_answer_that_is_no_record_is_transient_and_says_what_is_wrong(
    script: Script, no_pauses: list[float]
) -> None:
    script.answers = [data({**INVOCATION, "last_status": "soon"})]
    async with script.client() as platform:
        with pytest.raises(UnavailableError, match="last_status"):
            await platform.get("iv_1")


async def test_a_server_that_is_not_there_is_named(no_pauses: list[float]) -> None:
    async with RobotoPlatform(RobotoSettings("http://127.0.0.1:9", "s3cret-token")) as platform:
        with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9"):
            await platform.get("iv_1")


async def test_a_request_over_the_limit_is_rejected_before_it_is_sent(script: Script) -> None:
    script.answers = [data(INVOCATION)]
    async with script.client() as platform:
        with pytest.raises(InvalidRequestError, match=str(MAX_BODY)):
            await platform.invoke("a", request(parameter_values={"large": "x" * MAX_BODY}))
    assert script.seen == []


async def test_the_token_is_in_no_repr_and_no_traceback(script: Script, no_pauses: list[float]) -> None:
    assert "s3cret-token" not in repr(script.settings())
    for trouble in (error(401, "RobotoUnauthorizedException"), hang_up, answer(200, b"<html>")):
        script.answers = [trouble]
        async with script.client() as platform:
            with pytest.raises(PlatformError) as raised:
                await platform.get("iv_1")
        assert "s3cret-token" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_name_that_would_change_the_path_is_rejected(script: Script, name: str) -> None:
    async with script.client() as platform:
        with pytest.raises(InvalidRequestError):
            await platform.get_action(name)


async def test_a_redirect_is_not_followed_with_the_token(script: Script, no_pauses: list[float]) -> None:
    script.answers = [answer(302, b"", location="http://127.0.0.1:9/elsewhere")]
    async with script.client() as platform:
        with pytest.raises(PermanentError):
            await platform.get("iv_1")
    assert len(script.seen) == 1


async def test_check_tells_an_api_from_another_server(script: Script, no_pauses: list[float]) -> None:
    async with script.client() as platform:
        script.answers = [data(["something", "else"])]
        with pytest.raises(UnavailableError, match="not as the invocation API"):
            await platform.check()


async def test_check_says_who_we_are_and_where(script: Script) -> None:
    actions = data({"items": [{"org_id": "og_of_somebody"}], "next_token": None})
    user = data({"user_id": "ada@example.org"})
    orgs = data([{"org_id": "og_2"}, {"org_id": "og_1"}])
    unknown = error(404, "RobotoNotFoundException")
    async with script.client() as platform:
        script.answers = [actions, user, orgs]
        accepts = f"{script.endpoint} accepts the token"
        assert await platform.check() == f"{accepts} of ada@example.org in organisation og_1, og_2"
        script.answers = [actions, unknown]
        assert await platform.check() == accepts
        script.answers = [actions, data(["something", "else"]), data({"no": "list"})]
        assert await platform.check() == accepts
    async with script.client(org_id="og_2") as platform:
        script.answers = [actions, user]
        assert await platform.check() == f"{accepts} of ada@example.org in organisation og_2"


async def test_find_asks_for_no_more_than_is_wanted(script: Script) -> None:
    def page(number: int, next_token: str | None) -> Any:
        source = {"source_type": "Manual", "source_id": "airflow:dags/d/runs/r/tasks/t?try_number=1"}
        record = {**INVOCATION, "provenance": {**INVOCATION["provenance"], "source": source}}
        records = [{**record, "invocation_id": f"iv_{number + offset}"} for offset in range(2)]
        return data({"items": records, "next_token": next_token})

    async with script.client() as platform:
        script.answers = [page(0, "more"), page(2, "and more"), page(4, None)]
        found = await platform.find("d", "r", None, None, 3)
        assert [each.invocation_id for each in found] == ["iv_0", "iv_1", "iv_2"]
        assert [seen.body["limit"] for seen in script.seen] == [3, 3]
        script.answers = [page(0, "more"), page(2, None)]
        assert len(await platform.find("d", "r", None, None)) == 4


@pytest.mark.parametrize(
    ("endpoint", "base", "url"),
    [
        ("https://api.roboto.ai", None, "https://app.roboto.ai/actions/invocations/iv_1"),
        ("http://127.0.0.1:8085", None, "http://127.0.0.1:8085/actions/invocations/iv_1"),
        ("https://api.roboto.ai", "https://ui.example/x/", "https://ui.example/x/actions/invocations/iv_1"),
        ("https://api.roboto.ai", "javascript:alert(1)//", ""),
        ("https://api.roboto.ai", "https://ui.example/\nx", ""),
    ],
)
def test_the_link_to_an_invocation(endpoint: str, base: str | None, url: str) -> None:
    platform = RobotoPlatform(RobotoSettings(endpoint, "t", link_base=base))
    assert platform.url("iv_1") == url
    # The page of the local server has a part for the log; what the app of Roboto has isn't known.
    part = "" if "api." in endpoint else "#log"
    assert platform.logs_url("iv_1") == (url and f"{url}{part}")


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ({"detail": "exit code 65: no such column"}, 65),
        ({"detail": "exit code 3"}, 3),
        ({"detail": "exit code 3", "exit_code": 64}, 64),
        ({"detail": "the exit code 3 was not it"}, None),
        ({"detail": "exit code " + "9" * 5000}, None),
        ({"detail": None}, None),
    ],
)
async def test_an_exit_code_is_a_field_or_stands_in_the_detail(
    script: Script, step: dict[str, Any], code: int | None
) -> None:
    failed = {"status": 998, "timestamp": "2026-01-31T12:00:02Z", **step}
    source = {"source_type": "Manual", "source_id": "airflow:dags/d/runs/r/tasks/t?try_number=1"}
    known = {
        **INVOCATION,
        "last_status": 998,
        "status": [*INVOCATION["status"], failed],
        "provenance": {**INVOCATION["provenance"], "source": source},
    }
    page = {"items": [known], "next_token": None}
    script.answers = [data(known), data(known), data(page), data(page), data(page)]
    async with script.client() as platform:
        found = [
            await platform.get("iv_1"),
            await platform.invoke("a", request(idempotency_id="k")),
            *await platform.find("d", None, None, None),
            await platform.newest("a", datetime.datetime.now(datetime.UTC)),
            *await platform.records(["iv_1"]),
        ]
    assert [isinstance(one, InvocationRecord) and one.current.exit_code for one in found] == [code] * 5
