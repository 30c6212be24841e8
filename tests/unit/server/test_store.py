"""The repository: what was acknowledged stays, one id is one invocation, one invocation has one owner."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from airflow_invocations.models import (
    Accessibility,
    ActionParameter,
    ActionParameterChangeset,
    ActionReference,
    ComputeRequirements,
    ContainerParameters,
    FileSelector,
    InvocationInput,
    InvocationRecord,
    InvocationSource,
    InvocationStatus,
    QuerySpecification,
    SetAccessibilityRequest,
    UpdateActionRequest,
    UploadDestination,
)
from airflow_invocations.server.db import StatusEvent, Store
from airflow_invocations.server.errors import (
    ConditionError,
    ConflictError,
    InvalidRequestError,
    InvalidStateTransitionError,
    NotFoundError,
)

from .conftest import ORG, OTHER_RUNNER, RUNNER, USER, create, declared, invoke, new_action, request

T = TypeVar("T")
S = InvocationStatus


def steps(record: InvocationRecord) -> list[InvocationStatus]:
    return [step.status for step in record.status]


def at_once(times: int, call: Callable[[int], T]) -> list[T]:
    """What a call returns in so many threads that begin together."""
    start = threading.Barrier(times)

    def wait_and_call(number: int) -> T:
        start.wait(10)
        return call(number)

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(wait_and_call, range(times)))


def run_to(store: Store, status: InvocationStatus, runner: str = RUNNER) -> InvocationRecord:
    """Claim the oldest invocation and move it on to a status."""
    record = store.claims.claim(runner)
    assert record is not None
    for step in (S.Processing, S.Uploading, S.Completed):
        if step <= status:
            store.claims.transition_owned(record.invocation_id, step, None, runner)
    return store.invocations.get(record.invocation_id)


class TestActions:
    def test_a_new_action_comes_back_as_it_was_asked_for(self, store: Store) -> None:
        asked = new_action(
            description="d",
            metadata={"a": 1},
            tags=["t"],
            timeout=3,
            parameters=[ActionParameter(name="p", default=2)],
            compute_requirements=ComputeRequirements(vCPU=1024, memory=2048),
        )
        record = store.actions.create(asked, ORG, USER)
        assert {name: getattr(record, name) for name in type(asked).model_fields} == dict(asked)
        assert (record.org_id, record.created_by, record.modified_by) == (ORG, USER, USER)
        assert record.created == record.modified
        assert record.digest
        assert store.actions.get("act", ORG) == record

    def test_a_name_can_be_taken_once(self, store: Store) -> None:
        create(store)
        with pytest.raises(ConflictError, match="action 'act' already exists in og_local"):
            create(store)

    def test_an_unknown_action_version_or_organisation_is_not_found(self, store: Store) -> None:
        create(store)
        for missing in (("other", ORG, None), ("act", "og_other", None), ("act", ORG, "digest")):
            with pytest.raises(NotFoundError, match="there is no action"):
                store.actions.get(*missing)

    def test_registering_anew_makes_a_version_only_if_something_changed(self, store: Store) -> None:
        first = store.actions.register(new_action(), ORG, USER)
        assert store.actions.register(new_action(), ORG, USER) == first
        second = store.actions.register(new_action(description="new"), ORG, USER)
        assert second.digest != first.digest
        assert second.created == first.created
        assert second.modified > first.modified
        assert store.actions.get("act", ORG) == second
        assert store.actions.get("act", ORG, first.digest).description is None

    def test_an_action_can_go_back_to_what_it_was(self, store: Store) -> None:
        first = store.actions.register(new_action(), ORG, USER)
        second = store.actions.register(new_action(description="new"), ORG, USER)
        third = store.actions.register(new_action(), ORG, USER)
        assert third.digest == first.digest
        assert store.actions.get("act", ORG).digest == first.digest
        assert store.actions.get("act", ORG, second.digest).description == "new"


class TestInvoking:
    def test_a_new_invocation_is_queued_and_knows_where_it_comes_from(self, store: Store) -> None:
        action = create(store, timeout=7)
        record = invoke(store, invocation_source=InvocationSource.Trigger, invocation_source_id="airflow:1")
        assert (record.last_status, steps(record)) == (S.Queued, [S.Queued])
        assert record.created == record.status[0].timestamp
        assert record.provenance.action.digest == action.digest
        assert record.provenance.source.source_type is InvocationSource.Trigger
        assert record.provenance.source.source_id == "airflow:1"
        assert record.data_source.is_unspecified
        assert record.timeout == 7
        assert record.container_parameters == ContainerParameters(command=["true"])
        assert (
            store.invocations.get(record.invocation_id).model_copy(update={"duration": record.duration})
            == record
        )

    def test_caller_is_the_default_source(self, store: Store) -> None:
        create(store)
        assert invoke(store).provenance.source.source_id == USER

    def test_overrides_of_an_invocation_apply(self, store: Store) -> None:
        create(store, timeout=7, container_parameters=ContainerParameters(command=["a"], env_vars={"A": "1"}))
        record = invoke(
            store,
            timeout=9,
            compute_requirement_overrides=ComputeRequirements(vCPU=256, memory=512),
            container_parameter_overrides=ContainerParameters(entry_point=["e"], env_vars={"B": "2"}),
        )
        assert record.timeout == 9
        assert record.compute_requirements.vCPU == 256
        assert record.container_parameters == ContainerParameters(
            command=["a"], entry_point=["e"], env_vars={"A": "1", "B": "2"}
        )

    def test_it_runs_the_version_that_was_asked_for(self, store: Store) -> None:
        first = create(store)
        second = store.actions.register(new_action(description="new"), ORG, USER)
        assert invoke(store).provenance.action.digest == second.digest
        asked = store.invocations.create("act", request(), ORG, USER, first.digest)
        assert asked.provenance.action.digest == first.digest

    def test_defaults_of_parameters_are_filled_in(self, store: Store) -> None:
        create(
            store,
            parameters=[
                ActionParameter(name="a", default=1),
                ActionParameter(name="b", default="x"),
                *declared("c"),
            ],
        )
        assert invoke(store, parameter_values={"b": [2], "c": None}).parameter_values == {
            "a": "1",
            "b": [2],
            "c": None,
        }

    @pytest.mark.parametrize("uri", ["roboto-secret://crown@og_other", "roboto-secret://a@og other"])
    def test_a_secret_of_another_organisation_is_rejected_when_it_is_invoked(
        self, store: Store, uri: str
    ) -> None:
        parameter = ActionParameter(name="password", default=uri)
        create(store, "as-default", parameters=[parameter])
        create(store, "given", parameters=declared("password"))
        for name, values in (("given", {"password": uri}), ("as-default", {})):
            with pytest.raises(InvalidRequestError, match="parameter 'password'"):
                invoke(store, name, parameter_values=values)
        own = invoke(store, "given", parameter_values={"password": "roboto-secret://crown@og_local"})
        assert own.parameter_values == {"password": "roboto-secret://crown@og_local"}

    def test_an_undeclared_parameter_is_named_and_nothing_is_invoked(self, store: Store) -> None:
        create(store, "parent", parameters=declared("a"))
        create(store, parameters=declared("b"), inherits=ActionReference(name="parent"))
        with pytest.raises(InvalidRequestError) as rejected:
            invoke(store, parameter_values={"a": 1, "b": 2, "d": 3, "c": 4})
        assert rejected.value.message == "action 'act' has no parameter 'c', 'd'; it declares: a, b"
        assert store.claims.claim(RUNNER) is None
        assert invoke(store, parameter_values={"a": 1, "b": 2}).parameter_values == {"a": 1, "b": 2}

    def test_a_missing_parameter_is_named_and_nothing_is_invoked(self, store: Store) -> None:
        create(
            store,
            parameters=[
                ActionParameter(name="a", required=True),
                ActionParameter(name="b", required=True, default="x"),
                ActionParameter(name="c"),
            ],
        )
        with pytest.raises(InvalidRequestError) as rejected:
            invoke(store, parameter_values={"c": 1})
        assert "needs parameter 'a'; it declares: a (required), b (required), c" in rejected.value.message
        assert store.claims.claim(RUNNER) is None

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"uri": "registry/image:1"}, "needs the container image 'registry/image:1'"),
            ({"container_parameters": None}, "has nothing to run: set container_parameters.command"),
            ({"container_parameters": ContainerParameters(command=[])}, "has nothing to run"),
        ],
    )
    def test_actions_that_this_machine_cannot_run_are_rejected(
        self, store: Store, fields: dict[str, Any], message: str
    ) -> None:
        create(store, **fields)
        with pytest.raises(InvalidRequestError, match=message):
            invoke(store)
        assert store.claims.claim(RUNNER) is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"data_source_id": "ds_1", "input_data": ["**/*.csv"]},
            {"rich_input_data": InvocationInput.model_validate({"files": {"query": "no roboql"}})},
            {"upload_destination": UploadDestination(destination_id="ds_1")},
        ],
    )
    def test_an_input_that_is_not_there_is_rejected_by_name(
        self, store: Store, fields: dict[str, Any]
    ) -> None:
        create(store)
        with pytest.raises(InvalidRequestError, match=r"there is no dataset 'ds_1'|RoboQL, character 4"):
            invoke(store, **fields)
        assert store.claims.claim(RUNNER) is None

    def test_acknowledged_writes_survive_a_restart(self, store: Store, database: Path) -> None:
        create(store, parameters=declared("a", "b"))
        values = {"a": "é", "b": {"c": [1, None]}}
        record = invoke(store, parameter_values=values, idempotency_id="once")
        store.close()
        reopened = Store(database)
        again = reopened.invocations.get(record.invocation_id)
        assert again.model_copy(update={"duration": record.duration}) == record
        same = invoke(reopened, parameter_values=values, idempotency_id="once")
        assert same.invocation_id == record.invocation_id
        reopened.close()


def test_a_database_of_an_earlier_version_is_given_the_indexes_and_tables_that_it_lacks(
    database: Path,
) -> None:
    def there() -> set[str]:
        with closing(sqlite3.connect(database)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")
            return {name for (name,) in names}

    Store(database).close()
    whole = there()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP INDEX invocations_active")
        connection.execute("DROP TABLE log_locations")
    assert there() == whole - {"invocations_active", "log_locations"}
    Store(database).close()
    assert there() == whole


class TestInheritance:
    def test_undeclared_fields_come_from_the_ancestors(self, store: Store) -> None:
        create(
            store,
            "grandparent",
            timeout=5,
            parameters=[ActionParameter(name="a", default="far"), ActionParameter(name="b", default="far")],
            container_parameters=ContainerParameters(command=["far"], env_vars={"A": "far", "B": "far"}),
        )
        create(
            store,
            "parent",
            inherits=ActionReference(name="grandparent"),
            parameters=[ActionParameter(name="b", default="near")],
            container_parameters=ContainerParameters(env_vars={"B": "near"}),
            compute_requirements=ComputeRequirements(vCPU=1024, memory=2048),
        )
        create(store, "child", inherits=ActionReference(name="parent"), container_parameters=None)
        record = invoke(store, "child")
        assert record.provenance.action.name == "child"
        assert record.timeout == 5
        assert record.parameter_values == {"a": "far", "b": "near"}
        assert record.compute_requirements.vCPU == 1024
        assert record.container_parameters == ContainerParameters(
            command=["far"], env_vars={"A": "far", "B": "near"}
        )

    def test_an_ancestor_of_a_version_stays_that_version(self, store: Store) -> None:
        old = create(store, "parent", timeout=1)
        store.actions.register(new_action("parent", timeout=2), ORG, USER)
        create(store, "pinned", inherits=ActionReference(name="parent", digest=old.digest))
        create(store, "moving", inherits=ActionReference(name="parent"))
        assert invoke(store, "pinned").timeout == 1
        assert invoke(store, "moving").timeout == 2

    def test_an_ancestor_that_is_not_there_is_named(self, store: Store) -> None:
        rejected = pytest.raises(InvalidRequestError, match="inherits: there is no action 'gone'")
        with rejected:
            create(store, inherits=ActionReference(name="gone"))
        create(store)
        change = UpdateActionRequest(inherits=ActionReference(name="gone"))
        with rejected:
            store.actions.update("act", change, ORG, USER)
        assert store.actions.get("act", ORG).inherits is None

    def test_an_ancestor_that_was_deleted_is_named_at_invoke(self, store: Store) -> None:
        create(store, "parent")
        create(store, inherits=ActionReference(name="parent"))
        store.actions.delete("parent", ORG)
        with pytest.raises(InvalidRequestError, match="'act', inherits: there is no action 'parent'"):
            invoke(store)

    def test_downloads_are_inherited_unless_the_action_says_otherwise(self, store: Store) -> None:
        create(store, "parent", requires_downloaded_inputs=False)
        create(store, "same", inherits=ActionReference(name="parent"))
        create(store, "other", inherits=ActionReference(name="parent"), requires_downloaded_inputs=True)
        assert store.actions.effective("same", ORG).requires_downloaded_inputs is False
        assert store.actions.effective("other", ORG).requires_downloaded_inputs is True

    def test_an_action_of_another_organisation_is_inherited_only_if_it_is_public(self, store: Store) -> None:
        create(store, "hello", timeout=1)
        store.actions.create(new_action("hello", timeout=7), "og_public", USER)
        theirs = ActionReference(name="hello", owner="og_public")
        with pytest.raises(InvalidRequestError, match="there is no action 'hello' in og_public"):
            create(store, inherits=theirs)
        public = SetAccessibilityRequest(accessibility=Accessibility.ActionHub)
        store.actions.set_accessibility("hello", public, "og_public")
        create(store, inherits=theirs, container_parameters=None)
        assert invoke(store).timeout == 7

    def test_a_circle_of_ancestors_is_rejected(self, store: Store) -> None:
        store.actions.register(new_action("a", inherits=ActionReference(name="b")), ORG, USER)
        store.actions.register(new_action("b", inherits=ActionReference(name="a")), ORG, USER)
        with pytest.raises(InvalidRequestError, match="action 'a' inherits through more than"):
            invoke(store, "a")


class TestIdempotency:
    #: All that counts.
    WHOLE: ClassVar[dict[str, Any]] = {
        "parameter_values": {"n": 1, "key": "s3cret", "list": [1, {"a": None}]},
        "rich_input_data": InvocationInput(files=FileSelector(query="size > 0")),
        "container_parameter_overrides": ContainerParameters(command=["true"], env_vars={"TRY": "1"}),
    }

    DECLARED: ClassVar[list[ActionParameter]] = declared(
        "key", "list", "more", "n", *(f"p{n}" for n in range(100))
    )

    def test_same_request_gets_the_first_invocation_in_every_try(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)
        first = invoke(store, idempotency_id="once", invocation_source_id="try 1", **self.WHOLE)
        environment = ContainerParameters(command=["true"], env_vars={"TRY": "2"})
        again = invoke(
            store, idempotency_id="once", invocation_source_id="try 2", timeout=1,
            **{**self.WHOLE, "container_parameter_overrides": environment},
        )  # fmt: skip
        assert again.invocation_id == first.invocation_id
        assert again.timeout == first.timeout

    @pytest.mark.parametrize(
        ("changed", "difference"),
        [
            ({"parameter_values": {"n": 2, "key": "s3cret"}},
             "parameter 'n' (another value); parameter 'list' (given first, not now)"),
            ({"parameter_values": {**WHOLE["parameter_values"], "n": True}}, "parameter 'n' (another value)"),
            ({"parameter_values": {**WHOLE["parameter_values"], "key": "0ther"}},
             "parameter 'key' (another value)"),
            ({"parameter_values": {**WHOLE["parameter_values"], "more": None}},
             "parameter 'more' (given now, not first)"),
            ({"data_source_id": "ds_1", "input_data": ["*.csv"]}, "data_source_id; input_data"),
            ({"rich_input_data": InvocationInput(files=FileSelector(query="size > 1"))}, "rich_input_data"),
            ({"rich_input_data": None}, "rich_input_data"),
            ({"upload_destination": UploadDestination(destination_id="ds_1")}, "upload_destination"),
            ({"container_parameter_overrides": None}, "container_parameter_overrides"),
        ],
    )  # fmt: skip
    def test_another_request_with_the_same_id_is_a_conflict_that_says_what_differs(
        self, store: Store, changed: dict[str, Any], difference: str
    ) -> None:
        create(store, parameters=self.DECLARED)
        first = invoke(store, idempotency_id="once", **self.WHOLE)
        with pytest.raises(ConflictError) as rejected:
            invoke(store, idempotency_id="once", **{**self.WHOLE, **changed})
        assert rejected.value.message == (
            f"idempotency_id 'once' belongs to {first.invocation_id}, which has a different request. "
            f"Differences: {difference}. Send the first request again, or use another idempotency_id"
        )
        assert "s3cret" not in rejected.value.message
        assert len(store.invocations.query(QuerySpecification(), ORG).items) == 1

    def test_many_differences_are_counted(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)
        invoke(store, idempotency_id="once", parameter_values={f"p{n}": n for n in range(100)})
        with pytest.raises(ConflictError, match=r"'p9' \(given first, not now\); and 90 more\. Send"):
            invoke(store, idempotency_id="once")

    @pytest.mark.parametrize("change", ["default", "command", "deleted", "made again"])
    def test_a_change_of_the_action_between_two_tries_is_no_difference(
        self, store: Store, change: str
    ) -> None:
        create(store, parameters=[ActionParameter(name="n", default="1"), *declared("m")])
        first = invoke(store, idempotency_id="once", parameter_values={"m": 2})
        if change == "default":
            new = UpdateActionRequest(
                parameter_changeset=ActionParameterChangeset(
                    put_parameters=[ActionParameter(name="n", default="2")]
                )
            )
            assert store.actions.update("act", new, ORG, USER).digest != first.provenance.action.digest
        elif change == "command":
            new = UpdateActionRequest(container_parameters=ContainerParameters(command=["false"]))
            assert store.actions.update("act", new, ORG, USER).digest != first.provenance.action.digest
        else:
            store.actions.delete("act", ORG)
            if change == "made again":
                create(store, parameters=[ActionParameter(name="other", required=True)])
        again = invoke(store, idempotency_id="once", parameter_values={"m": 2})
        assert (again.invocation_id, again.parameter_values) == (first.invocation_id, {"n": "1", "m": 2})

    def test_an_invocation_of_an_earlier_version_of_the_service_comes_back(
        self, store: Store, database: Path
    ) -> None:
        create(store, parameters=self.DECLARED)
        first = invoke(store, idempotency_id="once", parameter_values={"n": 1})
        store.close()
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DROP TABLE first_requests")
        reopened = Store(database)
        again = invoke(reopened, idempotency_id="once", parameter_values={"n": 2})
        assert again.invocation_id == first.invocation_id
        reopened.close()

    def test_it_comes_back_after_its_end_too(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)
        first = invoke(store, idempotency_id="once")
        run_to(store, S.Completed)
        again = invoke(store, idempotency_id="once")
        assert (again.invocation_id, again.last_status) == (first.invocation_id, S.Completed)
        assert store.claims.claim(RUNNER) is None

    def test_same_id_for_another_action_is_a_conflict(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)
        create(store, "other")
        first = invoke(store, idempotency_id="once")
        with pytest.raises(ConflictError) as rejected:
            invoke(store, "other", idempotency_id="once")
        assert f"belongs to {first.invocation_id}, which" in rejected.value.message
        assert "Differences: the action: 'act' first, 'other' now." in rejected.value.message

    def test_no_id_is_a_new_invocation_each_time(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)
        assert len({invoke(store).invocation_id for _ in range(3)}) == 3

    def test_twenty_at_once_get_one_invocation(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)
        records = at_once(20, lambda n: invoke(store, idempotency_id="once", parameter_values={"n": 1}))
        assert len({record.invocation_id for record in records}) == 1
        assert store.claims.claim(RUNNER) is not None
        assert store.claims.claim(RUNNER) is None

    def test_one_of_twenty_concurrent_requests_is_accepted(self, store: Store) -> None:
        create(store, parameters=self.DECLARED)

        def ask(number: int) -> InvocationRecord | None:
            try:
                return invoke(store, idempotency_id="once", parameter_values={"n": number % 5})
            except ConflictError:
                return None

        taken = [record for record in at_once(20, ask) if record is not None]
        assert len(taken) == 4
        assert len({(record.invocation_id, record.parameter_values["n"]) for record in taken}) == 1


class TestOwnership:
    def test_the_oldest_is_claimed_first_and_its_runner_begins_at_once(self, store: Store) -> None:
        create(store)
        ids = [invoke(store).invocation_id for _ in range(3)]
        claimed = [store.claims.claim(RUNNER) for _ in range(3)]
        assert [record.invocation_id for record in claimed if record] == ids
        assert all(steps(record) == [S.Queued, S.Scheduled, S.Downloading] for record in claimed if record)
        assert store.claims.claim(RUNNER) is None

    def test_each_invocation_is_claimed_by_one_of_many(self, store: Store) -> None:
        create(store)
        ids = [invoke(store).invocation_id for _ in range(40)]

        def claim_all(number: int) -> list[str]:
            claimed = []
            while (record := store.claims.claim(f"runner-{number}")) is not None:
                claimed.append(record.invocation_id)
                store.claims.transition_owned(record.invocation_id, S.Downloading, None, f"runner-{number}")
            return claimed

        claimed = at_once(8, claim_all)
        assert sorted(itertools.chain(*claimed)) == sorted(ids)
        assert {store.invocations.get(one).last_status for one in ids} == {S.Downloading}

    def test_a_busy_one_waits_and_the_next_is_claimed(self, store: Store) -> None:
        create(store)
        first, second = invoke(store).invocation_id, invoke(store).invocation_id
        claimed = store.claims.claim(RUNNER, busy=[first])
        assert claimed is not None
        assert claimed.invocation_id == second
        assert store.claims.claim(RUNNER, busy=[first]) is None
        assert store.claims.claim(RUNNER) is not None

    def test_only_the_owner_moves_it_on(self, store: Store) -> None:
        create(store)
        claimed = invoke(store).invocation_id
        run_to(store, S.Processing)
        with pytest.raises(ConditionError, match="belongs to runner-1, not to runner-2"):
            store.claims.transition_owned(claimed, S.Completed, None, OTHER_RUNNER)
        with pytest.raises(ConditionError):
            store.invocations.set_status(claimed, S.Completed, None, "user-ada", ORG)
        assert store.invocations.get(claimed).last_status is S.Processing

    def test_the_verdict_of_a_runner_that_lost_it_does_not_count(self, store: Store) -> None:
        create(store)
        claimed = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.claims.requeue(claimed, RUNNER, "lost", lost=True)
        with pytest.raises(ConditionError, match="belongs to no runner"):
            store.claims.transition_owned(claimed, S.Completed, None, RUNNER)
        assert store.invocations.get(claimed).last_status is S.Queued
        assert store.claims.claim(OTHER_RUNNER) is not None
        with pytest.raises(ConditionError):
            store.claims.transition_owned(claimed, S.Completed, None, RUNNER)

    def test_a_status_that_may_not_follow_is_rejected_and_changes_nothing(self, store: Store) -> None:
        create(store)
        claimed = invoke(store).invocation_id
        run_to(store, S.Processing)
        with pytest.raises(InvalidStateTransitionError, match="Processing can't become Downloading"):
            store.claims.transition_owned(claimed, S.Downloading, None, RUNNER)
        assert steps(store.invocations.get(claimed)) == [S.Queued, S.Scheduled, S.Downloading, S.Processing]

    def test_a_person_may_fail_cancel_and_retry_what_a_runner_has(self, store: Store) -> None:
        create(store)
        claimed = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.invocations.set_status(claimed, S.Failed, "looks wrong", "user-ada", ORG)
        assert store.aborts.stop_reason(claimed, RUNNER) == "another client or runner set it to Failed"
        store.invocations.set_status(claimed, S.Queued, None, "user-ada", ORG)
        assert store.aborts.stop_reason(claimed, RUNNER) == "another client or runner set it to Queued"
        assert store.invocations.get(claimed).current.status is S.Queued

    def test_a_sign_of_life_is_one_for_all_that_an_owner_has(self, store: Store) -> None:
        create(store)
        ids = [invoke(store).invocation_id for _ in range(3)]
        mine = [store.claims.claim(RUNNER) for _ in range(2)]
        assert store.claims.claim(OTHER_RUNNER) is not None
        before = [store.invocations.get(one).last_heartbeat for one in ids]
        store.claims.heartbeat(RUNNER)
        after = [store.invocations.get(one).last_heartbeat for one in ids]
        assert None not in before
        assert [a > b for a, b in zip(after, before, strict=True) if a and b] == [True, True, False]
        assert len(mine) == 2


class TestAborts:
    def test_a_queued_one_is_cancelled_at_once(self, store: Store) -> None:
        create(store)
        queued = invoke(store).invocation_id
        assert store.aborts.request(queued, "not needed", ORG) is S.Cancelled
        assert store.invocations.get(queued).current.detail == "not needed"
        assert store.claims.claim(RUNNER) is None

    def test_a_running_one_is_left_to_its_runner_with_the_first_reason(self, store: Store) -> None:
        create(store)
        running = invoke(store).invocation_id
        run_to(store, S.Processing)
        assert store.aborts.stop_reason(running, RUNNER) is None
        assert store.aborts.request(running, "first", ORG) is S.Processing
        assert store.aborts.request(running, "second", ORG) is S.Processing
        assert store.aborts.stop_reason(running, RUNNER) == "first"
        store.claims.transition_owned(running, S.Cancelled, "first", RUNNER)
        assert store.invocations.get(running).last_status is S.Cancelled

    @pytest.mark.parametrize("end", [S.Completed, S.Cancelled, S.Failed])
    def test_ended_invocation_stays_unchanged(self, store: Store, end: InvocationStatus) -> None:
        create(store)
        ended = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.claims.transition_owned(ended, end, "done", RUNNER)
        before = store.invocations.get(ended)
        assert store.aborts.request(ended, "too late", ORG) is end
        assert store.invocations.get(ended) == before

    def test_invocation_that_ends_first_is_not_cancelled_nor_is_its_retry(self, store: Store) -> None:
        create(store)
        running = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.aborts.request(running, "please", ORG)
        store.claims.transition_owned(running, S.Failed, "exit code 1", RUNNER)
        store.invocations.set_status(running, S.Queued, "try again", "user-ada", ORG)
        assert store.claims.claim(RUNNER) is not None
        assert store.aborts.stop_reason(running, RUNNER) is None

    def test_invocation_of_an_outside_runner_is_cancelled_immediately(self, store: Store) -> None:
        create(store)
        driven = invoke(store).invocation_id
        store.invocations.set_status(driven, S.Processing, None, "user-ada", ORG)
        assert store.aborts.request(driven, "stop", ORG) is S.Cancelled

    def test_an_unknown_one_or_another_organisations_is_not_found(self, store: Store) -> None:
        create(store)
        queued = invoke(store).invocation_id
        for missing in (("iv_nope", ORG), (queued, "og_other")):
            with pytest.raises(NotFoundError, match="there is no invocation"):
                store.aborts.request(missing[0], "stop", missing[1])

    def test_twenty_cancels_and_a_claim_at_once_leave_it_cancelled_or_to_be_stopped(
        self, store: Store
    ) -> None:
        create(store)
        outcomes: Counter[InvocationStatus] = Counter()
        for _ in range(10):
            one = invoke(store).invocation_id

            def cancel_or_claim(number: int, one: str = one) -> object:
                return store.aborts.request(one, "stop", ORG) if number else store.claims.claim(RUNNER)

            at_once(6, cancel_or_claim)
            status = store.invocations.get(one).last_status
            outcomes[status] += 1
            if status is S.Downloading:
                assert store.aborts.stop_reason(one, RUNNER) == "stop"
                store.claims.transition_owned(one, S.Cancelled, "stop", RUNNER)
        assert set(outcomes) <= {S.Cancelled, S.Downloading}


class TestRequeue:
    def test_invocation_of_a_stopped_server_is_requeued_without_a_limit(self, store: Store) -> None:
        create(store)
        one = invoke(store).invocation_id
        for _ in range(5):
            run_to(store, S.Processing)
            assert store.claims.requeue(one, RUNNER, "stopped", lost=False) is S.Queued
        assert store.invocations.get(one).current.status is S.Queued

    def test_the_third_loss_is_deadly_and_it_does_not_run_again(self, store: Store) -> None:
        create(store)
        one = invoke(store).invocation_id
        outcomes = []
        for _ in range(3):
            run_to(store, S.Processing)
            outcomes.append(store.claims.requeue(one, RUNNER, "lost", lost=True))
        assert outcomes == [S.Queued, S.Queued, S.Deadly]
        assert store.claims.claim(RUNNER) is None
        record = store.invocations.get(one)
        assert record.current.status is S.Deadly
        assert "lost" in str(record.current.detail)
        assert Counter(steps(record))[S.Failed] == 3

    def test_lost_invocation_with_an_abort_is_cancelled(self, store: Store) -> None:
        create(store)
        one = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.aborts.request(one, "stop", ORG)
        assert store.claims.requeue(one, RUNNER, "lost", lost=True) is S.Cancelled
        assert store.invocations.get(one).current.detail == "stop"
        assert store.claims.claim(RUNNER) is None

    @pytest.mark.parametrize("end", [S.Completed, S.Cancelled, S.Failed])
    def test_terminal_invocation_does_not_run_again(self, store: Store, end: InvocationStatus) -> None:
        create(store)
        one = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.claims.transition_owned(one, end, None, RUNNER)
        with pytest.raises(ConditionError):
            store.claims.requeue(one, RUNNER, "stopped", lost=False)
        assert store.claims.claim(RUNNER) is None

    def test_invocations_of_dead_runners_are_found_with_their_processes(self, store: Store) -> None:
        create(store)
        ids = [invoke(store).invocation_id for _ in range(4)]
        store.invocations.set_status(ids[0], S.Processing, None, "user-ada", ORG)
        run_to(store, S.Processing, OTHER_RUNNER)
        run_to(store, S.Downloading)
        run_to(store, S.Downloading)
        store.claims.set_processing(ids[3], RUNNER, 4711, 1.5)
        left = {one.invocation_id: one for one in store.claims.orphaned()}
        assert set(left) == set(ids[1:])
        assert (left[ids[3]].process_group, left[ids[3]].process_started) == (4711, 1.5)
        assert left[ids[2]].process_group is None
        assert [one.invocation_id for one in store.claims.orphaned([OTHER_RUNNER])] == ids[2:]
        store.claims.transition_owned(ids[3], S.Completed, None, RUNNER)
        assert ids[3] not in {one.invocation_id for one in store.claims.orphaned()}


class TestHistory:
    @pytest.mark.parametrize("clock", ["standing still", "going back"])
    def test_times_of_statuses_only_grow_whatever_the_clock_does(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, clock: str
    ) -> None:
        create(store)
        ticks = itertools.repeat(10**18) if clock == "standing still" else itertools.count(10**18, -(10**9))
        monkeypatch.setattr("time.time_ns", lambda: next(ticks))
        one = invoke(store).invocation_id
        for _ in range(2):
            run_to(store, S.Uploading)
            store.claims.requeue(one, RUNNER, None, lost=True)
        run_to(store, S.Completed)
        record = store.invocations.get(one)
        times = [step.timestamp for step in record.status]
        assert len(times) == 1 + 2 * 6 + 5
        assert all(earlier < later for earlier, later in itertools.pairwise(times))
        assert record.current.status is record.last_status is S.Completed

    def test_the_duration_ends_with_the_invocation(self, store: Store) -> None:
        create(store)
        one = invoke(store).invocation_id
        assert store.invocations.get(one).duration == timedelta()
        run_to(store, S.Processing)
        assert timedelta() < store.invocations.get(one).duration < store.invocations.get(one).duration
        store.claims.transition_owned(one, S.Completed, None, RUNNER, 0)
        record = store.invocations.get(one)
        assert record.duration == record.ran_for == record.status[-1].timestamp - record.status[3].timestamp
        assert store.invocations.get(one) == record

    def test_the_duration_is_that_of_the_last_attempt(self, store: Store) -> None:
        create(store)
        one = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.claims.requeue(one, RUNNER, "stopped", lost=False)
        assert store.invocations.get(one).duration == timedelta()
        run_to(store, S.Completed)
        record = store.invocations.get(one)
        assert record.duration == record.ran_for
        assert record.started_at == record.status[-3].timestamp

    def test_an_exit_code_is_a_number_of_the_step_that_it_led_to(self, store: Store) -> None:
        create(store)
        one = invoke(store).invocation_id
        run_to(store, S.Processing)
        store.claims.transition_owned(one, S.Failed, "exit code 65: no such column", RUNNER, 65)
        record = store.invocations.get(one)
        assert [step.exit_code for step in record.status] == [None] * 4 + [65]
        assert [event.exit_code for event in store.events.since(0, ORG, 10)][-1] == 65

    def test_a_database_of_an_earlier_version_gets_what_it_lacks(self, database: Path) -> None:
        store = Store(database)
        create(store)
        one = invoke(store).invocation_id
        store.close()
        with closing(sqlite3.connect(database)) as old:
            old.execute("ALTER TABLE events DROP COLUMN exit_code")
            old.commit()
        store = Store(database)
        run_to(store, S.Processing)
        store.claims.transition_owned(one, S.Failed, "exit code 65", RUNNER, 65)
        assert store.invocations.get(one).current.exit_code == 65
        store.close()

    def test_listeners_hear_of_what_was_committed_and_of_nothing_else(self, store: Store) -> None:
        create(store)
        heard: list[StatusEvent] = []
        store.database.listen_to_events(heard.extend)
        one = invoke(store).invocation_id
        run_to(store, S.Processing)
        with pytest.raises(InvalidStateTransitionError):
            store.claims.transition_owned(one, S.Downloading, None, RUNNER)
        store.claims.requeue(one, RUNNER, "lost", lost=True)
        assert {event.invocation_id for event in heard} == {one}
        assert [event.status for event in heard] == [
            S.Queued, S.Scheduled, S.Downloading, S.Processing, S.Failed, S.Queued,
        ]  # fmt: skip
        assert [event.status for event in heard] == steps(store.invocations.get(one))
