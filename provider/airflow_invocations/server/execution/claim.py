"""A runner's claim on one invocation: record its progress, and find out when it has to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ...models import ActionRecord, InvocationRecord, InvocationStatus
from ..callers import Role
from ..db import Store
from ..errors import InvalidRequestError, NotFoundError
from ..outages import is_outage, pause_after
from .termination import started_at

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How an attempt ended, and why. Queued: it was interrupted, and the invocation has to run again."""

    status: InvocationStatus
    detail: str | None
    #: The exit code of the action's process, if that is how the attempt ended.
    exit_code: int | None = None


@dataclass(slots=True, eq=False)
class Claim:
    """An invocation that a runner owns."""

    store: Store
    owner: str
    record: InvocationRecord
    #: Set when the server stops; the invocation has to run again later.
    stopping: asyncio.Event
    #: Set when there may be a new reason to stop.
    touched: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether an attempt failed with an unexpected error; the number of repetitions is limited.
    lost: bool = False

    async def move(self, status: InvocationStatus) -> None:
        """Set the status; repeat this during outages. Raises ConditionError if the claim was lost."""

        def record() -> None:
            self.store.claims.transition_owned(self.record.invocation_id, status, None, self.owner)

        await self.repeat(f"record that it is {status.name}", record)

    async def set_processing(self, pid: int) -> None:
        """Set the status to Processing and store the process. Raises ConditionError if the claim was lost."""

        def record() -> None:
            self.store.claims.set_processing(self.record.invocation_id, self.owner, pid, started_at(pid))

        await self.repeat("record its process", record)

    async def end(self, outcome: Outcome) -> None:
        """Record the attempt's outcome; repeat this during outages, as an unrecorded attempt would run again.

        :raises ConditionError: the claim was lost.
        :raises InvalidStateTransitionError: the invocation has ended already.
        """
        await self.repeat(f"record that it is {outcome.status.name}", lambda: self._record(outcome))

    async def repeat(self, what: str, call: Callable[[], _T]) -> _T:
        """Call a function in a thread, and repeat it during an outage of the server itself.

        Pauses between the calls grow up to LONGEST_PAUSE. When the server stops, the outage is raised.

        :param what: names the call in the log.
        """
        failures = 0
        while True:
            try:
                return await asyncio.to_thread(call)
            except Exception as error:
                if not is_outage(error) or self.stopping.is_set():
                    raise
                failures += 1
                pause = pause_after(failures)
                _log.warning("cannot %s: %s; trying again in %g s", what, error, pause, extra=self.log_fields)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()

    @property
    def log_fields(self) -> dict[str, str]:
        """Fields of log records about the invocation."""
        return {"invocation_id": self.record.invocation_id}

    def stopped(self) -> Outcome | None:
        """Return the outcome if the attempt has to stop now; None: continue."""
        reason = self.store.aborts.stop_reason(self.record.invocation_id, self.owner)
        if reason is not None:
            return Outcome(InvocationStatus.Cancelled, reason)
        if self.stopping.is_set():
            return Outcome(InvocationStatus.Queued, "the server was stopped while this invocation ran")
        return None

    def wants_downloads(self) -> bool:
        """Return whether the action needs its input files, not only their records."""
        action = self._action()
        # The action was deleted; downloading too much is harmless.
        return action is None or action.requires_downloaded_inputs is not False

    def role_of_process(self) -> Role:
        """Return the role of the action's process for resources that aren't its own."""
        action = self._action()
        return Role.Invoke if action is not None and action.may_invoke else Role.Action

    async def until_stopped(self) -> Outcome:
        """Wait until the attempt has to stop; return its outcome."""
        while True:
            await self.touched.wait()
            self.touched.clear()
            if (outcome := await self.repeat("check whether to stop it", self.stopped)) is not None:
                return outcome

    def _action(self) -> ActionRecord | None:
        """Return the version of the action that was invoked, with what it inherits; None: it was deleted."""
        action = self.record.provenance.action
        try:
            return self.store.actions.effective(action.name, action.org_id, action.digest)
        except (NotFoundError, InvalidRequestError):
            return None

    def _record(self, outcome: Outcome) -> None:
        if outcome.status is InvocationStatus.Queued:
            self.store.claims.requeue(self.record.invocation_id, self.owner, outcome.detail, lost=self.lost)
        else:
            self.store.claims.transition_owned(
                self.record.invocation_id, outcome.status, outcome.detail, self.owner, outcome.exit_code
            )
