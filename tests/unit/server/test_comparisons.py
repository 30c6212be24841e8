"""The server's conditions select what `roboto.query.Condition.matches` selects, for every pair of types."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_invocations.models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    MetadataChangeset,
    Page,
    QuerySpecification,
)
from airflow_invocations.models.dataset import FileUpdate, NewDataset
from airflow_invocations.server.dataset_storage import FoundFile
from airflow_invocations.server.db import Store
from airflow_invocations.server.errors import InvalidRequestError
from airflow_invocations.server.query.roboql import read_roboql

from ...support.published import query as published
from .conftest import ORG, USER, create, declared, invoke

NUMBERS: list[Any] = [
    0, 1, 9, 12, 15, -3, 2**53 + 1, 2**63 - 1, -(2**63), 12.0, 12.5, 0.1, -0.0, 1e300, True, False,
]  # fmt: skip
TEXTS = [
    "15", "9", "12", " 12 ", "1_2", "+12", "12.0", "1.5", "1e2", "inf", "nan", "٣", "true", "True", "unknown",
    "2024", "2024-05-01", "2024-05-01T00:00:00+00:00", "[12]", "[1, 2]", '{"x": 1}', "null", "", "%", "_",
    "1%", "%2%", "a_b", "a\\_b", "aXb", "a*b", "[x]", "a?b", "back\\slash", "\\", "München", "m\nn", "x",
]  # fmt: skip
HOLDERS: list[Any] = [
    [], [1, 2], [12], ["12", "x"], [True], [None], [[12]], [{"x": 1}], [12.0, 12.5], ["a_b"],
    {}, {"x": 1}, {"12": "x"}, {"true": True}, {"a_b": None, "m\nn": 1, 'q"q': 2}, {"x": {"y": 12}},
]  # fmt: skip
LARGE = [2**63, 2**64 + 1, -(2**70), 10**400]

ABSENT = object()
STORED = [None, ABSENT, *NUMBERS, *TEXTS, *HOLDERS, *LARGE, "12" * 3000]
ASKED = [*NUMBERS, *TEXTS, 'q"q', "2024-05-01T02:00:00+02:00"]
TEXTUAL = (Comparator.BeginsWith, Comparator.Like, Comparator.NotLike)
PRESENCE = (Comparator.IsNull, Comparator.IsNotNull, Comparator.Exists, Comparator.NotExists)
COMPARED = [comparator for comparator in Comparator if comparator not in PRESENCE]


@dataclass(frozen=True)
class Kind:
    """Records that can be queried: how they are found, and what fields of theirs hold `STORED`."""

    query: Callable[[QuerySpecification, str], Page[Any]]
    #: A field of any type, and fields that are columns.
    mixed: str
    columns: tuple[str, ...]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kind]]:
    store = Store(tmp_path_factory.mktemp("kinds") / "server.db")
    fill(store)
    yield {
        "files": Kind(store.files.query, "metadata.v", ("relative_path", "size", "version", "tags")),
        "datasets": Kind(store.datasets.query, "metadata.v", ("name", "description", "tags")),
        "actions": Kind(store.actions.query, "metadata.v", ("name", "short_description", "timeout")),
        "invocations": Kind(
            store.invocations.query,
            "parameter_values.v",
            ("idempotency_id", "provenance.source.source_id", "last_status", "timeout", "parameter_values"),
        ),
    }
    store.close()


def fill(store: Store) -> None:
    dataset = store.datasets.create(NewDataset(name="of files"), ORG, USER)
    found = {f"{number}/{text_of(number)}": FoundFile(number, 0) for number in range(len(STORED))}
    store.files.record_scan(dataset.dataset_id, ORG, found, USER)
    for number, value in enumerate(STORED):
        values = {} if value is ABSENT else {"v": value}
        text = text_of(number)
        changes = MetadataChangeset(put_fields=values, put_tags=[text, "12"])
        store.files.update_many(
            dataset.dataset_id, {f"{number}/{text}": [FileUpdate(metadata_changeset=changes)]}, ORG, USER
        )
        new = NewDataset(
            name=text[:100] or None, description=None if number % 5 else text, tags=[text], metadata=values
        )
        store.datasets.create(new, ORG, USER)
        create(
            store, f"{number}", metadata=values, short_description=text[:140], timeout=number + 1,
            parameters=declared("v"),
        )  # fmt: skip
        invoke(
            store, f"{number}", parameter_values=values,
            idempotency_id=f"{number}" if number % 2 else None, invocation_source_id=text or "12",
        )  # fmt: skip


def text_of(number: int) -> str:
    return TEXTS[number % len(TEXTS)]


def identity(record: Any) -> str:
    for field in ("invocation_id", "file_id", "dataset_id", "digest"):
        if value := getattr(record, field, None):
            return str(value)
    raise AssertionError(record)


def everything(kind: Kind) -> list[Any]:
    return kind.query(QuerySpecification(limit=1000), ORG).items


def selected(kind: Kind, condition: Condition | ConditionGroup) -> set[str]:
    return {
        identity(one) for one in kind.query(QuerySpecification(condition=condition, limit=1000), ORG).items
    }


def matches(theirs: Any, record: dict[str, Any]) -> bool:
    """What the published client says; an exception of its counts as no match."""
    try:
        return bool(theirs.matches(record))
    except (TypeError, ValueError, OverflowError):
        return False


def expected(condition: Condition, records: list[Any]) -> set[str]:
    theirs = published.Condition(
        field=condition.field, comparator=published.Comparator(condition.comparator), value=condition.value
    )
    assert type(theirs.value) is type(condition.value)
    return {identity(one) for one in records if matches(theirs, one.model_dump(mode="json"))}


def is_rejected(condition: Condition) -> bool:
    """Whether the server says that this can't be compared, instead of selecting nothing."""
    return condition.comparator in TEXTUAL and not isinstance(condition.value, str)


