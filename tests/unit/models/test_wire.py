"""Records accept and produce the same JSON as the published client."""

from __future__ import annotations

import copy
import datetime
import itertools
import json
from typing import Any

import pydantic
import pytest
from pydantic_core import PydanticSerializationError

from airflow_invocations import models
from airflow_invocations.models.invocation import elapsed

from ...support.published import actions as published
from ...support.published import query as published_query

ACTION = {
    "created": "2026-01-31T12:00:00.000001Z",
    "created_by": "ada@example.com",
    "modified": "2026-01-31T13:00:00+01:00",
    "modified_by": "bob@example.com",
    "name": "find_anomalies",
    "org_id": "og_1",
    "accessibility": "action_hub",
    "compute_requirements": {"vCPU": 1024, "memory": 4096, "gpu": False, "storage": 30},
    "container_parameters": {
        "command": ["python", "main.py"],
        "entry_point": ["sh", "-c"],
        "env_vars": {"A": "1"},
        "workdir": "/work",
    },
    "description": "finds them",
    "digest": "5d41402abc4b2a76b9719d911017c592",
    "inherits": {"name": "base", "digest": "d", "owner": "og_2"},
    "metadata": {"team": "perception", "version": 3},
    "parameters": [
        {"name": "threshold", "required": True, "description": "sigma", "default": 3},
        {"name": "window"},
    ],
    "published": "2026-02-01T00:00:00Z",
    "requires_downloaded_inputs": False,
    "short_description": "short",
    "tags": ["sensors", "hourly"],
    "timeout": 30,
    "uri": "registry/image:1",
}
CREATE_ACTION = {
    name: ACTION[name]
    for name in (
        "name", "compute_requirements", "container_parameters", "description", "inherits", "metadata",
        "parameters", "requires_downloaded_inputs", "short_description", "tags", "timeout", "uri",
    )
}  # fmt: skip
SELECTORS = {
    "files": {"paths": ["**/*.bag"], "dataset_id": "ds_1"},
    "sessions": [{"ids": ["se_1", "se_2"]}, {"query": "duration > 5"}],
    "topics": {"names": ["/camera", "/imu"]},
}
CREATE_INVOCATION = {
    "data_source_id": "ds_1",
    "data_source_type": "Dataset",
    "input_data": ["**/*.csv"],
    "invocation_source": "Trigger",
    "invocation_source_id": "tr_1",
    "idempotency_id": "once",
    "rich_input_data": SELECTORS,
    "parameter_values": {
        "threshold": 2.5,
        "names": ["a", None],
        "deep": {"x": True, "y": None},
        "none": None,
    },
    "compute_requirement_overrides": {"vCPU": 256, "memory": 512},
    "container_parameter_overrides": {"env_vars": {"B": "2"}},
    "timeout": 5,
    "upload_destination": {"destination_type": "Dataset", "destination_id": "ds_2"},
}
INVOCATION = {
    "created": "2026-01-31T12:00:00Z",
    "data_source": {"data_source_type": "Dataset", "data_source_id": "ds_1"},
    "input_data": ["**/*.csv"],
    "rich_input_data": SELECTORS,
    "upload_destination": {"destination_type": "Dataset", "destination_id": "ds_2"},
    "invocation_id": "iv_1",
    "idempotency_id": "once",
    "compute_requirements": {"vCPU": 512, "memory": 1024, "gpu": False, "storage": 21},
    "container_parameters": {"command": ["true"]},
    "last_heartbeat": "2026-01-31T12:00:05Z",
    "last_status": 5,
    "org_id": "og_1",
    "parameter_values": {"threshold": 2.5},
    "provenance": {
        "action": {"name": "find_anomalies", "org_id": "og_1", "digest": "d"},
        "executable": {"container_image_uri": "registry/image:1", "container_image_digest": "sha256:1"},
        "source": {"source_type": "Manual", "source_id": "ada"},
    },
    "status": [
        {"status": 0, "detail": None, "timestamp": "2026-01-31T12:00:00Z"},
        {"status": 5, "detail": "None", "timestamp": "2026-01-31T12:01:00.5Z"},
    ],
    "duration": "PT1M0.5S",
    "timeout": 30,
}
LOG = {
    "partial_id": "a1",
    "log": "23 °C",
    "process": "output_handler",
    "timestamp": "2026-01-31T12:00:00.000001Z",
}
QUERY = {
    "condition": {
        "operator": "AND",
        "conditions": [
            {"field": "last_status", "comparator": "GREATER_THAN", "value": 4},
            {
                "operator": "NOT",
                "conditions": [{"field": "provenance.action.name", "comparator": "LIKE", "value": "a%"}],
            },
        ],
    },
    "limit": 10,
    "after": "token",
    "sort_by": "created",
    "sort_direction": "ASC",
}

