"""The event trigger in Airflow's own way of scheduling: everything reaches a DAG run, whatever happens."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_invocations import version_compat
from airflow_invocations.assets.events import ACKNOWLEDGED_KEY
from airflow_invocations.hooks import InvocationHook
from airflow_invocations.models import AssetEvent, DagRunProvenance, InvocationStatus, UnreadableItem
from airflow_invocations.platforms import UnavailableError
from airflow_invocations.triggers import InvocationEventTrigger
from airflow_invocations.triggers._event_delivery import CURSOR_KEY, DeliverySettings
from airflow_invocations.waiters import event_stream

from ...support.airflow_version import DagSerialization
from ...support.events_platform import (
    NOON,
    EventsPlatform,
)
from ...support.task_context import (
    PROVENANCE,
)
from ...support.waiting import until_async
from .event_scheduling import Dag, Run, Scheduling, State

pytestmark = pytest.mark.anyio
S = InvocationStatus


#: What a run sees that doesn't read its events through us, and so acknowledges nothing.
def reads_by_itself(context: Any) -> list[dict[str, Any]]:
    found = context["triggering_asset_events"].values()
    return [one for each in found for event in each for one in event.extra["payload"]["invocations"]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DeliverySettings(
        linger=0.002,
        spacing=0.01,
        unacknowledged_spacing=0.03,
        unacknowledged_check=0.02,
        read_pause=0.002,
        longest_read_pause=0.01,
        laggard_grace=0.05,
        save_interval=0.01,
        retry_pause=0.005,
    )
    monkeypatch.setattr(InvocationEventTrigger, "settings", settings)
    monkeypatch.setattr(event_stream, "COLLECTING", 0.001)
    monkeypatch.setattr(event_stream, "backoff", lambda attempt, base=0.5, cap=30.0: -0.199)


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> EventsPlatform:
    platform = EventsPlatform()

    async def connect(self: InvocationHook) -> Any:
        return await platform.connect()

    monkeypatch.setattr(InvocationHook, "connect", connect)
    return platform


Make = Callable[..., Scheduling]


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch, platform: EventsPlatform) -> Make:
    def make(timeout: float = 5.0, **arguments: Any) -> Scheduling:
        def trigger() -> InvocationEventTrigger:
            made = InvocationEventTrigger(**arguments)
            made.acknowledge_timeout = timeout
            return made

        return Scheduling(monkeypatch, trigger)

    return make


async def begun(scheduling: Scheduling) -> None:
    """Wait until the watcher has noted where it begins."""
    await until_async(lambda: CURSOR_KEY in scheduling.assets["watched"].values)


def ids(count: int, begin: int = 0) -> list[str]:
    return [f"iv_{number}" for number in range(begin, begin + count)]


async def test_a_burst_reaches_runs_whole_and_nothing_stays_behind(
    airflow: Make, platform: EventsPlatform
) -> None:
    async with airflow() as scheduling:
        await begun(scheduling)
        for one in ids(6):
            platform.end(one)
            await asyncio.sleep(0.004)
        await until_async(lambda: len(scheduling.taken()) == 6)
    assert scheduling.handed_over() == scheduling.taken() == ids(6)


async def test_without_waiting_for_runs_airflow_does_leave_events_behind(
    airflow: Make, platform: EventsPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is as bad as Airflow: this is what the spacing and the acknowledgements are for."""

    async def no_wait(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(InvocationEventTrigger, "_wait_for_acknowledgement", no_wait)
    async with airflow(batch_size=1) as scheduling:
        scheduling.dags["fleet"].max_active_runs = 0
        await begun(scheduling)
        platform.end(*ids(6))
        await until_async(lambda: len(scheduling.events) == 6)
        scheduling.dags["fleet"].max_active_runs = 16
        await until_async(scheduling.taken)
        await asyncio.sleep(0.1)
    assert scheduling.handed_over() == ["iv_0"]


async def test_an_outage_and_a_backlog_of_ten_thousand_lose_nothing(
    airflow: Make, platform: EventsPlatform
) -> None:
    async with airflow(batch_size=1000) as scheduling:
        await begun(scheduling)
        platform.down = UnavailableError("no route")
        platform.break_streams()
        await until_async(lambda: platform.connects > 3)
        platform.end(*ids(10_000))
        platform.down = None
        await until_async(lambda: len(scheduling.taken()) >= 10_000)
        await scheduling.crash()
        scheduling.start()
        platform.end("last")
        await until_async(lambda: "last" in scheduling.taken())
    assert scheduling.taken() == [*ids(10_000), "last"]
    assert all(len(run.taken) <= 1000 for run in scheduling.runs)


@pytest.mark.parametrize("seed", range(8))
async def test_a_triggerer_that_dies_at_any_moment_loses_nothing_and_nothing_is_taken_over_twice(
    airflow: Make, platform: EventsPlatform, seed: int
) -> None:
    chance = random.Random(seed)
    async with airflow(batch_size=7) as scheduling:
        scheduling.dags["fleet"].max_active_runs = chance.choice([1, 16])
        scheduling.dags["fleet"].seconds = 0.005
        await begun(scheduling)
        count = 0
        for _ in range(25):
            more = chance.randrange(12)
            platform.end(*ids(more, begin=count))
            count += more
            await asyncio.sleep(chance.random() * 0.05)
            await scheduling.crash()
            scheduling.start()
        await until_async(lambda: set(scheduling.taken()) == set(ids(count)))
    assert sorted(scheduling.taken()) == sorted(ids(count))


async def test_a_dag_at_its_max_active_runs_is_waited_for(airflow: Make, platform: EventsPlatform) -> None:
    async with airflow(batch_size=5) as scheduling:
        fleet = scheduling.dags["fleet"]
        fleet.max_active_runs, fleet.seconds = 1, 0.15
        await begun(scheduling)
        for begin in range(0, 20, 2):
            platform.end(*ids(2, begin=begin))
            await asyncio.sleep(0.02)
        await until_async(lambda: len(scheduling.taken()) == 20)
    assert scheduling.taken() == ids(20)
    assert all(len(run.taken) <= 5 for run in scheduling.runs)


async def test_a_dag_that_reads_its_payloads_by_itself_gets_everything_too(
    airflow: Make, platform: EventsPlatform
) -> None:
    async with airflow() as scheduling:
        scheduling.dags["fleet"].work = reads_by_itself
        await begun(scheduling)
        for one in ids(12):
            platform.end(one)
            await asyncio.sleep(0.01)
        await until_async(lambda: len(scheduling.taken()) == 12)
    assert scheduling.taken() == ids(12)


async def test_a_dag_that_stops_taking_over_does_not_stop_the_others_and_is_forgotten(
    airflow: Make, platform: EventsPlatform
) -> None:
    async with airflow(timeout=0.15) as scheduling:
        scheduling.dags["gone"] = Dag()
        await begun(scheduling)
        platform.end("iv_0")
        await until_async(lambda: scheduling.taken() == scheduling.taken("gone") == ["iv_0"])
        scheduling.dags["gone"].work = lambda _: []
        for number in range(1, 4):
            platform.end(f"iv_{number}")
            await until_async(lambda number=number: f"iv_{number}" in scheduling.taken())
        acknowledged = scheduling.assets["watched"].values[ACKNOWLEDGED_KEY]
        assert set(acknowledged) == {"fleet", "gone"}
        await until_async(lambda: set(scheduling.assets["watched"].values[ACKNOWLEDGED_KEY]) == {"fleet"})
        await asyncio.sleep(0.3)
    # Empty events make Airflow deliver what it may have left behind; their number is limited.
    empty = sum(run.payloads == [] for run in scheduling.runs if run.dag_id == "fleet")
    assert 0 < empty <= InvocationEventTrigger.settings.empty_events


async def test_a_paused_dag_holds_up_the_others_for_a_moment_only(
    airflow: Make, platform: EventsPlatform
) -> None:
    async with airflow(timeout=60.0) as scheduling:
        scheduling.dags["paused"] = Dag()
        await begun(scheduling)
        platform.end("iv_0")
        await until_async(lambda: scheduling.taken() == scheduling.taken("paused") == ["iv_0"])
        scheduling.dags["paused"].max_active_runs = 0
        for number in range(1, 4):
            platform.end(f"iv_{number}")
            await until_async(lambda number=number: f"iv_{number}" in scheduling.taken(), within=10)
        scheduling.dags["paused"].max_active_runs = 16
        await until_async(lambda: set(scheduling.taken("paused")) == set(ids(4)))


@pytest.mark.parametrize("asset", ["watched", "x" * 300])
async def test_an_asset_that_lost_its_state_while_its_dag_was_away_resumes_where_it_was(
    airflow: Make, platform: EventsPlatform, asset: str
) -> None:
    scheduling = airflow()
    scheduling.assets = {asset: State()}
    async with scheduling:
        await until_async(lambda: CURSOR_KEY in scheduling.assets[asset].values)
        platform.end("iv_0")
        await until_async(lambda: scheduling.taken() == ["iv_0"])
        await until_async(lambda: scheduling.assets[asset].values[CURSOR_KEY] == 1)
        await scheduling.crash()
        scheduling.assets[asset] = State()
        platform.end("iv_1", "iv_2")
        scheduling.start()
        platform.end("iv_3")
        await until_async(lambda: set(scheduling.taken()) == set(ids(4)))
    assert scheduling.taken() == ids(4)


async def test_a_variable_that_is_no_cursor_is_ignored(
    airflow: Make, platform: EventsPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    scheduling = airflow()
    scheduling.variables["invocation_events_cursor:watched"] = "tomorrow"
    async with scheduling:
        await begun(scheduling)
    assert "Variable invocation_events_cursor:watched is not a cursor; ignored" in caplog.text


async def test_unacknowledged_events_are_delivered_with_the_next_run(
    airflow: Make, platform: EventsPlatform
) -> None:
    async with airflow(timeout=0.1) as scheduling:
        await begun(scheduling)
        platform.end("iv_0")
        await until_async(lambda: scheduling.taken() == ["iv_0"])
        fleet = scheduling.dags["fleet"]
        fleet.max_active_runs = 0  # everything busy, for much longer than the trigger waits
        platform.end("iv_1")
        await until_async(lambda: len(scheduling.events) == 2)
        platform.end("iv_2")
        # Empty events that are in vain, as nothing takes them: a few, and then no more.
        await until_async(lambda: len(scheduling.events) == 3 + InvocationEventTrigger.settings.empty_events)
        await asyncio.sleep(0.3)
        assert len(scheduling.events) == 3 + InvocationEventTrigger.settings.empty_events
        fleet.max_active_runs = 16
        await until_async(lambda: scheduling.taken() == ids(3))
    assert scheduling.runs[1].payloads == ["iv_1"]
    assert [run.payloads for run in scheduling.runs[2:]] == [["iv_2"]]


async def test_unreadable_items_are_skipped_logged_and_counted(
    airflow: Make, platform: EventsPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    async with airflow() as scheduling:
        await begun(scheduling)
        platform.end("iv_0", "bad", "gone", "iv_1")
        platform.by_id["bad"] = UnreadableItem("created: it is no time")
        del platform.by_id["gone"]
        platform.send_rubbish()
        platform.end("iv_2")
        await until_async(lambda: len(scheduling.taken()) == 3)
    assert scheduling.taken() == ids(3)
    assert scheduling.events[-1].extra["payload"]["unreadable"] == 2
    assert "created: it is no time" in caplog.text
    assert "doesn't know the invocation any more" in caplog.text


async def test_the_payload_says_what_has_ended_and_is_json(airflow: Make, platform: EventsPlatform) -> None:
    async with airflow() as scheduling:
        await begun(scheduling)
        destination = {"destination_type": "Dataset", "destination_id": "ds_9"}
        platform.end("iv_1", status=S.Failed, upload_destination=destination)
        await until_async(scheduling.taken)
    (payload,) = [event.extra["payload"] for event in scheduling.events]
    assert json.loads(json.dumps(payload)) == payload
    assert payload["invocations"] == [
        {
            "invocation_id": "iv_1",
            "action": "count",
            "digest": "d",
            "status": "Failed",
            "detail": None,
            "created": NOON.isoformat(),
            "started": None,
            "ended": "2026-01-31T12:00:01+00:00",
            "duration": None,
            "queued": None,
            "url": "https://app.example/iv_1",
            "source_type": "Manual",
            "source_id": "me",
            "dataset_id": "ds_9",
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"plain", "failed", "other", "abroad", "triggered"}),
        ({"action": "count"}, {"plain", "failed", "abroad", "triggered"}),
        ({"statuses": ["Completed"]}, {"plain", "other", "abroad", "triggered"}),
        ({"statuses": "Failed"}, {"failed"}),
        ({"source": "Trigger"}, {"triggered"}),
        ({"source": "Manual"}, {"plain", "failed", "other", "abroad"}),
        ({"source": "airflow:dags/upstream/"}, {"triggered"}),
        ({"org_id": "og_2"}, {"abroad"}),
    ],
)
async def test_only_matching_events_are_delivered(
    airflow: Make, platform: EventsPlatform, arguments: dict[str, Any], expected: set[str]
) -> None:
    async with airflow(**arguments) as scheduling:
        await begun(scheduling)
        platform.end("plain")
        platform.end("failed", status=S.Failed)
        platform.end("other", action="other")
        platform.end("abroad", org_id="og_2")
        platform.end(
            "triggered", source_type="Trigger", source_id="airflow:dags/upstream/runs/r/tasks/t?try_number=1"
        )
        last = len(platform.log)
        await until_async(lambda: scheduling.trigger is not None and set(scheduling.taken()) == expected)
        await asyncio.sleep(0.02)
    assert set(scheduling.taken()) == expected
    assert last == 5


def asked_by(dag_id: str, consumed: list[str], run_id: str = "r") -> dict[str, Any]:
    """The parts of a record that tell which DAG run has asked for an invocation, and what had started it."""
    events = [AssetEvent(name=name, uri=name, timestamp=NOON) for name in consumed]
    provenance = DagRunProvenance(
        **{**PROVENANCE.model_dump(), "dag_id": dag_id, "run_id": run_id, "consumed_asset_events": events}
    )
    return {
        "source_type": "Trigger",
        "source_id": provenance.source_id,
        "container_parameters": {"env_vars": provenance.environment()},
    }


async def test_a_dag_does_not_start_itself(airflow: Make, platform: EventsPlatform) -> None:
    async with airflow() as scheduling:
        await begun(scheduling)
        platform.end("by a run that this asset started", **asked_by("somebody", ["other", "watched"]))
        platform.end("by another", **asked_by("somebody", ["other"]))
        await until_async(lambda: scheduling.taken() == ["by another"])
        platform.end("by hand, of the dag that takes over", **asked_by("fleet", []))
        platform.end("by yet another", **asked_by("somebody", []))
        await until_async(lambda: scheduling.taken() == ["by another", "by yet another"])


async def test_a_dag_may_start_itself_if_it_says_so(airflow: Make, platform: EventsPlatform) -> None:
    async with airflow(include_own_runs=True) as scheduling:
        await begun(scheduling)
        platform.end("own", **asked_by("fleet", ["watched"]))
        await until_async(lambda: scheduling.taken() == ["own"])


async def test_a_state_that_is_away_for_a_while_only_takes_longer(
    airflow: Make, platform: EventsPlatform
) -> None:
    scheduling = airflow()
    state = scheduling.assets["watched"]
    state.broken = True
    async with scheduling:
        await asyncio.sleep(0.02)
        state.broken = False
        await begun(scheduling)
        platform.end("iv_0")
        await until_async(lambda: len(scheduling.events) == 1)
        state.broken = True
        platform.end("iv_1")
        await asyncio.sleep(0.05)
        state.broken = False
        await until_async(lambda: scheduling.taken() == ids(2))


async def test_assets_with_equal_triggers_share_one_and_each_keeps_its_place(
    airflow: Make, platform: EventsPlatform
) -> None:
    scheduling = airflow()
    scheduling.assets["second"] = State()
    async with scheduling:
        await until_async(lambda: all(CURSOR_KEY in state.values for state in scheduling.assets.values()))
        platform.end("iv_0")
        await until_async(lambda: all(state.values[CURSOR_KEY] == 1 for state in scheduling.assets.values()))
        await until_async(scheduling.taken)  # the place is noted after a while whether or not a run has begun
    assert scheduling.taken() == ["iv_0"]


async def test_an_airflow_without_asset_state_is_told_so_and_works(
    platform: EventsPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    version_compat._warn_once.cache_clear()
    trigger = InvocationEventTrigger()
    trigger.asset_state_store = None
    steps = trigger.run()
    first = asyncio.ensure_future(anext(steps))
    await until_async(lambda: platform.opened)
    await asyncio.sleep(0.01)
    platform.end("iv_0")
    event = await first
    await steps.aclose()  # type: ignore[attr-defined]
    assert [one["invocation_id"] for one in event.payload["invocations"]] == ["iv_0"]
    assert "keeps no state for assets" in caplog.text


async def test_a_run_that_is_retried_or_cleared_gets_the_same_again(
    airflow: Make, platform: EventsPlatform
) -> None:
    from airflow_invocations.assets import triggering_invocations

    from .event_scheduling import context_of

    async with airflow() as scheduling:
        await begun(scheduling)
        for number in range(3):
            platform.end(f"iv_{number}")
            await until_async(lambda number=number: len(scheduling.taken()) == number + 1)
        again: Callable[[Run], Any] = lambda run: triggering_invocations(context_of(run))  # noqa: E731
        assert [again(run) for run in scheduling.runs] == [run.taken for run in scheduling.runs]
        acknowledged = scheduling.assets["watched"].values[ACKNOWLEDGED_KEY]
        assert acknowledged["fleet"] == max(e.extra["payload"]["sent"] for e in scheduling.events)


async def test_a_run_that_was_started_otherwise_has_none(airflow: Make) -> None:
    from types import SimpleNamespace

    from airflow_invocations.assets import triggering_invocations

    instance = SimpleNamespace(dag_id="fleet", run_id="r")
    context: Any = {"ti": instance, "triggering_asset_events": {}}
    assert triggering_invocations(context) == []
    foreign = SimpleNamespace(
        asset=SimpleNamespace(name="a", uri="a"),
        timestamp=NOON,
        extra={"from_trigger": True, "payload": {"x": 1}},
    )
    context["triggering_asset_events"] = {"a": [foreign]}
    assert triggering_invocations(context) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"statuses": ["Done"]}, "'statuses': it has 'Done'; allowed: Completed, Cancelled, Failed, Deadly"),
        ({"statuses": ["Queued"]}, "it has 'Queued'"),
        ({"statuses": []}, "it is empty"),
        ({"batch_size": 0}, "'batch_size': it is 0; allowed: 1 to 1000"),
        ({"batch_size": True}, "'batch_size'"),
        ({"action": " "}, "'action'"),
        ({"conn_id": ""}, "'conn_id'"),
        ({"source": ""}, "'source'"),
        ({"org_id": ""}, "'org_id'"),
        ({"acknowledge_timeout": 0}, "'acknowledge_timeout'"),
    ],
)
def test_invalid_arguments_are_rejected_when_the_dag_is_parsed(arguments: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match="InvocationEventTrigger: argument ") as rejected:
        InvocationEventTrigger(**arguments)
    assert hint in str(rejected.value)


