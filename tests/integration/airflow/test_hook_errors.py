"""What the hook raises: errors of `airflow_invocations.exceptions`, whatever the platform answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_invocations.exceptions import (
    AccessRejectedError,
    InvocationError,
    InvocationLostError,
    PlatformUnavailableError,
    RequestRejectedError,
)
from airflow_invocations.hooks import InvocationHook, RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource

from .conftest import connect_to, script

REQUEST = InvocationRequest(invocation_source=InvocationSource.Manual)
UNKNOWN = "iv_0000000000000000"

#: Every method that asks the platform, and what it raises for what isn't there.
METHODS: list[tuple[Callable[[RobotoHook], Any], type[InvocationError]]] = [
    (lambda hook: hook.get_action("nope"), RequestRejectedError),
    (lambda hook: hook.invoke("nope", REQUEST), RequestRejectedError),
    (lambda hook: hook.get(UNKNOWN), InvocationLostError),
    (lambda hook: hook.logs(UNKNOWN), InvocationLostError),
    (lambda hook: hook.cancel(UNKNOWN), InvocationLostError),
    (lambda hook: hook.outputs(UNKNOWN), RequestRejectedError),
    (lambda hook: hook.find_files("no query"), RequestRejectedError),
    (lambda hook: hook.call(lambda platform: platform.get(UNKNOWN)), RequestRejectedError),
]
FIND = (lambda hook: hook.find("fleet"), None)


@pytest.mark.parametrize(("ask", "kind"), METHODS)
def test_unknown_resources(
    hook: RobotoHook, ask: Callable[[RobotoHook], Any], kind: type[InvocationError]
) -> None:
    with pytest.raises(InvocationError) as raised:
        ask(hook)
    assert type(raised.value) is kind


# But `outputs`, which this platform rejects before anything is asked.
@pytest.mark.parametrize("method", [ask for ask, _ in (*METHODS[:5], *METHODS[6:], FIND)])
def test_a_token_that_is_rejected(
    server: Any, monkeypatch: pytest.MonkeyPatch, method: Callable[[RobotoHook], Any]
) -> None:
    connect_to(server, monkeypatch, token="wrong")
    hook = RobotoHook()
    with pytest.raises(AccessRejectedError) as raised:
        method(hook)
    assert "wrong" not in str(raised.value)


def test_a_platform_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"conn_type": "roboto", "host": "http://127.0.0.1:1", "password": "t"}
    monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", json.dumps(fields))
    with pytest.raises(PlatformUnavailableError, match="action 'a'"):
        RobotoHook().get_action("a")


def test_a_connection_that_is_misconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", json.dumps({"conn_type": "http", "host": "h"}))
    with pytest.raises(RequestRejectedError, match="its type is 'http'"):
        InvocationHook().get("iv_1")


def test_a_cancel_that_is_not_confirmed_in_time(hook: RobotoHook, start_server: Any) -> None:
    action = script(hook, "trap '' TERM; sleep 60 & wait; sleep 60")
    started = hook.invoke(action, REQUEST)
    with pytest.raises(PlatformUnavailableError, match=r"did not confirm the cancel within 0\.01 s: http"):
        hook.cancel(started.invocation_id, timeout=0.01)
    assert hook.cancel(started.invocation_id).current.status.name == "Cancelled"
