"""The published client against the real server: it can't tell it from the platform."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import pytest

from airflow_invocations.server.execution.logs import PAGE_LINES

from ...support.published import actions as published
from ...support.published import exceptions, orgs, query, updates, users
from ..conftest import LocalServer
from .conftest import client_of, end_of, ended, invoke, lines, says, script, steps

Status = published.InvocationStatus
INVALID = exceptions.RobotoInvalidRequestException


def test_it_creates_an_action_and_finds_it_by_name_and_digest(client: Any) -> None:
    asked = {
        "description": "finds them",
        "short_description": "short",
        "metadata": {"team": "perception"},
        "tags": ["a"],
        "timeout": 5,
        "parameters": [published.ActionParameter(name="p", required=True, default=3)],
        "compute_requirements": published.ComputeRequirements(vCPU=1024, memory=2048),
    }
    action = script(client, "true", **asked)
    found = published.Action.from_name(action.name, roboto_client=client)
    assert found.record == action.record
    assert found.record.parameters[0].default == "3"
    assert {name: getattr(found.record, name) for name in asked} == asked
    versioned = published.Action.from_name(action.name, digest=action.digest, roboto_client=client)
    assert versioned.record == action.record
    assert found.created == found.modified
    assert abs((found.created - datetime.datetime.now(datetime.UTC)).total_seconds()) < 60


def test_it_invokes_waits_and_reads_the_log(client: Any) -> None:
    action = script(
        client,
        'echo "hello $ROBOTO_PARAM_who"; echo warning >&2',
        parameters=[published.ActionParameter(name="who", required=True)],
    )
    invocation = action.invoke(
        invocation_source=published.InvocationSource.Trigger,
        invocation_source_id="tr_1",
        parameter_values={"who": "Ada"},
    )
    assert invocation.current_status in (Status.Queued, Status.Scheduled)
    assert not invocation.reached_terminal_status
    ended(invocation)
    assert invocation.current_status is Status.Completed
    assert steps(invocation) == ["Queued", "Scheduled", "Downloading", "Processing", "Uploading", "Completed"]
    times = [step.timestamp for step in invocation.status_log]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert invocation.source.source_id == "tr_1"
    assert invocation.action.digest == action.digest
    assert invocation.data_source.is_unspecified()
    assert invocation.parameter_values == {"who": "Ada"}
    records = list(invocation.get_logs())
    assert sorted(record.log for record in records) == ["hello Ada", "warning"]
    assert {record.process for record in records} == {published.ExecutorContainer.Action}
    assert all(times[0] <= record.timestamp <= times[-1] for record in records)


def test_it_streams_the_log_while_the_action_runs(client: Any, tmp_path: Any) -> None:
    go = tmp_path / "go"
    action = script(client, f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; echo second")
    invocation = invoke(action)
    says(invocation, "first")
    assert not invocation.refresh().reached_terminal_status
    seen, cursor = drained(invocation.stream_logs())
    assert seen == ["first"]
    assert drained(invocation.stream_logs(cursor)) == ([], cursor)
    go.touch()
    ended(invocation)
    assert drained(invocation.stream_logs(cursor))[0] == ["second"]


def drained(stream: Any) -> tuple[list[str], str | None]:
    """The lines of a stream, and where to read on, which it returns at last."""
    seen = []
    while True:
        try:
            seen.append(next(stream).log)
        except StopIteration as stop:
            return seen, stop.value


def test_it_reads_a_log_of_several_pages_both_ways(client: Any) -> None:
    count = 3 * PAGE_LINES + 1
    invocation = ended(invoke(script(client, f"seq {count}")))
    expected = [str(number) for number in range(1, count + 1)]
    assert lines(invocation) == expected
    assert drained(invocation.stream_logs())[0] == expected


def test_it_cancels_one_that_runs(client: Any) -> None:
    invocation = invoke(script(client, "echo up; sleep 60"))
    says(invocation, "up")
    invocation.cancel()
    assert end_of(invocation) == ("Cancelled", "cancelled by local")
    invocation.cancel()
    assert steps(invocation) == ["Queued", "Scheduled", "Downloading", "Processing", "Cancelled"]


def test_it_finds_invocations_by_conditions_and_over_pages(client: Any) -> None:
    action = script(client, "true")
    ids = {ended(invoke(action, parameter_values={"n": n})).id for n in range(3)}
    named = query.Condition(
        field="provenance.action.name", comparator=query.Comparator.Equals, value=action.name
    )
    for limit in (1, 2, 1000):
        spec = query.QuerySpecification(condition=named, limit=limit)
        found = list(published.Invocation.query(spec, roboto_client=client))
        assert {one.id for one in found} == ids
        assert [one.record.created for one in found] == sorted(
            (one.record.created for one in found), reverse=True
        )
    completed = query.Condition(
        field="last_status", comparator=query.Comparator.Equals, value=Status.Completed
    )
    batch = query.ConditionGroup.or_group(
        *(query.Condition.equals_cond("invocation_id", one) for one in sorted(ids)[:2])
    )
    both = query.QuerySpecification(condition=query.ConditionGroup.and_group(named, completed, batch))
    assert len(list(published.Invocation.query(both, roboto_client=client))) == 2
    recent = query.Condition(
        field="created",
        comparator=query.Comparator.GreaterThan,
        value=datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5),
    )
    spec = query.QuerySpecification(condition=query.ConditionGroup.and_group(named, recent))
    assert len(list(published.Invocation.query(spec, roboto_client=client))) == 3


def test_it_finds_actions(client: Any) -> None:
    action = script(client, "true", tags=["only-here"])
    tagged = query.Condition(field="tags", comparator=query.Comparator.Contains, value="only-here")
    found = list(published.Action.query(query.QuerySpecification(condition=tagged), roboto_client=client))
    assert [one.name for one in found] == [action.name]


def test_it_knows_who_it_is(client: Any) -> None:
    me = users.User.for_self(roboto_client=client)
    assert (me.user_id, me.name) == ("local", "local")
    assert users.User.from_id(me.user_id, roboto_client=client).record == me.record
    assert [org.org_id for org in orgs.Org.for_user(me.user_id, roboto_client=client)] == ["og_local"]
    identity = client.get("v1/users/whoami").to_dict(json_path=["data"])
    assert (identity["user_id"], identity["org_id"], identity["role"]) == ("local", "og_local", "admin")
    with pytest.raises(exceptions.RobotoNotFoundException, match="no user 'somebody'"):
        users.User.from_id("somebody", roboto_client=client)


def test_an_action_does_not_download_what_its_parent_does_not(client: Any) -> None:
    parent = script(client, "true", requires_downloaded_inputs=False)
    child = script(client, "true", inherits=parent.record.reference)
    assert child.record.requires_downloaded_inputs is None
    with pytest.raises(exceptions.RobotoInvalidRequestException, match="there is no action 'gone'"):
        script(client, "true", inherits=published.ActionReference(name="gone"))


def test_one_idempotency_id_is_one_invocation(client: Any) -> None:
    action = script(client, "true")
    first = invoke(action, idempotency_id=action.name, parameter_values={"try": 1})
    again = invoke(action, idempotency_id=action.name, parameter_values={"try": 1})
    assert again.id == first.id
    with pytest.raises(exceptions.RobotoConflictException, match="Differences: parameter 'try'"):
        invoke(action, idempotency_id=action.name, parameter_values={"try": 2})
    other = script(client, "true")
    with pytest.raises(exceptions.RobotoConflictException, match=first.id):
        invoke(other, idempotency_id=action.name)


class TestErrors:
    def test_unknown_names_and_ids(self, client: Any) -> None:
        with pytest.raises(exceptions.RobotoNotFoundException, match="there is no action 'nope'"):
            published.Action.from_name("nope", roboto_client=client)
        with pytest.raises(exceptions.RobotoNotFoundException, match="there is no invocation 'iv_nope'"):
            published.Invocation.from_id("iv_nope", roboto_client=client)
        invocation = ended(invoke(script(client, "true")))
        with pytest.raises(exceptions.RobotoInvalidRequestException, match="not a cursor of this log"):
            list(invocation.get_logs("nope"))

    def test_a_missing_parameter(self, client: Any) -> None:
        action = script(client, "true", parameters=[published.ActionParameter(name="who", required=True)])
        with pytest.raises(exceptions.RobotoInvalidRequestException, match="needs parameter 'who'"):
            invoke(action)
        named = query.Condition.equals_cond("provenance.action.name", action.name)
        spec = query.QuerySpecification(condition=named)
        assert list(published.Invocation.query(spec, roboto_client=client)) == []

    def test_an_undeclared_parameter(self, client: Any) -> None:
        action = script(client, "true", parameters=[published.ActionParameter(name="p")])
        with pytest.raises(
            exceptions.RobotoInvalidRequestException, match="no parameter 'q'; it declares: p"
        ):
            invoke(action, parameter_values={"q": 1})

    def test_nested_metadata_of_an_action(self, client: Any) -> None:
        with pytest.raises(
            exceptions.RobotoInvalidRequestException, match="the metadata of an action is flat"
        ):
            script(client, "true", metadata={"a": {"b": 1}})
        action = script(client, "true", metadata={"a": 1})
        with pytest.raises(
            exceptions.RobotoInvalidRequestException, match="the metadata of an action is flat"
        ):
            action.update(metadata_changeset=updates.MetadataChangeset(put_fields={"b.c": 1}))
        assert action.to_dict()["metadata"] == {"a": 1}

    def test_unsupported_features_of_the_server(self, client: Any) -> None:
        with pytest.raises(exceptions.RobotoNotImplementedException, match="doesn't have collections"):
            client.get("v1/collections")
        with pytest.raises(exceptions.RobotoUnknownOperationException):
            client.get("v1/nothing")

    def test_a_wrong_token(self, server: LocalServer) -> None:
        with pytest.raises(
            exceptions.RobotoUnauthorizedException, match="the token is unknown to this server"
        ):
            published.Action.from_name("nope", roboto_client=client_of(server, token="wrong"))

    def test_a_name_that_is_taken(self, client: Any) -> None:
        action = script(client, "true")
        with pytest.raises(exceptions.RobotoConflictException, match="already exists"):
            published.Action.create(name=action.name, roboto_client=client)

    def test_another_organisation(self, client: Any) -> None:
        with pytest.raises(exceptions.RobotoNotFoundException, match="og_other"):
            published.Action.from_name("nope", owner_org_id="og_other", roboto_client=client)

    def test_a_status_that_may_not_follow(self, client: Any) -> None:
        invocation = ended(invoke(script(client, "true")))
        with pytest.raises(
            exceptions.RobotoInvalidStateTransitionException, match="Completed can't become Processing"
        ):
            invocation.update_status(Status.Processing)

    def test_an_image_and_nothing_to_run(self, client: Any) -> None:
        image = script(client, "true", uri="registry/image:1")
        with pytest.raises(exceptions.RobotoInvalidRequestException, match="needs the container image"):
            invoke(image)
        nothing = published.Action.create(name=f"nothing-{image.name}", roboto_client=client)
        with pytest.raises(exceptions.RobotoInvalidRequestException, match="has nothing to run"):
            invoke(nothing)

    def test_datasets_that_are_not_there(self, client: Any) -> None:
        action = script(client, "true")
        for asked in (
            {"data_source_id": "ds_1", "input_data": ["**/*.csv"]},
            {"input_data": published.InvocationInput.file_query('dataset_id "ds_1"')},
            {"upload_destination": published.InvocationUploadDestination.dataset("ds_1")},
        ):
            with pytest.raises(exceptions.RobotoInvalidRequestException, match="ds_1"):
                invoke(action, **asked)

    def test_a_field_that_can_not_be_queried(self, client: Any) -> None:
        status = query.Condition(field="status", comparator=query.Comparator.Exists)
        with pytest.raises(
            exceptions.RobotoInvalidRequestException, match="'status' can't be queried; allowed"
        ):
            list(published.Invocation.query(query.QuerySpecification(condition=status), roboto_client=client))
