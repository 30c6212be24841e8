"""What platforms asked over HTTP have in common: TLS, errors, limits of answers, and Retry-After."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from .base import InvalidRequestError, PlatformError, UnavailableError

#: Bytes of an answer, unpacked, and seconds in which all of it has to be here.
MAX_ANSWER = 64 * 1024 * 1024
MAX_ANSWER_TIME = 300.0

#: How answers may be packed. Each packing once: packed twice, a kilobyte makes a gigabyte.
_PACKINGS = ("", "identity", "gzip", "deflate")
ACCEPT_ENCODING = "gzip, deflate"

#: What is raised for a request that can't be sent, whatever the platform does.
UNSENDABLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeEncodeError)
#: What is raised for a request that brought no answer, for that or another reason.
NO_ANSWER = (httpx.RequestError, *UNSENDABLE)


class TooLargeError(UnavailableError):
    """An answer is larger than MAX_ANSWER."""


def tls_for(endpoint: str, verify: bool | str) -> ssl.SSLContext | bool:
    """What httpx is to verify certificates with; nothing is loaded where there are none to verify.

    `verify`: True, False, or the path of a CA bundle.
    """
    return _tls(verify) if endpoint.lower().startswith("https:") else False


@functools.lru_cache(maxsize=8)
def _tls(verify: bool | str) -> ssl.SSLContext | bool:
    if verify is False:
        return False
    return ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)


def request_error(endpoint: str, error: Exception) -> PlatformError:
    """Return the error of a request that brought no answer.

    A request that can't be sent is a mistake in the connection, not an outage. What is wrong with it isn't
    quoted: httpx shows the header that it refuses, which may be the token.
    """
    if isinstance(error, UNSENDABLE):
        return InvalidRequestError(
            f"a request to {endpoint} can't be sent ({type(error).__name__}): correct the connection's host, "
            "login, password and extra"
        )
    return UnavailableError(f"{endpoint} can't be reached: {str(error) or type(error).__name__}")


def cause_of(error: Exception) -> Exception | None:
    """Return what an error of `request_error` may name as its cause: nothing that shows a header."""
    return None if isinstance(error, UNSENDABLE) else error


async def chunks_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body of an open answer, unpacked, a few MB at a time at most.

    :raises UnavailableError: it is packed in a way that was not asked for.
    """
    packing = answer.headers.get("content-encoding", "").strip().lower()
    if packing not in _PACKINGS:
        raise UnavailableError(f"{answer.request.url.host} packs its answer as {packing!r}, unasked")
    async for chunk in answer.aiter_bytes():
        yield chunk


async def body_of(answer: httpx.Response) -> bytes:
    """Return the body of an open answer.

    :raises TooLargeError: it is larger than MAX_ANSWER.
    :raises UnavailableError: it takes longer than MAX_ANSWER_TIME, or is packed in a way not asked for.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_ANSWER_TIME):
            async for chunk in chunks_of(answer):
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise TooLargeError(
                        f"{answer.request.url.host} answers {answer.request.url.path} with more than "
                        f"{MAX_ANSWER:,} bytes"
                    )
    except TimeoutError:
        raise UnavailableError(
            f"{answer.request.url.host} takes longer than {MAX_ANSWER_TIME:g} s to answer"
        ) from None
    return bytes(body)


def json_of(content: bytes | str) -> Any:
    """Return the JSON in a text. Raises ValueError, also for what is nested too deep."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def retry_after_of(answer: httpx.Response) -> float | None:
    """Seconds that the answer asks us to wait: a number, or a date."""
    value = answer.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
