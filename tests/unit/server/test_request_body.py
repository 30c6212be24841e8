"""The limit of request bodies, whether they announce their length or not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from airflow_invocations.server.api.request_body import BodyLimit
from airflow_invocations.server.api.responses import add_error_handlers

pytestmark = pytest.mark.anyio

LIMIT = 1000
ENVELOPE = {
    "error": {
        "error_code": "RobotoInvalidRequestException",
        "message": "the request is larger than 1000 bytes",
    }
}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.add_middleware(BodyLimit, limit=LIMIT)
    add_error_handlers(app)

    @app.post("/")
    def length(body: list[int]) -> int:
        return len(body)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test",
        headers={"content-type": "application/json"},
    ) as client:
        yield client


def document(size: int) -> bytes:
    """A JSON list of so many bytes."""
    return b"[" + b" " * (size - 2) + b"]"


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 100):
        yield content[start : start + 100]


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_up_to_the_limit_is_read(client: httpx.AsyncClient, size: int, announced: bool) -> None:
    content = document(size) if announced else pieces(document(size))
    answer = await client.post("/", content=content)
    assert (answer.status_code, answer.json()) == (200, 0)


@pytest.mark.parametrize("size", [LIMIT + 1, 10 * LIMIT])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_larger_one_is_413_in_the_envelope(
    client: httpx.AsyncClient, size: int, announced: bool
) -> None:
    content = document(size) if announced else pieces(document(size))
    answer = await client.post("/", content=content)
    assert (answer.status_code, answer.json()) == (413, ENVELOPE)


async def test_a_length_that_is_a_lie_does_not_help(client: httpx.AsyncClient) -> None:
    for lie in ("10", "-1", "x", ""):
        answer = await client.post("/", content=pieces(document(10 * LIMIT)), headers={"content-length": lie})
        assert answer.status_code == 413, lie
