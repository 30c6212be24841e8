"""Triggers of sensors: wait in the triggerer, or run the whole sensor there."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from airflow.triggers.base import (
    BaseTrigger,
    TaskFailedEvent,
    TaskSkippedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)

from ..exceptions import InvocationError, task_error
from ..hooks import InvocationHook
from ..models import InvocationStatus
from ..platforms import UnauthorizedError
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.completion import CompletionCriteria, check, criteria_of, format_ids, wait_for_change
from ..tasks.result import LOGS_URL_KEY, URL_KEY
from ..tasks.xcom import storable_detail, trigger_event
from ..version_compat import AirflowFailException
from ..waiters import WaitAbandoned, client_of
from ._base import SerializedFields, announced, flush_task_log, has_retries, push_xcom


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class InvocationsTrigger(SerializedFields, BaseTrigger):
    """Wait until enough of several invocations have completed, or can't complete any more.

    Its event is {"reason", "detail"}: both None, or why the wait was abandoned. The event contains no
    statuses: the resumed sensor fetches them from the platform. Killing the sensor cancels no invocation.

    :param conn_id: the Airflow connection.
    :param invocation_ids: the invocations to wait for.
    :param required: how many of them must complete.
    :param action: wait for the newest invocation of this action instead.
    :param since: with `action`: ignore invocations created earlier (ISO 8601, with its offset).
    :param poll_interval: seconds between two requests where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param not_before: when the event may be fired at the earliest (seconds since 1970).
    :param accepted: whether the platform has accepted the connection's credentials before. A rejection then
        counts as an outage for a minute.
    """

    conn_id: str
    invocation_ids: Sequence[str] = ()
    required: int = 1
    action: str | None = None
    since: str | None = None
    poll_interval: float
    outage_limit: float = OUTAGE_LIMIT
    not_before: float = 0.0
    accepted: bool = False

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then fire once."""
        event: dict[str, Any] = {"reason": None, "detail": None}
        criteria = self._criteria()
        try:
            async with announced(self, criteria):
                await wait_for_change(self.conn_id, InvocationHook(self.conn_id).connect, criteria)
        except WaitAbandoned as abandoned:
            event = {"reason": abandoned.reason.value, "detail": storable_detail(abandoned.detail)}
            self.log.error("%s", abandoned.detail)
        await asyncio.sleep(self.not_before - time.time())
        yield trigger_event(event)

    def _criteria(self) -> CompletionCriteria:
        criteria = CompletionCriteria(
            ids=tuple(self.invocation_ids),
            required=self.required,
            action=self.action,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            accepted=self.accepted,
        )
        if self.since is None:
            return criteria
        return dataclasses.replace(criteria, since=datetime.datetime.fromisoformat(self.since))


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SensorTrigger(SerializedFields, BaseTrigger):
    """Run a sensor in the triggerer from its start to its end.

    A worker is used only for an error that must not be retried, if the task has retries: Airflow retries
    every failure of a trigger.

    :param conn_id: the Airflow connection.
    :param invocation_id: the sensor's argument, as are the next four.
    :param invocation_ids: see `invocation_id`.
    :param action: see `invocation_id`.
    :param since: see `invocation_id`.
    :param wait_for: see `invocation_id`.
    :param poll_interval: seconds between two requests where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be unavailable.
    :param soft_fail: skip the task where it would fail.
    :param push_result: push the ids of completed invocations as the task's result.
    """

    conn_id: str
    invocation_id: str | None = None
    invocation_ids: Any = None
    action: str | None = None
    since: str | None = None
    wait_for: str | int = "all"
    poll_interval: float = 5.0
    outage_limit: float = OUTAGE_LIMIT
    soft_fail: bool = False
    push_result: bool = True

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then end the task as the sensor would."""
        try:
            async with asyncio.timeout(self._seconds_left):
                completed = await self._wait()
        except TimeoutError:
            self.log.error("The sensor timed out (timeout)")
            await flush_task_log()
            yield TaskSkippedEvent() if self.soft_fail else TaskFailedEvent()
            return
        except InvocationError as error:
            self.log.error("%s", error)
            await flush_task_log()
            if self.soft_fail:
                yield TaskSkippedEvent()
            elif isinstance(error, AirflowFailException) and has_retries(self):
                yield trigger_event({"reason": None, "detail": storable_detail(str(error))})
            else:
                yield TaskFailedEvent()
            return
        self.log.info("%s: %s", InvocationStatus.Completed, format_ids(completed))
        if self.push_result:
            result = completed if self.invocation_ids is not None else completed[0]
            await push_xcom(self, "return_value", result)
        await flush_task_log()
        yield TaskSuccessEvent()

    @property
    def _seconds_left(self) -> float | None:
        """The seconds until the sensor's timeout; None if Airflow handles the timeout.

        A sensor that times out isn't retried. Only Airflow can fail a task that has retries without retrying.
        """
        ends: datetime.datetime | None = getattr(self, "timeout_after", None)
        if ends is None or (has_retries(self) and not self.soft_fail):
            return None
        return max(0.0, ends.timestamp() - time.time())

    async def _wait(self) -> list[str]:
        """Return the ids of the completed invocations when they are enough. Raises InvocationError."""
        hook = InvocationHook(self.conn_id)
        criteria = self._criteria()
        try:
            if len(criteria.ids) == 1:
                await self._push_links(hook, criteria.ids[0])
            async with announced(self, criteria):
                while (completed := await check(hook.connect, criteria, self.outage_limit)) is None:
                    criteria = dataclasses.replace(criteria, accepted=True)
                    await wait_for_change(self.conn_id, hook.connect, criteria)
        except WaitAbandoned as abandoned:
            subject = format_ids(criteria.ids) or f"of action {criteria.action}"
            url = ""
            # A connection that became invalid has no URLs.
            with suppress(UnauthorizedError):
                async with await client_of(hook.connect) as platform:
                    url = platform.url(subject)
            raise task_error(abandoned, criteria.action, subject, url) from abandoned
        if len(criteria.ids) != 1 and len(completed) == 1:
            await self._push_links(hook, completed[0])
        return completed

    def _criteria(self) -> CompletionCriteria:
        names = ("invocation_id", "invocation_ids", "action", "since", "wait_for", "outage_limit")
        instance: Any = self.task_instance
        label = f"DAG {instance.dag_id!r}, task {instance.task_id!r}"
        arguments = {name: getattr(self, name) for name in names}
        return criteria_of(label, arguments, self.poll_interval, instance.get_template_context()["dag_run"])

    async def _push_links(self, hook: InvocationHook, invocation_id: str) -> None:
        platform = await hook.connect()
        await push_xcom(self, URL_KEY, platform.url(invocation_id))
        await push_xcom(self, LOGS_URL_KEY, platform.logs_url(invocation_id))
