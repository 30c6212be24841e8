"""Queries: the published client's conditions mean here what they mean there, and pages stay put."""

from __future__ import annotations

import base64
import datetime
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_invocations.models import (
    Comparator,
    Condition,
    ConditionGroup,
    ConditionOperator,
    InvocationRecord,
    InvocationStatus,
    LogsLocation,
    QuerySpecification,
    SortDirection,
)
from airflow_invocations.server.db import Store
from airflow_invocations.server.errors import InvalidRequestError
from airflow_invocations.server.query.statements import MAX_CONDITIONS, MAX_DEPTH, MAX_PATTERN

from ...support.published import query as published
from .conftest import ORG, RUNNER, create, declared, invoke

NAMES = ["find", "Find", "find_anomalies", "100%", "a_b", "a*b", "[x]", "a?b", "back\\slash"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A repository that no test changes."""
    store = Store(tmp_path_factory.mktemp("filled") / "server.db")
    fill(store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def records(filled: Store) -> list[InvocationRecord]:
    return everything(filled)


def fill(store: Store) -> None:
    """Put in invocations that differ in what can be asked for, some of it missing in some."""
    dice = random.Random(7)
    for name in ("find", "find_anomalies"):
        create(store, name, parameters=declared("flag", "list", "n", "nothing", "s", "x"))
    for number in range(40):
        values: dict[str, Any] = {"n": number % 7, "x": number / 4, "flag": number % 2 == 0}
        if number % 3:
            values["s"] = NAMES[number % len(NAMES)]
        if number % 4:
            values["list"] = dice.sample(["a", "b", "c", 1, 2], k=3)
        if number % 5 == 0:
            values["nothing"] = None
        invoke(
            store,
            dice.choice(["find", "find_anomalies"]),
            parameter_values=values,
            idempotency_id=f"once-{number}" if number % 2 else None,
            invocation_source_id=f"airflow:{NAMES[number % len(NAMES)]}",
        )
    for status in (InvocationStatus.Completed, InvocationStatus.Failed, InvocationStatus.Processing) * 4:
        claimed = store.claims.claim(RUNNER)
        assert claimed is not None
        store.claims.transition_owned(claimed.invocation_id, status, None, RUNNER)


def everything(store: Store, **spec: Any) -> list[InvocationRecord]:
    """All invocations that a query finds, page by page."""
    found: list[InvocationRecord] = []
    after = None
    while True:
        page = store.invocations.query(QuerySpecification(**spec, after=after), ORG)
        found += page.items
        after = page.next_token
        if after is None:
            return found


def ids(found: list[InvocationRecord]) -> list[str]:
    return [record.invocation_id for record in found]


def matching(store: Store, condition: Condition | ConditionGroup) -> set[str]:
    return set(ids(everything(store, condition=condition)))


def referee(condition: Condition | ConditionGroup, records: list[InvocationRecord]) -> set[str]:
    """What the published client finds among the records."""
    kind = published.Condition if isinstance(condition, Condition) else published.ConditionGroup
    theirs = kind.model_validate(condition.model_dump())
    return {record.invocation_id for record in records if theirs.matches(record.model_dump(mode="json"))}


def condition(field: str, comparator: Comparator, value: Any = None) -> Condition:
    return Condition(field=field, comparator=comparator, value=value)


EQUALITY = [Comparator.Equals, Comparator.NotEquals]
ORDER = [
    *EQUALITY,
    Comparator.GreaterThan,
    Comparator.GreaterThanOrEqual,
    Comparator.LessThan,
    Comparator.LessThanOrEqual,
]
TEXT = [*ORDER, Comparator.BeginsWith, Comparator.Like, Comparator.NotLike]
MEMBERS = [Comparator.Contains, Comparator.NotContains]
PRESENCE = [Comparator.IsNull, Comparator.IsNotNull, Comparator.Exists, Comparator.NotExists]
PATTERNS = [
    "%",
    "find%",
    "%_%",
    "a_b",
    "a\\_b",
    "100\\%",
    "[x]",
    "a*b",
    "a?b",
    "_ind",
    "%slash",
    "\\",
    "back\\\\%",
]

#: For each field, values of the type it has, and what such values are compared by.
FIELDS: dict[str, tuple[list[Any], list[Comparator]]] = {
    "parameter_values.n": ([0, 3, 6, 99, 2.5], ORDER),
    "parameter_values.x": ([0.25, 5, -1.5], ORDER),
    "parameter_values.flag": ([True, False], EQUALITY),
    "parameter_values.s": ([*NAMES, *PATTERNS, ""], [*TEXT, *MEMBERS]),
    "parameter_values.list": (["a", "c", "z", 1, 7], MEMBERS),
    "provenance.action.name": (["find", *PATTERNS], [*TEXT, *MEMBERS]),
    "provenance.source.source_id": (["airflow:find", "airflow:%", "airflow"], [*TEXT, *MEMBERS]),
    "provenance.source.source_type": (["Manual", "Trigger"], TEXT),
    "idempotency_id": (["once-1", "once-%", "once"], [*TEXT, *MEMBERS]),
    "last_status": ([0, 3, 5, 998], ORDER),
    "timeout": ([720, 1], ORDER),
}
ABSENT = ["parameter_values.nothing", "parameter_values.nowhere", "parameter_values.s", "idempotency_id"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_condition_finds_what_it_finds_in_the_client(
    filled: Store, records: list[InvocationRecord], field: str
) -> None:
    values, comparators = FIELDS[field]
    found = set()
    for comparator in comparators:
        for value in values:
            asked = condition(field, comparator, value)
            mine = matching(filled, asked)
            assert mine == referee(asked, records), (comparator, value)
            found |= mine
    assert found, "not one of the conditions finds anything"


@pytest.mark.parametrize("comparator", PRESENCE)
def test_presence_is_what_it_is_in_the_client(
    filled: Store, records: list[InvocationRecord], comparator: Comparator
) -> None:
    for field in [*ABSENT, "last_heartbeat", "created", "parameter_values.n"]:
        asked = condition(field, comparator)
        assert matching(filled, asked) == referee(asked, records), field


def test_a_time_is_compared_as_a_moment_however_it_is_written(
    filled: Store, records: list[InvocationRecord]
) -> None:
    middle = sorted(record.created for record in records)[20]
    elsewhere = middle.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=45)))
    written = [middle, middle.isoformat(), middle.isoformat().replace("+00:00", "Z"), elsewhere.isoformat()]
    for comparator in ORDER:
        expected = referee(condition("created", comparator, middle), records)
        assert 0 < len(expected) < len(records)
        for value in written:
            assert matching(filled, condition("created", comparator, value)) == expected, (comparator, value)


def test_groups_nested_at_will_find_what_they_find_in_the_client(
    filled: Store, records: list[InvocationRecord]
) -> None:
    dice = random.Random(11)
    leaves = [
        condition(field, comparator, value)
        for field, (values, comparators) in FIELDS.items()
        for comparator in comparators
        for value in values
    ] + [condition(field, comparator) for field in ABSENT for comparator in PRESENCE]

    def grow(depth: int) -> Condition | ConditionGroup:
        if depth == 0 or dice.random() < 0.2:
            return dice.choice(leaves)
        parts = [grow(depth - 1) for _ in range(dice.randrange(1, 4))]
        return ConditionGroup(operator=dice.choice(list(ConditionOperator)), conditions=parts)

    sizes = set()
    for _ in range(80):
        asked = grow(4)
        mine = matching(filled, asked)
        assert mine == referee(asked, records), asked
        sizes.add(len(mine))
    assert len(sizes) > 10, "the groups are too much alike to tell anything"


def test_a_batch_of_ids_is_an_or_group(filled: Store, records: list[InvocationRecord]) -> None:
    wanted = ids(records)[::3]
    group = ConditionGroup(
        operator=ConditionOperator.Or,
        conditions=[condition("invocation_id", Comparator.Equals, one) for one in [*wanted, "iv_nope"] * 50],
    )
    assert matching(filled, group) == set(wanted)


class TestRejections:
    @pytest.mark.parametrize(
        "field",
        ["nope", "status", "duration", "", "parameter_values.", "parameter_values.a\"b", "record", "owner",
         "abort_reason", "parameter_values.a'; DROP TABLE invocations; --", "$.parameter_values", "x" * 300],
    )  # fmt: skip
    def test_a_field_that_can_not_be_queried_is_rejected_with_those_that_can(
        self, filled: Store, field: str
    ) -> None:
        for spec in (
            QuerySpecification(condition=condition(field, Comparator.Equals, "x")),
            QuerySpecification(sort_by=field or "."),
        ):
            with pytest.raises(InvalidRequestError) as rejected:
                filled.invocations.query(spec, ORG)
            assert "can't be queried; allowed: " in rejected.value.message
            assert (
                "last_status, org_id, parameter_values, parameter_values.*, provenance"
                in rejected.value.message
            )

    @pytest.mark.parametrize(
        "asked",
        [
            condition("created", Comparator.Equals, "yesterday"),
            condition("created", Comparator.Equals, 5),
            condition("created", Comparator.Equals),
            condition("last_status", Comparator.Equals),
            condition("last_status", Comparator.Like, 5),
            condition("last_status", Comparator.BeginsWith, True),
            condition("last_status", Comparator.Equals, 2**63),
            condition("last_status", Comparator.Equals, -(2**63) - 1),
            condition("idempotency_id", Comparator.Like, "%" * (MAX_PATTERN + 1)),
        ],
    )
    def test_a_comparison_that_makes_no_sense_is_rejected(self, filled: Store, asked: Condition) -> None:
        with pytest.raises(InvalidRequestError, match=asked.field):
            filled.invocations.query(QuerySpecification(condition=asked), ORG)

    def test_any_other_value_is_compared_with(self, filled: Store) -> None:
        odd = [True, False, 2**63 - 1, -(2**63), 1e300, "\0", "x" * 10_000]
        for field in ("last_status", "parameter_values.n", "parameter_values", "idempotency_id"):
            for comparator in [*ORDER, *MEMBERS]:
                for value in odd if comparator in ORDER else [*odd[:-1], "x" * MAX_PATTERN]:
                    spec = QuerySpecification(condition=condition(field, comparator, value), limit=1)
                    assert len(filled.invocations.query(spec, ORG).items) <= 1

    def test_a_group_of_too_many_conditions_is_rejected_before_it_is_a_query(self) -> None:
        leaf = {"field": "last_status", "comparator": "EQUALS", "value": 0}
        with pytest.raises(ValueError, match=f"at most {MAX_CONDITIONS} items"):
            ConditionGroup.model_validate({"operator": "OR", "conditions": [leaf] * (MAX_CONDITIONS + 1)})

    def test_long_searches_in_texts_of_any_length_are_rejected(self, filled: Store) -> None:
        many = [condition("parameter_values.n", Comparator.Like, f"%{'a_' * 400}")] * 3
        few = [condition("parameter_values.n", Comparator.Like, f"{'a' * 900}%{'b' * 90}")] * 20
        for conditions, rejected in ((many, True), (few, False)):
            asked = ConditionGroup(operator=ConditionOperator.Or, conditions=conditions)
            spec = QuerySpecification(condition=asked)
            if rejected:
                with pytest.raises(InvalidRequestError, match="2000 characters in all"):
                    filled.invocations.query(spec, ORG)
            else:
                assert filled.invocations.query(spec, ORG).items == []

    def test_too_many_conditions_and_too_deep_ones_are_rejected(self, filled: Store) -> None:
        leaf = condition("last_status", Comparator.GreaterThan, 0)
        deep: Condition | ConditionGroup = leaf
        for _ in range(MAX_DEPTH + 1):
            deep = ConditionGroup(operator=ConditionOperator.Not, conditions=[deep])
        wide = ConditionGroup(operator=ConditionOperator.And, conditions=[leaf] * MAX_CONDITIONS)
        same = condition("last_status", Comparator.Equals, 0)
        # As RoboQL is read: nothing validates what it made.
        batch = ConditionGroup.model_construct(
            operator=ConditionOperator.Or, conditions=[same] * (MAX_CONDITIONS + 1)
        )
        for asked in (deep, wide, batch):
            with pytest.raises(InvalidRequestError, match="a query may have"):
                filled.invocations.query(QuerySpecification(condition=asked), ORG)

    @pytest.mark.parametrize(
        "content",
        [5, "x", None, [], ["created", True], ["created", True, 1, 2, 3], {"a": 1, "b": 2, "c": 3, "d": 4},
         ["created", True, [1], 5], ["created", True, {}, 5], ["created", True, 1, "5"],
         ["created", True, 1, True], ["created", True, 1, 2**63], ["created", True, 2**63, 1],
         ["created", True, 1, None], ["created", True, 1, 1.0]],
    )  # fmt: skip
    def test_a_page_token_that_is_none_is_rejected(self, filled: Store, content: Any) -> None:
        token = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
        with pytest.raises(InvalidRequestError, match="'after' is not a page token"):
            filled.invocations.query(QuerySpecification(after=token), ORG)

    @pytest.mark.parametrize("token", ["", "x", "é", "\0", "====", "../../etc/passwd", "e30", "a" * 10_000])
    def test_so_is_any_other_text(self, filled: Store, token: str) -> None:
        with pytest.raises(InvalidRequestError, match="'after' is not a page token"):
            filled.invocations.query(QuerySpecification(after=token), ORG)

    def test_a_page_token_of_another_order_is_rejected(
        self, filled: Store, records: list[InvocationRecord]
    ) -> None:
        token = filled.invocations.query(QuerySpecification(limit=1), ORG).next_token
        for spec in (
            QuerySpecification(after=token, sort_direction=SortDirection.Ascending),
            QuerySpecification(after=token, sort_by="invocation_id"),
        ):
            with pytest.raises(
                InvalidRequestError, match="'after' belongs to a query with a different order"
            ):
                filled.invocations.query(spec, ORG)


class TestPages:
    def test_the_newest_come_first_unless_told_otherwise(
        self, filled: Store, records: list[InvocationRecord]
    ) -> None:
        by_age = ids(sorted(records, key=lambda record: record.created))
        assert ids(everything(filled)) == by_age[::-1]
        assert ids(everything(filled, sort_direction=SortDirection.Ascending)) == by_age

    @pytest.mark.parametrize("direction", SortDirection)
    @pytest.mark.parametrize(
        "sort_by",
        [
            "created",
            "last_status",
            "last_heartbeat",
            "idempotency_id",
            "parameter_values.n",
            "parameter_values.s",
            "parameter_values.list",
            "parameter_values.nowhere",
        ],
    )
    def test_pages_of_any_size_make_up_the_whole_in_its_order(
        self, filled: Store, records: list[InvocationRecord], sort_by: str, direction: SortDirection
    ) -> None:
        whole = ids(everything(filled, sort_by=sort_by, sort_direction=direction))
        assert sorted(whole) == sorted(ids(records))
        for limit in (1, 3, 7, len(whole) - 1, len(whole)):
            paged = everything(filled, sort_by=sort_by, sort_direction=direction, limit=limit)
            assert ids(paged) == whole, limit

    def test_missing_values_sort_lowest(self, filled: Store, records: list[InvocationRecord]) -> None:
        up = everything(filled, sort_by="idempotency_id", sort_direction=SortDirection.Ascending)
        down = everything(filled, sort_by="idempotency_id", sort_direction=SortDirection.Descending)
        named = sorted(record.idempotency_id for record in records if record.idempotency_id)
        assert [record.idempotency_id for record in up] == [None] * 20 + named
        assert [record.idempotency_id for record in down] == named[::-1] + [None] * 20

    @pytest.mark.parametrize("direction", SortDirection)
    @pytest.mark.parametrize("sort_by", ["created", "idempotency_id", "parameter_values.n"])
    def test_inserts_neither_repeat_nor_hide_anything(
        self, store: Store, sort_by: str, direction: SortDirection
    ) -> None:
        fill(store)
        records = everything(store)
        seen: list[str] = []
        after = None
        while True:
            spec = QuerySpecification(limit=4, sort_by=sort_by, sort_direction=direction, after=after)
            page = store.invocations.query(spec, ORG)
            seen += ids(page.items)
            after = page.next_token
            if after is None or len(seen) > 200:
                break
            if len(seen) < 30:
                invoke(store, "find", parameter_values={"n": len(seen) % 9})
        assert len(seen) == len(set(seen))
        assert set(ids(records)) <= set(seen)
        old = [one for one in seen if one in set(ids(records))]
        whole = ids(everything(store, sort_by=sort_by, sort_direction=direction))
        assert old == [one for one in whole if one in set(old)]

    def test_an_exactly_full_last_page_has_no_next(
        self, filled: Store, records: list[InvocationRecord]
    ) -> None:
        page = filled.invocations.query(QuerySpecification(limit=len(records)), ORG)
        assert (len(page.items), page.next_token) == (len(records), None)

    def test_a_page_is_written_as_its_records_are(self, store: Store) -> None:
        fill(store)
        some, other = everything(store)[:2]
        store.invocations.set_logs_location(
            some.invocation_id, LogsLocation(bucket="b", prefix="unanswered"), ORG
        )
        told = 'because of "quotes",\n\\ and ü'
        store.invocations.set_status(other.invocation_id, InvocationStatus.Cancelled, told, "somebody", ORG)
        documents, _ = store.invocations.query_json(QuerySpecification(limit=100), ORG)
        for text in documents:
            document = json.loads(text)
            assert document == json.loads(InvocationRecord.model_validate_json(text).model_dump_json())
            assert "unanswered" not in text
            if document["invocation_id"] == other.invocation_id:
                assert document["status"][-1]["detail"] == told
                whole = store.invocations.get(other.invocation_id).model_dump_json()
                assert document == json.loads(whole)

    def test_another_organisations_are_not_found(
        self, filled: Store, records: list[InvocationRecord]
    ) -> None:
        assert filled.invocations.query(QuerySpecification(), "og_other").items == []

    def test_actions_are_paged_in_their_newest_versions(self, store: Store) -> None:
        for number in range(5):
            create(store, f"act-{number}", tags=["even"] if number % 2 == 0 else [])
        tagged = QuerySpecification(
            condition=condition("tags", Comparator.Contains, "even"), limit=2, sort_by="name",
            sort_direction=SortDirection.Ascending,
        )  # fmt: skip
        first = store.actions.query(tagged, ORG)
        assert [action.name for action in first.items] == ["act-0", "act-2"]
        second = store.actions.query(tagged.model_copy(update={"after": first.next_token}), ORG)
        assert [action.name for action in second.items] == ["act-4"]
        assert second.next_token is None
