"""What is compared before an invocation is adopted, and how differences are named."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_invocations.models import (
    ContainerParameters,
    DataSelector,
    FileSelector,
    InvocationInput,
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
    UploadDestination,
    digests_of,
)
from airflow_invocations.platforms import Capabilities, RepeatedIdError, RequestConflictError
from airflow_invocations.tasks.adoption import check_adopted, invoke_once

from ...support.records import (
    INVOCATION,
)

SECRET = "roboto-secret://token"


def record(**fields: Any) -> InvocationRecord:
    return InvocationRecord.model_validate({**INVOCATION, **fields})


def request(**fields: Any) -> InvocationRequest:
    return InvocationRequest(invocation_source=InvocationSource.Manual, **fields)


def differences(
    found: InvocationRecord, asked: InvocationRequest, action: str = "a", **options: Any
) -> list[str]:
    try:
        check_adopted(found, action, asked, options.pop("can", Capabilities()), **options)
    except RequestConflictError as conflict:
        return conflict.differences
    return []


@pytest.mark.parametrize(
    ("recorded", "asked", "expected"),
    [
        pytest.param({"n": 1}, {"n": 1}, [], id="the same"),
        pytest.param({"n": 1, "more": 2}, {"n": 1}, [], id="the action's defaults are in the record"),
        pytest.param({"n": "1"}, {"n": 1}, [], id="kept as a text"),
        pytest.param({"n": "[1, 2]"}, {"n": [1, 2]}, [], id="a list as a text"),
        pytest.param({"n": "True"}, {"n": True}, [], id="a boolean as Python's text"),
        pytest.param({"n": {"b": 1, "a": 2}}, {"n": {"a": 2, "b": 1}}, [], id="in another order"),
        pytest.param({"n": 1}, {"n": 2}, ["parameter 'n' (another value)"], id="another number"),
        pytest.param({"n": 1}, {"n": "1"}, ["parameter 'n' (another value)"], id="a text for a number"),
        pytest.param(
            {"n": 1}, {"n": True}, ["parameter 'n' (another value)"], id="a boolean is not a number"
        ),
        pytest.param({}, {"n": None}, ["parameter 'n' (given now, not first)"], id="new"),
        pytest.param({"n": SECRET}, {"n": SECRET + "2"}, ["parameter 'n' (another value)"], id="a secret"),
        pytest.param({"volatile": 1, "n": 1}, {"volatile": 2, "n": 1}, [], id="one that may change"),
    ],
)
def test_parameters(recorded: dict[str, Any], asked: dict[str, Any], expected: list[str]) -> None:
    found = record(parameter_values=recorded)
    assert differences(found, request(parameter_values=asked), volatile=["volatile"]) == expected


INPUT = InvocationInput(files=FileSelector(names=["a"]))


@pytest.mark.parametrize(
    ("recorded", "asked", "expected"),
    [
        ({}, {"data_source_id": "ds_1"}, []),
        ({}, {"data_source_id": "ds_2"}, ["data_source_id"]),
        ({"input_data": ["*.csv"]}, {"input_data": ["*.csv"]}, []),
        ({"input_data": ["*.csv"]}, {"input_data": ["*.bag"]}, ["input_data"]),
        ({"input_data": ["*.csv"]}, {}, ["input_data"]),
        ({"rich_input_data": INPUT}, {"rich_input_data": INPUT}, []),
        (
            {"rich_input_data": INPUT},
            {"rich_input_data": InvocationInput(topics=DataSelector(names=["a"]))},
            ["input_data"],
        ),
        ({"upload_destination": {"destination_id": "ds_1"}}, {}, []),
        (
            {"upload_destination": {"destination_id": "ds_1", "destination_path": "x"}},
            {"upload_destination": UploadDestination(destination_id="ds_1")},
            [],
        ),
        ({}, {"upload_destination": UploadDestination(destination_id="ds_1")}, ["upload_destination"]),
        (
            {"container_parameters": {"command": ["a"], "env_vars": {"TRY": "1"}}},
            {"container_parameter_overrides": ContainerParameters(command=["a"], env_vars={"TRY": "2"})},
            [],
        ),
        (
            {"container_parameters": {"command": ["a"]}},
            {"container_parameter_overrides": ContainerParameters(command=["b"])},
            ["container_parameters"],
        ),
        ({"timeout": 30}, {"timeout": 60}, []),
    ],
)
def test_input_destination_and_command(
    recorded: dict[str, Any], asked: dict[str, Any], expected: list[str]
) -> None:
    assert differences(record(**recorded), request(**asked)) == expected


def test_another_action() -> None:
    assert differences(record(), request(), action="b") == ["action ('a' first, 'b' now)"]


def test_where_a_platform_keeps_digests_these_are_compared() -> None:
    can = Capabilities(parameters=False, input_data=False, upload_destination=False)
    found = record().with_parameter_digests(digests_of({"n": 1, "gone": SECRET}, "k"))
    asked = request(parameter_values={"n": 2, "new": 1, "v": 1}, idempotency_id="k")
    assert differences(found, asked, action="another name of it", can=can, volatile=["v"]) == [
        "parameter 'n' (another value)",
        "parameter 'gone' (given first, not now)",
        "parameter 'new' (given now, not first)",
    ]
    same = request(parameter_values={"n": 1, "gone": SECRET}, idempotency_id="k")
    assert differences(found, same, can=can) == []
    # A run from before it had digests.
    assert differences(record(), asked, can=can) == []


def test_a_digest_says_nothing_without_its_key() -> None:
    assert digests_of({"n": 1}, "k") != digests_of({"n": 1}, "l")
    assert digests_of({"n": {"a": 1, "b": 2}}, "k") == digests_of({"n": {"b": 2, "a": 1}}, "k")


def test_no_value_is_in_the_message() -> None:
    with pytest.raises(RequestConflictError) as conflict:
        check_adopted(
            record(parameter_values={"token": "first-s3cret"}),
            "a",
            request(parameter_values={"token": "second-s3cret"}),
            Capabilities(),
        )
    assert "s3cret" not in str(conflict.value)
    assert "iv_1 has a different request: parameter 'token'" in str(conflict.value)


class Rejecting:
    """A platform that answers a repeated idempotency id with 409, whatever is asked for."""

    capabilities = Capabilities()

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        raise RepeatedIdError("409", record(parameter_values={"n": 1}))


@pytest.mark.anyio
async def test_a_repeated_request_gets_its_invocation_and_another_one_a_conflict() -> None:
    platform: Any = Rejecting()
    found = await invoke_once(platform, "a", request(parameter_values={"n": 1}, idempotency_id="k"))
    assert found.invocation_id == "iv_1"
    with pytest.raises(RequestConflictError, match="parameter 'n'"):
        await invoke_once(platform, "a", request(parameter_values={"n": 2}, idempotency_id="k"))
