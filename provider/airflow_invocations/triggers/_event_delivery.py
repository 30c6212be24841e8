"""Delivery of invocation events to DAGs: the stored cursor, and which DAG acknowledged which batch."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..assets.events import ACKNOWLEDGED_KEY
from ..models import DagRunProvenance, InvocationRecord, task_instance_of
from ..tasks.sdk_calls import complete
from ..version_compat import read_variable, write_variable

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor, AssetStateStoreAccessors
    from pydantic import JsonValue

#: The key in an asset's state under which the cursor is stored.
CURSOR_KEY = "invocation_events_cursor"

#: The prefix of the Airflow variable that also holds the cursor; the asset's name follows. Airflow
#: deletes the state of an asset that no DAG file mentions for a while, and keeps its variables.
CURSOR_VARIABLE = "invocation_events_cursor:"

#: The number of characters that Airflow allows in a variable's name.
_KEY_LIMIT = 250

_DESCRIPTION = "Cursor of InvocationEventTrigger. To start from now, delete it and the asset's state."

#: The prefix of the ids of DAG runs that assets have started.
_ASSET_RUN_PREFIX = "asset_triggered__"

#: A DAG that acknowledges batches: the asset's name and the DAG's id.
Consumer = tuple[str, str]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """The timing of asset events, in seconds."""

    #: How long events are collected into one batch.
    linger: float = 1.0
    #: The shortest time between two asset events. Airflow takes up to 1 s to store one, and an event that
    #: is stored before the DAG run for the previous one exists waits for the event after it.
    spacing: float = 3.0
    #: The time between two asset events if no DAG has ever acknowledged one.
    unacknowledged_spacing: float = 10.0
    #: The time between two checks while a DAG hasn't acknowledged the last batch. As soon as the DAG has
    #: acknowledged an earlier one, an empty event is sent, which delivers what Airflow left behind.
    unacknowledged_check: float = 30.0
    #: How many empty events are sent without any acknowledgement, in case that the run failed.
    empty_events: int = 3
    #: The first and the longest time between two reads of the acknowledgements.
    read_pause: float = 1.0
    longest_read_pause: float = 10.0
    #: The least time that the other DAGs get after the first one has acknowledged a batch; they get twice
    #: the time that it took, if that is more. A paused DAG never acknowledges, and must not delay the others.
    laggard_grace: float = 20.0
    #: The time between two writes of the cursor while nothing is delivered.
    save_interval: float = 10.0
    #: The time between two attempts to read an asset's state.
    retry_pause: float = 5.0


class WatchedAssets:
    """The assets that a trigger watches for, and their states; assets with equal triggers share one.

    :param store: the accessors of their states; None where Airflow keeps none.
    :param retry_pause: seconds between two attempts to read.
    """

    def __init__(self, store: AssetStateStoreAccessors | None, retry_pause: float) -> None:
        # Airflow has no public way to list the assets.
        self.states: Mapping[str, AssetStateStoreAccessor] = dict(getattr(store, "_by_name", {}))
        self.uris = set(getattr(store, "_by_uri", {}))
        self._retry_pause = retry_pause

    async def read_state(self, asset: str, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return what `read` returns, repeating it until it succeeds."""
        while True:
            try:
                return await complete(read)
            except Exception as error:
                _log.warning("Could not read the state of asset %r; trying again: %s", asset, error)
                await asyncio.sleep(self._retry_pause)


class StoredCursor:
    """The cursor up to which every event was delivered or skipped.

    :param save_interval: seconds between two writes by `save_occasionally`.
    """

    def __init__(self, assets: WatchedAssets, save_interval: float) -> None:
        self.value: int | None = None
        self._assets = assets
        self._save_interval = save_interval
        self._saved: int | None = None
        self._saved_at = time.monotonic()

    async def load(self) -> int | None:
        """Return the stored cursor, that of the asset which is furthest behind; None if there is none."""
        cursors = []
        for name, state in self._assets.states.items():
            cursor = await self._assets.read_state(name, partial(state.aget, CURSOR_KEY))
            if cursor is None:
                cursor = await self._load_from_variable(name)
            if isinstance(cursor, int):
                cursors.append(cursor)
            elif cursor is not None:
                _log.error("Asset %r: state %s is %r, not a cursor; ignored", name, CURSOR_KEY, cursor)
        self.value = self._saved = min(cursors, default=None)
        return self.value

    async def _load_from_variable(self, asset: str) -> int | None:
        """Return the cursor of an asset whose state Airflow has deleted; None if there is none."""
        key = _variable_name(asset)
        stored = await self._assets.read_state(asset, partial(read_variable, key))
        if stored is None:
            return None
        if not (isinstance(stored, str) and stored.isdecimal()):
            _log.error("Variable %s is not a cursor; ignored", key)
            return None
        _log.warning("Asset %r lost its state; resuming from the cursor in variable %s", asset, key)
        return int(stored)

    def advance(self, cursor: int) -> None:
        """Move the cursor forward; never back."""
        self.value = cursor if self.value is None else max(self.value, cursor)

    async def save(self) -> None:
        """Store the cursor if it has changed; after an error, the next call tries again."""
        self._saved_at = time.monotonic()
        if self.value in (None, self._saved):
            return
        try:
            for name, state in self._assets.states.items():
                await complete(partial(state.aset, CURSOR_KEY, self.value))
                await complete(partial(write_variable, _variable_name(name), str(self.value), _DESCRIPTION))
        except Exception as error:
            _log.warning(
                "Could not store the event cursor; events may be delivered twice after a restart: %s", error
            )
        else:
            self._saved = self.value

    async def save_occasionally(self) -> None:
        """Store the cursor if it was last stored long enough ago."""
        if time.monotonic() - self._saved_at >= self._save_interval:
            await self.save()


