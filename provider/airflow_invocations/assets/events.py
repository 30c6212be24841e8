"""Read the invocations that started a DAG run, and acknowledge them to the event trigger."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..version_compat import asset_state

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor

#: The key in an asset's state that holds, for each DAG, the last batch that it acknowledged.
ACKNOWLEDGED_KEY = "invocation_events_acknowledged"

#: How many earlier events of an asset are searched for duplicates. After a crash, a triggerer repeats its
#: last event, or a few of them if they were late.
EARLIER_EVENTS = 20

_log = logging.getLogger(__name__)


def triggering_invocations(context: Context | None = None) -> list[dict[str, Any]]:
    """Return the invocations whose ends started this DAG run, without duplicates, ordered by end.

    Each is a dict; see `InvocationEventTrigger`. Invocations that another run of this DAG has acknowledged
    are left out, because a triggerer that crashed repeats its last batch. A retried or cleared task gets the
    same list again. The call also acknowledges the batch to the trigger, so call it once, in a run's first
    task.

    A run gets at most the trigger's `batch_size` of them, if each run acknowledges. A run after a time in
    which the DAG was paused may get more; Airflow maps a task over at most 1,024 (`[core] max_map_length`).

    :param context: the task's context; None for that of the running task.
    :return: an empty list if something else started the run.
    """
    if context is None:
        from airflow.sdk import get_current_context

        context = get_current_context()
    instance = context["ti"]
    by_asset: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for events in context["triggering_asset_events"].values():
        for event in events:
            if _payload_of(event) is not None and event not in by_asset[event.asset.name, event.asset.uri]:
                by_asset[event.asset.name, event.asset.uri].append(event)
    found: dict[str, dict[str, Any]] = {}
    for (name, uri), events in by_asset.items():
        state = asset_state(name)
        earlier: set[tuple[str, str]] = set()
        if state is not None:  # without a state nothing is repeated: the trigger has no stored cursor
            first = min(event.timestamp for event in events)
            earlier = _acknowledged_before(name, uri, first, instance.dag_id, instance.run_id)
        for invocation in _invocations_of(events):
            if _key(invocation) not in earlier:
                # An invocation that was queued again ends more than once; the last end counts.
                other = found.get(invocation["invocation_id"])
                if other is None or other["ended"] <= invocation["ended"]:
                    found[invocation["invocation_id"]] = invocation
        if state is not None:
            sent = max(_payload_of(event)["sent"] for event in events)
            _acknowledge(state, name, instance.dag_id, sent)
    return sorted(found.values(), key=lambda invocation: str(invocation["ended"]))


def _payload_of(event: Any) -> Any:
    """Return the payload that InvocationEventTrigger put into an asset event; None if it is another event."""
    extra = event.extra or {}
    payload = extra.get("payload") if extra.get("from_trigger") else None
    if not isinstance(payload, dict) or not isinstance(payload.get("sent"), int):
        return None
    return payload if isinstance(payload.get("invocations"), list) else None


def _invocations_of(events: Iterable[Any]) -> list[dict[str, Any]]:
    payloads = (_payload_of(event) for event in sorted(events, key=lambda event: event.timestamp))
    return [
        invocation for payload in payloads if payload is not None for invocation in payload["invocations"]
    ]


def _key(invocation: dict[str, Any]) -> tuple[str, str]:
    return invocation["invocation_id"], invocation["ended"]


def _acknowledged_before(name: str, uri: str, before: Any, dag_id: str, run_id: str) -> set[tuple[str, str]]:
    """Return what other runs of this DAG got from the asset's last events before a time."""
    from airflow.sdk.execution_time.context import InletEventsAccessor

    try:
        events: Sequence[Any] = (
            InletEventsAccessor(asset_name=name, asset_uri=uri)
            .before(before.isoformat())
            .ascending(False)
            .limit(EARLIER_EVENTS)
        )
        others = [
            event
            for event in events
            if any(run.dag_id == dag_id and run.run_id != run_id for run in event.created_dagruns)
        ]
    except Exception as error:
        _log.warning(
            "Could not read the earlier events of asset %r; some may be delivered twice: %s", name, error
        )
        return set()
    return {_key(invocation) for invocation in _invocations_of(others)}


def _acknowledge(state: AssetStateStoreAccessor, name: str, dag_id: str, sent: int) -> None:
    """Store, for the asset's trigger, that a run of this DAG has every batch sent up to `sent`."""
    try:
        noted: Any = state.get(ACKNOWLEDGED_KEY)
        acknowledged = dict(noted) if isinstance(noted, dict) else {}
        if acknowledged.get(dag_id, 0) < sent:
            state.set(ACKNOWLEDGED_KEY, {**acknowledged, dag_id: sent})
    except Exception as error:
        _log.warning(
            "Could not acknowledge the events of asset %r; the next ones are delayed: %s", name, error
        )
