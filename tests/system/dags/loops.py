"""DAGs of the system test: invocations in task loops, which Airflow has since 3.4."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

from airflow import __version__
from airflow.sdk import DAG, task, task_group

from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.version_compat import VERSION

#: Retries for a busy machine whose API server doesn't respond to a task.
DEFAULTS = {"poll_interval": 0.5, "retries": 2, "retry_delay": timedelta(seconds=1)}

#: The number of a loop's first iteration: 0 in the betas of 3.4, then 1
#: (https://github.com/apache/airflow/pull/74773).
FIRST_ITERATION = 0 if __version__.startswith("3.4.0b") else 1

#: Lines of an action that runs until it is cancelled, five per second.
ENDLESS = 3000


class DiesOnce(InvokeActionOperator):
    """Kills its worker after the invocation, in the first try."""

    def _finish(self, hook: Any, context: Any, *more: Any) -> dict[str, Any]:
        if context["ti"].try_number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._finish(hook, context, *more)


if VERSION >= (3, 4):
    with DAG("looped", schedule=None, default_args=DEFAULTS):

        @task_group
        def worker() -> None:
            """In a worker, which is lost once in each iteration; the retry adopts the invocation."""

            @task
            def choose(*, loop: Any) -> dict[str, Any]:
                return {"who": f"worker, pass {loop.index}"}

            DiesOnce(
                task_id="ask",
                action="greet",
                parameters=choose(),
                deferrable=False,
            )

        @task_group
        def deferred() -> None:
            """In the triggerer, started by a worker."""

            @task
            def choose(*, loop: Any) -> dict[str, Any]:
                return {"who": f"deferred, pass {loop.index}"}

            InvokeActionOperator(
                task_id="ask", action="greet", parameters=choose(), deferrable=True, defer_after=0
            )

        @task_group
        def workerless() -> None:
            """In the triggerer from the start to the end."""
            InvokeActionOperator(
                task_id="ask", action="greet", parameters={"who": "workerless"}, start_from_trigger=True
            )

        @task_group
        def mapped() -> None:
            """Mapped in each iteration."""

            @task
            def choose(*, loop: Any) -> list[dict[str, Any]]:
                return [{"who": f"mapped {index}, pass {loop.index}"} for index in range(2)]

            InvokeActionOperator.partial(
                task_id="ask", action="greet", deferrable=True, defer_after=0
            ).expand(parameters=choose())

        for group in (worker, deferred, workerless, mapped):
            group.loop(max_iterations=3)
        InvokeActionOperator.partial(task_id="outside", action="greet").expand(
            parameters=[{"who": f"outside {index}"} for index in range(2)]
        )

    with DAG("looped_long", schedule=None, default_args=DEFAULTS):

        def long_loop(deferrable: bool) -> None:
            """Loop over an action that ends at once in the first iteration, and never in the second."""

            @task
            def choose(*, ti: Any) -> dict[str, Any]:
                return {"lines": 1 if ti.region_index == FIRST_ITERATION else ENDLESS}

            InvokeActionOperator(
                task_id="ask",
                action="count",
                parameters=choose(),
                deferrable=deferrable,
                defer_after=0,
            )

        @task_group
        def long_deferred() -> None:
            """Deferred."""
            long_loop(deferrable=True)

        @task_group
        def long_worker() -> None:
            """In a worker."""
            long_loop(deferrable=False)

        long_deferred.loop(max_iterations=2)
        long_worker.loop(max_iterations=2)
