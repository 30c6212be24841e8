"""Settings for how much of an action's log a task shows, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """Limits of a log that is copied after its invocation has ended: half from its start, half from its end.

    :param lines: the maximum number of lines.
    :param size: the maximum number of bytes in the task's log: 1 per character, `LogSettings.overhead` per
        line.
    :param seconds: the maximum time to read the log.
    """

    lines: int
    size: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Settings for copying logs from a platform to task logs. Sizes are in bytes, times in seconds.

    One line:

    :param line_length: characters of a line that are shown; a longer line is cut, with a note.
    :param overhead: the bytes that Airflow adds to each line: time, logger, level, names.

    Live logs in a triggerer, whose supervisor reads the lines of all its triggers from one channel and does
    nothing else meanwhile:

    :param interval: time between two bursts of lines, for all logs of an event loop together.
    :param collecting: time for which the first lines after a pause wait for others.
    :param first_burst: size of the first burst; the next ones grow and shrink with their cost.
    :param least_burst: minimum size of a burst.
    :param most_burst: maximum size of a burst.
    :param drain_target: time that the supervisor may take to read a burst; if it takes longer, the next burst
        is halved.
    :param growth: factor by which a burst grows when the previous one was cheap and lines were left.
    :param drain_limit: time after which lines are written although the channel was never empty, because
        another trigger may write without pause.
    :param stretch: time for which lines are written before other tasks of the event loop get a turn.
    :param poll: time between two checks of the channel while it is being read.
    :param memory: half-life of a log's count of recent bytes; logs with the fewest come first.

    Lines that were read and not yet shown:

    :param queue_lines: lines of one log; a longer queue stops reading that log.
    :param queue_size: bytes of one log; a larger queue stops reading that log.
    :param queues_size: bytes of all logs of an event loop.
    :param behind: time after which a stopped log is reported as behind.

    At an invocation's end:

    :param settle: time that a task's end waits for its last lines to leave the triggerer.
    :param worker_end: limits of the rest of a log in a worker.
    :param triggerer_end: limits of the rest of a log in a triggerer that ends its task itself.

    On platforms that don't push lines:

    :param reads: requests per second, for all logs of a connection.
    :param readers: concurrent requests.
    :param least_pause: time between two requests for a log that just had new lines.
    :param most_pause: time between two requests for a log that had none for a while.
    """

    line_length: int = 16_384
    overhead: int = 350

    interval: float = 1.0
    collecting: float = 0.1
    first_burst: int = 32_768
    least_burst: int = 4_096
    most_burst: int = 262_144
    drain_target: float = 0.2
    growth: float = 1.2
    drain_limit: float = 5.0
    stretch: float = 0.005
    poll: float = 0.02
    memory: float = 10.0

    queue_lines: int = 500
    queue_size: int = 262_144
    queues_size: int = 33_554_432
    behind: float = 10.0

    settle: float = 3.0
    worker_end: LogEnd = field(
        default_factory=lambda: LogEnd(lines=100_000, size=64 * 1024 * 1024, seconds=120.0)
    )
    triggerer_end: LogEnd = field(default_factory=lambda: LogEnd(lines=1_000, size=1024 * 1024, seconds=60.0))

    reads: float = 25.0
    readers: int = 4
    least_pause: float = 1.0
    most_pause: float = 8.0


LOG_SETTINGS = LogSettings()
