"""Rows for networks, gateways and overloaded servers: all faults on all routes."""

from __future__ import annotations

import time
from collections.abc import Callable

from airflow_invocations.models import InvocationStatus

from ..faults import FAULTS, lose_answer, not_found
from ..proxy import Rule
from ..scene import PATIENCE, Scene
from .row import LOCAL, row

#: Number of faults: more than the attempts of one request (5).
TIMES = 6

#: Faults that last so long that fewer are used.
_FEWER = {"timeout": 3, "slow body": 3}

#: Faults that run in `make test`.
_QUICK = {("503", "status"), ("half JSON", "watch")}


def _fault(scene: Scene, fault: str, *routes: str) -> Rule:
    return scene.proxy.fault(routes, FAULTS[fault], _FEWER.get(fault, TIMES))


def _was_hit(scene: Scene, rule: Rule) -> None:
    scene.remark(f"{rule.hits} times")
    assert rule.hits, "no such request came"


def _submit(fault: str) -> Callable[[Scene], None]:
    def happens(scene: Scene) -> None:
        rule = _fault(scene, fault, "submit")
        scene.trigger()
        scene.gate.open()
        scene.until_run_ends()
        _was_hit(scene, rule)

    return happens


def _wait(fault: str, *routes: str) -> Callable[[Scene], None]:
    """Inject the fault while a triggerer waits; on a platform without push, unless it affects `watch`."""

    def happens(scene: Scene) -> None:
        if "watch" not in routes:
            scene.proxy.fault("watch", not_found, times=10**6)
        scene.trigger_and_wait_until_deferred()
        rule = _fault(scene, fault, *routes)
        scene.proxy.cut()
        scene.until("fault", rule.first.is_set)
        scene.gate.open()
        scene.until_run_ends(within=3 * PATIENCE)
        _was_hit(scene, rule)

    return happens


def _cancel(fault: str) -> Callable[[Scene], None]:
    def happens(scene: Scene) -> None:
        rule = _fault(scene, fault, "cancel")
        scene.trigger_and_wait_until_deferred()
        since = time.time()
        scene.mark("failed")
        scene.remark(f"cancelled after {scene.seconds_until_cancelled(since):.1f} s")
        _was_hit(scene, rule)

    return happens


for _name in FAULTS:
    _rows = {
        "submit": _submit(_name),
        "status": _wait(_name, "get", "query"),
        "watch": _wait(_name, "watch"),
        "logs": _wait(_name, "logs"),
        "cancel": _cancel(_name),
    }
    for _route, _happens in _rows.items():
        row(
            f"{_name} on {_route}",
            invocations=["Cancelled" if _route == "cancel" else "Completed"],
            state="failed" if _route == "cancel" else "success",
            quick=LOCAL if (_name, _route) in _QUICK else frozenset(),
        )(_happens)


@row("submit accepted, the answer lost", quick=LOCAL)
def answer_lost(scene: Scene) -> None:
    scene.proxy.fault("submit", lose_answer)
    scene.trigger()
    scene.gate.open()


@row("submit accepted, every answer lost until the task is retried")
def all_answers_lost(scene: Scene) -> None:
    rule = scene.proxy.fault("submit", lose_answer, TIMES)
    scene.trigger()
    scene.until("six lost answers", rule.last.is_set)
    scene.gate.open()


@row("the watch stream is cut, again and again")
def stream_cut(scene: Scene) -> None:
    scene.trigger_and_wait_until_deferred()
    for _ in range(3):
        before = scene.looks()
        scene.proxy.cut()
        scene.until_looks(before)
    scene.gate.open()


@row("cancel accepted, the answer lost", invocations=["Cancelled"], state="failed")
def cancel_answer_lost(scene: Scene) -> None:
    scene.proxy.fault("cancel", lose_answer)
    scene.trigger_and_wait_until_deferred()
    scene.mark("failed")
    scene.until_status(InvocationStatus.Cancelled)