def asked(field: str, comparator: Comparator, value: Any) -> Condition:
    return Condition.model_construct(field=field, comparator=comparator, value=value)


@pytest.mark.parametrize("comparator", COMPARED)
@pytest.mark.parametrize("name", ["files", "datasets", "actions", "invocations"])
def test_a_condition_selects_what_the_client_selects(
    kinds: dict[str, Kind], name: str, comparator: Comparator
) -> None:
    kind = kinds[name]
    records = everything(kind)
    for field in (kind.mixed, *kind.columns):
        for value in ASKED if field == kind.mixed else [0, 1, 12.0, True, "12", "1%", "x", ""]:
            condition = asked(field, comparator, value)
            wanted = expected(condition, records)
            if not is_rejected(condition):
                assert selected(kind, condition) == wanted, (field, comparator, value)
                continue
            assert wanted == set()
            with pytest.raises(InvalidRequestError, match="the value must be a string"):
                selected(kind, condition)


@pytest.mark.parametrize("name", ["files", "datasets", "actions", "invocations"])
def test_presence_is_what_it_is_in_the_client(kinds: dict[str, Kind], name: str) -> None:
    kind = kinds[name]
    records = everything(kind)
    for comparator in PRESENCE:
        for field in (kind.mixed, f"{kind.mixed}.x", f"{kind.mixed}.x.y", *kind.columns):
            condition = asked(field, comparator, None)
            assert selected(kind, condition) == expected(condition, records), (field, comparator)


@pytest.mark.parametrize("name", ["files", "datasets", "actions", "invocations"])
def test_groups_over_fields_of_mixed_types_select_what_the_client_selects(
    kinds: dict[str, Kind], name: str
) -> None:
    kind = kinds[name]
    records = everything(kind)
    dice = random.Random(3)
    for number in range(40):
        operator = list(ConditionOperator)[number % 3]
        # Half of them are an OR of EQUALS over one field, which is written as an IN.
        batch = operator is ConditionOperator.Or and number % 2
        parts = [
            asked(kind.mixed, Comparator.Equals if batch else dice.choice(COMPARED), dice.choice(ASKED))
            for _ in range(dice.randrange(1, 6))
        ]
        parts = [part for part in parts if not is_rejected(part)] or [asked(kind.mixed, Comparator.Equals, 1)]
        each = [expected(part, records) for part in parts]
        everybody = {identity(one) for one in records}
        wanted = {
            ConditionOperator.And: set.intersection(*each),
            ConditionOperator.Or: set.union(*each),
            ConditionOperator.Not: everybody - set.union(*each),
        }[operator]
        group = ConditionGroup.model_construct(operator=operator, conditions=parts)
        assert selected(kind, group) == wanted, group


def test_a_batch_of_a_thousand_values_of_all_types_is_one_condition(kinds: dict[str, Kind]) -> None:
    kind = kinds["files"]
    values = [12, 12.5, "x", True, *range(100, 600), *map(str, range(500))]
    parts = [asked(kind.mixed, Comparator.Equals, value) for value in values]
    group = ConditionGroup.model_construct(operator=ConditionOperator.Or, conditions=parts)
    records = everything(kind)
    assert selected(kind, group) == set.union(*(expected(part, records) for part in parts))


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("metadata.v > 12", {15, "15"}),
        ('metadata.v > "2024"', {"unknown", "2024-05-01", "[12]", "9"}),
        ('metadata.v LIKE "1%"', {"15"}),
        ("metadata.v CONTAINS 1", {(1, 2)}),
        ("metadata.v CONTAINS 12", set()),
        ('metadata.v CONTAINS "12"', {"[12]"}),
        ('metadata.v CONTAINS "x"', {"x:1"}),
        ("metadata.v = true", {True}),
        ("path > 5", set()),
        ('size > "5"', set()),
    ],
)
def test_roboql_compares_no_types_that_can_not_be_compared(
    store: Store, query: str, values: set[Any]
) -> None:
    dataset = store.datasets.create(NewDataset(name="mixed"), ORG, USER)
    stored: dict[str, Any] = {
        "int15": 15, "int9": 9, "text15": "15", "text9": "9", "word": "unknown", "list": [1, 2],
        "object": {"x": 1}, "day": "2024-05-01", "true": True, "json": "[12]", "null": None,
    }  # fmt: skip
    store.files.record_scan(dataset.dataset_id, ORG, {path: FoundFile(9, 0) for path in stored}, USER)
    for path, value in stored.items():
        changes = MetadataChangeset(put_fields={"v": value})
        store.files.update_many(
            dataset.dataset_id, {path: [FileUpdate(metadata_changeset=changes)]}, ORG, USER
        )
    found = store.files.query(QuerySpecification(condition=read_roboql(query).condition), ORG).items
    names = {(1, 2): "list", "x:1": "object", 15: "int15", True: "true", "15": "text15", "9": "text9",
             "unknown": "word",
             "2024-05-01": "day", "[12]": "json"}  # fmt: skip
    assert {file.relative_path for file in found} == {names[value] for value in values}


