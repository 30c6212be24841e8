"""Shared parts of the HTTP platforms: TLS, errors and response limits."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator

import httpx

from .errors import InvalidRequestError, PlatformError, UnavailableError

#: Largest decompressed response in bytes, and seconds within which it has to be complete.
MAX_ANSWER = 64 * 1024 * 1024
MAX_ANSWER_TIME = 300.0

#: Accepted encodings, one at a time: with two of them a kilobyte could expand to a gigabyte.
_PACKINGS = ("", "identity", "gzip", "deflate")
ACCEPT_ENCODING = "gzip, deflate"

#: Exceptions for a request that can't be sent, whatever the platform does.
UNSENDABLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeEncodeError)
#: Exceptions for a request that got no response, for that or another reason.
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
    """Return the error of a request that got no response.

    A request that can't be sent is a mistake in the connection, not an outage. Its error isn't quoted,
    because httpx quotes the header that it rejects, which may contain the token.
    """
    if isinstance(error, UNSENDABLE):
        return InvalidRequestError(
            f"a request to {endpoint} can't be sent ({type(error).__name__}); check the connection's host, "
            "login, password and extra"
        )
    return UnavailableError(f"{endpoint} can't be reached: {str(error) or type(error).__name__}")


def cause_of(error: Exception) -> Exception | None:
    """Return the cause to chain to an error of `request_error`; None if it may quote a header."""
    return None if isinstance(error, UNSENDABLE) else error


async def chunks_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the decompressed body of an open response, at most a few MB at a time.

    :raises UnavailableError: the response has an encoding that was not requested.
    """
    packing = answer.headers.get("content-encoding", "").strip().lower()
    if packing not in _PACKINGS:
        raise UnavailableError(
            f"{answer.request.url.host} sent a response with the unsupported encoding {packing!r}"
        )
    async for chunk in answer.aiter_bytes():
        yield chunk


async def body_of(answer: httpx.Response) -> bytes:
    """Return the body of an open response.

    :raises TooLargeError: it is larger than MAX_ANSWER.
    :raises UnavailableError: it takes longer than MAX_ANSWER_TIME, or has an encoding not requested.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_ANSWER_TIME):
            async for chunk in chunks_of(answer):
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise TooLargeError(
                        f"{answer.request.url.host} sent more than {MAX_ANSWER:,} bytes for "
                        f"{answer.request.url.path}"
                    )
    except TimeoutError:
        raise UnavailableError(
            f"{answer.request.url.host} took longer than {MAX_ANSWER_TIME:g} s to send its response"
        ) from None
    return bytes(body)
