"""What a DAG run reads that was started because invocations have ended."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..version_compat import asset_state

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor

#: The key of an asset's state in which each DAG notes what it has taken over last.
ACKNOWLEDGED_KEY = "invocation_events_acknowledged"

#: How many of an asset's events before a run's first are looked through for what is delivered again. A
#: triggerer that dies sends again what it sent last, which is one event, or a few that were late.
LOOKED_BACK = 20

_log = logging.getLogger(__name__)


def triggering_invocations(context: Context | None = None) -> list[dict[str, Any]]:
    """The invocations whose ends have started this DAG run, each once, oldest end first: expand over them.

    Each is a dict, see `InvocationEventTrigger`. What another run of this DAG has taken over already (a
    triggerer that dies sends its last batch again) is left out, and a retried or cleared task gets the same
    list again. It also tells the trigger that this run has taken its events over, so call it in a run's
    first task, once.

    A run has at most the trigger's `batch` of them, as long as each run takes its events over. One that
    follows a time in which the DAG was paused may have more, and Airflow expands over 1,024 only
    (`[core] max_map_length`).

    :param context: the task's context; None: the running task's.
    :return: empty for a run that was started otherwise.
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
        if state is not None:  # without one nothing is sent twice: the trigger can't go on from anywhere
            first = min(event.timestamp for event in events)
            earlier = _taken_over_before(name, uri, first, instance.dag_id, instance.run_id)
        for invocation in _invocations_of(events):
            if _key(invocation) not in earlier:
                # One that was put back into the queue ends more than once; its last end counts.
                other = found.get(invocation["invocation_id"])
                if other is None or other["ended"] <= invocation["ended"]:
                    found[invocation["invocation_id"]] = invocation
        if state is not None:
            sent = max(_payload_of(event)["sent"] for event in events)
            _acknowledge(state, name, instance.dag_id, sent)
    return sorted(found.values(), key=lambda invocation: str(invocation["ended"]))


def _payload_of(event: Any) -> Any:
    """What InvocationEventTrigger has put into an asset event; None: it is somebody else's."""
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


def _taken_over_before(name: str, uri: str, before: Any, dag_id: str, run_id: str) -> set[tuple[str, str]]:
    """What other runs of this DAG have taken over, by the events of the asset just before a time."""
    from airflow.sdk.execution_time.context import InletEventsAccessor

    try:
        events: Sequence[Any] = (
            InletEventsAccessor(asset_name=name, asset_uri=uri)
            .before(before.isoformat())
            .ascending(False)
            .limit(LOOKED_BACK)
        )
        others = [
            event
            for event in events
            if any(run.dag_id == dag_id and run.run_id != run_id for run in event.created_dagruns)
        ]
    except Exception as error:
        _log.warning(
            "asset %r: what was delivered before can't be read, so some may come twice: %s", name, error
        )
        return set()
    return {_key(invocation) for invocation in _invocations_of(others)}


def _acknowledge(state: AssetStateStoreAccessor, name: str, dag_id: str, sent: int) -> None:
    """Tell the asset's trigger that a run of this DAG has what was sent up to then."""
    try:
        noted: Any = state.get(ACKNOWLEDGED_KEY)
        acknowledged = dict(noted) if isinstance(noted, dict) else {}
        if acknowledged.get(dag_id, 0) < sent:
            state.set(ACKNOWLEDGED_KEY, {**acknowledged, dag_id: sent})
    except Exception as error:
        _log.warning("asset %r: the trigger can't be told, and waits before it goes on: %s", name, error)
