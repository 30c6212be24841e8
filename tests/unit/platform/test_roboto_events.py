"""Events of the invocation API: pushed by the local service, asked for where there is no push."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_invocations.model import InvocationRecord, InvocationStatus
from airflow_invocations.platform import (
    Capabilities,
    CaughtUp,
    EventFilter,
    InvocationEvent,
    UnavailableError,
    UnreadableItem,
    UnsupportedError,
    event_platform,
    is_time,
    roboto_events,
)
from airflow_invocations.platform.roboto_events import PolledEvents

from .conftest import Script, answer, data, error, raw
from .test_roboto import INVOCATION

pytestmark = pytest.mark.anyio
S = InvocationStatus
NOON = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
#: What is asked for goes back from the present.
BEGAN = datetime.datetime.now(datetime.UTC)
ENDS = EventFilter("count", frozenset({S.Completed, S.Failed}))


def stream(*events: tuple[str, int | None, str]) -> Any:
    """An answer with these server-sent events, that then breaks off."""
    text = "".join(
        f"event: {name}\n{f'id: {number}' + chr(10) if number is not None else ''}data: {body}\n\n"
        for name, number, body in events
    )
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + text.encode())


def changed(number: int, status: int = 5, **changes: Any) -> tuple[str, int, str]:
    body = {
        "number": number, "invocation_id": f"iv_{number}", "action": "count", "attempt": 1, "status": status,
        "detail": None, "timestamp": NOON.isoformat(), **changes,
    }  # fmt: skip
    return "status", number, json.dumps(body)


async def heard(opened: Any) -> list[Any]:
    """Everything that a stream tells until it breaks."""
    told: list[Any] = []
    try:
        async with opened as events:
            async for one in events:
                told += [one]
    except UnavailableError:
        return told
    raise AssertionError("it ended just so")


async def test_what_is_pushed_is_read_and_what_cannot_be_read_is_told_as_such(script: Script) -> None:
    script.answers = [
        stream(
            ("open", None, '{"watch_id": "wt_1"}'),
            changed(7),
            ("status", 8, "{half"),
            ("status", None, '{"number": 9}'),
            changed(10, status=998),
            ("ready", 10, '{"number": 10}'),
            changed(11, status=4711),
            ("lost", 11, '{"number": 11, "reason": "slow"}'),
            changed(12),
        )
    ]
    async with script.client() as platform:
        told = await heard(platform.events(ENDS, 6))
    assert script.seen[0].path == "/v1/actions/invocations/watch"
    assert script.seen[0].body == {"action": "count", "statuses": [5, 998], "since": 6}
    assert told[0] == InvocationEvent("iv_7", "count", S.Completed, NOON, 7)
    assert [type(one) for one in told[1:3]] == [UnreadableItem, UnreadableItem]
    assert (told[3].place, told[3].status, told[4]) == (10, S.Failed, CaughtUp(10))
    assert not told[5].status.is_known
    assert len(told) == 6


async def test_a_platform_that_has_pushed_and_answers_404_is_away_not_without_events(script: Script) -> None:
    script.answers = [error(404, "RobotoNotFoundException")]
    async with script.client() as platform:
        with pytest.raises(UnavailableError, match="has had one before"):
            async with platform.events(ENDS, 6):
                raise AssertionError("it was opened")


async def test_where_there_is_no_push_it_is_asked(script: Script) -> None:
    script.answers = [error(404, "RobotoNotFoundException"), data({"items": [], "next_token": None})]
    async with script.client() as platform, platform.events(ENDS, None) as events:
        told = await anext(aiter(events))
    assert isinstance(told, CaughtUp)
    assert is_time(told.place)
    body = script.seen[1].body
    assert body["condition"]["conditions"][1] == {
        "field": "provenance.action.name", "comparator": "EQUALS", "value": "count",
    }  # fmt: skip
    assert (body["sort_by"], body["sort_direction"]) == ("created", "ASC")


async def test_a_place_that_is_a_time_is_never_sent_to_a_stream(script: Script) -> None:
    script.answers = [data({"items": [], "next_token": None})]
    async with script.client() as platform, platform.events(ENDS, 2**51) as events:
        assert await anext(aiter(events)) == CaughtUp(2**51)
    assert [seen.path for seen in script.seen] == ["/v1/actions/invocations/query"]


async def test_one_record_that_cannot_be_read_hides_no_other(script: Script) -> None:
    script.answers = [data({"items": [INVOCATION, {"invocation_id": "iv_2"}], "next_token": None})]
    async with script.client() as platform:
        found = await platform.records(["iv_1", "iv_2"])
    assert isinstance(found[0], InvocationRecord)
    assert isinstance(found[1], UnreadableItem)
    assert "Field required" in found[1].reason


async def test_other_errors_are_not_taken_for_a_missing_stream(script: Script) -> None:
    script.answers = [answer(503, b"try later")]
    async with script.client() as platform:
        with pytest.raises(UnavailableError):
            async with platform.events(ENDS, None):
                raise AssertionError("it was opened")


def test_a_platform_that_cannot_tell_refuses_with_what_to_do_instead() -> None:
    class Silent:
        capabilities = Capabilities()
        where = "flyte at example"

    with pytest.raises(UnsupportedError, match=r"flyte at example doesn't tell .* InvocationSensor"):
        event_platform(Silent())  # type: ignore[arg-type]


class Listed:
    """Records as a query answers them, of a platform whose clock a test sets."""

    def __init__(self) -> None:
        self.now = BEGAN
        self.by_id: dict[str, dict[str, Any]] = {}
        self.asked = 0

    def begin(self, invocation_id: str, **changes: Any) -> None:
        created = self.now.isoformat()
        step = {"status": 3, "timestamp": created}
        self.by_id[invocation_id] = {
            "invocation_id": invocation_id, "created": created, "last_status": 3, "status": [step],
            "provenance": {"action": {"name": "count"}}, **changes,
        }  # fmt: skip

    def end(self, invocation_id: str, status: int = 5) -> None:
        record = self.by_id[invocation_id]
        step = {"status": status, "timestamp": self.now.isoformat()}
        self.by_id[invocation_id] = {**record, "last_status": status, "status": [*record["status"], step]}

    async def items(self, condition: dict[str, Any]) -> AsyncIterator[Any]:
        self.asked += 1
        first, *_ = condition["conditions"]
        if "conditions" in first:
            ids = {each["value"] for each in first["conditions"]}
            found = [one for key, one in self.by_id.items() if key in ids and one["last_status"] >= 5]
        else:
            found = [one for one in self.by_id.values() if one["created"] >= first["value"]]
        for one in found:
            yield one

    def stream(self, since: int | None) -> _Polled:
        return _Polled(PolledEvents(self.items, EventFilter(), since, self.pause))

    async def pause(self, _: float) -> None:
        await asyncio.sleep(0)


class _Polled:
    """A polled stream, read step by step: an item a look ends with tells that it has ended."""

    def __init__(self, events: PolledEvents) -> None:
        self._events = aiter(events)
        self._step: asyncio.Future[Any] | None = None

    async def heard(self, looks: int = 3) -> list[Any]:
        """What is told in so many looks."""
        told = []
        for _ in range(looks * 10):
            self._step = self._step or asyncio.ensure_future(anext(self._events))
            await asyncio.sleep(0)
            if self._step.done():
                told.append(self._step.result())
                self._step = None
        return told

    async def close(self) -> None:
        if self._step is not None:
            self._step.cancel()
            await asyncio.gather(self._step, return_exceptions=True)


def microseconds(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1e6)


def names(told: list[Any]) -> list[str]:
    return [one.invocation_id for one in told if isinstance(one, InvocationEvent)]


async def test_ends_are_found_by_asking_each_once() -> None:
    listed = Listed()
    listed.begin("old")
    listed.end("old")
    listed.begin("under way")
    events = listed.stream(None)
    (first,) = await events.heard()
    assert first == CaughtUp(microseconds(BEGAN))
    listed.now += datetime.timedelta(seconds=30)
    listed.begin("new")
    listed.end("new", 998)
    assert names(await events.heard()) == ["new"]
    listed.now += datetime.timedelta(days=3)
    listed.begin("other")
    listed.end("under way")
    told = await events.heard()
    assert told == [InvocationEvent("under way", "count", S.Completed, listed.now, microseconds(listed.now))]
    listed.end("other")
    assert names(await events.heard()) == ["other"]
    assert await events.heard() == []
    await events.close()


async def test_what_has_ended_while_nobody_asked_is_found_when_it_is_resumed() -> None:
    listed = Listed()
    listed.begin("long")
    listed.begin("told")
    listed.end("told")
    place = microseconds(BEGAN)
    listed.now += datetime.timedelta(hours=5)
    listed.end("long")
    listed.begin("short")
    listed.end("short")
    events = listed.stream(place)
    told = await events.heard()
    # What has ended within the overlap is told again.
    assert names(told) == ["told", "long", "short"]
    assert told[-1] == CaughtUp(place)
    await events.close()


async def test_what_is_told_again_is_not_older_than_the_overlap() -> None:
    listed = Listed()
    listed.begin("long ago")
    listed.end("long ago")
    listed.now += roboto_events.SLACK + datetime.timedelta(seconds=1)
    events = listed.stream(microseconds(listed.now))
    assert names(await events.heard()) == []
    await events.close()


async def test_a_platform_whose_clock_is_slow_loses_nothing() -> None:
    listed = Listed()
    listed.now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    events = listed.stream(None)
    await events.heard()
    listed.begin("new")
    listed.end("new")
    told = await events.heard()
    assert names(told) == ["new"]
    await events.close()


async def test_an_item_that_cannot_be_read_is_told_as_such_and_hides_no_other() -> None:
    listed = Listed()
    events = listed.stream(None)
    await events.heard()
    listed.begin("bad", provenance={})
    listed.begin("good")
    listed.end("good")
    told = await events.heard()
    assert names(told) == ["good"]
    assert [isinstance(one, UnreadableItem) for one in told] == [True, False]
    await events.close()
