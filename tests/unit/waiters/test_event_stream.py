"""The shared event stream of a connection: one stream for all subscriptions, and no event is missed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator

import pytest

from airflow_invocations.models import EventFilter, InvocationStatus
from airflow_invocations.platforms import Capabilities, UnauthorizedError, UnavailableError
from airflow_invocations.waiters import event_stream
from airflow_invocations.waiters.event_stream import StreamRegistry, Subscription, fetch_records

from ...support.events_platform import (
    EventsPlatform,
)
from ...support.waiting import until_async

pytestmark = pytest.mark.anyio
S = InvocationStatus
EVERYTHING = EventFilter()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "COLLECTING", 0.001)
    monkeypatch.setattr(event_stream, "backoff", lambda attempt, base=0.5, cap=30.0: -0.199)


class Listener:
    """A subscriber that pops events until it is stopped."""

    def __init__(
        self, platform: EventsPlatform, cursor: int | None = None, wanted: EventFilter = EVERYTHING
    ) -> None:
        self.received: list[str] = []
        self.subscription = Subscription(wanted, cursor)
        self.stream = StreamRegistry.current().join("c", platform.connect, self.subscription)
        self.runs = asyncio.Event()
        self.runs.set()
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            await self.runs.wait()
            await self.subscription.wait_for_event()
            self.received += [event.invocation_id for event in self.subscription.pop(100)]

    def leave(self) -> None:
        self.task.cancel()
        self.stream.leave(self.subscription)


@pytest.fixture
async def platform() -> AsyncIterator[EventsPlatform]:
    platform = EventsPlatform()
    yield platform
    for one in list(StreamRegistry.current()._streams.values()):
        for subscription in list(one._subscriptions):
            one.leave(subscription)
    await until_async(lambda: not StreamRegistry.current()._streams)


def ids(count: int, begin: int = 0) -> list[str]:
    return [f"iv_{number}" for number in range(begin, begin + count)]


async def test_fifty_subscriptions_share_one_client_and_one_stream(platform: EventsPlatform) -> None:
    listeners = [Listener(platform) for _ in range(50)]
    for listener in listeners:
        await listener.subscription.start_cursor()
    platform.end(*ids(20))
    await until_async(lambda: all(listener.received == ids(20) for listener in listeners))
    assert platform.connects == len(platform.opened) == 1
    for listener in listeners:
        listener.leave()
    await until_async(lambda: platform.closed == 1)


async def test_subscription_without_cursor_gets_no_past_events(platform: EventsPlatform) -> None:
    platform.end(*ids(3))
    first = Listener(platform)
    assert await first.subscription.start_cursor() == 3
    platform.end("new")
    await until_async(lambda: first.received == ["new"])
    later = Listener(platform)
    assert await later.subscription.start_cursor() == 4
    platform.end("newer")
    await until_async(lambda: later.received == ["newer"])
    assert len(platform.opened) == 1


async def test_subscription_with_older_cursor_gets_missed_events_and_no_event_comes_twice(
    platform: EventsPlatform,
) -> None:
    platform.end(*ids(10))
    first = Listener(platform, cursor=8)
    await until_async(lambda: first.received == ["iv_8", "iv_9"])
    second = Listener(platform, cursor=5)
    await until_async(lambda: second.received == ["iv_5", "iv_6", "iv_7", "iv_8", "iv_9"])
    platform.end("iv_10")
    await until_async(lambda: first.received[-1] == second.received[-1] == "iv_10")
    assert first.received == ["iv_8", "iv_9", "iv_10"]


async def test_stream_has_the_union_of_filters_and_each_subscription_gets_its_own_events(
    platform: EventsPlatform,
) -> None:
    counts = Listener(platform, wanted=EventFilter("count", frozenset({S.Completed})))
    await counts.subscription.start_cursor()
    fails = Listener(platform, wanted=EventFilter(None, frozenset({S.Failed})))
    await fails.subscription.start_cursor()
    platform.end("iv_1")
    platform.end("iv_2", status=S.Failed, action="other")
    platform.end("iv_3", status=S.Failed)
    await until_async(lambda: fails.received == ["iv_2", "iv_3"])
    assert counts.received == ["iv_1"]
    assert platform.opened[0][0] == EventFilter("count", frozenset({S.Completed}))
    assert platform.opened[-1][0] == EventFilter(None, frozenset({S.Completed, S.Failed}))


async def test_outage_loses_no_event_and_is_logged_once(
    platform: EventsPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(platform)
    await listener.subscription.start_cursor()
    platform.end("iv_0")
    await until_async(lambda: listener.received == ["iv_0"])
    platform.down = UnavailableError("no route")
    platform.break_streams()
    await until_async(lambda: platform.connects >= 4)
    platform.end(*ids(5, begin=1))
    platform.down = None
    await until_async(lambda: listener.received == ids(6))
    assert [entry.levelno for entry in caplog.records if "cannot read events" in entry.message] == [
        logging.WARNING
    ]


async def test_rejected_token_is_read_again_from_the_connection(platform: EventsPlatform) -> None:
    platform.down = UnauthorizedError("not known")
    listener = Listener(platform, cursor=0)
    await until_async(lambda: platform.connects >= 3)
    platform.down = None
    platform.end("iv_0")
    await until_async(lambda: listener.received == ["iv_0"])


async def test_platform_without_events_is_logged_with_an_alternative(
    platform: EventsPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    platform.capabilities = Capabilities()
    Listener(platform)
    await until_async(lambda: any(entry.levelno == logging.ERROR for entry in caplog.records))
    (said,) = {entry.message for entry in caplog.records if entry.levelno == logging.ERROR}
    assert "https://api.example has no stream of events" in said
    assert platform.opened == []


async def test_unreadable_event_is_logged_counted_and_skipped(
    platform: EventsPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(platform, cursor=0)
    platform.end("iv_0")
    platform.send_rubbish()
    platform.send_rubbish()
    platform.end("iv_1")
    await until_async(lambda: listener.received == ["iv_0", "iv_1"])
    assert listener.stream.unreadable == 2
    assert "skipped an unreadable event (2 so far): timestamp" in caplog.text


async def test_slow_subscription_queues_a_bounded_number_of_events(platform: EventsPlatform) -> None:
    slow, quick = Listener(platform, cursor=0), Listener(platform, cursor=0)
    slow.runs.clear()
    platform.end(*ids(10_000))
    await until_async(lambda: len(quick.received) == 10_000)
    assert len(slow.subscription._queue) <= event_stream.QUEUE_LIMIT
    slow.runs.set()
    await until_async(lambda: len(slow.received) == 10_000)
    assert slow.received == quick.received == ids(10_000)


async def test_stream_is_not_read_while_no_subscription_has_room(platform: EventsPlatform) -> None:
    slow = Listener(platform, cursor=0)
    slow.runs.clear()
    platform.end(*ids(10_000))
    await until_async(lambda: slow.subscription.is_behind)
    assert platform.sent <= event_stream.QUEUE_LIMIT + event_stream.STRETCH
    slow.runs.set()
    await until_async(lambda: slow.received == ids(10_000))


async def test_reset_event_sequence_is_read_from_its_beginning(platform: EventsPlatform) -> None:
    platform.end(*ids(2))
    listener = Listener(platform, cursor=40)
    await until_async(lambda: listener.received == ids(2))


async def test_event_that_is_sent_again_with_time_cursors_is_delivered_once(platform: EventsPlatform) -> None:
    platform.overlap = 5
    listener = Listener(platform, cursor=0)
    platform.end(*ids(3))
    await until_async(lambda: listener.received == ids(3))
    platform.break_streams()
    await until_async(lambda: len(platform.opened) == 2)
    platform.end("iv_3")
    await until_async(lambda: "iv_3" in listener.received)
    assert listener.received == ids(4)


async def test_every_subscription_gets_every_event_once_whatever_breaks(platform: EventsPlatform) -> None:
    chance = random.Random(7)
    listeners = [Listener(platform, cursor=0)]
    count = 0
    for _ in range(150):
        match chance.randrange(7):
            case 0 | 1 | 2:
                more = chance.randrange(1, 40)
                platform.end(*ids(more, begin=count))
                count += more
            case 3:
                platform.break_streams()
            case 4:
                platform.down = None if platform.down else UnavailableError("no route")
            case 5:
                listeners.append(Listener(platform, cursor=chance.randrange(count + 1)))
            case 6:
                chance.choice(listeners).runs.clear()
        await asyncio.sleep(chance.random() * 0.004)
    platform.down = None
    firsts = [int(one.received[0][3:]) if one.received else None for one in listeners[1:]]
    begins = [0, *firsts]
    for one in listeners:
        one.runs.set()
    await until_async(
        lambda: all(one.received and one.received[-1] == f"iv_{count - 1}" for one in listeners)
    )
    for begin, one in zip(begins, listeners, strict=True):
        first = int(one.received[0][3:]) if begin is None else begin
        assert one.received == ids(count - first, begin=first)


async def test_last_subscription_to_leave_closes_the_stream_also_during_an_outage(
    platform: EventsPlatform,
) -> None:
    platform.down = UnavailableError("no route")
    listener = Listener(platform, cursor=0)
    await until_async(lambda: platform.connects)
    listener.leave()
    await until_async(lambda: not StreamRegistry.current()._streams)


async def test_time_cursors_never_share_a_stream_with_numbers(platform: EventsPlatform) -> None:
    numbers, times = Listener(platform, cursor=0), Listener(platform, cursor=2**51)
    now = Listener(platform)
    assert numbers.stream is now.stream is not times.stream


async def test_records_are_requested_until_answered_and_singly_if_batches_are_rejected(
    platform: EventsPlatform,
) -> None:
    platform.end("iv_0", "iv_1")
    platform.down = UnavailableError("no route")
    asking = asyncio.create_task(fetch_records("c", platform.connect, ["iv_0", "iv_1", "gone"]))
    await until_async(lambda: platform.connects >= 2)
    platform.batches = False
    platform.down = None
    found = await asking
    assert [item[0].invocation_id for item in found if isinstance(item, tuple)] == ["iv_0", "iv_1"]
    assert [item.reason for item in found if not isinstance(item, tuple)] == [
        "the platform doesn't know the invocation any more"
    ]


def test_filters_cover_and_unite() -> None:
    narrow = EventFilter("count", frozenset({S.Completed}))
    other = EventFilter("count", frozenset({S.Failed}))
    both = narrow.union(other)
    assert both == EventFilter("count", frozenset({S.Completed, S.Failed}))
    assert both.covers(narrow)
    assert not narrow.covers(both)
    assert not narrow.covers(EVERYTHING)
    assert EVERYTHING.covers(both)
    assert narrow.union(EVERYTHING) == EVERYTHING
