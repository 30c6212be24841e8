"""A Redis that doesn't let us in: said as what it is, and without the password."""

from __future__ import annotations

import json

import pytest

from airflow_invocations.hooks import PynencHook
from airflow_invocations.platforms import UnauthorizedError

from .on_pynenc import REDIS, OnRedis

pytestmark = pytest.mark.anyio


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> PynencHook:
    """A hook with credentials that this machine's Redis doesn't know."""
    if why_not := OnRedis().why_not_here():
        pytest.skip(why_not)
    (host, port), extra = REDIS, {"app": OnRedis().app, "app_id": "nobody"}
    connection = {"conn_type": "pynenc", "host": host, "port": port, "login": "nobody", "password": "wr0ng"}
    monkeypatch.setenv("AIRFLOW_CONN_SHUT", json.dumps({**connection, "extra": extra}))
    return PynencHook("shut")


async def test_credentials_that_are_not_known_are_rejected(hook: PynencHook) -> None:
    with pytest.raises(UnauthorizedError) as rejected:
        async with await hook.connect() as platform:
            await platform.statuses(["00000000-0000-5000-8000-000000000000"])
    assert hook.get_conn().where in str(rejected.value)
    assert "wr0ng" not in f"{rejected.value!r} {rejected.value.__cause__!r}"


def test_a_test_of_the_connection_says_so(hook: PynencHook) -> None:
    works, said = hook.test_connection()
    assert not works
    assert "wr0ng" not in said
    assert f"redis://{REDIS[0]}:{REDIS[1]}/0" in said
