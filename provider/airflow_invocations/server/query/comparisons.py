"""Compare a field with a value in SQL, with the same result as `matches` of the published client.

Types are never mixed silently. A text that is compared with a number is converted, if it is a number. LIKE
and BEGINS_WITH match only texts. CONTAINS searches a text, an array's elements and an object's keys. Values
that the client can't compare, and missing values, match nothing.
"""

from __future__ import annotations

import json
import operator
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import sqlalchemy as sa

from ...models import Comparator

#: A value that a field is compared with. A boolean is a number, as in Python: true equals 1.
Value = str | int | float

_ORDERED: dict[Comparator, Callable[[Any, Any], Any]] = {
    Comparator.Equals: operator.eq,
    Comparator.NotEquals: operator.ne,
    Comparator.GreaterThan: operator.gt,
    Comparator.GreaterThanOrEqual: operator.ge,
    Comparator.LessThan: operator.lt,
    Comparator.LessThanOrEqual: operator.le,
}

#: SQLite's names of the JSON types that are numbers.
_NUMBERS = ("integer", "real", "true", "false")

#: Characters of a text that is converted to a number, at most.
_LONGEST_NUMBER = 10_000

#: The SQL function that compares a text as a number; see `add_functions`.
_COMPARE_AS_NUMBER = "invocations_compare_as_number"


class Field(Protocol):
    """A field of a record.

    Each method returns an SQL condition, which is NULL or false for a field without a value.
    """

    def ordered(self, comparator: Comparator, value: Value) -> sa.ColumnElement[bool]:
        """Compare with one of = != < <= > >=."""

    def equals_any(self, values: Sequence[Value]) -> sa.ColumnElement[bool]:
        """Compare with each of several values; the condition is small also for many values."""

    def contains(self, value: Value) -> sa.ColumnElement[bool]:
        """Match a text, array or object that contains the value."""

    def lacks(self, value: Value) -> sa.ColumnElement[bool]:
        """Match a text, array or object that doesn't contain the value."""

    def text(self) -> sa.ColumnElement[str]:
        """Return the field's value if it is a text, else NULL."""


