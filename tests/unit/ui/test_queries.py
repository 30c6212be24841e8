"""Queries of platforms: shared, cached, bounded in time, and free of secrets."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_invocations.platforms import (
    Capabilities,
    InvalidRequestError,
    NotFoundError,
    Platform,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
    registry,
)
from airflow_invocations.ui.airflow import queries as module
from airflow_invocations.ui.airflow.queries import (
    ListQuery,
    ListResult,
    PlatformQueries,
    QueryFailedError,
)
from airflow_invocations.ui.airflow.runs import PLATFORMS, RunKey
from airflow_invocations.version_compat import AirflowNotFoundException

from .conftest import RUN, FakePlatform, Gate, S, World, at, page_of, record

ALWAYS: Callable[[ListResult], float] = lambda _: 0.0  # noqa: E731
NEVER: Callable[[ListResult], float] = lambda _: 3600.0  # noqa: E731
OTHER = RunKey("fleet", "manual__other")


def query(conn_id: str = "c", run: RunKey = RUN, limit: int = 10) -> ListQuery:
    return ListQuery(conn_id, run, limit)


def ask(
    platforms: PlatformQueries, *queries: ListQuery, fresh_for: Any = ALWAYS, timeout: float = 5.0
) -> list[ListResult]:
    results = platforms.results(dict.fromkeys(queries, fresh_for), timeout)
    return [results[each] for each in queries]


async def hang() -> None:
    await asyncio.Event().wait()


def test_result_has_rows_of_a_list(platforms: PlatformQueries, world: World) -> None:
    steps = ((S.Queued, 0), (S.Processing, 2), (S.Failed, 9))
    platform = world.connect("c", record(steps=steps, detail="x" * 1000, map_index=3, try_number=2))
    (result,) = ask(platforms, query())
    assert (result.problem, result.is_pending, result.has_active) == (None, False, False)
    (each,) = result.rows
    assert (each.conn_id, each.platform, each.invocation_id) == ("c", "Roboto (invocation API)", "iv_1")
    assert (each.action, each.status, each.url) == ("scan", S.Failed, "https://platform.example/iv_1")
    assert (each.created, each.started, each.ended) == (at(0), at(2), at(9))
    assert (each.task.task_id, each.task.map_index, each.task.try_number) == ("ask", 3, 2)
    assert len(each.detail or "") == 300
    assert platform.asked == [("find", RUN.dag_id, RUN.run_id, 10)]


def test_fresh_result_is_reused(platforms: PlatformQueries, world: World) -> None:
    platform = world.connect("c", record())
    for fresh_for, asked in ((NEVER, 1), (NEVER, 1), (ALWAYS, 2)):
        ask(platforms, query(), fresh_for=fresh_for)
        assert len(platform.asked) == asked


def test_freshness_depends_on_result(platforms: PlatformQueries, world: World) -> None:
    platform = world.connect("c", record(steps=((S.Queued, 0), (S.Completed, 1))))
    for _ in range(3):
        ask(platforms, query(), fresh_for=lambda result: 0.0 if result.has_active else 3600.0)
    assert len(platform.asked) == 1


def test_viewers_share_one_running_query(platforms: PlatformQueries, world: World, gate: Gate) -> None:
    platform = world.connect("c", record())
    platform.before = gate
    results: list[ListResult] = []
    viewers = [threading.Thread(target=lambda: results.extend(ask(platforms, query()))) for _ in range(5)]
    for viewer in viewers:
        viewer.start()
    assert gate.entered.wait(5)
    (early,) = ask(platforms, query(), timeout=0.0)
    assert early == ListResult(is_pending=True)
    gate.open()
    for viewer in viewers:
        viewer.join(5)
    assert [len(result.rows) for result in results] == [1] * 5
    assert len(platform.asked) <= 2  # a viewer who came after the result asked again


def test_many_runs_use_one_hook(world: World) -> None:
    runs = [RunKey("fleet", f"r{number}") for number in range(12)]
    world.connect("c", *(record(f"iv_{run.run_id}", run) for run in runs))
    visits: list[str] = []

    def counted(conn_id: str) -> Any:
        visits.append(conn_id)
        return world.hook(conn_id)

    platforms = PlatformQueries(counted)
    results = ask(platforms, *(query(run=run) for run in runs))
    platforms.close()
    assert [result.rows[0].invocation_id for result in results] == [f"iv_{run.run_id}" for run in runs]
    assert visits == ["c"]


def test_hanging_platform_does_not_delay_others(
    platforms: PlatformQueries, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLATFORM_TIMEOUT", 1.5)
    world.connect("c").before = hang
    world.connect("good", record())
    began = time.monotonic()
    hung, good = ask(platforms, query(), query("good"), timeout=0.05)
    assert time.monotonic() - began < 1.5
    assert hung == ListResult(is_pending=True)
    while hung.problem is None:
        hung, good = ask(platforms, query(), query("good"), timeout=0.05)
    assert hung == ListResult(problem="The platform doesn't respond.")
    assert len(good.rows) == 1


def test_failed_connection_backs_off_and_cached_result_stays(
    platforms: PlatformQueries, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = world.connect("c", record())
    ask(platforms, query())
    platform.error = UnavailableError("https://secret-host.example can't be reached")
    for _ in range(3):
        (result,) = ask(platforms, query())
        assert result.problem == "The platform is unavailable."
        assert len(result.rows) == 1
    assert len(platform.asked) == 2
    # Interactive queries back off too.
    with pytest.raises(QueryFailedError, match="is unavailable"):
        platforms.detail("c", RUN, "iv_1")
    assert len(platform.asked) == 2
    platform.error = None
    monkeypatch.setattr(platforms._connections["c"], "backs_off_until", 0.0)
    (result,) = ask(platforms, query())
    assert (result.problem, len(result.rows)) == (None, 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnavailableError("s3cret at https://host"), "The platform is unavailable."),
        (TimeoutError("s3cret"), "The platform doesn't respond."),
        (UnauthorizedError("s3cret"), "The platform rejected the connection's token."),
        (UnsupportedError("s3cret"), "The platform doesn't support this."),
        (InvalidRequestError("s3cret"), "The platform rejected the request."),
        (ValueError("extra 'verify' is 's3cret'"), "The connection is misconfigured."),
        (AirflowNotFoundException("s3cret"), "The connection is no longer defined."),
        (RuntimeError("s3cret"), "The request failed; the API server's log has the reason."),
    ],
)  # fmt: skip
def test_problem_holds_nothing_of_the_connection(
    platforms: PlatformQueries, world: World, error: Exception, words: str
) -> None:
    world.connect("c").error = error
    assert ask(platforms, query()) == [ListResult(problem=words)]
    world.connect("broken")
    world.broken["broken"] = error
    assert ask(platforms, query("broken")) == [ListResult(problem=words)]


def test_connection_of_another_provider_is_not_queried(platforms: PlatformQueries, world: World) -> None:
    platform = world.connect("warehouse", kind="postgres")
    (result,) = ask(platforms, query("warehouse"))
    assert not result.is_supported
    assert platform.asked == []


def test_invocation_without_task_is_left_out(platforms: PlatformQueries, world: World) -> None:
    stranger = record()
    stranger.provenance.source.source_id = stranger.provenance.source.source_id.replace("try_number=1", "")
    world.connect("c", stranger)
    (result,) = ask(platforms, query())
    assert result == ListResult(platform="Roboto (invocation API)")


def test_caches_are_bounded(
    platforms: PlatformQueries, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_RESULTS", 3)
    monkeypatch.setattr(module, "_MAX_OWNERS", 2)
    runs = [RunKey("fleet", f"r{number}") for number in range(5)]
    world.connect("c", *(record(f"iv_{run.run_id}", run) for run in runs))
    for run in runs:
        ask(platforms, query(run=run))
    assert [each.run.run_id for each in platforms._cache] == ["r2", "r3", "r4"]
    assert list(platforms._owners) == [("c", "iv_r3"), ("c", "iv_r4")]


class TestOneInvocation:
    def test_detail_of_own_run(self, platforms: PlatformQueries, world: World) -> None:
        world.connect("c", record())
        detail = platforms.detail("c", RUN, "iv_1")
        assert detail.record.invocation_id == "iv_1"
        assert detail.task.task_id == "ask"
        assert detail.url == "https://platform.example/iv_1"

    @pytest.mark.parametrize("invocation_id", ["iv_1", "iv_unknown"])
    def test_detail_of_another_run_is_not_found(
        self, platforms: PlatformQueries, world: World, invocation_id: str
    ) -> None:
        platform = world.connect("c", record(), record("iv_2", OTHER))
        platform.pages[None] = page_of("s3cret")
        with pytest.raises(NotFoundError):
            platforms.detail("c", OTHER, invocation_id)
        with pytest.raises(NotFoundError):
            platforms.log_page("c", OTHER, invocation_id, None)
        # Not even once its owner is known.
        ask(platforms, query())
        with pytest.raises(NotFoundError):
            platforms.log_page("c", OTHER, invocation_id, None)
        assert "logs" not in [what for what, *_ in platform.asked]

    def test_log_is_read_by_page_and_its_run_looked_up_once(
        self, platforms: PlatformQueries, world: World
    ) -> None:
        platform = world.connect("c", record())
        platform.pages = {
            None: page_of("one", more=True, last_read="p1"),
            "p1": page_of("two", last_read="p2"),
        }
        first = platforms.log_page("c", RUN, "iv_1", None)
        assert first is not None
        second = platforms.log_page("c", RUN, "iv_1", first.last_read)
        assert second is not None
        assert [line.log for line in (*first.items, *second.items)] == ["one", "two"]
        assert [what for what, *_ in platform.asked] == ["get", "logs", "logs"]

    def test_log_page_is_none_when_platform_keeps_no_logs(
        self, platforms: PlatformQueries, world: World
    ) -> None:
        platform = world.connect("c", record())
        platform.capabilities = Capabilities(logs=False)
        assert platforms.log_page("c", RUN, "iv_1", None) is None

    def test_detail_times_out_when_platform_hangs(
        self, platforms: PlatformQueries, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "PLATFORM_TIMEOUT", 0.1)
        world.connect("c", record()).before = hang
        with pytest.raises(QueryFailedError, match="doesn't respond"):
            platforms.detail("c", RUN, "iv_1")

    def test_detail_fails_when_too_many_wait(
        self, platforms: PlatformQueries, world: World, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platforms, "_waiting", threading.BoundedSemaphore(1))
        world.connect("c", record()).before = gate
        first = threading.Thread(target=lambda: platforms.detail("c", RUN, "iv_1"))
        first.start()
        assert gate.entered.wait(5)
        with pytest.raises(QueryFailedError, match="Too many requests"):
            platforms.detail("c", RUN, "iv_1")
        gate.open()
        first.join(5)
        assert platforms.detail("c", RUN, "iv_1").record.invocation_id == "iv_1"


@pytest.mark.parametrize(
    ("steps", "began"),
    [
        (((S.Queued, 0),), None),
        (((S.Queued, 0), (S.Processing, 2), (S.Completed, 3)), at(2)),
        (((S.Queued, 0), (S.Processing, 2), (S.Failed, 3), (S.Queued, 4)), None),
        (((S.Queued, 0), (S.Processing, 2), (S.Failed, 3), (S.Queued, 4), (S.Processing, 6)), at(6)),
        (((S.Queued, 0), (S.Processing, 2), (S.Processing, 5), (S.Completed, 6)), at(2)),
    ],
)
def test_started_at(steps: Any, began: Any) -> None:
    assert record(steps=steps).started_at == began


@pytest.mark.parametrize("kind", PLATFORMS)
def test_find_of_every_platform_has_the_same_arguments(kind: str) -> None:
    """`find` is called with its arguments in their order, the limit too: of the fake and of the real ones."""
    real = registry.PLATFORMS[kind].load_platform()
    wanted = list(inspect.signature(Platform.find).parameters)
    assert list(inspect.signature(real.find).parameters) == wanted
    assert list(inspect.signature(FakePlatform.find).parameters) == wanted