#: Our record, the client's, and a full document.
RECORDS = {
    "ActionRecord": (models.ActionRecord, published.ActionRecord, ACTION),
    "CreateActionRequest": (models.CreateActionRequest, published.CreateActionRequest, CREATE_ACTION),
    "InvocationRequest": (models.InvocationRequest, published.CreateInvocationRequest, CREATE_INVOCATION),
    "InvocationRecord": (models.InvocationRecord, published.InvocationRecord, INVOCATION),
    "InvocationInput": (models.InvocationInput, published.InvocationInput, SELECTORS),
    "LogRecord": (models.LogRecord, published.LogRecord, LOG),
    "QuerySpecification": (models.QuerySpecification, published_query.QuerySpecification, QUERY),
}

#: What a field may be set to that wasn't meant for it.
ODD_VALUES = [None, True, False, 0, -1, 7, 2.5, "", "7", "x", [], ["x"], [None], {}, {"x": "y"}, [{}], 10**20]

#: Where we are stricter on purpose than the client, which leaves it to the platform to reject.
STRICTER: dict[tuple[str, str], list[Any]] = {
    ("CreateActionRequest", "timeout"): [0, -1, False],
    ("InvocationRequest", "timeout"): [0, -1, False],
    ("InvocationRequest", "idempotency_id"): [""],
    ("QuerySpecification", "limit"): [0, -1, False, 10**20],
}
#: Where we are laxer: what may be left out because it goes without saying.
LAXER = {
    "InvocationRequest": {"data_source_id", "data_source_type", "input_data"},
    "InvocationRecord": {"input_data"},
}

each_record = pytest.mark.parametrize("name", RECORDS)


def accepted(kind: type[pydantic.BaseModel], document: Any) -> pydantic.BaseModel | None:
    try:
        return kind.model_validate_json(json.dumps(document))
    except pydantic.ValidationError:
        return None


def produced(record: pydantic.BaseModel) -> Any:
    """What a record's own side would answer with, as JSON; None: the client can't say it."""
    try:
        content = json.loads(record.model_dump_json())
    except PydanticSerializationError:
        return None
    content.pop("max_results", None)  # of Roboto search only; other queries ignore it (client: specification)
    return content


def sent(record: pydantic.BaseModel) -> Any:
    """What the client sends for a request: what was set (client: HttpRequest.body)."""
    return json.loads(record.model_dump_json(exclude_unset=True))


@each_record
def test_full_document_round_trips_as_in_the_client(name: str) -> None:
    ours, theirs, document = RECORDS[name]
    mine, referee = accepted(ours, document), accepted(theirs, document)
    assert mine is not None
    assert referee is not None
    assert produced(mine) == produced(referee)
    assert set(type(mine).model_fields) - {"may_invoke"} == set(type(referee).model_fields) - {"max_results"}
    assert accepted(ours, produced(referee)) == mine
    assert accepted(theirs, produced(mine)) == referee


