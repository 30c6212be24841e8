"""Many logs over one channel whose receiver is slow: nothing lost, fair shares, and bounded bursts."""

from __future__ import annotations

import asyncio
import datetime
import itertools
from collections.abc import Iterable

from airflow_invocations.models import LogRecord
from airflow_invocations.waiters import (
    LineShaper,
    LogLine,
    LogPosition,
    LogQueue,
    LogRelay,
    LogSettings,
)
from airflow_invocations.waiters.log_relay import BurstBudget

from ...support.virtual_time import (
    VirtualLoop,
    run,
)
from .conftest import page

SETTINGS = LogSettings()

#: A line of 50 characters, as it counts.
LINE = 50 + SETTINGS.overhead


class Supervisor:
    """Reads 4,096 bytes of a channel each time it goes round, as Airflow's does.

    :param round_time: seconds for one round.
    """

    capacity = 212_992

    def __init__(self, round_time: float) -> None:
        self.round_time = round_time
        self.loop = asyncio.get_running_loop()
        self.buffer = 0
        self.most = 0
        #: When each line was written, by log.
        self.shown: dict[str, list[float]] = {}
        self.busy = 0.0
        self._reader: asyncio.Task[None] | None = None
        #: How long one write takes the writer.
        self.write_time = 0.0004

    def unread(self) -> int:
        return self.buffer

    def writer(self, name: str) -> object:
        def write(line: LogLine) -> None:
            assert isinstance(self.loop, VirtualLoop)
            self.loop.pass_time(self.write_time)
            self.buffer += line.size
            self.most = max(self.most, self.buffer)
            self.shown.setdefault(name, []).append(self.loop.time())
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read())

        return write

    async def _read(self) -> None:
        while self.buffer:
            await asyncio.sleep(self.round_time)
            self.busy += self.round_time
            self.buffer = max(0, self.buffer - 4096)


class Log:
    """One action's log, and its queue in a relay."""

    def __init__(self, relay: LogRelay, supervisor: Supervisor, name: str) -> None:
        self.name = name
        self.written = 0
        self.relay = relay
        self.shown = supervisor.shown.setdefault(name, [])
        self.queue = relay.open(
            supervisor.writer(name),  # type: ignore[arg-type]
            LogPosition(),
            LineShaper(),
        )

    def put(self, count: int) -> None:
        """Queue lines of the platform, if there is room."""
        if self.queue.has_room:
            self.written += count
            self.relay.put(self.queue, page(["x" * 50] * count, "0").items, str(self.written))


def relay_for(supervisor: Supervisor, settings: LogSettings = SETTINGS) -> LogRelay:
    return LogRelay(supervisor, settings, clock=asyncio.get_running_loop().time)


def test_every_line_is_shown_once_and_known_to_have_left() -> None:
    async def main() -> None:
        supervisor = Supervisor(round_time=0.005)
        relay = relay_for(supervisor)
        logs = [Log(relay, supervisor, f"{number}") for number in range(40)]
        for _ in range(10):
            for log in logs:
                log.put(3)
            await asyncio.sleep(1.0)
        await asyncio.sleep(10.0)
        assert [len(log.shown) for log in logs] == [30] * 40
        assert [await relay.settle(log.queue) for log in logs] == [LogPosition("30")] * 40

    run(main())


def test_settle_stops_writing_and_reports_only_lines_that_left() -> None:
    async def main() -> None:
        supervisor = Supervisor(round_time=0.04)
        relay = relay_for(supervisor)
        log = Log(relay, supervisor, "log")
        log.put(300)
        await asyncio.sleep(0.12)  # in the midst of the first burst
        shown = len(log.shown)
        assert 0 < shown < 300
        assert log.queue.left == LogPosition()
        position = await relay.settle(log.queue)
        assert position == LogPosition(None, shown)
        assert supervisor.buffer == 0
        await asyncio.sleep(10)
        assert len(log.shown) == shown

    run(main())


def test_settle_has_a_time_limit_if_the_channel_is_not_read() -> None:
    async def main() -> None:
        supervisor = Supervisor(round_time=3600.0)
        relay = relay_for(supervisor)
        log = Log(relay, supervisor, "log")
        log.put(10)
        await asyncio.sleep(0.5)
        began = asyncio.get_running_loop().time()
        assert await relay.settle(log.queue) == LogPosition()
        assert asyncio.get_running_loop().time() - began <= SETTINGS.settle + 0.1

    run(main())


def test_quiet_log_is_shown_without_delay_beside_floods() -> None:
    async def main() -> None:
        supervisor = Supervisor(round_time=0.04)
        relay = relay_for(supervisor)
        floods = [Log(relay, supervisor, f"flood {number}") for number in range(20)]
        quiet = [Log(relay, supervisor, f"quiet {number}") for number in range(5)]
        delays: list[float] = []
        for second in range(120):
            for log in floods:
                log.put(100)
            for log in quiet:
                log.put(1)
            written = asyncio.get_running_loop().time()
            await asyncio.sleep(1.3)
            delays += [log.shown[-1] - written for log in quiet if len(log.shown) == log.written]
            assert len(delays) == 5 * (second + 1), f"a quiet log was not shown after {second} s"
        assert max(delays) < 1.3
        shares = [len(log.shown) for log in floods]
        assert min(shares) > 0
        assert max(shares) - min(shares) <= 3

    run(main())


