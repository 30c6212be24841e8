"""What a caller may send to freeze, fill or break the server: rejected, and the server goes on."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.server.admin import add_dataset

from ...support.waiting import until
from ..conftest import LocalServer


@pytest.fixture
def dataset_id(server: LocalServer, tmp_path: Path) -> str:
    """A dataset with one file, whose name is long and ordinary."""
    (tmp_path / ("a" * 64)).write_text("1")
    return add_dataset(server.data_dir, str(tmp_path), tmp_path, "og_local")


def message(answer: Any) -> str:
    text: str = answer.json()["error"]["message"]
    return text


class TestPatterns:
    """Patterns of files, as in a .gitignore."""

    def test_a_pattern_of_many_wildcards_does_not_hold_the_service_up(
        self, server: LocalServer, dataset_id: str
    ) -> None:
        body = {"include_patterns": ["*?" * 20 + "Z", "*a" * 30 + "*"]}
        answer = server.request("POST", f"v1/datasets/{dataset_id}/files/query", json=body)
        assert answer.status_code == 200
        assert [file["relative_path"] for file in answer.json()["data"]["items"]] == ["a" * 64]

    @pytest.mark.parametrize(
        ("pattern", "why"),
        [("[z-a]", "the range z-a is empty"), ("[a", "a '[' has no ']'"), ("a\\", "nothing follows")],
    )
    def test_a_pattern_that_cannot_be_read_is_rejected_before_anything_runs(
        self, server: LocalServer, dataset_id: str, pattern: str, why: str
    ) -> None:
        action = {"name": "patterned", "container_parameters": {"command": ["true"]}}
        assert server.request("POST", "v1/actions", json=action).status_code in (200, 409)
        selector = {"dataset_id": dataset_id, "paths": [pattern]}
        for path, body in (
            (f"v1/datasets/{dataset_id}/files/query", {"include_patterns": [pattern]}),
            (f"v1/datasets/{dataset_id}/files/query", {"exclude_patterns": ["x", pattern]}),
            ("v1/actions/patterned/invoke", {"data_source_id": dataset_id, "input_data": [pattern]}),
            ("v1/actions/patterned/invoke", {"rich_input_data": {"files": selector}}),
            ("v1/actions/patterned/invoke", {"rich_input_data": {"files": [selector]}}),
        ):
            answer = server.request("POST", path, json={"invocation_source": "Manual", **body})
            assert answer.status_code == 400, (path, body)
            assert why in message(answer)


def action(server: LocalServer, name: str = "plain") -> str:
    body = {"name": name, "container_parameters": {"command": ["true"]}}
    assert server.request("POST", "v1/actions", json=body).status_code in (200, 409)
    return name


def post(server: LocalServer, method: str, path: str, text: str) -> httpx.Response:
    """Send a body as it is: what Python's JSON would not write."""
    headers = {"Content-Type": "application/json"}
    return server.request(method, path, content=text.encode(), headers=headers)


class TestBodies:
    """Bodies that no reader of JSON can read, or that are too much of something."""

    @pytest.mark.parametrize(
        "value",
        [r'"\ud800"', r'"a\udfffb"', "NaN", "Infinity", "-1e999", "9" * 5000, "[" * 150 + "]" * 150],
        ids=["surrogate", "low surrogate", "nan", "infinity", "1e999", "digits", "deep"],
    )
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", "v1/actions/invocations/{invocation}/state", '{"state": %s}'),
            ("PUT", "v1/actions/plain", '{"description": %s}'),
            ("PUT", "v1/actions/plain", '{"metadata_changeset": {"put_fields": {"a": %s}}}'),
            ("PUT", "v1/datasets/{dataset}", '{"metadata_changeset": {"put_fields": {"a": %s}}}'),
            ("PUT", "v1/datasets/{dataset}", '{"description": %s}'),
            ("PUT", "v1/files/record/{file}", '{"description": %s}'),
            ("POST", "v1/actions/plain/invoke",
             '{"invocation_source": "Manual", "parameter_values": {"p": %s}}'),
            ("POST", "v1/actions/plain/invoke", '{"invocation_source": "Manual", "idempotency_id": %s}'),
            ("POST", "v1/datasets", '{"metadata": {"a": [%s]}}'),
            ("POST", "v1/actions/invocations/query",
             '{"condition": {"field": "created", "comparator": "EQUALS", "value": %s}}'),
        ],
    )  # fmt: skip
    def test_values_that_cannot_be_stored_are_rejected(
        self, server: LocalServer, dataset_id: str, method: str, path: str, body: str, value: str
    ) -> None:
        made = server.request(
            "POST", f"v1/actions/{action(server)}/invoke", json={"invocation_source": "Manual"}
        )
        places = {
            "invocation": made.json()["data"]["invocation_id"],
            "dataset": dataset_id,
            "file": server.request("POST", f"v1/datasets/{dataset_id}/files/query", json={}).json()["data"][
                "items"
            ][0]["file_id"],
        }
        answer = post(server, method, path.format(**places), body % value)
        assert answer.status_code == 400, answer.text
        assert len(answer.content) < 3000

    def test_millions_of_conditions_are_rejected_quickly_and_briefly(self, server: LocalServer) -> None:
        ones = ",".join(["1"] * 2_500_000)
        body = f'{{"condition":{{"operator":"OR","conditions":[{ones}]}}}}'
        began = time.monotonic()
        answer = post(server, "POST", "v1/actions/invocations/query", body)
        assert answer.status_code == 400
        assert len(answer.content) < 3000
        # 123 s without the limit; a second or two with it, on a busy machine.
        assert time.monotonic() - began < 30

    def test_an_error_names_the_first_problems_and_counts_the_others(self, server: LocalServer) -> None:
        body = {"name": "x", "parameters": [1] * 1000}
        told = message(server.request("POST", "v1/actions", json=body))
        assert told.startswith("body.parameters.0: ")
        assert told.endswith("; and 995 more")

    @pytest.mark.parametrize("operator", ["AND", "OR", "NOT"])
    def test_as_many_conditions_as_are_allowed_are_answered(self, server: LocalServer, operator: str) -> None:
        one = {"field": "name", "comparator": "NOT_EQUALS", "value": "x"}
        for count, status in ((1999, 200), (2001, 400)):
            body = {"condition": {"operator": operator, "conditions": [one] * count}}
            assert server.request("POST", "v1/actions/query", json=body).status_code == status

    @pytest.mark.parametrize("operator", ["AND", "OR"])
    def test_as_many_joined_comparisons_as_are_allowed_are_answered(
        self, server: LocalServer, operator: str
    ) -> None:
        query = f" {operator} ".join(f'metadata.v != "x{number}"' for number in range(1999))
        body = {"target": "datasets", "query": query}
        assert server.request("POST", "v1/query/submit/roboql", json=body).status_code == 200

    @pytest.mark.parametrize("number", ["9" * 5000, "1e999", "1." + "0" * 400])
    def test_a_number_in_roboql_that_is_none_is_rejected(self, server: LocalServer, number: str) -> None:
        body = {"target": "files", "query": f"metadata.v > {number}"}
        answer = server.request("POST", "v1/query/submit/roboql", json=body)
        assert answer.status_code == 400
        assert message(answer).startswith("RoboQL")
        assert len(answer.content) < 3000


