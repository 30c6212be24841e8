"""Random sequences of everything that can happen to a task, against the real engine in virtual time.

Checked promises: no invocation is started twice for one incarnation of the task, none is cancelled that the
task needs, a task that succeeds has one that completed and none waits for ever, and nothing keeps running
after a task that users end or clear. After faults, one reconciliation may be needed for that.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.platforms import Platform, retry
from airflow_invocations.tasks import guard, provenance
from airflow_invocations.tasks.reconciliation import reconcile
from airflow_invocations.triggers import _base, invocation
from airflow_invocations.waiters import log_polling, watcher

from ...support.virtual_time import VirtualLoop
from .model_airflow import SILENT, Airflow, Records
from .model_platform import Client, Hook, Site

BASE_URL = "http://airflow"

#: How many sequences one test runs, and how many tests there are.
SEQUENCES = int(os.environ.get("INVOCATIONS_TEST_SEQUENCES", "1250"))
TESTS = 8

#: The longest sequence.
LENGTH = 9

#: Seconds after which everything that was begun must have come to its end.
SETTLED = 900.0

S = InvocationStatus
Step = tuple[str, float]


def _set_platform(airflow: Airflow, *, is_up: bool) -> None:
    for site in airflow.sites.values():
        site.is_up = is_up


#: What can happen, how often compared with the others, and whether it is a fault (others are people's).
EVENTS: dict[str, tuple[Callable[[Airflow], object], int, bool]] = {
    "nothing": (lambda a: None, 2, False),
    "completes": (lambda a: [site.end(S.Completed) for site in a.sites.values()], 3, False),
    "fails": (lambda a: [site.end(S.Failed) for site in a.sites.values()], 3, False),
    "marked failed": (lambda a: a.mark("failed"), 2, False),
    "marked success": (lambda a: a.mark("success"), 1, False),
    "cleared": (Airflow.clear, 4, False),
    "run deleted": (Airflow.delete, 1, False),
    "retries edited": (Airflow.edit_retries, 1, True),
    "connection edited": (Airflow.edit_connection, 1, True),
    "worker SIGKILL": (Airflow.kill_worker, 3, True),
    "worker SIGTERM": (Airflow.terminate_worker, 3, True),
    "worker stopped": (Airflow.freeze_worker, 3, True),
    "worker continued": (Airflow.thaw_workers, 3, True),
    "API server down": (Airflow.stop_api, 2, True),
    "API server up": (Airflow.start_api, 3, True),
    "triggerer down": (Airflow.kill_triggerer, 2, True),
    "triggerer up": (Airflow.start_triggerer, 3, True),
    "trigger moved": (Airflow.move_trigger, 2, True),
    "platform down": (lambda a: _set_platform(a, is_up=False), 2, True),
    "platform up": (lambda a: _set_platform(a, is_up=True), 3, True),
}
PAUSES = (0.0, 0.1, 0.7, 2.0, 4.0, 8.0, 16.0, 40.0)


def sequence_of(seed: int) -> list[Step]:
    chance = random.Random(seed)
    names = list(EVENTS)
    weights = [weight for _, weight, _ in EVENTS.values()]
    length = chance.randint(2, LENGTH)
    chosen = chance.choices(names, weights, k=length)
    return [(name, chance.choice(PAUSES)) for name in chosen]


def play(
    seed: int, steps: Sequence[Step], *, deferrable: bool | None = None, leaves_nothing: bool = False
) -> list[str]:
    """Have the steps happen to a task; return the broken promises.

    :param seed: also decides how long requests and Airflow's own steps take.
    :param deferrable: None: the seed decides.
    :param leaves_nothing: whether the engine alone must leave nothing behind, whatever happens. By itself it
        can't after each fault, nor if no process learns that the task was ended.
    """
    chance = random.Random(seed)
    drawn = chance.random() < 0.5
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, _clock_of(runner.get_loop()):
        is_deferrable = drawn if deferrable is None else deferrable
        airflow = runner.run(_play(chance, steps, deferrable=is_deferrable))
        is_heard = not airflow.was_unheard and not any(EVENTS[name][2] for name, _ in steps)
        left = [*_orphans(airflow)] if is_heard or leaves_nothing else []
        _reconcile(airflow, runner)
        problems = [*airflow.problems, *_lost(airflow), *left, *_orphans(airflow)]
        airflow.end()
    return problems


def _reconcile(airflow: Airflow, runner: asyncio.Runner) -> None:
    """Reconcile once, and let time pass until what that has changed has come to its end."""

    async def ask(site: Site, operation: Callable[[Platform], Awaitable[Any]]) -> Any:
        return await operation(Client(site, always(), -1, 0))

    for site in airflow.sites.values():
        reconcile(lambda operation, site=site: runner.run(ask(site, operation)), BASE_URL, Records(airflow))
    runner.run(asyncio.sleep(60.0))


def always() -> asyncio.Event:
    """Return what lets a process run that never stands still."""
    event = asyncio.Event()
    event.set()
    return event


async def _play(chance: random.Random, steps: Sequence[Step], *, deferrable: bool) -> Airflow:
    airflow = Airflow(chance, deferrable=deferrable, retries=chance.choice((0, 1, 2)))
    Hook.connect_to = lambda conn_id: Client(airflow.sites[conn_id], always(), -1, 0)
    for name, pause in steps:
        await asyncio.sleep(pause)
        EVENTS[name][0](airflow)
    await _settle(airflow)
    return airflow


async def _settle(airflow: Airflow) -> None:
    """Mend everything, and let time pass until everything that was begun has come to its end."""
    _set_platform(airflow, is_up=True)
    airflow.start_api()
    airflow.start_triggerer()
    airflow.thaw_workers()
    await asyncio.sleep(SETTLED)


def _lost(airflow: Airflow) -> Iterator[str]:
    """Yield what is missing: each task that succeeded has a completed invocation."""
    done = [
        one
        for site in airflow.sites.values()
        for one in site.invocations.values()
        if one.incarnation == airflow.incarnation and one.status is S.Completed
    ]
    if airflow.state == "success" and not airflow.was_marked and not done:
        yield "the task succeeded without an invocation"
    if airflow.state in ("running", "deferred"):
        waited = [one for site in airflow.sites.values() for one in site.active if airflow.needs(site, one)]
        if not waited:
            yield f"the task is {airflow.state} for ever"
    elif airflow.state not in ("success", "failed", "deleted"):
        yield f"the task is {airflow.state} for ever"


def _orphans(airflow: Airflow) -> Iterator[str]:
    for site in airflow.sites.values():
        for one in site.active:
            if not airflow.needs(site, one):
                yield f"{one.invocation_id} is active although the task is {airflow.state}"


async def _read_nothing(*_: object) -> None:
    await asyncio.Event().wait()


@contextmanager
def _clock_of(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", loop.time)
        patch.setattr(time, "time", loop.time)
        patch.setattr(guard, "time", SimpleNamespace(sleep=lambda _: None))
        patch.setattr(provenance, "_base_url", lambda: BASE_URL)
        patch.setattr(_base, "InvocationHook", Hook)
        patch.setattr(invocation, "InvocationHook", Hook)
        patch.setattr(log_polling, "poll_logs", _read_nothing)
        for module in (watcher, retry):
            patch.setattr(module, "_log", SILENT)
        yield


#: Sequences in which earlier versions lost, repeated or cancelled an invocation: name, steps, and whether
#: nothing may be left without reconciliation.
NAMED: dict[str, tuple[list[Step], bool]] = {
    "API server stalls until heartbeats fail": (
        [("API server down", 8.0), ("API server up", 16.0), ("completes", 40.0)],
        False,
    ),
    "SIGTERM of a deployment": (
        [("worker SIGTERM", 8.0), ("worker SIGTERM", 0.1), ("completes", 8.0)],
        False,
    ),
    "worker stands still and continues before its retry": (
        [("worker stopped", 8.0), ("worker continued", 13.0)],
        False,
    ),
    "worker stands still and continues after its retry": (
        [("worker stopped", 8.0), ("worker continued", 40.0)],
        False,
    ),
    "marked failed, the platform is down for long": (
        [("platform down", 8.0), ("marked failed", 0.1), ("nothing", 40.0), ("nothing", 40.0)],
        True,
    ),
    "cleared twice, the platform is down": (
        [("cleared", 8.0), ("platform down", 2.0), ("cleared", 4.0), ("platform up", 40.0)],
        False,
    ),
    "trigger moves while the API server is down": (
        [("API server down", 8.0), ("trigger moved", 2.0), ("API server up", 16.0)],
        False,
    ),
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMED)
def test_named_sequence_breaks_no_promise(name: str, seed: int) -> None:
    steps, leaves_nothing = NAMED[name]
    assert play(seed, steps, deferrable=leaves_nothing or None, leaves_nothing=leaves_nothing) == []


def shrunk(seed: int, steps: list[Step], **options: Any) -> list[Step]:
    """Return the steps without those that a failure doesn't need."""
    number = 0
    while number < len(steps):
        fewer = steps[:number] + steps[number + 1 :]
        if play(seed, fewer, **options):
            steps = fewer
        else:
            number += 1
    return steps


@pytest.mark.parametrize("part", range(TESTS))
def test_no_sequence_of_events_breaks_a_promise(part: int) -> None:
    for seed in range(part * SEQUENCES, (part + 1) * SEQUENCES):
        steps = sequence_of(seed)
        if play(seed, steps):
            least = shrunk(seed, steps)
            raise AssertionError(f"seed {seed}: {play(seed, least)} after {least}")
