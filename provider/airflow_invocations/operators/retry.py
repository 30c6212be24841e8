"""The operator that invokes anew what failed of a set of invocations, and answers for the whole set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason

from .. import models
from ..exceptions import (
    InvocationError,
    InvocationTimedOutError,
    RequestRefusedError,
    error_about,
    error_of,
    verdict_on,
)
from ..models import InvocationStatus
from ..models.text import counted
from ..platforms import InvocationPlatform, PlatformError, UnsupportedError
from ..platforms.retry import OUTAGE_LIMIT, outlast
from ..tasks.idempotency import TaskIdentity, find_or_create
from ..tasks.provenance import identity_of, loop_position_of, provenance_of
from ..tasks.result import INVOCATION_ID_KEY, result_of
from ..tasks.submission import SUBMIT_PATIENCE, run_id_problems
from ..tasks.validation import place_of
from ..tasks.xcom import push_xcom
from ..version_compat import SHORTEST_DEFERRAL, conf
from ..waiters import GivenUp, Reason, Waiting, endings
from ._base import CheckedTask
from .cancel_invocation import cancel_all, cancelled_on_failure

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ..hooks import InvocationHook
    from ..models import DagRunProvenance, InvocationRecord, InvocationRequest

T = TypeVar("T")
U = TypeVar("U")

#: What is invoked anew; what somebody has cancelled isn't.
_FAILED = frozenset({InvocationStatus.Failed, InvocationStatus.Deadly})

#: Requests under way at a time.
_AT_ONCE = 8

#: Seconds that a cancel is tried for, and after which Airflow ends a deferral that didn't end by itself.
_KILL_PATIENCE = 30.0
_BACKSTOP = 120.0


class RetryFailedInvocationsOperator(CheckedTask, BaseOperator):
    """Invoke anew those of a set of invocations that failed, with all that they were asked for.

    Each is invoked as the newest version of its action.

    For a mapped task whose failures shouldn't cost the whole set: give it `trigger_rule="all_done"`, and the
    XComs `invocation_id` of the mapped task, `XComArg(mapped, key="invocation_id")`; they are there after
    failures too, its results are not. Those that are Completed stay as they are. The task succeeds if, and
    only if, in the end all of the set are Completed.

    The result (XCom) is a list in the order of the set: for each the result that `InvokeActionOperator` has,
    the new invocation's where there is one, with the failed one's id as `retry_of` (None: it wasn't needed).

    A try of the task invokes each of them once at most, however often its worker is killed; a retry of the
    task goes on with what runs or has completed, and invokes anew what has failed again.

    :param invocations: the set: ids, operators' results, lists of either. All must have ended. (templated)
    :param conn_id: the Airflow connection; its platform must be one whose records hold all that was asked
        for (`Capabilities.parameters`). (templated)
    :param deferrable: wait in the triggerer. Default: `[operators] default_deferrable`.
    :param poll_interval: seconds between two looks, where the platform doesn't push.
    :param cancel_on_kill: cancel the new invocations when the task is killed, or its time is over.
    :param outage_limit: seconds for which the platform may be out of reach before the task fails.
    :raises ValueError: when the DAG is parsed, for arguments that can't be right; it names the task.
    :raises InvocationError: one of the tree in `airflow_invocations.exceptions`, by what has happened.
    """

    template_fields: Sequence[str] = ("invocations", "conn_id")
    ui_color = "#e3f1ee"

    _checked = ("invocations", "conn_id", "poll_interval", "outage_limit")

    def __init__(
        self,
        *,
        invocations: Any,
        conn_id: str = "roboto_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 5.0,
        cancel_on_kill: bool = True,
        outage_limit: float = OUTAGE_LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.invocations = invocations
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.outage_limit = outage_limit
        self._under_way: list[str] = []
        #: The hook of this execution, because `on_kill` must not read the connection.
        self._current_hook: InvocationHook | None = None
        self._check()

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Invoke anew what has failed; wait here, or have the triggerer wait."""
        hook = self._hook()
        pairs = self._invoke(hook, context)
        ids = self._under_way = [new.invocation_id for _, new in pairs if new is not None]
        with cancelled_on_failure(self, context, hook, ids, is_adopted=True):
            push_xcom(context["ti"], INVOCATION_ID_KEY, ids)
        if self.deferrable and any(new and not new.current.status.is_terminal for _, new in pairs):
            self._defer(context, ids)
        return self._finish(hook, context, pairs)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Read the statuses from the platform; derive again which invocations were started before.

        Without an event it starts over (see `InvokeActionOperator.execute_complete`).
        """
        if event is None:
            self.log.warning("Resumed without the trigger's event; looking for the invocations again")
            return self.execute(context)
        hook = self._hook()
        pairs = self._invoke(hook, context)
        if event["given_up"] is not None:
            ids = [new.invocation_id for _, new in pairs if new is not None]
            given_up = GivenUp(Reason(event["given_up"]), event["detail"])
            raise error_of(given_up, None, ids[0] if ids else "", hook.url(ids[0]) if ids else "")
        return self._finish(hook, context, pairs)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, also after a trigger that timed out (cancel) or broke (wait here instead)."""
        if next_method != TRIGGER_FAIL_REPR:
            return super().resume_execution(next_method, next_kwargs, context)
        hook = self._hook()
        pairs = self._invoke(hook, context)
        self._under_way = [new.invocation_id for _, new in pairs if new is not None]
        if (next_kwargs or {}).get("error") == TriggerFailureReason.TRIGGER_TIMEOUT:
            if self.cancel_on_kill:
                self._cancel(hook)
            seconds = self.execution_timeout.total_seconds() if self.execution_timeout else None
            timed_out = Waiting("", poll_interval=0.0, execution_timeout=seconds).timed_out
            raise InvocationTimedOutError(f"{place_of(self)}: {timed_out}, and no triggerer handled it")
        self.log.warning("the trigger broke, the invocations did not: waiting for them here")
        return self._finish(hook, context, pairs)

    def on_kill(self) -> None:
        """Cancel what was invoked anew. Airflow calls this from a signal handler."""
        if self.cancel_on_kill and self._under_way and self._current_hook is not None:
            self._cancel(self._current_hook)

    def _cancel(self, hook: InvocationHook) -> None:
        self.log.warning("Cancelling %s", counted(len(self._under_way), "invocation"))
        outcomes = hook.ask(partial(cancel_all, ids=self._under_way, patience=_KILL_PATIENCE))
        for invocation_id, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                self.log.error("invocation %s could not be cancelled: %s", invocation_id, outcome)

    def _invoke(
        self, hook: InvocationHook, context: Context
    ) -> list[tuple[InvocationRecord, InvocationRecord | None]]:
        """Each invocation of the set, and the one that was invoked in its place, if it has failed.

        It is the same however often it is asked for in one try. Raises InvocationError.
        """
        self._current_hook = hook
        values = self._read()
        if not hook.get_conn().capabilities.parameters:
            raise RequestRefusedError(
                f"{place_of(self)}: the platform behind connection {self.conn_id!r} doesn't keep all that an "
                "invocation was asked for; give the task that invokes retries instead"
            )
        ids: list[str] = values["invocations"]
        if not ids:
            return []
        if problems := run_id_problems(context["ti"].run_id):
            raise RequestRefusedError(f"{place_of(self)}: {'; '.join(problems)}")
        provenance, identity = provenance_of(context), identity_of(context)
        patience = min(SUBMIT_PATIENCE, self.outage_limit)

        async def invoke(
            platform: InvocationPlatform,
        ) -> list[tuple[InvocationRecord, InvocationRecord | None]]:
            records = await _each(ids, lambda one: outlast(partial(platform.get, one), patience))
            if running := [one.invocation_id for one in records if not one.current.status.is_terminal]:
                raise RequestRefusedError(
                    f"{place_of(self)}: argument 'invocations': {', '.join(running)} haven't ended; wait for "
                    "them first, with an InvocationSensor for one"
                )
            failed = [one for one in records if one.current.status in _FAILED]
            news = await _each(failed, lambda one: _again(platform, one, provenance, identity, patience))
            by_id = {old.invocation_id: new for old, new in zip(failed, news, strict=True)}
            return [(one, by_id.get(one.invocation_id)) for one in records]

        try:
            pairs = hook.ask(invoke)
        except PlatformError as error:
            raise error_about(
                error, f"{place_of(self)}: the failed ones", ids[0], hook.url(ids[0])
            ) from error
        for old, new in pairs:
            if new is not None:
                self.log.info(
                    "invocation %s is %s: %s in its place", old.invocation_id, old.current.status,
                    new.invocation_id,
                )  # fmt: skip
        return pairs

    def _outputs(self, hook: InvocationHook, records: list[InvocationRecord]) -> dict[str, Any]:
        """What those that are Completed have returned, by their ids, where the platform keeps that."""
        ids = [one.invocation_id for one in records if one.current.status is InvocationStatus.Completed]
        if not hook.get_conn().capabilities.outputs or not ids:
            return {}
        try:
            return hook.ask(partial(_outputs_of, ids=ids, patience=self.outage_limit))
        except PlatformError as error:
            what = f"{place_of(self)}: what they have returned"
            raise error_about(error, what, ids[0], hook.url(ids[0])) from error

    def _defer(self, context: Context, ids: list[str]) -> None:
        from ..triggers import InvocationsTrigger

        present = time.time()
        timeout = None
        if self.execution_timeout is not None:
            deadline = context["ti"].start_date.timestamp() + self.execution_timeout.total_seconds()
            timeout = timedelta(seconds=max(0.0, deadline - present))
        self.defer(
            trigger=InvocationsTrigger(
                accepted=True,
                conn_id=self.conn_id,
                invocation_ids=ids,
                wanted=None,
                poll_interval=self.poll_interval,
                outage_limit=self.outage_limit,
                not_before=present + SHORTEST_DEFERRAL,
                cancel_on_kill=self.cancel_on_kill,
                in_loop=loop_position_of(context) is not None,
            ),
            method_name="execute_complete",
            timeout=timeout,
        )

    def _finish(
        self,
        hook: InvocationHook,
        context: Context,
        pairs: list[tuple[InvocationRecord, InvocationRecord | None]],
    ) -> list[dict[str, Any]]:
        """Wait for those that haven't ended, and judge the whole set."""
        waitings = [
            Waiting(
                new.invocation_id,
                poll_interval=self.poll_interval,
                outage_limit=self.outage_limit,
                cancels=False,
            )
            for _, new in pairs
            if new is not None and not new.current.status.is_terminal
        ]
        ended: dict[str, InvocationRecord] = {}

        async def wait() -> None:
            async for ending in endings(hook.conn_id, hook.connect, waitings):
                if ending.record is None:
                    given_up = ending.given_up or GivenUp(Reason.Lost, "")
                    url = hook.url(ending.invocation_id)
                    raise error_of(given_up, None, ending.invocation_id, url) from given_up
                ended[ending.invocation_id] = ending.record

        hook.run(wait)
        self._under_way = []
        provenance = provenance_of(context)
        outputs = self._outputs(
            hook, [ended.get(one.invocation_id, one) for pair in pairs for one in pair if one]
        )
        results: list[dict[str, Any]] = []
        failures: list[InvocationRecord] = []
        for old, new in pairs:
            last = old if new is None else ended.get(new.invocation_id, new)
            if verdict_on(last) is not None:
                failures.append(last)
            asked_by = (
                provenance
                if new is not None
                else models.DagRunProvenance.from_environment(old.container_parameters.env_vars)
            )
            returned = outputs.get(last.invocation_id)
            result = result_of(last, hook.url(last.invocation_id), asked_by, returned)
            results.append({**result, "retry_of": None if new is None else old.invocation_id})
        if failures:
            raise _error_of_set(failures, len(pairs), hook)
        return results


async def _outputs_of(platform: InvocationPlatform, ids: Sequence[str], patience: float) -> dict[str, Any]:
    async def read(invocation_id: str) -> Any:
        try:
            return await outlast(partial(platform.outputs, invocation_id), patience)
        except UnsupportedError:
            return None  # what it returned isn't JSON

    return dict(zip(ids, await _each(ids, read), strict=True))


async def _again(
    platform: InvocationPlatform,
    record: InvocationRecord,
    provenance: DagRunProvenance,
    identity: TaskIdentity,
    patience: float,
) -> InvocationRecord:
    """What is invoked in the place of one that has failed."""
    request = request_again(platform, record, provenance)
    ids = replace(identity, part=record.invocation_id).idempotency_ids(provenance.try_number)
    name = record.provenance.action.name
    return await outlast(
        lambda: find_or_create(platform, name, request, ids, provenance.try_number), patience
    )


def request_again(
    platform: InvocationPlatform, record: InvocationRecord, provenance: DagRunProvenance
) -> InvocationRequest:
    """The request for the same invocation again, by another task: as far as its platform honours requests."""
    can = platform.capabilities
    asked = models.InvocationRequest(
        invocation_source=provenance.source.source_type,
        container_parameter_overrides=record.container_parameters,
    )
    own = (
        asked.own_container_parameters if can.container_parameters else None
    ) or models.ContainerParameters()
    variables = {**(own.env_vars or {}), **provenance.environment()}
    return models.InvocationRequest(
        data_source_id=record.data_source.data_source_id,
        input_data=record.input_data if can.input_data else [],
        rich_input_data=record.rich_input_data if can.input_data else None,
        invocation_source=provenance.source.source_type,
        invocation_source_id=provenance.source.source_id,
        parameter_values=record.parameter_values,
        compute_requirement_overrides=record.compute_requirements if can.compute_requirements else None,
        container_parameter_overrides=own.overridden_by(models.ContainerParameters(env_vars=variables)),
        timeout=record.timeout if can.timeout else None,
        upload_destination=record.upload_destination if can.upload_destination else None,
    )


def _error_of_set(failures: list[InvocationRecord], total: int, hook: InvocationHook) -> InvocationError:
    first = failures[0]
    kind = verdict_on(first) or InvocationError
    status = first.current
    return kind.of(
        first,
        hook.url(first.invocation_id),
        [],
        why=f"{len(failures)} of {counted(total, 'invocation')} did not complete; the first: {status.status}"
        + (f": {status.detail}" if status.detail else ""),
    )


async def _each(items: Sequence[U], operation: Callable[[U], Awaitable[T]]) -> list[T]:
    """The operation's result for each item, a few at a time."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(item: U) -> T:
        async with slots:
            return await operation(item)

    return list(await asyncio.gather(*map(one, items)))