@pytest.mark.parametrize("name", ["CreateActionRequest", "InvocationRequest", "InvocationInput"])
def test_request_is_sent_as_by_the_client(name: str) -> None:
    ours, theirs, document = RECORDS[name]
    for size in (1, 2, len(document)):
        for fields in itertools.combinations(document, size):
            always = ("name", "invocation_source", "data_source_id", "data_source_type", "input_data")
            some = {field: document[field] for field in document if field in (*fields, *always)}
            mine, referee = ours.model_validate(some), theirs.model_validate(some)
            assert set(mine.wire()) == set(sent(referee))
            assert produced(theirs.model_validate(mine.wire())) == produced(referee)


def test_invocation_without_a_dataset_is_sent_as_by_the_client() -> None:
    nothing = published.InvocationDataSource.unspecified()
    referee = published.CreateInvocationRequest(
        data_source_id=nothing.data_source_id,
        data_source_type=nothing.data_source_type,
        input_data=[],
        invocation_source=published.InvocationSource.Manual,
    )
    mine = models.InvocationRequest(invocation_source=models.InvocationSource.Manual)
    assert mine.wire() == sent(referee)


@each_record
def test_fields_are_required_as_in_the_client(name: str) -> None:
    ours, theirs, document = RECORDS[name]
    for field in document:
        without = {key: value for key, value in document.items() if key != field}
        mine, referee = accepted(ours, without), accepted(theirs, without)
        if field in LAXER.get(name, ()):
            assert mine is not None
            assert referee is None
            continue
        assert (mine is None) == (referee is None), field
        if mine is not None and field != "digest":  # the client works a missing digest out by itself
            assert produced(mine) == produced(referee), field


@each_record
def test_field_accepts_the_same_values_as_in_the_client(name: str) -> None:
    ours, theirs, document = RECORDS[name]
    for path in paths(document):
        for odd in ODD_VALUES:
            changed = copy.deepcopy(document)
            put(changed, path, odd)
            mine, referee = accepted(ours, changed), accepted(theirs, changed)
            if is_stricter(name, path, odd):
                assert mine is None, (path, odd)
                continue
            if path == ("data_source",) and isinstance(odd, dict):  # it has a default: no dataset
                assert mine is not None
                continue
            is_status = path == ("last_status",) or (path[0], path[-1], len(path)) == ("status", "status", 3)
            if is_status and odd in (-1, 7):  # one that isn't known is kept, under a name that says so
                assert mine is not None
                continue
            assert (mine is None) == (referee is None), (path, odd, mine, referee)
            if mine is not None and not ("digest" in path and not odd):
                assert produced(referee) in (produced(mine), None), (path, odd)


@each_record
def test_fields_of_a_newer_platform_are_ignored(name: str) -> None:
    ours, _, document = RECORDS[name]
    newer = {**document, "invented_tomorrow": {"x": 1}}
    assert accepted(ours, newer) == accepted(ours, document)


