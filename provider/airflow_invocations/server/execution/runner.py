"""Claim invocations and run them, up to a number of them at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

from ...models import InvocationRecord, InvocationStatus
from ..callers import Own, Role
from ..datasets import DatasetFiles
from ..db import RUNNER_PREFIX, StatusEvent, Store
from ..errors import ConditionError, InvalidStateTransitionError
from ..outages import is_outage, log_failure, pause_after
from ..secrets import Secrets
from ..settings import ServerSettings
from ..tokens import Tokens
from .attempt import MAX_DETAIL, Attempt
from .claim import Claim, Outcome
from .logs import LogFiles
from .reconciler import Reconciler
from .subreaper import Subreaper
from .workspace import Access

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Runner:
    """Runs up to `settings.slots` actions at once, in the event loop that `start` is called in."""

    def __init__(
        self,
        store: Store,
        datasets: DatasetFiles,
        secret_values: Secrets,
        logs: LogFiles,
        tokens: Tokens,
        settings: ServerSettings,
        subreaper: Subreaper | None = None,
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._secrets = secret_values
        self._logs = logs
        self._tokens = tokens
        self._settings = settings
        self._owner = f"{RUNNER_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._reconciler = Reconciler(store, self._owner, self._claimed_ids, self._touch, settings)
        self._subreaper = subreaper or Subreaper()
        self._identity = settings.identity
        self._endpoint = ""
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self._claims: dict[str, Claim] = {}
        self._backoff = _Backoff()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self, endpoint: str) -> None:
        """Requeue the invocations of an earlier run of the server, then begin to claim."""
        self._endpoint = endpoint
        await self._reconciler.recover()
        loop = asyncio.get_running_loop()
        self._store.database.listen_to_events(in_loop(loop, self._on_events))
        self._store.database.listen_to_aborts(in_loop(loop, self._touch))
        self._work.set()
        self._claiming = asyncio.create_task(self._claim_until_stopped())
        self._heartbeats = asyncio.create_task(self._send_heartbeats())
        self._reconciling = asyncio.create_task(self._reconciler.run())

    async def stop(self) -> None:
        """Stop claiming, end the running actions (SIGTERM, grace period, SIGKILL), and requeue them."""
        # Tasks aren't cancelled, so that no claim or outcome is lost on its way to the database.
        self._stopping.set()
        self._work.set()
        await asyncio.wait({self._claiming})
        for claim in self._claims.values():
            claim.touched.set()
        await asyncio.gather(*self._running.values())
        self._heartbeats.cancel()
        self._reconciling.cancel()

    def _on_events(self, committed: Sequence[StatusEvent]) -> None:
        for event in committed:
            if event.status is InvocationStatus.Queued:
                self._work.set()
            self._touch(event.invocation_id)

    def _touch(self, invocation_id: str) -> None:
        if claim := self._claims.get(invocation_id):
            claim.touched.set()

    def _claimed_ids(self) -> Collection[str]:
        return self._claims.keys()

    async def _claim_until_stopped(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            await self._work.wait()
            self._work.clear()
            try:
                while len(self._running) < self._settings.slots and not self._stopping.is_set():
                    busy = [*self._running, *self._backoff.waiting()]
                    record = await asyncio.to_thread(self._store.claims.claim, self._owner, busy)
                    if record is None:
                        break
                    self._begin(record)
                failures = 0
            except Exception:
                failures += 1
                pause = pause_after(failures)
                log_failure(_log, "could not claim an invocation; trying again in %g s", pause)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                self._work.set()

    def _begin(self, record: InvocationRecord) -> None:
        claim = Claim(self._store, self._owner, record, self._stopping)
        task = asyncio.create_task(self._run(claim))
        self._claims[record.invocation_id] = claim
        self._running[record.invocation_id] = task
        task.add_done_callback(lambda _: self._ended(record.invocation_id))

    def _ended(self, invocation_id: str) -> None:
        del self._claims[invocation_id], self._running[invocation_id]
        self._work.set()

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_interval)
            if self._running:
                try:
                    await asyncio.to_thread(self._store.claims.heartbeat, self._owner)
                except Exception:
                    log_failure(_log, "could not record a heartbeat")

    async def _run(self, claim: Claim) -> None:
        """Run an invocation to its end, or requeue it; never raise."""
        try:
            outcome = await self._attempt(claim)
            await claim.end(outcome)
            is_over = outcome.status is not InvocationStatus.Queued
            happened = "ended" if is_over else "interrupted, will run again"
            _log.info(happened, extra={**claim.log_fields, "status": outcome.status.name})
        except (ConditionError, InvalidStateTransitionError):
            _log.info("ended by another request", extra=claim.log_fields)
        except Exception:
            # The claim remains in the database without a runner, so the reconciler requeues the invocation.
            log_failure(_log, "%s is left to the reconciler", claim.record.invocation_id)

    async def _attempt(self, claim: Claim) -> Outcome:
        invocation_id = claim.record.invocation_id
        try:
            with contextlib.closing(self._logs.writer(invocation_id)) as writer:
                attempt = Attempt(
                    claim,
                    writer,
                    self._settings,
                    self._access,
                    self._datasets,
                    self._secrets,
                    self._subreaper,
                )
                outcome = await attempt.run()
        except (ConditionError, InvalidStateTransitionError):
            raise
        except Exception as error:
            # Errors of the action have been handled, so an OSError here is about the server's own files. Any
            # other unexpected error counts like a crash.
            claim.lost = not (isinstance(error, OSError) or is_outage(error))
            pause = self._pause(invocation_id)
            log_failure(_log, "could not run %s; queued again, to start in %g s", invocation_id, pause)
            return Outcome(InvocationStatus.Queued, f"the server could not run this: {error}"[:MAX_DETAIL])
        self._backoff.forget(invocation_id)
        return outcome

    def _pause(self, invocation_id: str) -> float:
        """Delay the next claim of an invocation; return the seconds."""
        pause = self._backoff.record_outage(invocation_id)
        asyncio.get_running_loop().call_later(pause, self._work.set)
        return pause

    @contextlib.contextmanager
    def _access(self, own: Own, role: Role) -> Iterator[Access]:
        token = self._tokens.lend(own, role)
        try:
            yield Access(self._endpoint, token, self._identity)
        finally:
            self._tokens.end_loan(token)


class _Backoff:
    """Delays the next claim of invocations whose attempt met an outage of the server."""

    def __init__(self) -> None:
        #: By invocation: outages in a row, and when it may be claimed again (`time.monotonic`).
        self._delayed: dict[str, tuple[int, float]] = {}

    def record_outage(self, invocation_id: str) -> float:
        """Count an outage; return the seconds until the invocation may be claimed again."""
        times = self._delayed.get(invocation_id, (0, 0.0))[0] + 1
        pause = pause_after(times)
        self._delayed[invocation_id] = (times, time.monotonic() + pause)
        return pause

    def forget(self, invocation_id: str) -> None:
        """Forget the outages of an invocation that has ended."""
        self._delayed.pop(invocation_id, None)

    def waiting(self) -> list[str]:
        """Return the ids of the invocations that may not be claimed yet."""
        current = time.monotonic()
        return [invocation_id for invocation_id, (_, until) in self._delayed.items() if until > current]


def in_loop(loop: asyncio.AbstractEventLoop, listener: Callable[[_T], None]) -> Callable[[_T], None]:
    """Return a listener that may be called from any thread and runs in the loop."""

    def call(value: _T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is stopping
            loop.call_soon_threadsafe(listener, value)

    return call
