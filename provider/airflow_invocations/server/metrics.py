"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..models import InvocationStatus
from .db import StatusEvent

#: Seconds, from an action that does nothing to one that takes a night.
_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 28800)


class Metrics:
    """The server's metrics. `committed` and `log_grew` may be called from any thread."""

    def __init__(
        self, count_by_status: Callable[[], Mapping[InvocationStatus, int]], open_watches: Callable[[], int]
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(_Gauges(count_by_status, open_watches))
        self.requests = Counter(
            "invocations_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._queued = Histogram(
            "invocations_queue_seconds",
            "From Queued to Scheduled.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._ran = Histogram(
            "invocations_run_seconds",
            "From Processing to the end.",
            ["status"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._log_bytes = Counter("invocations_log_bytes", "Log bytes kept.", registry=self._registry)
        #: When each running invocation started; unknown for those that an earlier run of the server started.
        self._running: dict[str, int] = {}

    def committed(self, events: Sequence[StatusEvent]) -> None:
        """Measure the durations that the events of a commit end."""
        for event in events:
            if event.status is InvocationStatus.Scheduled and event.previous is not None:
                self._queued.observe((event.timestamp - event.previous) / 1e6)
            if event.status is InvocationStatus.Processing:
                self._running[event.invocation_id] = event.timestamp
            elif not event.status.is_running:
                self._end(event)

    def _end(self, event: StatusEvent) -> None:
        ran_since = self._running.pop(event.invocation_id, None)
        if ran_since is not None:
            self._ran.labels(event.status.name).observe((event.timestamp - ran_since) / 1e6)

    def log_grew(self, _: str, size: int) -> None:
        """Count log bytes."""
        self._log_bytes.inc(size)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """Metrics that are read at the time of the scrape."""

    def __init__(
        self, count_by_status: Callable[[], Mapping[InvocationStatus, int]], open_watches: Callable[[], int]
    ) -> None:
        self._count_by_status = count_by_status
        self._open_watches = open_watches

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics' names without values, as registration must not read the database."""
        yield GaugeMetricFamily("invocations_open_watches", "Open watch streams.")
        yield GaugeMetricFamily("invocations", "Invocations by status.", labels=["status"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the current values."""
        yield GaugeMetricFamily("invocations_open_watches", "Open watch streams.", value=self._open_watches())
        counts = self._count_by_status()
        family = GaugeMetricFamily("invocations", "Invocations by status.", labels=["status"])
        for status in InvocationStatus:
            family.add_metric([status.name], counts.get(status, 0))
        yield family


class CountRequests:
    """ASGI middleware that counts responses by method, route and status.

    It has to be the outermost one, because middleware inside the framework's error handling sees no 500.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's pattern, as paths have ids and would make an unlimited number of labels.
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(scope["method"], route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counting)
