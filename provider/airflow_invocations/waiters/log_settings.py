"""Every number that decides how much of an action's log a task shows, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """Limits of a log that is copied after its invocation has ended: half from its start, half from its end.

    :param lines: lines at most.
    :param size: bytes at most, as they count in the task's log: 1 for each character, `LogSettings.overhead`
        for each line.
    :param seconds: for which the log is read at most.
    """

    lines: int
    size: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """How logs get from a platform into task logs. Sizes are in bytes, times in seconds.

    One line:

    :param line_length: characters of a line that are shown; a longer line is cut and says so.
    :param overhead: what Airflow adds to each line: time, logger, level, names.

    Live in a triggerer, whose supervisor reads all of its triggers' lines from one channel and does nothing
    else meanwhile:

    :param interval: between two bursts of lines, for all logs of an event loop together.
    :param collecting: for which the first lines after a rest wait for others.
    :param first_burst: size of the first burst; the next ones grow and shrink by what they cost.
    :param least_burst: size below which no burst falls.
    :param most_burst: size above which no burst rises.
    :param drain_target: that the supervisor may take to read a burst; one that took longer halves the next.
    :param growth: factor by which a burst grows when the one before was cheap and lines were left.
    :param drain_limit: after which lines are written although the channel was never seen empty: another
        trigger may write all the time.
    :param stretch: for which lines are written without letting the event loop do something else.
    :param poll: between two looks at the channel while it is being read.
    :param memory: half-life of what a log has had; logs that had least come first.

    What is read ahead of the task's log:

    :param queue_lines: lines of one log that wait to be shown; a fuller queue stops reading that log.
    :param queue_size: the same in bytes.
    :param queues_size: bytes of all logs of an event loop that wait to be shown.
    :param behind: after which a log that is stopped says that it is behind.

    At an invocation's end:

    :param settle: that a task's end waits for its last lines to leave the triggerer.
    :param worker_end: what a worker copies.
    :param triggerer_end: what a triggerer copies that ends its task itself.

    Where a platform has to be asked for lines:

    :param reads: requests a second, for all logs of a connection.
    :param readers: requests at a time.
    :param least_pause: between two requests for a log that has just had new lines.
    :param most_pause: between two requests for a log that has had none for a while.
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