class TestMetadata:
    """Metadata that would keep its whole organisation from querying."""

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ('{"speed": 1e400}', "inf is not a number in JSON"),
            ('{"speed": NaN}', "nan is not a number in JSON"),
            ('{"' + ".".join("a" * 5000) + '": 1}', "has 5000 parts"),
            ('{"a.b": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 levels deep"),
        ],
        ids=["infinity", "nan", "key", "value"],
    )
    def test_invalid_metadata_of_an_action_is_rejected_with_the_reason(
        self, server: LocalServer, dataset_id: str, tmp_path: Path, fields: str, why: str
    ) -> None:
        noted = tmp_path.parent / f"{tmp_path.name}-noted.json"
        noted.write_text(f'{{"put_fields": {fields}}}')
        script = f'cp {noted} "$ROBOTO_DATASET_METADATA_CHANGESET_FILE"'
        name = f"notes-{uuid.uuid4().hex[:8]}"
        body: dict[str, Any] = {"name": name, "container_parameters": {"command": ["sh", "-c", script]}}
        assert server.request("POST", "v1/actions", json=body).status_code == 200
        body = {"invocation_source": "Manual", "data_source_id": dataset_id, "input_data": ["*"]}
        made = server.request("POST", f"v1/actions/{name}/invoke", json=body).json()["data"]
        path = f"v1/actions/invocations/{made['invocation_id']}"

        def ended() -> dict[str, Any] | None:
            record: dict[str, Any] = server.request("GET", path).json()["data"]
            return record if record["last_status"] >= 5 else None

        last = until(ended)["status"][-1]
        assert "the upload failed" in last["detail"]
        assert why in last["detail"]
        query = {"target": "datasets", "query": "metadata.speed > 1"}
        assert server.request("POST", "v1/query/submit/roboql", json=query).status_code == 200

    def test_keys_deepen_metadata_only_to_the_limit(self, server: LocalServer, dataset_id: str) -> None:
        path = f"v1/datasets/{dataset_id}"
        for depth, status in ((30, 200), (32, 200), (33, 400), (200, 400), (5000, 400)):
            for name in ("put_fields", "remove_fields"):
                key = ".".join("k" * depth)
                changes = {name: {key: 1} if name == "put_fields" else [key]}
                answer = server.request("PUT", path, json={"metadata_changeset": changes})
                assert answer.status_code == status, (depth, name)
                assert len(answer.content) < 60_000


class TestSlowQueries:
    """Queries that take as long as they can."""

    def test_they_end_and_hold_up_nobody_else(self, start_server: Any, tmp_path: Path) -> None:
        server = start_server("--slots", "1")
        for number in range(200):
            body = {"name": f"d{number}", "description": "a" * 65_000}
            assert server.request("POST", "v1/datasets", json=body).status_code == 200
        action(server, "echo")
        conditions = [
            {"field": "description", "comparator": "LIKE", "value": "%" + "a_" * 490 + f"b{number}"}
            for number in range(2)
        ]
        slow = {"condition": {"operator": "OR", "conditions": conditions}}
        too_slow = {"condition": {"operator": "OR", "conditions": [*conditions, conditions[0]]}}
        rejected = server.request("POST", "v1/datasets/query", json=too_slow)
        assert rejected.status_code == 400
        assert "2000 characters in all" in message(rejected)
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(server.request, "POST", "v1/datasets/query", json=slow) for _ in range(20)]
            made = server.request("POST", "v1/actions/echo/invoke", json={"invocation_source": "Manual"})
            for path in (
                "readyz",
                "v1/users",
                f"v1/actions/invocations/{made.json()['data']['invocation_id']}",
            ):
                assert server.request("GET", path).status_code == 200
            statuses = {one.result().status_code for one in asked}
        assert statuses <= {200, 400, 503}

        def ended() -> int | None:
            record = server.request("GET", f"v1/actions/invocations/{made.json()['data']['invocation_id']}")
            status: int = record.json()["data"]["last_status"]
            return status if status >= 5 else None

        assert until(ended) == 5
