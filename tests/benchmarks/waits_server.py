"""A server in memory for thousands of waits of any provider.

It has the part of the invocation API that a wait needs (one invocation, the batched query, logs; the watch
stream is the local server's own code over a store in memory), dbt Cloud's run status, and plain GETs for the
http provider's sensor. It counts requests, ends invocations on request, and records the times. Run as a
module it prints its port and serves until SIGTERM; `--without-watch`: as a platform that can't push.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import operator
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pydantic

from airflow_invocations.models import InvocationRecord, InvocationStatus, LogPage
from airflow_invocations.server.api.schemas import ChangeWatchBody, OpenWatchBody
from airflow_invocations.server.api.sse import server_sent_events
from airflow_invocations.server.db import LOCAL_ORG, CheckedInvocation, StatusEvent, Store
from airflow_invocations.server.errors import ApiError, InvalidRequestError, NotFoundError
from airflow_invocations.server.execution.logs import LogFiles
from airflow_invocations.server.watch import Watch
from airflow_invocations.server.watch_hub import WatchHub

INVOCATIONS = "/v1/actions/invocations/"
WATCH = "/v1/actions/invocations/watch"
DBT_RUNS = "/api/v2/accounts/1/runs/"
PLAIN = "/http/"
CONTROL = "/control/"

#: Statuses of dbt Cloud (DbtCloudJobRunStatus of its provider).
_DBT_RUNNING, _DBT_SUCCESS = 3, 10

_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "EQUALS": operator.eq,
    "NOT_EQUALS": operator.ne,
    "GREATER_THAN": operator.gt,
    "GREATER_THAN_OR_EQUAL": operator.ge,
    "LESS_THAN": operator.lt,
    "LESS_THAN_OR_EQUAL": operator.le,
}

Stream = AsyncIterator[bytes]


def invocation_id_of(number: int) -> str:
    """Return the id of the invocation that is run `number` of dbt Cloud."""
    return f"iv_{number:016x}"


def number_of(invocation_id: str) -> int:
    """Return the number in an id. Raises ValueError."""
    return int(invocation_id.removeprefix("iv_"), 16)


class Invocations:
    """Invocations that are Processing until they are ended, with the part of a Store that watches need."""

    def __init__(self, count: int) -> None:
        self.ids = frozenset(invocation_id_of(number) for number in range(count))
        #: End of each ended invocation, in seconds since 1970.
        self.ended: dict[str, float] = {}
        self._events: list[StatusEvent] = []
        self._began = time.time()
        self._records = {
            status: _record(status) for status in (InvocationStatus.Processing, InvocationStatus.Completed)
        }

    def end(self, invocation_id: str) -> StatusEvent:
        """Complete an invocation."""
        self.ended[invocation_id] = time.time()
        event = self._event(len(self._events) + 1, invocation_id)
        self._events.append(event)
        return event

    def status(self, invocation_id: str) -> InvocationStatus:
        """Return an invocation's status. Raises NotFoundError."""
        if invocation_id not in self.ids:
            raise NotFoundError(f"there is no invocation {invocation_id!r}")
        return InvocationStatus.Completed if invocation_id in self.ended else InvocationStatus.Processing

    def record(self, invocation_id: str) -> bytes:
        """Return an invocation as JSON."""
        return self._records[self.status(invocation_id)].replace(b"iv_0", invocation_id.encode())

    def matching(self, condition: dict[str, Any] | None) -> Collection[str]:
        """Return the ids that meet a query's condition. Raises InvalidRequestError for other queries."""
        match condition:
            case None:
                return self.ids
            case {"operator": "AND", "conditions": [*conditions]}:
                return set.intersection(*(set(self.matching(each)) for each in conditions))
            case {"operator": "OR", "conditions": [*conditions]}:
                return set().union(*(self.matching(each) for each in conditions))
            case {"field": "invocation_id", "comparator": "EQUALS", "value": str(invocation_id)}:
                return [invocation_id] if invocation_id in self.ids else []
            case {"field": "last_status", "comparator": str(comparator), "value": int(value)} if (
                comparator in _COMPARED
            ):
                compared = _COMPARED[comparator]
                running = compared(InvocationStatus.Processing.value, value)
                completed = compared(InvocationStatus.Completed.value, value)
                if completed and not running:  # the few queries of waits
                    return self.ended.keys()
                return [each for each in self.ids if (completed if each in self.ended else running)]
        raise InvalidRequestError(f"this server doesn't speak {condition!r}")

    # -- called by WatchHub, in its threads -------------------------------------------------------------

    def last_number(self) -> int:
        return len(self._events)

    def latest(self, ids: Iterable[str], _: str) -> list[StatusEvent]:
        return [self._event(0, each) for each in ids if each in self.ids]

    def since(self, number: int, _: str, limit: int) -> list[StatusEvent]:
        return self._events[number : number + limit]

    def check_many(self, ids: Iterable[str], org_id: str) -> dict[str, CheckedInvocation]:
        return {each: CheckedInvocation(each, org_id) for each in ids if each in self.ids}

    def _event(self, number: int, invocation_id: str) -> StatusEvent:
        return StatusEvent(
            number=number,
            invocation_id=invocation_id,
            org_id=LOCAL_ORG,
            action_name="bench",
            root_id=invocation_id,
            attempt=1,
            status=self.status(invocation_id),
            detail=None,
            timestamp=int(self.ended.get(invocation_id, self._began) * 1e6),
        )


