"""The commands `invocations events` and `invocations tree`, which query a running local server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from .common import Commands, add_command, add_data_dir, add_json, fail, format_rows


def add_events(commands: Commands) -> None:
    """Add `invocations events`."""
    parser = add_command(
        commands,
        "events",
        purpose="list the status changes of an invocation by attempt",
        description="List every status change of an invocation with its attempt, time and reason. The local "
        "server must be running.",
        example="invocations events iv_0123456789abcdef --attempt 2",
        needs_server=False,
    )
    _add_invocation(parser)
    parser.add_argument(
        "--attempt", type=int, metavar="N", help="only this attempt, counted from 1 (default: all)"
    )
    parser.set_defaults(run=_events)


def add_tree(commands: Commands) -> None:
    """Add `invocations tree`."""
    parser = add_command(
        commands,
        "tree",
        purpose="show an invocation and everything that it has invoked",
        description="Show an invocation and everything that it has invoked, at any depth, with statuses. The "
        "local server must be running.",
        example="invocations tree iv_0123456789abcdef",
        needs_server=False,
    )
    _add_invocation(parser)
    parser.set_defaults(run=_tree)


def _add_invocation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("invocation_id", metavar="ID", help="the invocation's id")
    add_data_dir(parser)
    add_json(parser)


def _events(options: argparse.Namespace) -> int:
    from ..models import InvocationStatus

    def row(event: Mapping[str, Any]) -> dict[str, str | None]:
        return {
            "attempt": str(event["attempt"]),
            "status": str(InvocationStatus(event["status"])),
            "timestamp": event["timestamp"],
            "exit_code": None if event["exit_code"] is None else str(event["exit_code"]),
            "detail": event["detail"],
        }

    query = {} if options.attempt is None else {"attempt": str(options.attempt)}
    return _show(options, "events", query, row)


def _tree(options: argparse.Namespace) -> int:
    from ..models import InvocationRecord

    def row(item: Mapping[str, Any]) -> dict[str, str | None]:
        record = InvocationRecord.model_validate(item["invocation"])
        return {
            "action": "  " * item["depth"] + record.provenance.action.name,
            "invocation_id": record.invocation_id,
            "status": str(record.last_status),
            "created": f"{record.created:%Y-%m-%dT%H:%M:%SZ}",
            "detail": record.current.detail,
        }

    return _show(options, "tree", {}, row)


def _show(
    options: argparse.Namespace,
    resource: str,
    query: Mapping[str, str],
    row: Callable[[Mapping[str, Any]], dict[str, str | None]],
) -> int:
    """Print a resource of the invocation, as JSON or as a table with a row for each item."""
    import httpx

    from ..invocation_api import ApiError, ApiRequest, client_headers, read_data, unanswered

    # The server writes this file when it accepts requests, and removes it when it stops.
    announcement = options.data_dir / "server.json"
    try:
        server = json.loads(announcement.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return fail(options, f"no server is running on {options.data_dir}; start one (invocations serve)")
    path = f"v1/actions/invocations/{quote(options.invocation_id, safe='')}/{resource}"
    request = ApiRequest("GET", path, query)
    headers = client_headers(server["token"])
    try:
        with httpx.Client(base_url=server["endpoint"], headers=headers, trust_env=False) as client:
            response = client.send(request.build(client))
            items = read_data(response, response.content)["items"]
    except ApiError as error:
        return fail(options, str(error))
    except httpx.RequestError as error:
        return fail(options, str(unanswered(server["endpoint"], error)))
    rows = items if options.json else [row(item) for item in items]
    sys.stdout.writelines(f"{line}\n" for line in format_rows(options, rows))
    return 0
