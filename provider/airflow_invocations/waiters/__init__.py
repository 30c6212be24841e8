"""Wait for invocations: in a worker, in a triggerer, or in a script.

The module `event_stream` is not imported here: only event triggers need it, and DAG files import this.
"""

from .cancellation import cancel_and_confirm
from .group import GroupOutcome, WaitResult, group_outcome, number_wanted, wait_each
from .log_lines import BEGINNING, LineShaper, LogLine, LogPosition, LongLine, UnshownRecords
from .log_relay import LogChannel, LogQueue, LogRelay
from .log_settings import LOG_SETTINGS, LogEnd, LogSettings
from .logs import EndOfLog, log_pages, read_end
from .rejection import Connect, client_of, retry_rejections
from .wait import AbandonReason, WaitAbandoned, WaitOptions, fetch_record, wait_until_terminal
from .wait_handle import Behind, Notice

__all__ = [
    "BEGINNING",
    "LOG_SETTINGS",
    "AbandonReason",
    "Behind",
    "Connect",
    "EndOfLog",
    "GroupOutcome",
    "LineShaper",
    "LogChannel",
    "LogEnd",
    "LogLine",
    "LogPosition",
    "LogQueue",
    "LogRelay",
    "LogSettings",
    "LongLine",
    "Notice",
    "UnshownRecords",
    "WaitAbandoned",
    "WaitOptions",
    "WaitResult",
    "cancel_and_confirm",
    "client_of",
    "fetch_record",
    "group_outcome",
    "log_pages",
    "number_wanted",
    "read_end",
    "retry_rejections",
    "wait_each",
    "wait_until_terminal",
]