@dataclass(frozen=True, slots=True)
class NumberField:
    """A column of numbers."""

    column: sa.ColumnElement[Any]

    def ordered(self, comparator: Comparator, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        if isinstance(value, str):
            return self.column.is_not(None) if comparator is Comparator.NotEquals else sa.false()
        return _compared(self.column, comparator, value)

    def equals_any(self, values: Sequence[Value]) -> sa.ColumnElement[bool]:
        """See Field."""
        return self.column.in_([value for value in values if not isinstance(value, str)])

    def contains(self, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        return sa.false()

    def lacks(self, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        return sa.false()

    def text(self) -> sa.ColumnElement[str]:
        """See Field."""
        return sa.cast(sa.null(), sa.Text)


@dataclass(frozen=True, slots=True)
class TextField:
    """A column of texts."""

    column: sa.ColumnElement[Any]

    def ordered(self, comparator: Comparator, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        if isinstance(value, str):
            return _compared(self.column, comparator, value)
        return _text_as_number("text", self.column, comparator, [value])

    def equals_any(self, values: Sequence[Value]) -> sa.ColumnElement[bool]:
        """See Field."""
        texts, numbers = _texts_and_numbers(values)
        if not numbers:  # the usual case, for which SQLite can use an index
            return self.column.in_(texts)
        return sa.or_(
            self.column.in_(texts), _text_as_number("text", self.column, Comparator.Equals, numbers)
        )

    def contains(self, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        return _is_in(value, self.column) if isinstance(value, str) else sa.false()

    def lacks(self, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        return sa.not_(_is_in(value, self.column)) if isinstance(value, str) else sa.false()

    def text(self) -> sa.ColumnElement[str]:
        """See Field."""
        return self.column


@dataclass(frozen=True, slots=True)
class JsonField:
    """A value inside a JSON document, of any type.

    :param document: the column of the document.
    :param path: the value's path in SQLite's notation: $."metadata"."speed".
    """

    document: sa.ColumnElement[Any]
    path: str

    @property
    def value(self) -> sa.ColumnElement[Any]:
        """The value in SQLite, where arrays and objects are texts, and true and false are numbers."""
        return sa.func.json_extract(self.document, self.path)

    def ordered(self, comparator: Comparator, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        comparable = (
            [(self._kind == "text", _compared(self.value, comparator, value))]
            if isinstance(value, str)
            else self._as_numbers(comparator, [value], _compared(self.value, comparator, value))
        )
        # A value of another type can't be ordered and isn't equal.
        return sa.case(
            (self.value.is_(None), sa.false()),
            *comparable,
            else_=sa.true() if comparator is Comparator.NotEquals else sa.false(),
        )

    def equals_any(self, values: Sequence[Value]) -> sa.ColumnElement[bool]:
        """See Field."""
        texts, numbers = _texts_and_numbers(values)
        is_text = sa.and_(self._kind == "text", self.value.in_(texts))
        is_number = sa.case(
            *self._as_numbers(Comparator.Equals, numbers, self.value.in_(numbers)), else_=sa.false()
        )
        return sa.or_(*([is_text] if texts else []), *([is_number] if numbers else []))

    def contains(self, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        in_text = _is_in(value, self.value) if isinstance(value, str) else sa.false()
        return sa.case(
            (self._kind.in_(("array", "object")), self._holds(value)),
            (self._kind == "text", in_text),
            else_=sa.false(),
        )

    def lacks(self, value: Value) -> sa.ColumnElement[bool]:
        """See Field."""
        can_hold = ("array", "object", "text") if isinstance(value, str) else ("array", "object")
        return sa.and_(self._kind.in_(can_hold), sa.not_(self.contains(value)))

    def text(self) -> sa.ColumnElement[str]:
        """See Field."""
        return sa.case((self._kind == "text", self.value))

    @property
    def _kind(self) -> sa.ColumnElement[str]:
        """The value's JSON type; NULL: there is no value."""
        return sa.func.json_type(self.document, self.path)

    def _as_numbers(
        self, comparator: Comparator, values: Sequence[int | float], plain: sa.ColumnElement[bool]
    ) -> list[tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]]:
        """Return the cases in which the value is a number; `plain` compares numbers of SQLite."""
        # SQLite converts an integer of more than 64 bits to a real, and two different ones may become equal.
        is_large = sa.and_(self._kind == "integer", sa.func.typeof(self.value) == "real")
        digits = self.document.op("->")(self.path)
        return [
            (self._kind == "text", _text_as_number("text", self.value, comparator, values)),
            (is_large, _text_as_number("integer", digits, comparator, values)),
            (self._kind.in_(_NUMBERS), plain),
        ]

    def _holds(self, value: Value) -> sa.ColumnElement[bool]:
        part = sa.func.json_each(self.document, self.path).table_valued("key", "value", "type")
        same_type = part.c.type == "text" if isinstance(value, str) else part.c.type.in_(_NUMBERS)
        is_element = sa.and_(self._kind == "array", same_type, part.c.value == value)
        is_key = (
            sa.and_(self._kind == "object", part.c.key == value) if isinstance(value, str) else sa.false()
        )
        return sa.exists(sa.select(1).select_from(part).where(sa.or_(is_element, is_key)))


def add_functions(connection: sqlite3.Connection) -> None:
    """Add the SQL functions that the conditions of this module call to a connection."""
    connection.create_function(_COMPARE_AS_NUMBER, 4, _compare_as_number, deterministic=True)


def _texts_and_numbers(values: Sequence[Value]) -> tuple[list[str], list[int | float]]:
    texts = [value for value in values if isinstance(value, str)]
    return texts, [value for value in values if not isinstance(value, str)]


def _compared(left: sa.ColumnElement[Any], comparator: Comparator, value: Value) -> sa.ColumnElement[bool]:
    result: sa.ColumnElement[bool] = _ORDERED[comparator](left, value)
    return result


def _is_in(part: str, whole: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    return sa.func.instr(whole, part) > 0


def _text_as_number(
    kind: str, text: sa.ColumnElement[Any], comparator: Comparator, values: Sequence[int | float]
) -> sa.ColumnElement[bool]:
    """Match a text that is a number for which the comparison with one of the values is true."""
    call = sa.Function(_COMPARE_AS_NUMBER, kind, text, comparator.value, json.dumps(values), type_=sa.Integer)
    return call == 1


def _compare_as_number(kind: str, text: str | None, comparator: str, values: str) -> bool | None:
    if text is None:
        return None
    compare = _ORDERED[Comparator(comparator)]
    return any(_matches_number(kind, text, compare, value) for value in _numbers(values))


def _matches_number(kind: str, text: str, compare: Callable[[Any, Any], Any], value: int | float) -> bool:
    if len(text) > _LONGEST_NUMBER:
        return False
    # As in the client: for a whole number only a whole number is converted, for 12.0 also "12.5".
    try:
        number = float(text) if kind == "text" and isinstance(value, float) else int(text)
    except ValueError:
        return False
    return bool(compare(number, value))


@lru_cache(maxsize=64)
def _numbers(values: str) -> tuple[int | float, ...]:
    return tuple(json.loads(values))
