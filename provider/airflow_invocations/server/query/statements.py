"""Translate a QuerySpecification to SQL: conditions, order, and pages that are stable under inserts."""

from __future__ import annotations

import base64
import datetime
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ...models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    QuerySpecification,
    SortDirection,
)
from ...models.query import MAX_CONDITIONS
from ..errors import InvalidRequestError, UnsupportedError
from ..timestamps import microseconds
from .comparisons import Field, JsonField, NumberField, TextField, Value

#: Characters of a LIKE pattern, at most; matching takes time proportional to its length times the text's.
MAX_PATTERN = 1000

#: Characters that a query may search for in texts of any length; such a search can't be interrupted.
MAX_SEARCHED = 2000

#: Levels of nested conditions in a query, at most.
MAX_DEPTH = 16

_TEXTUAL = (Comparator.BeginsWith, Comparator.Like, Comparator.NotLike)
_MEMBERSHIP = (Comparator.Contains, Comparator.NotContains)

#: Conditions in one AND or OR, for which SQLite may use an index.
_ROW = 100

#: Other records that the conditions of one query may refer to; each is a join.
MAX_REFERENCES = 3

#: A field of a record that is referred to: `dataset.name`, `files[0].path`.
_REFERENCE = re.compile(
    r"(?P<kind>collection|dataset|device|event|file|msgpath|session|topic)s?"
    r"(?:\[(?P<index>[^\]]*)\])?\.(?P<rest>.+)",
    re.DOTALL,
)

_PATH_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_\- ]{0,127}")


@dataclass(frozen=True, slots=True)
class Queryable:
    """The fields by which a kind of record can be queried."""

    table: sa.FromClause
    #: Fields with a column or an expression.
    columns: Mapping[str, sa.ColumnElement[Any]]
    #: Fields whose columns are times in microseconds.
    times: frozenset[str]
    #: Fields of the JSON record; dotted paths below them can be queried too.
    documents: frozenset[str]
    #: Fields with a partial index of the values below a limit. SQLite uses such an index only if the
    #: statement contains the limit.
    indexed_below: Mapping[str, int] = field(default_factory=dict)
    #: What fields call one of these records, for example `file`; empty: they can't refer to records.
    kind: str = ""
    #: Records that fields can refer to besides, by their kind.
    related: Mapping[str, Relation] = field(default_factory=dict)

    def field(self, name: str) -> Field:
        """Return a field to compare. Raises InvalidRequestError with the allowed fields."""
        column = self.columns.get(name)
        if column is not None:
            return TextField(column) if isinstance(column.type, sa.String) else NumberField(column)
        first, *rest = name.split(".")
        if first in self.documents and all(_PATH_PART.fullmatch(part) for part in rest):
            path = "$" + "".join(f'."{part}"' for part in (first, *rest))
            return JsonField(self.table.c.record, path)
        below = [f"{document}.*" for document in self.documents]
        allowed = ", ".join(sorted([*self.columns, *self.documents, *below]))
        raise InvalidRequestError(f"{name!r} can't be queried; allowed: {allowed}")

    def expression(self, name: str) -> sa.ColumnElement[Any]:
        """Return a field's value in SQLite. Raises InvalidRequestError as `field` does."""
        field = self.field(name)
        return field.value if isinstance(field, JsonField) else self.columns[name]


@dataclass(frozen=True, slots=True)
class Relation:
    """How records of another kind belong to a record."""

    #: The table of the other records.
    table: sa.Table
    #: Returns what can be queried of the other records, given an alias of their table.
    fields_of: Callable[[sa.FromClause], Queryable]
    #: Returns which of them belong to a record, given the alias.
    belongs: Callable[[sa.FromClause], sa.ColumnElement[bool]]


