"""What every platform that runs actions can be asked, and how it says no."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from ..models.text import printable

if TYPE_CHECKING:
    from ..models import (
        ActionRecord,
        InvocationRecord,
        InvocationRequest,
        LogPage,
        StatusSnapshot,
        WatchMessage,
    )


def backoff(attempt: int, base: float = 0.5, cap: float = 30.0) -> float:
    """Seconds to wait after try number `attempt` (from 0): full jitter, growing from `base` to `cap`.

    The defaults are those of Roboto's own client (https://pypi.org/project/roboto/).
    """
    return random.uniform(0, min(cap, base * 2 ** min(attempt, 30)))  # noqa: S311


#: A URL that can't run a script in a browser, unlike `javascript:` and `data:`; without blanks.
_WEB_ADDRESS = re.compile(r"https?://[^\s\x00-\x20\x7f<>\"\\]+", re.IGNORECASE)

#: Characters of a PlatformError's message.
MESSAGE_LIMIT = 2_000


def web_address(url: str) -> str:
    """Return a URL if it is http or https, else an empty string; `link_base` is not validated elsewhere."""
    return url if _WEB_ADDRESS.fullmatch(url) else ""


class PlatformError(Exception):
    """Something went wrong between us and the platform. The tree:

        PlatformError
         +-- TransientError           try again, keep waiting: it says nothing about the invocation
         |    +-- UnavailableError    no connection, a timeout, a 5xx, an answer that is none
         |    +-- RateLimitedError    429
         +-- PermanentError           the same request would be refused again
              +-- UnauthorizedError   401
              +-- NotFoundError       404
              +-- InvalidRequestError 400, 413, and what is refused before it is sent
              +-- ConflictError       409
              |    +-- RepeatedIdError       the idempotency id has an invocation: it has to be compared
                            |    +-- RequestConflictError  it has an invocation with a different request
              +-- LimitExceededError  403
              +-- UnsupportedError    501
              +-- CannotStopError     what runs can't be stopped from outside

    The status and error code decide the class, never the text of a message. The message may quote the
    platform, so it is cut to MESSAGE_LIMIT characters and has no control characters.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), MESSAGE_LIMIT))


class TransientError(PlatformError):
    """It may well work later.

    Attributes:
        retry_after: seconds after which the platform wants to be asked again; None: it didn't say.
    """

    retry_after: float | None = None


class UnavailableError(TransientError):
    """The platform didn't answer, or not with anything that can be read."""


class RateLimitedError(TransientError):
    """The platform asks for fewer requests."""


class PermanentError(PlatformError):
    """It would be refused again."""


class UnauthorizedError(PermanentError):
    """The token is missing, unknown or may not do this."""


class NotFoundError(PermanentError):
    """Nothing of that name or id, or nothing that this token may see."""


class InvalidRequestError(PermanentError):
    """The request is wrong; the message says what and where."""


class ConflictError(PermanentError):
    """Something is there already that can't be there twice."""


class RepeatedIdError(ConflictError):
    """The idempotency id belongs to an invocation whose request has to be compared.

    Attributes:
        record: the invocation that has the id.
    """

    def __init__(self, message: str, record: InvocationRecord) -> None:
        super().__init__(message)
        self.record = record


class RequestConflictError(ConflictError):
    """The idempotency id belongs to an invocation with a different request.

    Attributes:
        invocation_id: the invocation that has the id.
        differences: the fields that differ, such as "parameter 'speed' (another value)"; no values.
    """

    def __init__(self, invocation_id: str, differences: Sequence[str]) -> None:
        super().__init__(f"invocation {invocation_id} has a different request: {'; '.join(differences)}")
        self.invocation_id = invocation_id
        self.differences = list(differences)


class LimitExceededError(PermanentError):
    """The organisation's quota doesn't allow it."""


class UnsupportedError(PermanentError):
    """This platform can't do that."""


class CannotStopError(PermanentError):
    """The platform can't stop what runs; the message says what it was asked instead."""


class CancelReach(StrEnum):
    """Which invocations a platform can be made to stop from outside."""

    Any = "any"
    #: What runs is asked to stop, and does so only if its code takes part.
    NotStarted = "not started"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a platform can do; what it can't is refused before anything is sent, or left out by the faces."""

    #: Keeps log lines that can be read back.
    logs: bool = True
    cancel: CancelReach = CancelReach.Any
    #: What of a request it honours.
    input_data: bool = True
    upload_destination: bool = True
    compute_requirements: bool = True
    container_parameters: bool = True
    timeout: bool = True
    #: What an invocation was given can be read back from its record.
    parameters: bool = True
    #: An invocation's result can be read back as JSON.
    outputs: bool = False
    #: Tells of all that happens to anybody's invocations: it is an EventPlatform.
    events: bool = False


