"""Starts DAGs when invocations end: watches a connection for an asset, and hands over what matches."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from ..assets.events import ACKNOWLEDGED_KEY
from ..hooks import InvocationHook
from ..models import (
    DagRunProvenance,
    EventFilter,
    InvocationEvent,
    InvocationRecord,
    InvocationStatus,
    UnreadableItem,
    task_instance_of,
)
from ..models.invocation import started_at
from ..tasks.sdk_calls import complete
from ..tasks.xcom import storable_name, storable_text, storable_token, trigger_event
from ..version_compat import (
    VERSION,
    asset_states_of,
    has_trigger_queues,
    read_variable,
    write_variable,
)
from ..waiters.event_stream import Feeds, Subscription, records_of

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor, AssetStateStoreAccessors
    from pydantic import JsonValue

#: The statuses that an invocation can end with.
ENDS = tuple(status for status in InvocationStatus if status.is_terminal)

#: The key of the asset's state that holds the place up to which everything was handed over.
CURSOR_KEY = "invocation_events_cursor"

#: The prefix of the Airflow variable that also holds the cursor; the asset's name follows. Airflow
#: deletes the state of an asset that no DAG file mentions for a while, and keeps its variables.
CURSOR_VARIABLE = "invocation_events_cursor:"

#: Seconds for which what happens at the same time is collected into one batch.
LINGER = 1.0

#: Seconds between two asset events at least. Airflow takes up to 1 s to store one, and what it stores while
#: it hasn't yet made a DAG run of the one before waits for the next one after that.
SPACING = 3.0

#: Seconds between two asset events where no DAG ever says that it has taken one over.
UNACKNOWLEDGED_SPACING = 10.0

#: Seconds between two looks while a DAG hasn't taken over what was sent last. As soon as it has taken over
#: something before that, an empty event is sent, which takes along what Airflow has left behind.
WATCHFUL_PAUSE = 30.0

#: How often an empty event is sent though nothing was taken over: in case that run has failed.
SWEEPS = 3

#: Seconds between two looks for acknowledgements: the first, and the longest.
LOOK_PAUSE = 1.0
LONGEST_LOOK_PAUSE = 10.0

#: Minimum seconds that the other DAGs get after the first one has acknowledged a batch; they get twice the
#: time that it took, if that is more. A paused DAG never acknowledges, and must not delay the others.
LAGGARD_GRACE = 20.0

#: Seconds between two notes of the place while nothing is handed over.
NOTE_INTERVAL = 10.0

#: Seconds between two tries to read an asset's state.
STATE_PAUSE = 5.0

#: Characters of a status's detail that are handed over.
_DETAIL_WIDTH = 300

#: How Airflow begins the id of a DAG run that assets have started.
_RUN_OF_ASSETS = "asset_triggered__"

#: Characters that Airflow allows in a variable's name.
_LONGEST_KEY = 250

_DESCRIPTION = "Cursor of InvocationEventTrigger. To start from now, delete it and the asset's state."

_log = logging.getLogger(__name__)


class InvocationEventTrigger(BaseEventTrigger):
    """Watches for invocations that end; each one that matches reaches the payload of a DAG run.

    For an AssetWatcher. The payload of an asset event is {"invocations": [...], "sent", "place",
    "unreadable"}; an invocation in it is {"invocation_id", "action", "digest", "status", "detail", "created",
    "started", "ended", "duration", "queued", "url", "source_type", "source_id", "dataset_id"}. In the DAG,
    `airflow_invocations.assets.triggering_invocations()` reads them, drops what was delivered twice, and
    acknowledges: the next batch is sent when the one before was taken over. Without that a batch follows
    the one before after UNACKNOWLEDGED_SPACING seconds, and while the DAG is at its `max_active_runs` Airflow
    may leave the last one waiting for the next.

    All watchers of a connection share one stream. The place up to which everything was handed over is kept
    in the asset's state, and in the Airflow variable `invocation_events_cursor:` with the asset's name. So
    nothing is lost when a triggerer stops or dies, when a platform is unavailable, or when a DAG file is
    missing for a while. A new trigger starts with invocations that end from then on; so does one whose
    state and variable were both deleted.

    :param conn_id: the Airflow connection. Of Flyte it tells the runs of the connection's project and
        domain, of pynenc all of the app's invocations, whoever has asked for them.
    :param action: only this action's invocations, named as operators name it; None: every action's.
    :param statuses: which ends count, as names; None: all (Completed, Cancelled, Failed, Deadly).
    :param source: only what was started like this: `Manual`, `Trigger`, or what the source id begins with
        (`airflow:dags/fleet/` for what the DAG `fleet` has invoked); None: whatever started it.
    :param org_id: only this organisation's; None: all that the token sees.
    :param batch: invocations in one asset event at most, from 1 to 1000.
    :param include_own_runs: also those that the watching DAGs invoke themselves, which starts them again and
        again unless something in them ends it. False: what a DAG run has invoked that this asset has
        started, or any run of a DAG that has acknowledged, is passed over; on pynenc, which doesn't keep
        what had started a run, only the latter.
    :param acknowledge_within: seconds that DAGs which acknowledge may take until the first of them does.
        The others then have as long again, and at least LAGGARD_GRACE seconds.
    :param queue: the queue of triggerers (`airflow triggerer --queues`) that runs this trigger, since Airflow
        3.4; None: any triggerer without queues.
    :raises ValueError: for an argument that can't be right: which, what is allowed.
    """

    def __init__(
        self,
        *,
        conn_id: str = InvocationHook.default_conn_name,
        action: str | None = None,
        statuses: Iterable[str] | None = None,
        source: str | None = None,
        org_id: str | None = None,
        batch: int = 200,
        include_own_runs: bool = False,
        acknowledge_within: float = 600.0,
        queue: str | None = None,
    ) -> None:
        super().__init__(**_queue_arguments(queue))  # type: ignore[no-untyped-call]
        self.conn_id = _text("conn_id", conn_id)
        self.action = None if action is None else _text("action", action)
        self.statuses = _statuses(statuses)
        self.source = None if source is None else _text("source", source)
        self.org_id = None if org_id is None else _text("org_id", org_id)
        self.batch = int(_number("batch", batch, 1, 1000))
        self.include_own_runs = include_own_runs
        self.acknowledge_within = float(_number("acknowledge_within", acknowledge_within, 1, 86400))
        self._unreadable = 0
        self._last_sent = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and the arguments that make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "conn_id": self.conn_id,
                "action": self.action,
                "statuses": [status.name for status in self.statuses],
                "source": self.source,
                "org_id": self.org_id,
                "batch": self.batch,
                "include_own_runs": self.include_own_runs,
                "acknowledge_within": self.acknowledge_within,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Hand over what matches, batch by batch, for ever."""
        state = _State(asset_states_of(self))
        cursor = await state.cursor()
        subscription = Subscription(EventFilter(self.action, frozenset(self.statuses)), cursor)
        feed = Feeds.here().join(self.conn_id, self._connect, subscription)
        try:
            begin = await subscription.begins()
            if cursor is None:
                state.reach(begin)
                await state.note()
            # What the triggerer before this one has sent may still wait for its DAG run.
            not_before = time.monotonic() + (UNACKNOWLEDGED_SPACING if cursor is not None else 0.0)
            async for payload in self._payloads(subscription, state, not_before):
                yield trigger_event(payload)
        finally:
            feed.leave(subscription)

    async def _payloads(
        self, subscription: Subscription, state: _State, not_before: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield one payload at a time: the next when the one before was taken over, or is late."""
        sweeps, next_sweep = 0, 0.0
        while True:
            try:
                async with asyncio.timeout(WATCHFUL_PAUSE if state.is_behind(self._last_sent) else None):
                    await subscription.something()
            except TimeoutError:
                # Nothing has come that would take along what Airflow may have left behind.
                if not await state.has_taken_some(self._last_sent) and (
                    sweeps >= SWEEPS or time.monotonic() < next_sweep
                ):
                    continue
                sweeps += 1
                payload = self._payload([], state)
            else:
                await asyncio.sleep(max(LINGER, not_before - time.monotonic()))
                events = subscription.take(self.batch)
                invocations = await self._invocations(events, state)
                state.reach(max(event.cursor for event in events))
                if not invocations:
                    await state.note_now_and_then()
                    continue
                sweeps = 0
                payload = self._payload(invocations, state)
            yield payload
            await self._let_be_taken(payload["sent"], state)
            next_sweep = time.monotonic() + self.acknowledge_within * 2**sweeps
            if sweeps >= SWEEPS:
                await state.give_up(payload["sent"])
            # Only now: what was yielded a moment ago isn't stored yet, and is lost if the triggerer dies.
            await state.note()

    async def _let_be_taken(self, sent: int, state: _State) -> None:
        """Wait until each acknowledging DAG has acknowledged the last batch, or is late."""
        began = time.monotonic()
        pause = LOOK_PAUSE
        limit = self.acknowledge_within
        await asyncio.sleep(SPACING)
        while True:
            late = await state.late(sent)
            waited = time.monotonic() - began
            if late is None:
                limit = UNACKNOWLEDGED_SPACING
            elif late and state.was_acknowledged(sent):
                limit = min(limit, max(LAGGARD_GRACE, 2 * waited))
            if late == set() or waited >= limit:
                break
            await asyncio.sleep(min(pause, limit - waited))
            pause = min(pause * 1.5, LONGEST_LOOK_PAUSE)
        if late:
            _log.warning(
                "DAG %s did not acknowledge the batch sent %.0f s ago; continuing",
                *(", ".join(sorted(dag_id for _, dag_id in late)), waited),
            )
            state.silence(late)

    async def _invocations(self, events: Collection[InvocationEvent], state: _State) -> list[dict[str, Any]]:
        """What of these events is to be handed over: the last one of each invocation."""
        last = {event.invocation_id: event for event in events}
        found: dict[str, tuple[InvocationRecord, str]] = {}
        for item in await records_of(self.conn_id, self._connect, last):
            if isinstance(item, UnreadableItem):
                self._unreadable += 1
                _log.warning(
                    "an invocation that has ended can't be read and is passed over (%d so far): %s",
                    *(self._unreadable, item.reason),
                )
            else:
                found[item[0].invocation_id] = item
        return [
            _handed_over(event, *found[event.invocation_id])
            for event in last.values()
            if event.invocation_id in found and self._wants(found[event.invocation_id][0], state)
        ]

    def _wants(self, record: InvocationRecord, state: _State) -> bool:
        source = record.provenance.source
        if self.org_id not in (None, record.org_id):
            return False
        if (
            self.source is not None
            and source.source_type.value != self.source
            and not source.source_id.startswith(self.source)
        ):
            return False
        return self.include_own_runs or not state.has_started(record)

    def _payload(self, invocations: list[dict[str, Any]], state: _State) -> dict[str, Any]:
        # Larger than any that was sent before, also by another triggerer with another clock.
        self._last_sent = max(time.time_ns() // 1000, self._last_sent + 1, state.last_acknowledged + 1)
        state.remember_who_has_what()
        return {
            "invocations": invocations,
            "sent": self._last_sent,
            "place": state.place,
            "unreadable": self._unreadable,
        }

    async def _connect(self) -> Any:
        return await InvocationHook(self.conn_id).connect()


class _State:
    """What is kept in the state of the assets that a trigger watches for: the place, and who took what over.

    Two assets with equal triggers share one.
    """

    def __init__(self, store: AssetStateStoreAccessors | None) -> None:
        # Airflow has no public way to ask which assets these are.
        self._assets: Mapping[str, AssetStateStoreAccessor] = dict(getattr(store, "_by_name", {}))
        self._uris = set(getattr(store, "_by_uri", {}))
        #: Up to where everything was handed over, or isn't wanted.
        self.place: int | None = None
        self._noted: int | None = None
        self._noted_at = time.monotonic()
        #: When that was sent which each DAG has taken over last (microseconds since 1970), by asset and DAG.
        self._acknowledged: dict[tuple[str, str], int] = {}
        #: The same when something was sent last.
        self._acknowledged_before: dict[tuple[str, str], int] = {}
        #: Those that were late, and what they had taken over by then: nobody waits for them.
        self._silent: dict[tuple[str, str], int] = {}

    @property
    def last_acknowledged(self) -> int:
        """When that was sent which was taken over last by anybody; 0: nothing ever was."""
        return max(self._acknowledged.values(), default=0)

    async def cursor(self) -> int | None:
        """The place that was noted last; None: none ever was. Asks until there is an answer."""
        places = []
        for name, state in self._assets.items():
            place = await self._read(name, partial(state.aget, CURSOR_KEY))
            if place is None:
                place = await self._kept_in_variable(name)
            if isinstance(place, int):
                places.append(place)
            elif place is not None:
                _log.error("Asset %r: state %s is %r, not a cursor; ignored", name, CURSOR_KEY, place)
        self.place = self._noted = min(places, default=None)
        await self._look()
        return self.place

    async def _kept_in_variable(self, name: str) -> int | None:
        """Return the stored cursor of an asset whose state Airflow has deleted; None if there is none."""
        key = _variable_of(name)
        kept = await self._read(name, partial(read_variable, key))
        if kept is None:
            return None
        if not (isinstance(kept, str) and kept.isdecimal()):
            _log.error("Variable %s is not a cursor; ignored", key)
            return None
        _log.warning("Asset %r lost its state; resuming from the cursor in variable %s", name, key)
        return int(kept)

    def reach(self, place: int) -> None:
        """Everything up to there was handed over, or isn't wanted."""
        self.place = place if self.place is None else max(self.place, place)

    async def note(self) -> None:
        """Keep the place; one that can't be kept now is kept with the next."""
        self._noted_at = time.monotonic()
        if self.place in (None, self._noted):
            return
        try:
            for name, state in self._assets.items():
                await complete(partial(state.aset, CURSOR_KEY, self.place))
                await complete(partial(write_variable, _variable_of(name), str(self.place), _DESCRIPTION))
        except Exception as error:
            _log.warning(
                "Could not store the event cursor; events may be delivered twice after a restart: %s", error
            )
        else:
            self._noted = self.place

    async def note_now_and_then(self) -> None:
        """The same, but not each time."""
        if time.monotonic() - self._noted_at >= NOTE_INTERVAL:
            await self.note()

    async def late(self, sent: int) -> set[tuple[str, str]] | None:
        """Those that take things over and haven't taken over this; None: nobody is waited for."""
        await self._look()
        awaited = {who for who in self._acknowledged if who not in self._silent}
        return {who for who in awaited if self._acknowledged[who] < sent} if awaited else None

    def was_acknowledged(self, sent: int) -> bool:
        """Return whether any DAG has acknowledged this batch."""
        return any(acknowledged >= sent for acknowledged in self._acknowledged.values())

    def silence(self, late: Collection[tuple[str, str]]) -> None:
        """Don't wait for these until they take something over again."""
        self._silent |= {who: self._acknowledged[who] for who in late}

    def is_behind(self, sent: int) -> bool:
        """Whether anybody who has ever taken something over hasn't taken over this."""
        return any(taken < sent for taken in self._acknowledged.values())

    def remember_who_has_what(self) -> None:
        """Something is sent now."""
        self._acknowledged_before = dict(self._acknowledged)

    async def has_taken_some(self, sent: int) -> bool:
        """Whether a DAG has taken something over since the last was sent, but not that.

        Airflow has made a run of it then, and what came after what that run has is left behind.
        """
        await self._look()
        before = self._acknowledged_before
        return any(before.get(who) != taken < sent for who, taken in self._acknowledged.items())

    async def give_up(self, sent: int) -> None:
        """Forget, after the next restart, those that haven't taken this over; most likely they are gone."""
        kept = {who: taken for who, taken in self._acknowledged.items() if taken >= sent}
        for name, state in self._assets.items():
            try:
                acknowledged: dict[str, JsonValue] = {
                    dag_id: taken for (asset, dag_id), taken in kept.items() if asset == name
                }
                await complete(partial(state.aset, ACKNOWLEDGED_KEY, acknowledged))
            except Exception as error:
                _log.warning("the asset's state can't be written: %s", error)

    def has_started(self, record: InvocationRecord) -> bool:
        """Whether an invocation was asked for by a DAG that one of these assets starts.

        Where Airflow doesn't say which assets these are, it may be any that has started a run: a DAG that
        starts itself for ever is worse than one that isn't started.
        """
        asker = task_instance_of(record.provenance.source.source_id)
        dags = {dag_id for _, dag_id in self._acknowledged}
        if asker is not None and (
            asker.dag_id in dags or (not self._assets and asker.run_id.startswith(_RUN_OF_ASSETS))
        ):
            return True
        provenance = DagRunProvenance.from_environment(record.container_parameters.env_vars)
        return provenance is not None and (
            provenance.dag_id in dags
            or any(
                not self._assets or event.name in self._assets or event.uri in self._uris
                for event in provenance.consumed_asset_events
            )
        )

    async def _look(self) -> None:
        for name, state in self._assets.items():
            found = await self._read(name, partial(state.aget, ACKNOWLEDGED_KEY))
            for dag_id, sent in (found if isinstance(found, dict) else {}).items():
                if isinstance(sent, int):
                    self._acknowledged[name, dag_id] = sent
        self._silent = {who: taken for who, taken in self._silent.items() if self._acknowledged[who] == taken}

    async def _read(self, name: str, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        while True:
            try:
                return await complete(read)
            except Exception as error:
                _log.warning("Could not read the state of asset %r, trying again: %s", name, error)
                await asyncio.sleep(STATE_PAUSE)


def _variable_of(asset: str) -> str:
    """Return the name of the variable that holds an asset's cursor, within the length that Airflow allows."""
    key = f"{CURSOR_VARIABLE}{asset}"
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{CURSOR_VARIABLE}sha256-{hashlib.sha256(asset.encode()).hexdigest()}"


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


def _handed_over(event: InvocationEvent, record: InvocationRecord, url: str) -> dict[str, Any]:
    """An invocation in a payload: small, as Airflow hands all of a DAG run's to each of its tasks."""
    # A list may have another clock's time than a record, or a time that a record is more exact about.
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
        raise ValueError(f"InvocationEventTrigger: argument {argument!r}: it is {value!r}; allowed: a text")
    return value


def _number(argument: str, value: object, least: int, most: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(
            f"InvocationEventTrigger: argument {argument!r}: it is {value!r}; allowed: {least} to {most}"
        )
    return value
