"""Fixtures of the platforms' tests: a scripted server, and no pauses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from airflow_invocations.platforms.roboto import client as roboto

from ...support.scripted_server import Script, scripted_server


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    async with scripted_server() as script:
        yield script


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between tries instead of waiting for them."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(roboto.asyncio, "sleep", pause)
    return pauses