def page_of(
    spec: QuerySpecification, queryable: Queryable, *restrictions: sa.ColumnElement[bool]
) -> tuple[sa.Select[Any], str]:
    """Return the statement for one page, and its sort field.

    The statement selects one row more than the page has, to find out whether another page follows. A page
    begins after the sort value and number of the last row, not at an offset, so a row that is inserted in the
    meantime neither repeats nor hides another one.

    :raises InvalidRequestError: an unknown field, an invalid comparison, or an invalid page token.
    """
    sort_by = spec.sort_by or "created"
    descending = spec.sort_direction is not SortDirection.Ascending
    key = queryable.expression(sort_by)
    number = queryable.table.c.number
    statement = sa.select(queryable.table, key.label("sort_key")).where(*restrictions)
    if spec.condition is not None:
        references = References(queryable)
        condition = _Translation(references).of(spec.condition, depth=0)
        statement = statement.where(references.selected(condition))
    if spec.after is not None:
        statement = statement.where(
            _beyond(_read_token(spec.after, sort_by, descending), key, number, descending)
        )
    # NULL sorts lowest in SQLite; this is explicit because the beginning of the next page relies on it.
    order = (
        [key.desc().nulls_last(), number.desc()] if descending else [key.asc().nulls_first(), number.asc()]
    )
    return statement.order_by(*order).limit(spec.limit + 1), sort_by


def next_token(spec: QuerySpecification, sort_by: str, rows: Sequence[sa.Row[Any]]) -> str | None:
    """Return the token of the page after `rows`, which `page_of` selected; None: it is the last page."""
    return page_token(spec, sort_by, rows[spec.limit - 1]) if len(rows) > spec.limit else None


def page_token(spec: QuerySpecification, sort_by: str, row: sa.Row[Any]) -> str:
    """Return the value of `after` for the page that follows `row`."""
    descending = spec.sort_direction is not SortDirection.Ascending
    content = json.dumps([sort_by, descending, row.sort_key, row.number])
    return base64.urlsafe_b64encode(content.encode()).decode()


def _read_token(token: str, sort_by: str, descending: bool) -> tuple[Any, int]:
    try:
        field, direction, value, number = json.loads(base64.urlsafe_b64decode(token.encode()))
        if type(number) is not int or not _can_be_bound(number) or not _can_be_bound(value):
            raise ValueError(token)
    except (ValueError, TypeError):
        raise InvalidRequestError("'after' is not a page token of this server") from None
    if (field, direction) != (sort_by, descending):
        raise InvalidRequestError("'after' belongs to a query with a different order")
    return value, number


