"""Waits in the triggerer for several invocations, or for the newest of an action; and ends sensors there."""

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
from ..links.invocation import LOGS_URL_KEY, URL_KEY
from ..models import InvocationStatus
from ..platforms import UnauthorizedError
from ..platforms.retry import OUTAGE_LIMIT
from ..sensors.invocation import wish_of
from ..tasks.completion import Wish, ids_named, is_granted, wait_until_it_may_be_granted
from ..tasks.xcom import storable_detail, trigger_event
from ..version_compat import AirflowFailException
from ..waiters import AbandonReason, WaitAbandoned, client_of, endings
from ._base import BaseInvocationTrigger
from ._task_instance import announced, flush_task_log, has_retries, push_xcom


class InvocationsTrigger(BaseInvocationTrigger):
    """Waits until enough of several invocations have completed, or can't any more.

    Its event is {"given_up", "detail"}: both None, or why the wait ended before that. The verdict isn't in
    it: whoever resumes looks at the platform.

    :param conn_id: the Airflow connection.
    :param invocation_ids: what to wait for.
    :param wanted: how many of them are to be Completed; None: wait until all have ended, however.
    :param action: wait for the newest invocation of this action instead.
    :param since: with `action`: when it was created at the earliest (ISO 8601, with its offset).
    :param poll_interval: seconds between two looks, where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be out of reach.
    :param not_before: the event isn't fired before this time (seconds since 1970).
    :param cancel_on_kill: cancel the invocations when the task is killed; False for those that only watch.
    :param in_loop: the task is in a task loop of Airflow 3.4.
    :param accepted: whether the platform has accepted the connection's credentials before, so that a refusal
        counts as an outage for a minute.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        invocation_ids: Sequence[str] = (),
        wanted: int | None = 1,
        action: str | None = None,
        since: str | None = None,
        poll_interval: float,
        outage_limit: float = OUTAGE_LIMIT,
        not_before: float = 0.0,
        cancel_on_kill: bool = False,
        in_loop: bool = False,
        accepted: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.invocation_ids = list(invocation_ids)
        self.wanted = wanted
        self.action = action
        self.since = since
        self.poll_interval = poll_interval
        self.outage_limit = outage_limit
        self.not_before = not_before
        self.cancel_on_kill = cancel_on_kill
        self.in_loop = in_loop
        self.accepted = accepted

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and the arguments that make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "conn_id": self.conn_id,
                "invocation_ids": self.invocation_ids,
                "wanted": self.wanted,
                "action": self.action,
                "since": self.since,
                "poll_interval": self.poll_interval,
                "outage_limit": self.outage_limit,
                "not_before": self.not_before,
                "cancel_on_kill": self.cancel_on_kill,
                "in_loop": self.in_loop,
                "accepted": self.accepted,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, fire once."""
        event: dict[str, Any] = {"given_up": None, "detail": None}
        connect = InvocationHook(self.conn_id).connect
        try:
            if self.wanted is None:
                await self._wait_for_all()
            else:
                wish = self._wish(self.wanted)
                async with announced(self, wish):
                    await wait_until_it_may_be_granted(self.conn_id, connect, wish)
        except WaitAbandoned as given_up:
            event = {"given_up": given_up.reason.value, "detail": storable_detail(given_up.detail)}
            self.log.error("%s", given_up.detail)
        await asyncio.sleep(self.not_before - time.time())
        self._has_fired = True
        yield trigger_event(event)

    async def _wait_for_all(self) -> None:
        wish = self._wish(len(self.invocation_ids))
        connect = InvocationHook(self.conn_id).connect
        async for ending in endings(self.conn_id, connect, [wish.waiting(one) for one in wish.ids]):
            if ending.given_up is not None and ending.given_up.reason is not AbandonReason.Lost:
                raise ending.given_up
            status = ending.record.current.status if ending.record else "not known (any more)"
            self.log.info("invocation %s: %s", ending.invocation_id, status)

    def _wish(self, wanted: int) -> Wish:
        wish = Wish(
            ids=tuple(self.invocation_ids),
            wanted=wanted,
            action=self.action,
            poll_interval=self.poll_interval,
            outage_limit=self.outage_limit,
            accepted=self.accepted,
        )
        if self.since is None:
            return wish
        return dataclasses.replace(wish, since=datetime.datetime.fromisoformat(self.since))

    async def _own_ids(self) -> list[str]:
        return self.invocation_ids

    @property
    def _named(self) -> list[str]:
        return self.invocation_ids