def test_a_queue_is_airflows_or_rejected_when_the_dag_is_parsed() -> None:
    if version_compat.has_trigger_queues():
        trigger = InvocationEventTrigger(queue="gpu")
        assert trigger.queue == "gpu"
        with DAG("fleet", schedule=[Asset("a", watchers=[AssetWatcher(name="w", trigger=trigger)])]) as dag:
            pass
        assert '"queue": "gpu"' in json.dumps(DagSerialization.to_dict(dag))
    else:
        with pytest.raises(ValueError, match=r"argument 'queue': Airflow .* leave it out"):
            InvocationEventTrigger(queue="gpu")


def test_it_survives_the_way_through_airflows_database() -> None:
    trigger = InvocationEventTrigger(action="count", statuses=["Failed", "Completed"], batch_size=9)
    watcher = AssetWatcher(name="w", trigger=trigger)
    with DAG("fleet", schedule=[Asset("a", watchers=[watcher])]) as dag:
        pass
    text = json.dumps(DagSerialization.to_dict(dag))
    assert "InvocationEventTrigger" in text
    path, arguments = trigger.serialize()
    assert path == "airflow_invocations.triggers.events.InvocationEventTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    again = InvocationEventTrigger(**arguments)
    assert again.serialize() == trigger.serialize()
    hashes = {InvocationEventTrigger.hash(*one.serialize()) for one in (trigger, again)}
    assert len(hashes) == 1
