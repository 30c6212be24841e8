"""Requeue the invocations of dead runners, retry aborts, and remove old workspaces."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Callable, Collection, Sequence

from ...models import MAX_PAGE_SIZE
from ..db import ID_PREFIX, OrphanedInvocation, Store
from ..errors import ConditionError, NotFoundError
from ..outages import log_failure
from ..settings import ServerSettings
from ..timestamps import now
from .termination import kill_marked, kill_orphaned_group
from .workspace import INVOCATION_VARIABLE, SERVER_VARIABLE, Workspace

#: Seconds in a day.
DAY = 86400.0

_SECOND = 1_000_000

_log = logging.getLogger(__name__)


class Reconciler:
    """Runs periodically. Each pass is complete in itself, so a failed pass only causes a delay.

    :param store: the server's records.
    :param runner: the id of this process's runner.
    :param claims: returns the ids of the invocations that this runner works on now.
    :param stop: makes this runner check whether an invocation has to be stopped.
    :param settings: the folder of workspaces, and the intervals.
    """

    def __init__(
        self,
        store: Store,
        runner: str,
        claims: Callable[[], Collection[str]],
        stop: Callable[[str], None],
        settings: ServerSettings,
    ) -> None:
        self._store = store
        self._runner = runner
        self._claims = claims
        self._stop = stop
        #: Invocations that the runner owned at the last pass without working on them.
        self._idle: set[str] = set()
        self._settings = settings
        self._next_cleanup = 0.0

    async def recover(self) -> None:
        """Requeue the invocations of all other runners, which are dead because the server has just started.

        It also kills processes of invocations that the database doesn't have, as after restoring a backup.
        """
        await kill_marked(SERVER_VARIABLE, {self._settings.identity})
        await asyncio.to_thread(self._remove_secrets)
        await self._requeue(await asyncio.to_thread(self._store.claims.orphaned, [self._runner]))

    async def run(self) -> None:
        """Run passes until cancelled."""
        while True:
            await asyncio.sleep(self._settings.reconcile_interval)
            try:
                await self.reconcile()
            except Exception:
                interval = self._settings.reconcile_interval
                log_failure(_log, "the reconciler failed; it runs again in %s s", interval)

    async def reconcile(self) -> None:
        """Requeue the invocations of runners without a heartbeat, and retry the aborts that are due."""
        dead_since = now() - int(self._settings.heartbeat_timeout * _SECOND)
        await self._requeue(await asyncio.to_thread(self._store.claims.orphaned, [self._runner], dead_since))
        await self._requeue(await self._lost())
        for pending in await asyncio.to_thread(self._store.aborts.pending, now()):
            longest = min(self._settings.abort_retry_max, 2.0 ** min(pending.attempts, 30))
            next_attempt_at = now() + int(random.uniform(0, longest) * _SECOND)  # noqa: S311
            await asyncio.to_thread(self._store.aborts.record_attempt, pending.invocation_id, next_attempt_at)
            self._stop(pending.invocation_id)
        if time.monotonic() >= self._next_cleanup:
            self._next_cleanup = time.monotonic() + self._settings.cleanup_interval
            await asyncio.to_thread(self._remove_old_workspaces)

    def _remove_secrets(self) -> None:
        """Remove the secrets of attempts that were interrupted before they removed them."""
        for folder in self._settings.workspaces.glob(f"{ID_PREFIX}*"):
            Workspace(folder).remove_secrets()

    async def _lost(self) -> list[OrphanedInvocation]:
        """Return the invocations that this runner owns and hasn't worked on since the last pass."""
        owned = await asyncio.to_thread(self._store.claims.owned_by, self._runner)
        claims = self._claims()
        idle = [each for each in owned if each.invocation_id not in claims]
        lost = [each for each in idle if each.invocation_id in self._idle]
        self._idle = {each.invocation_id for each in idle}
        return lost

    def _remove_old_workspaces(self) -> None:
        """Remove workspaces of invocations that ended long enough ago, and no other folder."""
        kept_since = now() - int(self._settings.keep_workspaces * DAY * _SECOND)
        folders = [path.name for path in self._settings.workspaces.glob(f"{ID_PREFIX}*")]
        for first in range(0, len(folders), MAX_PAGE_SIZE):
            for name in self._store.invocations.ended_before(
                folders[first : first + MAX_PAGE_SIZE], kept_since
            ):
                shutil.rmtree(self._settings.workspaces / name, ignore_errors=True)

    async def _requeue(self, orphaned: Sequence[OrphanedInvocation]) -> None:
        if not orphaned:
            return
        for each in orphaned:
            if each.process_group is not None and each.process_started is not None:
                await kill_orphaned_group(each.process_group, each.process_started)
        await kill_marked(INVOCATION_VARIABLE, {each.invocation_id for each in orphaned})
        for each in orphaned:
            detail = (
                "the server lost track of this invocation"
                if each.owner == self._runner
                else "the server stopped while this invocation ran"
            )
            try:
                await asyncio.to_thread(
                    self._store.claims.requeue, each.invocation_id, each.owner, detail, lost=True
                )
            except (ConditionError, NotFoundError):
                _log.info("%s was changed by another request", each.invocation_id)
