"""RoboQL: what it selects, and where it points when it isn't understood."""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_invocations.models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    QuerySpecification,
    SortDirection,
)
from airflow_invocations.models.dataset import NewDataset
from airflow_invocations.server.dataset_storage import FoundFile
from airflow_invocations.server.db import Store
from airflow_invocations.server.db.tables import files
from airflow_invocations.server.errors import InvalidRequestError, UnsupportedError
from airflow_invocations.server.query.roboql import MAX_QUERY, RoboqlQuery, read_roboql
from airflow_invocations.server.query.statements import Queryable, page_of

from .conftest import ORG, USER

C = Comparator


def is_(field: str, comparator: C, value: Any = None) -> Condition:
    return Condition.model_construct(field=field, comparator=comparator, value=value)


def group(operator: str, *conditions: Condition | ConditionGroup) -> ConditionGroup:
    return ConditionGroup.model_construct(operator=ConditionOperator(operator), conditions=list(conditions))


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        ('dataset_id = "ds_1"', is_("dataset_id", C.Equals, "ds_1")),
        ("size != 3", is_("size", C.NotEquals, 3)),
        ("size<3", is_("size", C.LessThan, 3)),
        ("size <= -3", is_("size", C.LessThanOrEqual, -3)),
        ("metadata.mean > 2.5e3", is_("metadata.mean", C.GreaterThan, 2500.0)),
        ("size >= 0", is_("size", C.GreaterThanOrEqual, 0)),
        ('path LIKE "%.csv"', is_("path", C.Like, "%.csv")),
        ('path NOT LIKE "%.csv"', is_("path", C.NotLike, "%.csv")),
        ('tags CONTAINS "a"', is_("tags", C.Contains, "a")),
        ('tags not contains "a"', is_("tags", C.NotContains, "a")),
        ("metadata.x IS NULL", is_("metadata.x", C.IsNull)),
        ("metadata.x is not null", is_("metadata.x", C.IsNotNull)),
        ("metadata.ok = TRUE", is_("metadata.ok", C.Equals, True)),
        ('metadata."a b".c = false', is_("metadata.a b.c", C.Equals, False)),
        (r'path = "a \"quoted\" \\ \n name"', is_("path", C.Equals, r'a "quoted" \ \n name')),
        ('path = "1"', is_("path", C.Equals, "1")),
        ('created > "2026-01-01"', is_("created", C.GreaterThan, "2026-01-01")),
        ("a=1 AND b=2", group("AND", is_("a", C.Equals, 1), is_("b", C.Equals, 2))),
        (
            "a=1 OR b=2 AND c=3",
            group("OR", is_("a", C.Equals, 1), group("AND", is_("b", C.Equals, 2), is_("c", C.Equals, 3))),
        ),
        (
            "(a=1 or b=2) and not c=3",
            group(
                "AND",
                group("OR", is_("a", C.Equals, 1), is_("b", C.Equals, 2)),
                group("NOT", is_("c", C.Equals, 3)),
            ),
        ),
        (r"path = 'it\'s' // a comment", is_("path", C.Equals, "it's")),
        (r"""path = '"' and x = "'" """, group("AND", is_("path", C.Equals, '"'), is_("x", C.Equals, "'"))),
        ("tags NOT_CONTAINS 'a'", is_("tags", C.NotContains, "a")),
        ("path not_like '%'", is_("path", C.NotLike, "%")),
        ("x IS_NULL or x is_not_null", group("OR", is_("x", C.IsNull), is_("x", C.IsNotNull))),
        ("file.dataset.id=ds_1", is_("file.dataset.id", C.Equals, "ds_1")),
        ("files[0].size /* bytes */ > 1", is_("files[0].size", C.GreaterThan, 1)),
        ("msgpaths[cpu.load].max > 0.9", is_("msgpaths[cpu.load].max", C.GreaterThan, 0.9)),
        ("msgpaths['/cpu'].max > 1", is_("msgpaths[/cpu].max", C.GreaterThan, 1)),
        # A field's name may begin as a word of the language does.
        ("order = 1 and android = 2", group("AND", is_("order", C.Equals, 1), is_("android", C.Equals, 2))),
    ],
)
def test_valid_queries(query: str, condition: Condition | ConditionGroup) -> None:
    assert read_roboql(query) == RoboqlQuery(condition)


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        ("", RoboqlQuery()),
        (" *\n", RoboqlQuery()),
        ("* LIMIT 5", RoboqlQuery(limit=5)),
        ("* sort by metadata.x", RoboqlQuery(None, "metadata.x", SortDirection.Ascending)),
        (
            "size > 1 SORT BY created DESC LIMIT 20 // newest",
            RoboqlQuery(is_("size", C.GreaterThan, 1), "created", SortDirection.Descending, 20),
        ),
        # Words of the language that are fields.
        ("limit = 3 LIMIT 1", RoboqlQuery(is_("limit", C.Equals, 3), limit=1)),
    ],
)
def test_order_and_limit_follow_the_conditions(query: str, parsed: RoboqlQuery) -> None:
    assert read_roboql(query) == parsed


@pytest.mark.parametrize("count", ["0", "1000000001", "9" * 300])
def test_a_limit_has_bounds(count: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"LIMIT is \d+; allowed: 1 to 1000000000"):
        read_roboql(f"* LIMIT {count}")


