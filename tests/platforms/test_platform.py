"""The methods of `Platform`, case by case, on every platform and for real."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import InvocationStatus, StatusSnapshot
from airflow_invocations.platforms import (
    CannotStopError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    Platform,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.tasks.idempotency import invoke_idempotent
from airflow_invocations.tasks.result import result_of
from airflow_invocations.waiters import cancel_and_confirm, log_pages

from ..support.waiting import until
from .conftest import Asking, Late, end_of
from .deployment import PlatformUnderTest, executions, release

pytestmark = pytest.mark.anyio
S = InvocationStatus


async def begun(folder: Path, times: int = 1) -> None:
    """Return once an action has been begun so often with this folder."""
    await asyncio.to_thread(until, lambda: executions(folder) >= times, 60.0)


class TestConnection:
    async def test_a_check_says_who_answered(self, platform: Platform, hook: InvocationHook) -> None:
        said = await platform.check()
        assert platform.where in said
        works, again = await asyncio.to_thread(hook.test_connection)
        assert works
        # How many are queued may be another number by then.
        assert re.sub(r"\d+ invocations?", "some invocations", again) == re.sub(
            r"\d+ invocations?", "some invocations", said
        )

    async def test_where_nobody_answers_is_out_of_reach(self, nowhere: InvocationHook) -> None:
        with pytest.raises(UnavailableError) as unreachable:
            async with await nowhere.connect() as platform:
                await platform.check()
        works, said = await asyncio.to_thread(nowhere.test_connection)
        assert not works
        assert nowhere.get_conn().where in said
        assert nowhere.get_conn().where in str(unreachable.value)


class TestTimes:
    async def test_they_mean_the_same_on_every_platform(
        self,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
        hook: InvocationHook,
    ) -> None:
        invoked = await platform.invoke(under_test.actions.typed, asking.request(count=1))
        record = await end_of(hook, invoked.invocation_id)
        started, ended = record.started_at, record.ended_at
        assert started is not None
        assert ended is not None
        assert record.created <= started <= ended == record.current.timestamp
        assert record.duration == record.ran_for == ended - started
        result = result_of(record, platform.url(invoked.invocation_id), None)
        assert (result["started"], result["ended"]) == (started.isoformat(), ended.isoformat())
        assert result["duration"] == (ended - started).total_seconds()
        assert result["queued"] == (started - record.created).total_seconds()


class TestActions:
    async def test_an_action_declares_its_parameters(
        self, platform: Platform, under_test: PlatformUnderTest
    ) -> None:
        action = await platform.get_action(under_test.actions.typed)
        assert action.name == under_test.actions.typed
        declared = {one.name: (one.required, one.default) for one in action.parameters}
        assert declared == {"folder": (True, None), "count": (True, None), "ratio": (False, "0.5")}
        assert action.missing_parameters({"folder": "here"}) == ["count"]

    async def test_an_action_that_is_not_there(
        self, platform: Platform, under_test: PlatformUnderTest, asking: Asking
    ) -> None:
        unknown = under_test.actions.unknown
        with pytest.raises(NotFoundError, match=unknown):
            await platform.get_action(unknown)
        with pytest.raises(NotFoundError, match=unknown):
            await platform.invoke(unknown, asking.request())

    async def test_parameters_that_do_not_fit_are_rejected_before_anything_is_kept(
        self, platform: Platform, under_test: PlatformUnderTest, asking: Asking
    ) -> None:
        for parameters, hint in under_test.unfit:
            with pytest.raises(InvalidRequestError, match=hint):
                await platform.invoke(under_test.actions.typed, asking.request(**parameters))
        assert await platform.find(asking.dag_id, asking.run_id, None, None) == []
        assert executions(asking.folder) == 0

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("input_data", {"files": {"paths": ["*.bag"]}}),
            ("upload_destination", "ds_1"),
            ("compute_requirements", {"vCPU": 1024, "memory": 2048}),
            ("container_parameters", {"workdir": "/"}),
            ("timeout", 5),
        ],
    )
    async def test_unsupported_request_is_rejected_and_nothing_is_stored(
        self,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
        argument: str,
        value: object,
    ) -> None:
        if getattr(platform.capabilities, argument):
            pytest.skip(f"{under_test.name} declares that it honours {argument}")
        with pytest.raises(UnsupportedError, match=f"'{argument}'"):
            await platform.invoke(under_test.actions.completes, asking.request(arguments={argument: value}))
        assert await platform.find(asking.dag_id, asking.run_id, None, None) == []


class TestOneInvocation:
    async def test_it_completes(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        action = under_test.actions.completes
        invoked = await platform.invoke(action, asking.request(answer=43))
        assert not invoked.current.status.is_terminal
        record = await end_of(hook, invoked.invocation_id)
        assert record.invocation_id == invoked.invocation_id
        assert record.provenance.action.name == action
        assert record.current.status is record.last_status is S.Completed
        steps = [(step.timestamp, step.status) for step in record.status]
        assert steps == sorted(steps)
        assert [step.status for step in record.status][:1] == [S.Queued]
        assert S.Processing in [step.status for step in record.status]
        assert record.created <= record.status[0].timestamp
        for step in record.status:
            assert step.platform_status == under_test.words.get(step.status)
        given = record.parameter_values.get("answer")
        assert given == (43 if platform.capabilities.parameters else None)
        assert executions(asking.folder) == 1

    async def test_outputs_can_be_read_where_the_platform_declares_them(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        invoked = await platform.invoke(under_test.actions.completes, asking.request(answer=43))
        await end_of(hook, invoked.invocation_id)
        if platform.capabilities.outputs:
            assert await platform.outputs(invoked.invocation_id) == {"answer": 43}
        else:
            with pytest.raises(UnsupportedError):
                await platform.outputs(invoked.invocation_id)

    async def test_its_log_can_be_read_where_that_is_declared(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        invoked = await platform.invoke(under_test.actions.completes, asking.request(answer=43))
        await end_of(hook, invoked.invocation_id)
        if platform.capabilities.logs:
            pages = [page async for page in log_pages(platform, invoked.invocation_id)]
            lines = [line.log for page in pages for line in page.items]
            assert "the answer is 43" in lines
            again = await platform.logs(invoked.invocation_id, pages[-1].last_read)
            assert again.items == []
        else:
            with pytest.raises(UnsupportedError):
                await platform.logs(invoked.invocation_id)

    async def test_it_fails_and_says_why(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        invoked = await platform.invoke(under_test.actions.fails, asking.request(message="no such bag"))
        record = await end_of(hook, invoked.invocation_id)
        assert record.current.status is S.Failed
        assert "no such bag" in (record.current.detail or "")

    async def test_where_to_look_at_it_has_its_id(
        self, hook: InvocationHook, under_test: PlatformUnderTest
    ) -> None:
        url = hook.url(under_test.unknown_id)
        assert url == "" or under_test.unknown_id.rpartition("/")[2] in url

    async def test_unknown_invocation_is_not_found(
        self, platform: Platform, under_test: PlatformUnderTest
    ) -> None:
        with pytest.raises(NotFoundError):
            await platform.get(under_test.unknown_id)
        with pytest.raises(NotFoundError):
            await platform.cancel(under_test.unknown_id)
        assert await cancel_and_confirm(platform, under_test.unknown_id, seconds=5.0) is None


async def test_batches_leave_out_what_is_not_there_or_not_asked_for(
    hook: InvocationHook, platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    actions = under_test.actions
    good = await platform.invoke(actions.completes, asking.request(once=f"{asking.run_id}-good"))
    bad = await platform.invoke(actions.fails, asking.request(once=f"{asking.run_id}-bad"))
    long = await platform.invoke(actions.waits, asking.request(once=f"{asking.run_id}-long"))
    await end_of(hook, good.invocation_id)
    await end_of(hook, bad.invocation_id)
    await begun(asking.folder, 3)
    ids = [good.invocation_id, bad.invocation_id, long.invocation_id, under_test.unknown_id]
    expected = {
        StatusSnapshot(good.invocation_id, S.Completed),
        StatusSnapshot(bad.invocation_id, S.Failed),
    }
    ended = await platform.ended(ids)
    assert len(ended) == 2
    assert set(ended) == expected
    known = await platform.statuses(ids)
    assert len(known) == 3
    assert set(known) == expected | {StatusSnapshot(long.invocation_id, S.Processing)}
    under_way = await platform.active([f"{asking.run_id}-{one}" for one in ("good", "bad", "long", "none")])
    assert under_way == [StatusSnapshot(long.invocation_id, S.Processing)]
    release(asking.folder)
    await end_of(hook, long.invocation_id)


async def test_a_watch_tells_the_present_first_or_is_rejected(
    hook: InvocationHook, platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    invoked = await platform.invoke(under_test.actions.completes, asking.request())
    await end_of(hook, invoked.invocation_id)
    try:
        async with asyncio.timeout(10), platform.watch([invoked.invocation_id], {}, None) as watch:
            told = await anext(aiter(watch))
    except UnsupportedError:
        return
    assert isinstance(told, StatusSnapshot)
    assert (told.invocation_id, told.status) == (invoked.invocation_id, S.Completed)


async def test_queued_invocation_is_executed_at_most_once(
    late: Late, under_test: PlatformUnderTest, asking: Asking
) -> None:
    once, never, last = (asking.request(answer=number) for number in range(3))
    completes = under_test.actions.completes
    async with await late.hook.connect() as platform:
        first = await platform.invoke(completes, once)
        assert first.current.status is S.Queued
        again = await platform.invoke(completes, once)
        assert (again.invocation_id, again.current.status) == (first.invocation_id, S.Queued)
        # A cancel before the start is final, whatever the platform can do later.
        unwanted = await platform.invoke(completes, never)
        cancelled = await cancel_and_confirm(platform, unwanted.invocation_id, seconds=10.0)
        assert cancelled is not None
        assert cancelled.current.status is S.Cancelled
        known = [StatusSnapshot(unwanted.invocation_id, S.Cancelled)]
        assert await platform.ended([unwanted.invocation_id]) == known
        assert await platform.statuses([unwanted.invocation_id]) == known
    late.deployment.start_workers()
    await end_of(late.hook, first.invocation_id)
    async with await late.hook.connect() as platform:
        same = await platform.invoke(completes, once)
        assert (same.invocation_id, same.current.status) == (first.invocation_id, S.Completed)
        assert (await platform.get(unwanted.invocation_id)).current.status is S.Cancelled
        # What comes last is executed last: if anything else were, it would have been by its end.
        other = await platform.invoke(completes, last)
    await end_of(late.hook, other.invocation_id)
    assert executions(asking.folder) == 2


class TestOnce:
    """The same idempotency id is executed once, however often and whenever it is asked for."""

    async def test_while_it_runs(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        request = asking.request()
        first = await platform.invoke(under_test.actions.waits, request)
        await begun(asking.folder)
        again = await platform.invoke(under_test.actions.waits, request)
        assert again.invocation_id == first.invocation_id
        release(asking.folder)
        await end_of(hook, first.invocation_id)
        assert executions(asking.folder) == 1

    async def test_by_twenty_at_once(
        self, hook: InvocationHook, under_test: PlatformUnderTest, asking: Asking
    ) -> None:
        request = asking.request()

        async def invoke() -> str:
            async with await hook.connect() as platform:
                return (await platform.invoke(under_test.actions.completes, request)).invocation_id

        ids = set(await asyncio.gather(*(invoke() for _ in range(20))))
        assert len(ids) == 1
        await end_of(hook, ids.pop())
        assert executions(asking.folder) == 1

    async def test_but_not_for_another_action(
        self, platform: Platform, under_test: PlatformUnderTest, asking: Asking
    ) -> None:
        request = asking.request()
        await platform.invoke(under_test.actions.completes, request)
        with pytest.raises(ConflictError):
            await platform.invoke(under_test.actions.fails, request)


class TestTries:
    """Which invocation a try goes on with (waiting/identity.py)."""

    async def test_a_try_after_a_failure_invokes_anew(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        ids = [f"{asking.run_id}-{failures}" for failures in range(2)]
        fails = under_test.actions.fails
        first = await invoke_idempotent(platform, fails, asking.request(), ids[:1], 1)
        await end_of(hook, first.invocation_id)
        # The same try, asked again, has seen its own failure.
        same = await invoke_idempotent(platform, fails, asking.request(), ids[:1], 1)
        assert same.invocation_id == first.invocation_id
        second = await invoke_idempotent(platform, fails, asking.request(try_number=2), ids, 2)
        assert second.invocation_id != first.invocation_id
        await end_of(hook, second.invocation_id)
        assert executions(asking.folder) == 2

    async def test_a_try_after_a_dead_worker_goes_on_with_what_runs_or_has_completed(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        ids = [f"{asking.run_id}-{failures}" for failures in range(3)]
        waits = under_test.actions.waits
        first = await invoke_idempotent(platform, waits, asking.request(), ids[:1], 1)
        await begun(asking.folder)
        second = await invoke_idempotent(platform, waits, asking.request(try_number=2), ids[:2], 2)
        release(asking.folder)
        await end_of(hook, first.invocation_id)
        third = await invoke_idempotent(platform, waits, asking.request(try_number=3), ids, 3)
        assert first.invocation_id == second.invocation_id == third.invocation_id
        assert third.provenance.source == asking.provenance(try_number=1).source
        assert executions(asking.folder) == 1


class TestCancel:
    async def test_while_it_runs(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        invoked = await platform.invoke(under_test.actions.waits, asking.request())
        await begun(asking.folder)
        if platform.capabilities.cancels_running:
            record = await cancel_and_confirm(platform, invoked.invocation_id, seconds=10.0)
            assert record is not None
        else:
            with pytest.raises(CannotStopError, match=invoked.invocation_id):
                await cancel_and_confirm(platform, invoked.invocation_id, seconds=10.0)
            assert (await platform.get(invoked.invocation_id)).current.status is S.Processing
            release(asking.folder)
            record = await end_of(hook, invoked.invocation_id)
        expected = S.Cancelled if platform.capabilities.cancels_running else S.Completed
        assert record.current.status is expected

    async def test_after_its_end_changes_nothing(
        self,
        hook: InvocationHook,
        platform: Platform,
        under_test: PlatformUnderTest,
        asking: Asking,
    ) -> None:
        invoked = await platform.invoke(under_test.actions.completes, asking.request())
        before = await end_of(hook, invoked.invocation_id)
        assert await cancel_and_confirm(platform, invoked.invocation_id, seconds=10.0) == before


async def test_provenance_can_be_read_and_searched(
    hook: InvocationHook, platform: Platform, under_test: PlatformUnderTest, tmp_path: Path
) -> None:
    dag_id = f"fleet {tmp_path.name}/ä%_*"
    folder = tmp_path / "asked"
    folder.mkdir()
    one = Asking(folder, dag_id, run_id="manual__1+00:00")
    # Ids that begin alike are not the same.
    askings = [
        one,
        Asking(folder, dag_id, run_id=one.run_id, map_index=1),
        Asking(folder, dag_id, run_id=one.run_id, task_id="ask_again"),
        Asking(folder, dag_id, run_id="manual__1+00:001"),
        Asking(folder, f"{dag_id}2", run_id=one.run_id),
        Asking(folder, dag_id, run_id="manual__2", iteration=1),
        Asking(folder, dag_id, run_id="manual__2", iteration=11, map_index=1),
    ]
    ids = []
    for asking in askings:
        invoked = await platform.invoke(under_test.actions.completes, asking.request())
        ids.append(invoked.invocation_id)
        record = await platform.get(invoked.invocation_id)
        assert record.provenance.source == asking.provenance().source

    async def found(*which: Any) -> list[str]:
        return [record.invocation_id for record in await platform.find(dag_id, *which)]

    looped, mapped = ids[5:]
    assert await found("manual__2", "ask", -1) == [looped]
    assert await found("manual__2", "ask", 1) == [mapped]
    assert await found("manual__2", "ask", None, None, 1) == [looped]
    assert await found("manual__2", "ask", 1, None, 11) == [mapped]
    assert await found("manual__2", "ask", 1, None, 1) == []
    assert await found(None, None, None) == [mapped, looped, *ids[3::-1]]
    assert await found(one.run_id, None, None) == ids[2::-1]
    assert await found(one.run_id, "ask", None) == ids[1::-1]
    assert await found(one.run_id, "ask", -1) == ids[:1]
    assert await found(one.run_id, "ask", 1) == ids[1:2]
    assert await found("no-such-run", None, None) == []
    assert await found(one.run_id, None, None, 2) == ids[2:0:-1]
    assert await found(one.run_id, "ask", None, 1) == ids[1:2]
    assert await found(None, None, None, 100) == [mapped, looped, *ids[3::-1]]
    found_by_hook = await asyncio.to_thread(hook.find, dag_id, one.run_id)
    assert [record.invocation_id for record in found_by_hook] == ids[2::-1]
    for invocation_id in ids:
        await end_of(hook, invocation_id)


async def test_active_invocations_of_tasks_are_found(
    hook: InvocationHook, platform: Platform, under_test: PlatformUnderTest, asking: Asking
) -> None:
    waits = await platform.invoke(under_test.actions.waits, asking.request())
    ended = await platform.invoke(under_test.actions.completes, asking.request())
    await end_of(hook, ended.invocation_id)
    found = {one.invocation_id: one for one in await platform.find_active(1000)}
    assert ended.invocation_id not in found
    assert found[waits.invocation_id].provenance.source == asking.provenance().source
    assert len(await platform.find_active(1)) == 1
    release(asking.folder)
    await end_of(hook, waits.invocation_id)
    assert waits.invocation_id not in {one.invocation_id for one in await platform.find_active(1000)}
