"""Parse RoboQL, the query language for files and datasets, to the API's conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import lark

from ...models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    QuerySpecification,
    SortDirection,
)
from ...models.base import MAX_PAGE_SIZE
from ..errors import InvalidRequestError

#: Characters of a query, at most; enough for an OR of a thousand paths.
MAX_QUERY = 200_000

#: The largest LIMIT.
MAX_LIMIT = 10**9

#: Characters of the query that an error shows before and after the error's position.
_SHOWN = 40

_GRAMMAR = r"""
start: selection [_SORT _BY field [DIRECTION]] [_LIMIT COUNT]
?selection: either
          | "*"          -> everything
either: both (_OR both)*
both: negation (_AND negation)*
?negation: _NOT negation  -> inverted
         | comparison
         | "(" either ")"
comparison: field COMPARISON value          -> compared
          | field LIKE text                 -> like
          | field (_NOT LIKE | _NOT_LIKE) text          -> not_like
          | field _CONTAINS value           -> contains
          | field (_NOT _CONTAINS | _NOT_CONTAINS) value -> not_contains
          | field (_IS _NULL | _IS_NULL)                 -> is_null
          | field (_IS _NOT _NULL | _IS_NOT_NULL)        -> is_not_null
field: NAME [index] ("." (NAME | text))*
index: "[" (COUNT | text | NAME ("." NAME)*) "]"
?value: text | number | truth | word
text: TEXT
word: WORD
number: NUMBER | COUNT
truth: TRUTH

