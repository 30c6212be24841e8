"""Actions and invocations in a real server, by the published client."""

from __future__ import annotations

import uuid
from typing import Any

import psutil
import pytest

from ...support.published import actions as published
from ...support.published import http
from ...support.waiting import until
from ..conftest import LocalServer


def client_of(server: LocalServer, token: str | None = None) -> Any:
    """The published client, let in with the server's token or another one."""
    decorator = http.BearerTokenDecorator(token=token or server.token)
    return http.RobotoClient(endpoint=server.endpoint, auth_decorator=decorator)


@pytest.fixture
def client(server: LocalServer) -> Any:
    return client_of(server)


def script(client: Any, text: str, **fields: Any) -> Any:
    """Create an action that runs a shell script."""
    container = published.ContainerParameters(command=["sh", "-c", text], **fields.pop("container", {}))
    return published.Action.create(
        name=f"script-{uuid.uuid4().hex[:12]}", container_parameters=container, roboto_client=client, **fields
    )


def invoke(action: Any, **fields: Any) -> Any:
    return action.invoke(invocation_source=published.InvocationSource.Manual, **fields)


def ended(invocation: Any, within: float = 20.0) -> Any:
    """Wait for an invocation's end; itself."""
    invocation.wait_for_terminal_status(timeout=within, poll_interval=0.05)
    return invocation


def end_of(invocation: Any) -> tuple[str, str | None]:
    """How an invocation ended: status and detail."""
    last = ended(invocation).status_log[-1]
    return str(last.status), last.detail


def lines(invocation: Any) -> list[str]:
    return [record.log for record in invocation.get_logs()]


def says(invocation: Any, line: str) -> None:
    """Wait until an invocation's action has said something."""
    until(lambda: line in lines(invocation))


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; here nobody may be there to take note of it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def steps(invocation: Any) -> list[str]:
    return [str(step.status) for step in invocation.refresh().status_log]
