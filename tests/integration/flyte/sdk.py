"""The official SDK in a process of its own: `python -m tests.integration.flyte.sdk ENDPOINT COMMANDS`.

Commands are JSON, [[what, argument, ...], ...]; it prints what it got for each, as JSON. In a process of its
own because it changes the one it is in: threads, hooks, loggers, Sentry's client.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import flyte
import flyte.remote

from ...platforms.flyte_server import DOMAIN, PROJECT


def create(task: str, inputs: str) -> dict[str, Any]:
    """Run a deployed task."""
    deployed = flyte.remote.Task.get(task, auto_version="latest")
    run = flyte.with_runcontext(mode="remote", labels={"team": "fleet"}).run(deployed, **json.loads(inputs))
    return {"name": run.name}


def get(name: str) -> dict[str, Any]:
    """What it says of a run."""
    run = flyte.remote.Run.get(name)
    details = run.details()
    error = details.action_details.error_info
    abort = details.action_details.abort_info
    return {
        "phase": run.phase.name,
        "done": run.done(),
        "error": error and error.message,
        "abort": abort and abort.reason,
        "url": run.url,
    }


def listed() -> list[str]:
    """The names of all runs."""
    return [run.name for run in flyte.remote.Run.listall()]


def watch(name: str) -> dict[str, Any]:
    """Wait for a run's end."""
    run = flyte.remote.Run.get(name)
    run.wait(quiet=True)
    return {"phase": flyte.remote.Run.get(name).phase.name}


def logs(name: str) -> list[str]:
    """A run's lines; it begins each with a space."""
    return [line.strip() for line in flyte.remote.Run.get(name).get_logs()]


def outputs(name: str) -> Any:
    """What a run has returned."""
    returned = asyncio.run(flyte.remote.Run.get(name).details().outputs())
    return dict(returned.named_outputs)


def inputs(name: str) -> Any:
    """What a run was given."""
    given = asyncio.run(flyte.remote.Run.get(name).details().inputs())
    return dict(given)


def abort(name: str, reason: str) -> dict[str, Any]:
    """Abort a run."""
    flyte.remote.Run.get(name).abort(reason)
    return get(name)


WHAT = {
    "create": create, "get": get, "list": listed, "watch": watch, "logs": logs, "outputs": outputs,
    "inputs": inputs, "abort": abort,
}  # fmt: skip

if __name__ == "__main__":
    endpoint, commands = sys.argv[1:]
    flyte.init(endpoint=endpoint, insecure=True, project=PROJECT, domain=DOMAIN, auth_type="Passthrough")
    got = [WHAT[what](*arguments) for what, *arguments in json.loads(commands)]
    print("\n" + json.dumps(got, default=str))