COMPARISON: "!=" | "<=" | ">=" | "=" | "<" | ">"
_OR.2: /or\b/i
_AND.2: /and\b/i
_NOT.2: /not\b/i
LIKE.2: /like\b/i
_CONTAINS.2: /contains\b/i
_IS.2: /is\b/i
_NULL.2: /null\b/i
_NOT_LIKE.3: /not_like\b/i
_NOT_CONTAINS.3: /not_contains\b/i
_IS_NULL.3: /is_null\b/i
_IS_NOT_NULL.3: /is_not_null\b/i
_SORT.2: /sort\b/i
_BY.2: /by\b/i
_LIMIT.2: /limit\b/i
DIRECTION.2: /(asc|desc)\b/i
TRUTH.2: /(true|false)\b/i
WORD: /(?!(null|and|or|not|like|contains|is|in|sort|limit)\b)[A-Za-z_][A-Za-z0-9_-]*/i
NAME: /[A-Za-z_][A-Za-z0-9_-]*/
COUNT.2: /\d{1,300}(?![\d.eE])/
NUMBER: /[+-]?\d{1,300}(\.\d{1,300})?([eE][+-]?\d{1,10})?/
TEXT: /"(\\.|[^"\\])*"|'(\\.|[^'\\])*'/s
%ignore /\s+/
%ignore /\/\/[^\n]*/
%ignore /\/\*.*?\*\//s
"""

_COMPARATORS = {
    "=": Comparator.Equals,
    "!=": Comparator.NotEquals,
    "<": Comparator.LessThan,
    "<=": Comparator.LessThanOrEqual,
    ">": Comparator.GreaterThan,
    ">=": Comparator.GreaterThanOrEqual,
}

#: Names of the grammar's terminals in error messages.
_NAMES = {
    "NAME": "a field",
    "TEXT": "a string in quotes",
    "WORD": "a string in quotes",
    "NUMBER": "a number",
    "COUNT": "a number",
    "STAR": "*",
    "LSQB": "[",
    "RSQB": "]",
    "DIRECTION": "ASC or DESC",
    "_SORT": "SORT BY",
    "_BY": "BY",
    "_LIMIT": "LIMIT",
    "_NOT_LIKE": "NOT LIKE",
    "_NOT_CONTAINS": "NOT CONTAINS",
    "_IS_NULL": "IS NULL",
    "_IS_NOT_NULL": "IS NOT NULL",
    "TRUTH": "true or false",
    "COMPARISON": "= != < <= > >=",
    "LIKE": "LIKE",
    "_CONTAINS": "CONTAINS",
    "_NOT": "NOT",
    "_AND": "AND",
    "_OR": "OR",
    "_IS": "IS",
    "_NULL": "NULL",
    "LPAR": "(",
    "RPAR": ")",
    "DOT": ".",
    "$END": "the end",
}


@dataclass(frozen=True, slots=True)
class RoboqlQuery:
    """A query in RoboQL."""

    #: None: everything.
    condition: Condition | ConditionGroup | None = None
    sort_by: str | None = None
    sort_direction: SortDirection | None = None
    #: Results in all pages together, at most; None: all.
    limit: int | None = None

    def page(self, size: int = MAX_PAGE_SIZE, after: str | None = None) -> QuerySpecification:
        """Return the specification of one page.

        :param size: records in the page, at most.
        :param after: the token of the page before.
        """
        return QuerySpecification(
            condition=self.condition,
            limit=size,
            after=after,
            sort_by=self.sort_by,
            sort_direction=self.sort_direction,
        )


def read_roboql(query: str) -> RoboqlQuery:
    """Parse a query.

    Fields with dots are paths into metadata, or name another record (see `references`). Comparisons are
    = != < <= > >= LIKE, NOT LIKE (% matches any text, _ one character), CONTAINS, NOT CONTAINS, IS NULL,
    IS NOT NULL; they are joined by AND, OR, NOT and parentheses. Texts are in double or single quotes, with a
    backslash before quotes and backslashes; a text that is a name needs no quotes. `*` selects everything.
    SORT BY and LIMIT may follow. Comments are // and /* */.

    :raises InvalidRequestError: the query is invalid; the message names the character (from 1).
    """
    if len(query) > MAX_QUERY:
        raise InvalidRequestError(f"RoboQL: a query has at most {MAX_QUERY} characters")
    if not query.strip():
        return RoboqlQuery()
    try:
        parsed: RoboqlQuery = _parser().parse(query)  # type: ignore[assignment]
    except lark.exceptions.UnexpectedCharacters as error:
        _reject(query, error.pos_in_stream or 0, error.allowed or ())
    except lark.exceptions.UnexpectedToken as error:
        at_end = error.token.type == "$END"
        _reject(query, len(query) if at_end else error.pos_in_stream or 0, error.accepts or error.expected)
    except lark.exceptions.UnexpectedEOF as error:
        _reject(query, len(query), error.expected)
    return parsed


def _reject(query: str, position: int, expected: Any) -> NoReturn:
    begin, end = max(0, position - _SHOWN), position + _SHOWN
    shown = query[begin:end].replace("\n", " ").replace("\t", " ")
    allowed = ", ".join(sorted({_NAMES.get(name, name) for name in expected}))
    found = repr(query[position]) if position < len(query) else "the end"
    raise InvalidRequestError(
        f"RoboQL, character {position + 1}: found {found}; allowed here: {allowed}\n"
        f"{shown}\n{' ' * (position - begin)}^"
    )


class _Reader(lark.Transformer[lark.Token, Any]):
    """Builds the condition during parsing, without a tree, so that no nesting is too deep."""

    def start(self, parts: list[Any]) -> RoboqlQuery:
        condition, sort_by, direction, count = parts
        limit = None if count is None else int(count)
        if limit is not None and not 0 < limit <= MAX_LIMIT:
            raise InvalidRequestError(f"RoboQL: LIMIT is {count}; allowed: 1 to {MAX_LIMIT}")
        order = None if sort_by is None else SortDirection(str(direction or "asc").upper())
        return RoboqlQuery(condition, sort_by, order, limit)

    def everything(self, _: list[Any]) -> None:
        return None

    def either(self, parts: list[Any]) -> Any:
        return _joined(ConditionOperator.Or, parts)

    def both(self, parts: list[Any]) -> Any:
        return _joined(ConditionOperator.And, parts)

    def inverted(self, parts: list[Any]) -> Any:
        return _group(ConditionOperator.Not, parts)

    def compared(self, parts: list[Any]) -> Any:
        field, comparison, value = parts
        return _condition(field, _COMPARATORS[str(comparison)], value)

    def like(self, parts: list[Any]) -> Any:
        return _condition(parts[0], Comparator.Like, parts[-1])

    def not_like(self, parts: list[Any]) -> Any:
        return _condition(parts[0], Comparator.NotLike, parts[-1])

    def contains(self, parts: list[Any]) -> Any:
        return _condition(parts[0], Comparator.Contains, parts[1])

    def not_contains(self, parts: list[Any]) -> Any:
        return _condition(parts[0], Comparator.NotContains, parts[1])

    def is_null(self, parts: list[Any]) -> Any:
        return _condition(parts[0], Comparator.IsNull, None)

    def is_not_null(self, parts: list[Any]) -> Any:
        return _condition(parts[0], Comparator.IsNotNull, None)

    def field(self, parts: list[Any]) -> str:
        name, index, *rest = parts
        first = str(name) if index is None else f"{name}[{index}]"
        return ".".join([first, *(str(part) for part in rest)])

    def index(self, parts: list[Any]) -> str:
        return ".".join(str(part) for part in parts)

    def word(self, parts: list[Any]) -> str:
        return str(parts[0])

    def text(self, parts: list[Any]) -> str:
        return "".join(_unescaped(str(parts[0])[1:-1]))

    def number(self, parts: list[Any]) -> int | float:
        text = str(parts[0])
        number = int(text) if text.lstrip("+-").isdigit() else float(text)
        if not math.isfinite(number):
            raise InvalidRequestError(f"RoboQL: the number {text} is too large")
        return number

    def truth(self, parts: list[Any]) -> bool:
        return str(parts[0]).lower() == "true"


def _condition(field: str, comparator: Comparator, value: Any) -> Condition:
    # Not validated, because pydantic would convert a text to a time or a number.
    return Condition.model_construct(field=field, comparator=comparator, value=value)


def _group(operator: ConditionOperator, parts: list[Any]) -> ConditionGroup:
    return ConditionGroup.model_construct(operator=operator, conditions=parts)


def _joined(operator: ConditionOperator, parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else _group(operator, parts)


def _unescaped(text: str) -> Iterator[str]:
    """Yield a text without the backslashes before quotes and backslashes; other backslashes stay.

    They are part of LIKE patterns, in which a backslash escapes % and _.
    """
    characters = iter(text)
    for character in characters:
        if character != "\\":
            yield character
            continue
        following = next(characters)
        yield following if following in "\"'\\" else f"\\{following}"


@cache
def _parser() -> lark.Lark:
    return lark.Lark(_GRAMMAR, parser="lalr", transformer=_Reader(), maybe_placeholders=True)
