"""What must end up true: what a dead runner owned runs again, and what was aborted comes to its end."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Callable, Collection, Sequence

from ...models import MAX_PAGE_SIZE
from ..api.errors import ConditionError, NotFoundError
from ..db import ID_PREFIX, OrphanedInvocation, Store
from ..outages import log_failure
from ..settings import ServiceSettings
from ..timestamps import now
from . import processes
from .workspace import INVOCATION_VARIABLE, SERVER_VARIABLE, Workspace

#: Seconds between two rounds.
INTERVAL = 5.0

#: Seconds without a sign of life after which a runner is dead.
DEAD_AFTER = 30.0

#: Seconds between two looks at which workspaces are old enough to go.
CLEANING_INTERVAL = 600.0

#: Seconds in a day.
DAY = 86400.0

#: Seconds until an abort is tried again: full jitter up to BASE * 2**n, at most CAP.
ABORT_BASE = 1.0
ABORT_CAP = 300.0

_SECOND = 1_000_000

_log = logging.getLogger(__name__)


class Reconciler:
    """Goes round again and again; every round alone would do, so one that fails costs nothing but time.

    :param store: the repository.
    :param runner: the id of the one runner that is alive for certain: this process's own.
    :param claims: the invocations that this runner works on now.
    :param stop: asks that runner to look whether an invocation is to be stopped.
    :param settings: where workspaces are, and how long they are kept.
    """

    def __init__(
        self,
        store: Store,
        runner: str,
        claims: Callable[[], Collection[str]],
        stop: Callable[[str], None],
        settings: ServiceSettings,
    ) -> None:
        self._store = store
        self._runner = runner
        self._claims = claims
        self._stop = stop
        #: What the runner owned at the last round without working on it, as just before it begins.
        self._idle: set[str] = set()
        self._settings = settings
        self._next_cleaning = 0.0

    async def recover(self) -> None:
        """Take over all invocations of other runners: the server has just started, so none of them is alive.

        So do processes of invocations that the database doesn't know, having been restored from a backup.
        """
        await processes.end_marked(SERVER_VARIABLE, {self._settings.identity})
        await asyncio.to_thread(self._remove_secrets)
        await self._take(await asyncio.to_thread(self._store.claims.orphaned, [self._runner]))

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.round()
            except Exception:
                log_failure(_log, "a round of the reconciler failed; the next one is in %s s", INTERVAL)

    async def round(self) -> None:
        """Take what runners without a heartbeat own, and try the aborts that are due."""
        dead_since = now() - int(DEAD_AFTER * _SECOND)
        await self._take(await asyncio.to_thread(self._store.claims.orphaned, [self._runner], dead_since))
        await self._take(await self._lost())
        for pending in await asyncio.to_thread(self._store.aborts.pending, now()):
            longest = min(ABORT_CAP, ABORT_BASE * 2 ** min(pending.attempts, 30))
            again_at = now() + int(random.uniform(0, longest) * _SECOND)  # noqa: S311
            await asyncio.to_thread(self._store.aborts.record_attempt, pending.invocation_id, again_at)
            self._stop(pending.invocation_id)
        if time.monotonic() >= self._next_cleaning:
            self._next_cleaning = time.monotonic() + CLEANING_INTERVAL
            await asyncio.to_thread(self._clean)

    def _remove_secrets(self) -> None:
        """Remove the secrets of attempts that were interrupted before they removed them."""
        for folder in self._settings.workspaces.glob(f"{ID_PREFIX}*"):
            Workspace(folder).remove_secrets()

    async def _lost(self) -> list[OrphanedInvocation]:
        """Return what this process's runner owns and hasn't worked on for a whole round."""
        owned = await asyncio.to_thread(self._store.claims.owned_by, self._runner)
        claims = self._claims()
        idle = [left for left in owned if left.invocation_id not in claims]
        lost = [left for left in idle if left.invocation_id in self._idle]
        self._idle = {left.invocation_id for left in idle}
        return lost

    def _clean(self) -> None:
        """Remove the workspaces of invocations that ended long enough ago; any other folder is left alone."""
        kept_since = now() - int(self._settings.keep_workspaces * DAY * _SECOND)
        folders = [path.name for path in self._settings.workspaces.glob(f"{ID_PREFIX}*")]
        for first in range(0, len(folders), MAX_PAGE_SIZE):
            for name in self._store.invocations.ended_before(
                folders[first : first + MAX_PAGE_SIZE], kept_since
            ):
                shutil.rmtree(self._settings.workspaces / name, ignore_errors=True)

    async def _take(self, left_over: Sequence[OrphanedInvocation]) -> None:
        if not left_over:
            return
        for left in left_over:
            if left.process_group is not None and left.process_started is not None:
                await processes.end_left_over(left.process_group, left.process_started)
        await processes.end_marked(INVOCATION_VARIABLE, {left.invocation_id for left in left_over})
        for left in left_over:
            detail = (
                "the server lost track of this"
                if left.owner == self._runner
                else "the server ended while this ran"
            )
            try:
                await asyncio.to_thread(
                    self._store.claims.requeue, left.invocation_id, left.owner, detail, lost=True
                )
            except (ConditionError, NotFoundError):
                _log.info("%s was taken by somebody else", left.invocation_id)
