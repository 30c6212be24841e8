"""The trigger that starts DAGs when invocations end: watch a connection and deliver events in batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, ClassVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from ..hooks import InvocationHook
from ..models import EventFilter, InvocationEvent, InvocationRecord, InvocationStatus, UnreadableItem
from ..models.invocation import started_at
from ..tasks.xcom import storable_name, storable_text, storable_token, trigger_event
from ..version_compat import VERSION, asset_states_of, has_trigger_queues
from ..waiters.event_stream import StreamRegistry, Subscription, fetch_records
from ._event_delivery import Acknowledgements, DeliverySettings, StoredCursor, WatchedAssets

#: The statuses that an invocation can end with.
ENDS = tuple(status for status in InvocationStatus if status.is_terminal)

#: The number of characters of a status's detail that are delivered.
_DETAIL_WIDTH = 300

_log = logging.getLogger(__name__)


class InvocationEventTrigger(BaseEventTrigger):
    """Watch for invocations that end; each one that matches becomes part of the payload of a DAG run.

    Use it in an AssetWatcher. The payload of an asset event is {"invocations": [...], "sent", "cursor",
    "unreadable"}; an invocation in it is {"invocation_id", "action", "digest", "status", "detail", "created",
    "started", "ended", "duration", "queued", "url", "source_type", "source_id", "dataset_id"}. In the DAG,
    `airflow_invocations.assets.triggering_invocations()` reads them, drops duplicates, and acknowledges the
    batch; the next batch is sent after that. If no DAG acknowledges, batches are sent 10 seconds apart, and
    while a DAG is at its `max_active_runs`, Airflow may hold the last batch back until the next one.

    All watchers of a connection share one stream. The cursor up to which every event was delivered is stored
    in the asset's state, and in the Airflow variable `invocation_events_cursor:` with the asset's name. So no
    event is lost when a triggerer stops or dies, when a platform is unavailable, or when a DAG file is
    missing for a while. A new trigger starts with invocations that end from then on; so does one whose
    state and variable were both deleted.

    :param conn_id: the Airflow connection. On Flyte, it delivers the runs of the connection's project and
        domain; on pynenc, all of the app's invocations.
    :param action: only this action's invocations, named as in operators; None for every action.
    :param statuses: names of final statuses; None for all (Completed, Cancelled, Failed, Deadly).
    :param source: only invocations with this source type (`Manual`, `Trigger`), or whose source id begins
        with this (`airflow:dags/fleet/` for those of the DAG `fleet`); None for every source.
    :param org_id: only this organisation's invocations; None for all that the token may see.
    :param batch_size: the largest number of invocations in one asset event, 1 to 1000.
    :param include_own_runs: also deliver invocations of the watching DAGs themselves, which start the DAGs
        again and again unless they stop by themselves. If False, invocations are skipped that were started by
        a DAG run that this asset has started, or by any run of a DAG that acknowledges. On pynenc, which
        doesn't record what started a run, only the latter are skipped.
    :param acknowledge_timeout: seconds to wait for the first DAG's acknowledgement of a batch. The other DAGs
        get as much time again as the first one needed, and at least 20 seconds.
    :param queue: the triggerer queue (`airflow triggerer --queues`) that runs this trigger, since Airflow
        3.4; None for any triggerer without queues.
    :raises ValueError: for an invalid argument; the message names it and what is allowed.
    """

    settings: ClassVar[DeliverySettings] = DeliverySettings()

    def __init__(
        self,
        *,
        conn_id: str = InvocationHook.default_conn_name,
        action: str | None = None,
        statuses: Iterable[str] | None = None,
        source: str | None = None,
        org_id: str | None = None,
        batch_size: int = 200,
        include_own_runs: bool = False,
        acknowledge_timeout: float = 600.0,
        queue: str | None = None,
    ) -> None:
        super().__init__(**_queue_arguments(queue))  # type: ignore[no-untyped-call]
        self.conn_id = _text("conn_id", conn_id)
        self.action = None if action is None else _text("action", action)
        self.statuses = _statuses(statuses)
        self.source = None if source is None else _text("source", source)
        self.org_id = None if org_id is None else _text("org_id", org_id)
        self.batch_size = int(_number("batch_size", batch_size, 1, 1000))
        self.include_own_runs = include_own_runs
        self.acknowledge_timeout = float(_number("acknowledge_timeout", acknowledge_timeout, 1, 86400))
        self._unreadable = 0
        self._last_sent = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which Airflow recreates the trigger."""
        names = (
            "conn_id", "action", "source", "org_id", "batch_size", "include_own_runs", "acknowledge_timeout"
        )  # fmt: skip
        arguments = {name: getattr(self, name) for name in names}
        statuses = [status.name for status in self.statuses]
        return f"{type(self).__module__}.{type(self).__qualname__}", {**arguments, "statuses": statuses}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Deliver matching invocations, batch by batch; never ends."""
        assets = WatchedAssets(asset_states_of(self), self.settings.retry_pause)
        cursor = StoredCursor(assets, self.settings.save_interval)
        acknowledgements = Acknowledgements(assets)
        stored = await cursor.load()
        await acknowledgements.refresh()
        subscription = Subscription(EventFilter(self.action, frozenset(self.statuses)), stored)
        stream = StreamRegistry.current().join(self.conn_id, self._connect, subscription)
        try:
            begin = await subscription.start_cursor()
            if stored is None:
                cursor.advance(begin)
                await cursor.save()
            # The last batch of an earlier trigger may still wait for its DAG run.
            pause = self.settings.unacknowledged_spacing if stored is not None else 0.0
            not_before = time.monotonic() + pause
            async for payload in self._payloads(subscription, cursor, acknowledgements, not_before):
                yield trigger_event(payload)
        finally:
            stream.leave(subscription)

    async def _payloads(
        self,
        subscription: Subscription,
        cursor: StoredCursor,
        acknowledgements: Acknowledgements,
        not_before: float,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a payload when the one before was acknowledged, or is late.

        :param not_before: when the first may be sent at the earliest, on the monotonic clock.
        """
        empty_events, next_empty_event = 0, 0.0
        while True:
            is_missing = acknowledgements.is_missing(self._last_sent)
            try:
                async with asyncio.timeout(self.settings.unacknowledged_check if is_missing else None):
                    await subscription.wait_for_event()
            except TimeoutError:
                # No new event would make Airflow deliver what it may have left behind.
                if not await acknowledgements.has_progressed(self._last_sent) and (
                    empty_events >= self.settings.empty_events or time.monotonic() < next_empty_event
                ):
                    continue
                empty_events += 1
                invocations = []
            else:
                await asyncio.sleep(max(self.settings.linger, not_before - time.monotonic()))
                events = subscription.pop(self.batch_size)
                invocations = await self._invocations(events, acknowledgements)
                cursor.advance(max(event.cursor for event in events))
                if not invocations:
                    await cursor.save_occasionally()
                    continue
                empty_events = 0
            sent = self._next_sent(acknowledgements.newest)
            acknowledgements.note_send()
            yield {
                "invocations": invocations,
                "sent": sent,
                "cursor": cursor.value,
                "unreadable": self._unreadable,
            }
            await self._wait_for_acknowledgement(sent, acknowledgements)
            next_empty_event = time.monotonic() + self.acknowledge_timeout * 2**empty_events
            if empty_events >= self.settings.empty_events:
                await acknowledgements.forget_late(sent)
            # Not earlier: what was yielded a moment ago isn't stored yet, and is lost if the triggerer dies.
            await cursor.save()

    async def _wait_for_acknowledgement(self, sent: int, acknowledgements: Acknowledgements) -> None:
        """Wait until each acknowledging DAG has acknowledged the last batch, or is late."""
        settings = self.settings
        began = time.monotonic()
        pause = settings.read_pause
        limit = self.acknowledge_timeout
        await asyncio.sleep(settings.spacing)
        while True:
            late = await acknowledgements.late(sent)
            waited = time.monotonic() - began
            if late is None:
                limit = settings.unacknowledged_spacing
            elif late and acknowledgements.newest >= sent:
                limit = min(limit, max(settings.laggard_grace, 2 * waited))
            if late == set() or waited >= limit:
                break
            await asyncio.sleep(min(pause, limit - waited))
            pause = min(pause * 1.5, settings.longest_read_pause)
        if late:
            _log.warning(
                "DAG %s did not acknowledge the batch sent %.0f s ago; continuing",
                *(", ".join(sorted(dag_id for _, dag_id in late)), waited),
            )
            acknowledgements.ignore(late)

    async def _invocations(
        self, events: Collection[InvocationEvent], acknowledgements: Acknowledgements
    ) -> list[dict[str, Any]]:
        """Return the matching invocations of these events, with the last event of each."""
        last = {event.invocation_id: event for event in events}
        found: dict[str, tuple[InvocationRecord, str]] = {}
        for item in await fetch_records(self.conn_id, self._connect, last):
            if isinstance(item, UnreadableItem):
                self._unreadable += 1
                _log.warning(
                    "Skipped an invocation that can't be read (%d so far): %s",
                    *(self._unreadable, item.reason),
                )
            else:
                found[item[0].invocation_id] = item
        return [
            _invocation_payload(event, *found[event.invocation_id])
            for event in last.values()
            if event.invocation_id in found
            and self._matches(record := found[event.invocation_id][0])
            and (self.include_own_runs or not acknowledgements.is_own_run(record))
        ]

    def _matches(self, record: InvocationRecord) -> bool:
        source = record.provenance.source
        return self.org_id in (None, record.org_id) and (
            self.source is None
            or source.source_type.value == self.source
            or source.source_id.startswith(self.source)
        )

    def _next_sent(self, newest_acknowledged: int) -> int:
        """Return the time in microseconds since 1970, but later than that of any batch sent before.

        An earlier batch may come from another triggerer with another clock.
        """
        self._last_sent = max(time.time_ns() // 1000, self._last_sent + 1, newest_acknowledged + 1)
        return self._last_sent

    async def _connect(self) -> Any:
        return await InvocationHook(self.conn_id).connect()


def _queue_arguments(queue: str | None) -> dict[str, str]:
    if queue is None:
        return {}
    if not has_trigger_queues():
        version = ".".join(map(str, VERSION))
        raise ValueError(
            f"InvocationEventTrigger: argument 'queue': Airflow {version} can't assign event triggers to "
            "queues (3.4 can); leave it out"
        )
    return {"queue": _text("queue", queue)}


def _invocation_payload(event: InvocationEvent, record: InvocationRecord, url: str) -> dict[str, Any]:
    """Return an invocation's part of a payload. It is small, because each task of a run gets all of them."""
    # The event's time may come from another clock than the record's, or be less precise.
    ends = (step for step in record.status if step.status == event.status)
    end = min(ends, key=lambda step: abs(step.timestamp - event.at), default=None)
    detail = end.detail if end else None
    # An invocation that was queued again may be running already; the event is about the attempt that ended.
    began = end.timestamp if end else event.at
    started = started_at(step for step in record.status if step.timestamp <= began)
    destination = record.upload_destination
    return {
        "invocation_id": record.invocation_id,
        "action": storable_name(record.provenance.action.name),
        "digest": storable_name(record.provenance.action.digest),
        "status": event.status.name,
        "detail": storable_text(detail, _DETAIL_WIDTH) if detail else None,
        "created": record.created.isoformat(),
        "started": started.isoformat() if started else None,
        "ended": event.at.isoformat(),
        "duration": max(0.0, (event.at - started).total_seconds()) if started else None,
        "queued": (started - record.created).total_seconds() if started else None,
        "url": storable_token(url) or "",
        "source_type": record.provenance.source.source_type.value,
        "source_id": storable_name(record.provenance.source.source_id),
        "dataset_id": destination.destination_id if destination else None,
    }


def _statuses(names: Iterable[str] | None) -> tuple[InvocationStatus, ...]:
    if names is None:
        return ENDS
    allowed = {status.name: status for status in ENDS}
    asked = [names] if isinstance(names, str) else [str(name) for name in names]
    if not asked or (unknown := [name for name in asked if name not in allowed]):
        wrong = f"it has {', '.join(map(repr, unknown))}" if asked else "it is empty"
        raise ValueError(
            f"InvocationEventTrigger: argument 'statuses': {wrong}; allowed: {', '.join(allowed)}"
        )
    return tuple(status for name, status in allowed.items() if name in asked)


def _text(argument: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"InvocationEventTrigger: argument {argument!r}: it is {value!r}; allowed: a non-empty string"
        )
    return value


def _number(argument: str, value: object, least: int, most: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(
            f"InvocationEventTrigger: argument {argument!r}: it is {value!r}; allowed: {least} to {most}"
        )
    return value
