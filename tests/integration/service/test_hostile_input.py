"""What a caller may send to freeze, fill or break the service: refused, and the service goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.service.administration import add_dataset

from ..conftest import Service


@pytest.fixture
def dataset_id(service: Service, tmp_path: Path) -> str:
    """A dataset with one file, whose name is long and ordinary."""
    (tmp_path / ("a" * 64)).write_text("1")
    return add_dataset(service.data_dir, str(tmp_path), tmp_path, "og_local")


def message(answer: Any) -> str:
    text: str = answer.json()["error"]["message"]
    return text


class TestPatterns:
    """Patterns of files, as in a .gitignore."""

    def test_a_pattern_of_many_wildcards_does_not_hold_the_service_up(
        self, service: Service, dataset_id: str
    ) -> None:
        body = {"include_patterns": ["*?" * 20 + "Z", "*a" * 30 + "*"]}
        answer = service.request("POST", f"v1/datasets/{dataset_id}/files/query", json=body)
        assert answer.status_code == 200
        assert [file["relative_path"] for file in answer.json()["data"]["items"]] == ["a" * 64]

    @pytest.mark.parametrize(
        ("pattern", "why"),
        [("[z-a]", "the range z-a is empty"), ("[a", "a '[' has no ']'"), ("a\\", "nothing follows")],
    )
    def test_a_pattern_that_cannot_be_read_is_refused_before_anything_runs(
        self, service: Service, dataset_id: str, pattern: str, why: str
    ) -> None:
        action = {"name": "patterned", "container_parameters": {"command": ["true"]}}
        assert service.request("POST", "v1/actions", json=action).status_code in (200, 409)
        selector = {"dataset_id": dataset_id, "paths": [pattern]}
        for path, body in (
            (f"v1/datasets/{dataset_id}/files/query", {"include_patterns": [pattern]}),
            (f"v1/datasets/{dataset_id}/files/query", {"exclude_patterns": ["x", pattern]}),
            ("v1/actions/patterned/invoke", {"data_source_id": dataset_id, "input_data": [pattern]}),
            ("v1/actions/patterned/invoke", {"rich_input_data": {"files": selector}}),
            ("v1/actions/patterned/invoke", {"rich_input_data": {"files": [selector]}}),
        ):
            answer = service.request("POST", path, json={"invocation_source": "Manual", **body})
            assert answer.status_code == 400, (path, body)
            assert why in message(answer)
