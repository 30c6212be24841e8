"""The commands that query a running local server: `invocations list`, `watch`, `tree` and `events`."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from .common import Commands, add_command, add_data_dir, add_json, fail, format_rows

if TYPE_CHECKING:
    from ..models import InvocationEvent, InvocationRecord
    from ..platforms.roboto.client import RobotoClient

Row = dict[str, str | None]

#: What these commands can't query.
_LOCAL_ONLY = (
    "It queries the local server that runs on this machine with the given data folder. Roboto, Flyte, "
    "pynenc and Ray have no such query; with their connections, use InvocationHook in Python."
)
_INVOCATIONS = "v1/actions/invocations"


def add_list(commands: Commands) -> None:
    """Add `invocations list`."""
    parser = _add_query(
        commands,
        "list",
        purpose="list the newest invocations",
        description="List the newest invocations that no other invocation has started.",
        example="invocations list --since 2026-11-30T06:00 --limit 20",
    )
    for option, created in (
        ("--since", "created at this time or later"),
        ("--until", "created before this time"),
    ):
        parser.add_argument(
            option, type=_time, metavar="TIME", help=f"{created}, for example 2026-11-30T06:00 (UTC)"
        )
    parser.add_argument(
        "--limit", type=_limit, default=100, metavar="N", help="how many at most, up to 1000 (default: 100)"
    )
    add_json(parser)
    parser.set_defaults(run=_list)


def add_watch(commands: Commands) -> None:
    """Add `invocations watch`."""
    parser = _add_query(
        commands,
        "watch",
        purpose="print the status changes of an invocation and of what it invokes",
        description="Print the statuses of an invocation and of everything that it has invoked, and each "
        "change until all of them have ended.",
        example="invocations watch iv_0123456789abcdef",
    )
    parser.add_argument(
        "invocation_id", metavar="ID", help="an invocation that no other invocation has started"
    )
    parser.set_defaults(run=_watch)


def add_tree(commands: Commands) -> None:
    """Add `invocations tree`."""
    parser = _add_query(
        commands,
        "tree",
        purpose="show an invocation and everything that it has invoked",
        description="Show an invocation and everything that it has invoked, at any depth, with statuses.",
        example="invocations tree iv_0123456789abcdef",
    )
    parser.add_argument("invocation_id", metavar="ID", help="the invocation's id")
    add_json(parser)
    parser.set_defaults(run=_tree)


def add_events(commands: Commands) -> None:
    """Add `invocations events`."""
    parser = _add_query(
        commands,
        "events",
        purpose="list the status changes of an invocation by attempt",
        description="List every status change of an invocation with its attempt, time and reason.",
        example="invocations events iv_0123456789abcdef --attempt 2",
    )
    parser.add_argument("invocation_id", metavar="ID", help="the invocation's id")
    parser.add_argument(
        "--attempt", type=int, metavar="N", help="only this attempt, counted from 1 (default: all)"
    )
    add_json(parser)
    parser.set_defaults(run=_events)


def _add_query(
    commands: Commands, name: str, *, purpose: str, description: str, example: str
) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        name,
        purpose=purpose,
        description=f"{description} {_LOCAL_ONLY}",
        example=example,
        extra=None,
    )
    add_data_dir(parser)
    return parser


def _time(text: str) -> str:
    """Return a time in the API's format; one without a zone is in UTC."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; use ISO 8601") from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).isoformat()


