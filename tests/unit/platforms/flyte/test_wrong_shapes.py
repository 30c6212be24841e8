"""Answers of another shape than Flyte's API describes: outages or unreadable items, no errors of Python's."""

from __future__ import annotations

import asyncio
import copy
import datetime
import functools
import json
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_invocations.models import CaughtUp, EventFilter, InvocationRequest, InvocationSource
from airflow_invocations.platforms import PlatformError, UnavailableError, retry
from airflow_invocations.platforms.flyte import FlytePlatform, FlyteSettings, platform, tasks, watch

from ....support.scripted_server import (
    Script,
    answer,
    raw,
)

pytestmark = pytest.mark.anyio

RUN = "p/d/r"
NOON = "2026-01-31T12:00:00Z"
LATER = "2026-01-31T12:01:00Z"
RUN_ID = {"org": "", "project": "p", "domain": "d", "name": "r"}
TASK_ID = {"org": "", "project": "p", "domain": "d", "name": "t", "version": "v1"}
WHO = {"user": {"id": {"subject": "ada"}}}
TEXT = {"simple": "STRING"}
HELLO = {"scalar": {"primitive": {"stringValue": "hello"}}}
TEMPLATE = {
    "id": TASK_ID,
    "container": {"image": "python"},
    "metadata": {"timeout": "90s"},
    "interface": {
        "inputs": {
            "variables": [
                {"key": "who", "value": {"type": TEXT, "description": "greeted"}},
                {"key": "each", "value": {"type": {"collectionType": {"enumType": {"values": ["a"]}}}}},
                {"key": "any", "value": {"type": {"unionType": {"variants": [TEXT]}}}},
                {"key": "dict", "value": {"type": {"simple": "STRUCT", "metadata": {"title": "D"}}}},
            ]
        }
    },
}
STATUS = {"phase": "ACTION_PHASE_FAILED", "startTime": NOON, "endTime": LATER, "attempts": 1}
STEP = {"phase": "ACTION_PHASE_RUNNING", "startTime": NOON}
DETAILS = {
    "details": {
        "action": {
            "id": {"run": RUN_ID, "name": "a0"},
            "metadata": {"task": {"id": TASK_ID}, "executedBy": WHO},
            "status": STATUS,
            "task": {"taskTemplate": TEMPLATE},
            "errorInfo": {"message": "no", "code": "E", "kind": "KIND_USER"},
            "attempts": [
                {
                    "attempt": 1,
                    "phaseTransitions": [STEP],
                    "clusterEvents": [{"reason": "Pulling", "message": "image", "occurredAt": NOON}],
                    "logInfo": [{"name": "logs", "uri": "http://logs"}],
                    "errorInfo": {"message": "no"},
                }
            ],
        },
        "runSpec": {
            "annotations": {"values": {"airflow_idempotency_id": "once", "airflow_source_id": "x"}},
            "envs": {"values": [{"key": "A", "value": "b"}]},
        },
    }
}
LISTED = {
    "runs": [
        {
            "action": {
                "id": {"run": RUN_ID, "name": "a0"},
                "metadata": {"task": {"id": TASK_ID}},
                "status": STATUS,
            }
        }
    ],
    "token": "",
}
TASK_DETAILS = {
    "details": {
        "taskId": TASK_ID,
        "metadata": {"deployedAt": NOON, "deployedBy": WHO},
        "spec": {
            "taskTemplate": TEMPLATE,
            "defaultInputs": [{"name": "who", "parameter": {"default": HELLO}}],
            "documentation": {"shortDescription": "greets"},
        },
    }
}
TASKS = {"tasks": [{"taskId": TASK_ID}], "token": ""}
OUTPUTS = {
    "outputs": {
        "literals": [
            {"name": "o0", "value": HELLO},
            {"name": "o1", "value": {"collection": {"literals": [HELLO]}}},
            {"name": "o2", "value": {"map": {"literals": {"a": HELLO}}}},
            {"name": "o3", "value": {"scalar": {"union": {"value": HELLO}}}},
            {"name": "o4", "value": {"scalar": {"binary": {"tag": "msgpack", "value": "gA=="}}}},
            {"name": "o5", "value": {"scalar": {"blob": {"uri": "s3://b", "metadata": {"type": {}}}}}},
            {"name": "o6", "value": {"scalar": {"primitive": {"integer": "1"}}}},
            {"name": "o7", "value": {"scalar": {"primitive": {"duration": "1s"}}}},
        ]
    },
    "inputs": {"literals": []},
}
QUEUED = {"phase": "ACTION_PHASE_QUEUED", "startTime": NOON}
CREATED = {
    "run": {"action": {"id": {"run": RUN_ID}, "metadata": {"task": {"id": TASK_ID}}, "status": QUEUED}}
}
LINES = {"logs": [{"lines": [{"message": "hello", "timestamp": NOON, "originator": "USER"}]}]}

