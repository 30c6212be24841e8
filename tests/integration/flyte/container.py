"""What runs in a task's container: the official SDK, on a module of tasks, in a process of its own.

`describe FILE` prints what each task takes and returns; `execute FILE TASK` reads a task's inputs, executes
it for real and prints its outputs. Messages are base64, the last line of what is printed.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import sys
from typing import Any

import flyte
from flyte._internal.runtime.convert import (
    Inputs,
    convert_from_native_to_outputs,
    convert_inputs_to_native,
    convert_upload_default_inputs,
)
from flyte._internal.runtime.types_serde import transform_native_to_typed_interface
from flyteidl2.task import common_pb2


def tasks_of(file: str) -> dict[str, Any]:
    """The tasks of a module, by name."""
    spec = importlib.util.spec_from_file_location("tasks", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tasks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.env.tasks)


async def describe(file: str) -> dict[str, Any]:
    """The interface and the defaults of each task."""
    return {
        name: {
            "interface": text_of(transform_native_to_typed_interface(task.native_interface)),
            "defaults": [text_of(one) for one in await convert_upload_default_inputs(task.native_interface)],
        }
        for name, task in tasks_of(file).items()
    }


async def execute(file: str, name: str, packed: str) -> str:
    """A task's Outputs for these Inputs."""
    task = tasks_of(file)[name]
    inputs = Inputs(proto_inputs=common_pb2.Inputs.FromString(base64.b64decode(packed)))
    native = await convert_inputs_to_native(inputs, task.native_interface)
    outputs = await convert_from_native_to_outputs(await task.func(**native), task.native_interface)
    return text_of(outputs.proto_outputs)


def text_of(message: Any) -> str:
    """A message as a text."""
    return base64.b64encode(message.SerializeToString()).decode()


async def main() -> object:
    """Do what the command line says."""
    flyte.init()
    match sys.argv[1:]:
        case ["describe", file]:
            return await describe(file)
        case ["execute", file, name]:
            return await execute(file, name, sys.stdin.read())
    raise SystemExit(__doc__)


if __name__ == "__main__":
    print("\n" + json.dumps(asyncio.run(main())))
