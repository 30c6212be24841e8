"""The scheduler, and many tasks at once."""

from __future__ import annotations

from ..scene import Scene
from .row import BOTH, row

#: Mapped tasks of one run.
MANY = 500

#: Seconds in which all of them have started, and in which all of them have ended.
MANY_PATIENCE = 1500.0


@row("scheduler SIGKILL and restart, while deferred", executors=BOTH, disturbs=True)
def scheduler_killed_while_deferred(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    _restart(scene)
    scene.gate.open()


@row("scheduler SIGKILL and restart, while a worker polls", "in_a_worker", executors=BOTH, disturbs=True)
def scheduler_killed_while_a_worker_polls(scene: Scene) -> None:
    scene.trigger_and_wait_until_polled()
    _restart(scene)
    scene.gate.open()


@row("scheduler SIGKILL before submit", executors=BOTH, disturbs=True)
def scheduler_killed_before_submit(scene: Scene) -> None:
    hold = scene.proxy.hold("submit")
    scene.trigger()
    scene.until_held(hold)
    _restart(scene)
    hold.release()
    scene.gate.open()


@row("500 mapped tasks", "mapped", invocations=["Completed"] * MANY, disturbs=True)
def many(scene: Scene) -> None:
    scene.airflow.add_pool("few", slots=8)  # more get nowhere on two cores
    scene.trigger(count=MANY)
    scene.until("all of them deferred", lambda: _deferred(scene) == MANY, within=MANY_PATIENCE)
    scene.gate.open()
    scene.until_run_ends(within=MANY_PATIENCE)


def _deferred(scene: Scene) -> int:
    return len({change.map_index for change in scene.history() if change.state == "deferred"})


def _restart(scene: Scene) -> None:
    scene.airflow["scheduler"].kill()
    scene.airflow["scheduler"].start()