GOOD: dict[str, Any] = {
    "GetRunDetails": DETAILS,
    "ListRuns": LISTED,
    "WatchRuns": {"runs": LISTED["runs"]},
    "GetTaskDetails": TASK_DETAILS,
    "ListTasks": TASKS,
    "GetActionData": OUTPUTS,
    "CreateRun": CREATED,
    "AbortRun": {},
    "TailLogs": LINES,
}
STREAMS = {"WatchRuns", "TailLogs"}

LEFT_OUT = object()
#: What stands in place of a value of a kind.
WRONG: dict[type, list[Any]] = {
    dict: [LEFT_OUT, None, 5, "x", [5], {"x": 5}],
    list: [LEFT_OUT, None, 5, "x", [5], {"x": 5}],
    str: [LEFT_OUT, 5, [], {"x": 5}, "", "9999-12-31T23:59:59-23:59"],
    int: ["x", 1e300, [], {}],
}


def wrong_shapes_of(message: Any) -> Iterator[Any]:
    """Yield copies of a message, in each of which one node is left out or of another kind."""
    for path in _paths(message):
        for wrong in WRONG[type(_at(message, path))]:
            changed = {"": copy.deepcopy(message)}
            *above, last = ("", *path)
            parent = _at(changed, above)
            if wrong is LEFT_OUT:
                del parent[last]
            else:
                parent[last] = wrong
            if changed:
                yield changed[""]


def _at(message: Any, path: Sequence[Any]) -> Any:
    return functools.reduce(lambda parent, step: parent[step], path, message)


