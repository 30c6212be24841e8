"""Platform: the base class of every system that runs actions."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from .errors import NotFoundError, UnsupportedError

if TYPE_CHECKING:
    import datetime

    from ..models import (
        ActionRecord,
        CaughtUp,
        EventFilter,
        InvocationEvent,
        InvocationRecord,
        InvocationRequest,
        LogPage,
        StatusSnapshot,
        UnreadableItem,
        WatchMessage,
    )

#: A URL that can't run a script in a browser, unlike `javascript:` and `data:`; without blanks.
_WEB_ADDRESS = re.compile(r"https?://[^\s\x00-\x20\x7f<>\"\\]+", re.IGNORECASE)

#: The id of no invocation, which `Platform.check` asks for.
_NO_INVOCATION = "connection-check"


def web_address(url: str) -> str:
    """Return a URL if it is http or https, else an empty string; `link_base` is not validated elsewhere."""
    return url if _WEB_ADDRESS.fullmatch(url) else ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a platform supports. What it doesn't is rejected before a request is sent, or not offered."""

    #: Log lines can be read back.
    logs: bool = True
    #: A running invocation can be stopped from outside. False: its code is asked to stop, and may not.
    cancels_running: bool = True
    #: The parts of a request that the platform applies.
    input_data: bool = True
    upload_destination: bool = True
    compute_requirements: bool = True
    container_parameters: bool = True
    timeout: bool = True
    #: An invocation's record contains its parameters.
    parameters: bool = True
    #: A completed invocation's result can be read as JSON.
    outputs: bool = False
    #: `events` streams the status changes of all invocations.
    events: bool = False


#: What to do instead of an argument that a platform doesn't support.
_INSTEAD = {
    "input_data": "pass the input's address to the action as a parameter",
    "upload_destination": "let the action write its outputs",
    "compute_requirements": "set them where the action is defined",
    "container_parameters": "set them where the action is defined",
    "timeout": "use the task's execution_timeout",
}


class Watch(Protocol):
    """An open stream of the status changes and log lines of some invocations.

    It yields the present status of each invocation that is watched, then every change. An invocation's last
    lines come before its terminal status. Iteration never stops normally; it raises TransientError when the
    stream drops.
    """

    #: The cursor after the last event, to resume from; None: the platform has none.
    cursor: int | None

    def __aiter__(self) -> AsyncIterator[WatchMessage]:
        """Yield messages in order."""

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        """Add and remove invocations; `logs`: also stream the lines of these, each from a cursor on."""


class EventStream(Protocol):
    """The status changes of all invocations in the order of their cursors.

    `CaughtUp` comes between past and present. Iteration never stops normally; it raises a PlatformError.
    """

    #: How far behind the last cursor a new event may still appear, in units of the cursor; 0: never.
    overlap: int

    def __aiter__(self) -> AsyncIterator[InvocationEvent | UnreadableItem | CaughtUp]:
        """Yield messages in order."""