def _limit(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000")
    return int(text)


def _list(options: argparse.Namespace) -> int:
    given = {"since": options.since, "until": options.until, "limit": str(options.limit)}
    query = {name: value for name, value in given.items() if value is not None}
    return _print_items(options, f"{_INVOCATIONS}/roots", query, lambda item: _record_row(_record(item)))


def _tree(options: argparse.Namespace) -> int:
    def row(item: Mapping[str, Any]) -> Row:
        return _record_row(_record(item["invocation"]), depth=item["depth"])

    return _print_items(options, _path(options, "tree"), {}, row)


def _events(options: argparse.Namespace) -> int:
    from ..models import InvocationStatus

    def row(event: Mapping[str, Any]) -> Row:
        return {
            "attempt": str(event["attempt"]),
            "status": str(InvocationStatus(event["status"])),
            "timestamp": event["timestamp"],
            "exit_code": None if event["exit_code"] is None else str(event["exit_code"]),
            "detail": event["detail"],
        }

    query = {} if options.attempt is None else {"attempt": str(options.attempt)}
    return _print_items(options, _path(options, "events"), query, row)


def _watch(options: argparse.Namespace) -> int:
    async def watch(client: RobotoClient) -> str | None:
        from ..models import CaughtUp, InvocationEvent
        from ..platforms.roboto.watch import RobotoWatch

        statuses: dict[str, bool] = {}  # whether each invocation of the tree is terminal
        async with client.stream({"root": options.invocation_id}) as answer:
            async for message in RobotoWatch(client, answer, None):
                if isinstance(message, CaughtUp):  # changes from here on are in the stream
                    tree = (await client.call("GET", _path(options, "tree")))["items"]
                    starter = _record(tree[0]["invocation"]).provenance.source.source_id
                    if starter.startswith("iv_"):
                        return f"{options.invocation_id} was started by {starter}; watch that one"
                    for record in (_record(item["invocation"]) for item in tree):
                        statuses[record.invocation_id] = record.last_status.is_terminal
                        _print_change(record)
                elif isinstance(message, InvocationEvent):
                    statuses[message.invocation_id] = message.status.is_terminal
                    _print_change(message)
                if statuses and all(statuses.values()):
                    return None
        return None

    return _run(options, watch)


def _print_change(change: InvocationRecord | InvocationEvent) -> None:
    from ..models import InvocationEvent

    if isinstance(change, InvocationEvent):
        at, status, action, detail = change.at, change.status, change.action, change.detail
    else:
        current = change.current
        at, status, detail = current.timestamp, current.status, current.detail
        action = change.provenance.action.name
    line = f"{at:%Y-%m-%dT%H:%M:%SZ}  {change.invocation_id}  {action}  {status}  {detail or ''}"
    sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def _record(item: Any) -> InvocationRecord:
    from ..models import InvocationRecord

    return InvocationRecord.model_validate(item)


def _record_row(record: InvocationRecord, depth: int = 0) -> Row:
    return {
        "action": "  " * depth + record.provenance.action.name,
        "invocation_id": record.invocation_id,
        "status": str(record.last_status),
        "created": f"{record.created:%Y-%m-%dT%H:%M:%SZ}",
        "detail": record.current.detail,
    }


def _path(options: argparse.Namespace, resource: str) -> str:
    from ..platforms.roboto.client import invocation_path

    return f"{invocation_path(options.invocation_id)}/{resource}"


def _print_items(
    options: argparse.Namespace,
    path: str,
    query: dict[str, str],
    row: Callable[[Mapping[str, Any]], Row],
) -> int:
    """Print the items of a resource, as JSON or as a table with a row for each."""

    async def show(client: RobotoClient) -> None:
        items = (await client.call("GET", path, query=query))["items"]
        rows = items if options.json else [row(item) for item in items]
        sys.stdout.writelines(f"{line}\n" for line in format_rows(options, rows))

    return _run(options, show)


def _run(options: argparse.Namespace, query: Callable[[RobotoClient], Awaitable[str | None]]) -> int:
    """Run a query on the local server; it returns why it failed, or None."""
    from ..platforms.errors import PlatformError
    from ..platforms.roboto.client import RobotoClient, RobotoSettings

    # The server writes this file when it accepts requests, and removes it when it stops.
    announcement = options.data_dir / "server.json"
    try:
        server = json.loads(announcement.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return fail(options, f"no server is running on {options.data_dir}; start one (invocations serve)")

    os.environ["NO_PROXY"] = "*"  # the server is on this machine

    async def run() -> str | None:
        client = RobotoClient(RobotoSettings(server["endpoint"], server["token"]))
        await client.pool.open()
        try:
            return await query(client)
        finally:
            await client.pool.close()

    try:
        problem = asyncio.run(run())
    except PlatformError as error:
        problem = str(error)
    except KeyboardInterrupt:
        return 130
    return 0 if problem is None else fail(options, problem)
