"""Repositories other than those of invocations and actions: events, aborts, trees, states, tokens."""

from __future__ import annotations

import json

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.callers import Role
from airflow_invocations.server.db import OrphanedInvocation, StatusEvent, StatusReport, Store
from airflow_invocations.server.db.aborts import CANCEL_BATCH
from airflow_invocations.server.errors import (
    ConditionError,
    InvalidRequestError,
    InvalidStateTransitionError,
    NotFoundError,
)
from airflow_invocations.server.timestamps import microseconds, now

from .conftest import ORG, OTHER_RUNNER, RUNNER, create, invoke

S = InvocationStatus


@pytest.fixture
def store(store: Store) -> Store:
    create(store)
    return store


def statuses(events: list[StatusEvent]) -> list[InvocationStatus]:
    return [event.status for event in events]


def run_twice(store: Store) -> str:
    """An invocation that was lost once and runs for the second time."""
    invocation_id = invoke(store).invocation_id
    store.claims.claim(RUNNER)
    store.claims.requeue(invocation_id, RUNNER, "gone", lost=True)
    store.claims.claim(RUNNER)
    return invocation_id


class TestEvents:
    def test_all_of_an_invocation_oldest_first(self, store: Store) -> None:
        events = store.events.by_invocation(run_twice(store), ORG)
        assert statuses(events) == [
            S.Queued, S.Scheduled, S.Downloading, S.Failed, S.Queued, S.Scheduled, S.Downloading,
        ]  # fmt: skip
        assert [event.attempt for event in events] == [1, 1, 1, 1, 2, 2, 2]
        numbers = [event.number for event in events]
        assert numbers == sorted(set(numbers))

    def test_a_status_that_nobody_could_see_is_marked(self, store: Store) -> None:
        events = store.events.by_invocation(run_twice(store), ORG)
        assert [event.status for event in events if event.superseded] == [S.Scheduled, S.Failed, S.Scheduled]

    def test_events_of_one_attempt_after_an_event_page_by_page(self, store: Store) -> None:
        invocation_id = run_twice(store)
        first, *_ = store.events.by_invocation(invocation_id, ORG)
        first_attempt = [S.Queued, S.Scheduled, S.Downloading, S.Failed]
        assert statuses(store.events.by_attempt(invocation_id, ORG, 1, 0)) == first_attempt
        assert statuses(store.events.by_attempt(invocation_id, ORG, 1, first.number)) == first_attempt[1:]
        assert statuses(store.events.by_attempt(invocation_id, ORG, 1, first.number, limit=1)) == [
            S.Scheduled
        ]
        assert statuses(store.events.by_attempt(invocation_id, ORG, 2, 0)) == first_attempt[:3]
        assert store.events.by_attempt(invocation_id, ORG, 3, 0) == []

    def test_events_of_another_organisation_are_not_found(self, store: Store) -> None:
        invocation_id = invoke(store).invocation_id
        with pytest.raises(NotFoundError):
            store.events.by_invocation(invocation_id, "og_other")
        with pytest.raises(NotFoundError):
            store.events.by_attempt(invocation_id, "og_other", 1)

    def test_the_latest_of_many_and_what_came_since(self, store: Store) -> None:
        one, two = invoke(store).invocation_id, invoke(store).invocation_id
        place = store.events.last_number()
        store.claims.claim(RUNNER)
        latest = store.events.latest({one, two, "iv_unknown"}, ORG)
        assert [(event.invocation_id, event.status) for event in latest] == [
            (two, S.Queued),
            (one, S.Downloading),
        ]
        since = store.events.since(place, ORG, limit=10)
        assert [(event.invocation_id, event.status) for event in since] == [(one, S.Downloading)]
        assert store.events.since(place, "og_other", limit=10) == []

    def test_since_an_event_leaves_out_what_nobody_could_see(self, store: Store) -> None:
        invocation_id = run_twice(store)
        told = [
            event.status for event in store.events.since(0, ORG, 10) if event.invocation_id == invocation_id
        ]
        assert told == [S.Queued, S.Downloading, S.Queued, S.Downloading]

    def test_a_batch_is_taken_whole_or_not_at_all(self, store: Store) -> None:
        one, two = invoke(store).invocation_id, invoke(store).invocation_id
        store.invocations.report_statuses(
            [StatusReport(one, S.Scheduled, None, "me"), StatusReport(two, S.Failed, "x", "me")], ORG
        )
        assert (store.invocations.get(one).last_status, store.invocations.get(two).last_status) == (
            S.Scheduled,
            S.Failed,
        )
        before = store.events.last_number()
        with pytest.raises(InvalidStateTransitionError):
            store.invocations.report_statuses(
                [StatusReport(one, S.Processing, None, "me"), StatusReport(two, S.Completed, None, "me")], ORG
            )
        with pytest.raises(ConditionError):
            store.invocations.report_statuses([StatusReport(one, S.Processing, None, "somebody else")], ORG)
        with pytest.raises(NotFoundError):
            store.invocations.report_statuses([StatusReport("iv_unknown", S.Failed, None, "me")], ORG)
        assert store.events.last_number() == before
        assert store.invocations.get(one).last_status is S.Scheduled


