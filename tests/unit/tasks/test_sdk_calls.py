"""No call of Airflow's task SDK is cancelled half-way, and a signal handler makes none."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import airflow_invocations
from airflow_invocations.hooks import InvocationHook, invocation
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.tasks.sdk_calls import _in_progress, complete

HOUSE = Path(airflow_invocations.__file__).parent

#: How the task SDK is called from an event loop. `read_connection` is ours and calls nothing else.
ASYNC_CALLS = {
    "aget", "aset", "aget_one", "aget_connection", "aextra_dejson", "aget_uri", "adelete", "asend",
    "get_task_states", "read_connection",
}  # fmt: skip


def exposed_calls(source: str) -> Iterator[str]:
    """The SDK calls of a module that aren't an argument of `complete`, so that a cancel would reach them."""

    def visit(node: ast.AST, *, is_completed: bool) -> Iterator[str]:
        match node:
            case ast.FunctionDef(name="_read_states"):
                return  # in threads without an event loop: of `tasks.guard` and `tasks.task_states`
            case ast.FunctionDef(name="read_connection") | ast.AsyncFunctionDef(name="read_connection"):
                return
            case ast.Call(func=ast.Name(id="complete") | ast.Attribute(attr="read_state")):
                is_completed = True  # `WatchedAssets.read_state` completes the call that it gets
            case ast.Attribute(attr=name) | ast.Name(id=name) if name in ASYNC_CALLS and not is_completed:
                yield name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, is_completed=is_completed)

    yield from visit(ast.parse(source), is_completed=False)


def test_every_sdk_call_of_an_event_loop_runs_to_completion() -> None:
    rooms = ("hooks", "operators", "sensors", "triggers", "waiters", "tasks")
    files = [path for room in rooms for path in (HOUSE / room).rglob("*.py")]
    exposed = {str(path.relative_to(HOUSE)): list(exposed_calls(path.read_text())) for path in files}
    assert {name: calls for name, calls in exposed.items() if calls} == {}
    # Those that there are, so that the look above isn't at nothing.
    found = {name for path in files for name in ASYNC_CALLS if f"{name}(" in path.read_text()}
    assert {"aset", "aget_one", "read_connection"} <= found


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("await XCom.aset(1)", ["aset"]),
        ("await complete(lambda: XCom.aset(1))", []),
        ("await complete(partial(state.aget, key))", []),
        ("async with timeout(1):\n    await read_connection('a')", ["read_connection"]),
        ("async def read_connection():\n    await BaseHook.aget_connection('a')", []),
    ],
)
def test_exposed_calls_are_found(source: str, calls: list[str]) -> None:
    wrapped = "async def f():\n" + "\n".join(f"    {line}" for line in source.splitlines())
    assert list(exposed_calls(wrapped)) == calls


@pytest.mark.anyio
async def test_a_cancelled_caller_leaves_its_call_to_its_end() -> None:
    answered, ended = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        await answered.wait()
        ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await complete(call)
    assert len(_in_progress) == 1
    answered.set()
    async with asyncio.timeout(5):
        await ended.wait()
    await asyncio.sleep(0)
    assert not _in_progress


@pytest.mark.anyio
async def test_results_and_errors_of_a_call_reach_the_caller() -> None:
    async def fail() -> None:
        raise KeyError("lost")

    async def answer() -> int:
        return 7

    assert await complete(answer) == 7
    with pytest.raises(KeyError, match="lost"):
        await complete(fail)


@pytest.mark.anyio
async def test_a_connection_that_is_being_read_survives_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, ended = asyncio.Event(), asyncio.Event()

    async def read_connection(conn_id: str) -> Any:
        await answered.wait()
        ended.set()
        raise ValueError(conn_id)

    monkeypatch.setattr(invocation, "read_connection", read_connection)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await InvocationHook("fleet").connect()
    answered.set()
    async with asyncio.timeout(5):
        await ended.wait()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The connections that were read, one after the other; `down` in the list: Airflow doesn't answer."""
    read: list[str] = []
    real = invocation.BaseHook.get_connection

    def get_connection(conn_id: str) -> Any:
        read.append(conn_id)
        if "down" in read:
            raise RuntimeError("the API server is away")
        return real(conn_id)

    monkeypatch.setattr(invocation.BaseHook, "get_connection", get_connection)
    return read


def set_token(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    fields = {"conn_type": "roboto", "host": "http://h", "password": token, "extra": {"timeout": 5}}
    monkeypatch.setenv("AIRFLOW_CONN_FLEET", json.dumps(fields))


@pytest.mark.anyio
async def test_a_hook_keeps_its_connection_and_reads_it_again_when_it_is_old(
    monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    set_token(monkeypatch, "first")
    hook = InvocationHook("fleet")
    for _ in range(3):
        hook.get_conn()
        await hook.connect()
    assert reads == ["fleet"]
    monkeypatch.setattr(invocation, "CONNECTION_AGE", -1.0)
    set_token(monkeypatch, "second")
    await hook.connect()
    assert reads == ["fleet"] * 2
    assert hook._fields().connection.password == "second"
    # One that can't be read now is no reason to forget what it said.
    reads.append("down")
    await hook.connect()
    assert hook._fields().connection.password == "second"


def test_a_kill_before_anything_was_invoked_reads_no_connection(reads: list[str]) -> None:
    InvokeActionOperator(task_id="ask", action="a", conn_id="fleet").on_kill()
    assert reads == []
