"""A worker's task process on the task SDK's real channel, with a supervisor that can stop answering.

Run as `python -m tests.integration.airflow.task_process CONNECTION ACTION ARGUMENTS STOPS_AT`, the first
and third as JSON. It executes one `InvokeActionOperator`. The supervisor doesn't answer the request that
pushes the XCom STOPS_AT ("": it answers all), and the process prints `{"held": ...}` when that has arrived.
It says that the task has failed, and the process prints `{"asks": ...}` before it asks that. At the end the
process prints `{"asked": [...]}`: every request with the thread and asyncio task that sent it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import CommsDecoder, _RequestFrame, _ResponseFrame
from airflow.sdk.execution_time.xcom import XCom

from airflow_invocations.operators import InvokeActionOperator

from .conftest import Task


class Channel(CommsDecoder):  # type: ignore[type-arg]
    """The channel as it is, which notes who asks."""

    def send(self, msg: Any) -> Any:
        note(msg)
        return super().send(msg)

    async def asend(self, msg: Any) -> Any:
        note(msg)
        return await super().asend(msg)


asked: list[dict[str, Any]] = []
in_handler = threading.Event()


def note(msg: Any) -> None:
    """Remember a request, and from where it comes."""
    try:
        in_task = asyncio.current_task() is not None
    except RuntimeError:
        in_task = False
    thread = threading.current_thread()
    if type(msg).__name__ == "GetTaskStates":
        say({"asks": "GetTaskStates"})
    asked.append(
        {
            "type": type(msg).__name__,
            "in_task": in_task,
            "in_handler": in_handler.is_set() and thread is threading.main_thread(),
            "thread": thread.name,
        }
    )


def supervise(channel: socket.socket, connection: dict[str, Any], stops_at: str) -> None:
    """Answer what the task asks, until it pushes the XCom `stops_at`."""
    while True:
        body = msgspec.msgpack.decode(read(channel, read_length(channel)), type=_RequestFrame)
        request: dict[str, Any] = body.body or {}
        if request["type"] == "SetXCom" and request["key"] == stops_at:
            say({"held": request["value"], "key": stops_at})
            continue
        answer: dict[str, Any] | None = None
        if request["type"] == "GetConnection":
            empty = dict.fromkeys(("schema", "login", "port"))
            answer = {"type": "ConnectionResult", "conn_id": request["conn_id"], **empty, **connection}
        elif request["type"] == "GetXCom":
            answer = {"type": "XComResult", "key": request["key"], "value": None}
        elif request["type"] == "GetTaskStates":
            answer = {"type": "TaskStatesResult", "task_states": {"a run": {"ask": "failed"}}}
        channel.sendall(_ResponseFrame(id=body.id, body=answer).as_bytes())


def read_length(channel: socket.socket) -> int:
    return int.from_bytes(read(channel, 4), "big")


def read(channel: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += channel.recv(size - len(found)) or sys.exit(0)  # type: ignore[func-returns-value]
    return found


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Execute the operator as Airflow's task runner does, on_kill in the signal handler."""
    connection, action, arguments, stops_at = sys.argv[1:]
    ours, theirs = socket.socketpair()
    threading.Thread(target=supervise, args=(theirs, json.loads(connection), stops_at), daemon=True).start()
    task_runner.SUPERVISOR_COMMS = Channel(socket=ours)
    task = Task()
    instance: Any = task.context["ti"]
    names = {name: getattr(instance, name) for name in ("dag_id", "task_id", "run_id", "map_index")}
    task.context["ti"] = SimpleNamespace(
        **{
            **vars(instance),
            "xcom_push": lambda key, value: XCom.set(key, value, **names),
            "xcom_pull": lambda key, **_: XCom.get_one(key=key, **names),
            "get_task_states": task_runner.RuntimeTaskInstance.get_task_states,
        }
    )
    operator = InvokeActionOperator(task_id="ask", action=action, conn_id="fleet", **json.loads(arguments))

    def on_term(number: int, frame: object) -> None:
        in_handler.set()
        operator.on_kill()
        in_handler.clear()

    signal.signal(signal.SIGTERM, on_term)
    try:
        operator.execute(task.context)
    finally:
        say({"asked": asked})


if __name__ == "__main__":
    main()