class TestAborts:
    def test_a_tree_is_aborted_whole_and_nothing_else(self, store: Store) -> None:
        root = invoke(store).invocation_id
        child = invoke(store, invocation_source_id=root).invocation_id
        grandchild = invoke(store, invocation_source_id=child).invocation_id
        other = invoke(store).invocation_id
        store.claims.claim(RUNNER)  # the root
        assert store.aborts.request_tree(root, "enough", ORG) == [root, child, grandchild]
        assert store.aborts.stop_reason(root, RUNNER) == "enough"
        assert [store.invocations.get(each).last_status for each in (child, grandchild, other)] == [
            S.Cancelled, S.Cancelled, S.Queued,
        ]  # fmt: skip
        with pytest.raises(NotFoundError):
            store.aborts.request_tree("iv_unknown", "enough", ORG)

    def test_a_part_of_a_tree_can_be_aborted_alone(self, store: Store) -> None:
        root = invoke(store).invocation_id
        child = invoke(store, invocation_source_id=root).invocation_id
        assert store.aborts.request_tree(child, "enough", ORG) == [child]
        assert store.invocations.get(root).last_status is S.Queued

    def test_pending_aborts_are_listed_counted_and_retried_when_due(self, store: Store) -> None:
        invocation_id = invoke(store).invocation_id
        store.claims.claim(RUNNER)
        store.claims.set_processing(invocation_id, RUNNER, 4711, 1.5)
        assert store.aborts.pending() == []
        store.aborts.request(invocation_id, "enough", ORG)
        (pending,) = store.aborts.pending(due=now())
        assert (pending.invocation_id, pending.reason, pending.owner) == (invocation_id, "enough", RUNNER)
        assert (pending.process_group, pending.process_started, pending.attempts) == (4711, 1.5, 0)
        later = now() + 60_000_000
        assert store.aborts.record_attempt(invocation_id, later) == 1
        assert store.aborts.pending(due=now()) == []
        assert [each.attempts for each in store.aborts.pending(due=later)] == [1]
        assert store.aborts.record_attempt(invocation_id, later) == 2

    def test_request_ends_with_the_invocation(self, store: Store) -> None:
        one = invoke(store).invocation_id
        store.claims.claim(RUNNER)
        assert store.aborts.stop_reason(one, RUNNER) is None
        store.aborts.request(one, "enough now", ORG)
        store.claims.transition_owned(one, S.Cancelled, "enough now", RUNNER)
        assert store.aborts.pending() == []

    def test_all_active_ones_a_batch_at_a_time(self, store: Store) -> None:
        ids = [invoke(store).invocation_id for _ in range(CANCEL_BATCH + 3)]
        early = microseconds(store.invocations.get(ids[1]).created)
        assert store.aborts.request_all("tidy", ORG, created_before=early).success_count == 1
        first = store.aborts.request_all("tidy", ORG)
        assert (first.success_count, first.has_more) == (CANCEL_BATCH, True)
        second = store.aborts.request_all("tidy", ORG)
        assert (second.success_count, second.has_more) == (2, False)
        assert store.invocations.count_by_status() == {S.Cancelled: CANCEL_BATCH + 3}

    def test_listeners_are_notified_of_aborts_that_need_a_runner(self, store: Store) -> None:
        heard: list[str] = []
        store.database.listen_to_aborts(heard.append)
        waiting, running = invoke(store).invocation_id, None
        running = store.claims.claim(RUNNER)
        assert running is not None
        other = invoke(store).invocation_id
        store.aborts.request(other, "enough", ORG)
        store.aborts.request(waiting, "enough", ORG)
        assert heard == [running.invocation_id]