def check_supported(platform: str, can: Capabilities, request: InvocationRequest) -> None:
    """Refuse a request that asks for what a platform can't do.

    Raises:
        UnsupportedError: which argument, which platform, what to do instead.
    """
    for name, honoured, asked, instead in (
        (
            "input_data",
            can.input_data,
            bool(request.input_data or request.rich_input_data),
            "hand the action its input's address as a parameter",
        ),
        (
            "upload_destination",
            can.upload_destination,
            request.upload_destination is not None,
            "have the action write its outputs itself",
        ),
        (
            "compute_requirements",
            can.compute_requirements,
            request.compute_requirement_overrides is not None,
            "set them where the action is defined",
        ),
        (
            "container_parameters",
            can.container_parameters,
            request.own_container_parameters is not None,
            "set them where the action is defined",
        ),
        ("timeout", can.timeout, request.timeout is not None, "use the task's execution_timeout"),
    ):
        if asked and not honoured:
            raise UnsupportedError(f"{platform} can't honour argument {name!r}; {instead}")


class Watch(Protocol):
    """An open stream of what happens to some invocations.

    It yields the present status of each invocation that is watched, then every change. An invocation's last
    lines come before its end. Iteration never stops normally; it raises TransientError when the stream drops.
    """

    #: The cursor after the last event, to resume from; None: the platform has none.
    cursor: int | None

    def __aiter__(self) -> AsyncIterator[WatchMessage]:
        """Yield messages in order."""

    async def change(
        self, add: Collection[str], remove: Collection[str], logs: Mapping[str, str | None]
    ) -> None:
        """Watch more invocations, or fewer; `logs`: also the lines of these, each from a cursor on."""


class InvocationPlatform(Protocol):
    """A system that runs actions, seen from a DAG, to be opened with `async with`.

    Every method may raise a PlatformError; `url` and `logs_url` make no request and need no open client.
    """

    #: What this platform can do; the same for every connection of its type.
    capabilities: Capabilities

    #: The address that it is reached at, for messages: without a secret.
    where: str

    async def __aenter__(self) -> Self:
        """Open it."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what it holds."""

    def url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's page (http or https); empty if there is none."""

    def logs_url(self, invocation_id: str) -> str:
        """Return the URL of an invocation's log; the same as `url` if logs have no page of their own."""

    async def check(self) -> str:
        """Ask the cheapest thing that needs the token; a sentence about who answered."""

    async def get_action(self, name: str) -> ActionRecord:
        """An action in its newest version."""

    async def invoke(self, action: str, request: InvocationRequest) -> InvocationRecord:
        """Start an invocation; the one that has the request's `idempotency_id`, if there is one already."""

    async def get(self, invocation_id: str) -> InvocationRecord:
        """An invocation with its history."""

    async def statuses(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The status of each of up to 1,000 invocations; those that aren't known are left out."""

    async def ended(self, invocation_ids: Collection[str]) -> list[StatusSnapshot]:
        """The same of those that have ended only."""

    async def active(self, idempotency_ids: Collection[str]) -> list[StatusSnapshot]:
        """Those invocations under up to 1,000 idempotency ids that haven't ended."""

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
        :param limit: the largest number of invocations to return; not much more is asked for than that.
        :param iteration: an iteration of the task loop that the task is in; None for all of them.

        Raises:
            UnsupportedError: the platform doesn't keep who asked in a way that can be searched.
        """

    async def newest(self, action: str, since: datetime.datetime) -> InvocationRecord | None:
        """The invocation of an action that was created last, at `since` or later; None: there is none."""

    def watch(
        self, invocation_ids: Collection[str], logs: Mapping[str, str | None], cursor: int | None
    ) -> AbstractAsyncContextManager[Watch]:
        """Open a stream; with `cursor`, it yields what happened since instead of each present status.

        Raises:
            UnsupportedError: on entering: this platform has none, or none for so many.
        """

    async def logs(self, invocation_id: str, cursor: str | None = None) -> LogPage:
        """Log lines from `cursor` (None: the beginning) on; `last_read` of the page is the next cursor."""

    async def cancel(self, invocation_id: str) -> None:
        """Ask for an invocation to be cancelled; one that has ended stays as it is.

        Raises:
            CannotStopError: it runs, was asked to stop, and can't be made to.
        """

    async def outputs(self, invocation_id: str) -> Any:
        """What a completed invocation has returned, as JSON types.

        Raises:
            UnsupportedError: the platform keeps no such thing (`capabilities.outputs` says so).
        """
