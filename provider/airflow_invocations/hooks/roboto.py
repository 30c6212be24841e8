"""The connection type `roboto`: the invocation API, on the platform or on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from airflow.sdk import BaseHook, Connection

from ..model import ActionRecord, InvocationRecord, InvocationRequest, LogRecord
from ..platform.roboto import DEFAULT_TIMEOUT, RobotoPlatform, RobotoSettings
from ..waiting import cancel_and_confirm, log_pages

T = TypeVar("T")


class RobotoHook(BaseHook):
    """Invokes actions over the invocation API.

    The connection: host (the API's address, https unless it says http), port if the host has none,
    password = token; extra: org_id, verify (true, false or the path of a CA bundle), timeout (seconds),
    link_base (where people look at invocations).

    :param conn_id: the Airflow connection.
    """

    conn_name_attr = "conn_id"
    default_conn_name = "roboto_default"
    conn_type = "roboto"
    hook_name = "Roboto (invocation API)"

    def __init__(self, conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id

    def get_conn(self) -> RobotoPlatform:
        """A client of the platform, to be opened with `async with`."""
        return RobotoPlatform(self.settings)

    @cached_property
    def settings(self) -> RobotoSettings:
        """What the connection says; read once. Raises ValueError for one that makes no sense."""
        connection = self.get_connection(self.conn_id)
        return settings_of(connection, connection.extra_dejson)

    async def connect(self) -> RobotoPlatform:
        """A client, to be opened with `async with`; the connection is read anew, without blocking.

        Raises:
            ValueError: the connection makes no sense.
        """
        connection = await self.aget_connection(self.conn_id)
        return RobotoPlatform(settings_of(connection, await connection.aextra_dejson()))

    def call(self, operation: Callable[[RobotoPlatform], Awaitable[T]]) -> T:
        """Run an async operation on an open client, from synchronous code.

        `hook.call(lambda platform: platform.get(invocation_id))`.
        """
        settings = self.settings

        async def opened() -> T:
            async with RobotoPlatform(settings) as platform:
                return await operation(platform)

        return self.run(opened)

    @staticmethod
    def run(operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function from synchronous code: the one bridge there is.

        It runs in a thread of its own, whatever this thread is doing: Airflow raises a task's timeout, and
        calls on_kill, from signal handlers, and an event loop in the main thread would give the exception
        to whichever of its tasks happens to run. An exception here ends the operation.
        """
        cancel: Future[Callable[[], object]] = Future()

        async def cancellable() -> T:
            loop = asyncio.get_running_loop()
            work = asyncio.ensure_future(operation())
            cancel.set_result(lambda: loop.call_soon_threadsafe(work.cancel))
            return await work

        thread = ThreadPoolExecutor(1, thread_name_prefix="invocations-bridge")
        outcome = thread.submit(contextvars.copy_context().run, asyncio.run, cancellable())
        try:
            return outcome.result()
        except BaseException:
            if not outcome.done():
                with contextlib.suppress(RuntimeError):  # it has ended in this very moment
                    cancel.result()()
            raise
        finally:
            thread.shutdown(wait=False)

    def get_action(self, name: str) -> ActionRecord:
        """An action in its newest version."""
        return self.call(lambda platform: platform.get_action(name))

    def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation; the one that has the request's `idempotency_id`, if there is one already."""
        return self.call(lambda platform: platform.invoke(action, request))

    def get(self, invocation_id: str) -> InvocationRecord:
        """An invocation with its history."""
        return self.call(lambda platform: platform.get(invocation_id))

    def logs(self, invocation_id: str) -> list[LogRecord]:
        """All log lines that there are now."""

        async def everything(platform: RobotoPlatform) -> list[LogRecord]:
            lines: list[LogRecord] = []
            async for page in log_pages(platform, invocation_id):
                lines += page.items
            return lines

        return self.call(everything)

    def cancel(self, invocation_id: str, patience: float = 60.0) -> InvocationRecord | None:
        """Cancel an invocation and wait until the platform confirms; None: it knows no such invocation.

        Raises:
            TimeoutError: not confirmed after `patience` seconds.
        """
        return self.call(lambda platform: cancel_and_confirm(platform, invocation_id, patience))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the platform answers and accepts the token, and a sentence about it."""
        try:
            return True, self.call(lambda platform: platform.check())
        except Exception as error:
            return False, str(error)


def settings_of(connection: Connection, extra: dict[str, Any]) -> RobotoSettings:
    """Read a connection; `extra` is its extra as a dict. Raises ValueError: which field, what is allowed."""
    name = f"connection {connection.conn_id!r}"
    if not connection.host:
        raise ValueError(f"{name}: host is empty; allowed: the API's address, such as https://api.roboto.ai")
    if not connection.password:
        raise ValueError(f"{name}: password is empty; it must be the platform's access token")
    return RobotoSettings(
        endpoint=_endpoint(connection),
        token=connection.password,
        org_id=extra.get("org_id") or None,
        verify=_verify(name, extra.get("verify")),
        timeout=_timeout(name, extra.get("timeout")),
        link_base=extra.get("link_base") or None,
    )


def _endpoint(connection: Connection) -> str:
    host = str(connection.host).rstrip("/")
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
    scheme, _, address = host.partition("://")
    if scheme not in ("http", "https"):
        raise ValueError(f"connection {connection.conn_id!r}: host begins {scheme}://; allowed: http, https")
    has_port = address.partition("/")[0].rpartition("]")[2].count(":") > 0
    return host if has_port or not connection.port else f"{scheme}://{address}:{connection.port}"


def _verify(name: str, value: object) -> bool | str:
    match value:
        case None | "":
            return True
        case bool():
            return value
        case str():
            return {"true": True, "false": False}.get(value.lower(), value)
    raise ValueError(f"{name}: extra 'verify' is {value!r}; allowed: true, false, the path of a CA bundle")


def _timeout(name: str, value: object) -> float:
    if value in (None, ""):
        return DEFAULT_TIMEOUT
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise ValueError(f"{name}: extra 'timeout' is {value!r}; allowed: a number of seconds")
    return seconds
