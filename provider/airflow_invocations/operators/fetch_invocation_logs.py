"""The operator that fetches an invocation's log into the task's log, an XCom or a file."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator

from ..action_log import ActionLog
from ..exceptions import RequestRejectedError, platform_task_error
from ..links import InvocationLink, InvocationLogsLink
from ..links.invocation import links_of
from ..models.text import counted, encodable
from ..platforms import Platform, PlatformError
from ..platforms.registry import DEFAULT_CONN_ID
from ..platforms.retry import retry_transient
from ..tasks.validation import task_label
from ..tasks.xcom import push_xcom, storable
from ._base import BaseInvocationOperator

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath, XComArg

    from ..hooks import InvocationHook
    from ..models import LogRecord

#: The default size of the lines in an XCom, in bytes; each of Airflow's databases can store this.
XCOM_BYTES = 48 * 1024

#: Protocols of an ObjectStoragePath on this machine.
_LOCAL = ("", "file", "local")

#: Seconds for which the platform may be unavailable.
_OUTAGE_LIMIT = 120.0


class FetchInvocationLogsOperator(BaseInvocationOperator, BaseOperator):
    """Fetch the present log of an invocation, which may still be running.

    The result (XCom) is a dict: invocation_id, count (lines fetched), left_out (lines that didn't fit into
    the XCom), lines (a list; None unless `destination` is "xcom"), path (a string; None unless it is a file).
    A long line that the platform stores in parts is joined, except in the task's log. In the XCom, U+FFFD
    replaces U+0000 and lone surrogates, which Airflow's database rejects; a file keeps them.

    :param invocation_id: an id, or an operator's result. (templated)
    :param destination: "log" (the task's log), "xcom", or the file to write: an ObjectStoragePath, or its
        URL, such as "s3://aws_default@bucket/{{ run_id }}.log". Missing local folders are created.
        (templated)
    :param tail: the number of lines from the end; None for all lines.
    :param max_bytes: the size limit of the lines in the XCom, as JSON; the last lines are kept.
    :param conn_id: the Airflow connection. (templated)
    :raises ValueError: when the DAG is parsed, for invalid arguments; the message names the task.
    :raises InvocationLostError: the platform doesn't know the invocation.
    :raises RequestRejectedError: the platform keeps no logs, or rejects the request.
    """

    template_fields: Sequence[str] = ("invocation_id", "destination", "conn_id")
    operator_extra_links = (InvocationLink(), InvocationLogsLink())
    ui_color = "#e3f1ee"

    _checked = ("invocation_id", "conn_id", "tail", "max_bytes", "destination")

    def __init__(
        self,
        *,
        invocation_id: str | dict[str, Any] | XComArg,
        destination: str | ObjectStoragePath = "log",
        tail: int | None = None,
        max_bytes: int = XCOM_BYTES,
        conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.invocation_id = invocation_id
        self.destination = destination
        self.tail = tail
        self.max_bytes = max_bytes
        self.conn_id = conn_id
        self.invocation_url: str | None = None
        self.logs_url: str | None = None
        self._check()

    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch the lines that exist now."""
        values = self._read()
        invocation_id: str = values["invocation_id"]
        hook = self._hook()
        if not hook.get_conn().capabilities.logs:
            raise RequestRejectedError(
                f"{task_label(self)}: the platform of connection {self.conn_id!r} keeps no logs"
            )
        self.invocation_url, self.logs_url = hook.url(invocation_id), hook.logs_url(invocation_id)
        for key, url in links_of(self).items():
            push_xcom(context["ti"], key, url)
        result: dict[str, Any] = {
            "invocation_id": invocation_id, "count": 0, "left_out": 0, "lines": None, "path": None
        }  # fmt: skip
        try:
            if self.destination == "log":
                result["count"] = self._show(hook, invocation_id)
            elif self.destination == "xcom":
                lines, result["left_out"] = self._last_that_fit(hook, invocation_id)
                result |= {"lines": lines, "count": len(lines)}
            else:
                result |= {"path": str(self.destination), "count": self._write(hook, invocation_id)}
        except PlatformError as error:
            what = f"invocation {invocation_id}: could not fetch the log"
            raise platform_task_error(
                error, what, invocation_id=invocation_id, url=self.invocation_url
            ) from error
        self.log.info("Fetched %s of invocation %s", counted(result["count"], "line"), invocation_id)
        return cast("dict[str, Any]", storable(result))

    def _show(self, hook: InvocationHook, invocation_id: str) -> int:
        log = ActionLog(self.logs_url or "")

        async def show(platform: Platform) -> int:
            count = 0
            if self.tail is None:
                async for records in _records(platform, invocation_id):
                    await log.show_page(records)
                    count += len(records)
                return count
            last: deque[LogRecord] = deque(maxlen=self.tail)
            async for records in _records(platform, invocation_id):
                last += records
            await log.show_page(list(last))
            return len(last)

        return hook.ask(show)

    def _last_that_fit(self, hook: InvocationHook, invocation_id: str) -> tuple[list[str], int]:
        """Return the last lines within `max_bytes`, and the number of lines that were left out."""
        kept: deque[str] = deque()
        size = 0

        def keep(line: str) -> None:
            nonlocal size
            kept.append(line)
            size += _bytes_in_xcom(line)
            while size > self.max_bytes:
                size -= _bytes_in_xcom(kept.popleft())

        total = hook.ask(lambda platform: _each_line(platform, invocation_id, keep))
        wanted = total if self.tail is None else min(total, self.tail)
        lines = list(kept)[max(0, len(kept) - wanted) :]
        return lines, wanted - len(lines)

    def _write(self, hook: InvocationHook, invocation_id: str) -> int:
        from airflow.sdk import ObjectStoragePath

        path = self.destination
        if not isinstance(path, ObjectStoragePath):
            path = ObjectStoragePath(path)
        if path.protocol in _LOCAL:  # object stores have no folders to create
            path.parent.mkdir(parents=True, exist_ok=True)
        last: deque[str] = deque(maxlen=self.tail)
        with ExitStack() as until_written:
            file: Any = None

            def write(line: str) -> None:
                # Opened with the first line: a log that can't be read leaves an earlier try's file unchanged.
                nonlocal file
                if file is None:
                    file = until_written.enter_context(path.open("w", encoding="utf-8"))  # type: ignore[no-untyped-call]
                file.write(f"{line}\n")

            take = write if self.tail is None else last.append
            count = hook.ask(lambda platform: _each_line(platform, invocation_id, take))
            for line in last:
                write(line)
        if count == 0:
            path.write_text("")
        return count if self.tail is None else len(last)


def _bytes_in_xcom(line: str) -> int:
    """Return the size of a line in a JSON list: quoted and escaped, with a comma and a space."""
    return len(json.dumps(encodable(line))) + 2


async def _records(platform: Platform, invocation_id: str) -> AsyncIterator[list[LogRecord]]:
    """Yield the pages of records that exist now; retry outages."""
    cursor: str | None = None
    has_next = True
    while has_next:
        page = await retry_transient(partial(platform.logs, invocation_id, cursor), _OUTAGE_LIMIT)
        cursor = page.last_read if page.last_read is not None else cursor
        has_next = page.has_next
        yield page.items


async def _each_line(platform: Platform, invocation_id: str, take: Callable[[str], object]) -> int:
    """Call `take` with each line, after joining the parts of long ones; return the number of lines."""
    parts: list[str] = []
    open_id: str | None = None
    count = 0
    async for records in _records(platform, invocation_id):
        for record in records:
            if parts and (record.partial_id is None or record.partial_id != open_id):
                take("".join(parts))
                count += 1
                parts = []
            parts.append(record.log)
            open_id = record.partial_id
    if parts:
        take("".join(parts))
        count += 1
    return count