def _paths(message: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(message, dict):
        items = message.items()
    elif isinstance(message, list):
        items = enumerate(message)
    for step, item in items:
        yield from _paths(item, (*path, step))


def enveloped(message: Any) -> Any:
    """Answer as a stream of one message that ends well."""
    parts = [(0, json.dumps(message).encode()), (2, b"{}")]
    body = b"".join(struct.pack(">BI", flags, len(part)) + part for flags, part in parts)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\ncontent-length: {len(body)}\r\n"
    return raw(f"{head}connection: close\r\n\r\n".encode() + body)


class Flyte:
    """Answers each method with what is good, except where a test says otherwise."""

    def __init__(self, script: Script) -> None:
        self.answers = dict(GOOD)
        #: Calls that answer that there is no run.
        self.rejected: set[str] = set()
        #: What to set at the second call of a method from now on.
        self._twice: tuple[str, asyncio.Event] = ("", asyncio.Event())
        self._calls = 0
        self._script = script
        script.answers = [self._answer]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = self._script.seen[-1].path.rpartition("/")[2]
        if method == self._twice[0]:
            self._calls += 1
            if self._calls == 2:
                self._twice[1].set()
        if method in self.rejected or method not in self.answers:
            said = answer(404, {"code": "not_found", "message": "run not found"})
        else:
            message = self.answers[method]
            said = enveloped(message) if method in STREAMS else answer(200, message)
        await said(reader, writer)

    def asked_twice(self, method: str) -> asyncio.Event:
        """Return an event that is set when a method is called for the second time from now on."""
        self._twice, self._calls = (method, asyncio.Event()), 0
        return self._twice[1]

    def client(self, **changes: Any) -> FlytePlatform:
        settings = {"endpoint": self._script.endpoint, "project": "p", "domain": "d", "timeout": 5.0}
        return FlytePlatform(FlyteSettings(**(settings | changes)))


@pytest.fixture
def flyte(script: Script, monkeypatch: pytest.MonkeyPatch) -> Flyte:
    monkeypatch.setattr(retry, "retry_pause", lambda attempt, retry_after: 0.0)
    monkeypatch.setattr(platform, "WHY_PAUSE", 0.0)
    # A task that was read must not be kept for the next case.
    monkeypatch.setattr(tasks, "TASK_FRESH", 0.0)
    return Flyte(script)


def request() -> InvocationRequest:
    return InvocationRequest(
        invocation_source=InvocationSource.Manual,
        idempotency_id="once",
        parameter_values={"who": "ada", "each": ["a"], "any": "x", "dict": {}},
    )


async def first_of_events(flyte: FlytePlatform) -> None:
    async with flyte.events(EventFilter(), 0) as stream:
        async for told in stream:
            if isinstance(told, CaughtUp):
                return


SINCE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

#: Each method of a platform, and the calls of Flyte's whose answers it reads.
METHODS: dict[str, tuple[Callable[[FlytePlatform], Awaitable[Any]], list[str]]] = {
    "check": (lambda one: one.check(), ["ListRuns"]),
    "get_action": (lambda one: one.get_action("t"), ["ListTasks", "GetTaskDetails"]),
    "invoke": (lambda one: one.invoke("t", request()), ["ListTasks", "GetTaskDetails", "CreateRun"]),
    "get": (lambda one: one.get(RUN), ["GetRunDetails"]),
    "statuses": (lambda one: one.statuses([RUN]), ["ListRuns"]),
    "ended": (lambda one: one.ended([RUN]), ["ListRuns"]),
    "active": (lambda one: one.active(["once"]), ["ListRuns"]),
    "newest": (lambda one: one.newest("t", SINCE), ["ListRuns"]),
    "find_active": (lambda one: one.find_active(10), ["ListRuns", "GetRunDetails"]),
    "find": (lambda one: one.find("d", "r", "t", None), ["ListRuns", "GetRunDetails"]),
    "events": (first_of_events, ["ListRuns"]),
    "records": (lambda one: one.records([RUN]), ["GetRunDetails"]),
    "logs": (lambda one: one.logs(RUN), ["TailLogs", "GetRunDetails"]),
    "cancel": (lambda one: one.cancel(RUN), ["GetRunDetails"]),
    "outputs": (lambda one: one.outputs(RUN), ["GetActionData"]),
}


@pytest.mark.parametrize(
    ("method", "call"), [(method, call) for method, (_, calls) in METHODS.items() for call in calls]
)
async def test_a_wrong_shape_is_a_platform_error_or_no_error(flyte: Flyte, method: str, call: str) -> None:
    ask, _ = METHODS[method]
    if method == "invoke":
        flyte.rejected = {"GetRunDetails"}
    async with flyte.client() as client:
        await ask(client)
        for wrong in wrong_shapes_of(GOOD[call]):
            flyte.answers[call] = wrong
            with no_error_but_of_the_platform(wrong):
                await ask(client)


@contextmanager
def no_error_but_of_the_platform(wrong: Any) -> Iterator[None]:
    try:
        yield
    except PlatformError:
        pass
    except Exception as error:
        raise AssertionError(f"{error!r} for {json.dumps(wrong)}") from error


def test_every_method_is_tried() -> None:
    public = {name for name in vars(FlytePlatform) if not name.startswith("_")}
    assert public - set(METHODS) == {"name", "capabilities", "open", "close", "page_url", "watch"}


@pytest.mark.parametrize(
    "wrong", [{"details": 5}, {"details": {"action": {"status": {"phase": {}}}}}], ids=str
)
async def test_a_wrong_record_is_an_outage(flyte: Flyte, wrong: Any) -> None:
    flyte.answers["GetRunDetails"] = wrong
    async with flyte.client() as client:
        with pytest.raises(UnavailableError, match=r"does not match|in field"):
            await client.get(RUN)


async def test_one_wrong_run_hides_no_other_one(flyte: Flyte) -> None:
    flyte.answers["ListRuns"] = {"runs": [{"action": {"status": STATUS}}, *LISTED["runs"]]}
    async with flyte.client() as client:
        assert [one.invocation_id for one in await client.statuses([RUN])] == [RUN]


@pytest.mark.parametrize("call", ["ListRuns", "GetRunDetails"])
async def test_a_watch_that_asks_ends_with_no_error_of_pythons(
    flyte: Flyte, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    flyte.answers["ListRuns"] = {"runs": [with_status(QUEUED)]}
    async with flyte.client() as client:
        for wrong in wrong_shapes_of(GOOD[call]):
            flyte.answers[call] = wrong
            with no_error_but_of_the_platform(wrong):
                async with client.watch([RUN], {RUN: None}, None) as told:
                    async for one in told:
                        if isinstance(one, CaughtUp):
                            break
    assert "The watch failed" not in caplog.text


@pytest.mark.parametrize("call", ["WatchRuns", "TailLogs"])
async def test_a_watch_outlasts_what_its_streams_say(
    flyte: Flyte, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Streams are opened again at once.
    monkeypatch.setattr(watch, "backoff", lambda *_, **__: -0.2)
    monkeypatch.setattr(watch, "BROKEN_LOG_PAUSE", 0.0)
    running = with_status({"phase": "ACTION_PHASE_RUNNING", "startTime": NOON})
    flyte.answers |= {"ListRuns": {"runs": [running]}, "WatchRuns": {"runs": [running]}}
    good = flyte.answers[call]
    async with flyte.client() as client, client.watch([RUN], {RUN: None}, None) as told:

        async def hear() -> None:
            async for _ in told:
                pass

        heard = asyncio.create_task(hear())
        for wrong in wrong_shapes_of(good):
            flyte.answers[call] = wrong
            await first_of(flyte.asked_twice(call), heard)
        heard.cancel()
        await asyncio.gather(heard, return_exceptions=True)


def with_status(status: dict[str, Any]) -> dict[str, Any]:
    run = copy.deepcopy(LISTED["runs"][0])
    run["action"]["status"] = status
    return run


async def first_of(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Return once an event is set; raises what a task fails with before."""
    waiting = asyncio.create_task(event.wait())
    async with asyncio.timeout(10):
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    assert waiting.done()


@pytest.mark.parametrize(
    "wrong", [{"scopes": 5}, {"scopes": [5]}, {"audience": {}}, {"authorizationMetadataKey": 5}], ids=str
)
async def test_a_wrong_description_of_the_client_is_no_error_of_pythons(flyte: Flyte, wrong: Any) -> None:
    endpoint = flyte.client().where
    flyte.answers |= {
        "GetOAuth2Metadata": {"tokenEndpoint": f"{endpoint}/token"},
        "GetPublicClientConfig": wrong,
        "token": {"access_token": "t", "expires_in": 1e400},
    }
    async with flyte.client(client_id="c", secret="s") as client:
        with no_error_but_of_the_platform(wrong):
            await client.get(RUN)


@pytest.mark.parametrize("address", [5, "http://[", "x", "\0", {}], ids=repr)
async def test_a_wrong_address_of_tokens_is_a_platform_error(flyte: Flyte, address: Any) -> None:
    flyte.answers |= {"GetOAuth2Metadata": {"tokenEndpoint": address}, "GetPublicClientConfig": {}}
    async with flyte.client(client_id="c", secret="s") as client:
        with pytest.raises(PlatformError):
            await client.get(RUN)
