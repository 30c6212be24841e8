"""What HTTP platforms share: the connection pool, TLS, errors and response limits."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Mapping

import httpx

from .clock import PlatformClock
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


#: Connections of a pool, as httpx has them by default.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)


class TooLargeError(UnavailableError):
    """A response is larger than MAX_ANSWER."""


def tls_for(endpoint: str, verify: bool | str) -> ssl.SSLContext | bool:
    """Return what httpx verifies certificates with. For plain HTTP nothing is loaded.

    :param verify: True, False, or the path of a CA bundle.
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


class HttpPool:
    """A connection pool, to be opened and closed.

    :param endpoint: base URL of the requests.
    :param headers: sent with every request.
    :param verify: True, False, or the path of a CA bundle.
    :param timeout: seconds for a connection, and for each wait for data.
    :param limits: connections at the same time.
    """

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        *,
        verify: bool | str,
        timeout: float,
        limits: httpx.Limits = _LIMITS,
    ) -> None:
        self._endpoint = endpoint
        self._headers = {**headers, "Accept-Encoding": ACCEPT_ENCODING}
        self._verify = verify
        self._timeout = timeout
        self._limits = limits
        self._client: httpx.AsyncClient | None = None
        #: The platform's clock, read from its responses.
        self.clock = PlatformClock(endpoint)

    @property
    def client(self) -> httpx.AsyncClient:
        """The open client."""
        if self._client is None:
            raise RuntimeError("the platform is used outside of 'async with'")
        return self._client

    async def open(self) -> None:
        """Make the client.

        It is made in a thread. The first client of a process imports what it needs, and CA bundles are slow
        to read. Both would block a triggerer's event loop.

        :raises InvalidRequestError: a header can't be sent.
        """
        try:
            self._client = await asyncio.to_thread(self._new_client)
        except UNSENDABLE as error:
            raise request_error(self._endpoint, error) from cause_of(error)

    async def close(self) -> None:
        """Close the client and its streams."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._endpoint,
            headers=self._headers,
            timeout=self._timeout,
            limits=self._limits,
            verify=tls_for(self._endpoint, self._verify),
            event_hooks=self.clock.hooks,
        )


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