class TestTrees:
    def test_tree_contains_what_an_invocation_has_started(self, store: Store) -> None:
        root = invoke(store).invocation_id
        child = invoke(store, invocation_source_id=root).invocation_id
        grandchild = invoke(store, invocation_source_id=child).invocation_id
        invoke(store, invocation_source_id="somebody")
        assert [record.invocation_id for record in store.invocations.tree(root, ORG)] == [
            root,
            child,
            grandchild,
        ]
        assert [record.invocation_id for record in store.invocations.tree(child, ORG)] == [child, grandchild]
        with pytest.raises(NotFoundError):
            store.invocations.tree(root, "og_other")
        assert {event.root_id for event in store.events.by_invocation(grandchild, ORG)} == {root}

    def test_roots_are_listed_by_the_time_they_were_created(self, store: Store) -> None:
        roots = [invoke(store) for _ in range(4)]
        invoke(store, invocation_source_id=roots[0].invocation_id)
        times = [microseconds(record.created) for record in roots]
        newest_first = [record.invocation_id for record in reversed(roots)]

        def listed(since: int, until: int, org_id: str = ORG, limit: int = 10) -> list[str]:
            documents = store.invocations.roots_json(org_id, since, until, limit)
            return [json.loads(document)["invocation_id"] for document in documents]

        assert listed(times[0], times[-1] + 1) == newest_first
        assert listed(times[1], times[3]) == newest_first[1:3]
        assert listed(times[0], times[-1] + 1, limit=2) == newest_first[:2]
        assert listed(times[0], times[-1] + 1, org_id="og_other") == []


class TestStates:
    def test_the_last_one_is_remembered_and_told(self, store: Store) -> None:
        heard: list[str] = []
        store.states.listen(heard.append)
        invocation_id = invoke(store).invocation_id
        assert store.states.get(invocation_id, ORG) is None
        store.states.set(invocation_id, "one", ORG)
        store.states.set(invocation_id, "two", ORG)
        assert store.states.get(invocation_id, ORG) == "two"
        assert heard == [invocation_id] * 2

    def test_a_state_of_nothing_or_one_too_long_is_rejected(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            store.states.set("iv_unknown", "one", ORG)
        with pytest.raises(NotFoundError):
            store.states.get("iv_unknown", ORG)
        with pytest.raises(InvalidRequestError, match="65536"):
            store.states.set(invoke(store).invocation_id, "x" * 65_537, ORG)


class TestRunnersWithoutAHeartbeat:
    def test_they_are_told_from_those_that_are_alive(self, store: Store) -> None:
        one, two = invoke(store).invocation_id, invoke(store).invocation_id
        store.claims.claim(RUNNER)
        store.claims.claim(OTHER_RUNNER)
        began = now()
        store.claims.heartbeat(RUNNER)
        assert [left.invocation_id for left in store.claims.orphaned()] == [one, two]
        assert store.claims.orphaned([RUNNER, OTHER_RUNNER]) == []
        assert store.claims.orphaned(heartbeat_before=began) == [
            OrphanedInvocation(two, OTHER_RUNNER, None, None)
        ]


class TestTokens:
    def test_a_token_is_found_by_itself_only_and_until_it_is_revoked(self, store: Store) -> None:
        token = store.tokens.add("reader", "og_other", Role.Read)
        found = store.tokens.find(token)
        assert found is not None
        assert (found.name, found.org_id, found.role) == ("reader", "og_other", Role.Read)
        assert store.tokens.find(token[:-1]) is None
        assert [each.name for each in store.tokens.list_all()] == ["reader"]
        store.tokens.revoke("reader")
        assert store.tokens.find(token) is None
        with pytest.raises(NotFoundError):
            store.tokens.revoke("reader")
