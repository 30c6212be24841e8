"""The hook for every platform; the connection's type selects the platform."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow.sdk import BaseHook, Connection

from ..exceptions import (
    InvocationLostError,
    RequestRejectedError,
    platform_task_error,
    unconfirmed_cancel_error,
    with_url,
)
from ..models import ActionRecord, InvocationRecord, InvocationRequest, LogRecord
from ..platforms import Platform, PlatformError
from ..platforms.registry import DEFAULT_CONN_ID, PLATFORMS
from ..tasks.adoption import invoke_once
from ..tasks.sdk_calls import complete
from ..version_compat import read_connection
from ..waiters import cancel_and_confirm, log_pages

T = TypeVar("T")

#: Seconds after which a hook reads its connection again before it opens another client, because a token may
#: have been replaced.
CONNECTION_AGE = 30.0


@dataclass(frozen=True, slots=True)
class _ConnectionFields:
    """A connection and its `extra`, read together: reading `extra` later would call the task SDK."""

    connection: Connection
    extra: dict[str, Any]
    #: On the monotonic clock.
    read_at: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, conn_id: str) -> _ConnectionFields:
        connection = BaseHook.get_connection(conn_id)
        return cls(connection, connection.extra_dejson)


class InvocationHook(BaseHook):
    """Invoke actions, and read and cancel invocations, on the platform of a connection.

    :param conn_id: the Airflow connection, of any of this provider's types; None for `default_conn_name`.
    """

    conn_name_attr = "conn_id"
    default_conn_name = DEFAULT_CONN_ID

    def __init__(self, conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = self.default_conn_name if conn_id is None else conn_id
        self._kept: _ConnectionFields | None = None

    @staticmethod
    def settings_of(connection: Connection, extra: dict[str, Any]) -> Any:
        """Return the settings of the platform's client; each connection type's hook reads them.

        :param extra: the connection's extra as a dict.
        :raises ValueError: a field is invalid; the message names it and what is allowed.
        """
        raise NotImplementedError

    def get_conn(self) -> Platform:
        """Return a client of the platform, to be opened with `async with`.

        The hook reads its connection once and keeps it. After the first call this makes no request to Airflow
        and can be used in a signal handler.

        Raises:
            ValueError: the connection is misconfigured.
        """
        return self._platform_of(self._fields())

    async def connect(self) -> Platform:
        """Return a client, to be opened with `async with`, without blocking the event loop.

        A hook that keeps its connection (`get_conn`) reads it again when it is `CONNECTION_AGE` seconds old;
        if that fails, it keeps the old one. Any other hook reads the connection with each call. Cancelling
        the caller doesn't interrupt the reading.

        Raises:
            ValueError: the connection is misconfigured.
        """
        if self._kept is None:
            return self._platform_of(
                _ConnectionFields(*await complete(lambda: read_connection(self.conn_id)))
            )
        if time.monotonic() - self._kept.read_at > CONNECTION_AGE:
            # In a thread: cancelling the await doesn't end it, and asyncio.run waits for it.
            await asyncio.to_thread(self._read_again)
        return self._platform_of(self._fields())

    def _platform_of(self, fields: _ConnectionFields) -> Platform:
        """Return the client of a connection's platform, after checking the connection's type."""
        connection = fields.connection
        name, conn_type = f"connection {connection.conn_id!r}", connection.conn_type or ""
        required = getattr(self, "conn_type", None)
        if required not in (None, conn_type):
            raise ValueError(
                f"{name}: its conn_type is {conn_type!r}; {type(self).__name__} allows only {required!r}; "
                "InvocationHook allows all types of this provider"
            )
        if conn_type not in PLATFORMS:
            raise ValueError(f"{name}: its type is {conn_type!r}; allowed: {', '.join(PLATFORMS)}")
        registered = PLATFORMS[conn_type]
        settings = registered.load_hook().settings_of(connection, fields.extra)
        platform: Platform = registered.load_platform()(settings)
        return platform

    def _fields(self) -> _ConnectionFields:
        if self._kept is None:
            self._kept = _ConnectionFields.read(self.conn_id)
        return self._kept

    def _read_again(self) -> None:
        try:
            self._kept = _ConnectionFields.read(self.conn_id)
        except Exception as error:
            self.log.info(
                "Could not read connection %r again; keeping its earlier fields: %s", self.conn_id, error
            )

    @property
    def connection_type(self) -> str:
        """The connection's type, which may be another provider's; the connection is read once."""
        return self._fields().connection.conn_type or ""

    def call(self, operation: Callable[[Platform], Awaitable[T]]) -> T:
        """Run an async operation on an open client, from synchronous code.

        `hook.call(lambda platform: platform.get(invocation_id))`.

        :raises AccessRejectedError: the platform rejects the credentials.
        :raises PlatformUnavailableError: the platform doesn't answer.
        :raises RequestRejectedError: the platform rejects the request, or the connection is misconfigured.
        :raises InvocationError: any other error; all of these are one.
        """
        return self._asked(operation, f"connection {self.conn_id!r}")

    def _asked(
        self,
        operation: Callable[[Platform], Awaitable[T]],
        what: str,
        invocation_id: str | None = None,
    ) -> T:
        """Run an operation; `what` is what failed, for messages. Raises InvocationError."""
        try:
            self.get_conn()
        except ValueError as error:
            raise RequestRejectedError(f"{what}: {error}") from None
        try:
            return self.ask(operation)
        except PlatformError as error:
            url = self.url(invocation_id) if invocation_id else ""
            raise platform_task_error(error, what, invocation_id=invocation_id, url=url) from error

    def ask(self, operation: Callable[[Platform], Awaitable[T]]) -> T:
        """Run an operation as `call` does, but with the platform's own errors; used by this provider's code.

        :raises PlatformError: as the platform's methods do.
        """
        unopened = self.get_conn()

        async def opened() -> T:
            async with unopened as platform:
                return await operation(platform)

        return self.run(opened)

    @staticmethod
    def run(operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function from synchronous code. All such code uses this bridge.

        It runs in a thread of its own: Airflow raises a task's timeout, and calls on_kill, from signal
        handlers, and an event loop in the main thread would pass the exception to whichever of its tasks is
        running. An exception in the calling thread ends the operation.
        """
        cancel: Future[Callable[[], object]] = Future()

        async def cancellable() -> T:
            loop = asyncio.get_running_loop()
            work = asyncio.ensure_future(operation())
            cancel.set_result(lambda: loop.call_soon_threadsafe(work.cancel))
            return await work

        thread = ThreadPoolExecutor(1, thread_name_prefix="invocations-bridge")
        outcome = thread.submit(contextvars.copy_context().run, asyncio.run, cancellable())
        # If no loop could be started, there is nothing to cancel, and waiting for it would never end.
        outcome.add_done_callback(lambda _: cancel.cancel())
        try:
            return outcome.result()
        except BaseException:
            if not outcome.done():
                with contextlib.suppress(RuntimeError, CancelledError):  # it has just ended
                    cancel.result()()
            raise
        finally:
            thread.shutdown(wait=False)

    def get_action(self, name: str) -> ActionRecord:
        """Return an action in its newest version.

        :raises RequestRejectedError: there is no such action.
        :raises InvocationError: as `call` does.
        """
        return self._asked(lambda platform: platform.get_action(name), f"action {name!r}")

    def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation; return the one that has the request's `idempotency_id`, if there is one.

        :raises InvocationConflictError: that invocation has a different request.
        :raises RequestRejectedError: there is no such action, or its parameters don't fit.
        :raises InvocationError: as `call` does.
        """
        return self._asked(
            lambda platform: invoke_once(platform, action, request), f"action {action!r} was not invoked"
        )

    def get(self, invocation_id: str) -> InvocationRecord:
        """Return an invocation with its history.

        :raises InvocationLostError: the platform knows no such invocation.
        :raises InvocationError: as `call` does.
        """
        return self._about(invocation_id, lambda platform: platform.get(invocation_id))

    def _about(self, invocation_id: str, operation: Callable[[Platform], Awaitable[T]]) -> T:
        return self._asked(operation, f"invocation {invocation_id}", invocation_id)

    def find(
        self,
        dag_id: str,
        run_id: str | None = None,
        task_id: str | None = None,
        map_index: int | None = None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return the invocations of a DAG, a DAG run or a task, of all its tries, newest first.

        :param map_index: -1 for a task that isn't mapped; None for every index.
        :param limit: the largest number of invocations to return; None for all of them.
        :param iteration: an iteration of the task loop that the task is in, as Airflow's pages number it;
            None for all of them.
        :raises ValueError: for a task without its run, or a map index or an iteration without its task.
        :raises RequestRejectedError: the platform doesn't support this search.
        :raises InvocationError: as `call` does.
        """
        if (task_id is not None and run_id is None) or (
            (map_index is not None or iteration is not None) and task_id is None
        ):
            raise ValueError("find: task_id needs run_id; map_index and iteration need task_id")
        return self._asked(
            lambda platform: platform.find(dag_id, run_id, task_id, map_index, limit, iteration),
            f"invocations of DAG {dag_id!r} were not listed",
        )

    def logs(self, invocation_id: str) -> list[LogRecord]:
        """Return all log lines that exist now.

        :raises InvocationLostError: the platform knows no such invocation.
        :raises RequestRejectedError: the platform keeps no logs.
        :raises InvocationError: as `call` does.
        """

        async def everything(platform: Platform) -> list[LogRecord]:
            lines: list[LogRecord] = []
            async for page in log_pages(platform, invocation_id):
                lines += page.items
            return lines

        return self._about(invocation_id, everything)

    def cancel(self, invocation_id: str, timeout: float = 60.0) -> InvocationRecord:
        """Cancel an invocation, wait until the platform confirms, and return its last record.

        An invocation that has ended is left unchanged.

        :param timeout: seconds to wait for the confirmation.
        :raises InvocationLostError: the platform knows no such invocation.
        :raises PlatformUnavailableError: it didn't confirm within `timeout` seconds.
        :raises RequestRejectedError: the invocation is running, and the platform can't force it to stop.
        :raises InvocationError: as `call` does.
        """
        try:
            record = self._about(
                invocation_id, lambda platform: cancel_and_confirm(platform, invocation_id, timeout)
            )
        except TimeoutError as error:
            raise unconfirmed_cancel_error(invocation_id, timeout, self.url(invocation_id)) from error
        if record is None:
            url = self.url(invocation_id)
            raise InvocationLostError(
                with_url(f"invocation {invocation_id}: the platform doesn't know it", url),
                invocation_id=invocation_id,
                url=url,
            )
        return record

    def outputs(self, invocation_id: str) -> Any:
        """Return the outputs of a completed invocation, as JSON types.

        :raises InvocationLostError: the platform knows no such invocation.
        :raises RequestRejectedError: the platform keeps no outputs, as the invocation API doesn't.
        :raises InvocationError: as `call` does.
        """
        return self._about(invocation_id, lambda platform: platform.outputs(invocation_id))

    def url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's page (http or https), or an empty string. Makes no request."""
        return self.get_conn().url(invocation_id)

    def logs_url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's log, or an empty string if the platform has no such page."""
        return self.get_conn().logs_url(invocation_id)

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the platform accepts the connection, and a sentence about it."""
        try:
            return True, self.ask(lambda platform: platform.check())
        except Exception as error:
            return False, str(error)
