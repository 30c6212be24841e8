"""Limit what connections use: descriptors, memory for headers, and time until a request is complete.

Any program that can reach the port can open connections, with or without a token. This must not keep the
server from answering other clients, or its runner from starting actions.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds for a request's headers to arrive, and then for its body.
HEADERS_TIMEOUT = 10.0
BODY_TIMEOUT = 60.0

#: Bytes of a request's headers, at most, including its URL.
MAX_HEADERS = 64 * 1024

#: The highest soft limit of descriptors that the server gives itself. Some programs close every possible
#: descriptor when they start, so that a limit of millions would cost each action seconds.
MAX_DESCRIPTORS = 65_536

#: Descriptors reserved for the database, logs and folders, and for the pipes and log of each slot.
_RESERVED = 128
_RESERVED_PER_SLOT = 12

#: Connections that are accepted even with few descriptors.
_MIN_CONNECTIONS = 16

#: Connections that may wait to be accepted.
_MAX_BACKLOG = 1024

#: Seconds between two records of connections that cannot be accepted.
_REPORT_INTERVAL = 60.0

_log = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of descriptors as far as allowed; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def max_connections(descriptors: int, slots: int) -> int:
    """Return how many connections the server accepts at the same time.

    Each connection may have an open file that is being sent, and as many again may be accepted in one turn of
    the event loop before the first of them is handled.

    :param descriptors: the process's limit of descriptors.
    :param slots: how many actions run at the same time.
    """
    left = descriptors - _RESERVED - _RESERVED_PER_SLOT * slots
    return max(_MIN_CONNECTIONS, left // 2)


class BoundedConfig(uvicorn.Config):
    """The configuration of uvicorn, with limits for connections.

    :param app: the ASGI application.
    :param connections: how many may be open at the same time.
    """

    def __init__(self, app: Any, connections: int, **options: Any) -> None:
        super().__init__(
            app,
            # Not httptools, which keeps headers of any size in memory.
            http=BoundedConnection,
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADERS,
            backlog=min(_MAX_BACKLOG, connections),
            **options,
        )
        self.max_connections = connections
        #: Connections without a request in progress, longest idle first.
        self.idle: dict[BoundedConnection, None] = {}


class BoundedConnection(H11Protocol):
    """An HTTP connection that is closed when a request takes too long to arrive.

    When there are too many connections, the one that has been idle for longest is closed. So a client that
    sends complete requests is served, even if others open many connections.
    """

    config: BoundedConfig
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; close the connection that was idle for longest if there are too many."""
        super().connection_made(transport)
        self._become_idle()
        self._close_within(HEADERS_TIMEOUT)
        if len(self.connections) > self.config.max_connections:
            next(iter(self.config.idle)).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove a closed connection."""
        self._become_busy()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle data from the client."""
        if self._timer is None and self in self.config.idle:
            self._close_within(HEADERS_TIMEOUT)
        state = self.conn.their_state
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY:
            if state is not h11.SEND_BODY:
                self._become_busy()
                self._close_within(BODY_TIMEOUT)
        elif self.conn.their_state is not h11.IDLE:
            self._become_busy()

    def on_response_complete(self) -> None:
        """Wait for the connection's next request."""
        self._become_busy()
        self._become_idle()
        super().on_response_complete()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):  # the next request has arrived already
            self._become_busy()

    def abort(self) -> None:
        """Close the connection without a response."""
        self._become_busy()
        self.transport.abort()

    def _close_within(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.abort)

    def _become_idle(self) -> None:
        self.config.idle[self] = None

    def _become_busy(self) -> None:
        self.config.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class RareReports:
    """An event loop's exception handler that limits reports about connections it cannot accept.

    asyncio reports each of them with a traceback, up to thousands per second.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error that asyncio reports."""
        if "socket.accept()" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _REPORT_INTERVAL
            _log.warning("cannot accept connections: %s", context.get("exception"))