class Acknowledgements:
    """Which DAG acknowledged which batch, read from the assets' states.

    A batch is known by the time at which it was sent (microseconds since 1970).
    """

    def __init__(self, assets: WatchedAssets) -> None:
        self._assets = assets
        #: The last batch that each DAG acknowledged.
        self._latest: dict[Consumer, int] = {}
        #: The same when the last batch was sent.
        self._latest_at_send: dict[Consumer, int] = {}
        #: DAGs that were late, with the last batch that they had acknowledged by then.
        self._ignored: dict[Consumer, int] = {}

    async def refresh(self) -> None:
        """Read the acknowledgements; a DAG that has acknowledged another batch is no longer ignored."""
        for name, state in self._assets.states.items():
            found = await self._assets.read_state(name, partial(state.aget, ACKNOWLEDGED_KEY))
            for dag_id, sent in (found if isinstance(found, dict) else {}).items():
                if isinstance(sent, int):
                    self._latest[name, dag_id] = sent
        self._ignored = {who: sent for who, sent in self._ignored.items() if self._latest[who] == sent}

    @property
    def newest(self) -> int:
        """The newest batch that any DAG acknowledged; 0 if there is none."""
        return max(self._latest.values(), default=0)

    async def late(self, sent: int) -> set[Consumer] | None:
        """Return the DAGs that haven't acknowledged a batch; None if no DAG is expected to."""
        await self.refresh()
        expected = {who for who in self._latest if who not in self._ignored}
        return {who for who in expected if self._latest[who] < sent} if expected else None

    def ignore(self, late: Collection[Consumer]) -> None:
        """Don't wait for these DAGs until they have acknowledged another batch."""
        self._ignored |= {who: self._latest[who] for who in late}

    def is_missing(self, sent: int) -> bool:
        """Return whether a DAG that has ever acknowledged a batch hasn't acknowledged this one."""
        return any(acknowledged < sent for acknowledged in self._latest.values())

    def note_send(self) -> None:
        """Remember the acknowledgements at the time when a batch is sent."""
        self._latest_at_send = dict(self._latest)

    async def has_progressed(self, sent: int) -> bool:
        """Return whether a DAG has acknowledged a batch since this one was sent, but not this one.

        Airflow has then created a run, and has left behind the events after those of that run.
        """
        await self.refresh()
        return any(self._latest_at_send.get(who) != latest < sent for who, latest in self._latest.items())

    async def forget_late(self, sent: int) -> None:
        """Forget, after a restart, DAGs that haven't acknowledged a batch; they are probably deleted."""
        for name, state in self._assets.states.items():
            kept: dict[str, JsonValue] = {
                dag_id: latest
                for (asset, dag_id), latest in self._latest.items()
                if asset == name and latest >= sent
            }
            try:
                await complete(partial(state.aset, ACKNOWLEDGED_KEY, kept))
            except Exception as error:
                _log.warning("Could not write the state of asset %r: %s", name, error)

    def is_own_run(self, record: InvocationRecord) -> bool:
        """Return whether an invocation was started by a DAG that one of the assets starts.

        If the assets are unknown, every DAG run that any asset has started counts: a DAG that starts itself
        in a loop is worse than one that isn't started.
        """
        dags = {dag_id for _, dag_id in self._latest}
        assets = self._assets
        task = task_instance_of(record.provenance.source.source_id)
        if task is not None and (
            task.dag_id in dags or (not assets.states and task.run_id.startswith(_ASSET_RUN_PREFIX))
        ):
            return True
        provenance = DagRunProvenance.from_environment(record.container_parameters.env_vars)
        return provenance is not None and (
            provenance.dag_id in dags
            or any(
                not assets.states or event.name in assets.states or event.uri in assets.uris
                for event in provenance.consumed_asset_events
            )
        )


def _variable_name(asset: str) -> str:
    """Return the name of the variable that holds an asset's cursor, within the length that Airflow allows."""
    key = f"{CURSOR_VARIABLE}{asset}"
    if len(key) <= _KEY_LIMIT:
        return key
    return f"{CURSOR_VARIABLE}sha256-{hashlib.sha256(asset.encode()).hexdigest()}"