class TestReferences:
    @pytest.fixture
    def filled(self, store: Store) -> Store:
        for name, paths in (("city", ["a.mcap", "in/b.csv"]), ("hill", ["b.csv"]), ("none", [])):
            dataset = store.datasets.create(NewDataset(name=name, tags=[name]), ORG, USER)
            found = {path: FoundFile(len(name) + number, 0) for number, path in enumerate(paths)}
            store.files.record_scan(dataset.dataset_id, ORG, found, USER)
        return store

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("dataset.name = 'city'", ["a.mcap", "in/b.csv"]),
            ("file.dataset.name = city AND file.path LIKE '%.csv'", ["in/b.csv"]),
            ("files[0].dataset.tags CONTAINS hill OR path = 'a.mcap'", ["a.mcap", "b.csv"]),
            ("NOT dataset.tags CONTAINS 'city'", ["b.csv"]),
            ("name = 'b.csv'", ["b.csv", "in/b.csv"]),
            ("org_id = 'og_other'", []),
        ],
    )
    def test_files_are_selected_by_their_dataset(self, filled: Store, query: str, found: list[str]) -> None:
        records = filled.files.query(read_roboql(query).page(), ORG).items
        assert sorted(record.relative_path for record in records) == found

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("files[0].path LIKE '%.csv'", ["city", "hill"]),
            ("files[0].path LIKE '%.csv' AND files[0].size = 4", ["hill"]),
            ("files[0].path LIKE '%.csv' AND files[1].path LIKE '%.mcap'", ["city"]),
            ("files[0].path LIKE '%.csv' AND files[0].path LIKE '%.mcap'", []),
            ("dataset.name = 'none' OR file.size = 5", ["city", "none"]),
            ("file.path IS NULL", ["none"]),
            ("datasets[0].id IS NOT NULL", ["city", "hill", "none"]),
        ],
    )
    def test_datasets_are_selected_by_their_files(self, filled: Store, query: str, found: list[str]) -> None:
        wanted = read_roboql(f"{query} SORT BY name").page()
        assert [record.name for record in filled.datasets.query(wanted, ORG).items] == found

    @pytest.mark.parametrize(
        "query", ["topics[0].name = 'x'", "msgpaths[a.b].max > 1", "session.id = 'x'", "files[1].path = 'x'"]
    )
    def test_unsupported_fields_are_rejected(self, filled: Store, query: str) -> None:
        with pytest.raises(UnsupportedError, match=re.escape(query.split(" ")[0])):
            filled.files.query(read_roboql(query).page(), ORG)

    def test_references_are_limited(self, filled: Store) -> None:
        query = " AND ".join(f"files[{number}].size > 0" for number in range(4))
        with pytest.raises(InvalidRequestError, match="a query may refer to 3 other records"):
            filled.datasets.query(read_roboql(query).page(), ORG)

    def test_an_unknown_field_of_another_record_is_named(self, filled: Store) -> None:
        with pytest.raises(InvalidRequestError, match="'size' can't be queried; allowed: created"):
            filled.files.query(read_roboql("dataset.size = 1").page(), ORG)


@pytest.mark.parametrize(
    ("query", "character", "found"),
    [
        ("path", 5, "the end"),
        ("path = ", 8, "the end"),
        ('path = "open', 8, "'\"'"),
        ("path = 'open", 8, '"\'"'),
        ("size = 1 LIMIT", 15, "the end"),
        ("size = 1 LIMIT many", 16, "'m'"),
        ("size = 1 SORT created", 15, "'c'"),
        ("* AND size = 1", 3, "'A'"),
        ("/* open", 1, "'/'"),
        ("size = 1 size = 2", 10, "'s'"),
        ("(size = 1", 10, "the end"),
        ("size = 1)", 9, "')'"),
        ("size IN (1, 2)", 6, "'I'"),
        ("size = 1 && size = 2", 10, "'&'"),
        ("msgpaths[/imu].max > 1", 10, "'/'"),
        ("path LIKE 5", 11, "'5'"),
        ("size = NULL", 8, "'N'"),
        ("size =\n\n  ?", 11, "'?'"),
    ],
)
def test_syntax_error_points_at_its_position(query: str, character: int, found: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"RoboQL, character {character}: found ") as raised:
        read_roboql(query)
    said, shown, arrow = raised.value.message.split("\n")
    assert f"found {found}; allowed here: " in said
    assert arrow == " " * (len(arrow) - 1) + "^"
    if character <= len(query):
        assert shown[len(arrow) - 1] == query[character - 1]


def test_the_pointer_stays_in_sight_in_a_long_query() -> None:
    query = " OR ".join(f'path = "{number}"' for number in range(500)) + " OR ?"
    with pytest.raises(InvalidRequestError) as raised:
        read_roboql(query)
    _, shown, arrow = raised.value.message.split("\n")
    assert len(shown) < 100
    assert shown[len(arrow) - 1] == "?"


def test_no_nesting_is_too_deep_to_be_answered() -> None:
    with pytest.raises(InvalidRequestError, match="RoboQL, character 50001"):
        read_roboql("(" * 50_000)
    assert read_roboql("(" * 50_000 + "a = 1" + ")" * 50_000).condition == is_("a", C.Equals, 1)
    condition = read_roboql("NOT " * 40_000 + "a = 1").condition
    spec = QuerySpecification.model_construct(condition=condition, limit=1)
    with pytest.raises(InvalidRequestError, match="nested 16 deep"):
        page_of(
            spec, Queryable(files, {"a": files.c.size, "created": files.c.created}, frozenset(), frozenset())
        )


def test_a_query_has_a_largest_size() -> None:
    with pytest.raises(InvalidRequestError, match="at most 200000 characters"):
        read_roboql("a" * (MAX_QUERY + 1))
