"""A platform in memory, which notes each invocation that is started twice or cancelled by mistake."""

from __future__ import annotations

import asyncio
import datetime
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from airflow_invocations.models import (
    ActionRecord,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    StatusSnapshot,
    source_id_prefix,
)
from airflow_invocations.platforms import Capabilities, NotFoundError, Platform, UnavailableError

from ...support.records import INVOCATION

S = InvocationStatus

ACTION = ActionRecord.model_validate(
    {
        "created": "2026-01-31T12:00:00Z",
        "created_by": "me",
        "modified": "2026-01-31T12:00:00Z",
        "modified_by": "me",
        "name": "a",
        "org_id": "og_1",
    }
)

_NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


@dataclass
class Invocation:
    """One invocation, and which incarnation of the task really has started it."""

    invocation_id: str
    idempotency_id: str | None
    source_id: str
    incarnation: int
    try_number: int
    status: InvocationStatus = S.Processing

    @property
    def is_active(self) -> bool:
        return not self.status.is_terminal

    @property
    def record(self) -> InvocationRecord:
        step = {"status": int(self.status), "timestamp": _NOON.isoformat()}
        provenance = {
            **INVOCATION["provenance"],
            "source": {"source_type": "Manual", "source_id": self.source_id},
        }
        return InvocationRecord.model_validate(
            {
                **INVOCATION,
                "invocation_id": self.invocation_id,
                "idempotency_id": self.idempotency_id,
                "last_status": int(self.status),
                "status": [step],
                "provenance": provenance,
            }
        )


@dataclass
class Site:
    """What a platform has, which outlives its clients."""

    name: str
    chance: random.Random
    #: Told of each new invocation and of each request to cancel one, to judge them.
    invoked: Callable[[Site, Invocation], None]
    cancelled: Callable[[Site, Invocation], None]
    is_up: bool = True
    invocations: dict[str, Invocation] = field(default_factory=dict)

    @property
    def active(self) -> list[Invocation]:
        return [one for one in self.invocations.values() if one.is_active]

    def end(self, status: InvocationStatus) -> None:
        """Have the newest active invocation end."""
        for one in self.active[-1:]:
            one.status = status


class Client(Platform):
    """A client of a site, as one process has it.

    :param runs: cleared while the process stands still.
    :param incarnation: of the task, and the try for which the process works.
    """

    name = "model"
    capabilities = Capabilities(logs=False, parameters=False)

    def __init__(self, site: Site, runs: asyncio.Event, incarnation: int, try_number: int) -> None:
        super().__init__(site.name)
        self._site = site
        self._runs = runs
        self._incarnation = incarnation
        self._try_number = try_number

    async def get_action(self, name: str) -> ActionRecord:
        await self._travel()
        return ACTION

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        await self._travel()
        known = self._with_id(request.idempotency_id)
        if known is None:
            known = Invocation(
                f"{self._site.name}_{len(self._site.invocations)}",
                request.idempotency_id,
                request.invocation_source_id or "",
                self._incarnation,
                self._try_number,
            )
            self._site.invoked(self._site, known)
            self._site.invocations[known.invocation_id] = known
        await self._travel()
        return known.record

    async def get(self, invocation_id: str) -> InvocationRecord:
        await self._travel()
        return self._known(invocation_id).record

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        await self._travel()
        found = self._site.invocations
        return [StatusSnapshot(one, found[one].status) for one in invocation_ids if one in found]

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        await self._travel()
        return [
            StatusSnapshot(one.invocation_id, one.status)
            for one in self._site.active
            if one.idempotency_id in idempotency_ids
        ]

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        await self._travel()
        prefix = source_id_prefix(dag_id, run_id, task_id, map_index)
        ours = [one for one in self._site.invocations.values() if one.source_id.startswith(prefix)]
        return [one.record for one in reversed(ours)][:limit]

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        await self._travel()
        return [one.record for one in self._site.active][:limit]

    async def cancel(self, invocation_id: str) -> None:
        await self._travel()
        one = self._known(invocation_id)
        if one.is_active:
            self._site.cancelled(self._site, one)
            one.status = S.Cancelled

    def _known(self, invocation_id: str) -> Invocation:
        try:
            return self._site.invocations[invocation_id]
        except KeyError:
            raise NotFoundError(invocation_id) from None

    def _with_id(self, idempotency_id: str | None) -> Invocation | None:
        found = self._site.invocations.values()
        return next((one for one in found if one.idempotency_id == idempotency_id), None)

    async def _travel(self) -> None:
        """Send a request or an answer; each may be lost in an outage."""
        await asyncio.sleep(self._site.chance.choice((0.0, 0.01, 0.5)))
        await self._runs.wait()
        if not self._site.is_up:
            raise UnavailableError("the platform is away")


class Hook:
    """Stands for `InvocationHook`; reads its connection each time."""

    connect_to: Any

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id

    async def connect(self) -> Client:
        client: Client = Hook.connect_to(self._conn_id)
        return client
