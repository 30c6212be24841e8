"""The minimum of a wait in Airflow: a trigger that fires at a fixed time, and its operator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.context import Context
from airflow.triggers.base import BaseTrigger, TriggerEvent


class FiresByItself(BaseTrigger):
    """Fires at a time, in seconds since 1970; the event is the actual time."""

    def __init__(self, moment: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moment = moment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__package__}.waits_by_itself.FiresByItself", {"moment": self.moment}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(self.moment - time.time())
        yield TriggerEvent(time.time())  # type: ignore[no-untyped-call]


class FireByItselfOperator(BaseOperator):
    """Waits for a time (templated); the result is when the trigger fired."""

    template_fields: Sequence[str] = ("moment",)

    def __init__(self, *, moment: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moment = moment

    def execute(self, context: Context) -> None:
        self.defer(trigger=FiresByItself(float(self.moment)), method_name="resumed")

    def resumed(self, context: Context, event: float) -> float:
        return event
