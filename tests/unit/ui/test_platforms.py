"""Asking platforms: shared, bounded, patient, and silent about what nobody should read."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from airflow_invocations.platforms import (
    Capabilities,
    InvalidRequestError,
    NotFoundError,
    Platform,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.ui.airflow import queries as module
from airflow_invocations.ui.airflow.queries import (
    Answer,
    OutOfReachError,
    Platforms,
    Question,
    web_address,
)
from airflow_invocations.ui.airflow.runs import PLATFORMS, RunKey
from airflow_invocations.version_compat import AirflowNotFoundException

from .conftest import RUN, FakePlatform, Gate, S, World, at, page_of, record

ALWAYS: Callable[[Answer], float] = lambda _: 0.0  # noqa: E731
NEVER: Callable[[Answer], float] = lambda _: 3600.0  # noqa: E731
OTHER = RunKey("fleet", "manual__other")


def question(conn_id: str = "c", run: RunKey = RUN, limit: int = 10) -> Question:
    return Question(conn_id, run, limit)


def ask(
    platforms: Platforms, *questions: Question, fresh_for: Any = ALWAYS, patience: float = 5.0
) -> list[Answer]:
    answers = platforms.answers(dict.fromkeys(questions, fresh_for), patience)
    return [answers[each] for each in questions]


async def hang() -> None:
    await asyncio.Event().wait()


def test_what_is_found_is_what_a_list_needs(platforms: Platforms, world: World) -> None:
    steps = ((S.Queued, 0), (S.Processing, 2), (S.Failed, 9))
    platform = world.connect("c", record(steps=steps, detail="x" * 1000, map_index=3, try_number=2))
    (answer,) = ask(platforms, question())
    assert (answer.problem, answer.is_pending, answer.goes_on) == (None, False, False)
    (each,) = answer.found
    assert (each.conn_id, each.platform, each.invocation_id) == ("c", "Roboto (invocation API)", "iv_1")
    assert (each.action, each.status, each.url) == ("scan", S.Failed, "https://platform.example/iv_1")
    assert (each.created, each.started, each.ended) == (at(0), at(2), at(9))
    assert (each.asker.task_id, each.asker.map_index, each.asker.try_number) == ("ask", 3, 2)
    assert len(each.detail or "") == 300
    assert platform.asked == [("find", RUN.dag_id, RUN.run_id, 10)]


def test_a_fresh_answer_is_not_asked_for_again(platforms: Platforms, world: World) -> None:
    platform = world.connect("c", record())
    for fresh_for, asked in ((NEVER, 1), (NEVER, 1), (ALWAYS, 2)):
        ask(platforms, question(), fresh_for=fresh_for)
        assert len(platform.asked) == asked


def test_how_old_an_answer_may_be_is_decided_by_the_answer(platforms: Platforms, world: World) -> None:
    platform = world.connect("c", record(steps=((S.Queued, 0), (S.Completed, 1))))
    for _ in range(3):
        ask(platforms, question(), fresh_for=lambda answer: 0.0 if answer.goes_on else 3600.0)
    assert len(platform.asked) == 1


def test_viewers_share_one_question_at_a_time(platforms: Platforms, world: World, gate: Gate) -> None:
    platform = world.connect("c", record())
    platform.before = gate
    answers: list[Answer] = []
    viewers = [threading.Thread(target=lambda: answers.extend(ask(platforms, question()))) for _ in range(5)]
    for viewer in viewers:
        viewer.start()
    assert gate.entered.wait(5)
    (early,) = ask(platforms, question(), patience=0.0)
    assert early == Answer(is_pending=True)
    gate.open()
    for viewer in viewers:
        viewer.join(5)
    assert [len(answer.found) for answer in answers] == [1] * 5
    assert len(platform.asked) <= 2  # a viewer who came after the answer asked again


def test_many_runs_are_one_visit(world: World) -> None:
    runs = [RunKey("fleet", f"r{number}") for number in range(12)]
    world.connect("c", *(record(f"iv_{run.run_id}", run) for run in runs))
    visits: list[str] = []

    def counted(conn_id: str) -> Any:
        visits.append(conn_id)
        return world.hook(conn_id)

    platforms = Platforms(counted)
    answers = ask(platforms, *(question(run=run) for run in runs))
    platforms.close()
    assert [answer.found[0].invocation_id for answer in answers] == [f"iv_{run.run_id}" for run in runs]
    assert visits == ["c"]


def test_a_platform_that_hangs_holds_nobody_up(
    platforms: Platforms, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1.5)
    world.connect("c").before = hang
    world.connect("good", record())
    began = time.monotonic()
    hung, good = ask(platforms, question(), question("good"), patience=0.05)
    assert time.monotonic() - began < 1.5
    assert hung == Answer(is_pending=True)
    while hung.problem is None:
        hung, good = ask(platforms, question(), question("good"), patience=0.05)
    assert hung == Answer(problem="doesn't answer")
    assert len(good.found) == 1


def test_one_that_does_not_answer_rests_and_what_was_known_stays(
    platforms: Platforms, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = world.connect("c", record())
    ask(platforms, question())
    platform.error = UnavailableError("https://secret-host.example can't be reached")
    for _ in range(3):
        (answer,) = ask(platforms, question())
        assert answer.problem == "is out of reach"
        assert len(answer.found) == 1
    assert len(platform.asked) == 2
    # People who have opened an invocation of it don't wait either.
    with pytest.raises(OutOfReachError, match="is out of reach"):
        platforms.open("c", RUN, "iv_1")
    assert len(platform.asked) == 2
    platform.error = None
    monkeypatch.setattr(platforms._connections["c"], "rests_until", 0.0)
    (answer,) = ask(platforms, question())
    assert (answer.problem, len(answer.found)) == (None, 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnavailableError("s3cret at https://host"), "is out of reach"),
        (TimeoutError("s3cret"), "doesn't answer"),
        (UnauthorizedError("s3cret"), "doesn't accept the connection's token"),
        (UnsupportedError("s3cret"), "can't be asked that"),
        (InvalidRequestError("s3cret"), "refuses to answer"),
        (ValueError("extra 'verify' is 's3cret'"), "is a connection that makes no sense"),
        (AirflowNotFoundException("s3cret"), "isn't defined as a connection any more"),
        (RuntimeError("s3cret"), "can't be asked"),
    ],
)  # fmt: skip
def test_problems_in_words_that_hold_nothing_of_a_connection(
    platforms: Platforms, world: World, error: Exception, words: str
) -> None:
    world.connect("c").error = error
    assert ask(platforms, question()) == [Answer(problem=words)]
    world.connect("broken")
    world.broken["broken"] = error
    assert ask(platforms, question("broken")) == [Answer(problem=words)]


def test_a_connection_of_another_provider_is_none_of_our_business(platforms: Platforms, world: World) -> None:
    platform = world.connect("warehouse", kind="postgres")
    (answer,) = ask(platforms, question("warehouse"))
    assert not answer.is_ours
    assert platform.asked == []


def test_what_somebody_else_has_invoked_is_left_out(platforms: Platforms, world: World) -> None:
    stranger = record()
    stranger.provenance.source.source_id = stranger.provenance.source.source_id.replace("try_number=1", "")
    world.connect("c", stranger)
    (answer,) = ask(platforms, question())
    assert answer == Answer(platform="Roboto (invocation API)")


def test_no_more_is_kept_than_there_is_room_for(
    platforms: Platforms, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_ANSWERS", 3)
    monkeypatch.setattr(module, "_MAX_OWNERS", 2)
    runs = [RunKey("fleet", f"r{number}") for number in range(5)]
    world.connect("c", *(record(f"iv_{run.run_id}", run) for run in runs))
    for run in runs:
        ask(platforms, question(run=run))
    assert [each.run.run_id for each in platforms._known] == ["r2", "r3", "r4"]
    assert list(platforms._owners) == [("c", "iv_r3"), ("c", "iv_r4")]


class TestOneInvocation:
    def test_it_is_opened_by_those_who_see_its_run(self, platforms: Platforms, world: World) -> None:
        world.connect("c", record())
        opened = platforms.open("c", RUN, "iv_1")
        assert opened.record.invocation_id == "iv_1"
        assert opened.asker.task_id == "ask"
        assert opened.url == "https://platform.example/iv_1"

    @pytest.mark.parametrize("invocation_id", ["iv_1", "iv_unknown"])
    def test_and_by_nobody_else(self, platforms: Platforms, world: World, invocation_id: str) -> None:
        platform = world.connect("c", record(), record("iv_2", OTHER))
        platform.pages[None] = page_of("s3cret")
        with pytest.raises(NotFoundError):
            platforms.open("c", OTHER, invocation_id)
        with pytest.raises(NotFoundError):
            platforms.log_page("c", OTHER, invocation_id, None)
        # Not even once its owner is known.
        ask(platforms, question())
        with pytest.raises(NotFoundError):
            platforms.log_page("c", OTHER, invocation_id, None)
        assert "logs" not in [what for what, *_ in platform.asked]

    def test_its_log_is_read_page_by_page_and_its_owner_looked_up_once(
        self, platforms: Platforms, world: World
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

    def test_a_platform_without_logs(self, platforms: Platforms, world: World) -> None:
        platform = world.connect("c", record())
        platform.capabilities = Capabilities(logs=False)
        assert platforms.log_page("c", RUN, "iv_1", None) is None

    def test_a_platform_that_hangs(
        self, platforms: Platforms, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "PATIENCE", 0.1)
        world.connect("c", record()).before = hang
        with pytest.raises(OutOfReachError, match="doesn't answer"):
            platforms.open("c", RUN, "iv_1")

    def test_no_more_wait_than_there_is_room_for(
        self, platforms: Platforms, world: World, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platforms, "_waiting", threading.BoundedSemaphore(1))
        world.connect("c", record()).before = gate
        first = threading.Thread(target=lambda: platforms.open("c", RUN, "iv_1"))
        first.start()
        assert gate.entered.wait(5)
        with pytest.raises(OutOfReachError, match="too much"):
            platforms.open("c", RUN, "iv_1")
        gate.open()
        first.join(5)
        assert platforms.open("c", RUN, "iv_1").record.invocation_id == "iv_1"


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
def test_when_it_began_to_run(steps: Any, began: Any) -> None:
    assert record(steps=steps).started_at == began


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://platform.example/iv_1", "https://platform.example/iv_1"),
        ("http://127.0.0.1:8085/iv_1", "http://127.0.0.1:8085/iv_1"),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        (" https://platform.example", ""),
        ("", ""),
    ],
)
def test_links_lead_to_pages_and_nowhere_else(url: str, address: str) -> None:
    assert web_address(url) == address


@pytest.mark.parametrize("kind", PLATFORMS)
def test_every_platform_can_be_asked_so(kind: str) -> None:
    """`find` is called with its arguments in their order, the limit too: of the fake and of the real ones."""
    module = importlib.import_module(f"airflow_invocations.hooks.{kind}")
    real = get_type_hints(module.platform_of)["return"]
    wanted = list(inspect.signature(Platform.find).parameters)
    assert list(inspect.signature(real.find).parameters) == wanted
    assert list(inspect.signature(FakePlatform.find).parameters) == wanted