class _NoLogs:
    """The logs of actions without output."""

    def read(self, _: CheckedInvocation, cursor: str | None, __: int) -> LogPage:
        return LogPage(items=[], has_next=False, last_read=cursor)


class Server:
    """Serves requests, and counts those that aren't about the benchmark."""

    def __init__(self, invocations: Invocations, *, with_watch: bool) -> None:
        self._invocations = invocations
        self._with_watch = with_watch
        # No watch of the benchmark selects states.
        store = cast(Store, SimpleNamespace(events=invocations, invocations=invocations))
        self._watches = WatchHub(store, cast(LogFiles, _NoLogs()), lambda _: True)
        self._requests = 0
        #: Invocations that have been requested at least once.
        self._asked: set[str] = set()
        self._to_end = 0

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one kept-alive connection until its client closes it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.partition(b"\r\n")[0].decode().split(" ")
                length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                status, answer = await self._answer(method, path.partition("?")[0], body)
                if isinstance(answer, bytes):
                    writer.write(
                        b"HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                        % (status, len(answer), answer)
                    )
                    await writer.drain()
                else:
                    await _stream_until_left(answer, reader, writer)
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes | Stream]:
        try:
            if path.startswith(CONTROL):
                return 200, self._control(path.removeprefix(CONTROL), body)
            self._requests += 1
            if path.startswith(DBT_RUNS):
                return 200, self._dbt_run(int(path.removeprefix(DBT_RUNS).strip("/")))
            if path.startswith(PLAIN):
                return (200 if self._is_over(path.removeprefix(PLAIN)) else 404), b"{}"
            if path.startswith(WATCH) and self._with_watch:
                return 200, await self._watch(method, path.removeprefix(WATCH).strip("/"), body)
            if path.startswith(INVOCATIONS):
                return 200, self._invocation(method, path.removeprefix(INVOCATIONS), body)
            raise NotFoundError("there is no such endpoint in this service")
        except ApiError as error:
            return error.status, json.dumps(error.body()).encode()
        except (ValueError, pydantic.ValidationError) as error:
            return 400, json.dumps(InvalidRequestError(str(error)).body()).encode()

    # -- the three APIs --------------------------------------------------------------------------------

    def _invocation(self, method: str, path: str, body: bytes) -> bytes:
        match method, path.split("/"):
            case "GET", [invocation_id]:
                self._asked.add(invocation_id)
                return b'{"data":%b}' % self._invocations.record(invocation_id)
            case "GET", [invocation_id, "logs", "stream"]:
                self._invocations.status(invocation_id)
                return b'{"data":{"items":[],"has_next":false,"last_read":"0"}}'
            case "POST", ["query"]:
                return self._query(json.loads(body))
        raise NotFoundError("there is no such endpoint in this service")

    def _query(self, specification: dict[str, Any]) -> bytes:
        condition = specification.get("condition")
        self._asked |= set(_named(condition))
        found = sorted(self._invocations.matching(condition))
        start, limit = int(specification.get("after") or 0), int(specification.get("limit") or 1000)
        page = b",".join(self._invocations.record(each) for each in found[start : start + limit])
        following = b'"%d"' % (start + limit) if start + limit < len(found) else b"null"
        return b'{"data":{"items":[%b],"next_token":%b}}' % (page, following)

    async def _watch(self, method: str, watch_id: str, body: bytes) -> bytes | Stream:
        if method == "POST" and not watch_id:
            asked = OpenWatchBody.model_validate_json(body)
            ids = None if asked.ids is None else set(asked.ids)
            self._asked |= ids or set()
            watch = Watch(org_id=LOCAL_ORG, ids=ids, cursors=dict(asked.logs))
            return server_sent_events(self._watches.stream(watch, asked.since))
        if method == "PATCH":
            change = ChangeWatchBody.model_validate_json(body)
            self._asked |= set(change.add)
            count = self._watches.shrink(watch_id, LOCAL_ORG, change.remove)
            if change.add or change.logs:
                count = await self._watches.extend(watch_id, LOCAL_ORG, change.add, change.logs)
            return b'{"data":{"watching":%d}}' % count
        raise NotFoundError("there is no such endpoint in this service")

    def _dbt_run(self, number: int) -> bytes:
        over = self._is_over(invocation_id_of(number))
        run = {
            "id": number,
            "account_id": 1,
            "status": _DBT_SUCCESS if over else _DBT_RUNNING,
            "status_humanized": "Success" if over else "Running",
            "is_complete": over,
            "in_progress": not over,
        }
        return json.dumps({"status": {"code": 200, "is_success": True}, "data": run}).encode()

    def _is_over(self, invocation_id: str) -> bool:
        self._asked.add(invocation_id)
        return self._invocations.status(invocation_id).is_terminal

    # -- requests of the benchmark ---------------------------------------------------------------------

    def _control(self, what: str, body: bytes) -> bytes:
        if what == "end":
            order = json.loads(body)
            loop = asyncio.get_running_loop()
            for invocation_id in order["ids"]:
                loop.call_later(random.uniform(0, order["seconds"]), self._end, invocation_id)
                self._to_end += 1
        return json.dumps(
            {
                "requests": self._requests,
                "asked": len(self._asked),
                "to_end": self._to_end,
                "ended": self._invocations.ended if what == "ended" else {},
            }
        ).encode()

    def _end(self, invocation_id: str) -> None:
        self._to_end -= 1
        self._watches.committed([self._invocations.end(invocation_id)])


