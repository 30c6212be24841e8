"""Guard the invocation of a task in a worker: decide what a kill, a timeout or a failure means for it."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..exceptions import InvocationError
from ..platforms import Platform
from ..version_compat import AirflowFailException, AirflowTaskTimeout
from .cancellation import Intent, awaited_invocation, cancel_unless_ended, intent_of, recorded_states

if TYPE_CHECKING:
    from .lifecycle import InvocationLifecycle

#: Runs an operation on an open client of the platform, from synchronous code and without the task SDK.
Ask = Callable[[Callable[[Platform], Awaitable[None]]], None]

#: How often a killed worker asks Airflow, and the pause in seconds after an answer that was an error.
_READS = 3
_READ_PAUSE = 1.0

#: Seconds that a task whose method ends waits for the decision about a kill. Airflow sends SIGKILL 5 s after
#: SIGTERM if the task was ended.
_DECISION_TIMEOUT = 4.0


class InvocationGuard:
    """Cancel a task's invocation if its block is killed, times out, or fails with no retry left.

    A context manager around the methods that Airflow calls. SIGTERM says nothing about its reason: a person
    may have ended the task, or heartbeats failed, or a deployment restarts the workers. So a kill cancels
    only if Airflow's record says that the task has ended, was cleared or deleted. Without an answer nothing
    is cancelled: a retry adopts the invocation, and reconciliation finds one that nothing needs.

    Airflow is asked in a thread of its own, because the block may wait for the platform when the signal
    arrives, and because a signal handler must not start threads or call the task SDK.

    :param instance: the runtime task instance.
    :param log: the task's logger.
    :param cancels: the task's `cancel_on_kill`.
    :param is_adopted: whether a retry of the task continues with the invocation of the previous try.
    :param in_loop: whether the task is in a task loop.
    """

    def __init__(
        self, instance: Any, log: Any, *, cancels: bool, is_adopted: bool, in_loop: bool = False
    ) -> None:
        self._instance = instance
        self._in_loop = in_loop
        self._log = log
        self._cancels = cancels
        self._is_adopted = is_adopted
        self._ask: Ask | None = None
        self._lifecycle: InvocationLifecycle | None = None
        #: Set when the invocation is known, or when there will be none.
        self._is_known = threading.Event()
        #: A kill (True), or the end of the block. `SimpleQueue.put` may be called in a signal handler
        #: (https://docs.python.org/3/library/queue.html#simplequeue-objects).
        self._notes: SimpleQueue[bool] = SimpleQueue()
        self._was_killed = False
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._handle_kills,),
            daemon=True,
            name="invocations-guard",
        )

    def __enter__(self) -> InvocationGuard:
        """Begin to handle kills."""
        if self._cancels:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel if the block failed for good; wait for the decision about a kill."""
        self._is_known.set()
        try:
            if isinstance(error, AirflowTaskTimeout):
                self._cancel()
            elif isinstance(error, Exception) and not isinstance(error, InvocationError):
                self._handle_failure(error)
        finally:
            self._end_thread()

    def note_kill(self) -> None:
        """Note that the process is asked to end. May be called in a signal handler."""
        if self._cancels:
            self._was_killed = True
            self._notes.put(True)

    def guard(self, lifecycle: InvocationLifecycle, ask: Ask) -> None:
        """Set the invocation to cancel.

        :param ask: makes no request to Airflow.
        """
        self._ask, self._lifecycle = ask, lifecycle
        self._is_known.set()

    def forget(self) -> None:
        """Wait for another invocation: the task submits one, for the first time or instead of this one."""
        self._is_known.clear()
        self._lifecycle = None

    def _end_thread(self) -> None:
        if self._cancels:
            self._notes.put(False)
            if self._was_killed:
                self._thread.join(_DECISION_TIMEOUT)

    def _handle_failure(self, error: Exception) -> None:
        """Cancel the invocation of a task that fails after it was submitted, unless a retry adopts it.

        An `InvocationError` is not handled here: it is the end of the invocation, or an outage in which the
        platform can't be asked.
        """
        if self._invocation_id is None:
            return
        tries = self._instance.max_tries or 0
        has_retry = self._instance.try_number <= tries and not isinstance(error, AirflowFailException)
        if has_retry and self._is_adopted:
            self._log.warning(
                "The task failed after invoking; its retry continues with %s", self._invocation_id
            )
        elif self._cancels:
            self._log.warning("The task failed after invoking")
            self._cancel()

    def _handle_kills(self) -> None:
        while self._notes.get():
            if self._has_ended() and self._is_known.wait():
                self._cancel()

    def _has_ended(self) -> bool:
        """Return whether Airflow's record says that the task has ended; log the decision."""
        self._log.warning(
            "The task's process is asked to end. Its invocation is cancelled only if Airflow confirms that "
            "the task was ended; otherwise a retry adopts it"
        )
        for attempt in range(_READS):
            try:
                states = self._read_states()
                has_ended = intent_of(states) is Intent.Ended or (self._in_loop and self._was_replaced())
            except Exception as error:
                reason: object = error
                time.sleep(_READ_PAUSE if attempt + 1 < _READS else 0.0)
                continue
            recorded = ", ".join(sorted(states)) or "deleted"
            if has_ended:
                self._log.warning("The task was killed; Airflow's record of it: %s", recorded)
                return True
            self._log.info("Not cancelling: Airflow's record of the task is %s", recorded)
            return False
        self._log.warning("Not cancelling: could not read the task's state: %s", reason)
        return False

    def _read_states(self) -> set[str]:
        return recorded_states(self._instance, self._instance.get_task_states)

    def _was_replaced(self) -> bool:
        """Return whether a clear has replaced this task instance of a loop by another.

        Airflow returns only the state of a loop's latest iteration, which may be an earlier one that is being
        repeated. A task can read XComs only as long as its own task instance is current.

        :raises Exception: Airflow doesn't answer.
        """
        from airflow.sdk.execution_time.xcom import XCom

        try:
            awaited_invocation(self._instance, XCom.get_one)
        except Exception:
            self._read_states()  # an outage would look the same
            return True
        return False

    @property
    def _invocation_id(self) -> str | None:
        """Return the id of the invocation to cancel; None if there is none, or it has ended."""
        lifecycle = self._lifecycle
        return (lifecycle.invocation_id or None) if lifecycle and lifecycle.ended is None else None

    def _cancel(self) -> None:
        invocation_id, ask = self._invocation_id, self._ask
        if invocation_id is None or ask is None or not self._cancels:
            return
        try:
            ask(lambda platform: cancel_unless_ended(platform, invocation_id, self._log))
        except Exception as error:
            self._log.error("Could not cancel invocation %s: %s", invocation_id, error or "no answer")
