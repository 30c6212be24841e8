"""An event trigger as the triggerer runs it, on the state of one asset, without an Airflow around it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

from airflow_invocations.triggers import InvocationEventTrigger


class State:
    """The state of the asset that is watched."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.noted = asyncio.Event()
        self._by_name = {"watched": self}

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value
        self.noted.set()


class Watcher:
    """A trigger as the triggerer runs it, on one asset's state."""

    def __init__(self, state: State, **arguments: Any) -> None:
        self.trigger = InvocationEventTrigger(**arguments)
        self.trigger.asset_state_store = state  # type: ignore[assignment]
        self.payloads: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self.trigger.run()) as steps:  # type: ignore[type-var]
            async for event in steps:
                self.payloads.put_nowait(event.payload)

    async def hears(self, *ids: str) -> list[dict[str, Any]]:
        """All that it is told until it has been told of these."""
        found: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(60):
            while not set(ids) <= set(found):
                payload = await self.payloads.get()
                found |= {one["invocation_id"]: one for one in payload["invocations"]}
        return list(found.values())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