def test_lines_take_a_small_part_of_a_slow_receivers_time_and_more_of_a_quick_one() -> None:
    async def shown_within_a_minute(round_time: float) -> tuple[int, float]:
        supervisor = Supervisor(round_time)
        relay = relay_for(supervisor)
        logs = [Log(relay, supervisor, f"{number}") for number in range(20)]
        for _ in range(60):
            for log in logs:
                log.put(50)
            await asyncio.sleep(1.0)
        assert supervisor.most < Supervisor.capacity * 0.6, "a write would have blocked"
        return sum(len(log.shown) for log in logs), supervisor.busy / 60

    slow, busy_slow = run(shown_within_a_minute(0.05))
    quick, busy_quick = run(shown_within_a_minute(0.002))
    assert busy_slow < 1.5 * SETTINGS.drain_target
    assert busy_quick < 1.5 * SETTINGS.drain_target
    assert slow > 60 * 2 * 4096 / LINE * 0.8
    assert quick > 10 * slow


def test_lines_of_all_logs_are_written_together_once_a_second() -> None:
    async def main() -> None:
        supervisor = Supervisor(round_time=0.005)
        relay = relay_for(supervisor)
        logs = [Log(relay, supervisor, f"{number}") for number in range(40)]
        for _ in range(100):
            for log in logs[:4]:
                log.put(1)
            await asyncio.sleep(0.1)
        moments = sorted(moment for log in logs for moment in log.shown)
        bursts = 1 + sum(later - earlier > 0.3 for earlier, later in itertools.pairwise(moments))
        assert 9 <= bursts <= 12

    run(main())


def test_channel_that_is_never_empty_does_not_stop_logs() -> None:
    async def main() -> None:
        supervisor = Supervisor(round_time=0.01)
        supervisor.unread = lambda: max(1, supervisor.buffer)  # type: ignore[method-assign]
        relay = relay_for(supervisor)
        log = Log(relay, supervisor, "log")
        for _ in range(60):
            log.put(1)
            await asyncio.sleep(1.0)
        assert len(log.shown) >= 50
        assert log.queue.left == LogPosition()

    run(main())


def test_queues_are_bounded_singly_and_together() -> None:
    async def main() -> None:
        settings = LogSettings(queues_size=20 * LINE)
        supervisor = Supervisor(round_time=0.2)
        relay = relay_for(supervisor, settings)
        rooms: list[str] = []
        logs = [Log(relay, supervisor, f"{number}") for number in range(10)]
        for log in logs:
            log.queue.on_room = lambda name=log.name: rooms.append(name)
            log.put(5)
        assert sum(log.written for log in logs) == 20
        await asyncio.sleep(30)
        assert sum(len(log.shown) for log in logs) == 20
        assert sorted(rooms) == [log.name for log in logs if not log.written]

    run(main())


def test_full_queue_has_room_again_when_empty() -> None:
    queue = LogQueue(settings=LogSettings(queue_lines=4))
    rooms: list[None] = []
    queue.on_room = lambda: rooms.append(None)
    queue.put(page(["a"] * 5, "5").items, "5")
    assert not queue.has_room
    for _ in range(4):
        queue.write_next()
    assert (queue.has_room, rooms, queue.written) == (False, [], LogPosition(None, 4))
    queue.write_next()
    assert (queue.has_room, rooms, queue.written) == (True, [None], LogPosition("5"))


def test_endless_line_is_cut_and_takes_no_room() -> None:
    def parts() -> Iterable[LogRecord]:
        for _ in range(800):  # 50 MB, as the local server keeps them
            yield LogRecord.model_validate(
                {
                    "partial_id": "1",
                    "log": "y" * 65_536,
                    "process": "action",
                    "timestamp": datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC),
                }
            )

    shown: list[LogLine] = []
    queue = LogQueue(shown.append, shaper=LineShaper("http://platform/log"))
    for number, record in enumerate(parts()):
        queue.put([record], str(number))
    assert queue.size < 2 * SETTINGS.line_length
    while len(queue):
        queue.write_next()
    texts = [line.text for line in shown if line.text is not None]
    assert len(texts) == 1
    assert texts[0].startswith("y" * SETTINGS.line_length + " [... cut after 16,384 characters")
    assert "http://platform/log" in texts[0]
    assert (queue.written.cursor, queue.written.lines) == ("799", 0)
    assert queue.written.long_line is not None


def test_budget_halves_after_a_slow_burst_and_grows_slowly_after_quick_ones() -> None:
    budget = BurstBudget()
    budget.learn(seconds=0.3, was_limit=True)
    assert budget.size == SETTINGS.first_burst // 2
    budget.learn(seconds=0.1, was_limit=False)
    assert budget.size == SETTINGS.first_burst // 2
    budget.learn(seconds=0.1, was_limit=True)
    assert budget.size == int(SETTINGS.first_burst // 2 * SETTINGS.growth)
    for _ in range(20):
        budget.learn(seconds=9.0, was_limit=True)
    assert budget.size == SETTINGS.least_burst
    for _ in range(200):
        budget.learn(seconds=0.0, was_limit=True)
    assert budget.size == SETTINGS.most_burst