def _named(condition: Any) -> Iterator[str]:
    """Return the ids in a query."""
    match condition:
        case {"conditions": [*conditions]}:
            for each in conditions:
                yield from _named(each)
        case {"field": "invocation_id", "value": str(invocation_id)}:
            yield invocation_id


def _record(status: InvocationStatus) -> bytes:
    """Return an invocation as the platform does, with an id to replace."""
    steps = [each for each in InvocationStatus if each <= min(status, InvocationStatus.Completed)]
    return (
        InvocationRecord.model_validate(
            {
                "invocation_id": "iv_0",
                "created": "2026-01-01T00:00:00Z",
                "data_source": {},
                "compute_requirements": {"vCPU": 512, "memory": 1024, "storage": 21},
                "container_parameters": {"command": ["true"]},
                "last_status": status.value,
                "status": [
                    {"status": each.value, "timestamp": f"2026-01-01T00:00:0{place}Z"}
                    for place, each in enumerate(steps)
                ],
                "org_id": LOCAL_ORG,
                "provenance": {
                    "action": {"name": "bench", "org_id": LOCAL_ORG, "digest": "0" * 64},
                    "executable": {},
                    "source": {"source_type": "Manual", "source_id": "benchmark"},
                },
                "timeout": 720,
            }
        )
        .model_dump_json()
        .encode()
    )


async def _stream_until_left(
    stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Write a stream in chunks until it ends or its reader disconnects."""

    async def write() -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        async for part in stream:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    writing = asyncio.create_task(write())
    hung_up = asyncio.create_task(reader.read(1))
    await asyncio.wait({writing, hung_up}, return_when=asyncio.FIRST_COMPLETED)
    for task in (writing, hung_up):
        task.cancel()
    await asyncio.gather(writing, hung_up, return_exceptions=True)


async def serve(count: int, *, with_watch: bool) -> None:
    """Print the port, and serve a number of invocations."""
    server = Server(Invocations(count), with_watch=with_watch)
    # The protocol is given, because asyncio else leaves Nagle's algorithm on.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        serving = await asyncio.start_server(server.serve_connection, sock=listener, backlog=4096)
        print(listener.getsockname()[1], flush=True)
        await serving.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.waits_server", description=__doc__)
    parser.add_argument("count", type=int, help="invocations that there are")
    parser.add_argument("--without-watch", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.count, with_watch=not options.without_watch))


if __name__ == "__main__":
    main()
