"""Read a job's log. Ray returns the whole text each time; a cursor is a number of characters."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from ...models import LogPage, LogProcess, LogRecord
from ..errors import InvalidRequestError
from ..http import TooLargeError
from .client import RayClient
from .jobs import STARTED
from .records import is_of_ray
from .settings import STATUSES

#: Lines of a page that isn't the last.
PAGE_LINES = 10_000


def offset_of(cursor: str | None) -> int:
    """Return the characters before a cursor. Raises InvalidRequestError."""
    if cursor is None:
        return 0
    if not cursor.isdecimal():
        raise InvalidRequestError(f"{cursor!r} is not a cursor of Ray's logs")
    return int(cursor)


async def page_of(client: RayClient, submission_id: str, cursor: str | None) -> LogPage:
    """Return the lines after a cursor. The last one is left out while it may still grow."""
    offset = offset_of(cursor)
    try:
        text = await client.log(submission_id)
        if not text.endswith("\n") and len(text) > offset and await _has_ended(client, submission_id):
            text = await client.log(submission_id) + "\n"
    except TooLargeError as error:
        raise InvalidRequestError(
            f"the log of job {submission_id} can't be read in one response, and Ray has no other: {error}"
        ) from None
    # The text after the last line feed isn't a line yet.
    lines = text[offset:].split("\n")[:-1]
    page = lines[:PAGE_LINES]
    read = offset + sum(len(line) + 1 for line in page)
    present = datetime.datetime.now(datetime.UTC)
    return LogPage(items=list(_records(page, present)), has_next=len(lines) > len(page), last_read=str(read))


async def _has_ended(client: RayClient, submission_id: str) -> bool:
    job = await client.job(submission_id)
    status = STATUSES.get(str(job.get("status")))
    return status is None or status.is_terminal


def _records(lines: list[str], present: datetime.datetime) -> Iterator[LogRecord]:
    for line in lines:
        if line.startswith(STARTED):
            continue
        process = LogProcess.Monitor if is_of_ray(line) else LogProcess.Action
        yield LogRecord(log=line.rstrip("\r"), process=process, timestamp=present)