def _can_be_bound(value: object) -> bool:
    """Return whether SQLite can store a value unchanged."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, str | float | None)


def _beyond(
    last: tuple[Any, int], key: sa.ColumnElement[Any], number: sa.ColumnElement[Any], descending: bool
) -> sa.ColumnElement[bool]:
    value, after = last
    same = sa.and_(
        key.is_(None) if value is None else key == value, number < after if descending else number > after
    )
    if descending:
        return same if value is None else sa.or_(key < value, key.is_(None), same)
    return sa.or_(key.is_not(None), same) if value is None else sa.or_(key > value, same)


class References:
    """The records that one query's conditions refer to: `dataset.name`, `files[0].path`.

    Conditions with the same reference are about one and the same record. A record without related ones is
    queried as if it had one without any value.

    :param queryable: the records that are queried.
    """

    def __init__(self, queryable: Queryable) -> None:
        self._queryable = queryable
        self._joined: dict[tuple[str, str], tuple[Queryable, Relation]] = {}

    def resolve(self, condition: Condition) -> tuple[Queryable, Condition]:
        """Return the records that a condition is about, and the condition with its field's own name.

        :raises UnsupportedError: the server has no such records, or can't query them together.
        """
        queryable, name = self._resolve(condition.field)
        if name == condition.field:
            return queryable, condition
        return queryable, condition.model_copy(update={"field": name})

    def selected(self, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
        """Return the condition on the queried records, once all conditions are resolved."""
        if not self._joined:
            return condition
        table = self._queryable.table
        joined: sa.FromClause = table
        for queryable, relation in self._joined.values():
            joined = joined.outerjoin(queryable.table, relation.belongs(queryable.table))
        matching = sa.select(table.c.number).select_from(joined).where(condition).correlate(None)
        return table.c.number.in_(matching)

    def _resolve(self, name: str) -> tuple[Queryable, str]:
        own = self._queryable
        match = _REFERENCE.fullmatch(name) if own.kind else None
        if match is None or name in own.columns:
            return own, name
        kind, index, rest = match.group("kind"), match.group("index") or "", match.group("rest")
        if kind == own.kind:
            if index not in ("", "0"):
                raise UnsupportedError(f"{name!r}: a query for {kind}s can refer to one {kind} only")
            return self._resolve(rest)
        relation = own.related.get(kind)
        if relation is None:
            raise UnsupportedError(f"{name!r}: this server can't query {kind}s, only {self._kinds()}")
        return self._related(kind, index, relation), rest

    def _related(self, kind: str, index: str, relation: Relation) -> Queryable:
        if (kind, index) not in self._joined:
            if len(self._joined) == MAX_REFERENCES:
                raise InvalidRequestError(f"a query may refer to {MAX_REFERENCES} other records")
            alias = relation.table.alias(f"{kind}_{len(self._joined)}")
            self._joined[kind, index] = (relation.fields_of(alias), relation)
        return self._joined[kind, index][0]

    def _kinds(self) -> str:
        return " and ".join(f"{kind}s" for kind in sorted([self._queryable.kind, *self._queryable.related]))


class _Translation:
    """Translates one condition tree to SQL, within the limits of a query."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._count = 0
        self._searched = 0

    def of(self, condition: Condition | ConditionGroup, depth: int) -> sa.ColumnElement[bool]:
        self._count += 1
        if self._count > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise InvalidRequestError(
                f"a query may have {MAX_CONDITIONS} conditions, nested {MAX_DEPTH} deep; this one has more"
            )
        if isinstance(condition, Condition):
            return self._comparison(*self._references.resolve(condition))
        if not condition.conditions:
            raise InvalidRequestError(f"an {condition.operator} group needs at least one condition")
        batch = self._batch(condition)
        if batch is not None:
            return batch
        parts = [self.of(part, depth + 1) for part in condition.conditions]
        if condition.operator is ConditionOperator.And:
            return _joined(sa.and_, parts)
        either = _joined(sa.or_, parts)
        return (
            either if condition.operator is ConditionOperator.Or else sa.not_(sa.func.coalesce(either, False))
        )

    def _batch(self, group: ConditionGroup) -> sa.ColumnElement[bool] | None:
        """Return an OR of EQUALS over one field as an IN, which is one index lookup; None: another group."""
        if group.operator is not ConditionOperator.Or:
            return None
        leaves = [part for part in group.conditions if isinstance(part, Condition)]
        fields = {part.field for part in leaves}
        if len(leaves) < len(group.conditions) or len(fields) > 1:
            return None
        if any(part.comparator is not Comparator.Equals or part.value is None for part in leaves):
            return None
        self._count += len(leaves)
        if self._count > MAX_CONDITIONS:
            raise InvalidRequestError(f"a query may have {MAX_CONDITIONS} conditions; this one has more")
        scope, first = self._references.resolve(leaves[0])
        values = [
            self._value(scope, part.model_copy(update={"field": first.field}), part.value) for part in leaves
        ]
        return scope.field(first.field).equals_any(values)

    def _value(self, scope: Queryable, condition: Condition, value: Any) -> Value:
        if isinstance(value, int) and not _can_be_bound(value):
            raise InvalidRequestError(f"{condition.field} {condition.comparator}: {value} is too large")
        if isinstance(value, float) and math.isnan(value):
            raise InvalidRequestError(f"{condition.field} {condition.comparator}: {value} is not a number")
        if condition.field in scope.times:
            return _as_microseconds(condition.field, value)
        if isinstance(value, bool):
            return int(value)  # json_extract returns true and false as numbers
        return str(value.isoformat()) if isinstance(value, datetime.datetime) else value

    def _comparison(self, scope: Queryable, condition: Condition) -> sa.ColumnElement[bool]:
        comparator = condition.comparator
        if comparator in (Comparator.IsNull, Comparator.NotExists):
            return scope.expression(condition.field).is_(None)
        if comparator in (Comparator.IsNotNull, Comparator.Exists):
            return scope.expression(condition.field).is_not(None)
        field = scope.field(condition.field)
        if condition.value is None:
            raise InvalidRequestError(
                f"{condition.field} {comparator}: needs a value; to match missing values, use IS_NULL"
            )
        if condition.field in scope.times and comparator in (*_TEXTUAL, *_MEMBERSHIP):
            raise InvalidRequestError(
                f"{condition.field} {comparator}: a time can be compared only with = != < <= > >="
            )
        value = self._value(scope, condition, condition.value)
        if comparator in (*_TEXTUAL, *_MEMBERSHIP):
            self._count_search(scope, condition, value)
        if comparator is Comparator.Contains:
            return field.contains(value)
        if comparator is Comparator.NotContains:
            return field.lacks(value)
        if comparator in _TEXTUAL:
            return _textual(condition, field.text(), value)
        return _ordered(scope, condition, field, value)

    def _count_search(self, scope: Queryable, condition: Condition, value: Value) -> None:
        """Reject a value that takes too long to search for: each character costs one pass over a text."""
        if not isinstance(value, str):
            return
        if len(value) > MAX_PATTERN:
            raise InvalidRequestError(
                f"{condition.field} {condition.comparator}: the value may have {MAX_PATTERN} characters"
            )
        if condition.comparator is Comparator.BeginsWith or condition.field in scope.columns:
            return
        anywhere = condition.comparator in _MEMBERSHIP
        self._searched += len(value if anywhere else value.partition("%")[2].strip("%"))
        if self._searched > MAX_SEARCHED:
            raise InvalidRequestError(
                f"the values that the query searches strings for (CONTAINS, and LIKE after the first %) have "
                f"more than {MAX_SEARCHED} characters in all"
            )


