"""Responses with the content of a file, whole or a range of it (RFC 9110, section 14)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...models.dataset import FileRecord
from ..datasets import DatasetFiles
from ..errors import RangeError

#: Bytes of one chunk of a file's content.
_CHUNK = 256 * 1024

#: One range: from a byte to a byte, from a byte on, or the last bytes.
_RANGE = re.compile(r"bytes\s*=\s*(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))\s*")


def content_response(
    request: Request,
    datasets: DatasetFiles,
    record: FileRecord,
    media_type: str,
    headers: Mapping[str, str],
) -> Response:
    """Return a file's content, or the one range of it that the request's Range header names.

    Several ranges at once are answered with the whole content, which RFC 9110 allows.

    :raises RangeError: the range begins behind the file's end.
    """
    span = byte_range(request.headers.get("range"), record.size)
    begin, end = span or (0, record.size)
    given = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(end - begin)}
    if span is not None:
        given["Content-Range"] = f"bytes {begin}-{end - 1}/{record.size}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, media_type=media_type, headers=given)
    content = _content(datasets, record, begin, end)
    return StreamingResponse(content, status_code=status, media_type=media_type, headers=given)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte of a range and the byte after its last; None: the whole content.

    :param header: the value of a Range header. One that can't be read is ignored, as RFC 9110 requires.
    :param size: bytes of the content.
    :raises RangeError: no byte is in the range.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = (None if part is None else int(part) for part in match.groups())
    if first is None:
        begin, end = max(0, size - (suffix or 0)), size
    else:
        begin, end = first, size if last is None else min(last + 1, size)
        if last is not None and last < first:
            return None
    if begin >= end:
        raise RangeError(f"the range {header!r} has no byte of this file, which has {size} bytes", size)
    return begin, end


def _content(datasets: DatasetFiles, record: FileRecord, begin: int, end: int) -> Iterator[bytes]:
    with datasets.content(record) as file:
        while begin < end and (part := os.pread(file, min(end - begin, _CHUNK), begin)):
            begin += len(part)
            yield part