@pytest.mark.parametrize("comparator", [*TEXTUAL, Comparator.Contains, Comparator.NotContains])
def test_a_time_is_ordered_and_nothing_else(kinds: dict[str, Kind], comparator: Comparator) -> None:
    for kind in kinds.values():
        with pytest.raises(InvalidRequestError, match=r"created .*: a time can be compared only with"):
            selected(kind, asked("created", comparator, "2024%"))


def test_no_number_is_rejected(kinds: dict[str, Kind]) -> None:
    with pytest.raises(InvalidRequestError, match="nan is not a number"):
        selected(kinds["files"], asked("metadata.v", Comparator.NotEquals, float("nan")))


#: Spellings of one comparator in RoboQL.
SPELLINGS = {
    Comparator.Equals: ["="], Comparator.NotEquals: ["!="], Comparator.GreaterThan: [">"],
    Comparator.GreaterThanOrEqual: [">="], Comparator.LessThan: ["<"], Comparator.LessThanOrEqual: ["<="],
    Comparator.Contains: ["CONTAINS", "contains"], Comparator.NotContains: ["NOT CONTAINS", "not_contains"],
    Comparator.Like: ["LIKE", "like"], Comparator.NotLike: ["NOT LIKE", "NOT_LIKE", "not  like"],
    Comparator.IsNull: ["IS NULL", "is_null"], Comparator.IsNotNull: ["IS NOT NULL", "IS_NOT_NULL"],
}  # fmt: skip


def literal(value: Any, dice: random.Random) -> str:
    if isinstance(value, bool):
        return dice.choice([str(value), str(value).lower()])
    if not isinstance(value, str):
        return repr(value)
    quote = dice.choice("\"'")
    escaped = value.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


def written(condition: Condition | ConditionGroup, dice: random.Random) -> str:
    """One of many ways to write a condition in RoboQL."""
    gap = dice.choice([" ", "\n", " /* a 'comment' */ ", ' // to the end "\n'])
    if isinstance(condition, Condition):
        words = dice.choice(SPELLINGS[condition.comparator])
        parts = [condition.field, words]
        if condition.value is not None:
            parts.append(literal(condition.value, dice))
        return gap.join(parts)
    parts = [written(part, dice) for part in condition.conditions]
    if condition.operator is ConditionOperator.Not:
        return f"NOT{gap}(" + f"{gap}or ".join(parts) + ")"
    return "(" + f"{gap}{condition.operator.value}{gap}".join(parts) + ")"


def any_condition(field: str, dice: random.Random, depth: int = 0) -> Condition | ConditionGroup:
    if depth < 3 and dice.random() < 0.6:
        parts = [any_condition(field, dice, depth + 1) for _ in range(dice.randrange(1, 4))]
        return ConditionGroup.model_construct(operator=dice.choice([*ConditionOperator]), conditions=parts)
    comparator = dice.choice(list(SPELLINGS))
    if comparator in PRESENCE:
        return asked(field, comparator, None)
    values = TEXTS if comparator in TEXTUAL else [value for value in ASKED if "e" not in repr(value)]
    return asked(field, comparator, dice.choice(values))


def outcome(condition: Condition | ConditionGroup, records: list[Any]) -> set[str]:
    """What the client's matcher selects; a comparison that it can't make selects nothing."""
    if isinstance(condition, Condition):
        return expected(condition, records)
    each = [outcome(part, records) for part in condition.conditions]
    if condition.operator is ConditionOperator.And:
        return set.intersection(*each)
    either = set.union(*each)
    everybody = {identity(one) for one in records}
    return either if condition.operator is ConditionOperator.Or else everybody - either


@pytest.mark.parametrize("name", ["files", "datasets"])
def test_roboql_selects_what_the_client_selects_however_it_is_written(
    kinds: dict[str, Kind], name: str
) -> None:
    kind = kinds[name]
    records = everything(kind)
    dice = random.Random(11)
    for _ in range(150):
        condition = any_condition(kind.mixed, dice)
        query = written(condition, dice)
        found = kind.query(read_roboql(query).page(size=1000), ORG).items
        assert {identity(one) for one in found} == outcome(condition, records), query
