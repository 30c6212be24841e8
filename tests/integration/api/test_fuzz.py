"""Whatever is sent to the API: an answer of the API's own, never a 5xx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from ..conftest import LocalServer

#: Streams don't end, so they are tested elsewhere; the browser's pages speak HTML.
LEFT_OUT = {"/v1/actions/invocations/watch", "/", "/login", "/logout", "/actions/invocations/{invocation_id}"}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_is_answered_with_a_5xx(
    start_server: Callable[..., LocalServer], mode: GenerationMode
) -> None:
    server = start_server("--slots", "0")  # made-up commands are stored, and never run
    schema = schemathesis.openapi.from_url(f"{server.endpoint}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in LEFT_OUT:
            continue
        tried += 1

        @settings(
            max_examples=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],  # what fails is told as it was found: making it smaller takes minutes
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def is_answered(case: Any) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {server.token}"})
            assert answer.status_code < 500 or answer.status_code == 501, answer.text
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert error["error_code"].startswith("Roboto")
                assert error["message"]

        try:
            is_answered()
        except Unsatisfiable:  # nothing wrong can be said to an operation without parameters
            assert mode is GenerationMode.NEGATIVE
    assert tried > 15


ODD = ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "%ff", "a" * 5000, "é", "' OR 1=1 --", "*", "%25"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "v1/actions/{}"),
        ("PUT", "v1/actions/{}"),
        ("DELETE", "v1/actions/{}"),
        ("POST", "v1/actions/{}/invoke"),
        ("GET", "v1/actions/invocations/{}"),
        ("GET", "v1/actions/invocations/{}/logs"),
        ("GET", "v1/actions/invocations/{}/logs/stream"),
        ("POST", "v1/actions/invocations/{}/cancel"),
        ("PATCH", "v1/actions/invocations/watch/{}"),
    ],
)
def test_an_odd_name_is_a_name_and_nothing_more(
    server: LocalServer, method: str, path: str, name: str
) -> None:
    address = f"{server.endpoint}/{path.format(name)}"
    headers = {"Authorization": f"Bearer {server.token}"}
    answer = httpx.request(method, httpx.URL(address), headers=headers, json={} if method != "GET" else None)
    assert 400 <= answer.status_code < 500
    assert "error" in answer.json()


@pytest.mark.parametrize(
    "cursor", ["0.999999999", "999999999999999999.0", "-1.0", "1.0", "../../x", "0.0.0", "", "1e5"]
)
def test_a_log_cursor_that_nobody_handed_out_is_rejected_or_harmless(
    server: LocalServer, cursor: str
) -> None:
    body = {"name": "cursed", "container_parameters": {"command": ["sh", "-c", "echo a; echo b"]}}
    server.request("POST", "v1/actions", json=body)
    invocation = {
        "data_source_id": "__UNSPECIFIED_DATA_SOURCE__", "data_source_type": "Dataset", "input_data": [],
        "invocation_source": "Manual", "idempotency_id": "cursed",
    }  # fmt: skip
    created = server.request("POST", "v1/actions/cursed/invoke", json=invocation).json()["data"]
    path = f"v1/actions/invocations/{created['invocation_id']}/logs/stream"
    answer = server.request("GET", path, params={"last_read": cursor})
    assert answer.status_code == 400
    assert answer.json()["error"]["error_code"] == "RobotoInvalidRequestException"
