"""Queries: conditions on fields, page size, order; and pages of results."""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Generic, TypeVar

import pydantic

from .base import MAX_PAGE_SIZE, WireModel

#: Conditions that one query may have. A batch of ids is an OR group of up to 1,000.
MAX_CONDITIONS = 2000


class Comparator(StrEnum):
    """How a field is compared to a value. There is no IN: write an OR group of EQUALS."""

    Equals = "EQUALS"
    NotEquals = "NOT_EQUALS"
    GreaterThan = "GREATER_THAN"
    GreaterThanOrEqual = "GREATER_THAN_OR_EQUAL"
    LessThan = "LESS_THAN"
    LessThanOrEqual = "LESS_THAN_OR_EQUAL"
    Contains = "CONTAINS"
    NotContains = "NOT_CONTAINS"
    IsNull = "IS_NULL"
    IsNotNull = "IS_NOT_NULL"
    Exists = "EXISTS"
    NotExists = "NOT_EXISTS"
    BeginsWith = "BEGINS_WITH"
    Like = "LIKE"
    NotLike = "NOT_LIKE"


class ConditionOperator(StrEnum):
    """How the conditions of a group are joined; NOT means none of them."""

    And = "AND"
    Or = "OR"
    Not = "NOT"


class Condition(WireModel):
    """One field compared to one value."""

    field: str
    comparator: Comparator
    # str comes first: in JSON a time is a string too, and the field decides which one it is.
    value: str | bool | int | float | datetime.datetime | None = None


class ConditionGroup(WireModel):
    """Conditions joined by an operator; groups may be nested."""

    operator: ConditionOperator
    conditions: list[Condition | ConditionGroup] = pydantic.Field(min_length=1, max_length=MAX_CONDITIONS)


class SortDirection(StrEnum):
    """The direction of the order."""

    Ascending = "ASC"
    Descending = "DESC"


class QuerySpecification(WireModel):
    """The body of a query. `after` is the `next_token` of the previous page; default order: newest first."""

    condition: Condition | ConditionGroup | None = None
    limit: int = pydantic.Field(default=MAX_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE)
    after: str | None = None
    sort_by: str | None = None
    sort_direction: SortDirection | None = None


def roboql_text(text: str) -> str:
    """Return a RoboQL string literal: in double quotes, with quotes and backslashes escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


RecordT = TypeVar("RecordT")


class Page(WireModel, Generic[RecordT]):
    """One page of records. `next_token` is None on the last page, and is sent as null."""

    items: list[RecordT]
    next_token: str | None = None
