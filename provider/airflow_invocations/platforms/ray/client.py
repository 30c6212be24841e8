"""Client of Ray's Jobs API, which the dashboard serves over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from ... import __version__
from ...invocation_api import parse_json, read_retry_after
from ..errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    RateLimitedError,
    TransientError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from ..http import NO_ANSWER, HttpPool, body_of, cause_of, request_error
from ..retry import retry_attempts
from .settings import API_VERSIONS, RaySettings
from .shapes import Json, text_at

T = TypeVar("T")

#: Attempts of a request that may be repeated, the first one included.
ATTEMPTS = 5

#: The job that `check` requests, which needs the credentials and costs nothing.
_NO_JOB = "airflow-connection-check"

_BY_STATUS: dict[int, type[PlatformError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    413: InvalidRequestError,
    429: RateLimitedError,
}

#: The status of the job agent's response, which the dashboard passes on as text in a 500.
_RELAYED = re.compile(r"Request failed with status code (\d{3})")


class RayClient:
    """The Jobs API with one connection pool.

    :raises PlatformError: every method.
    """

    def __init__(self, settings: RaySettings) -> None:
        self.where = settings.endpoint
        headers = {"User-Agent": f"airflow-provider-invocations/{__version__}"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token}"
        self.pool = HttpPool(settings.endpoint, headers, verify=settings.verify, timeout=settings.timeout)
        self._is_checked = False

    async def version(self) -> str:
        """Return Ray's version.

        :raises UnavailableError: this isn't Ray's dashboard.
        :raises UnsupportedError: it has another version of the Jobs API.
        """
        return await self._retry(self._version)

    async def _version(self) -> str:
        answer, content = await self._send("GET", "api/version")
        data = self._object(answer, content)
        ray_version = text_at(data, "ray_version")
        if ray_version is None:
            raise UnavailableError(self._foreign(answer))
        if data.get("version") not in API_VERSIONS:
            raise UnsupportedError(
                f"{self.where} is Ray {ray_version} with version {data.get('version')!r} of the Jobs API; "
                f"allowed: {', '.join(sorted(API_VERSIONS))}"
            )
        self._is_checked = True
        return ray_version

    async def check_version(self) -> None:
        """Check once for this client that a supported Ray answers; see `version`."""
        if not self._is_checked:
            await self.version()

    async def check_credentials(self) -> None:
        """Send a request that needs the credentials. Raises UnauthorizedError if they are rejected."""
        await self.job_if_any(_NO_JOB)

    async def jobs(self) -> dict[str, Json]:
        """Return all jobs that were submitted, by submission id: Ray's list has no filter and no pages.

        :raises TooLargeError: there are too many.
        """

        async def fetch() -> dict[str, Json]:
            answer, content = await self._send("GET", "api/jobs/")
            data = _json(content)
            if not isinstance(data, list):
                raise UnavailableError(self._foreign(answer))
            jobs = (job for job in data if isinstance(job, dict))
            return {name: job for job in jobs if (name := text_at(job, "submission_id")) is not None}

        return await self._retry(fetch)

    async def job_if_any(self, submission_id: str) -> Json | None:
        """Return a job; None if Ray has none of that id."""
        return await self._retry(lambda: self._job_if_any(submission_id))

    async def _job_if_any(self, submission_id: str) -> Json | None:
        try:
            answer, content = await self._send("GET", _path(submission_id))
        except NotFoundError:
            # Ray's 404 has no code; a proxy's says nothing about the job.
            await self._version()
            return None
        return self._object(answer, content)

    async def job(self, submission_id: str) -> Json:
        """Return a job. Raises NotFoundError if there is none."""
        job = await self.job_if_any(submission_id)
        if job is None:
            raise self._unknown(submission_id)
        return job

    def _unknown(self, submission_id: str) -> NotFoundError:
        return NotFoundError(f"{self.where} knows no job {submission_id!r}")

    async def submit(self, request: Json) -> Json:
        """Return the job of a submission id, after submitting it if there is none.

        Ray rejects a second job of an id, so this may be repeated after a lost response.

        :raises InvalidRequestError: Ray rejects the job.
        """

        async def submit_unless_present() -> Json:
            submission_id = str(request["submission_id"])
            try:
                await self._send("POST", "api/jobs/", request)
            except (InvalidRequestError, ConflictError, UnavailableError):
                # That the id exists is also a 500, with the traceback as its text.
                present = await self._job_if_any(submission_id)
                if present is None:
                    raise
                return present
            submitted = await self._job_if_any(submission_id)
            if submitted is None:
                raise UnavailableError(f"{self.where} took job {submission_id} and doesn't know it")
            return submitted

        return await self._retry(submit_unless_present)

    async def stop(self, submission_id: str) -> bool:
        """Request a job's end; return whether Ray has passed it on to the job's supervisor."""

        async def request_stop() -> bool:
            try:
                answer, content = await self._send("POST", f"{_path(submission_id)}/stop")
            except NotFoundError:
                await self._version()
                raise self._unknown(submission_id) from None
            return self._object(answer, content).get("stopped") is True

        return await self._retry(request_stop)

    async def log(self, submission_id: str) -> str:
        """Return a job's whole log; empty if it has none yet.

        :raises TooLargeError: it is larger than MAX_ANSWER.
        """

        async def fetch() -> str:
            try:
                answer, content = await self._send("GET", f"{_path(submission_id)}/logs")
            except NotFoundError:
                await self._version()
                raise self._unknown(submission_id) from None
            return text_at(self._object(answer, content), "logs") or ""

        return await self._retry(fetch)

    async def log_head(self, submission_id: str, size: int) -> bytes:
        """Return the first bytes of the response with a job's log, which is JSON; empty if it can't be read.

        :param size: most bytes to read; the last read may add some.
        """
        head = bytearray()
        try:
            async with self._open("GET", f"{_path(submission_id)}/logs") as answer:
                if answer.is_success:
                    async for chunk in answer.aiter_bytes(size):
                        head += chunk
                        if len(head) >= size:
                            break
        except PlatformError:
            return b""
        return bytes(head)

    async def cluster(self) -> Json:
        """Return Ray's description of the cluster; empty if it has none that can be read."""
        try:
            answer, content = await self._send("GET", "api/cluster_status")
            return self._object(answer, content)
        except (NotFoundError, InvalidRequestError, UnavailableError):
            return {}

    async def _retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await retry_attempts(operation, ATTEMPTS)

    async def _send(
        self, method: str, path: str, message: Json | None = None
    ) -> tuple[httpx.Response, bytes]:
        """Return a successful response; the error of any other is raised."""
        async with self._open(method, path, message) as answer:
            content = await body_of(answer)
        if not answer.is_success:
            raise self._error(answer, content)
        return answer, content

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, message: Json | None = None
    ) -> AsyncIterator[httpx.Response]:
        content = None if message is None else json.dumps(message).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with self.pool.client.stream(method, path, headers=headers, content=content) as answer:
                yield answer
        except NO_ANSWER as error:
            raise request_error(self.where, error) from cause_of(error)

    def _object(self, answer: httpx.Response, content: bytes) -> Json:
        data = _json(content)
        if not isinstance(data, dict):
            raise UnavailableError(self._foreign(answer))
        return data

    def _foreign(self, answer: httpx.Response) -> str:
        return (
            f"{self.where} responds to {answer.request.url.path} with {answer.status_code} "
            f"{answer.reason_phrase}, not as Ray's dashboard does; is it the address of one?"
        )

    def _error(self, answer: httpx.Response, content: bytes) -> PlatformError:
        status = answer.status_code
        text = content.decode(errors="replace")
        if status == httpx.codes.NOT_FOUND:
            return NotFoundError(self._foreign(answer))
        if answer.is_redirect:
            # It is not followed with the token; the connection's address has to be corrected.
            return InvalidRequestError(self._foreign(answer))
        relayed = _RELAYED.findall(text)
        if status == httpx.codes.INTERNAL_SERVER_ERROR and relayed:
            status = int(relayed[-1])
        kind = _BY_STATUS.get(status, UnavailableError)
        error = kind(f"{self.where} responds to {answer.request.url.path} with {status}: {_reason(text)}")
        if isinstance(error, TransientError):
            error.retry_after = read_retry_after(answer)
        return error


def _path(submission_id: str) -> str:
    if submission_id in ("", ".", ".."):
        raise NotFoundError(f"{submission_id!r} is not the id of a job")
    return f"api/jobs/{quote(submission_id, safe='')}"


def _reason(text: str) -> str:
    """Return the last line of a traceback that says something."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if len(line) > 1), "no reason given")


def _json(content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError:
        return None
