"""How Airflow 3.3 turns a watcher's events into DAG runs, as it was measured in a real one.

What a trigger yields is stored a moment later, and lost if the triggerer dies before. The first event that is
stored queues a DAG; the run that is then made takes the events up to that moment only, and those that were
stored in between stay behind until the next event.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_invocations import version_compat
from airflow_invocations.assets import triggering_invocations
from airflow_invocations.triggers import InvocationEventTrigger, _event_delivery

BEGAN = datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)


@dataclass
class State:
    """One asset's state; every access fails while `broken`."""

    values: dict[str, Any] = field(default_factory=dict)
    broken: bool = False

    def get(self, key: str, default: Any = None) -> Any:
        if self.broken:
            raise RuntimeError("the execution API is away")
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        if self.broken:
            raise RuntimeError("the execution API is away")
        assert value is not None
        self.values[key] = value

    async def aget(self, key: str, default: Any = None) -> Any:
        await asyncio.sleep(0)
        return self.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        await asyncio.sleep(0)
        self.set(key, value)


@dataclass(eq=False)
class Event:
    asset: SimpleNamespace
    timestamp: datetime.datetime
    extra: dict[str, Any]
    created_dagruns: list[SimpleNamespace] = field(default_factory=list)


@dataclass(eq=False)
class Run:
    dag_id: str
    run_id: str
    events: list[Event]
    taken: list[dict[str, Any]] = field(default_factory=list)

    @property
    def payloads(self) -> list[str]:
        """Ids of all invocations in its payloads, as often as they are there."""
        return [
            one["invocation_id"] for event in self.events for one in event.extra["payload"]["invocations"]
        ]


@dataclass
class Dag:
    #: What each run does with its context; it takes so many seconds.
    work: Callable[[Any], list[dict[str, Any]]] = triggering_invocations
    seconds: float = 0.0
    max_active_runs: int = 16
    active: int = 0
    queued: datetime.datetime | None = None
    taken_until: datetime.datetime = BEGAN


class Scheduling:
    """A triggerer with one watcher on one asset, a scheduler, and workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, make: Callable[[], InvocationEventTrigger]) -> None:
        from airflow.sdk.execution_time import context

        self.make = make
        self.assets = {"watched": State()}
        self.variables: dict[str, str] = {}
        self.dags: dict[str, Dag] = {"fleet": Dag()}
        self.events: list[Event] = []
        self.runs: list[Run] = []
        self.trigger: InvocationEventTrigger
        self._outbound: deque[Any] = deque()
        self._ticks = 0
        self._runner: asyncio.Task[None] | None = None
        self._others: set[asyncio.Task[None]] = set()
        # As in 3.3 also where an older one runs these tests: what is checked is what we make of it.
        monkeypatch.setattr(version_compat, "VERSION", (3, 3))
        for name, found in {
            "AssetStateStoreAccessor": lambda *, name: self.assets[name],
            "InletEventsAccessor": lambda asset_name, asset_uri: _Before(self),
        }.items():
            monkeypatch.setattr(context, name, found, raising=False)

        async def read_variable(key: str) -> str | None:
            return self.variables.get(key)

        async def write_variable(key: str, value: str, description: str) -> None:
            assert len(key) <= 250
            assert description
            self.variables[key] = value

        monkeypatch.setattr(_event_delivery, "read_variable", read_variable)
        monkeypatch.setattr(_event_delivery, "write_variable", write_variable)

    async def __aenter__(self) -> Scheduling:
        self._spawn(self._scheduler())
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.crash()
        for task in self._others:
            task.cancel()
        await asyncio.gather(*self._others, return_exceptions=True)

    def start(self) -> None:
        """Start the triggerer."""
        self.trigger = self.make()
        names = dict(self.assets)
        self.trigger.asset_state_store = SimpleNamespace(_by_name=names)  # type: ignore[assignment]
        self._runner = asyncio.create_task(self._run(self.trigger))

    async def crash(self) -> None:
        """Kill the triggerer: what it hasn't stored is lost."""
        assert self._runner is not None
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._outbound.clear()

    async def _run(self, trigger: InvocationEventTrigger) -> None:
        async def watch() -> None:
            async with contextlib.aclosing(trigger.run()) as steps:  # type: ignore[type-var]
                async for event in steps:
                    self._outbound.append(event.payload)

        async def store() -> None:
            while True:
                await asyncio.sleep(0.002)
                while self._outbound:
                    self._store(self._outbound.popleft())

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            group.create_task(store())

    def _now(self) -> datetime.datetime:
        self._ticks += 1
        return BEGAN + datetime.timedelta(seconds=self._ticks)

    def _store(self, payload: dict[str, Any]) -> None:
        for name in self.assets:
            asset = SimpleNamespace(name=name, uri=name)
            self.events.append(Event(asset, self._now(), {"from_trigger": True, "payload": payload}))
        for dag in self.dags.values():
            dag.queued = dag.queued or self._now()

    async def _scheduler(self) -> None:
        while True:
            await asyncio.sleep(0.004)
            for dag_id, dag in self.dags.items():
                if dag.queued is None or dag.active >= dag.max_active_runs:
                    continue
                events = [one for one in self.events if dag.taken_until < one.timestamp <= dag.queued]
                run = Run(dag_id, f"run {len(self.runs)}", events)
                for event in events:
                    event.created_dagruns.append(SimpleNamespace(dag_id=dag_id, run_id=run.run_id))
                dag.taken_until, dag.queued = dag.queued, None
                dag.active += 1
                self.runs.append(run)
                self._spawn(self._work(dag, run))

    async def _work(self, dag: Dag, run: Run) -> None:
        await asyncio.sleep(0.003)
        run.taken = dag.work(context_of(run))
        await asyncio.sleep(dag.seconds)
        dag.active -= 1

    def _spawn(self, work: Any) -> None:
        self._others.add(asyncio.create_task(work))

    def handed_over(self, dag_id: str = "fleet") -> list[str]:
        """Ids of the invocations in the payloads of a DAG's runs, as often as they are there."""
        return [one for run in self.runs if run.dag_id == dag_id for one in run.payloads]

    def taken(self, dag_id: str = "fleet") -> list[str]:
        """Ids of the invocations that a DAG's runs have taken over."""
        return [one["invocation_id"] for run in self.runs if run.dag_id == dag_id for one in run.taken]


class _Before:
    """The events of an asset before a time, newest first, as a task may ask for them."""

    def __init__(self, scheduling: Scheduling) -> None:
        self._found = scheduling.events[::-1]

    def before(self, moment: str) -> _Before:
        self._found = [one for one in self._found if one.timestamp <= datetime.datetime.fromisoformat(moment)]
        return self

    def ascending(self, ascending: bool) -> _Before:
        assert not ascending
        return self

    def limit(self, limit: int) -> _Before:
        self._found = self._found[:limit]
        return self

    def __iter__(self) -> Any:
        return iter(self._found)


def context_of(run: Run) -> Any:
    """What of a task's context is read."""
    return {
        "ti": SimpleNamespace(dag_id=run.dag_id, run_id=run.run_id),
        "triggering_asset_events": {"watched": run.events},
    }