class SensorTrigger(BaseTrigger):
    """A sensor that starts and ends in the triggerer: it waits, and ends its task itself.

    Only an error that must not be retried, of a task that has retries, is left to a worker: Airflow retries
    whatever fails in a triggerer.

    :param conn_id: the Airflow connection.
    :param invocation_id: as the sensor has it; so are the next four.
    :param invocation_ids: see there.
    :param action: see there.
    :param since: see there.
    :param wait_for: see there.
    :param poll_interval: seconds between two looks, where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be out of reach.
    :param soft_fail: skip the task where it would fail.
    :param push_result: push the ids of those that are Completed as the task's result.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        invocation_id: str | None = None,
        invocation_ids: Any = None,
        action: str | None = None,
        since: str | None = None,
        wait_for: str | int = "all",
        poll_interval: float = 5.0,
        outage_limit: float = OUTAGE_LIMIT,
        soft_fail: bool = False,
        push_result: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.invocation_id = invocation_id
        self.invocation_ids = invocation_ids
        self.action = action
        self.since = since
        self.wait_for = wait_for
        self.poll_interval = poll_interval
        self.outage_limit = outage_limit
        self.soft_fail = soft_fail
        self.push_result = push_result

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and the arguments that make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "conn_id": self.conn_id,
                "invocation_id": self.invocation_id,
                "invocation_ids": self.invocation_ids,
                "action": self.action,
                "since": self.since,
                "wait_for": self.wait_for,
                "poll_interval": self.poll_interval,
                "outage_limit": self.outage_limit,
                "soft_fail": self.soft_fail,
                "push_result": self.push_result,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, take the verdict from the platform, end the task."""
        try:
            async with asyncio.timeout(self._seconds_left):
                found = await self._wait()
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
                yield trigger_event({"given_up": None, "detail": storable_detail(str(error))})
            else:
                yield TaskFailedEvent()
            return
        self.log.info("%s: %s", InvocationStatus.Completed, ids_named(found))
        if self.push_result:
            await push_xcom(self, "return_value", found if self.invocation_ids is not None else found[0])
        await flush_task_log()
        yield TaskSuccessEvent()

    @property
    def _seconds_left(self) -> float | None:
        """Until the sensor's time is over; None: Airflow sees to that, as a timeout isn't to be retried."""
        ends: datetime.datetime | None = getattr(self, "timeout_after", None)
        if ends is None or (has_retries(self) and not self.soft_fail):
            return None
        return max(0.0, ends.timestamp() - time.time())

    async def _wait(self) -> list[str]:
        """The ids of those that are Completed, once these are enough. Raises InvocationError."""
        hook = InvocationHook(self.conn_id)
        wish = self._wish()
        try:
            if len(wish.ids) == 1:
                await self._push_links(hook, wish.ids[0])
            async with announced(self, wish):
                while (found := await is_granted(hook.connect, wish, self.outage_limit)) is None:
                    wish = dataclasses.replace(wish, accepted=True)
                    await wait_until_it_may_be_granted(self.conn_id, hook.connect, wish)
        except WaitAbandoned as given_up:
            subject = ids_named(wish.ids) or f"of action {wish.action}"
            # Of a connection that became invalid no address can be made.
            with suppress(UnauthorizedError):
                async with await client_of(hook.connect) as platform:
                    raise task_error(given_up, wish.action, subject, platform.url(subject)) from given_up
            raise task_error(given_up, wish.action, subject, "") from given_up
        if len(wish.ids) != 1 and len(found) == 1:
            await self._push_links(hook, found[0])
        return found

    def _wish(self) -> Wish:
        arguments = {
            "invocation_id": self.invocation_id,
            "invocation_ids": self.invocation_ids,
            "action": self.action,
            "since": self.since,
            "wait_for": self.wait_for,
            "outage_limit": self.outage_limit,
        }
        instance: Any = self.task_instance
        place = f"DAG {instance.dag_id!r}, task {instance.task_id!r}"
        return wish_of(place, arguments, self.poll_interval, instance.get_template_context())

    async def _push_links(self, hook: InvocationHook, invocation_id: str) -> None:
        platform = await hook.connect()
        await push_xcom(self, URL_KEY, platform.url(invocation_id))
        await push_xcom(self, LOGS_URL_KEY, platform.logs_url(invocation_id))
