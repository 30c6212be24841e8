"""RoboQL: what it selects, and where it points when it isn't understood."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_invocations.models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    QuerySpecification,
)
from airflow_invocations.server.db.tables import files
from airflow_invocations.server.errors import InvalidRequestError
from airflow_invocations.server.query.roboql import MAX_QUERY, read_roboql
from airflow_invocations.server.query.statements import Queryable, page_of

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
        # A field's name may begin as a word of the language does.
        ("order = 1 and android = 2", group("AND", is_("order", C.Equals, 1), is_("android", C.Equals, 2))),
    ],
)
def test_what_is_understood(query: str, condition: Condition | ConditionGroup) -> None:
    assert read_roboql(query) == condition


@pytest.mark.parametrize(
    ("query", "character", "found"),
    [
        ("", 1, "the end"),
        ("path", 5, "the end"),
        ("path = ", 8, "the end"),
        ('path = "open', 8, "'\"'"),
        ("path = 'single'", 8, '"\'"'),
        ("size = 1 LIMIT 5", 10, "'L'"),
        ("size = 1 size = 2", 10, "'s'"),
        ("(size = 1", 10, "the end"),
        ("size = 1)", 9, "')'"),
        ("size IN (1, 2)", 6, "'I'"),
        ("size = 1 && size = 2", 10, "'&'"),
        ("msgpaths[/imu].max > 1", 9, "'['"),
        ("path LIKE 5", 11, "'5'"),
        ("size = NULL", 8, "'N'"),
        ("size =\n\n  ?", 11, "'?'"),
    ],
)
def test_what_is_not_understood_is_pointed_at(query: str, character: int, found: str) -> None:
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
    assert read_roboql("(" * 50_000 + "a = 1" + ")" * 50_000) == is_("a", C.Equals, 1)
    condition = read_roboql("NOT " * 40_000 + "a = 1")
    spec = QuerySpecification.model_construct(condition=condition, limit=1)
    with pytest.raises(InvalidRequestError, match="nested 16 deep"):
        page_of(
            spec, Queryable(files, {"a": files.c.size, "created": files.c.created}, frozenset(), frozenset())
        )


def test_a_query_has_a_largest_size() -> None:
    with pytest.raises(InvalidRequestError, match="at most 200000 characters"):
        read_roboql("a" * (MAX_QUERY + 1))