def paths(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put into a document."""
    below = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, value in below:
        found.append((*above, key))
        if isinstance(value, dict | list):
            found += paths(value, (*above, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


def is_stricter(name: str, path: tuple[Any, ...], value: Any) -> bool:
    rejected = STRICTER.get((name, path[0]), []) if len(path) == 1 else []
    return any((type(value), value) == (type(odd), odd) for odd in rejected)


def test_compute_requirements_are_validated_as_by_the_client() -> None:
    units = [0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
    memories = {0, 511, 513, 122880 + 8192, *range(512, 122880 + 1, 512)}
    offered = 0
    for vcpu, memory in itertools.product(units, sorted(memories)):
        document = {"vCPU": vcpu, "memory": memory}
        mine = accepted(models.ComputeRequirements, document)
        referee = accepted(published.ComputeRequirements, document)
        assert (mine is None) == (referee is None), document
        offered += mine is not None
    assert offered == 3 + 4 + 7 + 13 + 23 + 12 + 12


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"gpu": True},
        {"gpu": False},
        {"storage": 20},
        {"storage": 21},
        {"storage": 200},
        {"memory_MiB": 2048},
        {"memory_mib": 2048},
        {"storage_GiB": 50},
        {"storage_gib": 20},
        {"vCPU": "1024", "memory": "2048"},
        {"vCPU": 1024.5},
    ],
)
def test_compute_requirements_have_the_clients_names_and_defaults(document: dict[str, Any]) -> None:
    mine = accepted(models.ComputeRequirements, document)
    referee = accepted(published.ComputeRequirements, document)
    assert (mine is None) == (referee is None)
    if mine is not None:
        assert produced(mine) == produced(referee)


def test_rejected_combination_names_the_allowed_ones() -> None:
    with pytest.raises(
        pydantic.ValidationError, match=r"memory is 512 MiB; with vCPU 1024 allowed: 2048 to 8192 in steps"
    ):
        models.ComputeRequirements(vCPU=1024, memory=512)
    with pytest.raises(pydantic.ValidationError, match="vCPU is 3; allowed: 256, 512, 1024"):
        models.ComputeRequirements(vCPU=3)


@pytest.mark.parametrize(
    "kinds",
    [
        (models.DataSelector, published.DataSelector),
        (models.FileSelector, published.FileSelector),
    ],
)
def test_selectors_require_the_same_fields_as_the_clients_and_drop_duplicates(kinds: Any) -> None:
    ours, theirs = kinds
    values = {
        "query": [None, "", "a = 1"],
        "ids": [None, [], ["b", "a", "b"]],
        "names": [None, [], ["n", "n"]],
        "dataset_id": [None, "ds_1"],
        "paths": [None, [], ["p", "p"]],
    }
    for combination in itertools.product(*values.values()):
        document = dict(zip(values, combination, strict=True))
        mine, referee = accepted(ours, document), accepted(theirs, document)
        assert (mine is None) == (referee is None), document
        if mine is not None:
            assert produced(mine) == produced(referee)


def test_empty_input_is_rejected_as_by_the_client() -> None:
    selector = {"ids": ["a"]}
    for files, sessions, topics in itertools.product([None, [], selector, [selector, selector]], repeat=3):
        document = {"files": files, "sessions": sessions, "topics": topics}
        mine = accepted(models.InvocationInput, document)
        referee = accepted(published.InvocationInput, document)
        assert (mine is None) == (referee is None), document
        if mine is not None:
            assert produced(mine) == produced(referee)


def test_enum_values_are_the_clients() -> None:
    for ours, theirs in [
        (models.Accessibility, published.Accessibility),
        (models.Comparator, published_query.Comparator),
        (models.ConditionOperator, published_query.ConditionOperator),
        (models.DataSourceType, published.InvocationDataSourceType),
        (models.InvocationSource, published.InvocationSource),
        (models.InvocationStatus, published.InvocationStatus),
        (models.LogProcess, published.ExecutorContainer),
        (models.SortDirection, published_query.SortDirection),
        (models.UploadDestinationType, published.UploadDestinationType),
    ]:
        assert {word.name: word.value for word in ours} == {word.name: word.value for word in theirs}
    assert published.InvocationDataSource.unspecified().data_source_id == models.UNSPECIFIED_DATA_SOURCE
    assert models.MAX_PAGE_SIZE == published_query.specification.MAX_PAGE_SIZE


def test_upload_destination_of_a_new_kind_is_unknown() -> None:
    document = {"destination_type": "Lake", "destination_id": "x"}
    mine = accepted(models.UploadDestination, document)
    referee = accepted(published.InvocationUploadDestination, document)
    assert mine is not None
    assert referee is not None
    assert produced(mine) == produced(referee) == {"destination_type": "Unknown", "destination_id": "x"}


def test_current_status_is_the_clients() -> None:
    steps = [(0, 0), (1, 1), (2, 1), (3, 2), (998, 3), (0, 3), (5, 2)]
    for order in itertools.permutations(steps, 4):
        document = {
            **INVOCATION,
            "status": [
                {"status": status, "detail": None, "timestamp": f"2026-01-31T12:00:0{second}Z"}
                for status, second in order
            ],
        }
        mine = models.InvocationRecord.model_validate(document)
        referee = published.Invocation(published.InvocationRecord.model_validate(document), object())
        assert mine.current.status == referee.current_status


def test_current_status_without_steps_is_the_last_status() -> None:
    record = models.InvocationRecord.model_validate({**INVOCATION, "status": []})
    assert record.current == models.StatusRecord(
        status=models.InvocationStatus.Completed, timestamp=record.created
    )


Step = tuple[str, int]

LIFE: list[Step] = [("Queued", 0), ("Scheduled", 2), ("Downloading", 2), ("Processing", 3), ("Uploading", 8)]


def lived(*steps: Step) -> models.InvocationRecord:
    """An invocation with these steps, each a second of the same minute."""
    records = [
        {"status": models.InvocationStatus[name].value, "timestamp": f"2026-01-31T12:00:{second:02}Z"}
        for name, second in steps
    ]
    created = "2026-01-31T12:00:00Z"
    return models.InvocationRecord.model_validate({**INVOCATION, "created": created, "status": records})


@pytest.mark.parametrize(
    ("steps", "started", "ended", "ran", "queued"),
    [
        ([*LIFE, ("Completed", 9)], 3, 9, 6, 3),
        (LIFE[:1], None, None, None, None),
        (LIFE, 3, None, None, 3),
        ([("Queued", 0), ("Cancelled", 5)], None, 5, None, None),
        ([*LIFE[:3], ("Failed", 4)], None, 4, None, None),
        # Processing is reported twice by some: the first one counts.
        ([*LIFE, ("Processing", 9), ("Completed", 10)], 3, 10, 7, 3),
        # Put back into the queue: only the last attempt counts, and the queue is all the time before it.
        ([*LIFE, ("Failed", 9), ("Queued", 10), ("Processing", 20), ("Completed", 25)], 20, 25, 5, 20),
        ([*LIFE, ("Failed", 9), ("Queued", 10)], None, None, None, None),
        # An attempt that follows another one without a queue between them, as on Flyte.
        ([*LIFE[:4], ("Failed", 9), ("Processing", 20), ("Completed", 25)], 20, 25, 5, 20),
        # Given up after its last attempt.
        ([*LIFE, ("Failed", 9), ("Deadly", 10)], 3, 10, 7, 3),
        # In any order.
        ([("Completed", 9), *reversed(LIFE)], 3, 9, 6, 3),
    ],
)
def test_times_of_an_invocation_follow_from_its_steps(
    steps: list[Step], started: int | None, ended: int | None, ran: int | None, queued: int | None
) -> None:
    record = lived(*steps)

    def second(moment: datetime.datetime | None) -> float | None:
        return None if moment is None else (moment - record.created).total_seconds()

    assert (second(record.started_at), second(record.ended_at)) == (started, ended)
    for found, expected in ((record.ran_for, ran), (record.queued_for, queued)):
        assert (None if found is None else found.total_seconds()) == expected
    present = record.created + datetime.timedelta(seconds=30)
    goes_on = 0 if started is None else 30 - started
    expected = goes_on if ended is None else ran or 0
    assert elapsed(record.status, present).total_seconds() == expected


def test_env_vars_are_overridden_by_name_and_other_fields_as_a_whole() -> None:
    own = models.ContainerParameters(command=["a", "b"], env_vars={"A": "1", "B": "2"}, workdir="/w")
    assert own.overridden_by(None) is own
    assert own.overridden_by(
        models.ContainerParameters(command=["c"], env_vars={"B": "3", "C": "4"})
    ) == models.ContainerParameters(command=["c"], env_vars={"A": "1", "B": "3", "C": "4"}, workdir="/w")
    nothing = models.ContainerParameters()
    assert nothing.overridden_by(nothing) == nothing