class Platform(ABC):
    """A system that runs actions, opened with `async with`.

    A subclass implements `get_action`, `invoke`, `get`, `statuses`, `active` and `cancel`. It overrides
    `open` and `close` if it holds a connection, and the other methods for what it supports; without that
    they raise UnsupportedError or are made of the six.

    :param where: the address or name for messages, without a secret.
    :raises PlatformError: every method but `url` and `logs_url`, which make no request.
    """

    #: The name for messages.
    name: ClassVar[str]

    #: What this platform supports, the same for all its connections.
    capabilities: Capabilities = Capabilities()

    #: How the URI of a secret begins, which the platform replaces when the action runs; None: no secrets.
    secret_prefix: ClassVar[str | None] = None

    def __init__(self, where: str) -> None:
        self.where = where

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- what a platform implements ------------------------------------------------------------------

    @abstractmethod
    async def get_action(self, name: str) -> ActionRecord:
        """Return the newest version of an action. Raises NotFoundError if there is none."""

    @abstractmethod
    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation, or return the one that has the request's `idempotency_id`.

        :raises RepeatedIdError: that invocation's request has to be compared with this one.
        :raises UnsupportedError: the request has an argument that the platform can't apply.
        """

    @abstractmethod
    async def get(self, invocation_id: str) -> InvocationRecord:
        """Return an invocation with its history. Raises NotFoundError if there is none."""

    @abstractmethod
    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of up to 1,000 invocations; unknown ids are left out."""

    @abstractmethod
    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Return the statuses of the active invocations of up to 1,000 idempotency ids."""

    @abstractmethod
    async def cancel(self, invocation_id: str) -> None:
        """Request an invocation's cancellation; a terminal one stays as it is.

        :raises CannotStopError: it is running, was asked to stop, and can't be forced to.
        """

    # -- what a platform overrides if it needs to ----------------------------------------------------

    async def open(self) -> None:  # noqa: B027
        """Open what the platform holds, such as a connection pool. Default: nothing."""

    async def close(self) -> None:  # noqa: B027
        """Close what `open` has opened. Default: nothing."""

    def page_url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's page as configured. Default: empty, no page."""
        return ""

    def logs_url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's log. Default: `url`."""
        return self.url(invocation_id)

    async def check(self) -> str:
        """Send the cheapest request that needs the credentials; return a sentence about the platform.

        Default: ask for the status of an unknown invocation.
        """
        await self.statuses([_NO_INVOCATION])
        return f"{self.where} responds as {self.name}"

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """Like `statuses`, for invocations in a terminal status only. Default: filter `statuses`."""
        return [one for one in await self.statuses(invocation_ids) if one.status.is_terminal]

    async def records(self, invocation_ids: Collection[str]) -> list[InvocationRecord | UnreadableItem]:
        """Return the records of up to 1,000 invocations, in any order; unknown ids are left out.

        Default: one `get` for each.
        """
        found: list[InvocationRecord | UnreadableItem] = []
        for invocation_id in invocation_ids:
            try:
                found.append(await self.get(invocation_id))
            except NotFoundError:
                continue
        return found

    async def find(
        self,
        dag_id: str,
        run_id: str | None,
        task_id: str | None,
        map_index: int | None,
        limit: int | None = None,
        iteration: int | None = None,
    ) -> list[InvocationRecord]:
        """Return the invocations of a DAG, a DAG run, a task or a task instance, newest first.

        :param map_index: -1 for a task that isn't mapped; None for every index.
        :param limit: the largest number of invocations to return; None for all.
        :param iteration: an iteration of the task loop that the task is in; None for all of them.
        :raises UnsupportedError: the platform can't search by provenance. That is the default.
        """
        raise UnsupportedError(f"{self.name} can't search invocations by the DAG that started them")

    async def find_active(self, limit: int) -> list[InvocationRecord]:
        """Return the active invocations that tasks of any Airflow have started, in any order.

        :param limit: the largest number of invocations to return.
        :raises UnsupportedError: the platform can't search by provenance. That is the default.
        """
        raise UnsupportedError(f"{self.name} can't search invocations by what started them")

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """Return the invocation of an action that was created last, at `since` or later; None: none was.

        :raises UnsupportedError: the platform can't list by action. That is the default.
        """
        raise UnsupportedError(f"{self.name} can't list the invocations of an action")

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Return log lines from a cursor on; the page's `last_read` is the next cursor.

        :param cursor: None for the beginning.
        :raises UnsupportedError: the platform keeps no logs. That is the default.
        """
        raise UnsupportedError(f"{self.name} keeps no logs")

    async def outputs(self, invocation_id: str) -> Any:
        """Return the result of a completed invocation, as JSON types.

        :raises UnsupportedError: the platform keeps no results. That is the default.
        """
        raise UnsupportedError(f"{self.name} keeps no results")

    def watch(
        self, invocation_ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AbstractAsyncContextManager[Watch]:
        """Open a stream of status changes and log lines.

        :param logs: the invocations whose lines are streamed too, each with its cursor.
        :param cursor: resume after this event; None: begin with the current statuses.
        :raises UnsupportedError: there is no stream, or none for this many. Without one the statuses are
            polled. That is the default.
        """
        raise UnsupportedError(f"{self.name} has no stream; its statuses are polled")

    def events(self, wanted: EventFilter, since: int | None) -> AbstractAsyncContextManager[EventStream]:
        """Open a stream of the status changes of all invocations, where `capabilities.events` is set.

        An event may come twice; none is left out.

        :param since: the cursor after which the stream begins; None: now.
        :raises InvalidRequestError: the wanted action can't be one of this connection.
        :raises UnsupportedError: there is no such stream. That is the default.
        """
        raise UnsupportedError(
            f"{self.where} has no stream of events, so an event can't start a DAG; schedule the DAG by time "
            "and wait with an InvocationSensor"
        )

    # -- what all platforms share --------------------------------------------------------------------

    def url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's page; empty if it is not http or https, or there is no page."""
        return web_address(self.page_url(invocation_id))

    def check_supported(self, request: InvocationRequest) -> None:
        """Reject a request with an argument that the platform can't apply.

        :raises UnsupportedError: which argument, which platform, what to do instead.
        """
        has = {
            "input_data": bool(request.input_data or request.rich_input_data),
            "upload_destination": request.upload_destination is not None,
            "compute_requirements": request.compute_requirement_overrides is not None,
            "container_parameters": request.own_container_parameters is not None,
            "timeout": request.timeout is not None,
        }
        for argument, instead in _INSTEAD.items():
            if has[argument] and not getattr(self.capabilities, argument):
                raise UnsupportedError(f"{self.name} doesn't support argument {argument!r}; {instead}")
