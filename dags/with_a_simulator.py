"""Run a simulator beside the invocations that need it: started before them and always ended after them.

It needs a connection `roboto_default`, and two actions on its platform: `simulator`, which runs until it is
cancelled, and `drive`, with a parameter `route`.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_invocations.operators import CancelInvocationOperator, InvokeActionOperator

with DAG(
    "with_a_simulator",
    description="Run a simulator as setup and teardown of other invocations",
    schedule=None,
    tags=["example", "invocations"],
):
    start_simulator = InvokeActionOperator(task_id="start_simulator", action="simulator", wait=False)

    drive = InvokeActionOperator.partial(task_id="drive", action="drive", deferrable=True).expand(
        parameters=[{"route": route} for route in ("city", "motorway")]
    )

    # As a teardown it runs whether or not the drives succeed, and its success doesn't hide their failure.
    # If the simulator was never started, there is nothing to cancel.
    stop_simulator = CancelInvocationOperator(
        task_id="stop_simulator", invocation_ids=start_simulator.output
    ).as_teardown(setups=start_simulator)

    start_simulator >> drive >> stop_simulator
