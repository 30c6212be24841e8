"""The API as bare HTTP: the envelope of every answer, who is let in, and how much is read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ..conftest import LocalServer


def task_error(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, which is in the envelope and nothing else is."""
    content = answer.json()
    assert list(content) == ["error"]
    assert set(content["error"]) == {"error_code", "message"}
    assert content["error"]["message"]
    assert "Traceback" not in answer.text
    return answer.status_code, content["error"]["error_code"]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic dTpw", "wrong"])
def test_requests_without_the_token_are_rejected(server: LocalServer, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    tried = 0
    with httpx.Client(base_url=server.endpoint, headers=headers) as client:
        for path, methods in client.get("/openapi.json").json()["paths"].items():
            for method in methods:
                if path.startswith("/v1/"):
                    address = path.replace("{", "").replace("}", "")
                    answer = client.request(method.upper(), address, json={})
                    assert task_error(answer) == (401, "RobotoUnauthorizedException"), (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    tried += 1
    assert tried >= 10


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "v1"),
        ("GET", "v2/actions/act"),
        ("GET", "v1/actions/act/unknown"),
        ("GET", "v1/actions/invocations/iv_1/unknown"),
        ("GET", "v1/actions/a%2Fb"),
        ("GET", "%2e%2e/server.json"),
    ],
)
def test_an_unknown_route_is_an_unknown_operation_and_not_missing_data(
    server: LocalServer, method: str, path: str
) -> None:
    assert task_error(server.request(method, path)) == (404, "RobotoUnknownOperationException")
    assert task_error(server.request("GET", "v1/datasets/ds_1")) == (404, "RobotoNotFoundException")


@pytest.mark.parametrize(
    ("method", "path", "feature"),
    [
        ("POST", "v1/sessions", "sessions"),
        ("GET", "v1/datasets/ds_1/sessions", "sessions"),
        ("GET", "v1/triggers/nightly", "triggers"),
        ("GET", "v1/topics/id/tp_1", "topics"),
        ("POST", "v1/events", "events"),
        ("GET", "v1/datasets/ds_1/summary", "summaries"),
        ("DELETE", "v1/orgs/id/og_local", "management of organisations"),
        ("PUT", "v1/users", "management of users"),
    ],
)
def test_a_feature_that_only_the_platform_has_is_not_implemented(
    server: LocalServer, method: str, path: str, feature: str
) -> None:
    answer = server.request(method, path)
    assert task_error(answer) == (501, "RobotoNotImplementedException")
    assert feature in answer.text


@pytest.mark.parametrize(("method", "path"), [("PATCH", "v1/actions/act"), ("DELETE", "v1/actions")])
def test_a_method_that_a_route_does_not_have_is_405_in_the_envelope(
    server: LocalServer, method: str, path: str
) -> None:
    answer = server.request(method, path)
    assert task_error(answer) == (405, "RobotoUnknownOperationException")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"name": "a", "name": NaN, "timeout": NaN}',
        b'{"name": 5}', b"[" * 100_000, b'{"name": "a", "metadata": {"x": 1' + b"0" * 5000 + b"}}",
        b'{"name": "a", "metadata": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"name": "a", "metadata": {"x": "\\ud800"}}', b'{"name": "a\\u0000b"}',
        b'{"name": "a", "tags": "x"}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_400_in_the_envelope(server: LocalServer, body: bytes) -> None:
    answer = server.request("POST", "v1/actions", content=body, headers={"Content-Type": "application/json"})
    assert task_error(answer) == (400, "RobotoInvalidRequestException")


def test_a_rejection_names_every_problem_and_where_it_is(server: LocalServer) -> None:
    answer = server.request("POST", "v1/actions", json={"timeout": 0, "compute_requirements": {"vCPU": 3}})
    message = answer.json()["error"]["message"]
    assert "body.name: Field required" in message
    assert "body.timeout: Input should be greater than or equal to 1" in message
    assert "body.compute_requirements: Value error, vCPU is 3; allowed: 256, 512" in message


@pytest.mark.parametrize("size", [8 * 1024 * 1024 + 1, 40 * 1024 * 1024])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_request_over_eight_mebibytes_is_413_in_the_envelope(
    server: LocalServer, size: int, announced: bool
) -> None:
    body = b'{"name": "' + b"x" * (size - 12) + b'"}'
    content: Any = body if announced else (body[start : start + 2**16] for start in range(0, size, 2**16))
    answer = server.request(
        "POST", "v1/actions", content=content, headers={"Content-Type": "application/json"}
    )
    assert task_error(answer) == (413, "RobotoInvalidRequestException")
    assert "larger than 8388608 bytes" in answer.json()["error"]["message"]


def test_eight_mebibytes_are_not_too_much(server: LocalServer) -> None:
    limit = 8 * 1024 * 1024
    frame = b'{"name": "large", "container_parameters": {"command": ["true"]}}'
    body = frame[:-1] + b" " * (limit - len(frame)) + frame[-1:]
    answer = server.request("POST", "v1/actions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    body += b" "
    answer = server.request("POST", "v1/actions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize(
    ("field", "status", "hint"),
    [
        ({"input_data": ["a"]}, 400, "input_data needs data_source_id"),
        (
            {"data_source_id": "ds_none", "input_data": ["a"]},
            400,
            "data_source_id: there is no dataset 'ds_none'",
        ),
        (
            {"upload_destination": {"destination_id": "ds_none"}},
            400,
            "upload_destination: there is no dataset",
        ),
        (
            {"upload_destination": {"destination_type": "Bucket"}},
            400,
            "must be the id of a dataset on this server",
        ),
        ({"rich_input_data": {"files": {"paths": ["a"]}}}, 400, "paths need dataset_id"),
        ({"rich_input_data": {"files": {"query": "path = "}}}, 400, "RoboQL, character 8: found the end"),
        ({"rich_input_data": {"files": {"query": "color = 1"}}}, 400, "'color' can't be queried"),
        ({"rich_input_data": {"topics": {"names": ["/imu"]}}}, 501, "no topics and no sessions"),
    ],
)
def test_an_input_that_can_not_be_had_is_rejected_at_once(
    server: LocalServer, field: dict[str, Any], status: int, hint: str
) -> None:
    container = {"command": ["true"]}
    server.request("POST", "v1/actions", json={"name": "reads", "container_parameters": container})
    answer = server.request("POST", "v1/actions/reads/invoke", json={"invocation_source": "Manual", **field})
    assert answer.status_code == status
    assert hint in answer.json()["error"]["message"]


def test_a_page_says_next_token_also_when_there_is_none(server: LocalServer) -> None:
    nothing = {"condition": {"field": "name", "comparator": "EQUALS", "value": "no such action"}}
    answer = server.request("POST", "v1/actions/query", json=nothing)
    assert answer.json() == {"data": {"items": [], "next_token": None}}


def test_an_answer_does_not_say_what_serves_it(server: LocalServer) -> None:
    assert "server" not in server.request("GET", "v1/actions/act").headers