def _ordered(scope: Queryable, condition: Condition, field: Field, value: Value) -> sa.ColumnElement[bool]:
    ordered = field.ordered(condition.comparator, value)
    limit = scope.indexed_below.get(condition.field)
    if limit is None or not _is_below(condition.comparator, value, limit):
        return ordered
    column = scope.expression(condition.field)
    return sa.and_(column < sa.literal_column(str(limit)), ordered)


def _joined(
    join: Callable[..., sa.ColumnElement[bool]], parts: Sequence[sa.ColumnElement[bool]]
) -> sa.ColumnElement[bool]:
    """Join conditions; SQLite allows 1,000 levels of expressions, and each joined condition is a level."""
    if len(parts) <= _ROW:
        return join(*parts)
    middle = len(parts) // 2
    # NULL counts as false here in any case, and a function call ends a chain of conditions.
    return join(*(sa.func.coalesce(_joined(join, half), False) for half in (parts[:middle], parts[middle:])))


def _is_below(comparator: Comparator, value: Any, limit: int) -> bool:
    """Return whether all values that match a comparison are below a limit."""
    if not isinstance(value, int | float):
        return False
    if comparator is Comparator.LessThan:
        return value <= limit
    return comparator is Comparator.LessThanOrEqual and value < limit


def _textual(condition: Condition, left: sa.ColumnElement[str], value: Value) -> sa.ColumnElement[bool]:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{condition.field} {condition.comparator}: the value must be a string")
    if condition.comparator is Comparator.BeginsWith:
        return sa.func.substr(left, 1, len(value)) == value
    # GLOB and not LIKE, because SQLite's LIKE ignores case and the platform's doesn't.
    like = left.bool_op("GLOB")(_glob(value))
    return like if condition.comparator is Comparator.Like else sa.not_(like)


def _glob(pattern: str) -> str:
    r"""Return a LIKE pattern as a GLOB of SQLite; % matches any text, _ one character, \ escapes."""
    out: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            out.append("*")
        elif character == "_":
            out.append("?")
        else:
            plain = next(characters, "\\") if character == "\\" else character
            out.append(f"[{plain}]" if plain in "*?[" else plain)
    return "".join(out)


def _as_microseconds(field: str, value: object) -> int:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            value = None
    if not isinstance(value, datetime.datetime):
        raise InvalidRequestError(f"{field}: the value must be a time such as 2026-01-31T12:00:00Z")
    return microseconds(value)
